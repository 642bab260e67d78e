"""What the chapters share: the tests of samples tell right from wrong, and the figures are well formed."""

import base64
import io
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import ROOT, script
from PIL import Image
from scipy import stats

from i2sb_lib.gaussian_mixtures import Mixture

TOOLBOX, FIGURES = script("toolbox", "book"), script("figures", "book")
INTERACTIVE = script("interactive", "tests/browser")


def test_normal_is_scipys_density_for_arrays_and_tensors():
    x = np.linspace(-3, 3, 7)
    ours = TOOLBOX.normal(x, 0.5, 0.3)
    np.testing.assert_allclose(ours, stats.norm.pdf(x, 0.5, 0.3**0.5), rtol=1e-13)
    torch.testing.assert_close(TOOLBOX.normal(torch.tensor(x), 0.5, 0.3), torch.tensor(ours))


def test_ks_and_a_cdf_on_a_grid_tell_a_law_from_a_shifted_one():
    law, nodes = Mixture([0.7, 0.3], [-1, 1], [0.1, 0.2]), torch.linspace(-4, 4, 2001).double()
    sample = law.sample(20_000, TOOLBOX.seeded(0))[:, 0]
    on_grid = TOOLBOX.cdf_on(nodes, 3 * law.log(nodes[:, None]).exp())
    assert TOOLBOX.ks(sample, law) == pytest.approx(TOOLBOX.ks(sample, on_grid), abs=1e-3)
    assert TOOLBOX.ks(sample, law) >= 0.01 > TOOLBOX.ks(sample + 0.05, law)


def test_chi_square_is_pearsons_and_pools_rare_cells():
    counts, expected = [48, 35, 15, 2, 0], np.array([50, 30, 12, 5, 3])
    pooled = stats.chisquare([48, 35, 15, 2], [50, 30, 12, 8]).pvalue
    assert TOOLBOX.chi_square(counts, expected / 7) == pytest.approx(pooled)
    all_large = stats.chisquare([60, 40], [50, 50]).pvalue
    assert TOOLBOX.chi_square([60, 40], [1, 1]) == pytest.approx(all_large)


def test_grade_waits_for_an_answer_and_tells_right_from_wrong(capsys):
    truth = torch.tensor([1.0, 2.0])
    TOOLBOX.grade("ex-a", None, truth, 0.1, "error")
    assert "write your answer" in capsys.readouterr().out
    TOOLBOX.grade("ex-a", truth + 0.05, truth, 0.1, "error")
    assert capsys.readouterr().out == "✓ ex-a: error ≤ 0.1\n"
    with pytest.raises(AssertionError, match=r"0\.2, expected ≤ 0\.1"):
        TOOLBOX.grade("ex-a", truth + 0.2, truth, 0.1, "error")


def test_the_examples_are_laws():
    for bridge in (TOOLBOX.two_humps(), TOOLBOX.ring_to_moons()):
        masses = [float(bridge.q(t).weights.sum()) for t in (0.0, 0.5, 1.0)]
        assert masses == pytest.approx([1, 1, 1])
    assert float(TOOLBOX.half_moons().weights.sum()) == pytest.approx(1)


def shown_by(monkeypatch, *args, **options):
    """What `moving` shows of a figure: (the bundle, the data of its script)."""
    shown = []
    monkeypatch.setattr(FIGURES, "display", lambda data, raw: shown.append(data))
    FIGURES.moving(*args, **options)
    (bundle,) = shown
    return bundle, json.loads(re.search(r'\)\("fig-x", (\{.*\})\);</script>', bundle["text/html"])[1])


def axes():
    fig, ax = plt.subplots(figsize=(4, 3))
    ax.set(xlim=(0, 1), ylim=(0, 2))
    return fig, ax


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text.split(",")[-1]))).convert("RGB"))


