"""The trainings of the model for pictures whose damage is not known: `photos.py train`.

A batch is faces and pieces of scenes, cut anew for every step, of which some are cut out once more after
`Mixture` has been at them, so that their blur came from beyond their borders. The first training is a GPU's
(`gpu_flagship.py --models photos-robust`), where other processes make the pairs and Wiener's guesses. In it
some clean pictures have grain or were coded before, and are to be left so. With --init the next goes on from
a run's weights, without those, with more scenes as they are, and with weak damage counting more; with --alone
it gives that share of the pictures one kind of damage alone, of which `Mixture` makes few, with --mild below
1 weak JPEG more often. Another --seed, other pairs.
"""

import argparse
import itertools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from captured import side_by_side
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from i2sb_lib.bridge import stratified
from i2sb_lib.config import TrainConfig, stream
from i2sb_lib.data import load_images
from i2sb_lib.degradations import JPEG, Mixture
from i2sb_lib.images import quantise, to_float, to_tensor, to_uint8
from i2sb_lib.progress import progress
from i2sb_lib.sources import open_source
from i2sb_lib.training import Trainer
from i2sb_lib.wiener import blind_wiener

CROPS, SIDE, WIDE = 48, 64, 80
RECIPE: dict[str, Any] = {
    "network": "unet-medium", "degradation": "mixture", "wiener": True, "damage_floor": 4.0,
    "beta_min": 0.7089, "beta_max": 2.1266, "batch_size": 128, "lr": 1.5e-3, "warmup": 400, "ema": 0.9995,
    "save_every": 50, "eval_every": 10**6,
}  # fmt: skip
SECOND: dict[str, Any] = {"batch_size": 16, "lr": 4e-4, "warmup": 100, "ema": 0.999, "damage_floor": 1.5}
GRAIN = 0.02  # the most, of clean pictures


class Mix(NamedTuple):
    """Shares of a batch (the rest: faces), of shrunk pieces, of worn and of singly damaged pictures.

    mild: of these, a coded one has JPEG's quality from u^mild, u uniform: nearer the best below 1.
    """

    whole: float
    cut: float
    shrunk: float
    worn: float
    alone: float = 0
    mild: float = 1


MIX, SECOND_MIX = Mix(1 / 4, 1 / 4, 1 / 2, 1 / 10), Mix(3 / 8, 1 / 4, 1 / 4, 0)


