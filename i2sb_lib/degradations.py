r"""Degradations x0 -> x1 of images: batched, on any device, differentiable where they are linear.

Every operator maps float images (B, C, H, W) in [-1, 1] to the same shape and dtype and, but for noise and
for bicubic shrinking, which overshoots at edges, to the same range; what is
random in one draws from the generator it is given. Blur and shrinking act on rows and columns apart, so they
are two matrices, H(X) = A_h X A_w^T, and their adjoint and inverse are exact (`operators`, `blurs`).
"""

import dataclasses
import io
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from i2sb_lib.blurs import Downsample, GaussianBlur, UniformBlur
from i2sb_lib.images import quantise, to_float, to_tensor, to_uint8
from i2sb_lib.operators import Degradation

LUMA = (0.299, 0.587, 0.114)


def _coloured(x: Tensor, kind: Degradation, *channels: int) -> Tensor:
    """Return x; ValueError unless it has as many channels as the degradation is for."""
    if x.shape[1] not in channels:
        raise ValueError(f"expected {' or '.join(map(str, channels))} channels for {kind}, got {x.shape[1]}")
    return x


@dataclass(frozen=True)
class CentreMask(Degradation):
    """Set the central rectangle, `fraction` (0 to 1) of the width and height, to mid-grey (0)."""

    linear = True
    fraction: float = 0.5

    def apply(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        h, w = x.shape[-2:]
        dh, dw = round(h * self.fraction), round(w * self.fraction)
        keep = x.new_ones(h, w)
        keep[(h - dh) // 2 : (h + dh) // 2, (w - dw) // 2 : (w + dw) // 2] = 0
        return x * keep

    def adjoint(self, y: Tensor) -> Tensor:
        return self.apply(y)


@dataclass(frozen=True)
class FreeformMask(Degradation):
    """Set brush strokes to mid-grey (0): for each image `strokes` polylines of `corners` segments, 1 to 100.

    width: brush radius, 0 to 1, as a fraction of each side. The strokes are drawn anew on each call.
    """

    strokes: int = 3
    corners: int = 4
    width: float = 0.06

    def mask(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """(B, 1, H, W), true where a stroke covers the pixel: its distance to a segment <= width."""
        (b, _, h, w), like = x.shape, dict[str, Any](device=x.device, dtype=x.dtype)
        # start anywhere, then random steps of at most 0.4 of the image
        shape = b, self.strokes, self.corners + 1, 2
        place = x.device if generator is None else generator.device
        walk = torch.rand(shape, generator=generator, device=place, dtype=x.dtype).to(x.device)
        walk = torch.cat([walk[:, :, :1], 0.8 * (walk[:, :, 1:] - 0.5)], dim=2).cumsum(2)
        p, d = walk[:, :, :-1].reshape(b, -1, 1, 2), walk.diff(dim=2).reshape(b, -1, 1, 2)
        ys, xs = ((torch.arange(n, **like) + 0.5) / n for n in (h, w))
        grid = torch.cartesian_prod(ys, xs).reshape(1, 1, -1, 2)
        along = ((grid - p) * d).sum(-1) / d.square().sum(-1).clamp(min=1e-12)
        gap = (grid - p - along.clamp(0, 1)[..., None] * d).norm(dim=-1).amin(dim=1)
        return (gap <= self.width).reshape(b, 1, h, w)

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return x.masked_fill(self.mask(x, generator), 0.0)


@dataclass(frozen=True)
class Grey(Degradation):
    """The luma of red, green and blue (Rec. 601) in all three: colour is what is lost."""

    linear = True

    def apply(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return (_coloured(x, self, 3) * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True).expand_as(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return _coloured(y, self, 3).sum(1, keepdim=True) * y.new_tensor(LUMA)[:, None, None]


@dataclass(frozen=True)
class JPEG(Degradation):
    """Encode and decode as JPEG at `quality` (1 to 100), 4:2:0 chroma, by Pillow; 1 or 3 channels."""

    quality: int = 10

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        pictures = to_uint8(_coloured(x, self, 1, 3)).cpu()
        return to_float(torch.stack([self._recode(image) for image in pictures])).to(x)

    def _recode(self, image: Tensor) -> Tensor:
        file, pixels = io.BytesIO(), image.permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels if len(image) == 3 else pixels[..., 0])
        picture.save(file, "JPEG", quality=self.quality, subsampling=2)
        return to_tensor(Image.open(file), len(image))


@dataclass(frozen=True)
class Noise(Degradation):
    """Add Gaussian noise of standard deviation `std` on the [0, 1] scale (2 std on [-1, 1])."""

    std: float = 0.05

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        place = x.device if generator is None else generator.device
        noise = torch.randn(x.shape, generator=generator, device=place, dtype=x.dtype)
        return x + 2 * self.std * noise.to(x.device)


@dataclass(frozen=True)
class Quantise(Degradation):
    """Clip to [-1, 1] and round to the 256 levels of an 8-bit file."""

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return quantise(x).to(x)


@dataclass(frozen=True)
class Compose(Degradation):
    """Apply `parts` in order."""

    parts: tuple[Degradation, ...] = ()

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts)) or "no damage"

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        for part in self.parts:
            x = part.apply(x, generator)
        return x


@dataclass(frozen=True)
class Mixture(Degradation):
    """What happens to pictures on their way: blur, shrinking, noise, JPEG, each perhaps, and rounding.

    Each image has strengths of its own. With chance `clean` nothing happens to it. Else, with chances of
    0.7, 0.25, 0.4 and 0.4: a Gaussian blur of up to `sigma` pixels, or of motion along a line of up to
    4 `sigma`, cut off at 3 to 8 pixels; shrinking by up to `factor` and back; noise of up to `std` on the
    [0, 1] scale, weak more often than strong; JPEG from `quality` to 95. Rounded to 8 bits in the end.
    """

    sigma: float = 3.0
    factor: float = 4.0
    std: float = 0.1
    quality: int = 30
    clean: float = 0.12

    def kernels(self, u: Tensor) -> Tensor:
        """(B, 17, 17) blurs from u (B, 5) in [0, 1]: means of Gaussians along a segment."""
        moves = u[:, 1] < 0.25
        sigma = self.sigma * torch.where(moves, 0.2 * u[:, 0], u[:, 0]).clamp(min=0.05)
        length, angle = 4 * self.sigma * u[:, 2] * moves, math.pi * u[:, 3]
        along = torch.linspace(-0.5, 0.5, 25) * length[:, None]
        points = along[..., None] * torch.stack([angle.sin(), angle.cos()], -1)[:, None]
        r = torch.arange(-8.0, 9.0)
        ys, xs = (
            torch.exp(-((r - points[..., k, None]) ** 2) / (2 * sigma[:, None, None] ** 2)) for k in (0, 1)
        )
        kernel = torch.einsum("bpy,bpx->byx", ys, xs)
        reach = torch.where(moves, 8, 3 + (6 * u[:, 4]).floor())[:, None]
        inside = (r.abs() <= reach).float()
        kernel = kernel * inside[:, :, None] * inside[:, None]
        return kernel / kernel.sum((1, 2), keepdim=True)

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        place = x.device if generator is None else generator.device
        u = torch.rand(len(x), 14, generator=generator, device=place).cpu()
        noise = torch.randn(x.shape, generator=generator, device=place, dtype=x.dtype).to(x.device)
        kind = torch.promote_types(x.dtype, torch.float32)  # resizing has no shorter floats
        return self.degrade(x.to(kind), u, noise.to(kind)).to(x)

    def degrade(self, x: Tensor, u: Tensor, noise: Tensor) -> Tensor:
        """x1 of x (B, 1 or 3, H, W) from what is random: u (B, 14) in [0, 1), and noise of x's shape."""
        _coloured(x, self, 1, 3)
        some = u[:, 0] >= self.clean
        chances = enumerate((0.7, 0.25, 0.4, 0.4), 1)
        blurred, shrunk, noisy, coded = (some & (u[:, k] < p) for k, p in chances)
        (b, c, h, w), mode = x.shape, "reflect" if min(x.shape[-2:]) > 8 else "replicate"
        kernels = self.kernels(u[:, 5:10]).to(x).repeat_interleave(c, 0)[:, None]
        y = F.conv2d(F.pad(x, (8,) * 4, mode=mode).reshape(1, b * c, h + 16, w + 16), kernels, groups=b * c)
        y = torch.where(blurred.to(x.device)[:, None, None, None], y.reshape(x.shape), x)
        for i in shrunk.nonzero().flatten().tolist():
            by = 1 + (self.factor - 1) * float(u[i, 10])
            how = ("bilinear", "bicubic", "area")[int(3 * u[i, 11])]
            size = max(1, round(h / by)), max(1, round(w / by))
            small = F.interpolate(y[i : i + 1], size=size, mode=how, antialias=how != "area")
            y[i] = F.interpolate(small, size=(h, w), mode="bicubic")[0]
        std = (2 * self.std * u[:, 12] ** 2 * noisy).to(x)[:, None, None, None]
        y = quantise((y + std * noise).clamp(-1, 1)).to(x)
        for i in coded.nonzero().flatten().tolist():
            quality = self.quality + int((96 - self.quality) * u[i, 13])
            y[i : i + 1] = JPEG(quality).apply(y[i : i + 1], None)
        return y


DEGRADATIONS: dict[str, tuple[type[Degradation], dict[str, Any]]] = {
    "blur-gauss": (GaussianBlur, {}),
    "blur-uniform": (UniformBlur, {}),
    "sr4x-pool": (Downsample, {"bicubic": False}),
    "sr4x-bicubic": (Downsample, {"bicubic": True}),
    "inpaint-centre": (CentreMask, {}),
    "inpaint-freeform": (FreeformMask, {}),
    "jpeg": (JPEG, {}),
    "grey": (Grey, {}),
    "noise": (Noise, {}),
    "mixture": (Mixture, {}),
    "none": (Compose, {"parts": ()}),
}


def create_degradation(
    name: str, *, noise: float = 0.0, quantise: bool = False, **options: Any
) -> Degradation:
    """Build a degradation by name, then noise, then rounding to 8 bits.

    name: "blur-gauss", "blur-uniform", "sr4x-pool", "sr4x-bicubic", "inpaint-centre", "inpaint-freeform",
    "jpeg", "grey", "noise", "mixture" or "none"; options: fields of its kind, such as kernel_size and sigma.
    noise: standard deviation of added Gaussian noise on the [0, 1] scale, up to 10; 0 for none.
    Raises ValueError for an unknown name or option, naming those that exist, and for a value out of range.

    >>> create_degradation("blur-gauss", kernel_size=7, sigma=2.0, quantise=True)  # the task here
    Compose(parts=(GaussianBlur(kernel_size=7, sigma=2.0), Quantise()))
    """
    if name not in DEGRADATIONS:
        raise ValueError(f"expected a degradation among {list(DEGRADATIONS)}, got {name!r}")
    cls, fixed = DEGRADATIONS[name]
    known = [f.name for f in dataclasses.fields(cls) if f.name not in fixed]  # type: ignore[arg-type]
    if unknown := set(options) - set(known):
        raise ValueError(f"{name} takes {known}, got {sorted(unknown)}")
    parts = (cls(**fixed, **options), *[Noise(noise)] * bool(noise), *[Quantise()] * quantise)
    return parts[0] if len(parts) == 1 else Compose(parts)
