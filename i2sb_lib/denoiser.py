r"""From a raw network F to a denoiser D(x_t, t, x1) = x0_hat on an I2SB bridge, and its loss.

D = skip_t x_t + skip_1 x1 + out F(in_t x_t, in_1 x1; t), with one triple (skip_t, skip_1, out) for
each `prediction`, and the loss |D - x0|^2 / out^2 so that F always regresses a target of unit scale:

    eps       (1, 0, -sigma_t)     F is the paper's target (x_t - x0) / sigma_t    [Liu 2023, eq. 12]
    x0        (0, 0, 1)            F is x0 itself
    precond   the best affine guess of each pixel, F corrects it      [after Karras et al. 2022]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from i2sb_lib.bridge import Bridge, expand
from i2sb_lib.networks import create_network
from i2sb_lib.schedule import Schedule

Prediction = Literal["precond", "eps", "x0"]


class Scalings(NamedTuple):
    """Factors of D = skip_t xt + skip_1 x1 + out F(in_t xt, in_1 x1), broadcastable over images."""

    skip_t: Tensor
    skip_1: Tensor
    out: Tensor
    in_t: Tensor
    in_1: float


@dataclass(frozen=True)
class ModelConfig:
    """What is needed to build a denoiser, and nothing about how it was trained.

    moments: (mean x0^2, mean x1^2, mean x0 x1) over pixels of the training pairs in [-1, 1]; the
    preconditioning is computed from them. beta_min, beta_max: see `Schedule.symmetric`.
    """

    network: str = "unet-small"
    cond_x1: bool = True
    prediction: Prediction = "precond"
    beta_min: float = 0.1
    beta_max: float = 0.3
    dropout: float = 0.0
    moments: tuple[float, float, float] = (0.343, 0.293, 0.306)


class Denoiser(nn.Module):
    """D(x_t, t, x1) on the bridge that `config` describes; built with random weights.

    Raises ValueError for a prediction that is not known or moments of no possible pair.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.prediction not in get_args(Prediction):
            raise ValueError(
                f"expected prediction in {get_args(Prediction)}, got {config.prediction!r}"
            )
        m00, m11, m01 = config.moments
        if not (m00 > 0 and m11 > 0 and m01**2 < m00 * m11):
            raise ValueError(f"expected moments of two unequal images, got {config.moments}")
        self.config = config
        self.bridge = Bridge(Schedule.symmetric(config.beta_max, config.beta_min))
        self.net = create_network(config.network, config.cond_x1, config.dropout)

    def scalings(self, t: Tensor) -> Scalings:
        """The factors at times t, any shape.

        precond with `cond_x1`: pixelwise x0 | x1 ~ N(rho x1, v) and x_t given x0, x1 make
        1 / out^2 = 1 / v + a_t / sigma_t^2, the posterior's precision, and skip its mean.
        Without: the regression of x0 on x_t alone, out^2 its residual variance.
        """
        var, one, zero = self.bridge.schedule.var_fwd(t), torch.ones_like(t), torch.zeros_like(t)
        if self.config.prediction == "eps":
            return Scalings(one, zero, -var.sqrt(), one, 1.0)
        if self.config.prediction == "x0":
            return Scalings(zero, zero, one, one, 1.0)
        (m00, m11, m01), (a, b, c) = self.config.moments, self.bridge.coefficients(t)
        power = a**2 * m00 + b**2 * m11 + 2 * a * b * m01 + c**2
        if self.config.cond_x1:
            rho, v = m01 / m11, m00 - m01**2 / m11
            skip_t = v / (var + v * a)
            skip_1, out = rho * var / (var + v * a) - b * skip_t, (var * skip_t).sqrt()
        else:
            skip_t, skip_1 = (a * m00 + b * m01) / power, zero
            out = (m00 - skip_t * (a * m00 + b * m01)).clamp(min=1e-8).sqrt()
        return Scalings(skip_t, skip_1, out, power.rsqrt(), m11**-0.5)

    def forward(self, xt: Tensor, t: Tensor, x1: Tensor | None = None) -> Tensor:
        """x0_hat, float32 (B, 3, H, W), from xt of that shape, t (B,) and, with cond_x1, x1."""
        s = self.scalings(expand(t, xt))
        inputs = s.in_t * xt
        if self.config.cond_x1:
            if x1 is None or x1.shape != xt.shape:
                raise ValueError("this denoiser is conditioned on x1: expected x1 of xt's shape")
            inputs = torch.cat([inputs, s.in_1 * x1], dim=1)
        raw = self.net(inputs.contiguous(memory_format=torch.channels_last), t).float()
        x0_hat = s.skip_t * xt + s.out * raw
        return x0_hat if x1 is None else x0_hat + s.skip_1 * x1

    def loss(self, x0: Tensor, x1: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Per-sample loss (B,): mean over pixels of |D(x_t, t) - x0|^2 / out(t)^2, t in (0, 1]."""
        xt = self.bridge.q_sample(t, x0, x1, noise)
        error = (self(xt, t, x1) - x0) / self.scalings(expand(t, x0)).out
        return error.square().flatten(1).mean(1)
