"""Images in one form: float32 (B, 3, H, W) in [-1, 1] in memory, 8 bits in files and data sets."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from i2sb_lib.files import atomic_write

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def check_images(x: Tensor, name: str = "images") -> Tensor:
    """Return x if it is a floating-point (B, 3, H, W) batch in [-1, 1]; ValueError says what came.

    The range may be exceeded by 0.5 (a bridge state carries noise); the two common slips, images
    in [0, 255] and uint8, are refused.
    """
    good = isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] == 3 and x.is_floating_point()
    if not good or not x.numel():
        what = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name}: expected float images (B, 3, H, W) in [-1, 1], got {what}")
    low, high = (float(v) for v in x.detach().aminmax())
    if not (low >= -1.5 and high <= 1.5):
        raise ValueError(f"{name}: expected values in [-1, 1], got [{low:.3g}, {high:.3g}]")
    return x


def to_float(x: Tensor) -> Tensor:
    """uint8 in [0, 255] -> float32 in [-1, 1]; ValueError for any other dtype."""
    if x.dtype != torch.uint8:
        raise ValueError(f"expected uint8 images, got {x.dtype}")
    return x.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """float in [-1, 1] -> uint8, rounded to nearest and clipped; ValueError for integers."""
    if not x.is_floating_point():
        raise ValueError(f"expected float images in [-1, 1], got {x.dtype}")
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def quantise(x: Tensor) -> Tensor:
    """Round to the 256 levels that a file can hold, still as floats in [-1, 1]."""
    return to_float(to_uint8(x))


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Per-image peak signal-to-noise ratio (B,) in dB; the peak is 2, the width of [-1, 1]."""
    return -10 * torch.log10((x - y).square().flatten(1).mean(1) / 4)


def open_image(file: str | Path | object) -> Image.Image:
    """Open an image upright (EXIF rotation applied); ValueError names a file that is not one."""
    try:
        image = Image.open(file)  # type: ignore[arg-type]
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = file if isinstance(file, Path) else getattr(file, "name", file)
        raise ValueError(f"{name}: expected an image, got something unreadable ({error})") from None
    return ImageOps.exif_transpose(image)


def to_tensor(image: Image.Image) -> Tensor:
    """Any image as uint8 (3, H, W): grey is repeated, alpha is composed over white.

    Raises ValueError for pixels of no known scale: floats, and integers beyond 16 bits.
    """
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode.startswith("I"):  # 16-bit greyscale: PIL's own conversion would clip it
        pixels = np.asarray(image, dtype=np.int64)
        if image.mode == "I" and not (pixels.min() >= 0 and 255 < pixels.max() < 65536):
            raise ValueError(
                f"expected 8 or 16 bits a pixel, got integers from {pixels.min()} to {pixels.max()}"
            )
        image = Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("expected 8 or 16 bits a pixel, got floats, whose white is not known")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def save_image(x: Tensor, path: str | Path) -> None:
    """Write one (3, H, W) image, uint8 or float in [-1, 1]; the file appears whole or not at all.

    By its suffix: JPEG at quality 95 with full chroma, all others without loss.
    """
    path = Path(path)
    x = x if x.dtype == torch.uint8 else to_uint8(x)
    jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    how: dict[str, Any] = {"quality": 95, "subsampling": 0} if jpeg else {"lossless": True}
    image = Image.fromarray(x.permute(1, 2, 0).cpu().numpy())
    atomic_write(path, lambda p: image.save(p, **how))
