"""Image-to-image Schrödinger bridges: the mathematics, the training and the restoration.

>>> model = i2sb_lib.load_pretrained()
>>> x0_hat = model.restore(x1, nfe=10, seed=0)
"""

from i2sb_lib.bridge import Bridge
from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.config import TrainConfig
from i2sb_lib.data import load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.evaluation import evaluate
from i2sb_lib.networks import create_network
from i2sb_lib.samplers import sample
from i2sb_lib.schedule import Schedule

__version__ = "0.1.0"
__all__ = [
    "Bridge",
    "Schedule",
    "TrainConfig",
    "create_degradation",
    "create_network",
    "evaluate",
    "load_images",
    "load_pretrained",
    "sample",
    "train",
]


def train(config: TrainConfig, resume: bool = False) -> dict[str, object]:
    """Train a bridge: see `i2sb_lib.training.train`, which is imported (with Accelerate) on use."""
    from i2sb_lib import training

    return training.train(config, resume)
