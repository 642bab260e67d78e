r"""Degradations x0 -> x1 of images: batched, differentiable where they are linear, on any device.

Every operator maps float images (B, 3, H, W) in [-1, 1] to the same shape and range; what is random
in one draws from the generator it is given. Linear ones have an exact `adjoint`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import io

from i2sb_lib.images import check_images, quantise, to_float, to_uint8


class Degradation:
    """An operator H. Call it as H(x, generator=None); `linear` says whether `adjoint` exists."""

    linear: ClassVar[bool] = False

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """The operator itself, on checked input."""
        raise NotImplementedError

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Degrade a batch; ValueError unless x is float (B, 3, H, W) in [-1, 1]."""
        return self.apply(check_images(x, "degradation"), generator)

    def adjoint(self, y: Tensor) -> Tensor:
        """H^T y, by reverse-mode differentiation of H; TypeError where H is not linear."""
        if not self.linear:
            raise TypeError(f"{self} is not linear and has no adjoint")
        _, pullback = torch.func.vjp(lambda x: self.apply(x, None), torch.zeros_like(y))
        return pullback(y)[0]


def separable(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve rows, then columns, with an odd 1-D kernel (k,), reflecting at the borders."""
    half, c = len(kernel) // 2, x.shape[1]
    if half >= min(x.shape[-2:]):
        raise ValueError(f"kernel of {len(kernel)} is too wide for images {tuple(x.shape[-2:])}")
    weight = kernel.to(x).expand(c, 1, -1)
    x = F.pad(x, (half, half, half, half), mode="reflect")
    x = F.conv2d(x, weight[:, :, None, :], groups=c)
    return F.conv2d(x, weight[:, :, :, None], groups=c)


def _check_kernel(size: int) -> None:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"expected an odd kernel_size of at least 1, got {size}")


@dataclass(frozen=True)
class GaussianBlur(Degradation):
    """Gaussian blur, all kernel_size taps, unit gain, reflect padding; sigma in pixels."""

    linear = True
    kernel_size: int = 7
    sigma: float = 2.0

    def __post_init__(self) -> None:
        _check_kernel(self.kernel_size)
        if not self.sigma > 0:
            raise ValueError(f"expected sigma > 0, got {self.sigma}")

    def kernel(self) -> Tensor:
        """Weights (kernel_size,), float64, summing to one."""
        half = self.kernel_size // 2
        x = torch.arange(-half, half + 1, dtype=torch.float64)
        k = torch.exp(-(x**2) / (2 * self.sigma**2))
        return k / k.sum()

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return separable(x, self.kernel())


@dataclass(frozen=True)
class UniformBlur(Degradation):
    """Box blur over kernel_size x kernel_size pixels, reflect padding."""

    linear = True
    kernel_size: int = 9

    def __post_init__(self) -> None:
        _check_kernel(self.kernel_size)

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return separable(x, torch.full((self.kernel_size,), 1 / self.kernel_size))


@dataclass(frozen=True)
class Downsample(Degradation):
    """Super-resolution's inverse: shrink by `factor`, then repeat pixels to the first size.

    bicubic: antialiased bicubic shrinking instead of the mean over each block.
    """

    linear = True
    factor: int = 4
    bicubic: bool = False

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        f, size = self.factor, x.shape[-2:]
        if f < 1 or size[0] % f or size[1] % f:
            raise ValueError(f"expected a size divisible by {f}, got {tuple(size)}")
        if self.bicubic:
            small = F.interpolate(x, scale_factor=1 / f, mode="bicubic", antialias=True)
        else:
            small = F.avg_pool2d(x, f)
        return F.interpolate(small, scale_factor=float(f), mode="nearest")


@dataclass(frozen=True)
class CentreMask(Degradation):
    """Set the central square, `fraction` of the width and height, to mid-grey (0)."""

    linear = True
    fraction: float = 0.5

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        h, w = x.shape[-2:]
        dh, dw = round(h * self.fraction), round(w * self.fraction)
        keep = x.new_ones(h, w)
        keep[(h - dh) // 2 : (h + dh) // 2, (w - dw) // 2 : (w + dw) // 2] = 0
        return x * keep


@dataclass(frozen=True)
class FreeformMask(Degradation):
    """Set brush strokes to mid-grey (0): for each image `strokes` polylines of `corners` segments.

    width: brush radius as a fraction of the image's height. The strokes are drawn anew on each call.
    """

    strokes: int = 3
    corners: int = 4
    width: float = 0.06

    def mask(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """(B, 1, H, W), one where a stroke covers the pixel: its distance to a segment <= width."""
        (b, _, h, w), n = x.shape, self.strokes
        # start anywhere, then random steps of at most 0.4 of the image
        walk = torch.rand(
            b, n, self.corners + 1, 2, generator=generator, device=x.device, dtype=x.dtype
        )
        walk = torch.cat([walk[:, :, :1], 0.8 * (walk[:, :, 1:] - 0.5)], dim=2).cumsum(2)
        p, d = walk[:, :, :-1].reshape(b, -1, 1, 2), walk.diff(dim=2).reshape(b, -1, 1, 2)
        ys = (torch.arange(h, device=x.device, dtype=x.dtype) + 0.5) / h
        xs = (torch.arange(w, device=x.device, dtype=x.dtype) + 0.5) / w
        grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij"), -1).reshape(1, 1, -1, 2)
        along = ((grid - p) * d).sum(-1) / d.square().sum(-1).clamp(min=1e-12)
        gap = grid - p - along.clamp(0, 1)[..., None] * d
        hit = gap.norm(dim=-1).amin(dim=1) <= self.width
        return hit.reshape(b, 1, h, w)

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return x.masked_fill(self.mask(x, generator), 0.0)


@dataclass(frozen=True)
class JPEG(Degradation):
    """Encode and decode as JPEG at `quality` (1 to 100), 4:2:0 chroma, on the CPU's codec."""

    quality: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"expected a quality from 1 to 100, got {self.quality}")

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        files = io.encode_jpeg(list(to_uint8(x).cpu()), quality=self.quality)
        decoded = [io.decode_jpeg(f, mode=io.ImageReadMode.RGB) for f in files]
        return to_float(torch.stack(decoded)).to(x)


