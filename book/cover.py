"""Draw what the book's cover shows, from a simulation and from the records: `python book/cover.py`.

Writes into book/_static/cover: walk.html (the moving picture: walks of a bridge whose denoiser is exact),
results.svg (quality against quality, from data/runs), tree.html (when to use what, as in chapter 12),
faces.jpg, and preview.jpg for links to the book.
"""

import ast
import json
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from i2sb_lib import Bridge, Schedule
from i2sb_lib.gaussian_mixtures import MixturePair
from i2sb_lib.samplers import sample

ROOT = Path(__file__).parent.parent
COVER = Path(__file__).parent / "_static" / "cover"
WIDE, HIGH, LEFT, RIGHT = 720, 260, 90, 630  # the picture, and where t = 1 and t = 0 are
STEPS, WALKS = 90, 42

# Three kinds of clean signal, which the degradation shrinks until they overlap.
WEIGHTS, MEANS, SPREAD, SHRINK, NOISE = (0.35, 0.3, 0.35), (-1.6, 0.1, 1.7), 0.16, 0.22, 0.12


def walks() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(WALKS, STEPS + 1) walks from t = 1 to t = 0, and many ends: clean and degraded, each (N,)."""
    w, m = torch.tensor(WEIGHTS), torch.tensor(MEANS)[:, None]
    pair = MixturePair.degraded(w, m, SPREAD**2 * torch.ones(3, 1, 1), SHRINK * torch.eye(1), NOISE)
    bridge = Bridge(Schedule.constant(0.8))
    _, x1 = pair.sample(WALKS, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(5)
    done = sample(pair.denoiser(bridge), bridge, x1, STEPS, generator=generator, keep=True)
    path = torch.cat([x1[None], torch.stack(list(done.trajectory))[-STEPS:]])[..., 0]
    x0, x1 = pair.sample(20_000, torch.Generator().manual_seed(6))
    return path.T, x0[:, 0], x1[:, 0]


def across(i: float) -> float:
    return LEFT + (RIGHT - LEFT) * i / STEPS


def down(x: Any) -> Any:
    return HIGH / 2 - 50 * x


def density(values: torch.Tensor, at: float, side: int) -> str:
    """A histogram of an end, lying on its side at the abscissa `at`, as an SVG path."""
    grid = torch.linspace(-2.4, 2.4, 97)
    height = torch.exp(-((grid[:, None] - values[None, :4000]) ** 2) / (2 * 0.07**2)).mean(1)
    points = [
        f"{at + side * 62 * h:.1f},{down(g):.1f}" for g, h in zip(grid, height / height.max(), strict=True)
    ]
    return f"M{at},{down(-2.4):.1f} L" + " ".join(points) + f" L{at},{down(2.4):.1f} Z"


def walk_html() -> str:
    """The moving picture: complete without a script; cover.js uncovers it and moves the points."""
    path, x0, x1 = walks()
    ys = down(path).round(decimals=1)
    lines = "".join(
        f'<path d="M{" ".join(f"{across(i):.0f},{y:g}" for i, y in enumerate(row.tolist()))}"/>' for row in ys
    )
    heads = "".join(f'<circle r="3" cx="{RIGHT}" cy="{row[-1]:g}"/>' for row in ys.tolist())
    return f"""<figure class="walk" id="walk">
