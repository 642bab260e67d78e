"""benchmarks/training.py: its peers train, its rows are what its rounds measured, and none is lost."""

import json
import sys

import pytest
import torch
from conftest import script

from i2sb_lib.config import config_hash
from i2sb_lib.degradations import create_degradation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def training():
    return script("training")


@pytest.fixture
def bench(training, tmp_path, monkeypatch, capsys):
    """Run the smoke test with these arguments; returns what it printed and its record."""
    monkeypatch.setattr(training, "pictures", lambda source: ("noise", training.smooth(4)))

    def run(*args):
        command = ["training.py", "--quick", "--seconds", "0", "--rounds", "2", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [*command, *args])
        training.main()
        return capsys.readouterr().out, json.loads((tmp_path / "metrics.json").read_text())

    return run


def test_a_quick_run_measures_every_peer(bench):
    printed, record = bench("--profile", "--sweep", "2")
    rows = {(r["kind"], r["peer"], r["batch_size"]): r for r in record["results"]}
    peers = [("peers", p, 4) for p in ("ours", "bare", "report", "published")]
    assert sorted(rows) == sorted([*peers, ("sweep", "ours", 2)])
    assert len(printed.splitlines()) > len(rows)
    for r in rows.values():
        assert r["fastest"] <= r["seconds_a_step"] <= r["slowest"]
        assert r["images_per_second"] == pytest.approx(r["batch_size"] / r["seconds_a_step"], rel=1e-4)
    overhead = 1 / rows["peers", "bare", 4]["times_ours"] - 1
    assert record["overhead"]["unet-tiny, 4"] == pytest.approx(overhead, abs=1e-3)
    shares = record["profile"]["shares"]
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    parts = "convolution, backward", "batch making", "optimiser", "weight average"
    assert min(shares[part] for part in parts) > 0
    assert record["config_hash"] == config_hash(record["config"])


def test_a_step_that_is_replayed_is_a_step_of_ours(training, bench, tmp_path):
    _, record = bench("--peers", "ours", "captured")
    assert [r["peer"] for r in record["results"]] == ["ours", "captured"]
    config = training.TrainConfig(network="unet-tiny", size=16, batch_size=4, holdout=1, out=str(tmp_path))
    images = training.F.interpolate(training.smooth(8).float(), size=(16, 16)).byte()
    plain, replayed = training.Ours(config, images), training.Replayed(config, images, "captured")
    for _ in range(2):
        plain.step()
        replayed.step()
    assert replayed.run.step == 2
    torch.testing.assert_close(replayed.run.pending, plain.run.pending, rtol=0, atol=1e-3)


def test_what_was_measured_outlives_what_is_not(training, bench, tmp_path, monkeypatch):
    """The second round of the second peer ends the run: the first round stands in the record."""
    timed, calls = training.timed, []

    def ends(loop, steps):
        calls.append(loop.name)
        if calls.count("report") == 6:  # three times in the warm-up at most, then one by round
            raise KeyboardInterrupt
        return timed(loop, steps)

    monkeypatch.setattr(training, "timed", ends)
    with pytest.raises(KeyboardInterrupt):
        bench("--peers", "ours", "report", "--rounds", "9")
    rows = json.loads((tmp_path / "metrics.json").read_text())["results"]
    assert [r["peer"] for r in rows] == ["ours", "report"]
    assert 0 < rows[0]["rounds"] == rows[1]["rounds"] < 9


def test_a_peer_that_cannot_be_had_is_named_and_the_others_go_on(training, bench, monkeypatch):
    def refuses(*args):
        raise RuntimeError("out of memory, says the test")

    monkeypatch.setattr(training, "Bare", refuses)
    _, record = bench("--peers", "ours", "bare")
    assert [r["peer"] for r in record["results"]] == ["ours"]
    assert record["skipped"] == [
        {"what": "peers: unet-tiny, batch 4, bare", "why": "out of memory, says the test"}
    ]


def test_the_peers_blur_is_the_library_s(training):
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.allclose(training.blur(x), create_degradation("blur-gauss")(x), atol=1e-5)


@pytest.mark.parametrize("peer", ["report", "published"])
def test_the_peers_learn_and_their_workers_end(training, tmp_path, peer):
    """Not that they are fast: that what is timed is training."""
    config = training.TrainConfig(network="unet-tiny", size=32, batch_size=8)
    files = training.write(training.smooth(4), tmp_path)
    torch.manual_seed(0)
    loop = {"report": training.Report, "published": training.Published}[peer](config, files, 1)
    for group in loop.optimizer.param_groups:
        group["lr"] = 2e-3
    x0 = torch.stack([loop.loader.dataset[k] for k in range(4)])

    def loss():  # of one batch, at one time and with one noise, by a step that changes nothing
        rates = [(group, group["lr"]) for group in loop.optimizer.param_groups]
        for group, _ in rates:
            group["lr"] = 0.0
        with torch.random.fork_rng():
            torch.manual_seed(1)
            value = loop.descend(torch.tensor([500]), x0)
        for group, rate in rates:
            group["lr"] = rate
        return value

    before, first = [p.detach().clone() for p in loop.net.parameters()], loss()
    with training.turn(loop):
        for _ in range(12):
            loop.step()
    assert loop.batches is None
    assert loss() < 0.9 * first
    if peer == "published":  # after the weights, and behind them
        moved = [(slow - old).norm() for old, slow in zip(before, loop.average, strict=True)]
        least = [(now - old).norm() for old, now in zip(before, loop.net.parameters(), strict=True)]
        assert 0 < sum(moved) < 0.2 * sum(least)


def test_one_t_for_the_report_and_one_for_each_image_of_the_published(training, tmp_path):
    config = training.TrainConfig(network="unet-tiny", size=32, batch_size=8)
    files = training.write(training.smooth(2), tmp_path)
    for kind, count in ((training.Report, 1), (training.Published, 8)):
        loop, seen = kind(config, files, 0), []
        loop.descend = lambda k, x0, seen=seen: seen.append((len(k), len(x0)))
        with training.turn(loop):
            loop.step()
        assert seen == [(count, 8)]
