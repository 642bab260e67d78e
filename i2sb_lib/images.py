"""Images in one form: float32 (B, C, H, W) in [-1, 1] in memory, 8 bits in files and data sets.

C is 3 for RGB, 1 for grey and 4 for RGB with opacity.
"""

import io
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms
from torch import Tensor

from i2sb_lib.faults import floats, told, unreadable, warn
from i2sb_lib.files import atomic_write, is_special

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".ppm")  # read and written
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "WEBP", "TIFF", "PPM", "GIF", "AVIF")  # by content, of one file
MAX_BYTES = 2**30  # of a picture's file
MAX_PIXELS = 2**27  # a hundred-megapixel camera's pictures; what claims more is not decoded
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels
SOFTWARE = "i2sb-lib"  # EXIF's Software of a result, before a number for what it was made of
_DEEP = "pictures of more than 8 bits a colour are taken as 8"
OPAQUE = (".jpg", ".jpeg", ".jfif", ".bmp", ".ppm")  # files that hold no opacity
_TURNS = dict(enumerate(("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270",
                         "TRANSVERSE", "ROTATE_90"), 2))  # fmt: skip


def check_images(x: Tensor, name: str = "images", channels: int | None = None) -> Tensor:
    """Return x if it is a floating-point (B, C, H, W) batch in [-1, 1]; ValueError says what came.

    channels: what C has to be; 1, 3 or 4 unless said. The range may be exceeded by 0.5, as by noise.
    """
    good = isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point() and x.numel()
    if not good or x.shape[1] not in (MODES if channels is None else (channels,)):
        wanted = f"(B, {channels or 'C'}, H, W) in [-1, 1]" + ", C 1, 3 or 4" * (channels is None)
        raise ValueError(f"{name}: expected float images {wanted}, got {told(x)}")
    low, high = (float(v) for v in x.detach().aminmax())
    if not (low >= -1.5 and high <= 1.5):
        raise ValueError(f"{name}: expected values in [-1, 1], got [{low:.3g}, {high:.3g}]")
    return x


