r"""The Gaussian algebra of diffusion bridges between a clean x0 (t = 0) and a degraded x1 (t = 1).

Every bridge here is an interpolant x_t = a_t x0 + b_t x1 + c_t eps, eps ~ N(0, I). I2SB has

    a_t = bar sigma_t^2 / total,   b_t = sigma_t^2 / total,   c_t^2 = sigma_t^2 bar sigma_t^2 / total

[Liu 2023, Prop. 3.3]; the Brownian bridge is its constant-beta case, and InDI
[Delbracio & Milanfar 2023] and variance-preserving DDBM [Zhou et al. 2024] are other coefficients.
For all of them the Gaussian reverse kernel is x_s = a_s x0 + b_s x1 + r (x_t - a_t x0 - b_t x1) + noise.
With r = b_s / b_t the degraded image drops out: that is the Markov (DDPM) kernel of Algorithm 2.
Diffusion from noise is the case b = 0, the baseline of every bridge.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from i2sb_lib.schedule import Schedule, as_time, check_times

Net = Callable[[Tensor, Tensor], Tensor]  # (x_t, t (B,)) -> x_t's shape
Coefficients = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


class Step(NamedTuple):
    """Reverse kernel x_s = x0 * k0 + x1 * k1 + xt * kt + std * noise."""

    k0: Tensor
    k1: Tensor
    kt: Tensor
    std: Tensor


def expand(t: Tensor | float, x: Tensor) -> Tensor:
    """Reshape t of shape (B,) or (), in [0, 1], so that it broadcasts against x of shape (B, *D)."""
    one_shape(x=x)
    t = as_time(t).to(x)
    if t.ndim > 1 or (t.ndim == 1 and t.shape[0] not in (x.shape[0], 1)):
        got = f"x of shape {tuple(x.shape)}, got {tuple(t.shape)}"
        raise ValueError(f"expected t of shape () or ({x.shape[0]},) for {got}")
    return t.reshape(-1, *[1] * (x.ndim - 1))


def sample_times(
    count: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Times (count,) in (0, 1] for training, one in each of as many equal parts of [1e-3, 1]."""
    return stratified(torch.rand(count, generator=generator, device=drawn_on(generator, device)))


def drawn_on(generator: torch.Generator | None, device: Any) -> Any:
    """The generator's device, or this one where there is none; ValueError for what is none of torch's."""
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"expected generators of torch's, see `generators` for seeds, got {generator!r:.80}")
    return device if generator is None else generator.device


def stratified(u: Tensor) -> Tensor:
    """u (B,), uniform on [0, 1), as times in (0, 1]: 1 - (i + u_i) / B for i < B, down to 1e-3."""
    return 1 - (torch.arange(len(u), device=u.device) + u) / len(u) * (1 - 1e-3)


def one_shape(axes: int = 1, **parts: Tensor) -> None:
    """ValueError unless the parts are floating-point tensors of one shape, with so many axes at least."""
    names, first = " and ".join(parts), next(iter(parts.values()))
    for part in parts.values():
        if not (isinstance(part, Tensor) and part.is_floating_point()):
            got = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(f"expected {names}, each a tensor of floating-point numbers, got {got}")
        if part.shape != first.shape or part.ndim < axes:
            shapes = " and ".join(str(tuple(getattr(p, "shape", ()))) for p in parts.values())
            raise ValueError(f"expected {names} of one shape, of {axes} axes or more, got {shapes}")