<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-labelledby="walk-says">
<title id="walk-says">{WALKS} random walks start in one heap of degraded signals at the left and end in three
heaps of clean signals at the right.</title>
<defs><linearGradient id="walk-ink" gradientUnits="userSpaceOnUse" x1="{LEFT}" x2="{RIGHT}">
<stop offset="0" stop-color="#D55E00"/><stop offset="1" stop-color="#0072B2"/></linearGradient>
<clipPath id="walk-seen"><rect x="{LEFT}" y="0" width="{RIGHT - LEFT}" height="{HIGH}"/></clipPath></defs>
<path class="degraded" d="{density(x1, LEFT, -1)}"/><path class="clean" d="{density(x0, RIGHT, 1)}"/>
<g class="lines" clip-path="url(#walk-seen)">{lines}</g><g class="heads">{heads}</g>
<text x="{LEFT}" y="{HIGH - 4}" text-anchor="middle">degraded, t = 1</text>
<text x="{RIGHT}" y="{HIGH - 4}" text-anchor="middle">clean, t = 0</text>
</svg>
<button type="button" hidden>Pause</button>
<figcaption>A bridge at work: {WALKS} degraded signals walk back, {STEPS} steps each, with the exact denoiser.
Where the degradation has merged three kinds of signal, the noise of the walk decides; the ends are
distributed as the clean signals are.</figcaption>
</figure>
<script defer src="_static/cover.js"></script>
"""


SERIES = {  # label: run, calls, colour, where its name stands
    "bridge": ("celeba64-deblur-blind", (1, 2, 5, 10), "#00805E", (16, 4, "start")),
    "bridge, told the blur": ("celeba64-deblur", (1, 2, 5, 10), "#0072B2", (0, -16, "middle")),
    "regression": ("celeba64-deblur-regression", (1,), "#B94F00", (0, -16, "middle")),
    "diffusion": ("celeba64-deblur-diffusion", (10,), "#9C4585", (-22, -16, "start")),
}


def measured(run: str, calls: int) -> dict[str, dict[str, float]]:
    """The metrics of a run after so many calls of its network, ancestral sampling."""
    results = json.loads((ROOT / "data" / "runs" / run / "metrics.json").read_text())["results"]
    return next(r for r in results if r["nfe"] == calls and r["sampler"] in ("sde", "ode"))


def results_svg() -> str:
    """PSNR against LPIPS, each with its interval; the number in a point is the number of network calls."""
    low, high, worst, best = 30.2, 32.8, 0.0122, 0.0066
    x0, x1, y0, y1 = 70, 690, 280, 32

    def x(psnr: float) -> float:
        return x0 + (x1 - x0) * (psnr - low) / (high - low)

    def y(lpips: float) -> float:
        return y1 + (y0 - y1) * (lpips - worst) / (best - worst)

    parts = []
    for value in (30.5, 31, 31.5, 32, 32.5):
        parts.append(f'<path class="grid" d="M{x(value):.1f},{y0}V{y1}"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{y0 + 18}" text-anchor="middle">{value:g}</text>')
    for value in (0.008, 0.010, 0.012):
        parts.append(f'<path class="grid" d="M{x0},{y(value):.1f}H{x1}"/>')
        parts.append(f'<text x="{x0 - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3f}</text>')
    right, top = "PSNR, dB (higher is nearer)", "LPIPS (lower is nearer)"
    parts.append(f'<text x="{x1}" y="{y0 + 36}" text-anchor="end">{right}</text>')
    parts.append(f'<text x="{x0}" y="{y1 - 8}">{top}</text>')
    for label, (run, calls, colour, (dx, dy, anchor)) in SERIES.items():
        rows = [measured(run, n) for n in calls]
        places = [(x(r["psnr"]["value"]), y(r["lpips"]["value"])) for r in rows]
        if len(places) > 1:
            line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for n, row, (a, b) in zip(calls, rows, places, strict=True):
            p, q = row["psnr"], row["lpips"]
            bars = (
                f"M{x(p['low']):.1f},{b:.1f}H{x(p['high']):.1f}M{a:.1f},{y(q['low']):.1f}V{y(q['high']):.1f}"
            )
            parts.append(f'<path d="{bars}" stroke="{colour}" stroke-width="1.5" opacity="0.55"/>')
            parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="9" fill="{colour}"/>')
            parts.append(f'<text class="calls" x="{a:.1f}" y="{b + 4:.1f}" text-anchor="middle">{n}</text>')
        a, b = places[0][0] + dx, places[0][1] + dy
        parts.append(f'<text class="name" x="{a:.1f}" y="{b:.1f}" text-anchor="{anchor}">{label}</text>')
    body = "\n".join(parts)
    return f"""<figure class="glance">
