"""What several chapters share: running examples, tests of samples, and figures that move.

In a notebook: from toolbox import ks, player, two_humps
"""

import base64
import json
import math
from collections.abc import Callable, Sequence
from string import Template
from typing import Any

import numpy as np
import torch
from IPython.display import display

from i2sb_lib import Bridge, Schedule
from i2sb_lib.checks import check
from i2sb_lib.gaussian_mixtures import Mixture, MixtureBridge


def seeded(seed: int) -> torch.Generator:
    """A generator of random numbers on the CPU that starts from `seed`."""
    return torch.Generator().manual_seed(seed)


def normal(x: Any, mean: Any, var: Any) -> Any:
    """Density N(x; mean, var) of numbers; arrays or tensors broadcast."""
    return math.e ** (-((x - mean) ** 2) / (2 * var)) / (2 * math.pi * var) ** 0.5


def half_moons(variance: float = 0.02) -> Mixture:
    """Two interleaved half-moons of twelve Gaussians each: first the upper moon, then the lower."""
    arc = torch.linspace(0, torch.pi, 12, dtype=torch.float64)
    upper = torch.stack([1.4 * arc.cos() - 0.7, 1.4 * arc.sin() - 0.35], 1)
    return Mixture([1 / 24] * 24, torch.cat([upper, -upper]), [variance] * 24)


def two_humps() -> MixtureBridge:
    """The bridge of Chapters 4 to 6: from two humps to three, its potentials known."""
    return MixtureBridge(
        Bridge(Schedule.symmetric(beta_max=3.0, beta_min=0.5)),
        psi_hat0=Mixture([0.6, 0.4], [-1.2, 1.0], [0.10, 0.06]),
        psi1=Mixture([0.3, 0.3, 0.4], [-1.9, 0.1, 1.7], [0.06, 0.03, 0.08]),
    )


def ring_to_moons() -> MixtureBridge:
    """The same in the plane: from eight Gaussians on a ring to two half-moons."""
    angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    ring = 2.2 * torch.stack([angle.cos(), angle.sin()], 1)
    schedule = two_humps().bridge
    return MixtureBridge(schedule, psi_hat0=Mixture([1 / 8] * 8, ring, [0.04] * 8), psi1=half_moons())


def ks(sample: Any, law: Any) -> float:
    """p-value of the Kolmogorov-Smirnov test of numbers (N,) against a law: a Mixture or its cdf."""
    from scipy import stats  # a second, which not every chapter needs

    cdf = getattr(law, "cdf", law)
    return float(stats.kstest(np.asarray(sample), lambda z: np.asarray(cdf(z))).pvalue)


def cdf_on(nodes: Any, density: Any) -> Callable[[Any], np.ndarray]:
    """Distribution function of a density that is given on uniform nodes, normalised."""
    nodes, density = np.asarray(nodes), np.asarray(density)
    half = (nodes[1] - nodes[0]) / 2
    edges = np.append(nodes - half, nodes[-1] + half)
    mass = np.append(0, np.cumsum(density))
    return lambda z: np.interp(z, edges, mass / mass[-1])


def chi_square(counts: Any, expected: Any, least: float = 10) -> float:
    """p-value of Pearson's test of counts against what is expected, up to scale.

    Cells in which fewer than `least` are expected are pooled into one.
    """
    from scipy import stats

    counts, expected = np.asarray(counts).ravel(), np.asarray(expected).ravel()
    expected = expected / expected.sum() * counts.sum()
    small = expected < least
    pooled = [np.append(v[~small], v[small].sum()) if small.any() else v for v in (counts, expected)]
    return float(stats.chisquare(*pooled).pvalue)


def grade(claim: str, answer: Any, truth: Any, at_most: float, what: str) -> None:
    """`check` an exercise's answer by its root mean square distance from the truth; None is no answer yet."""
    if answer is None:
        print(f"{claim}: write your answer above, and run this cell again")
        return
    gap = np.asarray(answer, dtype=float) - np.asarray(truth, dtype=float)
    check(claim, np.sqrt(np.mean(gap**2)), at_most=at_most, what=what)


