r"""What a learned bridge has to beat: restorations of a known separable blur, without a network.

All take y = H x + noise, images (B, C, H, W) in [-1, 1], and give x_hat of that form, not clipped.
Two more come from the same network and the same training (`i2sb train --process`): regression of
x0 on x1, and diffusion from noise given x1. The degraded image itself is the baseline "identity".
"""

import torch
from torch import Tensor

from i2sb_lib.devices import to_float64
from i2sb_lib.images import check_images
from i2sb_lib.operators import Separable


def _checked(x: Tensor, operator: Separable, name: str) -> Tensor:
    if not isinstance(operator, Separable):
        raise ValueError(f"{name}: expected a separable blur, got {operator!r:.80}")
    return check_images(x, name)


def tikhonov(y: Tensor, operator: Separable, lam: float = 2e-4) -> Tensor:
    """argmin_x |H x - y|^2 + lam |x|^2. lam = 0 is the inverse, where H has one.   [Tikhonov 1963]

    y: (B, C, H, W) in [-1, 1]; ValueError for other input, for a degradation that is not separable, and
    for a lam that is negative, not finite, or 0 where H has no inverse.
    """
    y = _checked(y, operator, "tikhonov")
    return operator.inverse(y, lam)


class Wiener:
    """The best linear restoration that treats H's singular components apart.   [Wiener 1949]

    In the basis H = U S V^T a photograph's component ij has mean m_ij and variance p_ij over the
    training photographs, and y's is s_ij times it plus noise of variance n:

        x_hat_ij = m_ij + s_ij p_ij / (s_ij^2 p_ij + n) (y_ij - s_ij m_ij)

    It is E[x | y] for a Gaussian x with independent components. photographs: (N, C, H, W) in
    [-1, 1], N >= 2. noise: n on that scale, above 0 and finite; rounding to 8 bits makes (2 / 255)^2 / 12.
    ValueError for others, and for a degradation that is not separable.
    """

    def __init__(self, operator: Separable, photographs: Tensor, noise: float = (2 / 255) ** 2 / 12) -> None:
        if len(_checked(photographs, operator, "Wiener")) < 2 or not 0 < noise < float("inf"):
            raise ValueError(f"expected 2 photographs and noise > 0, got {len(photographs)} and {noise}")
        photographs = to_float64(photographs)
        sides = (operator.matrix(n).to(photographs.device) for n in photographs.shape[-2:])
        (self.u_h, s_h, self.v_h), (self.u_w, s_w, self.v_w) = (torch.linalg.svd(a) for a in sides)
        parts = self.v_h @ photographs @ self.v_w.T
        self.mean, var, s = parts.mean(0), parts.var(0), s_h[:, None] * s_w
        self.shrunk, self.gain = s * self.mean, s * var / (s**2 * var + noise)

    def __call__(self, y: Tensor) -> Tensor:
        """x_hat of y; ValueError for images of another size than the photographs."""
        if check_images(y, "Wiener").shape[1:] != self.mean.shape:
            raise ValueError(f"expected images {tuple(self.mean.shape)}, got {tuple(y.shape[1:])}")
        parts = self.u_h.T @ to_float64(y) @ self.u_w
        return (self.v_h.T @ (self.mean + self.gain * (parts - self.shrunk)) @ self.v_w).to(y)


def richardson_lucy(y: Tensor, operator: Separable, iterations: int = 30) -> Tensor:
    """Maximum likelihood under photon noise by EM, from plain grey.   [Richardson 1972; Lucy 1974]

    With intensities u = (x + 1) / 2 in (0, 1] each iteration is u <- u H^T(v / H u) / H^T 1, where v
    are those of y: it keeps u positive and never lowers sum v log(H u) - H u.
    y: (B, C, H, W) in [-1, 1]; ValueError for other input, for a degradation that is not separable, and
    for no iterations.
    """
    if iterations < 1:
        raise ValueError(f"expected at least one iteration, got {iterations}")
    v = ((_checked(y, operator, "richardson_lucy") + 1) / 2).clamp(min=1e-4)
    u, total = torch.full_like(v, 0.5), operator.adjoint(torch.ones_like(v))
    for _ in range(iterations):
        u = u * operator.adjoint(v / operator.apply(u).clamp(min=1e-6)) / total
    return u * 2 - 1