class Pairs(IterableDataset[tuple[Tensor, Tensor, Tensor]]):
    """x0, x1 (uint8) and the guess (half precision) of each step from `start` on, from (seed, step) alone.

    faces: (N, 3, SIDE, SIDE) uint8; scenes: (3, H, W) uint8 of at least 2 WIDE pixels a side.
    """

    def __init__(
        self, faces: Tensor, scenes: list[Tensor], config: TrainConfig, start: int = 0, mix: Mix = MIX
    ) -> None:
        self.faces, self.scenes, self.config, self.start, self.mix = faces, scenes, config, start, mix
        self.mixture = Mixture()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        info = get_worker_info()
        first, workers = (info.id, info.num_workers) if info else (0, 1)
        return (self.pairs(step) for step in itertools.count(self.start + first, workers))

    def _piece(self, side: int, u: Tensor) -> Tensor:
        """A part of a scene, (1, 3, side, side), as it is or shrunk to no less than half; u: (4,)."""
        scene = self.scenes[int(u[0] * len(self.scenes))]
        taken = round(side * (1 + max(0.0, 1 - float(u[1]) / self.mix.shrunk)))
        y, x = (int(v * (n - taken + 1)) for v, n in zip(u[2:], scene.shape[1:], strict=True))
        part = to_float(scene[None, :, y : y + taken, x : x + taken])
        if taken == side:
            return part
        return F.interpolate(part, size=(side, side), mode="bicubic", antialias=True).clamp(-1, 1)

    def _pair(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clean pictures as they come, and what happened to them."""
        u = torch.rand(5, len(x0), generator=generator)
        x0 = torch.where(u[0, :, None, None, None] < 0.5, x0.flip(-1), x0)
        for i in (u[1] < self.mix.worn).nonzero().flatten().tolist():
            x0[i : i + 1] = JPEG(80 + int(18 * u[2, i])).apply(x0[i : i + 1], None)
        std = 2 * GRAIN * u[4] * (u[3] < self.mix.worn)
        noise = torch.randn(x0.shape, generator=generator)
        x0 = quantise((x0 + std[:, None, None, None] * noise).clamp(-1, 1))
        u, noise = (
            f(*n, generator=generator) for f, n in ((torch.rand, (len(x0), 16)), (torch.randn, x0.shape))
        )
        alone = u[:, 14] < self.mix.alone  # of blur, shrinking, noise and JPEG the one that u[:, 15] says
        u[alone, 0] = 1
        u[alone, 1:5] = (torch.arange(4) != (4 * u[alone, 15:]).floor()).float()
        u[alone, 13] **= self.mix.mild
        return x0, self.mixture.degrade(x0, u[:, :14], noise)

    def pairs(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(stream(self.config.seed, step))
        n = self.config.batch_size
        whole, cut = round(n * self.mix.whole), round(n * self.mix.cut)
        u = torch.rand(whole + cut, 4, generator=generator)
        faces = self.faces[torch.randint(len(self.faces), (n - whole - cut,), generator=generator)]
        x0 = torch.cat([to_float(faces), *(self._piece(SIDE, v) for v in u[:whole])])
        x0, x1 = self._pair(x0, generator)
        if cut:
            wide = self._pair(torch.cat([self._piece(WIDE, v) for v in u[whole:]]), generator)
            y, x = torch.randint(WIDE - SIDE + 1, (2,), generator=generator).tolist()
            part = (v[..., y : y + SIDE, x : x + SIDE] for v in wide)
            x0, x1 = (torch.cat(both) for both in zip((x0, x1), part, strict=True))
        return to_uint8(x0), to_uint8(x1), blind_wiener(x1).half()


class Run(Trainer):
    """A training whose batches `Pairs` makes, in other processes where there are `workers`.

    faces: (N, 3, SIDE, SIDE) uint8. crops: of the scenes, in that form; of both some are held out for
    the monitor, and no face of these is trained on. scenes: as of `Pairs`.
    """

    def __init__(
        self,
        config: TrainConfig,
        resume: bool,
        faces: Tensor,
        scenes: list[Tensor],
        crops: Tensor,
        workers: int = 0,
        mix: Mix = MIX,
    ) -> None:
        super().__init__(config, resume, images=torch.cat([crops, faces]))
        places = self.batches.places
        used = torch.cat([crops, faces])[places[places >= len(crops)]]
        self.pairs = Pairs(used, scenes, config, self.step, mix)
        more: dict[str, Any] = {"prefetch_factor": 4} if workers else {}
        self.feed = iter(DataLoader(self.pairs, batch_size=None, num_workers=workers, **more))
        self.made, self.pixels = -1, list[Tensor]()

    @torch.no_grad()
    def batch(self) -> tuple[Tensor, ...]:
        if self.made != self.step:
            self.made, self.pixels = self.step, next(self.feed)
        x0, x1, guess = (v.to(self.device) for v in self.pixels)
        seed = stream(self.config.seed + 1, self.step)
        generator = torch.Generator(self.device).manual_seed(seed)
        u = torch.rand(len(x0), generator=generator, device=self.device)
        noise = torch.randn(x0.shape, generator=generator, device=self.device)
        return to_float(x0), to_float(x1), stratified(u), noise, guess.float()


def create_run(config: TrainConfig, resume: bool, faces: str, scenes: str, mix: Mix = MIX) -> Run:
    """The run of `config` on the training parts of two sets of pictures."""
    whole = [to_tensor(open_it()) for _, open_it in open_source(scenes, "train")[1]]
    crops = load_images(scenes, "train", SIDE, crops=CROPS)
    workers = (os.cpu_count() or 1) - 2 if torch.cuda.is_available() else 0
    return Run(config, resume, load_images(faces, "train", SIDE), whole, crops, workers, mix)


def learn(args: argparse.Namespace) -> None:
    recipe = RECIPE | (SECOND | {"init": args.init} if args.init else {})
    config = TrainConfig(**recipe, steps=args.steps, seed=args.seed, out=str(args.out))
    resume, mix = (args.out / "state.pt").exists(), SECOND_MIX if args.init else MIX
    run = create_run(config, resume, args.faces, args.scenes, mix._replace(alone=args.alone, mild=args.mild))
    with progress(total=config.steps, initial=run.step, desc="training", unit="steps", show=True) as bar:
        side_by_side([run], config.save_every, lambda run, line: bar.update(run.step - bar.n))