@dataclass(frozen=True)
class Noise(Degradation):
    """Add Gaussian noise of standard deviation `std` on the [0, 1] scale (2 std on [-1, 1])."""

    std: float = 0.05

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return x + 2 * self.std * noise


@dataclass(frozen=True)
class Quantise(Degradation):
    """Clip to [-1, 1] and round to the 256 levels of an 8-bit file."""

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return quantise(x).to(x)


@dataclass(frozen=True)
class Compose(Degradation):
    """Apply `parts` in order; linear, with an adjoint, where all of them are."""

    parts: tuple[Degradation, ...]

    @property
    def linear(self) -> bool:  # type: ignore[override]
        return all(part.linear for part in self.parts)

    def apply(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        for part in self.parts:
            x = part.apply(x, generator)
        return x


DEGRADATIONS: dict[str, tuple[type[Degradation], dict[str, Any]]] = {
    "blur-gauss": (GaussianBlur, {}),
    "blur-uniform": (UniformBlur, {}),
    "sr4x-pool": (Downsample, {}),
    "sr4x-bicubic": (Downsample, {"bicubic": True}),
    "inpaint-centre": (CentreMask, {}),
    "inpaint-freeform": (FreeformMask, {}),
    "jpeg": (JPEG, {}),
    "noise": (Noise, {}),
    "none": (Compose, {"parts": ()}),
}


def create_degradation(
    name: str, *, noise: float = 0.0, quantise: bool = False, **options: Any
) -> Degradation:
    """Build a degradation by name, then noise, then rounding to 8 bits.

    name: one of DEGRADATIONS; options: its fields, such as kernel_size and sigma.
    noise: standard deviation of added Gaussian noise on the [0, 1] scale; 0 for none.
    Raises ValueError for an unknown name or option, naming those that exist.

    >>> create_degradation("blur-gauss", kernel_size=7, sigma=2.0, quantise=True)  # the task here
    Compose(parts=(GaussianBlur(kernel_size=7, sigma=2.0), Quantise()))
    """
    if name not in DEGRADATIONS:
        raise ValueError(f"expected a degradation among {list(DEGRADATIONS)}, got {name!r}")
    cls, fixed = DEGRADATIONS[name]
    known = {f.name: f.type for f in dataclasses.fields(cls) if f.name not in fixed}  # type: ignore[arg-type]
    if unknown := set(options) - set(known):
        raise ValueError(f"{name} takes {list(known)}, got {sorted(unknown)}")
    # the command line gives every option as a float
    options = {k: int(v) if known[k] == "int" else v for k, v in options.items()}
    parts: list[Degradation] = [cls(**fixed, **options)]
    if noise:
        parts.append(Noise(noise))
    if quantise:
        parts.append(Quantise())
    return parts[0] if len(parts) == 1 else Compose(tuple(parts))