<svg viewBox="0 0 720 330" role="img" aria-labelledby="glance-says">
<title id="glance-says">{described()}</title>
{body}
</svg>
</figure>
"""


def described() -> str:
    """The chart in words, for those who do not see it."""
    said = []
    for label, (run, calls, *_) in SERIES.items():
        for n in calls:
            psnr, lpips = (measured(run, n)[k]["value"] for k in ("psnr", "lpips"))
            said.append(f"{label}, {n} calls: {psnr:.2f} dB, LPIPS {lpips:.4f}")
    return "PSNR against LPIPS. " + "; ".join(said) + "."


def tree_html() -> str:
    """The decision tree of chapter 12, from the cell that draws it, as a list that reads in any width."""
    notebook = json.loads((ROOT / "book" / "12_results.ipynb").read_text())
    cell = next(c for c in notebook["cells"] if c.get("id") == "results-tree")
    body = [node for node in ast.parse("".join(cell["source"])).body if isinstance(node, ast.Assign)]
    value = {node.targets[0].id: node.value for node in body if isinstance(node.targets[0], ast.Name)}

    def words(text: str) -> str:
        return escape(text.replace("\n", " ").replace("$x_1$", "x₁"), quote=False)

    lines = []
    for question, answer, leaf, _ in ast.literal_eval(value["TREE"]):
        on = {"yes": "no", "no": "yes"}[answer]
        ask = f'<span class="ask">{words(question)}</span><span class="way">{answer} →</span>'
        lines.append(f'<li>{ask}<span class="leaf">{words(leaf)}</span><span class="on">{on} ↓</span></li>')
    last = words(ast.literal_eval(value["last"]))
    return "\n".join(
        ['<ol class="tree">', *lines, f'<li><span class="leaf last">{last}</span></li>', "</ol>\n"]
    )


def faces() -> Image.Image:
    """One face four times, side by side: blurred, one call, ten calls, clean."""
    run = ROOT / "data" / "runs" / "celeba64-deblur-blind"
    sheet = Image.open(run / "restored.png").convert("RGB")
    calls = [r["nfe"] for r in json.loads((run / "metrics.json").read_text())["results"]]
    rows, face, size = [1, 1 + calls.index(1), 1 + calls.index(10), 0], 5, 168
    strip = Image.new("RGB", (4 * size + 3 * 8, size), "white")
    for i, row in enumerate(rows):
        left, top = 64 * face + 12, 64 * row + 14
        crop = sheet.crop((left, top, left + 40, top + 40))
        strip.paste(crop.resize((size, size), Image.Resampling.LANCZOS), (i * (size + 8), 0))
    return strip


def preview() -> Image.Image:
    """1200×630 for a link's preview: the walks, the title, the face."""
    import io

    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    path, _, _ = walks()
    fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    ax = fig.add_axes((0, 0.3, 1, 0.42))
    colours = plt.matplotlib.colors.LinearSegmentedColormap.from_list("ends", ["#D55E00", "#0072B2"])
    for row in path.tolist():
        ends = [[(i, row[i]), (i + 1, row[i + 1])] for i in range(STEPS)]
        shades = [colours(i / STEPS) for i in range(STEPS)]
        ax.add_collection(LineCollection(ends, colors=shades, alpha=0.55, linewidth=1.3))
    ax.set(xlim=(-2, STEPS + 2), ylim=(-2.4, 2.4))
    ax.axis("off")
    fig.text(0.04, 0.86, "Image-to-image Schrödinger bridges", fontsize=38, color="#1d2733")
    fig.text(0.04, 0.77, "a book that runs: derived, checked, measured", fontsize=22, color="#48566b")
    image = fig.add_axes((0.04, 0.04, 0.92, 0.24))
    image.imshow(faces())
    image.axis("off")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    plt.close(fig)
    return Image.open(buffer).convert("RGB")


def main() -> None:
    COVER.mkdir(parents=True, exist_ok=True)
    (COVER / "walk.html").write_text(walk_html())
    (COVER / "results.svg").write_text(results_svg())
    (COVER / "tree.html").write_text(tree_html())
    faces().save(COVER / "faces.jpg", quality=90, optimize=True)
    preview().save(COVER / "preview.jpg", quality=88, optimize=True)


if __name__ == "__main__":
    main()
