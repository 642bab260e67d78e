r"""Gaussian mixtures, on which the bridge is exact: an oracle for the potentials and Algorithms 1 and 2.

In component k, z = (x0, x1) ~ N(m_k, C_k), and the bridge shows y = L z + n: either y = x_t, with
L = (a_t I, b_t I) and n ~ N(0, c_t^2 I), or (x_t, x1), of which y = (x_t - b_t x1, x1) says the same
and stays apart at t = 1. With S_k = L C_k L^T + cov n,
p(y) = sum_k w_k N(y; L m_k, S_k) and E[z | y, k] = m_k + C_k L^T S_k^-1 (y - L m_k).

`MixtureBridge` is the Schrödinger bridge whose potentials are mixtures: its pairs are such a mixture too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from i2sb_lib.bridge import Bridge
from i2sb_lib.samplers import Denoise


class MixturePair(NamedTuple):
    """Law of (x0, x1), float64: weights (K,), means (K, 2D), covs (K, 2D, 2D), maybe singular."""

    weights: Tensor
    means: Tensor
    covs: Tensor

    @classmethod
    def degraded(cls, w: Tensor, m: Tensor, c: Tensor, h: Tensor, noise: float = 0) -> MixturePair:
        """x0 ~ mixture of w (K,), m (K, D), c (K, D, D); x1 = h x0 + noise N(0, I), h (D, D)."""
        w, m, c, h, eye = (v.double() for v in (w, m, c, h, torch.eye(len(h))))
        both = torch.cat([eye, h])
        return cls(w, m @ both.T, both @ c @ both.T + torch.block_diag(0 * eye, noise**2 * eye))

    @classmethod
    def independent(cls, p0: tuple[Tensor, ...], p1: tuple[Tensor, ...]) -> MixturePair:
        """x0 ~ p0 and x1 ~ p1 independent, each (weights, means, covs): K = K0 K1 components."""
        (w, m, c), (v, n, e) = ([x.double() for x in p] for p in (p0, p1))
        means = torch.stack([torch.cat([a, b]) for a in m for b in n])
        covs = torch.stack([torch.block_diag(a, b) for a in c for b in e])
        return cls(torch.kron(w, v), means, covs)

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n pairs: x0 (n, D) and x1 (n, D), float64."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        val, vec = torch.linalg.eigh(self.covs)  # a square root that singular matrices have too
        root = vec * val.clamp(min=0).sqrt()[:, None] @ vec.mT
        z = self.means[k] + torch.einsum("bij,bj->bi", root[k], noise)
        return z[:, : z.shape[1] // 2], z[:, z.shape[1] // 2 :]

    def posterior(
        self, bridge: Bridge, t: Tensor | float, xt: Tensor, x1: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log p(y), its gradient in y and E[x0 | y]: (B,), (B, D or 2D) and (B, D), float64.

        t: (B,) or a number in [0, 1].  xt, x1: (B, D), else ValueError. 1e-12 of the scale is added
        to S_k: that covers the ends and singular pairs, where p(y) is defined only up to a factor, and
        rounding shows in its gradient.
        """
        d = self.means.shape[1] // 2
        if xt.ndim != 2 or xt.shape[1] != d or (x1 is not None and x1.shape != xt.shape):
            got = [None if v is None else tuple(v.shape) for v in (xt, x1)]
            raise ValueError(f"expected xt and, where given, x1 of one shape (B, {d}), got {got}")
        t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1, 1, 1)
        a, b, c = bridge.coefficients(t[:1] if bool((t == t[0]).all()) else t)
        y, z = xt.double(), torch.eye(2 * d).to(xt.device, torch.float64)
        see = a * z[:d] + b * z[d:]  # L
        if x1 is not None:
            y = torch.cat([y - b[..., 0, 0] * x1, x1.to(y)], 1)
            see = torch.cat([a * z[:d], 0 * a + z[d:]], 2)
        eye = torch.eye(y.shape[1]).to(y)
        noise = c**2 * z[: len(eye), :d].sum(1) * eye  # x_t is noisy, x1 is known
        tiny = 1e-12 * self.means.square().max().maximum(self.covs.max())
        s = see @ self.covs @ see.mT + noise + tiny * eye  # (1 or B, K, M, M)
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(s), eye, upper=False)
        e = torch.einsum("bkij,bkj->bki", white, y[:, None] - (see @ self.means[..., None])[..., 0])
        log_n = (white.diagonal(dim1=2, dim2=3) / (2 * torch.pi) ** 0.5).log() - e**2 / 2
        log_p = self.weights.log() + log_n.sum(2)
        u = torch.einsum("bkji,bkj->bki", white, e)  # S^-1 (y - L m)
        x0 = self.means[:, :d] + torch.einsum("bkij,bkj->bki", self.covs[:, :d] @ see.mT, u)
        share = log_p.softmax(1)[..., None]
        score = -(share * u).sum(1)
        if x1 is not None:  # in (x_t, x1) again
            score = torch.cat([score[:, :d], score[:, d:] - b[..., 0, 0] * score[:, :d]], 1)
        return log_p.logsumexp(1), score, (share * x0).sum(1)

    def denoiser(self, bridge: Bridge, x1: Tensor | None = None) -> Denoise:
        """(xt, t) -> E[x0 | x_t] for `samplers.sample`, in xt's dtype; E[x0 | x_t, x1] given x1."""
        return lambda xt, t: self.posterior(bridge, t, xt, x1)[2].to(xt)