def to_float(x: Tensor) -> Tensor:
    """uint8 k -> float32 k / 127.5 - 1 in [-1, 1], of any shape; ValueError for all but a uint8 tensor."""
    if not isinstance(x, Tensor) or x.dtype != torch.uint8:
        raise ValueError(f"expected a tensor of uint8 images, got {told(x)}")
    return x.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """float x in [-1, 1] -> uint8, 127.5 (x + 1) rounded, clipped, nan to any; ValueError unless floats."""
    return ((floats(x, "float images in [-1, 1]").float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def quantise(x: Tensor) -> Tensor:
    """Clip, and round to the 256 levels that a file can hold, as float32 in [-1, 1]; else as `to_uint8`."""
    return to_float(to_uint8(x))


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Per-image peak signal-to-noise ratio (B,) in dB: 10 log10(2^2 / mean |x - y|^2), inf of equal ones.

    The peak is 2, as [-1, 1] is wide. ValueError unless both are float tensors (B, ...), or one (1, ...).
    """
    one = floats(x, "float images", 1).shape[1:] == floats(y, "float images", 1).shape[1:]
    if not one or len({1, len(x), len(y)}) > 2:
        raise ValueError(f"expected float images of one shape, got {told(x)} and {told(y)}")
    error = (x - y).to(torch.promote_types((x - y).dtype, torch.float32))
    return -10 * torch.log10(error.square().flatten(1).mean(1) / 4)


def open_image(file: Any, alpha: bool = False) -> Image.Image:
    """The picture in a file, given by path or open for reading, as `to_rgb` makes it.

    Of several in one file the first is taken, with a warning. Raises ValueError with the file's name where it
    holds no picture (PNG, JPEG, BMP, WebP, TIFF, PPM, GIF, AVIF), a damaged one, one of over 2^27 pixels or
    of no known scale, and where what is at a path has over 2^30 bytes.
    """
    path = isinstance(file, str | os.PathLike)
    name = file if path else getattr(file, "name", "image")
    try:
        Image.init()
        if path:
            if is_special(Path(file)):
                raise ValueError("a pipe or a device")
            with Path(file).open("rb") as opened:
                content = opened.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ValueError(f"over {MAX_BYTES} bytes")
        stream = io.BytesIO(content) if path else file
        with Image.open(stream, formats=[f for f in FORMATS if f in Image.OPEN]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, of at most {MAX_PIXELS}")
            several = image.format != "MPO" and getattr(image, "is_animated", False)  # an MPO is one, twice
            rgb = to_rgb(image, alpha)
    except Exception as error:  # Pillow's decoders have no common base for their errors
        raise unreadable(name, "an image", error) from None
    if several:
        warn(f"{name}: holds several pictures, took the first")
    return rgb


def to_rgb(image: Image.Image, alpha: bool = False) -> Image.Image:
    """A picture as it is meant to be seen: upright, in sRGB, opaque over white, in Pillow's mode RGB.

    alpha: in mode RGBA instead, with its opacity. EXIF orientation and an embedded ICC profile are applied
    and forgotten, and ignored where they are malformed. 12 and 16 bits are scaled to 8. That, and opacity
    that is given up, is warned of once. Raises ValueError for pixels of no known scale.
    """
    profile, tile = image.info.get("icc_profile"), [str(part) for part in getattr(image, "tile", [])]
    white = max((int(n) for part in tile for n in re.findall(r"'ppm.*, (\d+)\)", part)), default=0)
    deep = white == 2**16 - 1 or any(";16" in part for part in tile)
    if white > 255 and not deep:
        warn(_DEEP)  # Pillow scales them
    name = getattr(image, "filename", "")
    image.filename = ""  # type: ignore[attr-defined]  # by name Pillow maps memory, and scrambles turned TIFFs
    # a TIFF's: 258 bits a sample, 259 compression, 262 what 0 means, 284 planes, 339 signed or float samples,
    # 320 colours of a palette, 530 pixels for each of chroma's
    tags = getattr(image, "tag_v2", {})
    chroma = (tags.get(530, (2, 2)), image.mode)  # Pillow 11 has no mode for it
    if (tags.get(262), tags.get(259, 1)) == (6, 1) and chroma != ((1, 1), "YCbCr"):
        raise ValueError("expected compressed YCbCr, got a kind of uncompressed, which Pillow scrambles")
    if not all(image.size):
        raise ValueError(f"expected a picture with pixels, got {image.width} x {image.height}")
    if any("'RGB;16B'" in part for part in tile) and "transparency" in image.info:
        _clear(image)
    image.load()
    image.filename = name  # type: ignore[attr-defined]
    if tags.get(262) == 3 and max(tags[320]) < 256:  # as libtiff has it: 8 bits where 16 are meant to be
        image.putpalette(bytes(tags[320]), "RGB;L")
    for few, step in (("'1'", 255), ("'L;2'", 85), ("'L;4'", 17)):  # Pillow scales pixels, but not all keys
        if any(few in part for part in tile) and "transparency" in image.info:
            image.info["transparency"] = (image.info["transparency"] & 255 // step) * step
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # malformed tags do not make a picture bad
        turn = None
    image, opacity = _eight_bits(image, deep), None
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        opacity = rgba.getchannel("A")
        image = rgba.getchannel("R") if image.mode in ("1", "L", "LA", "La") else rgba.convert("RGB")
    rgb = _srgb(image, profile)
    if alpha:
        rgb.putalpha(opacity or 255)
    elif opacity is not None:
        if opacity.getextrema() != (255, 255):
            warn("pictures that are see-through are taken as they look over white")
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, "white"), opacity)
    rgb = rgb.transpose(Image.Transpose[turn]) if turn else rgb
    rgb.info = {}
    return rgb


def _clear(image: Any) -> None:
    """Give a PNG of 16 bits a colour its opacity in place: Pillow keeps and compares high bytes alone."""
    place, low = image.fp.tell(), Image.open(image.fp, formats=["PNG"])
    low.tile = [part._replace(args="RGB;16L") for part in low.tile]  # the other byte of each
    pixels = np.asarray(low).astype(np.uint16)
    image.fp.seek(place)
    pixels += np.asarray(image).astype(np.uint16) << 8
    opaque = (pixels != image.info.pop("transparency")).any(-1)
    image.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))


def _eight_bits(image: Image.Image, deep: bool) -> Image.Image:
    """16-bit grey as 8 bits (mode L or, with a transparent level, LA); other modes as they are.

    deep: the file has 16 bits a colour, of which Pillow keeps the high bytes.
    """
    grey, key = image.mode[0] in "IF", image.info.get("transparency")
    tags = getattr(image, "tag_v2", {})
    if 16 in tags.get(258, ()) and (tags.get(284), tags.get(259, 1)) == (2, 1):
        raise ValueError("expected a pixel's colours together, got 16-bit planes, which Pillow scrambles")
    unsigned = set(tags.get(339, (1,))) == {1} and (image.mode != "I" or image.format in ("PNG", "PPM"))
    if image.mode == "F" or not unsigned:
        what = "floats" if image.mode == "F" else "signed or 32-bit integers"
        raise ValueError(f"expected 8 or 16 bits a pixel, got {what}, whose white is not known")
    if not (grey or deep):
        return image
    pixels, bits = np.asarray(image if grey else image.convert("RGB")), tags.get(258, (16,))[0]
    if bits == 16 and 0 < pixels.max() < (4096 if grey else 16 + (image.format == "PPM")):
        raise ValueError("expected 16 bits a pixel in use, got at most 12, whose white is not known")
    warn(_DEEP)
    if not grey:
        return image
    table = np.linspace(0, 255, 2**bits).round().astype(np.uint8)
    plane = Image.fromarray((table[::-1] if tags.get(262) == 0 else table)[pixels])
    if key is not None:
        plane.putalpha(Image.fromarray(np.where(pixels == key, 0, 255).astype(np.uint8)))
    return plane


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A copy of an opaque picture in sRGB; a profile that is damaged or of another mode is ignored."""
    if profile:
        image = image.convert({"1": "L", "P": "RGB"}.get(image.mode, image.mode))
        try:
            source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
        except (ImageCms.PyCMSError, OSError, ImportError):
            pass
    return image.convert("RGB")


def to_tensor(image: Image.Image, channels: int = 3) -> Tensor:
    """Any picture as uint8 (channels, H, W), grey where that is 1, as `to_rgb` makes it; its ValueError."""
    pixels = np.array(to_rgb(image, channels == 4).convert(MODES[channels]))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def to_image(x: Tensor) -> Image.Image:
    """One (C, H, W) image, uint8 or float in [-1, 1], as Pillow has it: mode L, RGB or RGBA.

    Raises ValueError for another shape, and for floats beyond that range, as `check_images` has it.
    """
    if not isinstance(x, Tensor) or x.ndim != 3 or len(x) not in MODES or not x.numel():
        raise ValueError(f"expected an image (1, 3 or 4, H, W), got {told(x)}")
    x = x if x.dtype == torch.uint8 else to_uint8(check_images(x[None], "image")[0])
    pixels = x.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels[..., 0] if len(x) == 1 else pixels)


def taken(x: Any, channels: int = 3) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """Pictures as float images (channels, H, W) in [-1, 1], and what gives their kind to a list of such.

    x: a picture, which is one of Pillow's, an array of uint8 (H, W) or (H, W, channels), or the path of a
    file, whose kind is Pillow's; a list or tuple of pictures; or an array of uint8 (B, H, W, channels).
    Raises ValueError for anything else.
    """
    if isinstance(x, list | tuple) and x and not any(isinstance(one, list | tuple) for one in x):
        if shape := next((tuple(one.shape) for one in x if getattr(one, "ndim", 0) > 3), None):
            got = f"a batch of shape {shape}, which `restore` takes by itself, in no list"
            raise ValueError(f"expected a single picture, got {got}")
        each = [taken(one, channels) for one in x]
        kinds = [kind for _, kind in each]
        return [y for ys, _ in each for y in ys], lambda ys: [k([y]) for k, y in zip(kinds, ys, strict=True)]
    if isinstance(x, Image.Image | str | os.PathLike):
        image = x if isinstance(x, Image.Image) else open_image(x, channels == 4)
        return [to_float(to_tensor(image, channels))], lambda ys: to_image(ys[0])
    if isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.size:
        if x.ndim == 2 and channels > 1:  # grey, as Pillow's would be
            ys, back = taken(Image.fromarray(x), channels)
            return ys, lambda ys: np.asarray(back(ys))
        batch = x[None] if x.ndim == 3 else x[None, ..., None] if x.ndim == 2 else x
        if batch.ndim == 4 and batch.shape[-1] == channels:
            pixels = torch.from_numpy(batch.copy()).permute(0, 3, 1, 2)
            back = lambda ys: to_uint8(torch.stack(ys)).permute(0, 2, 3, 1).cpu().numpy().reshape(x.shape)  # noqa: E731
            return list(to_float(pixels)), back
    kinds_ = f"a path, an image of Pillow's, uint8 (H, W, {channels}), a list of these, or a tensor"
    raise ValueError(f"expected {kinds_} of floats (B, {channels}, H, W) in [-1, 1], got {told(x)}")


def save_image(x: Tensor | Image.Image, path: str | Path | BinaryIO, source: str | None = None) -> None:
    """Write one (C, H, W) image, uint8 or float in [-1, 1], or Pillow's, to a file that appears whole or not.

    By its suffix: .jpg, .jpeg, .jfif at quality 95 with full chroma; .png, .bmp, .webp, .tif, .tiff, .ppm
    without loss. A stream that is open for writing gets a PNG. source: what it was made of, in words by which
    `is_ours` then knows it, from its EXIF (which BMP and PPM do not hold). Raises ValueError for another
    suffix, opacity in a format that has none, another shape or type, and floats beyond [-1, 1] by over 0.5.
    """
    if isinstance(x, Image.Image):
        x = to_tensor(x, 4 if x.has_transparency_data else 1 if x.mode in ("1", "L") else 3)
    image = to_image(x)
    if not isinstance(path, str | os.PathLike):
        return image.save(path, "PNG")
    path = Path(path)
    if image.mode == "RGBA" and path.suffix.lower() in OPAQUE:
        raise ValueError(f"{path}: expected a format that holds opacity, such as .png")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a suffix among {', '.join(SUFFIXES)}, got {path.suffix!r}")
    jpeg = path.suffix.lower() in (".jpg", ".jpeg", ".jfif")
    how: dict[str, Any] = {"quality": 95, "subsampling": 0} if jpeg else {"lossless": True, "exact": True}
    if source is not None:
        how["exif"] = Image.Exif()
        how["exif"][ExifTags.Base.Software] = _mark(source)
    atomic_write(path, lambda p: image.save(p, **how))


def _mark(source: str) -> str:
    return f"{SOFTWARE} {zlib.crc32(source.encode('utf-8', 'surrogateescape')):08x}"


def is_ours(file: Path, source: str | None = None) -> bool:
    """Whether a file is a picture that `save_image` wrote for a source, or for the one that is named."""
    Image.init()
    try:
        if is_special(file):  # which would be waited for
            return False
        with Image.open(file, formats=["PNG", "JPEG", "WEBP", "TIFF"]) as image:
            mark = str(image.getexif().get(ExifTags.Base.Software))
            return mark == _mark(source) if source is not None else mark.startswith(f"{SOFTWARE} ")
    except Exception:  # whatever it is, it is not ours
        return False
