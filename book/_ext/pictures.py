"""What a page makes of its figures: smaller files, and drawings told from pictures, for the dark."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image


def lighter(output: dict[str, Any]) -> dict[str, Any]:
    """An output without the plane that says that its picture is opaque: an eighth of the bytes."""
    if not (image := picture(output)) or image.mode != "RGBA" or image.getextrema()[3] != (255, 255):
        return output
    image.convert("RGB").save(file := io.BytesIO(), "png", dpi=image.info.get("dpi"))
    return {**output, "data": {**output["data"], "image/png": base64.b64encode(file.getvalue()).decode()}}


def picture(output: dict[str, Any]) -> Image.Image | None:
    png = "".join(output.get("data", {}).get("image/png", ""))
    return Image.open(io.BytesIO(base64.b64decode(png))) if png else None


def mark_drawing(cell: dict[str, Any]) -> None:
    """The class `drawn` for a figure that is one: on a dark page the style shows it light on dark."""
    for output in cell["outputs"]:
        if (image := picture(output)) and is_drawn(image):
            cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})["classes"] = "drawn"
            if html := "".join(output["data"].get("text/html", "")):
                output["data"]["text/html"] = html.replace('role="group"', 'class="drawn" role="group"', 1)


def is_drawn(image: Image.Image, size: int = 16) -> bool:
    """Whether a figure is lines and words on white, no photograph and no colour scale.

    Of such pictures there are whole squares without white and of at least eight colours; here under a tenth.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.uint32)
    high, broad = (n // size for n in pixels.shape[:2])
    squares = pixels[: high * size, : broad * size].reshape(high, size, broad, size, 3).swapaxes(1, 2)
    squares = squares.reshape(-1, size * size, 3)
    full = squares[squares.min(2).max(1) < 250]
    colours = np.sort(full @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32))
    return bool(((np.diff(colours) > 0).sum(1) >= 7).sum() < 0.1 * len(squares))