PLAYER = Template("""<div style="background:#fff;color:#222;border-radius:6px;padding:8px;max-width:700px">
<canvas id="$name" width="1000" height="$height" role="img" aria-label="$label" style="width:100%"></canvas>
<div style="display:flex;gap:10px;align-items:center"><button id="$name-play">play</button>
<input id="$name-k" type="range" min="0" max="$last" value="$first" style="flex:1" aria-label="$slider">
<output id="$name-out" for="$name-k" style="min-width:7em"></output></div></div>
<script>(() => {
const D = $data, el = s => document.getElementById("$name" + s), k = el("-k"), c = el("").getContext("2d");
const u8 = s => Uint8Array.from(atob(s), ch => ch.charCodeAt(0));
const B = Object.fromEntries(Object.entries(D.bytes).map(([key, s]) => [key, u8(s)]));
const paint = () => { const i = +k.value; c.clearRect(0, 0, 1000, $height); c.font = "26px sans-serif";
  el("-out").value = D.says[i]; $draw };
let timer = 0; const stop = () => { clearInterval(timer); timer = 0; el("-play").textContent = "play"; };
el("-play").onclick = () => { if (timer) return stop(); if (+k.value === $last) k.value = 0;
  el("-play").textContent = "pause"; timer = setInterval(() => { k.value = +k.value + 1; paint();
  if (+k.value === $last) stop(); }, 90); };
k.oninput = paint; paint();
})();</script>""")

CLOUDS = """D.panels.forEach(([title, colour], p) => {
c.fillStyle = "#222"; c.fillText(title, 40 + 500 * p, 32); c.strokeStyle = "#bbb";
c.strokeRect(20 + 500 * p, 44, 460, 460); c.fillStyle = colour; for (let n = 0; n < D.n; n++) {
const q = 2 * (i * D.n + n), x = B[p][q], y = B[p][q + 1];
c.fillRect(20 + 500 * p + x * 455 / 255, 499 - y * 455 / 255, 5, 5); } });"""


def as_bytes(values: Any, low: float, high: float) -> str:
    """Values clipped to [low, high], as base64 of one byte each: what a picture needs."""
    scaled = np.clip((np.asarray(values) - low) / (high - low), 0, 1)
    return base64.b64encode(np.round(255 * scaled).astype(np.uint8).tobytes()).decode()


def player(
    name: str,
    label: str,
    slider: str,
    height: int,
    says: Sequence[str],
    arrays: dict[Any, str],
    draw: str,
    first: int = 0,
    **data: Any,
) -> None:
    """Show a canvas, 1000 by `height`, with a slider over the frames and a button that plays them.

    draw: JavaScript that paints frame i on the context c, from the bytes B (of `arrays`, by name) and
    from D (of `data`). says: a line for each frame. label and slider: what a screen reader says.
    """
    content = json.dumps({"bytes": arrays, "says": list(says), **data}, separators=(",", ":"))
    last = len(says) - 1
    html = PLAYER.substitute(
        name=name, label=label, slider=slider, height=height, last=last, first=first, draw=draw, data=content
    )
    display({"text/html": html, "text/plain": f"[interactive figure: {label}]"}, raw=True)


def clouds(
    name: str,
    label: str,
    says: Sequence[str],
    panels: dict[str, tuple[str, Any]],
    reach: float,
    first: int = 0,
) -> None:
    """A player with two scatter plots: title -> (colour, points (frames, N, 2) within ±reach)."""
    points = [np.asarray(p) for _, p in panels.values()]
    arrays = {i: as_bytes(p, -reach, reach) for i, p in enumerate(points)}
    titles = [(title, colour) for title, (colour, _) in panels.items()]
    slider = "progress of both processes"
    player(name, label, slider, 515, says, arrays, CLOUDS, first, panels=titles, n=points[0].shape[1])
