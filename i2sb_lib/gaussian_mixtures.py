r"""Gaussian-mixture pairs, on which the bridge is exact: an oracle for Algorithms 1 and 2.

In component k, z = (x0, x1) ~ N(m_k, C_k), and the bridge shows y = L z + n: either y = x_t, with
L = (a_t I, b_t I) and n ~ N(0, c_t^2 I), or y = (x_t, x1). With S_k = L C_k L^T + cov n,
p(y) = sum_k w_k N(y; L m_k, S_k) and E[z | y, k] = m_k + C_k L^T S_k^-1 (y - L m_k).
"""

from __future__ import annotations

from typing import NamedTuple

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
        to S_k: that covers the ends and singular pairs, where p(y) is defined only up to a factor.
        """
        d = self.means.shape[1] // 2
        if xt.ndim != 2 or xt.shape[1] != d or (x1 is not None and x1.shape != xt.shape):
            raise ValueError(f"expected xt and x1 of shape (B, {d}), got {xt.shape} with x1={x1}")
        y = (xt if x1 is None else torch.cat([xt, x1], 1)).double()
        t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1, 1, 1)
        a, b, c = bridge.coefficients(t[:1] if bool((t == t[0]).all()) else t)
        z, eye = torch.eye(2 * d).to(y), torch.eye(y.shape[1]).to(y)
        see = torch.cat([a * z[:d] + b * z[d:], 0 * a + z[d:]], 2)[:, :, : len(eye)]  # L
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
        return log_p.logsumexp(1), -(share * u).sum(1), (share * x0).sum(1)

    def denoiser(self, bridge: Bridge, x1: Tensor | None = None) -> Denoise:
        """(xt, t) -> E[x0 | x_t] for `samplers.sample`, in xt's dtype; E[x0 | x_t, x1] given x1."""
        return lambda xt, t: self.posterior(bridge, t, xt, x1)[2].to(xt)
