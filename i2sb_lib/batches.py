"""What a step of training sees, from (seed, step) alone: images, pairs, times, noise, dropout."""

import contextlib
import dataclasses
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from i2sb_lib.bridge import stratified
from i2sb_lib.config import TrainConfig, create_pair_maker, stream
from i2sb_lib.degradations import Compose, Degradation, Noise, Quantise
from i2sb_lib.denoiser import CUSTOM
from i2sb_lib.images import check_images, to_float

RESIDENT = 4 * 2**30
_SEEDING = threading.RLock()  # one seeds inside another, too


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


class Own(Degradation):
    """Any callable as a degradation: x0 (B, C, H, W) in [-1, 1] -> x1 of that form, perhaps (x0, generator).

    An argument named generator gets one, and so does a second one without a default. Where there is neither,
    global random numbers may be drawn: they are seeded from the generator, and then go on as before. What it
    gives is checked: ValueError says what came.
    """

    def __init__(self, call: Callable[..., Tensor]) -> None:
        self.call, self.name = call, getattr(call, "__name__", type(call).__name__)
        try:  # a module's own is (*args, **kwargs)
            taken = inspect.signature(call.forward if isinstance(call, nn.Module) else call)
        except (TypeError, ValueError):  # some written in C
            taken = inspect.signature(lambda x: x)
        more = [
            p for p in list(taken.parameters.values())[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        self.named = ["generator"] * any(p.name == "generator" and p.kind != p.POSITIONAL_ONLY for p in more)
        asks = [p.default is p.empty and p.kind != p.KEYWORD_ONLY for p in more[:1]]
        self.second = asks == [True] and not self.named
        try:
            taken.bind(None, *[None] * self.second, **dict.fromkeys(self.named))
        except TypeError:
            raise ValueError(f"expected degrade (x0) or (x0, generator), got {self.name}{taken}") from None

    def __repr__(self) -> str:
        return self.name

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        x = x.clone()  # which the call may change
        if self.named or self.second:
            y = self.call(x, *[generator] * self.second, **dict.fromkeys(self.named, generator))
        elif generator is None:
            y = self.call(x)
        else:
            start = int(torch.randint(2**31, (), generator=generator, device=generator.device))
            with seeded(start, x.device):
                y = self.call(x)
        check_images(y, f"{self.name}'s x1", x.shape[1])
        if y.shape != x.shape:
            raise ValueError(f"{self.name}: expected x1 of x0's shape {tuple(x.shape)}, got {tuple(y.shape)}")
        return y.to(x)


def create_degrade(config: TrainConfig, own: Callable[..., Tensor] | None = None) -> Degradation:
    """A run's degradation: the config's, or one's own with the config's noise and rounding behind it."""
    if own is None:
        return create_pair_maker(dataclasses.asdict(config))
    first = own if isinstance(own, Degradation) else Own(own)
    return Compose((first, *[Noise(config.noise)] * bool(config.noise), *[Quantise()] * config.quantise))


class Batches:
    """Training pairs by step: `batches(k)` is the same for the same images, config and k.

    images: x0, uint8 (N, C, H, W), in any memory, or mapped from a file: a step reads its own images alone.
    targets: their x1 of that form; where None, `degrade` makes x1. places: positions of the images that
    are used; all where None. device: where the work is done, and the images are kept if they have no more
    than RESIDENT bytes; theirs where None.
    """

    def __init__(
        self,
        images: Tensor,
        degrade: Degradation,
        config: TrainConfig,
        targets: Tensor | None = None,
        places: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.degrade, self.config, self.device = degrade, config, device or images.device
        self.images, self.targets = self._near(images), None if targets is None else self._near(targets)
        self.places = torch.arange(len(images)) if places is None else places
        self._orders: dict[int, Tensor] = {}

    def _near(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device) if pixels.nbytes <= RESIDENT else pixels

    def _pixels(self, of: Tensor, indices: Tensor) -> Tensor:
        return to_float(of[self.places[indices].to(of.device)].to(self.device))

    def clean(self, indices: Tensor) -> Tensor:
        """x0 of the images at `indices`."""
        return self._pixels(self.images, indices)

    @torch.no_grad()  # none gathers in what a degradation of one's own has learnt
    def start(self, x0: Tensor, indices: Tensor, generator: torch.Generator) -> Tensor:
        """x1 of the images at `indices`, whose x0 is given."""
        return self.degrade(x0, generator) if self.targets is None else self._pixels(self.targets, indices)

    def indices(self, step: int) -> Tensor:
        """Positions of step's images: every epoch visits every image once, in a new order."""
        n, size = len(self.places), self.config.batch_size
        at = torch.arange(step * size, (step + 1) * size)
        for epoch in {int(at[0]) // n, int(at[-1]) // n} - set(self._orders):
            self._orders.pop(epoch - 2, None)
            order = torch.Generator().manual_seed(stream(self.config.seed, epoch))
            self._orders[epoch] = torch.randperm(n, generator=order)
        return torch.stack([self._orders[k // n][k % n] for k in at.tolist()])

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x0, x1 (B, C, H, W), t (B,) in (0, 1] stratified over the batch, and the bridge's noise."""
        device = self.device
        generator = torch.Generator(device).manual_seed(stream(self.config.seed, step))
        indices = self.indices(step)
        x0 = self.clean(indices)
        size = len(x0)
        flip, u = torch.rand(2, size, generator=generator, device=device)
        flip = flip.reshape(-1, 1, 1, 1) < 0.5
        x0 = torch.where(flip, x0.flip(-1), x0)
        x1 = self.start(x0, indices, generator)
        if self.targets is not None:
            x1 = torch.where(flip, x1.flip(-1), x1)
        t = stratified(u)
        if self.config.process == "regression":
            t = torch.ones_like(t)
        return x0, x1, t, torch.randn(x0.shape, generator=generator, device=device)

    def dropout(self, step: int) -> contextlib.AbstractContextManager[None]:
        """In which step's forward pass runs: what its layers draw is from (seed, step) too."""
        seed = stream(self.config.seed, 2**31 + step)
        draws = self.config.dropout or self.config.network == CUSTOM
        return seeded(seed, self.device) if draws else contextlib.nullcontext()
