"""The scripts that measure: what they write can be resumed, joined again and trusted."""

import contextlib
import dataclasses
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, script

from i2sb_lib.bridge import Bridge
from i2sb_lib.checkpoints import Pretrained, load_pretrained
from i2sb_lib.config import PRESETS, TrainConfig
from i2sb_lib.data import load_images
from i2sb_lib.degradations import GaussianBlur, create_degradation
from i2sb_lib.estimation import estimate_sigma
from i2sb_lib.evaluation import evaluate
from i2sb_lib.images import open_image, psnr, quantise, save_image, to_float, to_tensor, to_uint8
from i2sb_lib.training import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture
def ladder(tmp_path, monkeypatch, capsys):
    """Run ladder.py with these arguments; returns what it printed and its record."""
    module = script("ladder")

    def run(*args):
        command = ["ladder.py", "--data", "embedded", "--limit", "9", "--out", str(tmp_path), *args]
        monkeypatch.setattr(sys, "argv", command)
        module.main()
        return capsys.readouterr().out, json.loads((tmp_path / "metrics.json").read_text())

    return run


def test_a_ladder_grows_and_states_what_evaluate_finds(ladder, tmp_path):
    ladder("--rows", "identity", "tikhonov:2e-4")
    out, record = ladder("--rows", "identity", "richardson-lucy:3", "celeba64-deblur-blind:ode:2")
    assert [line.split()[0] for line in out.splitlines()] == [
        "richardson-lucy:3",
        "celeba64-deblur-blind:ode:2",
    ]
    assert [row["row"] for row in record["results"]] == [
        "identity", "tikhonov:2e-4", "richardson-lucy:3", "celeba64-deblur-blind:ode:2",
    ]  # fmt: skip
    x0 = to_float(load_images("embedded", "test")[:9])
    x1 = create_degradation("blur-gauss", quantise=True)(x0)
    again = evaluate(x1, x0)["psnr"]
    assert record["results"][0]["psnr"] == pytest.approx(
        dict(zip(("value", "low", "high"), again, strict=False))
    )
    each = json.loads((tmp_path / "per_image.json").read_text())
    assert each["identity"]["psnr"] == pytest.approx(again.per_image.tolist(), abs=1e-4)
    assert to_tensor(open_image(tmp_path / "restored.png")).shape == (3, 5 * 64, 8 * 64)


def test_the_rates_of_fit_are_those_that_the_model_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys,
        "argv",
        ["fit.py", "--data", "embedded", "--limit", "20", "--estimates", "1", "--out", str(tmp_path)],
    )
    fit = script("fit")
    monkeypatch.setattr(fit, "TOLD", (1.0, 2.5))
    fit.main()
    record = json.loads((tmp_path / "metrics.json").read_text())
    warned = {row["row"]: row["warned"] for row in record["results"]}
    blurred = create_degradation("blur-gauss", quantise=True, sigma=1.75)(
        to_float(load_images("embedded")[:20])
    )
    found = load_pretrained("celeba64-deblur", "cpu").fit(blurred)
    assert warned["sigma 1.75"] == pytest.approx(float((found > record["above"]).double().mean()), abs=1e-4)
    assert (warned["its own"], warned["its own, JPEG 98"], warned["no damage"]) == (0, 1, 1)
    told = {(r["after"], r["sigma"]): r["median"] for r in record["estimates"]}
    one = create_degradation("blur-gauss", quantise=True, sigma=2.5)(to_float(load_images("embedded")[:1]))
    assert told["8 bits", 2.5] == pytest.approx(float(estimate_sigma(one)), abs=1e-3)


def test_the_parts_of_an_error_are_its_whole_and_lie_where_their_frequency_is():
    parts = script("fid_parts")
    x, low = torch.randn(2, 3, 32, 32, dtype=torch.float64), parts.radius(32) <= 8
    some, rest = parts.within(x, low), parts.within(x, ~low)
    torch.testing.assert_close(some + rest, x)
    assert float((some * rest).sum().abs()) < 1e-9
    wave = torch.cos(math.pi * (torch.arange(32, dtype=torch.float64) + 0.5) * 13 / 32).expand(1, 1, 32, 32)
    found = parts.spectrum(wave)  # of frequency 13, of 32 in 8 rings
    assert int(found.argmax()) == 3
    assert float(found.sum() / found.max()) == pytest.approx(1)


def test_what_is_left_after_blurring_again_is_drawn_about_grey(monkeypatch):
    again, x1 = script("reblurred"), torch.zeros(1, 3, 8, 8)
    assert float(again.residual(x1, x1, lambda x: x).abs().max()) == 0
    brighter = x1 + again.WHITE / 2 / 127.5
    torch.testing.assert_close(again.residual(brighter, x1, lambda x: x), torch.full_like(x1, 0.5))
    models = ["--shown", "celeba64-deblur-blind", "--hidden", "celeba64-deblur-blind"]
    monkeypatch.setattr(sys, "argv", ["reblurred.py", "--data", "embedded", *models])
    with pytest.raises(SystemExit, match="one without"):
        again.main()


