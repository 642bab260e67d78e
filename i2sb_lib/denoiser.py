r"""From a raw network F to a denoiser D(x_t, t, x1) = x0_hat on an I2SB bridge, and its loss.

D = skip_t x_t + skip_1 x1 + skip_g g + out F(in_t x_t, in_1 x1, in_1 g; t), where g guesses x0 from
x1 alone: x1 itself when blind, a Tikhonov inverse of the known blur when operator-aware. (`wiener` shows F
a guess w that need not be told what happened. It may be wrong, so a further output of F says how far, at
each pixel, g goes from x1 to w.) Each `prediction` is one row of factors; the loss |D - x0|^2 / out^2 makes
F regress a unit target:

    eps       (1, 0, 0, -sigma_t)   F is the paper's target (x_t - x0) / sigma_t    [Liu 2023, eq. 12]
    x0        (0, 0, 0, 1)          F is x0 itself
    precond   each pixel's best affine guess, which F corrects       [after Karras et al. 2022]
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from i2sb_lib.bridge import Bridge, expand, one_shape
from i2sb_lib.degradations import DEGRADATIONS, Degradation, create_degradation
from i2sb_lib.devices import to_float64
from i2sb_lib.networks import create_network
from i2sb_lib.operators import Separable
from i2sb_lib.schedule import Schedule, as_time, check_times
from i2sb_lib.wiener import blind_wiener

Prediction = Literal["precond", "eps", "x0"]
Process = Literal["bridge", "regression", "diffusion"]


class Scalings(NamedTuple):
    """The factors of D, each broadcastable over images."""

    skip_t: Tensor
    skip_1: Tensor
    skip_g: Tensor
    out: Tensor
    in_t: Tensor
    in_1: float


CUSTOM = "custom"  # as the network: a module of one's own; as the degradation: of one's own, or unknown


@dataclass(frozen=True)
class Design:
    """What a model is before it has seen an image: what `ModelConfig` and `TrainConfig` share."""

    network: str = "unet-small"  # cunet, unet-tiny, -small, -medium or -full; custom: a module of one's own
    process: Process = "bridge"  # or the baselines regression (t = 1 alone) and diffusion from noise
    cond_x1: bool = True  # show x1 to the network at every t
    prediction: Prediction = "precond"  # what the network predicts: see i2sb_lib.denoiser
    beta_min: float = 0.1  # diffusion at both ends of the bridge
    beta_max: float = 0.3  # value that its ramp would reach at t = 1; both together set sigma_1
    ot_ode: bool = False  # no noise on the bridge, neither in training nor in the walk
    dropout: float = 0.0  # probability of dropping a feature
    channels: int = 3  # of an image: 1 grey, 3 RGB, 4 RGB with opacity
    degradation: str = "blur-gauss"  # name of the degradation that makes x1 from x0; custom: one's own
    # its options, such as kernel_size 7 sigma 2
    degradation_options: dict[str, float] = field(default_factory=dict)
    # also show it the Tikhonov inverse of the blur with this weight (operator-aware); 0: blind
    tikhonov: float = 0.0
    # also show it Wiener's guess for the Gaussian blur and the noise that x1 most likely has: still blind
    wiener: bool = False


@dataclass(frozen=True)
class ModelConfig(Design):
    """What is needed to build a denoiser, and nothing about how it was trained.

    tikhonov: weight lam of the Tikhonov inverse of `degradation` that is the guess g; 0 is blind.
    moments: (mean x0^2, mean g^2, mean x0 g) over pixels of the training pairs in [-1, 1], g = x1
    with wiener or without cond_x1 (`measure_moments`). They scale what the network sees and
    says, so they belong to its weights; the defaults are those of blurred CelebA faces.
    """

    moments: tuple[float, float, float] = (0.343, 0.293, 0.306)


def measure_moments(x0: Tensor, g: Tensor) -> tuple[float, float, float]:
    """(mean x0^2, mean g^2, mean x0 g) over the pixels of pairs (N, C, H, W) in [-1, 1].

    A thousandth of x0's power at least is left for the network to find, also where g says all of x0.
    """
    m00, m11, m01 = (round(float((a * b).mean()), 4) for a, b in ((x0, x0), (g, g), (x0, g)))
    m00, m11 = max(m00, 1e-4), max(m11, 1e-4)
    most = (0.999 * m00 * m11) ** 0.5
    return m00, m11, min(max(m01, -most), most)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, weight: float) -> None:
    """Move a running average's parameters towards the model's by `weight`; its buffers become the model's."""
    both = zip(average.parameters(), model.parameters(), strict=True)
    slow, fast = zip(*((a, b) for a, b in both if b.requires_grad), strict=True)
    torch._foreach_lerp_(slow, fast, weight)
    theirs = dict(model.named_buffers())
    for name, buffer in average.named_buffers():
        if name in theirs and theirs[name].shape == buffer.shape:  # one that grows is its own
            buffer.data = theirs[name].clone()