class Mixture:
    """sum_k w_k N(x; m_k, s_k I), a density or a potential: w (K,), m (K, D) or (K,), s (K,), float64.

    Points x are (N, D). After `heat` with v of shape (N,) there is one variance a point: s is (K, N).
    """

    def __init__(self, weights: Any, means: Any, variances: Any) -> None:
        given = (weights, means, variances)
        self.weights, means, s = (torch.as_tensor(v, dtype=torch.float64) for v in given)
        self.means, self.variances = means.reshape(len(means), -1), s.reshape(len(s), -1)

    def _terms(self, x: Tensor) -> Tensor:
        """Logarithms of the K terms at x: (K, N)."""
        r2, s = (x.T - self.means[:, :, None]).square().sum(1), self.variances
        return self.weights.log()[:, None] - r2 / (2 * s) - x.shape[1] / 2 * (2 * torch.pi * s).log()

    def log(self, x: Tensor) -> Tensor:
        """Logarithm at x: (N,)."""
        return self._terms(x).logsumexp(0)

    def score(self, x: Tensor) -> Tensor:
        """Gradient of the logarithm at x: (N, D)."""
        r = self._terms(x).softmax(0) / self.variances
        return r.T @ self.means - r.sum(0)[:, None] * x

    def heat(self, variance: Tensor | float) -> Mixture:
        """The mixture after a heat flow, its convolution with N(0, variance I)."""
        return Mixture(self.weights, self.means, self.variances + variance)

    def cdf(self, x: Any, axis: int = 0) -> Tensor:
        """Distribution function of one coordinate of the normalised mixture at numbers x (N,): (N,)."""
        u = (torch.as_tensor(x, dtype=torch.float64) - self.means[:, axis, None]) / self.variances.sqrt()
        return self.weights / self.weights.sum() @ torch.special.ndtr(u)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n points of the normalised mixture: (n, D)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[k] + self.variances[k].sqrt() * noise


class MixtureBridge:
    """Schrödinger bridge over dX = sqrt(beta) dW between the p_A and p_B that two potentials give.

    bridge: I2SB's, for the schedule.  psi_hat0, psi1: Psi_hat(., 0) and, up to scale, Psi(., 1). With
    total = sigma_1^2 the ends have the law pi(x0, x1) = Psi_hat(x0, 0) N(x1; x0, total I) Psi(x1, 1),
    a Gaussian mixture, `pair`, which is scaled to mass 1.             [Leonard 2014; Liu 2023, eq. 5-6]
    """

    def __init__(self, bridge: Bridge, psi_hat0: Mixture, psi1: Mixture) -> None:
        p, q, total = psi_hat0, psi1, bridge.schedule.total
        i, j = torch.cartesian_prod(*(torch.arange(len(v.weights)) for v in (p, q))).T
        m, n, s, r = p.means[i], q.means[j], p.variances[i], q.variances[j]  # (K, D) and (K, 1)
        wide = s + total + r
        log_n = -((m - n) ** 2) / (2 * wide) - (2 * torch.pi * wide).log() / 2
        w = p.weights[i] * q.weights[j] * log_n.sum(1).exp()
        means = torch.cat([m + s / wide * (n - m), n + r / wide * (m - n)], 1)
        covs = torch.cat([s * (total + r), s * r, s * r, r * (total + s)], 1) / wide
        eye = torch.eye(m.shape[1]).double()
        covs = torch.stack([torch.kron(c, eye) for c in covs.reshape(-1, 2, 2)])
        self.bridge, self.pair = bridge, MixturePair(w / w.sum(), means, covs)
        self.psi_hat0, self.psi1 = p, Mixture(q.weights / w.sum(), q.means, q.variances)

    def psi(self, t: Tensor | float) -> Mixture:
        """Psi(., t): Psi(., 1) after the heat flow for bar sigma_t^2."""
        return self.psi1.heat(self.bridge.schedule.var_bwd(t))

    def psi_hat(self, t: Tensor | float) -> Mixture:
        """Psi_hat(., t): Psi_hat(., 0) after the heat flow for sigma_t^2."""
        return self.psi_hat0.heat(self.bridge.schedule.var_fwd(t))

    def q(self, t: float) -> Mixture:
        """Law of X_t from the pairs, x_t = a_t x0 + b_t x1 + c_t eps: no potential at t enters."""
        w, m, covs = self.pair
        d = m.shape[1] // 2
        a, b, c = self.bridge.coefficients(torch.tensor(t, dtype=torch.float64))
        s = a**2 * covs[:, 0, 0] + 2 * a * b * covs[:, 0, d] + b**2 * covs[:, d, d] + c**2
        return Mixture(w, a * m[:, :d] + b * m[:, d:], s)

    def simulate(
        self, x: Tensor, times: Tensor, generator: torch.Generator | None = None
    ) -> Iterator[tuple[float, Tensor]]:
        """Heun's method from x (N, D) at times[0]: yields (t, x_t) at every one of `times`.

        Rising times follow dX = beta grad log Psi dt + sqrt(beta) dW, falling ones the backward SDE with
        -beta grad log Psi_hat. Steps are taken in the clock sigma_t^2: the noise is exact, the law of
        the paths of second order in the step.
        """
        yield float(times[0]), x
        for s, t in pairwise(times.double().tolist()):
            v = float((self.bridge.schedule.var_fwd(t) - self.bridge.schedule.var_fwd(s)).abs())
            here, there = (self.psi(s), self.psi(t)) if t > s else (self.psi_hat(s), self.psi_hat(t))
            noise = v**0.5 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
            slope = here.score(x)
            x = x + v / 2 * (slope + there.score(x + v * slope + noise)) + noise
            yield t, x
