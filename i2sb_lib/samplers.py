r"""Generation: Algorithm 2 of [Liu 2023] and its faster kin, given a denoiser.

The contract is one line: `denoise(xt, t) -> x0_hat` with xt (B, *D) and t (B,) in (0, 1].
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from operator import index
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from i2sb_lib.bridge import Bridge, drawn_on, one_shape

Denoise = Callable[[Tensor, Tensor], Tensor]
Sampler = Literal["sde", "ode", "dbim"]


@dataclass
class Samples:
    """Result of `sample`.

    x: (B, *D) samples at t = 0.  nfe: network calls made.  times: the grid, from 1 down to 0, float64.
    trajectory: states x_t at `times`, nfe + 1 of them, the first one x1 (with its noise, on a bridge that
    has some at t = 1); predictions: x0_hat of each call. Both are empty unless asked for.
    """

    x: Tensor
    nfe: int
    times: Tensor
    trajectory: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)

    def __repr__(self) -> str:
        kept = f", {len(self.trajectory)} states kept" if self.trajectory else ""
        return f"Samples(x of shape {tuple(self.x.shape)}, nfe={self.nfe}{kept})"


def check_grid(times: Tensor) -> Tensor:
    """Return `times` as float64 on the CPU; ValueError unless it falls strictly from 1 to 0."""
    times = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
    if times.ndim != 1 or len(times) < 2 or times[0] != 1 or times[-1] != 0:
        raise ValueError(f"a sampling grid runs from 1 down to 0, got {times.tolist()}")
    if not bool((times.diff() < 0).all()):
        raise ValueError(f"a sampling grid falls strictly, got {times.tolist()}")
    return times


def _whole(k: Any) -> int:
    """A whole number as Python's own; TypeError for any other value, and for a yes or no."""
    if isinstance(k, bool):
        raise TypeError(f"expected a whole number, got {k}")
    return index(k)


def generators(seed: int | Sequence[int], count: int) -> list[torch.Generator]:
    """CPU generators for `count` images, each its own: from (seed, position), or from one seed for each.

    Seed k at position 0 is k in a list: an image alone and in a batch, on any device, has the same noise.
    32 bits of a hash of (seed, position) start each, all that a CPU generator keeps. ValueError for
    anything but a whole number or `count` of them.
    """
    try:
        keys = [(_whole(seed), i) for i in range(count)]
    except TypeError:
        try:
            ordered = not isinstance(seed, Set | Mapping | bytes)
            keys = [(_whole(k), 0) for k in (seed if ordered else [None])]  # type: ignore[union-attr]
        except TypeError:
            raise ValueError(f"expected a whole number as seed or one for each image, got {seed!r}") from None
    if len(keys) != count:
        raise ValueError(f"expected {count} seeds, one for each image, got {len(keys)}")
    starts = (hashlib.sha256(f"{k} {i}".encode()).digest()[:4] for k, i in keys)
    return [torch.Generator().manual_seed(int.from_bytes(start, "big")) for start in starts]


def check_sampler(sampler: Any, bridge: Bridge) -> None:
    """ValueError for an unknown sampler, and for one that this bridge does not have."""
    if sampler not in get_args(Sampler):
        raise ValueError(f"expected sampler in {get_args(Sampler)}, got {sampler!r:.40}")
    if sampler == "ode" and not float(bridge.coefficients(torch.ones(()))[1]):
        raise ValueError("ode is the limit of a bridge from x1: for a diffusion take sde or dbim (DDIM)")


