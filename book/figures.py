"""Figures that move: a matplotlib figure, and over it what the reader's controls choose.

In a notebook: from figures import dots, lines, moving, pictures
"""

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from PIL import Image

FIGURES = (Path(__file__).parent / "_static" / "figures.js").read_text()

MOVING = Template("""<div id="$name" role="group" aria-label="Interactive figure"
 style="background:#fff;color:#222;border-radius:6px;padding:6px;max-width:760px;font:14px sans-serif">
<div style="position:relative"><img src="$still" alt="$label" style="width:100%;display:block">
<canvas style="position:absolute;left:0;top:0;width:100%;pointer-events:none"></canvas></div>
<div style="display:flex;flex-wrap:wrap;gap:4px 18px;align-items:center">$controls</div>
<output class="says" style="display:block;min-height:1.4em"></output></div>
<script>($script)("$name", $data);</script>""")


class Layer(NamedTuple):
    """What moves over a figure: made by `dots`, `lines` and `pictures`."""

    kind: str
    ax: Any
    values: np.ndarray
    look: dict[str, Any]

    def still(self, at: tuple[int, ...]) -> list[Any]:
        """matplotlib's artists of one state."""
        value = self.values[tuple(0 if n == 1 else i for i, n in zip(at, self.values.shape, strict=False))]
        colour, alpha, size = (self.look.get(k) for k in ("colour", "alpha", "size"))
        if self.kind == "pictures":
            return [self.ax.imshow(value)]
        style = {"color": colour, "alpha": alpha, "zorder": 5}
        if self.kind == "dots":
            return self.ax.plot(*value.T, "o", ms=size, mew=0, **style)
        return [
            artist
            for each in value
            for artist in self.ax.plot(*each.T, lw=size, solid_capstyle="butt", **style)
        ]

    def data(self, controls: int, dpi: float, height: float) -> dict[str, Any]:
        """What the script draws: places in eighths of the figure's pixels, pictures one below the other."""
        left, bottom, width, tall = self.ax.bbox.bounds
        shape, inner = self.values.shape[:controls], self.values.shape[controls:]
        out: dict[str, Any] = {"kind": self.kind, "shape": shape}
        out |= {"box": [left, height - bottom - tall, width, tall]}
        out |= self.look | {"size": self.look.get("size", 1) * dpi / 72}
        if self.kind == "pictures":
            strip = self.values.reshape(-1, *inner[1:])
            return out | {"height": inner[0], "width": inner[1], "data": webp(Image.fromarray(strip))}
        places = self.ax.transData.transform(self.values.reshape(-1, 2))
        places[:, 1] = height - places[:, 1]
        places = np.clip(8 * (places + 2048), 0, 65535).round().astype("<u2")
        return out | {
            "count": inner[0],
            "length": inner[-2],
            "data": base64.b64encode(places.tobytes()).decode(),
        }


def dots(ax: Any, points: Any, colour: str, size: float = 5, alpha: float = 1) -> Layer:
    """Points (*controls, N, 2) in the coordinates of `ax`, of `size` typographic points."""
    return Layer("dots", ax, np.asarray(points, float), {"colour": colour, "size": size, "alpha": alpha})


def lines(ax: Any, x: Any, y: Any, colour: str, size: float = 1.5, alpha: float = 1) -> Layer:
    """Curves (*controls, M, n), M at a time; x may be what they have in common."""
    values = np.stack(np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float)), -1)
    return Layer("lines", ax, values, {"colour": colour, "size": size, "alpha": alpha})


def pictures(ax: Any, images: Any) -> Layer:
    """Images (*controls, 3, H, W) in [-1, 1], clipped; they fill `ax`."""
    values = torch.as_tensor(images).float().clamp(-1, 1).add(1).mul(127.5).round()
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return Layer(
        "pictures", ax, values.byte().movedim(-3, -1).contiguous().numpy(), {"colour": "#000", "alpha": 1}
    )


def webp(image: Image.Image, lossless: bool = True) -> str:
    """An image as an address that holds it."""
    image.save(file := io.BytesIO(), "webp", lossless=lossless, quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def rendered(fig: Any, dpi: float) -> Image.Image:
    """The whole figure, uncut: places are counted from its corner."""
    with plt.rc_context({"savefig.bbox": None}):
        fig.savefig(file := io.BytesIO(), dpi=dpi)
    return Image.open(file).convert("RGB")


def moving(
    name: str,
    fig: Any,
    label: str,
    controls: dict[str, Sequence[str]],
    layers: Sequence[Layer],
    says: Sequence[str] = (),
    first: Sequence[int] | None = None,
    pace: int = 0,
    dpi: float = 150,
) -> None:
    """Show a matplotlib figure over which `layers` move with the controls, and close it.

    controls: name -> its states in words; a list is a slider, a tuple a choice. The leading axes of a layer's
    values are the controls', in order; 1 where a control does not matter. The axes' limits must be set.
    says: a line for each state, the last control fastest. first: the states shown at first, which are also
    the still picture wherever no script runs. pace: milliseconds a state for a button that plays the first
    control; 0 is none. label: what is seen, for a screen reader.
    """
    first, shape = tuple(first or [0] * len(controls)), [len(states) for states in controls.values()]
    for kind, values in [(layer.kind, layer.values) for layer in layers]:
        if any(n not in (1, m) for n, m in zip(values.shape, shape, strict=False)):
            raise ValueError(f"{name}: expected {kind} for the states {shape}, got values of {values.shape}")
    if len(says) not in (0, np.prod(shape)):
        raise ValueError(f"{name}: expected a line for each of {np.prod(shape)} states, got {len(says)}")
    shown = [artist for layer in layers for artist in layer.still(first)]
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    fig.set_dpi(dpi)
    fig.draw_without_rendering()
    still = rendered(fig, dpi)
    for artist in shown:
        artist.set_visible(False)
    height, words = fig.bbox.height, [list(map(str, states)) for states in controls.values()]
    data = {
        "base": webp(rendered(fig, dpi)),
        "shape": shape,
        "words": words,
        "says": list(says),
        "pace": pace,
        "layers": [layer.data(len(controls), dpi, height) for layer in layers],
    }
    plt.close(fig)
    knobs = [knob(*it, at) for it, at in zip(controls.items(), first, strict=True)]
    html = MOVING.substitute(
        name=name,
        label=escape(label),
        still=webp(still, lossless=False),
        controls="".join(['<button type="button">play</button>'] * bool(pace) + knobs),
        script=FIGURES.split("\n", 2)[2].strip(),
        data=json.dumps(data, separators=(",", ":")),
    )
    still.save(file := io.BytesIO(), "png", dpi=(dpi, dpi))
    bundle = {"text/html": html, "text/plain": f"[interactive figure: {label}]"}
    display(bundle | {"image/png": base64.b64encode(file.getvalue()).decode()}, raw=True)


def knob(name: str, states: Sequence[str], at: int) -> str:
    """A slider, or a choice where the states are a tuple."""
    if isinstance(states, tuple):
        options = "".join(
            f'<option value="{i}"{" selected" * (i == at)}>{escape(s)}</option>' for i, s in enumerate(states)
        )
        return f"<label>{escape(name)} <select>{options}</select></label>"
    size = max(len(str(s)) for s in states)
    return (
        f'<label style="flex:1 1 14em;display:flex;gap:8px;align-items:center">{escape(name)} '
        f'<input type="range" min="0" max="{len(states) - 1}" value="{at}" style="flex:1">'
        f'<span style="min-width:{size * 0.6:.1f}em">{escape(str(states[at]))}</span></label>'
    )
