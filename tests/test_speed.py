"""The scripts that compare speeds run, and what their fast ways give is what the plain ones do."""

import json
import math
import re
import sys

import pytest
import torch
from conftest import ROOT, script

from i2sb_lib import restoration
from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.data import load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.images import to_float
from i2sb_lib.samplers import generators, sample

pytestmark = pytest.mark.slow


@pytest.fixture
def scripts(monkeypatch):
    """The folder of the scripts is where they find each other; they set one thread."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    threads = torch.get_num_threads()
    yield script
    torch.set_num_threads(threads)


@pytest.fixture
def bench(scripts, tmp_path, monkeypatch, capsys):
    """Run a script with --quick; returns what it printed and its record."""

    def run(name, **parts):
        module = scripts(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--out", str(tmp_path / name)])
        for part, replaced in parts.items():
            monkeypatch.setattr(module, part, replaced)
        module.main()
        return capsys.readouterr().out, json.loads((tmp_path / name / "metrics.json").read_text())

    return run


def test_the_grid_solver_is_measured_beside_pot_s(bench):
    pytest.importorskip("ot")
    out, record = bench("solving")
    assert [r["nodes"] for r in record["results"]] == [16**2, 24**2]
    for r in record["results"]:
        assert r["l1_error_of_dense"] < 2e-8  # POT's iteration is ours, and as many are enough
        assert r["iterations"]["ours"] < r["iterations"]["plain"] / 3
        assert r["l1_difference_of_the_densities_at_half_time"] < 1e-7
    assert "dense" in out


def test_metrics_called_image_by_image_are_those_of_evaluate(bench, lpips_weights):
    pytest.importorskip("torchmetrics")
    out, record = bench("evaluating")
    (row,) = record["results"]["parts"]
    assert row["largest_relative_difference"] < 1e-5
    assert set(row["seconds"]) == {"naive", "first", "ours"}
    assert "naive / ours" in out


def test_restoring_is_measured_beside_the_published_sampler(bench, lpips_weights):
    started = []
    out, record = bench("restoring", start=started.append)  # no process
    assert ["i2sb_lib" in code for code in started] == [False, True]
    rows = {r["walk"]: r for r in record["results"]["walks"]["walks"]}
    assert rows["published"]["calls"] == 6
    assert [rows[k]["calls"] for k in ("ours", "ours 10", "student")] == [5, 10, 1]
    for r in rows.values():
        assert r["psnr"] > 25
        assert math.isfinite(r["lpips"])
    assert "first image after a cold start" in out


def test_bench_quick_has_every_script_that_can_be_quick():
    quick = [f.stem for f in (ROOT / "benchmarks").glob("*.py") if "args.quick" in f.read_text()]
    (named,) = re.findall(r"for name in (.*); do", (ROOT / "Makefile").read_text())
    assert set(named.split()) == set(quick) - {"timing", "fuzz"}  # a module, and no matter of speed


def test_operators_are_measured_beside_deepinv_s_where_it_is(bench):
    pytest.importorskip("deepinv")
    _, record = bench("operators")
    (row,) = record["results"]
    assert row["blur"]["largest_difference"] < 1e-5
    assert row["adjoint"]["largest_difference"] < 1e-5
    assert row["inverse"]["psnr_ours"] > 30


def test_a_quick_run_leaves_the_records_alone(scripts, monkeypatch):
    timing = scripts("timing")
    args = timing.options("A line.", "solving").parse_args(["--quick"])
    monkeypatch.setattr(timing, "atomic_write", lambda *a: pytest.fail("wrote a record"))
    timing.write(args, {}, {})


def test_turns_alternate_and_a_ratio_is_of_pairs(monkeypatch):
    timing, order, now = script("timing"), [], [0.0]
    monkeypatch.setattr(timing, "clock", lambda: now[0])

    def call(name, *seconds):
        left = iter(seconds)

        def run():
            order.append(name)
            now[0] += next(left)

        return run

    found = timing.turns(3, a=call("a", 9, 1, 2, 3), b=call("b", 9, 2, 8, 9))
    assert order == ["a", "b"] * 4
    assert found == {"a": [1, 2, 3], "b": [2, 8, 9]}
    assert timing.ratio(found, "b", "a") == 3


@pytest.fixture(scope="module")
def degraded() -> torch.Tensor:
    x0 = to_float(load_images("embedded", "test", 64)[:2])
    return create_degradation("blur-gauss", quantise=True)(x0)


def test_the_published_walk_is_the_library_s(scripts, degraded):
    """With the same noise: its table of the bridge, its layout and its loop give what `sample` gives."""
    restoring = scripts("restoring")
    model, peer = (load_pretrained(restoring.FLAGSHIP, "cpu").denoiser for _ in range(2))
    g = model.guess(degraded)
    torch.manual_seed(3)
    theirs = restoring.published(model, restoring.plain(peer.net), degraded, 5)
    torch.manual_seed(3)
    with torch.no_grad():
        own = sample(lambda xt, t: model(xt, t, degraded, g).clamp(-1, 1), model.bridge, degraded, 5).x
    assert float((theirs - own).abs().max()) < 1e-5


@pytest.mark.parametrize(("precision", "bound"), [("no", 1e-5), ("fp16", 0.05), ("bf16", 0.3)])
def test_the_fast_ways_of_restore_give_what_the_plain_one_gives(precision, bound, degraded, monkeypatch):
    """Root mean square in grey levels: together and in each precision against one by one in float32."""
    monkeypatch.setattr(restoration, "auto_precision", lambda device: precision)
    model = load_pretrained("celeba64-deblur", "cpu")
    got = model.restore(degraded, 2, seed=[1, 2])
    for k, x1 in enumerate(degraded.split(1)):
        with torch.no_grad():
            plain = model.denoiser, x1, model.denoiser.guess(x1)
            walk = sample(
                lambda xt, t, p=plain: p[0](xt, t, p[1], p[2]), model.denoiser.bridge, x1, 2,
                generator=generators([k + 1], 1),
            )  # fmt: skip
        gap = 127.5 * float((got[k] - walk.x[0].clamp(-1, 1)).square().mean().sqrt())
        assert gap < bound
        assert precision == "no" or gap > 1e-4  # it was not float32 after all


def test_normalisations_are_measured_beside_each_other(bench, monkeypatch):
    module = script("search")
    monkeypatch.setattr(module, "measures", lambda x, x0: {"psnr": float((x - x0).square().mean())})
    monkeypatch.setitem(sys.modules, "search", module)
    out, record = bench("normalisation")
    assert set(record["results"]["step"]["seconds"]) == {"group", "bfloat16", "layer", "none"}
    rows = record["results"]["trainings"]
    assert [r["kind"] for r in rows] == ["group", "layer"]
    assert rows[0]["sde-1"] != rows[1]["sde-1"]
    assert "times as fast" in out
