"""Image-to-image Schrödinger bridges: the mathematics, the training and the restoration.

>>> model = i2sb_lib.load_pretrained()
>>> x0_hat = model.restore(x1, seed=0)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from i2sb_lib.bridge import Bridge
from i2sb_lib.checkpoints import DEFAULT, Pretrained, load_pretrained, save_pretrained
from i2sb_lib.config import TrainConfig
from i2sb_lib.data import load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.denoiser import Denoiser, ModelConfig
from i2sb_lib.estimation import estimate_sigma
from i2sb_lib.evaluation import evaluate
from i2sb_lib.images import open_image, save_image
from i2sb_lib.networks import create_network
from i2sb_lib.operators import Degradation
from i2sb_lib.pairs import load_pairs
from i2sb_lib.samplers import sample
from i2sb_lib.schedule import Schedule

__version__ = "0.1.0"
__all__ = [
    "Bridge",
    "Degradation",
    "Denoiser",
    "ModelConfig",
    "Pretrained",
    "Schedule",
    "TrainConfig",
    "create_degradation",
    "create_network",
    "estimate_sigma",
    "evaluate",
    "load_images",
    "load_pairs",
    "load_pretrained",
    "open_image",
    "restore_image",
    "sample",
    "save_image",
    "save_pretrained",
    "train",
]


def train(
    config: TrainConfig,
    resume: bool = False,
    *,
    images: Any = None,
    targets: Any = None,
    degrade: Callable[..., Tensor] | None = None,
    net: nn.Module | None = None,
    init: str | Path | Pretrained | None = None,
) -> dict[str, Any]:
    """Train a bridge as `config` says, on images of one's own where they are given.

    images: the clean ones x0, uint8 (N, C, H, W), C 1, 3 or 4; or any dataset or iterable of pictures or of
    pairs (x0, x1) of them, each uint8 (C, H, W), an array (H, W[, C]) or one of Pillow's; or where
    `load_images` finds them. targets: their x1 in the same form. degrade: where there are none, any
    callable x0 (B, C, H, W) in [-1, 1] -> x1 of that form, a module too; an argument named generator, or a
    second one without a default, gets a torch.Generator.
    net: any module called as net(planes, t), see `Denoiser`, and trained in place. init: a checkpoint whose
    weights and moments the run starts from. To resume, give the same again.
    Returns and raises what `i2sb_lib.training.train` does, which is imported (with Accelerate) on use.
    """
    from i2sb_lib import training

    own = {"images": images, "targets": targets, "degrade": degrade, "net": net, "init": init}
    return training.train(config, resume, **own)


def restore_image(image: Any, model: str | Path | Pretrained = DEFAULT, **how: Any) -> Image.Image:
    """A picture (a path, an image of Pillow's or an array) restored, as Pillow's; how: see `restore`."""
    model = model if isinstance(model, Pretrained) else load_pretrained(model)
    found = model.restore([image], **how)[0]
    return found if isinstance(found, Image.Image) else Image.fromarray(found)
