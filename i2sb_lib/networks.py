r"""Networks F(x, t) for images: the report's `cunet`, and the residual U-Net this book recommends.

`create_network` returns an `nn.Module` called as net(x, t) with x (B, planes, H, W) and t (B,).
"""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def time_features(t: Tensor, dim: int, last: int = 0) -> Tensor:
    """Sines, then cosines, of 1000 t f_i at f_i = 10000^(-i / (dim / 2 - last)), i < dim / 2.

    t: (B,); dim: even, and above 2 last; returns float32 (B, dim). last = 0: the lowest frequency lies one
    step above 1 / 10000; last = 1: at it, as in DDPM [Ho et al. 2020] and the report's network.
    """
    steps = torch.arange(dim // 2, device=t.device, dtype=torch.float32)
    angle = t.float()[:, None] * 1000.0 * torch.exp(steps * (-math.log(10000) / (dim // 2 - last)))
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def _check(x: Tensor, t: Tensor, planes: int, stride: int) -> None:
    shape, times = tuple(x.shape), tuple(getattr(t, "shape", ()))
    good = x.is_floating_point() and len(shape) == 4 and shape[1] == planes
    if not good or times not in (shape[:1], (1,)):
        raise ValueError(f"expected floats x (B, {planes}, H, W), t (B,), got {x.dtype} {shape}, {times}")
    if x.shape[-1] % stride or x.shape[-2] % stride:
        raise ValueError(f"height and width must be multiples of {stride}, got {tuple(x.shape[-2:])}")


class ResBlock(nn.Module):
    """x + conv(silu(scale * norm(conv(silu(norm(x)))) + shift)), scale and shift from the embedding."""

    def __init__(self, inp: int, out: int, emb: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inp), nn.Conv2d(inp, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, out), nn.Conv2d(out, out, 3, padding=1)
        self.embed = nn.Linear(emb, 2 * out)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(inp, out, 1) if inp != out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.embed(emb)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        return self.skip(x) + self.conv2(self.dropout(h))


class Attention(nn.Module):
    """x + self-attention over the pixels of x, heads of 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 32)
        self.norm = nn.GroupNorm(8, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, h, w)
        return x + self.out(y)


class UNet(nn.Module):
    """Residual U-Net with time embedding; the raw network that `Denoiser` preconditions.

    channels: width of each level; the resolution halves from one to the next. blocks: residual
    blocks a level on the way down (the way up has as many, each with its skip connection).
    attention: levels (0 = full resolution) that also attend. Height and width must be multiples
    of 2 ** (levels - 1), its `stride`.
    """

    def __init__(
        self,
        inp: int = 3,
        out: int = 3,
        channels: tuple[int, ...] = (48, 96, 144, 192),
        blocks: int = 2,
        attention: tuple[int, ...] = (3,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        emb = 4 * channels[0]
        self.features = channels[0]
        self.stride = 2 ** (len(channels) - 1)
        self.embed = nn.Sequential(nn.Linear(channels[0], emb), nn.SiLU(), nn.Linear(emb, emb), nn.SiLU())
        self.first = nn.Conv2d(inp, channels[0], 3, padding=1)

        def block(i: int, o: int, level: int) -> nn.ModuleList:
            attend: nn.Module = Attention(o) if level in attention else nn.Identity()
            return nn.ModuleList([ResBlock(i, o, emb, dropout), attend])

        self.down, self.up, self.shrink, self.grow = (nn.ModuleList() for _ in range(4))
        width = channels[0]
        for level, c in enumerate(channels):
            inputs = [width] + [c] * (blocks - 1)
            self.down.append(nn.ModuleList(block(i, c, level) for i in inputs))
            if level + 1 < len(channels):
                self.shrink.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
            width = c
        self.middle = ResBlock(width, width, emb, dropout)
        for level, c in reversed(list(enumerate(channels))):
            inputs = [width + c] + [2 * c] * (blocks - 1)
            self.up.append(nn.ModuleList(block(i, c, level) for i in inputs))
            if level:
                self.grow.append(nn.Conv2d(c, c, 3, padding=1))
            width = c
        self.norm, self.last = nn.GroupNorm(8, width), nn.Conv2d(width, out, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        _check(x, t, self.first.in_channels, self.stride)
        emb = self.embed(time_features(t, self.features).to(self.first.weight.dtype))
        h, skips = self.first(x.to(self.first.weight.dtype)), []
        for level, stage in enumerate(self.down):
            for res, attend in stage:  # type: ignore[attr-defined]
                h = attend(res(h, emb))
                skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
        h = self.middle(h, emb)
        for level, stage in enumerate(self.up):
            for res, attend in stage:  # type: ignore[attr-defined]
                h = attend(res(torch.cat([h, skips.pop()], dim=1), emb))
            if level < len(self.grow):
                h = self.grow[level](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.last(F.silu(self.norm(h)))


def _double(inp: int, out: int, mid: int | None = None) -> nn.Sequential:
    """(conv 3x3, layer norm, relu) twice."""
    mid = mid or out
    layers: list[nn.Module] = []
    for i, o in ((inp, mid), (mid, out)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(1, o), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class ConditionalNorm(nn.Module):
    """Instance norm whose scale and shift are relu(linear(z)), as the report's network has them.

    (x - mean) / sqrt(var + 1e-5) with the unbiased variance over the pixels of each channel.
    """

    def __init__(self, channels: int, emb: int) -> None:
        super().__init__()
        self.shift, self.scale = nn.Conv2d(emb, channels, 1), nn.Conv2d(emb, channels, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        z, k = z[:, :, None, None], 1 - 1 / math.prod(x.shape[2:])  # torch's variance is k times the unbiased
        return F.instance_norm(x, eps=1e-5 * k) * k**0.5 * F.relu(self.scale(z)) + F.relu(self.shift(z))


class CUNet(nn.Module):
    """The report's conditional U-Net: 27,318,387 parameters with base 80 and 128 noise channels.

    Four max-pooled levels, bilinear upsampling, the time entering only through `ConditionalNorm`
    before each of the four upsamplings; at least 512 pixels.  [Zaytsev 2024, sec. 4.3; Gushchin et al. 2023]
    The published function of the published weights, but for the time: the report's program casts the
    frequencies to the integer type of its labels (appendix B, item 6). The recorded run
    celeba64-deblur-cunet used an earlier form: no SiLU after the second time layer, time features
    with last = 0, biased variance.
    """

    stride = 16

    def __init__(self, inp: int = 3, out: int = 3, base: int = 80, noise_channels: int = 128) -> None:
        super().__init__()
        b, z = base, noise_channels
        self.noise_channels, self.planes = z, inp
        self.time = nn.Sequential(nn.Linear(z, z), nn.SiLU(), nn.Linear(z, z), nn.SiLU())
        self.first = _double(inp, b)
        widths = [b, 2 * b, 4 * b, 8 * b, 8 * b]
        self.down = nn.ModuleList(_double(i, o) for i, o in itertools.pairwise(widths))
        outs = [4 * b, 2 * b, b, b]
        self.norm = nn.ModuleList(ConditionalNorm(w, z) for w in [8 * b, 4 * b, 2 * b, b])
        self.up = nn.ModuleList(
            _double(2 * w, o, w) for w, o in zip([8 * b, 4 * b, 2 * b, b], outs, strict=True)
        )
        self.last = nn.Conv2d(b, out, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        _check(x, t, self.planes, self.stride)
        if math.prod(x.shape[2:]) < 512:
            raise ValueError(f"cunet needs at least 512 pixels, got {tuple(x.shape[-2:])}")
        z = self.time(time_features(t, self.noise_channels, last=1).to(self.last.weight.dtype))
        h, skips = self.first(x.to(self.last.weight.dtype)), []
        for down in self.down:
            skips.append(h)
            h = down(F.max_pool2d(h, 2))
        for norm, up in zip(self.norm, self.up, strict=True):
            h = F.interpolate(norm(h, z), scale_factor=2.0, mode="bilinear", align_corners=True)
            h = up(torch.cat([skips.pop(), h], dim=1))
        return self.last(h)


SIZES: dict[str, dict[str, Any]] = {
    "unet-tiny": {"channels": (16, 32, 48), "blocks": 1, "attention": ()},
    "unet-small": {"channels": (32, 64, 96, 96), "blocks": 2, "attention": (3,)},
    "unet-medium": {"channels": (48, 96, 144, 144), "blocks": 2, "attention": (3,)},
    "unet-full": {"channels": (64, 128, 192, 192), "blocks": 2, "attention": (3,)},
}


def create_network(name: str, planes: int = 3, dropout: float = 0.0, out: int = 3) -> nn.Module:
    """Build a raw network, (B, planes, H, W) and t (B,) to (B, out, H, W), by name.

    name: "cunet", "unet-tiny", "unet-small", "unet-medium" or "unet-full". out: channels of an image.
    planes: as many for x_t alone, and as many more for each image it is conditioned on. dropout: the
    probability of dropping a feature, from 0 to below 1. Raises ValueError for a name that is not known, no
    planes, and dropout with "cunet", which has none. So does the network for other planes than these, no
    floating-point numbers (of any precision; the answer has the weights'), t of another shape, and sides
    that are no multiples of its `stride`; "cunet" also for fewer than 512 pixels.
    """
    if not (planes >= 1 and out >= 1 and 0 <= dropout < 1):
        got = f"{planes=}, {out=}, {dropout=}"
        raise ValueError(f"expected planes and out of at least 1, dropout from 0 to below 1, got {got}")
    if name == "cunet":
        if dropout:
            raise ValueError(f"cunet has no dropout, got dropout={dropout}")
        return CUNet(planes, out)
    if name not in SIZES:
        raise ValueError(f"expected a network among {['cunet', *SIZES]}, got {name!r}")
    return UNet(planes, out, dropout=dropout, **SIZES[name])