def test_a_ladder_of_another_task_is_refused(ladder):
    ladder("--rows", "identity")
    with pytest.raises(SystemExit, match="another degradation"):
        ladder("--rows", "identity", "--sigma", "1.5")


def test_without_rounding_the_exact_inverse_is_exact(ladder):
    _, record = ladder("--rows", "inverse", "--floats")
    assert record["results"][0]["psnr"]["value"] is None  # every byte is right


def test_a_packed_run_arrives_as_it_was(tmp_path, run_folder, monkeypatch):
    flagship = script("gpu_flagship")
    monkeypatch.setattr(flagship, "PART", 200_000)
    flagship.pack(run_folder, tmp_path / "out")
    parts = sorted((tmp_path / "out").iterdir())
    assert len(parts) > 1
    assert all(p.stat().st_size <= 200_000 for p in parts)
    flagship.unpack(tmp_path / "out", tmp_path / "work")
    kept = {p.name: p.read_bytes() for p in run_folder.iterdir() if p.name != "state.pt"}
    assert {p.name: p.read_bytes() for p in (tmp_path / "work" / run_folder.name).iterdir()} == kept
    assert "model.json" in kept


def test_captured_steps_side_by_side_are_those_of_the_trainer(tmp_path):
    flagship, captured = script("gpu_flagship"), script("captured")
    images = torch.randint(0, 256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    config = flagship.small(PRESETS["celeba64-deblur"])
    config = dataclasses.replace(config, steps=3, size=16, batch_size=4, holdout=8)
    configs = [
        dataclasses.replace(config, out=str(tmp_path / n), seed=seed)
        for n, seed in (("a0", 0), ("b0", 0), ("c1", 1))
    ]
    runs, said = [Trainer(c, images=images) for c in configs], []
    for _ in range(3):
        runs[0].optimise()
    runs[0].log()
    captured.side_by_side(runs[1:], 2, lambda run, line: said.append((run.out.name, line["step"])))
    assert said == [("b0", 2), ("c1", 2), ("b0", 3), ("c1", 3)]
    for a, b in zip(runs[0].ema.parameters(), runs[1].ema.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-7)
    losses = [sum(n * line["loss"] for n, line in zip(ns, run.history, strict=True))
              for ns, run in (((3,), runs[0]), ((2, 1), runs[1]), ((2, 1), runs[2]))]  # fmt: skip
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] != pytest.approx(losses[0], abs=1e-3)
    assert [type(m) is torch.nn.GroupNorm for m in runs[1].model.modules()].count(True) == 0
    assert Trainer(configs[1], True, images=images).step == 3  # it left a state


def test_the_gpu_s_norm_keeps_the_precision_that_it_is_given():
    norm = script("captured").Norm(8, 16)
    x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        half = norm(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), torch.nn.GroupNorm(8, 16)(x), rtol=0, atol=0.05)


def test_one_call_trains_evaluates_and_packs_and_another_has_nothing_to_do(tmp_path, monkeypatch, capsys):
    flagship = script("gpu_flagship")
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    what = ["--small", "--minutes-per-model", "1e-9", "--models", "celeba64-deblur", "--nfe", "1"]
    monkeypatch.setattr(sys, "argv", ["gpu_flagship.py", "--test", "embedded", *places, *what])
    flagship.main()
    assert '"finished": true' in capsys.readouterr().out
    flagship.unpack(tmp_path / "out", tmp_path / "arrived")
    arrived = tmp_path / "arrived" / "celeba64-deblur"
    assert (
        json.loads((arrived / "model.json").read_text())["record"]["step"] == 2
    )  # its time was out when it was asked
    assert [r["nfe"] for r in json.loads((arrived / "metrics.json").read_text())["results"]] == [0, 1]
    packed = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    flagship.main()
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == packed


