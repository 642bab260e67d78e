"""The three trainings of the model for pictures whose damage is not known: `photos.py train`.

Each shows `Mixture` to a network on CROPS crops of 64 x 64 pixels of each scene and about as many faces,
with moments of its own, and goes on from a state that is there. The first starts from the weights of the
blind model of faces. With --init a second starts from the first's, with the larger batches of a GPU, and
with --wiener a third from the second's, which sees Wiener's guess, too, and pictures whose borders are cut.
"""

import argparse
from typing import Any

import torch
from captured import side_by_side
from torch import Tensor

from i2sb_lib.batches import Batches
from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.config import TrainConfig, stream
from i2sb_lib.data import load_images
from i2sb_lib.denoiser import Denoiser
from i2sb_lib.progress import progress
from i2sb_lib.training import Trainer

CROPS, CUT = 48, 48
RECIPE: dict[str, Any] = {
    "network": "unet-small", "degradation": "mixture", "beta_min": 0.7089, "beta_max": 2.1266,
    "damage_floor": 8.0, "steps": 1600, "batch_size": 16, "lr": 2e-3, "warmup": 60, "save_every": 50,
    "eval_every": 10**6, "init": "celeba64-deblur-blind",
}  # fmt: skip
# With Wiener's guess: from the weights of the second, which the guess is shown in addition
THIRD: dict[str, Any] = {"wiener": True, "steps": 6000, "lr": 8e-4, "warmup": 100, "damage_floor": 4.0}
SECOND: dict[str, Any] = {"steps": 1285, "batch_size": 128, "lr": 1.5e-3, "warmup": 300, "ema": 0.9995}


class Cut(Batches):
    """Every other batch is a part of CUT x CUT pixels, whose blur came from beyond its borders."""

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x0, x1, t, noise = super().__call__(step)
        if step % 2:
            seed = torch.Generator().manual_seed(stream(self.config.seed + 1, step))
            y, x = torch.randint(x0.shape[-1] - CUT + 1, (2,), generator=seed).tolist()
            x0, x1, noise = (v[..., y : y + CUT, x : x + CUT].contiguous() for v in (x0, x1, noise))
        return x0, x1, t, noise


class Run(Trainer):
    """A training that starts from the weights of `init`, but has the moments of its own pairs.

    What `init` has not, planes that go in and one that comes out, is begun with weights of zero.
    """

    def __init__(self, config: TrainConfig, resume: bool, images: Tensor) -> None:
        super().__init__(config, resume, images=images)
        if config.wiener:
            b = self.batches
            self.batches = Cut(b.images, b.degrade, config, None, b.places, self.device)

    def _build(self) -> Denoiser:
        init, self.init = self.init, None
        model = super()._build()
        weights, own = load_pretrained(init, "cpu").denoiser.state_dict(), model.state_dict()
        for name, old in weights.items():
            if old.shape != own[name].shape:
                weights[name] = torch.zeros_like(own[name])
                weights[name][tuple(slice(n) for n in old.shape)] = old
        model.load_state_dict(weights)
        return model


def learn(args: argparse.Namespace) -> None:
    """Train, or go on, as the command line says."""
    scenes = load_images(args.scenes, "train", 64, crops=CROPS)
    images = torch.cat([scenes, load_images(args.faces, "train", 64)])
    more = THIRD if args.wiener else SECOND
    recipe = RECIPE | (more | {"init": args.init} if args.init else {})
    config = TrainConfig(**recipe, out=str(args.out))
    run = Run(config, (args.out / "state.pt").exists(), images)
    with progress(total=config.steps, initial=run.step, desc="training", unit="steps", show=True) as bar:
        side_by_side([run], config.save_every, lambda run, line: bar.update(run.step - bar.n))
