r"""The Schrödinger system on a grid in 1-D and 2-D, for the reference process dX = sqrt(beta) dW.

The bridge from p_A (t = 0) to p_B (t = 1) has density q_t = Psi_t Psi_hat_t. With the heat flow
H(s) = exp(s Laplacian / 2), sigma_t^2 = int_0^t beta and bar sigma_t^2 = int_t^1 beta,

    Psi_t = H(bar sigma_t^2) Psi_1,   Psi_hat_t = H(sigma_t^2) Psi_hat_0,
    Psi_0 Psi_hat_0 = p_A,            Psi_1 Psi_hat_1 = p_B.              [Liu 2023, Section 2.2]

All in float64 and in logarithms. A field on the grid has shape (n,) or (n, m); points are (N, d).
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import pairwise, product
from numbers import Integral

import torch
from torch import Tensor

from i2sb_lib.schedule import Schedule

Paths = Iterator[tuple[float, Tensor]]
_f64 = partial(torch.as_tensor, dtype=torch.float64)


def _density(p: Tensor, shape: tuple[int, ...]) -> Tensor:
    """p in float64; ValueError unless it is a density on a grid of that shape, up to its scale."""
    if (p := _f64(p)).shape != shape:
        raise ValueError(f"expected densities of shape {shape}, got {tuple(p.shape)}")
    if not (p.min() >= 0 and 0 < p.sum() < math.inf):
        got = f"{float(p.min()):g} as the least and {float(p.sum()):g} as the sum"
        raise ValueError(f"expected densities of at least 0, not all 0 and finite, got {got}")
    return p


@lru_cache(maxsize=2)
def _kernel(n: int, h: float, variance: float) -> tuple[Tensor, Tensor]:
    """log K and K, (n, n): exp(-(k h)^2 / 2 variance), scaled to sum to 1 over all integers k."""
    lag = torch.arange(max(n, int(9 * math.sqrt(variance) / h) + 1), dtype=torch.float64)
    log_k = -((lag * h) ** 2) / (2 * variance)
    log_k -= (2 * log_k.exp().sum() - 1).log()
    log_k = torch.cat([log_k[1:n].flip(0), log_k[:n]])  # of whose exponentials no row needs its own
    return log_k.unfold(0, n, 1).flip(0), log_k.exp().unfold(0, n, 1).flip(0)


def heat(log_f: Tensor, spacing: Sequence[float], variance: float) -> Tensor:
    """log H(variance) f from log f on a grid, variance >= 0, axis by axis: O(n^3) work for n x n nodes.

    A sum of positive terms loses digits only where it underflows: there log-sum-exp takes over.
    Exact at variance 0, spectrally accurate from spacing^2 on, of second order in it between.
    """
    g = log_f.reshape(len(log_f), -1)
    for h in spacing if variance else ():
        log_k, k = _kernel(len(g), h, variance)
        top = g.amax(0).clamp(min=-1e300)
        total = k @ (g - top).exp()
        out = total.log() + top
        for i, column in (lost.T for lost in (total < 1e-280).nonzero().split(4096)):
            out[i, column] = (log_k[i] + g.T[column]).logsumexp(1)
        g = out.T  # the next axis first
    return g.reshape(log_f.shape)


def _mixed(kept: list[tuple[Tensor, Tensor]], p: Tensor) -> Tensor:
    """Of mixtures of the images F(u), that whose steps F(u) - u, mixed alike, have the least mean square.

    kept: images and steps, the last one last. The mean is under the density p, in which the linearised F is
    symmetric.
    """
    (image, step), earlier = kept[-1], kept[:-1]
    if not earlier:
        return image
    steps = torch.stack([(s - step).flatten() for _, s in earlier])
    shares = torch.linalg.lstsq(*(steps * p.flatten() @ v for v in (steps.T, -step.reshape(-1, 1)))).solution
    return image + sum(float(a) * (f - image) for a, (f, _) in zip(shares, earlier, strict=True))


class SchrodingerSystem:
    """Psi and Psi_hat between densities p_a (t = 0) and p_b (t = 1), by Sinkhorn in logarithms.

    axes: one or two rising uniform axes, with room to spare: what leaves the grid is lost.
    p_a, p_b: (n,) or (n, m), non-negative, finite and not all 0; they are scaled to integrate to 1, as is
    Psi_hat(., 0).
    mixing: so many earlier iterates are mixed into each one, which takes several times fewer of them where
    sigma_1 is small [D. G. Anderson 1965]; 0 is Sinkhorn's own iteration. One that is worse is taken back.
    errors: L1 error of Psi Psi_hat at t = 0 after each iteration; at t = 1 it is then exact.
    Raises ValueError for a bad grid or density, and where 10,000 iterations do not reach tol.
    """

    def __init__(
        self, schedule: Schedule, axes: list[Tensor], p_a: Tensor, p_b: Tensor, tol: float = 1e-10,
        mixing: int = 0,
    ) -> None:  # fmt: skip
        self.schedule, self.axes, self.errors = schedule, [_f64(a) for a in axes], list[float]()
        shape = tuple(a.numel() for a in self.axes)
        gaps = [a.diff() if a.ndim == 1 else torch.empty(0) for a in self.axes]
        even = [len(g) > 1 and bool(0 < g.max() < 1.001 * g.min()) for g in gaps]
        if even not in ([True], [True, True]):
            came = [tuple(a.shape) for a in self.axes]
            raise ValueError(
                f"expected a list of 1 or 2 uniform axes of 3 or more rising nodes, got {came!s:.60}"
            )
        self.spacing = [float(g.mean()) for g in gaps]
        cell = math.prod(self.spacing)
        if not (isinstance(mixing, int | Integral) and mixing >= 0):
            raise ValueError(f"expected mixing as a whole number of at least 0, got {mixing!r:.40}")
        self.p_a, self.p_b = (p / (p.sum() * cell) for p in (_density(p_a, shape), _density(p_b, shape)))
        log_psi0, kept = torch.zeros_like(self.p_a), list[tuple[Tensor, Tensor]]()
        while not (self.errors and self.errors[-1] <= tol):
            if len(self.errors) == 10_000:
                raise ValueError(f"no error below {tol} in 10,000 iterations: raise tol or beta")
            hat0 = self.p_a.log() - log_psi0
            psi1 = self.p_b.log() - heat(hat0, self.spacing, schedule.total)
            image = heat(psi1, self.spacing, schedule.total)
            self.errors.append(float(((hat0 + image).exp() - self.p_a).abs().sum() * cell))
            if len(kept) > 1 and self.errors[-1] > self.errors[-2]:
                log_psi0, kept = kept[-1][0], []
            else:
                kept = [*kept, (image, image - log_psi0)][-1 - mixing :]
                log_psi0 = _mixed(kept, self.p_a)
        scale = hat0.flatten().logsumexp(0) + math.log(cell)
        self._hat0, self._psi1 = hat0 - scale, psi1 + scale

    def log_Psi(self, t: float) -> Tensor:
        """log Psi(., t) on the grid: Psi(., 1) after the heat flow for bar sigma_t^2."""
        return heat(self._psi1, self.spacing, float(self.schedule.var_bwd(_f64(t))))

    def log_Psi_hat(self, t: float) -> Tensor:
        """log Psi_hat(., t) on the grid: Psi_hat(., 0) after the heat flow for sigma_t^2."""
        return heat(self._hat0, self.spacing, float(self.schedule.var_fwd(_f64(t))))

    def density(self, t: float) -> Tensor:
        """q(., t) = Psi Psi_hat on the grid: the bridge's density, p_A at t = 0 and p_B at t = 1."""
        return (self.log_Psi(t) + self.log_Psi_hat(t)).exp()

    def drift(self, t: float, x: Tensor | None = None, *, backward: bool = False) -> Tensor:
        """beta grad log Psi of the forward SDE, or -beta grad log Psi_hat of the backward one.

        On the grid, (n, 1) or (n, m, 2), by central differences; given points x (N, d), at them:
        multilinear between the nodes, continued linearly outside. nan where q(., t) is 0. ValueError for
        points of another shape.
        """
        log_f, sign = (self.log_Psi_hat(t), -1) if backward else (self.log_Psi(t), 1)
        field = torch.stack(torch.gradient(log_f, spacing=self.spacing, edge_order=2), -1)
        field *= sign * self.schedule.beta(_f64(t))
        if x is None:
            return field
        if (x := _f64(x)).ndim != 2 or x.shape[1] != log_f.ndim:
            raise ValueError(f"expected points (N, {log_f.ndim}), got {tuple(x.shape)}")
        u = (x - torch.stack([a[0] for a in self.axes])) / _f64(self.spacing)
        i = u.floor().long().clamp(min=0).minimum(torch.tensor(log_f.shape) - 2)
        corner = torch.tensor(list(product((0, 1), repeat=x.shape[1])))[:, None]
        weight = (1 - corner + (2 * corner - 1) * (u - i)).prod(-1, True)
        return (weight * field[(i + corner).unbind(-1)]).sum(0)

    def sample(self, p: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n >= 1 points (n, d) from the multilinear interpolant of p, a density on the whole grid.

        Raises ValueError for another n, and for p of another shape, below 0, all 0 or not finite.
        """
        if n < 1:
            raise ValueError(f"expected n >= 1 points, got {n}")
        p = _density(p, (*self.p_a.shape,))
        x = torch.cartesian_prod(*self.axes).reshape(-1, p.ndim)
        x = x[torch.multinomial(p.flatten(), n, True, generator=generator)]
        u = torch.rand(2, n, p.ndim, generator=generator, dtype=torch.float64)
        return x + (u[0] - u[1]) * _f64(self.spacing)

    def simulate(self, x: Tensor, times: Tensor, generator: torch.Generator | None = None) -> Paths:
        """Euler-Maruyama from x (N, d) at times[0]: yields (t, x_t) at every one of `times`, float64.

        Rising times follow the forward SDE, falling ones the backward; noise has exact variance. ValueError
        for times outside [0, 1] and for points of another shape.
        """
        times, x = _f64(times), _f64(x)
        yield float(times[0]), x
        for s, t in pairwise(times.tolist()):
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            noise *= self.schedule.var_fwd(_f64([s, t])).diff().abs().sqrt()
            x = x + (t - s) * self.drift(s, x, backward=t < s) + noise
            yield t, x