class Bridge:
    """A family x_t = a_t x0 + b_t x1 + c_t eps with its reverse kernels.

    schedule: variance of the reference process; it also scales the training target.
    coefficients: t -> (a_t, b_t, c_t), each of t's shape; I2SB's own when omitted.
    Times are tensors of shape (B,) or (), or floats, in [0, 1]; x0, x1, xt are (B, *D), floating-point
    tensors of any precision. ValueError where they are not (times on a GPU are taken as they come: to look
    at them would be to wait for it), and for a generator that is none of torch's.
    """

    def __init__(self, schedule: Schedule, coefficients: Coefficients | None = None) -> None:
        self.schedule = schedule
        self.coefficients: Coefficients = coefficients or self._i2sb

    def _i2sb(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fwd, bwd, total = self.schedule.var_fwd(t), self.schedule.var_bwd(t), self.schedule.total
        return bwd / total, fwd / total, (fwd * bwd / total).sqrt()

    @classmethod
    def ot_ode(cls, schedule: Schedule) -> Bridge:
        """I2SB without its noise, x_t = a_t x0 + b_t x1: every walk is the ode's.   [Liu 2023, Prop. 3.4]

        Where x1 is shown to the network x0 = (x_t - b_t x1) / a_t can be read off for t < 1: what is left
        to learn is the regression at t = 1.
        """
        a_b = cls(schedule)._i2sb
        return cls(schedule, lambda t: (*a_b(t)[:2], torch.zeros_like(t)))

    @classmethod
    def indi(cls, noise: float = 0.0) -> Bridge:
        """Inversion by direct iteration: x_t = (1 - t) x0 + t x1 + t noise eps, noise from 0 to 1e18."""
        if not 0 <= noise <= 1e18:  # single precision squares it
            raise ValueError(f"expected a noise from 0 to 1e18, got {noise}")
        return cls(Schedule.constant(), lambda t: (1 - t, t, noise * t))

    @classmethod
    def ddbm_vp(cls, *, beta_min: float = 0.1, beta_max: float = 2.1) -> Bridge:
        """DDBM over the variance-preserving process, beta(t) = 0.1 + 2 t.   [Zhou et al. 2024, Table 1]

        beta is linear from beta_min at t = 0 to beta_max at t = 1. With nu = sigma^2 / alpha^2 of the
        reference, x_t / alpha_t is I2SB's bridge in the clock nu from x0 to x1 / alpha_1. ValueError unless
        both are at least 0 and their sum is from 1e-18 to 160.
        """
        if not (beta_min >= 0 and beta_max >= 0 and 1e-18 <= beta_min + beta_max <= 160):  # exp overflows
            raise ValueError(f"expected betas >= 0, a sum from 1e-18 to 160, got {beta_min=} and {beta_max=}")

        def integral(t: Tensor) -> Tensor:
            return beta_min * t + (beta_max - beta_min) * t**2 / 2

        def coefficients(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            end = integral(torch.ones_like(t))
            nu, nu1 = torch.expm1(integral(t)), torch.expm1(end)
            alpha, alpha1 = torch.exp(-integral(t) / 2), torch.exp(-end / 2)
            left = 1 - nu / nu1
            return alpha * left, nu / nu1 * alpha / alpha1, alpha * (nu * left).sqrt()

        return cls(Schedule.constant(), coefficients)

    @classmethod
    def diffusion(cls) -> Bridge:
        """No bridge but a diffusion, x_t = cos(pi t / 2) x0 + sin(pi t / 2) eps: x_1 is pure noise.

        eta = 1 is then DDPM's kernel and eta = 0 DDIM's.   [Ho et al. 2020; Song et al. 2021a]
        """

        def coefficients(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return torch.sin(math.pi / 2 * (1 - t)), torch.zeros_like(t), torch.sin(math.pi / 2 * t)

        return cls(Schedule.constant(), coefficients)

    def noise_level(self, t: Tensor | float) -> Tensor:
        """s_t = c_t / a_t: with x1 known, y = (x_t - b_t x1) / a_t = x0 + s_t eps is a diffusion's state.

        t: any shape, in [0, 1]. I2SB has s_t = sigma_t sigma_1 / bar sigma_t, from 0 at t = 0 to infinity
        at t = 1. In y, `step` is DDIM's for eta = 0, and DDPM's for eta = 1 where a_t b_t / c_t^2 is
        constant, as it is for every Markov reference (I2SB, DDBM) and not for noisy InDI.
        """
        a, _, c = self.coefficients(as_time(t))
        return torch.where(a > 0, c / a, torch.inf)

    def q_mean_var(self, t: Tensor | float, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the posterior q(x_t | x0, x1).   [Liu 2023, Prop. 3.3, eq. 11]

        Returns mean (B, *D) and variance (B, 1, ...). Exact at both ends: t = 0 gives (x0, 0) and
        t = 1 gives (x1, 0). Raises ValueError where x0 and x1 differ in shape.
        """
        one_shape(x0=x0, x1=x1)
        a, b, c = self.coefficients(expand(t, x0))
        return a * x0 + b * x1, c**2

    def q_sample(
        self,
        t: Tensor | float,
        x0: Tensor,
        x1: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw x_t ~ q(x_t | x0, x1); noise ~ N(0, I) of x0's shape is drawn if not given."""
        mean, var = self.q_mean_var(t, x0, x1)
        if noise is None:
            where = {"device": drawn_on(generator, x0.device), "dtype": x0.dtype}
            noise = torch.randn(x0.shape, generator=generator, **where).to(x0.device)
        one_shape(x0=x0, noise=noise)
        return mean + var.sqrt() * noise

    def step(self, s: Tensor | float, t: Tensor | float, eta: float = 1.0) -> Step:
        """Coefficients of the reverse kernel from t to s < t that keeps every marginal q(x_s | x0, x1).

        - eta = 1: Markov, r = b_s / b_t, free of x1 [Liu 2023, eq. 4]; where b = 0,
          r = a_t c_s^2 / (a_s c_t^2) [Ho et al. 2020, eq. 7];
        - eta = 0: the noise in x_t is carried on, none is added, r = c_s / c_t [DBIM, Zheng et al. 2025];
        - between: the added standard deviation is eta times the Markov one.

        Where x_t has no noise to carry (c_t = 0, as at t = 1) all agree. s, t: floats, or tensors of one
        shape, 0 <= s < t <= 1; ValueError where they are not, or eta is not from 0 to 1, and for eta > 0
        where coefficients of one's own have no Markov kernel: c_t / b_t rises or, b being 0, c_t / a_t falls.
        """
        if not (isinstance(eta, numbers.Real) and 0 <= eta <= 1):
            raise ValueError(f"expected eta from 0 to 1, got {eta!r}")
        s, t = as_time(s), check_times(as_time(t), positive=True)
        if min(s.numel(), t.numel()) > 1 and s.shape != t.shape:
            raise ValueError(f"expected s and t of one shape, got {tuple(s.shape)} and {tuple(t.shape)}")
        if s.is_cpu and t.is_cpu and not bool((s < t).all()):
            raise ValueError(f"a step goes down, from t to s < t, got t={t.tolist()} and s={s.tolist()}")
        (a_s, b_s, c_s), (a_t, b_t, c_t) = self.coefficients(s), self.coefficients(t)
        markov = torch.where(b_t > 0, b_s / b_t, a_t * (c_s / c_t) ** 2 / a_s)
        left = c_s**2 - (markov * c_t) ** 2
        if eta and left.is_cpu and bool((left < -1e3 * torch.finfo(left.dtype).eps * c_s**2).any()):
            raise ValueError(f"these coefficients have no Markov kernel: expected eta=0, got eta={eta}")
        std = left.clamp(min=0).sqrt()
        if eta == 1.0:
            return Step(a_s - markov * a_t, torch.zeros_like(markov), markov, std)
        carried = c_t > 0
        kept = (c_s**2 - (eta * std) ** 2).clamp(min=0).sqrt()
        r = torch.where(carried, kept / torch.where(carried, c_t, 1.0), markov)
        return Step(a_s - r * a_t, b_s - r * b_t, r, torch.where(carried, eta * std, std))

    def p_mean_var(
        self, s: Tensor | float, t: Tensor | float, x0: Tensor, xt: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of the DDPM posterior p(x_s | x0, x_t), 0 <= s < t.   [Liu 2023, eq. 4]

        I2SB's, with alpha^2 = sigma_t^2 - sigma_s^2, has mean (alpha^2 x0 + sigma_s^2 x_t) / sigma_t^2 and
        variance sigma_s^2 alpha^2 / sigma_t^2; another bridge's is that of its `step`. Shapes as in
        `q_mean_var`. At s = 0 the variance is zero and the mean x0.
        """
        one_shape(x0=x0, xt=xt)
        k0, _, kt, std = self.step(expand(s, x0), expand(t, x0))
        return k0 * x0 + kt * xt, std**2

    def std(self, t: Tensor | float, x: Tensor) -> Tensor:
        """sigma_t, broadcastable against x: the scale of the training target."""
        return self.schedule.var_fwd(expand(t, x)).sqrt()

    def target(self, t: Tensor | float, x0: Tensor, xt: Tensor) -> Tensor:
        """Regression target (x_t - x0) / sigma_t for t > 0.   [Liu 2023, eq. 12]

        Its conditional mean given x_t is -sigma_t grad log Psi_hat(x_t, t).
        """
        one_shape(x0=x0, xt=xt)
        check_times(as_time(t), positive=True)
        return (xt - x0) / self.std(t, x0)

    def predict_x0(self, t: Tensor | float, xt: Tensor, eps: Tensor) -> Tensor:
        """Clean estimate x_t - sigma_t eps: the inverse of `target`."""
        one_shape(xt=xt, eps=eps)
        return xt - self.std(t, xt) * eps

    def loss(self, net: Net, x0: Tensor, x1: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Per-sample loss (B,) of Algorithm 1: the mean of |net(x_t, t) - (x_t - x0) / sigma_t|^2.

        t is stratified over the batch (`sample_times`). net: (x_t, t (B,)) -> x_t's shape. With it:

            for x0, x1 in pairs:
                bridge.loss(net, x0, x1).mean().backward()
                optimizer.step(), optimizer.zero_grad()
            x0_hat = sample(bridge.denoiser(net), bridge, x1).x                     [Liu 2023, Algorithm 1]
        """
        t = sample_times(len(x0), generator, x0.device)
        xt = self.q_sample(t, x0, x1, generator=generator)
        target, found = self.target(t, x0, xt), net(xt, t)
        one_shape(target=target, found=found)
        return (found - target).square()[:, None].flatten(1).mean(1)

    def denoiser(self, net: Net) -> Net:
        """x0_hat = x_t - sigma_t net(x_t, t): what `sample` takes, from a net that `loss` trained."""
        return lambda xt, t: self.predict_x0(t, xt, net(xt, t))

    @property
    def total_std(self) -> float:
        """sigma_1, the standard deviation of the reference process over the whole of [0, 1]."""
        return math.sqrt(self.schedule.total)
