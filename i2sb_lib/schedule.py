r"""Variance of the reference process dX = sqrt(beta(t)) dW on t in [0, 1].

Everything the bridge needs from its schedule is two functions,

    var_fwd(t) = sigma_t^2 = int_0^t beta,        var_bwd(t) = bar sigma_t^2 = int_t^1 beta,

so built that var_fwd(0) = var_bwd(1) = 0 and var_fwd(1) = var_bwd(0) = total hold exactly.
                                                                        [Liu 2023, Prop. 3.3]
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def symmetric_betas(n: int, beta_max: float = 0.3, linear_start: float = 1e-4) -> Tensor:
    """The published discrete table: sqrt(beta) linear, its first half mirrored.

    sqrt(beta_k) runs from sqrt(linear_start) to sqrt(beta_max / n) over n points; the first n/2
    values are kept and followed by their mirror image. Returns (n,) float64, n even.
    The total standard deviation depends on n (0.221, 0.376, 0.611 at n = 100, 1000, 4000): use it
    for parity, and `Schedule.symmetric` for work. ValueError for an odd n, for one below 2, and for a
    beta_max or a linear_start that is negative or not finite.
    """
    if not (n >= 2 and n % 2 == 0 and 0 <= beta_max < math.inf and 0 <= linear_start < math.inf):
        got = f"{n=}, {beta_max=}, {linear_start=}"
        raise ValueError(f"symmetric_betas needs finite betas >= 0 and an even n of at least 2, got {got}")
    root = torch.linspace(linear_start**0.5, (beta_max / n) ** 0.5, int(n), dtype=torch.float64)
    half = root[: len(root) // 2] ** 2
    return torch.cat([half, half.flip(0)])


class Schedule:
    """A reference process with diffusion beta(t) >= 0 on [0, 1]; build one with a class method.

    `beta`, `var_fwd` and `var_bwd` take times in [0, 1], a tensor of any shape or a float, and
    return the same shape and dtype, float64 for a float or whole numbers. ValueError for a time that is
    not in [0, 1] (on a GPU times are taken as they come). `total` is sigma_1^2 = var_fwd(1).
    """

    total: float

    @staticmethod
    def symmetric(*, beta_max: float = 0.3, beta_min: float = 0.1) -> Schedule:
        """Symmetric quadratic: sqrt(beta) linear in min(t, 1 - t), from sqrt(beta_min) at the ends.

        The limit of the published table at n = 1000: total standard deviation 0.376. Its slope is
        sqrt(beta_max) - sqrt(beta_min) per unit of t, as in the table, of whose ramp only the half
        is used: beta_max is the value that it would reach at t = 1. ValueError unless both are from 0 to
        1e18 and one is at least 1e-18.
        """
        return SymmetricSchedule(beta_min=beta_min, beta_max=beta_max)

    @staticmethod
    def constant(beta: float = 1.0) -> Schedule:
        """beta(t) = beta, from 1e-18 to 1e18: the bridge is Brownian, with variance beta t (1 - t)."""
        return SymmetricSchedule(beta_min=beta, beta_max=beta)

    @staticmethod
    def from_betas(betas: Tensor) -> Schedule:
        """A table of n increments: beta(t) = n betas[k] on [k/n, (k+1)/n), the last one at t = 1 too.

        ValueError unless they are 1-D and not negative, above 0 at both ends, and sum to 1e-18 to 1e18.
        """
        return TableSchedule(betas)

    def beta(self, t: Tensor | float) -> Tensor:
        """Diffusion coefficient beta(t), variance per unit time."""
        raise NotImplementedError

    def var_fwd(self, t: Tensor | float) -> Tensor:
        """sigma_t^2 = int_0^t beta: variance gathered since the clean end."""
        raise NotImplementedError

    def var_bwd(self, t: Tensor | float) -> Tensor:
        """bar sigma_t^2 = int_t^1 beta: variance still to come before the degraded end."""
        raise NotImplementedError

    def grid(self, n: int, power: float = 1.0) -> Tensor:
        """n + 1 times (1 - k/n)^power from 1 down to 0, float64: uniform, or denser at the clean end.

        n: a whole number from 1 to 10^6; power: above 0, to 10^6. ValueError for others.
        """
        whole = hasattr(n, "__index__") and not isinstance(n, bool) and not getattr(n, "ndim", 0)
        if not (whole and 1 <= n <= 10**6 and isinstance(power, numbers.Real) and 0 < power <= 10**6):
            got = f"both up to 10^6, got n={n!r:.40}, power={power!r:.40}"
            raise ValueError(f"a grid needs a whole number of steps, at least one, and power > 0, {got}")
        return torch.linspace(1, 0, n + 1, dtype=torch.float64) ** power


def check_times(t: Tensor, positive: bool = False) -> Tensor:
    """Return t; ValueError unless in [0, 1], or (0, 1]. A GPU's times pass: to look would be to wait."""
    if t.is_cpu and t.numel() and not torch.compiler.is_compiling():
        lo, hi = (float(v) for v in t.detach().aminmax())
        if not 0 <= lo <= hi <= 1 or (positive and lo == 0):
            raise ValueError(f"expected times in {'(' if positive else '['}0, 1], got {lo:.12g} to {hi:.12g}")
    return t


