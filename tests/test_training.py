"""The loop: exact resume after any interruption, any number of processes, and honest refusals."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from conftest import ROOT

from i2sb_lib import training
from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.config import PRESETS, TrainConfig, learning_rate
from i2sb_lib.denoiser import Denoiser
from i2sb_lib.images import open_image, to_float, to_tensor
from i2sb_lib.training import Trainer, TrainingError, train


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    """Where convolutions are deterministic, so that equal means equal."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    PartialState._reset_state()
    yield
    PartialState._reset_state()


ONCE: list[TrainConfig] = []


@pytest.fixture
def unbroken(tiny, tmp_path_factory) -> TrainConfig:
    """What `tiny` describes, trained without interruption: once, so tests only read it."""
    if not ONCE:
        ONCE.append(dataclasses.replace(tiny, out=str(tmp_path_factory.mktemp("unbroken") / "run")))
        train(ONCE[0])
    return ONCE[0]


def changed(config: TrainConfig, name: str = "other", **changes) -> TrainConfig:
    """The config with another output folder, and with changes."""
    return dataclasses.replace(config, **{"out": str(Path(config.out).with_name(name)), **changes})


def state(config: TrainConfig) -> dict:
    return torch.load(Path(config.out) / "state.pt", weights_only=True)


def losses(config: TrainConfig) -> list[float]:
    history = json.loads((Path(config.out) / "history.json").read_text())
    return [line["loss"] for line in history if "loss" in line]


def assert_same_run(a: TrainConfig, b: TrainConfig) -> None:
    assert losses(a) == losses(b)
    parts = ([s["model"], s["ema"], *s["optimizer"]["state"].values()] for s in (state(a), state(b)))
    for one, other in zip(*parts, strict=True):
        assert all(torch.equal(v, other[k]) for k, v in one.items())


def test_a_run_needs_what_it_was_started_from_once(tiny, tmp_path, monkeypatch):
    """Resumed, it has its weights in its state and its moments on record, wherever the first ones went."""
    first = changed(tiny, "first", steps=1, noise=0.3)  # of other moments
    train(first)
    whole, broken = (changed(tiny, name, init=first.out) for name in ("whole", "broken"))
    train(whole)
    with monkeypatch.context() as patch:
        patch.setattr(
            training, "learning_rate", lambda c, step: 1 / 0 if step == 5 else learning_rate(c, step)
        )
        with pytest.raises(ZeroDivisionError):
            train(broken)
    Path(first.out).rename(tmp_path / "elsewhere")
    train(broken, resume=True)
    assert_same_run(whole, broken)
    start, end = (load_pretrained(f).denoiser.config.moments for f in (tmp_path / "elsewhere", broken.out))
    assert start == end
    with pytest.raises(ValueError, match="expected one of"):
        train(changed(tiny, "third", init=first.out))


def test_an_interrupted_run_resumes_to_the_same_bits(tiny, monkeypatch):
    options = {"dropout": 0.3, "noise": 0.05, "degradation": "inpaint-freeform"}  # all that is random
    monkeypatch.setattr(training, "LOG_EVERY", 2)  # a save at step 3 has losses that are not logged yet
    whole, broken = changed(tiny, "whole", **options), changed(tiny, "broken", **options)
    train(whole)
    with monkeypatch.context() as patch:  # step 5 fails, after the state of step 3
        patch.setattr(
            training, "learning_rate", lambda c, step: 1 / 0 if step == 5 else learning_rate(c, step)
        )
        with pytest.raises(ZeroDivisionError):
            train(broken)
    assert state(broken)["step"] == 3
    assert train(broken, resume=True)["finished"]
    assert_same_run(whole, broken)