def test_a_moving_figure_draws_where_matplotlib_does(monkeypatch):
    """The script's places are those of the same dots in the still picture."""
    fig, ax = axes()
    points = np.array([[[[0.25, 0.5]]], [[[0.75, 1.5]]]])  # two states, one that does not matter, one dot
    controls, at = {"time": ["0", "1"], "who": ("a", "b")}, FIGURES.dots(ax, points, "#ff0000", size=8)
    bundle, data = shown_by(monkeypatch, "fig-x", fig, "A dot & more", controls, [at], first=[1, 0])
    assert bundle["text/plain"] == "[interactive figure: A dot & more]"
    assert 'alt="A dot &amp; more"' in bundle["text/html"]
    (layer,) = data["layers"]
    assert (data["shape"], layer["shape"], layer["count"]) == ([2, 2], [2, 1], 1)
    places = np.frombuffer(base64.b64decode(layer["data"]), "<u2").reshape(2, 2) / 8 - 2048
    still, base = pixels(bundle["image/png"]), pixels(data["base"])
    red = np.argwhere((still == [255, 0, 0]).all(-1)).mean(0)[::-1]
    np.testing.assert_allclose(places[1], red + 0.5, atol=1)
    assert not (base == [255, 0, 0]).all(-1).any()
    assert layer["box"][0] < places[0, 0] < places[1, 0] < sum(layer["box"][::2])


def test_a_moving_figure_holds_its_pictures_one_below_the_other(monkeypatch):
    images = torch.linspace(-1, 1, 3)[:, None, None, None].expand(3, 3, 5, 4)
    fig, ax = axes()
    controls = {"step": ["0", "1", "2"]}
    bundle, data = shown_by(
        monkeypatch, "fig-x", fig, "x", controls, [FIGURES.pictures(ax, images)], list("abc")
    )
    (layer,) = data["layers"]
    strip = pixels(layer["data"])
    assert (layer["height"], layer["width"], strip.shape) == (5, 4, (15, 4, 3))
    assert strip[::5, 0, 0].tolist() == [0, 128, 255]
    assert '<input type="range" min="0" max="2" value="0"' in bundle["text/html"]


def test_a_moving_figure_refuses_values_for_other_states():
    fig, ax = axes()
    curve = FIGURES.lines(ax, np.arange(3), np.zeros((4, 1, 3)), "#000")
    with pytest.raises(
        ValueError, match=r"expected lines for the states \[2\], got values of \(4, 1, 3, 2\)"
    ):
        FIGURES.moving("fig-x", fig, "x", {"a": ["0", "1"]}, [curve])
    with pytest.raises(ValueError, match="expected a line for each of 2 states, got 3"):
        FIGURES.moving("fig-x", fig, "x", {"a": ["0", "1"]}, [], ["a", "b", "c"])


def test_the_shared_script_stands_in_every_figure_and_asks_for_nothing(monkeypatch):
    fig, _ = axes()
    bundle, _ = shown_by(monkeypatch, "fig-x", fig, "x", {"a": ["0"], "b": ("u",)}, [], pace=9)
    assert FIGURES.FIGURES.split("\n", 2)[2].strip() in bundle["text/html"]
    assert not re.search(r"https?://|fetch\(|import ", bundle["text/html"])
    assert re.findall(r"<(select|button|input)", bundle["text/html"]) == ["button", "input", "select"]


class Tab:
    """A browser that shows one figure with one slider, which answers each key and click, or none."""

    def __init__(self, alive):
        self.alive, self.count = alive, 0

    def call(self, method, **_):
        self.count += method.startswith("Input.")

    def evaluate(self, script):
        if script == INTERACTIVE.OVER:
            return True
        shown = self.count if self.alive else 0
        if script == INTERACTIVE.SHOWN:
            return [{"name": "fig-x", "ready": True, "text": True, "shown": shown}]
        first = 'querySelectorAll("button, input, select")[0]' in script
        place = {"low": True, "far": 0.95, "focused": True, "named": True, "left": 0, "width": 9, "y": 0}
        return {"kind": "range", **place} if first else None


def test_a_figure_that_does_not_answer_is_seen():
    assert INTERACTIVE.faults_of_figures(Tab(alive=True)) == {"fig-x": []}
    dead = INTERACTIVE.faults_of_figures(Tab(alive=False))
    assert dead == {"fig-x": [f"control 0 does not answer a {what}" for what in ("key", "click")]}


@pytest.mark.parametrize("file", sorted((ROOT / "book").glob("*.ipynb")), ids=lambda f: f.stem)
def test_no_machine_has_to_draw_a_moving_figure_to_the_last_pixel(file):
    """nbval would compare its pictures as text: matplotlib's fonts, and a network's last digits."""
    for cell in json.loads(file.read_text())["cells"]:
        if "data:image/" in str(cell.get("outputs")):
            assert "nbval-ignore-output" in cell["metadata"]["tags"]
            assert len(cell["outputs"]) == 1  # so that nothing else goes unseen
