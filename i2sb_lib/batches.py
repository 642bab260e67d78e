"""What a step of training sees, from (seed, step) alone: images, pairs, times, noise, dropout."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from i2sb_lib.config import TrainConfig, stream
from i2sb_lib.degradations import Degradation
from i2sb_lib.images import to_float

_SEEDING = threading.Lock()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Global random numbers of the device, from which layers draw, from `seed`; then they go on as before.

    One thread at a time, so that trainings side by side do not take each other's. (Those of an Apple GPU
    do not go on as before: PyTorch cannot fork them.)
    """
    seeds: Any = {"cuda": torch.cuda.manual_seed, "mps": torch.mps.manual_seed}
    with _SEEDING, torch.random.fork_rng([device] if device.type == "cuda" else []):
        seeds.get(device.type, torch.default_generator.manual_seed)(seed)
        yield


class Batches:
    """Training pairs by step: `batches(k)` is the same for the same images, config and k."""

    def __init__(self, images: Tensor, degrade: Degradation, config: TrainConfig) -> None:
        self.images, self.degrade, self.config = images, degrade, config
        self._orders: dict[int, Tensor] = {}

    def indices(self, step: int) -> Tensor:
        """Positions of step's images: every epoch visits every image once, in a new order."""
        n, size = len(self.images), self.config.batch_size
        places = torch.arange(step * size, (step + 1) * size)
        for epoch in {int(places[0]) // n, int(places[-1]) // n} - set(self._orders):
            self._orders.pop(epoch - 2, None)
            order = torch.Generator().manual_seed(stream(self.config.seed, epoch))
            self._orders[epoch] = torch.randperm(n, generator=order)
        return torch.stack([self._orders[k // n][k % n] for k in places.tolist()])

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x0, x1 (B, 3, H, W), t (B,) in (0, 1] stratified over the batch, and the bridge's noise."""
        device = self.images.device
        generator = torch.Generator(device).manual_seed(stream(self.config.seed, step))
        x0 = to_float(self.images[self.indices(step).to(device)])
        size = len(x0)
        flip, u = torch.rand(2, size, generator=generator, device=device)
        x0 = torch.where(flip.reshape(-1, 1, 1, 1) < 0.5, x0.flip(-1), x0)
        x1 = self.degrade(x0, generator)
        t = 1 - (torch.arange(size, device=device) + u) / size * (1 - 1e-3)
        if self.config.process == "regression":
            t = torch.ones_like(t)
        return x0, x1, t, torch.randn(x0.shape, generator=generator, device=device)

    def dropout(self, step: int) -> contextlib.AbstractContextManager[None]:
        """In which step's forward pass runs: what its layers draw is from (seed, step) too."""
        seed = stream(self.config.seed, 2**31 + step)
        return seeded(seed, self.images.device) if self.config.dropout else contextlib.nullcontext()