class Denoiser(nn.Module):
    """D(x_t, t, x1) on the bridge that `config` describes; built with random weights.

    net: the network F where config.network is "custom", any module called as net(planes, t) with planes
    (B, P, H, W) and t (B,) that gives (B, Q, H, W); P is `planes`, Q `outputs`, and H and W are multiples
    of its attribute `stride`, where it has one. Raises ValueError for an unknown prediction or process,
    moments of no possible pair, other channels than 1, 3 or 4, a network of one's own that is not given, a
    diffusion without `cond_x1` or with eps, ot_ode with a baseline, what `Schedule.symmetric`,
    `create_network` and `create_degradation` refuse, and a guess that cannot be had: without `cond_x1`, two
    at once, or Tikhonov's of a degradation that is not separable.
    """

    def __init__(self, config: ModelConfig, net: nn.Module | None = None) -> None:
        super().__init__()
        if config.prediction not in get_args(Prediction):
            raise ValueError(f"expected prediction in {get_args(Prediction)}, got {config.prediction!r}")
        if config.process not in get_args(Process):
            raise ValueError(f"expected process in {get_args(Process)}, got {config.process!r}")
        diffusion = config.process == "diffusion"
        if diffusion and not (config.cond_x1 and config.prediction != "eps"):
            raise ValueError("a diffusion needs cond_x1 and prediction precond or x0 (eps is the bridge's)")
        m00, m11, m01 = config.moments
        if not (0 < m00 < math.inf and 0 < m11 < math.inf and m01**2 < m00 * m11):
            raise ValueError(f"expected moments of two unequal images, got {config.moments}")
        self.config = config
        schedule = Schedule.symmetric(beta_max=config.beta_max, beta_min=config.beta_min)
        if config.ot_ode and config.process != "bridge":
            raise ValueError(f"expected ot_ode with the process bridge, got it with {config.process}")
        on_path = Bridge.ot_ode(schedule) if config.ot_ode else Bridge(schedule)
        self.bridge = Bridge.diffusion() if diffusion else on_path
        # what made x1, without its noise; None where it is one's own, or has a name that is not known here
        self.operator: Degradation | None = None
        if config.degradation in DEGRADATIONS:
            options: dict[str, Any] = config.degradation_options
            self.operator = create_degradation(config.degradation, **options)
        if config.channels not in (1, 3, 4):
            raise ValueError(f"expected 1, 3 or 4 channels, got {config.channels}")
        if not 0 <= config.tikhonov < math.inf:
            raise ValueError(f"expected a finite tikhonov of at least 0, got {config.tikhonov}")
        if config.tikhonov and not (config.cond_x1 and isinstance(self.operator, Separable)):
            got = self.operator or config.degradation
            raise ValueError(f"tikhonov needs cond_x1 and a separable blur, got {got}")
        if (config.network == CUSTOM) != (net is not None):
            what = f"none, for network {CUSTOM}" if net is None else f"one, for network {config.network}"
            raise ValueError(f"expected net=…, a module in Python, with network {CUSTOM} alone, got {what}")
        if config.wiener and (config.tikhonov or not config.cond_x1):
            got = f"cond_x1={config.cond_x1}, tikhonov={config.tikhonov}"
            raise ValueError(f"wiener needs cond_x1 and takes the place of tikhonov, got {got}")
        self.planes = config.channels * (1 + bool(config.cond_x1) + bool(config.tikhonov or config.wiener))
        self.outputs = config.channels + bool(config.wiener)
        sizes = (self.planes, config.dropout, self.outputs)
        self.net = create_network(config.network, *sizes) if net is None else net

    def __repr__(self) -> str:  # the layers are those of `net`
        c, count = self.config, sum(p.numel() for p in self.parameters())
        told = f"told {self.operator}" if c.tikhonov else "blind" if c.cond_x1 else "not shown x1"
        return f"Denoiser({c.process}, {told}, {c.network} of {count:,} weights)"

    @property
    def stride(self) -> int:
        """What divides the height and width of what the network takes."""
        stride = getattr(self.net, "stride", 1)
        return stride if isinstance(stride, int) else 1  # a layer's own has another meaning

    def place(self, device: torch.device) -> "Denoiser":
        """The same, on a device, with the channels of what it convolves with last in memory."""
        self.to(device)
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.ndim == 4:  # those of five have no such order
                tensor.data = tensor.data.to(device, memory_format=torch.channels_last)
        return self

    def guess(self, x1: Tensor) -> Tensor:
        """What the network sees beside x1: x1 itself, the Tikhonov inverse of the operator that the model
        assumes, or `blind_wiener`'s guess. x1: (B, C, H, W), as is the guess; ValueError for other input.
        """
        one_shape(4, x1=x1)
        if self.config.wiener:
            return blind_wiener(x1)
        if not self.config.tikhonov:
            return x1
        return self.operator.inverse(x1, self.config.tikhonov)  # type: ignore[union-attr]

    def consistent(self, x0_hat: Tensor, x1: Tensor, lam: float) -> Tensor:
        """x0_hat + K (x1 - H x0_hat), K = H^T (H H^T + lam)^-1: the estimate moved towards what was seen.

        The best linear update where x0_hat's error is white with variance v and unrelated to x1's noise,
        whose variance is lam v: it knows H, so even a blind model is blind no more. (B, C, H, W) all;
        ValueError where they are not, where the degradation is not separable, and for a lam that is
        negative or not finite.   [Kalman 1960]
        """
        one_shape(4, x0_hat=x0_hat, x1=x1)
        if not isinstance(self.operator, Separable):
            made = self.operator or self.config.degradation
            raise ValueError(f"consistency needs a separable blur, got {made}")
        moves = []
        for x, y in zip(x0_hat.split(1, 1), x1.split(1, 1), strict=True):  # by planes, to save memory
            # the residual is finer than bfloat16; autocast leaves float64 alone
            residual = to_float64(y) - self.operator.apply(to_float64(x))
            moves.append(self.operator.inverse(residual, lam).to(x0_hat))
        return x0_hat + torch.cat(moves, 1)

    def scalings(self, t: Tensor) -> Scalings:
        """The factors at times t, any shape.

        precond with `cond_x1`: pixelwise x0 | g ~ N(rho g, v), and x_t given x0, x1 make
        1 / out^2 = 1 / v + a_t^2 / c_t^2, the posterior's precision; its mean is the skip. On the
        bridge c_t^2 / a_t = sigma_t^2, which is used with ot_ode, too.
        Without: the regression of x0 on x_t alone, out^2 its residual variance.
        """
        var, one, zero = self.bridge.schedule.var_fwd(t), torch.ones_like(t), torch.zeros_like(t)
        if self.config.prediction == "eps":
            return Scalings(one, zero, zero, -var.sqrt(), one, 1.0)
        if self.config.prediction == "x0":
            return Scalings(zero, zero, zero, one, one, 1.0)
        (m00, m11, m01), (a, b, c) = self.config.moments, self.bridge.coefficients(t)
        power = a**2 * m00 + b**2 * m11 + 2 * a * b * m01 + c**2
        if not self.config.cond_x1:
            skip_t = (a * m00 + b * m01) / power
            out = (m00 - skip_t * (a * m00 + b * m01)).clamp(min=1e-8).sqrt()
            return Scalings(skip_t, zero, zero, out, power.rsqrt(), 1.0)
        rho, v = m01 / m11, m00 - m01**2 / m11
        if self.config.process == "diffusion":
            var = c**2 / a.clamp(min=1e-9)
        skip_t, skip_g = v / (var + v * a), rho * var / (var + v * a)
        return Scalings(skip_t, -b * skip_t, skip_g, (var * skip_t).sqrt(), power.rsqrt(), m11**-0.5)

    def forward(self, xt: Tensor, t: Tensor, x1: Tensor | None = None, g: Tensor | None = None) -> Tensor:
        """x0_hat (B, C, H, W) from xt of that shape, t (B,) in [0, 1] and, with cond_x1, x1.

        It is float32, or float64 where xt is. g: `guess(x1)`, where it is known already. ValueError for
        tensors of other shapes, or not of floats. torch.export takes this with any number of images, of the
        height and width of the example, where the network does.
        """
        one_shape(4, xt=xt, **{k: v for k, v in (("x1", x1), ("g", g)) if v is not None})
        s = self.scalings(expand(t, xt))
        if not self.config.cond_x1:
            return s.skip_t * xt + s.out * self._raw([s.in_t * xt], t)
        if x1 is None:
            raise ValueError("this denoiser is conditioned on x1: expected x1 of xt's shape, got none")
        g = self.guess(x1) if g is None else g
        planes = [s.in_t * xt, s.in_1 * x1] + [s.in_1 * g] * bool(self.config.tikhonov or self.config.wiener)
        raw = self._raw(planes, t)
        if self.config.wiener:
            raw, trust = raw[:, :-1], raw[:, -1:]  # none before training
            g = x1 + trust * (g - x1)
        return s.skip_t * xt + s.skip_1 * x1 + s.skip_g * g + s.out * raw

    def _raw(self, planes: list[Tensor], t: Tensor) -> Tensor:
        joined = torch.cat(planes, dim=1).contiguous(memory_format=torch.channels_last)
        raw = self.net(joined, t)
        got = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
        if got != (wanted := (joined.shape[0], self.outputs, *joined.shape[2:])):
            what = f"{wanted} from planes {tuple(joined.shape)}, got {got}"
            raise ValueError(f"{self.config.network}: expected the network to give {what}")
        return raw.float()

    def loss(
        self,
        x0: Tensor,
        x1: Tensor,
        t: Tensor,
        noise: Tensor,
        floor: float = 0.0,
        g: Tensor | None = None,
    ) -> Tensor:
        """Per-sample loss (B,): mean over pixels of |D(x_t, t) - x0|^2 / out(t)^2, t (B,) in (0, 1].

        x0, x1, noise: (B, C, H, W). g: `guess(x1)`, where it is known already. floor: where it is above 0, an
        image's own damage d^2 = mean |x1 - x0|^2 + floor^2 takes the place of the variance v in out^2, so
        that a picture that is nearly whole counts as much as another. ValueError for a floor without
        precond and `cond_x1`, whose out^2 alone has a v, for one below 0, and for other shapes and times.
        """
        check_times(as_time(t), positive=True)
        if floor and not (floor > 0 and self.config.cond_x1 and self.config.prediction == "precond"):
            raise ValueError(f"expected a floor of 0, or above it with precond and cond_x1, got {floor}")
        xt = self.bridge.q_sample(t, x0, x1, noise)
        out = self.scalings(expand(t, x0)).out
        loss = ((self(xt, t, x1, g) - x0) / out).square().flatten(1).mean(1)
        if not floor:
            return loss
        m00, m11, m01 = self.config.moments
        damage = (x1 - x0).square().flatten(1).mean(1) + floor**2
        return loss * (1 + out.flatten() ** 2 * (1 / damage - 1 / (m00 - m01**2 / m11)))