def test_a_length_follows_the_speed_so_that_the_rate_falls_to_zero_in_time(tmp_path, monkeypatch):
    flagship, ticks = script("gpu_flagship"), iter(range(10**6))
    monkeypatch.setattr(flagship.time, "monotonic", lambda: next(ticks) / 10)  # a tenth of a second a look
    config = flagship.small(PRESETS["celeba64-deblur"])
    config = dataclasses.replace(
        config, steps=10**4, size=16, batch_size=4, holdout=8, out=str(tmp_path / "a")
    )
    images = torch.randint(0, 256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    run = Trainer(config, images=images)
    monkeypatch.setattr(run, "monitor", dict)
    assert flagship.learn(run, 0.2, 10**6, 4)  # 12 seconds
    assert run.step == run.config.steps
    assert 11 < run.seconds < 13
    rates = [line["lr"] for line in run.history]
    assert rates[-1] < 0.1 * max(rates)
    assert Trainer(run.config, True, images=images).step == run.step


def test_the_budget_s_record_is_what_is_counted():
    budget = script("budget")
    record = json.loads((ROOT / "data/runs/benchmarks/budget/metrics.json").read_text())
    rows = {row["run"] + row["network"]: row for row in record["results"]}
    assert len(rows) == 5
    for name in ("celeba128-deblur", "celeba256-deblur"):
        row, config = rows[f"{name}unet-full"], PRESETS[name]
        found = budget.measure(config.network, config.size)
        images = config.steps * config.batch_size
        again = found | budget.cost(found, images, config.batch_size, config.accumulate)
        assert {k: row[k] for k in again} == again
        assert row["memory"] < 10.5e9  # as the presets say
        minutes = row["images"] * 3 * row["flops"] / (0.1 * 65e12) / 60
        assert row["hours"]["1 T4"] * 60 == pytest.approx(minutes, rel=5e-3)
    check = record["memory_check"]
    assert check["counted"] < check["measured"] < record["config"]["assumed"]["room"] * check["counted"]


def test_operations_and_bytes_are_those_of_a_convolution(monkeypatch):
    budget = script("budget")

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (torch.nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in ((6, 8), (8, 3)))

        def forward(self, x, t):
            return self.b(self.a(x))

    monkeypatch.setattr(budget, "build", lambda network: Two())
    pixels, weights = 16 * 16, 9 * (6 * 8 + 8 * 3)
    flops, kept = 2 * pixels * weights, 4 * pixels * (6 + 8)  # what each layer saw
    assert budget.measure("two", 16) == {"parameters": weights, "flops": flops, "held": kept}


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Run tasks.py on two photographs with these arguments; returns its record."""
    module = script("tasks")
    small = {"network": "unet-tiny", "batch_size": 2, "holdout": 2}
    monkeypatch.setattr(module, "BASE", module.BASE | small)
    walks = [("regression", "sde", 1), ("bridge", "sde", 1), ("bridge", "sde", 2)]
    monkeypatch.setattr(module, "ROWS", walks)
    monkeypatch.setattr(module, "SAMPLES", 2)
    monkeypatch.setattr(module, "DRAWN", 1)
    for i, image in enumerate(load_images("embedded", "test")[:5]):
        save_image(image, tmp_path / "photos" / f"{i}.png")
    places = ["--data", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    few = ["--work", str(tmp_path / "work"), "--tasks", "inpainting", "--limit", "2", "--metrics", "psnr"]

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["tasks.py", *places, *few, *args])
        module.main()
        return json.loads((tmp_path / "out" / "metrics.json").read_text())

    return run


def test_a_task_is_trained_once_measured_and_looked_at(tasks, tmp_path):
    two = ["--train", str(tmp_path / "photos"), "--steps", "2"]
    record = tasks(*two)
    names = [r["row"].removeprefix("inpainting: ") for r in record["results"]]
    walks = ["regression, sde 1", "bridge, sde 1", "bridge, sde 2"]
    assert names == ["identity", "biharmonic", *walks]
    assert ["calibration" in r for r in record["results"]] == [False] * 4 + [True]
    assert tasks(*two) == record
    with pytest.raises(SystemExit, match="another training"):
        tasks(*two, "--steps", "3")
    looked = tasks("--look", "--spread", "1", "--shown", "1")
    assert looked["results"][:5] == record["results"]
    rows = {r["row"]: r for r in looked["results"][5:]}
    free, kept = (rows[f"inpainting: bridge, sde 10, first 2{s}"] for s in ("", ", known imposed"))
    assert kept["change"]["psnr"]["value"] == pytest.approx(kept["psnr"]["value"] - free["psnr"]["value"])
    assert kept["change"]["psnr"]["low"] > 0  # a network of two steps has learnt nothing
    sheet = to_tensor(open_image(tmp_path / "out" / "inpainting.png"))
    assert sheet.shape == (3, 64, 5 * 64)


@pytest.mark.filterwarnings("ignore:restore")  # a model of a blur is given other damage
def test_a_walk_keeps_what_is_imposed_and_is_else_that_of_restore(run_folder, monkeypatch):
    monkeypatch.setattr("i2sb_lib.restoration.auto_precision", lambda device: "no")  # on any processor
    module, x0 = script("tasks"), to_float(load_images("embedded", "test")[:2])
    model = load_pretrained(run_folder)
    for task in ("inpainting", "colour"):
        x1 = module.degraded(task, x0)
        torch.testing.assert_close(module.walk(model, x1, 3), model.restore(x1, 3), rtol=0, atol=2e-5)
        impose = module.known(task, x1)
        kept = impose(torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)))
        torch.testing.assert_close(impose(kept), kept, rtol=0, atol=1e-6)
        torch.testing.assert_close(impose(x0), x0, rtol=0, atol=0.01)  # but for rounding, the truth is kept
    x1 = module.degraded("inpainting", x0)
    gap = module.hole(x1).expand_as(x1)
    walked = module.walk(model, x1, 3, "inpainting")
    assert torch.equal(walked[~gap], x1[~gap])
    assert not torch.equal(walked[gap], x1[gap])


def test_a_student_is_taught_the_walks_of_its_teacher():
    module, teacher = script("student"), load_pretrained("celeba64-deblur")
    x0 = to_float(load_images("embedded", "test")[:4])
    x1, seeds = create_degradation("blur-gauss", quantise=True)(x0), [5, 2**30, 7, 8]
    times = teacher.denoiser.bridge.schedule.grid(3, 2.0)
    ends = module.walk(teacher.denoiser, x1, times, seeds)
    torch.testing.assert_close(ends, teacher.restore(x1, 3, "dbim", seeds, power=2.0), rtol=0, atol=0.02)
    student = module.Student(teacher.denoiser.config)
    student.load_state_dict(teacher.denoiser.state_dict())
    s, z = times[1].float().expand(4), module.noises(seeds, x1)
    with torch.no_grad():
        said = student.answer(x1, s, z)
        torch.testing.assert_close(student.loss(ends, x1, s, z), (said - ends).square().mean((1, 2, 3)))
    # the walk's noise is z: its state after one step, and so its end, lies nearer to that of its own z
    off = [
        (said - module.walk(teacher.denoiser, x1, times, other)).square().mean()
        for other in (seeds, seeds[::-1])
    ]
    assert off[0] < 0.9 * off[1]
    again = module.answers(student, x1, float(times[1]), seeds)
    torch.testing.assert_close(again, said.clamp(-1, 1), rtol=0, atol=0.02)
    shipped = Pretrained(student, {"start": float(times[1])}, Path("student"))
    torch.testing.assert_close(shipped.restore(x1, seed=seeds), again, rtol=0, atol=0.02)
    for how in ({"nfe": 2}, {"power": 2.0}):
        with pytest.raises(ValueError, match="a student restores in one network call"):
            shipped.restore(x1, **how)


def test_a_lesson_flips_x1_noise_and_end_together(tiny, tmp_path):
    module = script("student")
    config = dataclasses.replace(tiny, cond_x1=True, batch_size=8)
    teacher = Trainer(config).ema
    lesson = module.Lesson(dataclasses.replace(config, out=str(tmp_path / "s")), teacher, None, 0.5)
    images = lesson.batches.images
    lesson.batches.ends = images.flip(-2)  # what an end is to its x0, this keeps also where both are mirrored
    end, x1, t, z = lesson.batches(0)
    assert torch.equal(t, torch.full((8,), 0.5))
    places = lesson.batches.places[lesson.batches.indices(0)]
    x0, noise = to_float(images[places]), module.noises(places.tolist(), end)
    flipped = torch.tensor([not torch.equal(a.flip(-2), b) for a, b in zip(x0, end, strict=True)])
    assert 0 < flipped.sum() < 8
    turn = flipped.reshape(-1, 1, 1, 1)
    assert torch.equal(end, torch.where(turn, x0.flip(-1), x0).flip(-2))
    assert torch.equal(z, torch.where(turn, noise.flip(-1), noise))
    torch.testing.assert_close(x1, lesson.degrade(end.flip(-2), None), rtol=0, atol=0.01)
    lesson.optimise()
    assert lesson.step == 1


def test_a_student_sees_the_noise_that_its_teacher_s_walk_went_from(tiny, tmp_path, monkeypatch):
    module = script("student")
    config = dataclasses.replace(tiny, cond_x1=True, noise=0.1, quantise=True, out=str(tmp_path / "s"))
    teacher = Trainer(dataclasses.replace(config, out=str(tmp_path / "t"))).ema
    lesson = module.Lesson(config, teacher, None, 0.5)
    monkeypatch.setattr(module, "walk", lambda teacher, x1, times, seeds: x1)  # its end is where it began
    how = teacher, lesson.batches.images, lesson.degrade, None, tmp_path / "ends.pt"
    lesson.batches.ends = module.targets(*how)
    end, x1, _, _ = lesson.batches(0)
    assert torch.equal(end, x1.float())
    assert torch.equal(module.targets(*how), lesson.batches.ends)  # from the file


def test_walks_of_another_teacher_are_not_gone_on_with(tmp_path):
    module = script("student")
    for _ in range(2):
        module.begin(tmp_path, {"nfe": 5})
    with pytest.raises(SystemExit, match=r"expected walks of \{'nfe': 3\}, got those of \{'nfe': 5\}"):
        module.begin(tmp_path, {"nfe": 3})


def test_a_model_is_shipped_with_the_walk_that_it_recommends(run_folder, tmp_path, monkeypatch):
    module, name, commands = script("ship"), run_folder.name, []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "i2sb", commands.append)
    monkeypatch.setattr(module, "card", lambda name, metrics: "# card\n")
    out = tmp_path / "data" / "runs" / name
    out.mkdir(parents=True)
    (out / "metrics.json").write_text("{}")
    args = ["ship.py", str(run_folder), "--test", "embedded"]
    monkeypatch.setattr(sys, "argv", [*args, "--calls", "5", "--sampler", "dbim", "--power", "2"])
    module.main()
    shipped = load_pretrained(tmp_path / "data" / "checkpoints" / name, "cpu")
    times, sampler, lam = shipped.recommended()
    assert torch.equal(times, torch.linspace(1, 0, 6, dtype=torch.float64) ** 2)
    assert (sampler, lam) == ("dbim", 0.0)
    monkeypatch.setattr(Pretrained, "alone", True)  # as of a student
    monkeypatch.setattr(sys, "argv", args)
    module.main()
    rows = [c[c.index("--nfe") + 1 : c.index("--metrics")] for c in commands]
    assert rows == [["1", "2", "5", "10"], ["1"]]


def test_a_posterior_sampler_knows_its_error_and_keeps_what_was_seen():
    module, v = script("posterior"), 0.01
    bridge = Bridge.diffusion()

    class White:  # E[x0 | x_t] of pixels drawn from N(0, v)
        def __init__(self):
            self.bridge = bridge

        def __call__(self, xt, t, x1):
            assert not x1.any()
            a, _, c = bridge.coefficients(t.reshape(-1, 1, 1, 1))
            return a * v / (a**2 * v + c**2) * xt

    prior = SimpleNamespace(denoiser=White(), device=torch.device("cpu"))
    blur = create_degradation("blur-gauss")
    restore = module.Sampler(prior, blur)
    restore.fast = contextlib.nullcontext()
    x0 = v**0.5 * torch.randn(64, 3, 16, 16)
    restore.measure(x0, bridge.schedule.grid(5))
    for t, error in restore.errors.items():
        a, _, c = (float(k) for k in bridge.coefficients(torch.tensor(t)))
        assert error == pytest.approx(v * c**2 / (a**2 * v + c**2), rel=0.03)
    y = quantise(blur(x0[:4].clamp(-1, 1)))
    seen = [blur(restore(y, 5, zeta, 1.0)) - y for zeta in (1.0, 100.0, 1e6)]
    off = [float(s.square().mean()) for s in seen]
    assert off[0] < 2 * module.ROUNDING, off
    assert off[0] <= off[1] < off[2]


def test_each_row_of_levels_is_of_its_sigma_and_of_photographs_set_aside(tmp_path, monkeypatch, capsys):
    module = script("levels")

    def run(*args):
        places = ["--out", str(tmp_path), "--work", str(tmp_path / "work")]
        few = ["--train", "embedded", "--tasks", "colour", "--holdout", "3", "--metrics", "psnr"]
        monkeypatch.setattr(sys, "argv", ["levels.py", *few, *places, *args])
        module.main()
        return json.loads((tmp_path / "metrics.json").read_text())

    record = run("--sigmas", "0.5", "2", "--steps", "2")
    assert [(r["sigma"], r["walk"]) for r in record["results"]] == [
        (s, w) for s in (0.5, 2.0) for w in module.WALKS
    ]
    model = load_pretrained(tmp_path / "work" / "colour-2.0")
    assert model.denoiser.bridge.total_std == pytest.approx(2, rel=1e-4)
    places = torch.randperm(
        len(clean := load_images("embedded", "train")), generator=torch.Generator().manual_seed(0)
    )
    x0 = to_float(clean[places[:3]])
    x1 = create_degradation("grey", quantise=True)(x0)
    again = evaluate(model.restore(x1, 5, "dbim", power=2.0), x0, ["psnr"])["psnr"].value
    assert record["results"][-1]["psnr"]["value"] == pytest.approx(again, abs=1e-3)
    assert run("--sigmas", "0.5", "2", "--steps", "2") == record
    with pytest.raises(SystemExit, match="another training"):
        run("--steps", "3")


def test_a_model_is_told_each_picture_s_sigma_and_is_then_as_it_was(tmp_path, monkeypatch):
    module, model = script("told"), load_pretrained("celeba64-deblur")
    x0 = to_float(load_images("embedded", "test")[:2])
    x1 = quantise(create_degradation("blur-gauss", sigma=2.5)(x0))
    right, wrong = module.told(model, x1, torch.tensor([2.5, 2.5])), model.restore(x1, 1)
    assert model.denoiser.operator.sigma == 2
    off = [float((x - x0).square().mean()) for x in (right, wrong)]
    assert off[0] < 0.5 * off[1]
    torch.testing.assert_close(
        module.told(model, x1, torch.tensor([2.5, 2.0]))[1:], wrong[1:], rtol=0, atol=0.02
    )
    command = ["told.py", "--data", "embedded", "--limit", "2", "--sigmas", "2.5", "--metrics", "psnr"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path)])
    module.main()
    rows = json.loads((tmp_path / "metrics.json").read_text())["results"]
    found = {r["way"]: r["psnr"]["value"] for r in rows if r["after"] == "8 bits"}
    assert found["told the truth"] == pytest.approx(evaluate(right, x0, ["psnr"])["psnr"].value, abs=0.05)
    assert len(rows) == 2 * 5


def test_walks_are_advised_on_what_was_set_aside(tmp_path, monkeypatch):
    module, model = script("advised"), load_pretrained("celeba64-deblur")
    monkeypatch.setattr(module, "WALKS", [("dbim", 2, 2.0)])
    monkeypatch.setattr(module, "WEIGHTS", (0.0, 1e-2))
    command = ["advised.py", "--data", "embedded", "--limit", "3", "--metrics", "psnr"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path)])
    module.main()
    record = json.loads((tmp_path / "metrics.json").read_text())
    images, seed = load_images("embedded", "train", 64), model.record["training"]["seed"]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    x0 = to_float(images[order[:3]])
    x1 = quantise(create_degradation("blur-gauss", quantise=True)(x0)).float()
    x = model.restore(x1, 2, "dbim", power=2.0, consistency=1e-2)
    again = evaluate(x, x0, ["psnr"])["psnr"].value
    assert record["results"][1]["psnr"]["value"] == pytest.approx(again, abs=1e-3)


def test_gains_are_of_photographs_that_all_or_none_of_the_trainings_saw(tmp_path, monkeypatch):
    module = script("overfitting")
    long, blind = (load_pretrained(f"celeba64-deblur-{name}") for name in ("long", "blind-long"))
    order = [torch.randperm(300, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    aside = [set(o[:64].tolist()) for o in order]
    trained, left = module.seen([long], 300)
    assert set(left.tolist()) == aside[0]
    assert set(trained.tolist()) == set(range(300)) - aside[0]
    trained, left = module.seen([long, blind], 300)  # the second training of the blind one has seed 1
    assert set(left.tolist()) == aside[0] & aside[1]
    assert set(trained.tolist()) == set(range(300)) - (aside[0] | aside[1])
    monkeypatch.setattr(module, "METRICS", ["psnr"])
    command = ["overfitting.py", "--limit", "2", "--pairs", "celeba64-deblur-student=celeba64-deblur"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path)])
    module.main()
    rows = json.loads((tmp_path / "metrics.json").read_text())["results"]
    assert [r["set"] for r in rows] == ["trained", "set aside", "test"]
    x0 = to_float(load_images("embedded", "test", 64)[:2])
    x1 = quantise(create_degradation("blur-gauss", quantise=True)(x0)).float()
    one = [
        load_pretrained(m).restore(x1, 1, consistency=0.0, seed=0)
        for m in ("celeba64-deblur-student", "celeba64-deblur")
    ]
    a, b = (evaluate(x, x0, ["psnr"])["psnr"].value for x in one)
    assert rows[2]["one call"]["psnr"]["gain"] == pytest.approx(b - a, abs=1e-4)


def test_every_row_of_the_search_has_the_same_photographs_set_aside(tmp_path, monkeypatch):
    module = script("search")
    monkeypatch.setattr(module, "BASE", module.BASE | {"steps": 1, "batch_size": 2, "holdout": 4})
    few = [module.Variant(f"seed {k}", "the seed", {"seed": k}) for k in (0, 1)]
    few.append(module.Variant("g as input", "base x1", {"tikhonov": 2e-4}, roles=("input",)))
    told = {"tikhonov": 2e-4}
    deep = {"channels": (8, 8), "blocks": 3, "attention": ()}
    few += [
        module.Variant("fall", "times", told, levels="fall"),
        module.Variant("deep", "net", told, net=deep),
    ]
    few.append(module.Variant("average", "rebuilt", told, of="gone", average="0.25"))
    monkeypatch.setattr(module, "measures", lambda x, x0: {"psnr": float((x - x0).square().mean())})
    seen, learn = [], module.Run.learn
    monkeypatch.setattr(module.Run, "learn", lambda run: seen.append(run) or learn(run))
    monkeypatch.setattr(sys, "argv", ["search.py", "--out", str(tmp_path), "--work", str(tmp_path / "work")])
    for count in (1, 6):  # it goes on where it ended
        monkeypatch.setattr(module, "VARIANTS", few[:count])
        module.main()
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert [r["name"] for r in record["results"]][-6:] == [v.name for v in few]
    assert record["results"][-2]["config"]["variant"]["net"]["channels"] == [8, 8]
    assert record["data"]["images"] == len(load_images("embedded", "train", 64))
    for run in seen:
        assert torch.equal(run.held, seen[0].held)
        taken = run.batches.images[run.batches.places]
        assert not (taken[:, None] == run.held).flatten(2).all(2).any()


def test_an_average_rebuilt_from_snapshots_is_the_one_that_was_followed():
    module = script("search")
    steps, lengths, draw = 400, (0.07, *module.LENGTHS), torch.Generator().manual_seed(0)
    rebuilt, followed = module.Averages([torch.zeros(200)]), module.Averages([torch.zeros(200)], lengths)
    walk = torch.zeros(200, dtype=torch.float64)
    path = []
    for step in range(1, steps + 1):
        walk = walk + (1 - step / steps) * torch.randn(200, generator=draw)
        path.append(walk)
        rebuilt.follow([walk], step % 25 == 0)
        followed.follow([walk], False)
    at = torch.arange(1, steps + 1, dtype=torch.float64)
    for length, (gamma, (mean,)) in zip(lengths, followed.tracks, strict=True):
        profile = (at / steps) ** (gamma + 1) - ((at - 1) / steps) ** (gamma + 1)
        middle = ((at - 0.5) / steps * profile).sum()
        assert ((at - 0.5) / steps - middle).square().mul(profile).sum().sqrt() == pytest.approx(length, 1e-2)
        plain = (profile[:, None] * torch.stack(path)).sum(0)
        assert (mean - plain).norm() < 0.05 * (plain - walk).norm()
        gap = (rebuilt.rebuilt(length)[0] - mean).norm() / (mean - walk).norm()
        assert gap < 0.02
    steady = module.Averages([torch.ones(3)])
    for step in range(1, 101):
        steady.follow([torch.ones(3)], step % 10 == 0)
    assert all((steady.rebuilt(length)[0] - 1).abs().max() < 1e-9 for length in lengths)


def test_times_are_drawn_as_the_loss_asks_and_importance_keeps_the_objective():
    module = script("search")
    u = (torch.arange(40_000) + 0.5) / 40_000
    for kind in ("importance", "fall"):
        levels = module.Levels(kind, rate=0.2)
        t = levels.draw(u)
        assert (t - u).abs().max() < 1e-5  # nothing is known yet: even, but for rounding
        for _ in range(30):
            levels.weigh(0.2 + 0.6 * (levels.part(u[::500]) / 15), u[::500])
        t, p = levels.draw(u), levels.density
        assert float(t.min()) > 0
        assert float(t.max()) <= 1
        assert p.mean() == pytest.approx(1, abs=1e-5)
        assert (torch.bincount(levels.part(t), minlength=16) / 2500 - p).abs().max() < 0.01
        assert (p.argmax() == 15) == (kind == "importance")  # where the loss is large, or has fallen
        assert p.min() >= 0.1
        said = levels.weigh(t.square(), t)
        assert (said.mean() == pytest.approx(1 / 3, abs=5e-3)) == (kind == "importance")


def robust(tmp_path, name, **changes):
    """A training of the robust model with a tiny network, on embedded photographs."""
    module, crops = script("photos_training"), load_images("embedded", "train", 64)[:24]
    faces = load_images("embedded", "train", 64)[24:40]
    draw = torch.Generator().manual_seed(0)
    scenes = [torch.randint(0, 256, (3, 161, 200), generator=draw).byte() for _ in range(2)]
    how = {"network": "unet-tiny", "steps": 2, "batch_size": 8, "holdout": 8, "progress": False}
    recipe = module.RECIPE | how | {"out": str(tmp_path / name)} | changes
    run = module.Run(TrainConfig(**recipe), False, faces, scenes, crops, 0, module.SECOND_MIX)
    return module, run, (faces, scenes, crops)


def test_the_robust_model_s_pairs_are_their_steps_own_whoever_makes_them(tmp_path):
    from torch.utils.data import DataLoader

    from i2sb_lib.wiener import blind_wiener

    module, run, (_, scenes, _) = robust(tmp_path, "run")
    pairs = run.pairs
    alone = [pairs.pairs(step) for step in range(4)]
    for workers in (0, 2):
        made = DataLoader(pairs, batch_size=None, num_workers=workers)
        for ours, theirs in zip(alone, made, strict=False):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(alone[0][0], alone[1][0])
    for x0, x1, guess in alone:
        assert x0.shape == x1.shape == (8, 3, 64, 64)
        assert x0.dtype == x1.dtype == torch.uint8
        torch.testing.assert_close(guess.float(), blind_wiener(to_float(x1)), rtol=0, atol=1e-3)
        # none is worn: the faces are whole, and not those that are held out
        known = torch.cat([pairs.faces, pairs.faces.flip(-1)]).flatten(1)
        assert all((known == x.flatten()).all(1).any() for x in x0[:3])
        held = torch.cat([run.held, run.held.flip(-1)]).flatten(1)
        assert not any((held == x.flatten()).all(1).any() for x in x0[:3])
    with_grain = module.Pairs(pairs.faces, scenes, run.config, 0, module.MIX._replace(worn=1))
    x0 = with_grain.pairs(0)[0]
    assert not any((known == x.flatten()).all(1).any() for x in x0[:3])
    # one kind alone: each of the four happens to some picture, at most one to each
    seen = []
    pairs_alone = module.Pairs(pairs.faces, scenes, run.config, 0, module.SECOND_MIX._replace(alone=1))
    pairs_alone.mixture = type("Spy", (), {"degrade": lambda self, x, u, noise: seen.append(u) or x})()
    for step in range(8):
        pairs_alone.pairs(step)
    pairs_alone.mix = pairs_alone.mix._replace(mild=0.5)
    pairs_alone.pairs(7)
    torch.testing.assert_close(seen[-2][:, 13], seen[-4][:, 13].sqrt())  # JPEG of higher quality
    assert all(torch.equal(seen[-2][:, k], seen[-4][:, k]) for k in range(14) if k != 13)
    happens = torch.cat(seen)[:, 1:5] < torch.tensor([0.7, 0.25, 0.4, 0.4])
    assert happens.sum(1).max() == 1
    assert happens.sum(0).min() > 3
    assert (torch.cat(seen)[:, 0] == 1).all()
    # a piece is the scene's own unless it is shrunk
    u = torch.tensor([0.0, 0.9, 0.25, 0.5])
    piece = pairs._piece(64, u)
    assert torch.equal(piece[0], to_float(scenes[0])[:, 24:88, 68:132])
    assert with_grain._piece(64, u * 0.1).std() < 0.8 * piece.std()  # 1.82 times as much, shrunk


def test_the_robust_model_s_second_training_goes_on_from_the_first_s_weights(tmp_path):
    module, first, (faces, scenes, crops) = robust(tmp_path, "first")
    before = [p.clone() for p in first.ema.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first.batch(), first.batch(), strict=True))
    x1 = first.batch()[1]
    first.optimise()
    assert not torch.equal(first.batch()[1], x1)
    first.save()
    resumed = module.Run(first.config, True, faces, scenes, crops, 0, module.SECOND_MIX)
    assert all(torch.equal(a, b) for a, b in zip(first.batch(), resumed.batch(), strict=True))
    init = {"init": first.config.out} | module.SECOND | {"batch_size": 8}
    _, second, _ = robust(tmp_path, "second", **init)
    for a, b in zip(second.model.parameters(), first.ema.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # as the file keeps them
    assert any(not torch.equal(a, old) for a, old in zip(first.ema.parameters(), before, strict=True))
    assert second.model.config.moments == first.model.config.moments
    assert second.config.damage_floor < first.config.damage_floor


def test_a_specialist_stands_beside_the_model_that_it_began_from(tmp_path, monkeypatch):
    module, (_, first, _) = script("photos_specialist"), robust(tmp_path, "first")
    first.save()
    draw = torch.Generator().manual_seed(0)
    for i in range(2):
        save_image(torch.rand(3, 120, 130, generator=draw), tmp_path / "scenes" / f"{i}.png")
    monkeypatch.setattr(module, "RECIPE", module.RECIPE | {"network": "unet-tiny"})
    monkeypatch.setattr(module, "SECOND", module.SECOND | {"batch_size": 2, "lr": 0.5})
    monkeypatch.setattr(
        sys.modules["photos"], "each", lambda x, x0: dict.fromkeys(module.METRICS, psnr(x, x0))
    )
    of = [
        "--checkpoint",
        str(tmp_path / "first"),
        "--faces",
        "embedded",
        "--scenes",
        str(tmp_path / "scenes"),
    ]
    asked = ["--cell", "JPEG 75", "--sets", "embedded=embedded", "--walks", "sde:1:1", "--limit", "4"]
    where = ["--out", str(tmp_path / "own"), "--record", str(tmp_path / "record"), "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["photos_specialist.py", *of, *asked, *where])
    module.main()
    record = json.loads((tmp_path / "record" / "metrics.json").read_text())
    assert [r["trained on"] for r in record["results"]] == ["one kind", "all"]
    assert record["specialists"]["JPEG 75"]["training"]["init"] == "first"
    assert record["checkpoint"] == load_pretrained(tmp_path / "first").record
    x0 = to_float(module.pictures("embedded", "embedded", 4))
    x1 = quantise(create_degradation("jpeg", quality=75)(x0))
    for row, name in zip(record["results"], ("own", "first"), strict=True):
        won = psnr(load_pretrained(tmp_path / name, "cpu").restore(x1, 1), x0) - psnr(x1, x0)
        assert row["psnr"]["change"][0] == pytest.approx(float(won.mean()), abs=1e-4)


def test_what_a_model_changes_is_set_beside_what_is_blurred(tmp_path, monkeypatch):
    module, (_, run, _) = script("photos_soft"), robust(tmp_path, "first")
    run.save()
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) / 8
    found = [float(module.sharpness(x)) for x in (ramp, noise, GaussianBlur(17, 1.0)(noise))]
    assert found[:2] == [pytest.approx(0.25, abs=1e-4), pytest.approx(1, abs=0.04)]
    assert found[2] < 0.4
    where = ["--checkpoint", str(tmp_path / "first"), "--record", str(tmp_path / "record"), "--limit", "6"]
    monkeypatch.setattr(sys, "argv", ["photos_soft.py", *where, "--sheet", "embedded"])
    x0 = to_float(script("photos").pictures("embedded", "embedded", 6))
    model = load_pretrained(tmp_path / "first", "cpu")
    model.record["least_change"] = float(
        (127.5 * (model.restore(x0) - x0)).square().mean((1, 2, 3)).sqrt().median()
    )
    monkeypatch.setattr(module, "load_pretrained", lambda *_: model)
    module.main()
    (row,) = json.loads((tmp_path / "record" / "metrics.json").read_text())["results"]
    same = (to_uint8(model.restore(x0)) == to_uint8(x0)).flatten(1).all(1)
    assert 0 < int(same.sum()) < len(x0) == row["images"]
    assert row["kept"] == pytest.approx(sorted(module.sharpness(x0[same]).tolist()), abs=1e-4)
    assert row["changed"] == pytest.approx(sorted(module.sharpness(x0[~same]).tolist()), abs=1e-4)
    assert max(row["kept, blur 0.75"]) < max(row["kept, blur 0.5"]) < max(row["kept"])
    sheet = to_tensor(open_image(tmp_path / "record" / "sheet.png"))
    assert torch.equal(sheet[:, :64, :64], to_uint8(x0[~same][0]))