def as_time(t: Tensor | float) -> Tensor:
    """A time or times as a floating-point tensor, checked; float64 unless it has a floating type."""
    t = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    return check_times(t if t.is_floating_point() else t.cpu().double())


@dataclass(frozen=True, kw_only=True)
class SymmetricSchedule(Schedule):
    """sqrt(beta) linear from sqrt(beta_min) at t = 0 towards sqrt(beta_max), mirrored at t = 1/2."""

    beta_min: float
    beta_max: float

    def __post_init__(self) -> None:
        low, high = sorted((self.beta_min, self.beta_max))
        if not 0 <= low <= high <= 1e18 or high < 1e-18:  # single precision squares and divides by them
            raise ValueError(f"expected beta_min and beta_max >= 0 and one from 1e-18 to 1e18, got {self}")

    @property
    def total(self) -> float:  # type: ignore[override]
        return 2 * self._half(0.5)

    def _root(self, u: Any) -> Any:
        a, b = self.beta_min**0.5, self.beta_max**0.5
        return a + (b - a) * u

    def _half(self, u: Any) -> Any:
        """int_0^u beta for u <= 1/2: u times the mean of a linear function's square."""
        a, r = self.beta_min**0.5, self._root(u)
        return u * (a * a + a * r + r * r) / 3

    def beta(self, t: Tensor | float) -> Tensor:
        t = as_time(t)
        return self._root(torch.minimum(t, 1 - t)) ** 2

    def var_fwd(self, t: Tensor | float) -> Tensor:
        t = as_time(t)
        return torch.where(t <= 0.5, self._half(t), self.total - self._half(1 - t))

    def var_bwd(self, t: Tensor | float) -> Tensor:
        return self.var_fwd(1 - as_time(t))


class TableSchedule(Schedule):
    """Piecewise constant beta, so that var_fwd is linear between the table's sums."""

    def __init__(self, betas: Tensor) -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64).cpu()
        if betas.ndim != 1 or not bool((betas >= 0).all() and 1e-18 <= betas.sum() <= 1e18):
            wanted = "a 1-D table of non-negative betas with a sum from 1e-18 to 1e18"
            raise ValueError(f"expected {wanted}, got shape {tuple(betas.shape)}")
        if min(betas[0], betas[-1]) <= 0:  # where sigma_t, or its counterpart, would be zero on an interval
            raise ValueError(f"expected betas above 0 at both ends, got {betas[0]:g} and {betas[-1]:g}")
        self.betas, zero = betas, betas.new_zeros(1)
        self._fwd = torch.cat([zero, betas.cumsum(0)])
        # from the far end, so that neither end is the difference of two large numbers
        self._bwd = torch.cat([betas.flip(0).cumsum(0).flip(0), zero])
        self._bwd[0] = self._fwd[-1]
        self.total = float(self._fwd[-1])

    def _locate(self, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        t, n = as_time(t), len(self.betas)
        k = (t * n).long().clamp(0, n - 1)
        return t, k, t * n - k

    def beta(self, t: Tensor | float) -> Tensor:
        t, k, _ = self._locate(t)
        return (self.betas * len(self.betas)).to(t)[k]

    def var_fwd(self, t: Tensor | float) -> Tensor:
        t, k, part = self._locate(t)
        return torch.lerp(self._fwd.to(t)[k], self._fwd.to(t)[k + 1], part)

    def var_bwd(self, t: Tensor | float) -> Tensor:
        t, k, part = self._locate(t)
        return torch.lerp(self._bwd.to(t)[k], self._bwd.to(t)[k + 1], part)