def sample(
    denoise: Denoise,
    bridge: Bridge,
    x1: Tensor,
    nfe: int = 10,
    sampler: Sampler = "sde",
    *,
    times: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    keep: bool = False,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
    eta: float | None = None,
    grad: bool = False,
) -> Samples:
    """Carry x1 from t = 1 to t = 0 in `nfe` network calls.   [Liu 2023, Algorithm 2]

    At each step x0_hat = denoise(x_t, t) and x_s is drawn from the reverse kernel `Bridge.step`:

    - sde: ancestral sampling, x_s ~ p(x_s | x0_hat, x_t) (eta = 1);
    - ode: its mean alone, the OT-ODE limit of vanishing noise [Liu 2023, Prop. 3.4];
    - dbim: noise drawn once, at the first step, and carried (eta = 0) [Zheng et al. 2025].

    The last step has no noise: the result is the last x0_hat. x1: (B, *D), any degraded batch.
    times: a grid of nfe + 1 values from 1 to 0 (overrides nfe); uniform when omitted.
    generator: one, which draws x1's shape and dtype, or one for each image (see `generators`), which
    draws float32; the noise is drawn where the generator is, and moved. eta: between dbim's 0 and sde's 1,
    see `Bridge.step`, in place of the sampler's. grad: let gradients pass through the walk. keep: fill
    trajectory and predictions. Raises ValueError for x1 that is no floating-point tensor, an unknown
    sampler, ode where b_1 = 0, an nfe that is no whole number from 1 to 10^6, a grid that does not fall from
    1 to 0, an eta outside [0, 1] or with ode, as many generators as there are not images, and a denoiser's
    answer that is no floating-point tensor of x1's shape.
    """
    one_shape(x1=x1)
    check_sampler(sampler, bridge)
    if eta is not None and not (0 <= eta <= 1 and sampler != "ode"):
        raise ValueError(f"expected eta from 0 to 1 with sde or dbim, got {eta} with {sampler}")
    times = check_grid(bridge.schedule.grid(nfe) if times is None else times)
    # all coefficients at once, on the CPU in float64: no device is waited for inside the loop
    eta = (0.0 if sampler == "dbim" else 1.0) if eta is None else float(eta)
    step = bridge.step(times[1:], times[:-1], eta=eta)
    k0, k1, kt, std = (k.tolist() for k in step)
    if sampler == "ode":
        std = [0.0] * len(std)

    each = generator if isinstance(generator, Sequence) else [generator] * (generator is not None)
    places = [drawn_on(g or 0, None) for g in each]  # type: ignore[arg-type]
    if isinstance(generator, Sequence) and len(generator) != len(x1):
        raise ValueError(f"expected {len(x1)} generators, one for each image, got {len(generator)}")

    def noise() -> Tensor:
        if isinstance(generator, Sequence):
            if not generator:
                return torch.zeros_like(x1)
            how: dict[str, Any] = {"device": places[0], "dtype": torch.float32}
            drawn = torch.stack([torch.randn(x1.shape[1:], generator=g, **how) for g in generator])
            return (drawn.pin_memory() if x1.is_cuda else drawn).to(x1, non_blocking=True)  # no wait
        how = {"device": places[0] if places else x1.device, "dtype": x1.dtype}
        return torch.randn(x1.shape, generator=generator, **how).to(x1.device)

    xt, out = x1, Samples(x1, 0, times)
    _, mean, start = (float(c) for c in bridge.coefficients(times[:1]))
    if start > 0:  # I2SB starts at x1 itself, noisy InDI beside it, a diffusion at noise
        xt = mean * x1 + start * noise()
    if keep:
        out.trajectory.append(xt)
    steps, precision = range(len(k0)), torch.promote_types(x1.dtype, torch.float32)
    with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
        for n in progress(steps) if progress else steps:
            t = torch.full((len(x1),), float(times[n]), device=x1.device, dtype=precision)
            x0_hat = denoise(xt, t)
            one_shape(x1=x1, x0_hat=x0_hat)
            out.nfe += 1
            xt = k0[n] * x0_hat + kt[n] * xt
            if k1[n]:
                xt = xt + k1[n] * x1
            if std[n]:
                xt = xt + std[n] * noise()
            if keep:
                out.trajectory.append(xt)
                out.predictions.append(x0_hat)
    out.x = xt
    return out