@pytest.mark.slow
def test_a_batch_in_parts_is_the_same_step(tiny, unbroken, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    whole, parts = (changed(tiny, f"in-{n}", accumulate=n) for n in (1, 4))
    sizes = []
    loss = Denoiser.loss
    monkeypatch.setattr(Denoiser, "loss", lambda self, *a: sizes.append(len(a[0])) or loss(self, *a))
    train(whole), train(parts)
    assert sizes == 9 * [4] + 36 * [1]
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    with pytest.raises(
        TrainingError, match=r"batch_size divisible by 3 \(processes times accumulate\), got 4"
    ):
        train(changed(tiny, "odd", accumulate=3))
    with pytest.raises(TrainingError, match="expected a device that is here, got cuda, not cpu"):
        train(changed(tiny, "gpu", device="cuda"))


@pytest.mark.slow
@pytest.mark.parametrize("cond_x1", [False, True])
def test_without_noise_on_its_path_a_bridge_trains_and_walks_one_way(tiny, cond_x1, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 5)
    config = changed(tiny, ot_ode=True, cond_x1=cond_x1, steps=20, batch_size=8, save_every=20, lr=4e-3)
    assert train(config)["finished"]
    assert losses(config)[-1] < 0.9 * losses(config)[0]
    model = load_pretrained(config.out, "cpu")
    x1 = model.denoiser.operator(to_float(Trainer(changed(config, "again")).held))
    walks = [model.restore(x1, 3, sampler, seed) for sampler in ("sde", "ode", "dbim") for seed in (0, 1)]
    assert all(torch.equal(walk, walks[0]) for walk in walks)
    with pytest.raises(ValueError, match="expected ot_ode with the process bridge, got it with regression"):
        train(changed(config, "third", process="regression"))


@pytest.mark.slow
def test_divergence_stops_with_a_sentence_and_keeps_the_last_good_state(tiny, unbroken, monkeypatch):
    for at, bad in ((4, 1e30), (5, float("nan"))):  # a bad loss; a good loss with bad weights
        with monkeypatch.context() as patch:
            patch.setattr(
                training,
                "learning_rate",
                lambda c, k, at=at, bad=bad: bad if k == at else learning_rate(c, k),
            )
            with pytest.raises(TrainingError, match=r"before step 6.*state\.pt"):
                train(tiny, resume=at > 4)
        assert state(tiny)["step"] == 3
        weights = load_pretrained(tiny.out).denoiser.state_dict().values()
        assert all(v.isfinite().all() for v in weights)
    train(tiny, resume=True)
    assert_same_run(tiny, unbroken)


BAD = ["holdout 0", "accumulate 0", "device 'tpu'", "eval_every 0",
       "batch_size -4", "steps -5", "clip 0.0", "tikhonov -1.0", "ema 2.0",
       "seed None", "lr float('nan')", "noise float('inf')", "steps 2.5", "size '64'", "minutes '5'",
       "compile 'no'", "process 'gan'", "precision 'fp8'", "data None", "degradation_options 7",
       "steps True", "lr True", "ot_ode 'no'", "size ()",
       "seed 2**63", "steps 10**400", "lr 10**400", "warmup 2**63"]  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_a_configuration_that_cannot_train_is_refused(bad):
    name, value = bad.split()
    with pytest.raises(ValueError, match=f"expected {name} .*got [^\n]*$"):
        TrainConfig(**{name: eval(value)})


def test_finished_weights_are_not_overwritten(tiny):
    Path(tiny.out).mkdir(parents=True)
    (Path(tiny.out) / "model.json").write_text("{}")  # a shipped model, whose state is not there
    with pytest.raises(TrainingError, match="holds a run"):
        train(tiny)
    assert (Path(tiny.out) / "model.json").read_text() == "{}"


@pytest.mark.slow
def test_a_time_limit_leaves_a_state_that_resumes_in_a_later_version_too(tiny, unbroken):
    result = train(limited := changed(tiny, minutes=0.0))
    assert (result["finished"], result["step"]) == (False, 1)
    saved, path = state(limited), Path(limited.out) / "state.pt"
    old = {k: v for k, v in saved["config"].items() if k not in ("tikhonov", "dropout")}  # fields came later
    torch.save({**saved, "config": old, "scaler": None}, path)  # and None was what is an empty state now
    assert train(dataclasses.replace(limited, minutes=None), resume=True)["finished"]
    assert_same_run(unbroken, limited)


def test_runs_that_must_not_go_on_are_refused(tiny, unbroken, monkeypatch):
    before = (Path(unbroken.out) / "state.pt").read_bytes()
    with pytest.raises(TrainingError, match="holds a run; give --resume"):
        train(unbroken)
    monkeypatch.setattr(training, "fingerprint", lambda images: "another")
    with pytest.raises(TrainingError, match="other images"):
        train(unbroken, resume=True)
    with pytest.raises(TrainingError, match=r"at least 28 images \(holdout \+ batch_size\), got 24"):
        train(changed(tiny, batch_size=24))
    assert (Path(unbroken.out) / "state.pt").read_bytes() == before


@pytest.mark.parametrize(
    "process", ["bridge", *(pytest.param(p, marks=pytest.mark.slow) for p in ("regression", "diffusion"))]
)
def test_the_loss_falls_for_the_bridge_and_its_baselines(tiny, process, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 5)
    config = changed(tiny, process=process, steps=20, batch_size=8, save_every=20, lr=4e-3)
    assert train(config)["finished"]
    assert losses(config)[-1] < 0.9 * losses(config)[0]
    run = Trainer(changed(config, "again"))
    model, x1 = load_pretrained(config.out, "cpu"), run.degrade(to_float(run.held))
    noisy = not torch.equal(model.restore(x1, nfe=1, seed=1), model.restore(x1, nfe=1, seed=2))
    assert noisy == (process == "diffusion")  # it starts at noise
    if process == "regression":
        with pytest.raises(ValueError, match=r"one network call \(nfe 1, power 1\), got nfe=2"):
            model.restore(x1, nfe=2)


def test_ema_and_moments_equal_their_formulas(tiny):
    run = Trainer(changed(tiny, ema=0.15))
    slow = [p.detach().double() for p in run.ema.parameters()]
    for k in range(4):
        run.optimise()
        decay = min(0.15, (1 + k) / (10 + k))
        fast = [p.detach() for p in run.model.parameters()]
        slow = [decay * s + (1 - decay) * p for s, p in zip(slow, fast, strict=True)]
    got = [p.double() for p in run.ema.parameters()]
    assert all(torch.allclose(s, p, atol=1e-6) for s, p in zip(slow, got, strict=True))
    x0 = run.batches.clean(torch.arange(20)).double()
    x1 = run.degrade(x0)
    restated = [float((a * b).mean()) for a, b in ((x0, x0), (x1, x1), (x0, x1))]
    assert run.model.config.moments == pytest.approx(restated, abs=6e-5)


def test_learning_rate_warms_up_and_falls_to_zero():
    config = TrainConfig(lr=2.0, warmup=10, steps=110)
    assert [learning_rate(config, k) for k in (0, 4, 9, 60, 110)] == pytest.approx([0.2, 1, 2, 1, 0])


RECIPES = {f"celeba64-deblur{kind}": f"celeba64-deblur{kind}-small" for kind in ("", "-blind", "-noisy")}
RECIPES |= {
    f"celeba64-deblur-{kind}": f"celeba64-deblur-{kind}"
    for kind in ("long", "blind-full", "blind-longer", "blind-long")
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_preset_is_the_recipe_of_the_recorded_weights(name):
    record = json.loads((ROOT / "data" / "runs" / name / "metrics.json").read_text())["checkpoint"]
    preset = dataclasses.asdict(PRESETS[RECIPES[name]])
    preset["init"] = Path(preset["init"]).name
    other = {"data", "out", "save_every", "eval_every", "progress"}  # where, and what was kept and shown
    assert {k: preset[k] for k in record["training"].keys() - other} == {
        k: v for k, v in record["training"].items() if k not in other
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_takes_a_step(name, tiny):
    names = ("out", "data", "size", "network", "batch_size", "accumulate", "holdout", "precision", "compile")
    run = Trainer(dataclasses.replace(PRESETS[name], init="", **{k: getattr(tiny, k) for k in names}))
    run.optimise()
    assert 0 < run.log()["loss"] < 100


@pytest.mark.slow
def test_bf16_is_close_to_float32_and_tensorboard_is_written(tiny, unbroken):
    train(half := changed(tiny, precision="bf16", tensorboard=True))
    assert losses(half) == pytest.approx(losses(unbroken), rel=0.02)
    assert losses(half) != losses(unbroken)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = Path(half.out).rglob("events.out*")
    log = EventAccumulator(str(events)).Reload()
    assert log.Scalars("loss")[-1].value == pytest.approx(losses(half)[-1])
    assert {"lr", "psnr_input", "psnr_1", "psnr_10"} <= set(log.Tags()["scalars"])


def test_metrics_along_the_way_begin_with_those_of_the_input(tiny):
    """By which the others are judged; where an image has no damage at all, there is no such number."""
    x0 = torch.randint(0, 255, (8, 3, 16, 16), dtype=torch.uint8)
    found = Trainer(tiny, images=x0, targets=x0 + 1).monitor()
    assert list(found) == ["step", "psnr_input", "psnr_1", "psnr_10"]
    assert found["psnr_input"] == pytest.approx(20 * math.log10(255), abs=1e-3)
    assert "psnr_input" not in Trainer(changed(tiny, degradation="none"), images=x0).monitor()


@pytest.mark.parametrize("killed_at", [2, 8])
@pytest.mark.parametrize(("name", "at"), [("psnr_1", 2), ("psnr_10", 6)])
def test_the_best_weights_along_the_way_are_kept(tiny, name, at, killed_at, monkeypatch):
    """Those of step 2 by one call's PSNR, of step 6 by ten's, whatever came after, and after a kill, too."""
    course, measured = {2: (33, math.nan), 4: (30, 21), 6: (32, 22), 8: (31, 21.5), 9: (31, 21)}, {}

    def monitor(run, nfe=10):
        measured[run.step] = [v.half().float() for v in run.ema.parameters()]
        found = dict(zip(("psnr_1", "psnr_10"), course[run.step], strict=True))
        run._note({"step": run.step} | found)
        return found

    def killed(run, save=Trainer.save):
        if run.step == killed_at:
            raise SystemExit
        save(run)

    monkeypatch.setattr(Trainer, "monitor", monitor)
    config = changed(tiny, keep_best=name, eval_every=2, save_every=100)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", killed)
        with pytest.raises(SystemExit):
            train(config)
    assert state(config)["step"] == {2: 1, 8: 6}[killed_at]
    with pytest.raises(TrainingError, match=r"another configuration \(keep_best"):
        train(dataclasses.replace(config, keep_best="no"), resume=True)
    train(config, resume=True)
    best = load_pretrained(Path(config.out) / "best", "cpu")
    assert best.record["step"] == at
    for ours, theirs in zip(best.denoiser.parameters(), measured[at], strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-3, atol=1e-6)
    last = load_pretrained(config.out, "cpu")
    assert last.record["step"] == 9
    assert not all(map(torch.equal, last.denoiser.parameters(), measured[at]))


def test_best_weights_take_nothing_s_place_and_a_regression_has_no_walk(tiny):
    (Path(tiny.out) / "best").mkdir(parents=True)
    with pytest.raises(TrainingError, match="expected no best there, which the run would replace"):
        Trainer(dataclasses.replace(tiny, keep_best="psnr_1"))
    Trainer(tiny)
    with pytest.raises(ValueError, match=r"expected keep_best psnr_1 of regressions, got 'psnr_10'"):
        changed(tiny, keep_best="psnr_10", process="regression")


def test_a_contact_sheet_shows_what_no_file_holds(tiny, monkeypatch):
    """Noise leads beyond what a picture holds, and half precision to nan: neither ends a run."""
    config = changed(tiny, noise=1.0, quantise=False, steps=1)
    run = Trainer(config)
    monkeypatch.setattr(run.ema, "forward", lambda x, t, **how: torch.full_like(x, float("nan")))
    run.monitor()
    sheet = to_tensor(open_image(Path(config.out) / "contact_sheet.png")).unflatten(1, (4, -1))
    assert {0, 255} <= set(sheet[:, 1].unique().tolist())  # x1
    assert sheet[:, 2:].unique().tolist() == [128]
