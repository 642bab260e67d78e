"""The loop: exact resume after any interruption, any number of processes, and honest refusals."""

import dataclasses
import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from i2sb_lib import training
from i2sb_lib.batches import Batches
from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.cli import main
from i2sb_lib.config import PRESETS, TrainConfig, learning_rate
from i2sb_lib.degradations import create_degradation
from i2sb_lib.images import to_float
from i2sb_lib.training import Trainer, TrainingError, train


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    """Where convolutions are deterministic, so that equal means equal."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    PartialState._reset_state()
    yield
    PartialState._reset_state()


@pytest.fixture
def script(tmp_path, monkeypatch) -> Path:
    """`i2sb` with a loss in the history for every step, here and in processes that run this file."""
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    (tmp_path / "i2sb.py").write_text(
        "import i2sb_lib.training as t\nt.LOG_EVERY = 1\nfrom i2sb_lib.cli import main\nmain()"
    )
    return tmp_path / "i2sb.py"


def changed(config: TrainConfig, name: str = "other", **changes) -> TrainConfig:
    """The config with another output folder, and with changes."""
    return dataclasses.replace(config, **{"out": str(Path(config.out).with_name(name)), **changes})


def flags(config: TrainConfig) -> list[str]:
    values = {k: v for k, v in vars(config).items() if v != getattr(TrainConfig(), k)}
    named = ([f"--no-{k}"] if v is False else [f"--{k}", str(v)] for k, v in values.items())
    return ["train", *(f.replace("_", "-") if f.startswith("--") else f for pair in named for f in pair)]


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


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3, "noise": 0.05, "degradation": "inpaint-freeform"}])
def test_an_interrupted_run_resumes_to_the_same_bits(tiny, options, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 2)  # a save at step 3 has losses that are not logged yet
    unbroken, broken = changed(tiny, "unbroken", **options), changed(tiny, "broken", **options)
    train(unbroken)
    with monkeypatch.context() as patch:  # step 5 fails, after the state of step 3
        patch.setattr(
            training, "learning_rate", lambda c, step: 1 / 0 if step == 5 else learning_rate(c, step)
        )
        with pytest.raises(ZeroDivisionError):
            train(broken)
    assert state(broken)["step"] == 3
    assert train(broken, resume=True)["finished"]
    assert_same_run(unbroken, broken)


def test_a_killed_process_resumes_to_the_same_bits(tiny, script, i2sb):
    unbroken, broken = (changed(tiny, name, steps=90) for name in ("unbroken", "broken"))
    process = i2sb(*flags(broken), module=[script])
    while not (Path(broken.out) / "state.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(delay := random.Random().uniform(0, 0.5))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    main([*flags(broken), "--resume"])
    train(unbroken)
    assert len(losses(unbroken)) == 90
    print(f"killed {delay:.3f} s after the first state")  # shown where this fails
    assert_same_run(unbroken, broken)


def test_two_processes_compute_what_one_does(tiny, script, i2sb):
    one, two = changed(tiny, "one"), changed(tiny, "two")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = i2sb(*flags(two), module=[*launch, script])
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    train(one)
    assert json.loads((Path(two.out) / "model.json").read_text())["record"]["processes"] == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.parametrize(("at", "lr"), [(4, 1e30), (5, float("nan"))])  # bad loss; good loss, bad weights
def test_divergence_stops_with_a_sentence_and_keeps_the_last_good_state(tiny, at, lr, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "learning_rate", lambda c, step: lr if step == at else learning_rate(c, step))
        with pytest.raises(TrainingError, match=r"before step 6.*state\.pt"):
            train(tiny)
    assert state(tiny)["step"] == 3
    assert all(v.isfinite().all() for v in load_pretrained(tiny.out).denoiser.state_dict().values())
    train(tiny, resume=True)
    train(other := changed(tiny))
    assert_same_run(tiny, other)


@pytest.mark.parametrize(
    "bad",
    [
        "holdout 0",
        "eval_every 0",
        "batch_size -4",
        "steps -5",
        "clip 0",
        "tikhonov -1",
        "ema 2",
        "lr nan",
        "noise inf",
    ],
)
def test_a_configuration_that_cannot_train_is_refused(bad):
    name, value = bad.split()
    with pytest.raises(ValueError, match=f"expected {name} .*got"):
        TrainConfig(**{name: float(value)})


def test_finished_weights_are_not_overwritten(tiny):
    Path(tiny.out).mkdir(parents=True)
    (Path(tiny.out) / "model.json").write_text("{}")  # a shipped model, whose state is not there
    with pytest.raises(TrainingError, match="holds a run"):
        train(tiny)
    assert (Path(tiny.out) / "model.json").read_text() == "{}"


def test_a_time_limit_leaves_a_state_that_resumes(tiny):
    result = train(limited := changed(tiny, minutes=0.0))
    assert (result["finished"], result["step"]) == (False, 1)
    assert train(dataclasses.replace(limited, minutes=None), resume=True)["finished"]
    train(tiny)
    assert_same_run(tiny, limited)


def test_runs_that_must_not_go_on_are_refused(tiny, monkeypatch):
    with pytest.raises(TrainingError, match="expected a run to resume at"):
        train(tiny, resume=True)
    train(tiny)
    before = (Path(tiny.out) / "state.pt").read_bytes()
    with pytest.raises(TrainingError, match="holds a run; give --resume"):
        train(tiny)
    with pytest.raises(TrainingError, match=r"\(batch_size: 4 -> 5, lr: 0.001 -> 0.1\)"):
        train(dataclasses.replace(tiny, lr=0.1, batch_size=5), resume=True)
    monkeypatch.setattr(training, "fingerprint", lambda images: "another")
    with pytest.raises(TrainingError, match="other images"):
        train(tiny, resume=True)
    with pytest.raises(TrainingError, match=r"at least 28 images \(holdout \+ batch_size\), got 24"):
        train(changed(tiny, batch_size=24))
    assert (Path(tiny.out) / "state.pt").read_bytes() == before


def test_batches_visit_every_image_once_an_epoch_and_depend_on_the_step_alone(tiny):
    config = changed(tiny, batch_size=3)
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8)
    batches = Batches(images, create_degradation("noise"), config)
    stream = torch.cat([batches.indices(k) for k in range(20)]).reshape(3, 20)  # 20 is no multiple of 3
    assert all(sorted(epoch.tolist()) == list(range(20)) for epoch in stream)
    assert not torch.equal(stream[0], stream[1])
    again = Batches(images, create_degradation("noise"), config)(11)
    torch.manual_seed(123)
    assert all(torch.equal(a, b) for a, b in zip(batches(11), again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(batches(11), batches(12), strict=True))
    other = Batches(images, create_degradation("noise"), changed(config, seed=1))
    assert not any(torch.equal(a, b) for a, b in zip(batches(11), other(11), strict=True))
    assert not torch.equal(batches.indices(0), other.indices(0))
    assert (batches(11)[2] * 3).ceil().tolist() == [3, 2, 1]  # one time in each third of (0, 1]


@pytest.mark.parametrize("process", ["regression", "diffusion"])
def test_the_baselines_train_with_the_bridge_s_own_loop(tiny, process):
    config = changed(tiny, process=process, steps=60)
    assert train(config)["finished"]
    times = Trainer(changed(config, "again")).batches(3)[2]
    assert (times == 1).all() == (process == "regression")
    model = load_pretrained(config.out, "cpu")
    x0 = to_float(Trainer(changed(config, "again")).held)
    x1 = create_degradation("blur-gauss", quantise=True)(x0)
    one = model.restore(x1, nfe=1, seed=1)
    noisy = not torch.equal(one, model.restore(x1, nfe=1, seed=2))
    assert noisy == (process == "diffusion")  # it starts at noise
    if process == "regression":
        with pytest.raises(ValueError, match="one network call, got nfe=2"):
            model.restore(x1, nfe=2)
    else:
        assert float((model.restore(x1, nfe=20) - x0).abs().mean()) < 0.5
    assert losses(config)[-1] < 1.5


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
    x0 = to_float(run.batches.images).double()
    x1 = run.degrade(x0)
    restated = [float((a * b).mean()) for a, b in ((x0, x0), (x1, x1), (x0, x1))]
    assert run.model.config.moments == pytest.approx(restated, abs=6e-5)


def test_learning_rate_warms_up_and_falls_to_zero():
    config = TrainConfig(lr=2.0, warmup=10, steps=110)
    assert [learning_rate(config, k) for k in (0, 4, 9, 60, 110)] == pytest.approx([0.2, 1, 2, 1, 0])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_takes_a_step(name, tiny):
    sizes = {k: getattr(tiny, k) for k in ("out", "batch_size", "holdout", "precision")}
    run = Trainer(dataclasses.replace(PRESETS[name], **sizes, data="embedded", size=32, compile=False))
    run.optimise()
    assert 0 < run.log()["loss"] < 100


def test_bf16_is_close_to_float32_and_tensorboard_is_written(tiny):
    train(tiny)
    train(half := changed(tiny, precision="bf16", tensorboard=True))
    assert losses(half) == pytest.approx(losses(tiny), rel=0.02)
    assert losses(half) != losses(tiny)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = Path(half.out).rglob("events.out*")
    log = EventAccumulator(str(events)).Reload()
    assert log.Scalars("loss")[-1].value == pytest.approx(losses(half)[-1])
    assert {"lr", "psnr_1", "psnr_10"} <= set(log.Tags()["scalars"])


def test_the_loss_falls_on_the_embedded_photographs(tiny, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 20)
    config = changed(tiny, data="embedded", size=32, steps=120, batch_size=8, lr=2e-3, save_every=120)
    train(config)
    assert losses(config)[-1] < 0.8 * losses(config)[0]
