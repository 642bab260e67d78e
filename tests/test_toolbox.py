"""What the chapters share: the tests of samples tell right from wrong, and the figures are well formed."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from conftest import script
from scipy import stats

from i2sb_lib.gaussian_mixtures import Mixture

TOOLBOX = script("toolbox", "book")


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


def test_a_player_holds_its_frames_and_says_what_it_shows(monkeypatch):
    shown = []
    monkeypatch.setattr(TOOLBOX, "display", lambda data, raw: shown.append(data))
    points = np.stack([np.full((4, 2), v) for v in (-1.0, 0.0, 1.0)])
    panels = {"left": ("#000", points), "right": ("#fff", points[::-1])}
    TOOLBOX.clouds("anim-x", "Two clouds", ["a", "b", "c"], panels, reach=1.0)
    ((html, plain),) = [(d["text/html"], d["text/plain"]) for d in shown]
    assert plain == "[interactive figure: Two clouds]"
    assert 'aria-label="Two clouds"' in html
    data = json.loads(re.search(r"const D = (.*?), el = ", html).group(1))
    assert data["n"] == 4
    assert [t for t, _ in data["panels"]] == ["left", "right"]
    assert len(data["says"]) == 3
    decoded = np.frombuffer(base64.b64decode(data["bytes"]["0"]), np.uint8)
    assert decoded.reshape(3, 4, 2)[:, 0, 0].tolist() == [0, 128, 255]
