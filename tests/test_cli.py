"""Every command end to end on tiny data: what it writes, what it prints, how it exits."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, photograph
from PIL import Image, ImageFilter

import i2sb_lib
from i2sb_lib import cli, folders
from i2sb_lib import training as loop
from i2sb_lib.checkpoints import Pretrained, load_pretrained, save_pretrained
from i2sb_lib.cli import COMMANDS, main
from i2sb_lib.config import PRESETS, TrainConfig, config_hash, learning_rate
from i2sb_lib.console import plain_console
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.denoiser import Denoiser, ModelConfig
from i2sb_lib.faults import Notice
from i2sb_lib.folders import seed_of
from i2sb_lib.images import to_float, to_tensor, to_uint8


def code_of(*args) -> int:
    """The exit code that a shell would see."""
    try:
        main([str(a) for a in args])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def message_of(*args) -> str:
    """The one sentence that a failing command leaves."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    assert isinstance(stop.value.code, str)  # which means exit code 1
    assert "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize("name", COMMANDS)
def test_help_mentions_every_flag(name, capsys):
    assert code_of(name, "--help") == 0
    text = capsys.readouterr().out
    fields = list(dataclasses.fields(TrainConfig)) if name == "train" else []
    fields += [f for f in dataclasses.fields(COMMANDS[name]) if f.name != "config"]
    for field in fields:
        word = field.name.replace("_", "-")
        assert f"--{word}" in text or word.upper() in text, field.name
    assert "i2sb" in text
    assert ("[CHECKPOINT]" in text) == (name == "info")  # which may be left out, and is no flag elsewhere


def test_a_preset_sets_flags_that_later_flags_change(monkeypatch, capsys):
    seen = []
    fake = {"finished": True, "step": 1, "psnr_1": 20.0}
    monkeypatch.setattr(i2sb_lib, "train", lambda config, resume: seen.append((config, resume)) or fake)
    main(["train", "--preset", "celeba64-deblur", "--lr", "0.5", "--resume"])
    main(["train", "--degradation-options", "sigma", "1.5", "--no-quantise"])
    main(["train", "--preset=celeba64-deblur"])
    (first, resume), (second, fresh), third = seen
    assert third == (PRESETS["celeba64-deblur"], False)
    assert (first, resume) == (dataclasses.replace(PRESETS["celeba64-deblur"], lr=0.5), True)
    changes = {"degradation_options": {"sigma": 1.5}, "quantise": False}
    assert (second, fresh) == (dataclasses.replace(TrainConfig(), **changes), False)
    assert "finished at step 1 of 60000, psnr_1 20.0" in capsys.readouterr().out


def test_a_run_is_resumed_without_its_flags(monkeypatch, run_folder):
    seen = []
    fake = {"finished": True, "step": 1}
    monkeypatch.setattr(i2sb_lib, "train", lambda config, resume: seen.append(config) or fake)
    main(["train", "--resume", "--out", str(run_folder), "--steps", "50"])
    ((config,), made) = seen, torch.load(run_folder / "state.pt", weights_only=True)["config"]
    assert dataclasses.asdict(config) == made | {"steps": 50}


def test_a_run_of_a_gpu_s_is_resumed_without_its_flags_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    config = dataclasses.asdict(dataclasses.replace(TrainConfig(), lr=0.5))
    torch.save({"config": config, "model": torch.zeros(3)}, tmp_path / "state.pt")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli._start(["--resume", "--out", str(tmp_path)]).config.lr == 0.5


def test_exit_codes_are_those_of_the_help_text(tmp_path, run_folder, capsys):
    assert code_of("--help") == 0
    assert code_of() == 0
    assert code_of("destroy") == 2
    said = capsys.readouterr()
    assert ("['train', 'restore'" in said.err, said.out) == (True, f"{i2sb_lib.cli.__doc__}\n" * 2)
    assert code_of("--version") == 0
    assert capsys.readouterr().out == f"i2sb {i2sb_lib.__version__}\n"
    assert code_of("train", "--no-such-flag") == 2
    assert code_of("restore") == 2
    assert "absent" in message_of("restore", tmp_path / "absent", tmp_path, "--checkpoint", run_folder)
    assert "got none" in message_of("degrade", tmp_path, tmp_path / "out")
    grid = message_of("restore", tmp_path, tmp_path / "out", "--checkpoint", run_folder, "--nfe", "0")
    assert grid.startswith("i2sb: a grid needs")  # the flag's fault, not an image's
    assert "'nope'" in message_of("info", "nope")
    assert "degradation among" in message_of("degrade", tmp_path, tmp_path, "--name", "fog")
    assert "device that is here, got nowhere" in message_of("evaluate", "--device", "nowhere")
    assert "expected a folder" in message_of("train", "--data", tmp_path / "absent", "--out", tmp_path / "r")
    assert "holds a run" in message_of("train", "--out", run_folder)


@pytest.mark.slow
def test_train_as_a_process_then_info(tiny, i2sb, photos, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # of a console that cannot show the folder's name
    out = f"{tiny.out}-σ"
    flags = ["--network", "unet-tiny", "--steps", "3", "--batch-size", "4", "--holdout", "4", "--size", "16"]
    process = i2sb("train", "--data", photos, "--out", out, *flags, "--precision", "no")
    said, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, "")  # no bar, no warnings where no terminal is
    assert re.search(r"-\?: finished at step 3 of 3, psnr_input \d+\.\d+, psnr_1 \d", said)
    files = {f.name for f in Path(out).iterdir()}
    wanted = {"state.pt", "model.json", "model-1-of-1.safetensors", "history.json", "contact_sheet.png"}
    assert files == wanted
    main(["info", out])
    content = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert content["parameters"] == sum(p.numel() for p in load_pretrained(out).denoiser.parameters())
    assert content["config_hash"] == config_hash(content["training"])
    main(["info"])
    assert capsys.readouterr().out.count("(default)") <= 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_s_encoding_decides_nothing(tmp_path, monkeypatch, encoding):
    console = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", console)
    photograph(0).save(tmp_path / "σ.png")
    assert code_of("degrade", tmp_path / "σ.png", tmp_path / "out") == 0
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["σ.png"]
    assert code_of("info", "celeba64-deblur") == 0  # whose card has a σ
    console.flush()
    shown = console.buffer.getvalue().decode(encoding)
    assert "?.png" in shown
    assert "? = 2" in shown


def test_a_warning_of_the_library_is_one_line_and_others_are_as_they_were(tmp_path, capsys):
    photograph(0).save(tmp_path / "a.webp", save_all=True, append_images=[photograph(1)], lossless=True)
    main(["degrade", str(tmp_path / "a.webp"), str(tmp_path / "out" / "a.png")])
    line = f"i2sb: {tmp_path / 'a.webp'}: holds several pictures, took the first\n"
    assert capsys.readouterr().err == line
    with warnings.catch_warnings(record=True) as others, plain_console():
        warnings.simplefilter("always")
        for kind, file in ((Notice, __file__), (Notice, cli.__file__), (UserWarning, json.__file__)):
            warnings.warn_explicit("said", kind, file, 1)
    assert capsys.readouterr().err == "i2sb: said\n"
    assert [w.filename for w in others] == [json.__file__]


def test_images_have_noise_of_their_own_alone_and_in_a_folder(tmp_path):
    source, how = tmp_path / "in", ("--name", "noise", "--options", "std", "0.1")
    source.mkdir()
    for name in "ab":
        photograph(0).save(source / f"{name}.png")
    main(["degrade", str(source), str(tmp_path / "out"), *how])
    main(["degrade", str(source / "b.png"), str(tmp_path / "alone.png"), *how])
    files = (tmp_path / "out" / "a.png", tmp_path / "out" / "b.png", tmp_path / "alone.png")
    a, b, alone = (to_tensor(Image.open(file)) for file in files)
    assert torch.equal(b, alone)
    assert not torch.equal(a, b)


def test_whole_number_options_arrive_whole(tmp_path):
    photograph(0).save(tmp_path / "a.png")
    for name, option, value in (("blur-uniform", "kernel_size", "5"), ("jpeg", "quality", "20")):
        main(
            [
                "degrade",
                str(tmp_path / "a.png"),
                str(tmp_path / "b.png"),
                "--name",
                name,
                "--options",
                option,
                value,
            ]
        )
    assert "whole number, got 7.5" in message_of(
        "degrade", tmp_path / "a.png", tmp_path / "b.png", "--options", "kernel_size", "7.5"
    )


def test_the_time_grid_and_consistency_reach_the_restoration(tmp_path, run_folder):
    photograph(0).save(tmp_path / "a.png")
    out, base = (
        [],
        ["restore", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--checkpoint", str(run_folder)],
    )
    for more in ([], ["--power", "2"], ["--consistency", "1e-3"]):
        main([*base, "--nfe", "3", *more])
        out.append((tmp_path / "b.png").read_bytes())
    assert len(set(out)) == 3


def test_a_walk_that_cannot_be_is_refused_before_an_image_is_read(tmp_path, run_folder, monkeypatch):
    photograph(0).save(tmp_path / "a.png")
    monkeypatch.setattr(folders, "open_image", lambda *a: pytest.fail("an image was opened"))
    monkeypatch.setattr(cli, "load_images", lambda *a, **k: pytest.fail("images were read"))
    shutil.copytree(run_folder, tmp_path / "jpeg")
    content = json.loads((run_folder / "model.json").read_text())
    content["model"]["degradation"] = "jpeg"
    (tmp_path / "jpeg" / "model.json").write_text(json.dumps(content))
    for base in (("restore", tmp_path / "a.png", tmp_path / "b.png"), ("evaluate", "--nfe", "2")):
        ours = (*base, "--checkpoint", run_folder)
        for weight in ("-1.0", "nan", "inf"):
            said = message_of(*ours, "--consistency", weight)
            assert f"finite consistency of at least 0, got {weight}" in said
        assert "power" in message_of(*ours, "--power", "0")
        jpeg = ("--checkpoint", tmp_path / "jpeg", "--consistency", "1")
        assert "consistency needs a separable blur, got" in message_of(*base, *jpeg)


@pytest.mark.parametrize(
    "command",
    ["train --data", "train --out", "evaluate --data", "evaluate --out", "evaluate --checkpoint", "info"],
)
def test_an_empty_name_is_refused(command, run_folder, photos, tmp_path, monkeypatch, capsys):
    """A shell's variable that is not set; to Path it is the current folder, here a run among photographs."""
    shutil.copytree(run_folder, tmp_path / "here")
    photograph(0).save(tmp_path / "here" / "a.png")
    monkeypatch.chdir(tmp_path / "here")
    before = {f: f.read_bytes() for f in Path().iterdir()}
    name, *flags = command.split()
    rest = {"--data": photos, "--checkpoint": run_folder} if name == "evaluate" else {}
    rest = [str(part) for flag, value in rest.items() if flag not in flags for part in (flag, value)]
    with pytest.raises(SystemExit) as stop:
        main([name, *rest, *flags, ""])
    said = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err
    assert any(words in " ".join(said.split()) for words in ("empty", "got ''", "got nothing"))
    assert {f: f.read_bytes() for f in Path().iterdir()} == before


def test_a_walk_that_cannot_be_is_the_flag_s_fault_and_told_before_a_picture_is_read(run_folder, tmp_path):
    record = load_pretrained(run_folder).record
    for process, flag, words in (
        ("diffusion", "ode", "ode is the limit of a bridge"),
        ("regression", "sde", "a regression restores in one network call (nfe 1, power 1), got nfe=2"),
    ):
        save_pretrained(tmp_path / process, Denoiser(ModelConfig("unet-tiny", process=process)), record)
        given = "--checkpoint", tmp_path / process, "--nfe", "2"
        said = message_of("evaluate", *given, "--samplers", flag, "--data", tmp_path / "absent")
        assert said.startswith(f"i2sb: {words}")
        assert message_of("restore", tmp_path, tmp_path / "out", *given, "--sampler", flag) == said


def test_evaluate_refuses_before_it_works(run_folder, photos, tmp_path, capsys, monkeypatch):
    base = ("evaluate", "--checkpoint", run_folder, "--out", tmp_path / "e", "--data", tmp_path / "absent")
    assert "at least one, and power > 0, both up to 10^6, got n=0" in message_of(*base, "--nfe", "0")
    assert "something as nfe, got nothing" in message_of(*base, "--nfe")
    assert "limit of at least 1" in message_of(*base, "--limit", "-1")
    assert "metrics among" in message_of(*base, "--metrics", "psnr", "beauty")
    assert "something as metrics, got nothing" in message_of(*base, "--metrics")
    assert "something as samplers, got nothing" in message_of(*base, "--samplers")
    assert not (tmp_path / "e").exists()
    assert "expected a folder" in message_of(*base)
    (tmp_path / "file").write_text("in the way")
    assert "can be written to" in message_of(*base, "--out", tmp_path / "file" / "e")
    for name, training, words in (
        ("bare", {}, "a record of its training"),
        ("fog", {"degradation": "fog", "degradation_options": {}, "noise": 0, "quantise": True, "size": 16},
         "degradation among"),
    ):  # fmt: skip
        shutil.copytree(run_folder, tmp_path / name)
        content = json.loads((run_folder / "model.json").read_text())
        content["record"] = {"training": training}
        (tmp_path / name / "model.json").write_text(json.dumps(content))
        assert words in message_of(*base, "--checkpoint", tmp_path / name)
    photograph(0).save(tmp_path / "a.png")
    bare = ("--checkpoint", tmp_path / "bare", "--nfe", "1")
    assert code_of("restore", tmp_path / "a.png", tmp_path / "b.png", *bare) == 0  # which needs no record
    again = ("restore", tmp_path / "a.png", tmp_path / "c.png", "--degrade", *bare)
    assert "of its training" in message_of(*again)
    capsys.readouterr()
    missing = cli.MetricUnavailable("no weights")
    monkeypatch.setattr(cli, "evaluate", lambda *a: (_ for _ in ()).throw(missing))
    assert message_of(*base[:-1], photos) == "i2sb: no weights"
    assert capsys.readouterr().out == ""  # no header over nothing


@pytest.mark.slow
def test_corrupt_images_are_left_out_on_demand(run_folder, photos, tmp_path, capsys):
    for i in range(3):
        shutil.copy(photos / f"{i:02}.png", tmp_path)
    (tmp_path / "bad.png").write_bytes((tmp_path / "00.png").read_bytes()[:200])
    base = ("evaluate", "--checkpoint", run_folder, "--data", tmp_path, "--nfe", "1")
    assert "bad.png" in message_of(*base)
    assert code_of(*base, "--skip-corrupt") == 0
    out, err = capsys.readouterr()
    assert out.startswith("3 images, GaussianBlur(kernel_size=7, sigma=2.0) + Quantise()\n")
    assert "bad.png" in err


def test_a_plain_installation_evaluates_what_it_can(run_folder, photos, monkeypatch, capsys):
    base = ("evaluate", "--checkpoint", run_folder, "--data", photos, "--limit", "2", "--nfe", "1")
    assert code_of(*base) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["sampler", "nfe", "psnr", "ssim"]
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    assert code_of(*base) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["sampler", "nfe", "psnr"]
    said = message_of(*base, "--metrics", "psnr", "ssim")
    assert 'ssim needs torchmetrics: pip install "i2sb-lib[metrics]"' in said


def test_no_image_s_noise_depends_on_how_many_there_are(run_folder, photos, monkeypatch):
    """Masks are drawn before the noise, so that a batch cut first would give other noise."""
    seen, degrade = [], create_degradation("inpaint-freeform", noise=0.1, quantise=True)
    monkeypatch.setattr(cli, "create_pair_maker", lambda training: degrade)
    monkeypatch.setattr(Pretrained, "restore", lambda model, x1, *a, **k: seen.append(x1) or x1)
    for limit in ("2", "24"):
        main(["evaluate", "--checkpoint", str(run_folder), "--data", str(photos), "--limit", limit,
              "--nfe", "1", "--metrics", "psnr"])  # fmt: skip
    assert torch.equal(seen[0], seen[1][:2])
    whole = to_float(load_images(photos, size=16))  # as the shipped records were made
    assert torch.equal(seen[1], degrade(whole, torch.Generator().manual_seed(2**31)))


def test_an_evaluation_that_fails_leaves_its_rows_and_no_finished_record(
    run_folder, photos, tmp_path, monkeypatch
):
    calls, whole = [], cli.evaluate
    monkeypatch.setattr(
        cli, "evaluate", lambda *a: calls.append(a) or (whole(*a) if len(calls) < 3 else 1 / 0)
    )
    base = ["evaluate", "--checkpoint", str(run_folder), "--data", str(photos), "--limit", "2"]
    base += ["--out", str(tmp_path)]
    with pytest.raises(ZeroDivisionError):
        main([*base, "--nfe", "1", "2"])
    assert not (tmp_path / "metrics.json").exists()
    assert len(json.loads((tmp_path / "metrics.partial.json").read_text())["results"]) == 2
    monkeypatch.undo()
    main([*base, "--nfe", "1", "2"])
    assert len(json.loads((tmp_path / "metrics.json").read_text())["results"]) == 3
    assert not (tmp_path / "metrics.partial.json").exists()


def test_degrade_then_restore_is_what_the_library_does(tmp_path, run_folder):
    photo = tmp_path / "photo.png"
    photograph(5, 24, 24).save(photo)
    options = ["--options", "sigma", "1.5", "kernel_size", "5", "--noise", "0.05", "--seed", "3"]
    main(["degrade", str(photo), str(tmp_path / "new" / "blurred.png"), *options])
    x0 = to_float(to_tensor(photograph(5, 24, 24)))[None]
    degrade = create_degradation("blur-gauss", sigma=1.5, kernel_size=5, noise=0.05, quantise=True)
    x1 = degrade(x0, torch.Generator().manual_seed(seed_of(3, "photo.png") + 2**31))  # not the sampler's
    assert torch.equal(to_tensor(Image.open(tmp_path / "new" / "blurred.png")), to_uint8(x1)[0])
    flags = ["--checkpoint", str(run_folder), "--nfe", "2", "--seed", "4"]
    main(["restore", str(tmp_path / "new"), str(tmp_path / "out"), *flags])
    x0_hat = load_pretrained(run_folder).restore(x1, 2, "sde", [seed_of(4, "blurred.png")])
    assert torch.equal(to_tensor(Image.open(tmp_path / "out" / "blurred.png")), to_uint8(x0_hat)[0])
    main(["restore", str(photo), str(tmp_path / "both"), "--degrade", *flags])
    assert Image.open(tmp_path / "both" / "photo.png").size == (48, 24)  # degraded and restored


def test_evaluate_measures_what_restore_does_unless_told(tmp_path, run_folder, photos):
    """The walk that the record recommends, in full; 1 and 10 calls where it recommends none."""
    base = (
        "evaluate",
        "--checkpoint",
        tmp_path / "own",
        "--data",
        photos,
        "--metrics",
        "psnr",
        "--limit",
        "2",
    )
    shutil.copytree(run_folder, tmp_path / "own")
    file = tmp_path / "own" / "model.json"
    content = json.loads(file.read_text())

    def rows(*given):
        assert code_of(*base, "--out", tmp_path / "e", *given) == 0
        found = json.loads((tmp_path / "e" / "metrics.json").read_text())
        return [(r["sampler"], r["nfe"]) for r in found["results"][1:]], found

    assert rows()[0] == [("sde", 1), ("sde", 10)]
    content["record"] |= {"nfe": 3, "sampler": "dbim", "power": 2.0}
    file.write_text(json.dumps(content))
    walks, found = rows()
    assert (walks, found["power"], found["consistency"]) == ([("dbim", 3)], 2.0, 0.0)
    assert found["results"][0]["psnr"]["value"] != found["results"][1]["psnr"]["value"]
    assert rows("--power", "1")[1]["results"] != found["results"]
    walks, found = rows("--nfe", "3")
    assert (walks, found["power"]) == ([("sde", 3)], 1.0)


def test_evaluate_writes_a_record_that_can_be_traced(tmp_path, run_folder, photos, capsys):
    out = tmp_path / "record"
    args = ["evaluate", "--checkpoint", run_folder, "--data", photos, "--nfe", "1", "2", "--samplers", "sde"]
    args += ["ode", "--limit", "5", "--seed", "2", "--out", out]
    assert code_of(*args) == 0
    table = capsys.readouterr().out
    record = json.loads((out / "metrics.json").read_text())
    rows = [("identity", 0), ("sde", 1), ("sde", 2), ("ode", 1), ("ode", 2)]
    assert [(r["sampler"], r["nfe"]) for r in record["results"]] == rows
    for row in record["results"]:
        assert row["psnr"]["low"] <= row["psnr"]["value"] <= row["psnr"]["high"]
        assert f"{row['psnr']['value']:9.4f}" in table
    clean = load_images(photos, size=16)[:5]
    assert record["data"] == {"source": photos.name, "images": 5, "fingerprint": fingerprint(clean)}
    assert record["seed"] == 2
    assert record["device"]
    assert record["git_commit"] is None or len(record["git_commit"].removesuffix("-dirty")) == 40
    assert record["checkpoint"]["config_hash"] == config_hash(record["checkpoint"]["training"])
    assert {f.name for f in out.iterdir()} == {"metrics.json", "history.json", "restored.png"}
    shutil.rmtree(out)
    assert code_of(*args) == 0
    assert json.loads((out / "metrics.json").read_text()) == record  # the same again


def test_the_sampler_s_noise_is_not_the_noise_of_the_degraded_image(monkeypatch, run_folder, photos):
    """The model sees x1's noise; a sampler that repeated it would draw x_t off the bridge."""
    seen = []
    restore = Pretrained.restore

    def spy(model, x1, nfe, sampler, seed, **options):
        noise = create_degradation("noise")(torch.zeros_like(x1), torch.Generator().manual_seed(seed))
        seen.append((x1 - noise).std() / noise.std())
        return restore(model, x1, nfe, sampler, seed, **options)

    flat = create_degradation("noise")
    monkeypatch.setattr(Pretrained, "restore", spy)
    monkeypatch.setattr("i2sb_lib.cli.create_pair_maker", lambda training: lambda x, g: flat(0 * x, g))
    main(["evaluate", "--checkpoint", str(run_folder), "--data", str(photos), "--nfe", "1"])
    assert [float(v) for v in seen] == pytest.approx([2**0.5], rel=0.1)


def test_nobody_s_picture_or_record_is_taken_for_ours(tmp_path, run_folder, photos):
    """A photograph called restored.png is not replaced, and another run's history stays its own."""
    shutil.copytree(photos, tmp_path / "mine")
    (tmp_path / "mine" / "00.png").rename(tmp_path / "mine" / "restored.png")
    before = (tmp_path / "mine" / "restored.png").read_bytes()
    ours = ["evaluate", "--checkpoint", run_folder, "--nfe", 1, "--metrics", "psnr", "--data"]
    assert "restored.png is ours to replace" in message_of(
        *ours, tmp_path / "mine", "--out", tmp_path / "mine"
    )
    for name in ("metrics.json", "state.pt"):  # the name alone makes it no folder of ours
        (tmp_path / "mine" / name).write_text("{}")
    assert "is ours to replace" in message_of(*ours, tmp_path / "mine", "--out", tmp_path / "mine")
    assert (tmp_path / "mine" / "restored.png").read_bytes() == before
    other = tmp_path / "other"
    shutil.copytree(run_folder, other)
    (other / "history.json").write_text("[]")
    main([str(a) for a in (*ours, photos, "--out", other)])
    assert (other / "history.json").read_text() == "[]"
    main([str(a) for a in (*ours, photos, "--out", other)])  # what we wrote may be written again


@pytest.mark.parametrize("name", ["metrics.json", "metrics.partial.json", "restored.png", "history.json"])
@pytest.mark.parametrize("state", [{"epoch": 3}, {"config": {}, "model": {}, "step": 3}])
def test_an_evaluation_replaces_nothing_of_another_program(tmp_path, run_folder, photos, name, state):
    torch.save(state, tmp_path / "state.pt")  # which makes it no run of ours
    (tmp_path / name).write_text('{"accuracy": 0.91, "results": [], "seed": 0, "shards": []}')
    before = {f: f.read_bytes() for f in tmp_path.iterdir()}
    ours = ("evaluate", "--checkpoint", run_folder, "--nfe", 1, "--metrics", "psnr", "--data", photos)
    assert f"expected a folder whose {name} is ours to replace" in message_of(*ours, "--out", tmp_path)
    assert {f: f.read_bytes() for f in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_a_run_that_ends_before_its_first_save_can_be_gone_on_with(tiny, monkeypatch):
    """What it drew by then is not all that it leaves."""
    config = dataclasses.replace(tiny, eval_every=2, save_every=100)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", lambda c, k: 1 / 0 if k == 4 else learning_rate(c, k))
        with pytest.raises(ZeroDivisionError):
            loop.train(config)
    assert (Path(config.out) / "contact_sheet.png").exists()
    assert loop.train(config, resume=True)["finished"]


def test_a_picture_called_contact_sheet_is_not_trained_over(tmp_path, photos):
    shutil.copytree(photos, tmp_path / "mine")
    (tmp_path / "mine" / "00.png").rename(tmp_path / "mine" / "contact_sheet.png")
    flags = ["--data", tmp_path / "mine", "--out", tmp_path / "mine", "--size", 16, "--network", "unet-tiny"]
    assert "expected no contact_sheet.png" in message_of("train", *flags)


@pytest.mark.slow
def test_a_command_starts_without_what_it_may_never_need():
    """Each of these takes from a third of a second to two."""
    rare = (
        "torch._dynamo",
        "torchvision",
        "skimage",
        "sklearn",
        "scipy",
        "matplotlib",
        "pyarrow",
        "torchmetrics",
    )
    code = f"import sys, i2sb_lib.cli; print([m for m in {rare} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="closes what a shell closes")
def test_a_closed_stderr_changes_nothing(tmp_path, photos, i2sb):
    flags = ["--network", "unet-tiny", "--steps", 1, "--batch-size", 4, "--holdout", 4, "--size", 16]
    args = ["--data", photos, "--out", tmp_path / "out", *flags, "--precision", "no"]
    done = i2sb("train", *args, stderr=None, preexec_fn=lambda: os.close(2))
    assert "i2sb: " not in done.communicate(timeout=120)[0]
    assert done.returncode == 0
    assert (tmp_path / "out" / "state.pt").is_file()


def test_output_that_nobody_reads_ends_the_command_in_silence(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    gone = os.fdopen(write, "w")
    monkeypatch.setattr(sys, "stdout", gone)
    assert code_of("info") == 141
    gone.close()  # what it still held goes nowhere, and is no error


def test_an_evaluation_of_pairs_can_keep_their_scale(tmp_path, run_folder, capsys):
    for i in range(4):
        big = Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8))
        for folder, image in (("clean", big), ("soft", big.filter(ImageFilter.GaussianBlur(2)))):
            (tmp_path / folder).mkdir(exist_ok=True)
            image.save(tmp_path / folder / f"{i}.png")
    command = ["evaluate", "--checkpoint", run_folder, "--nfe", 1, "--metrics", "psnr"]
    pairs = ["--data", tmp_path / "clean", "--degraded", tmp_path / "soft"]
    x0, x1 = (
        np.stack([np.asarray(Image.open(f)) for f in sorted((tmp_path / n).iterdir())])
        for n in ("clean", "soft")
    )
    whole = -10 * np.log10(((x0 / 255.0 - x1 / 255.0) ** 2).mean((1, 2, 3)))
    found = {}
    for crops in (0, 8):
        main([str(a) for a in (*command, *pairs, "--crops", crops, "--out", tmp_path / f"out {crops}")])
        record = json.loads((tmp_path / f"out {crops}" / "metrics.json").read_text())
        found[crops] = record["results"][0]["psnr"]["value"]
        assert record.get("crops", 0) == crops
        assert ("made 16 x 16" in capsys.readouterr().err) == (not crops)
    assert found[8] == pytest.approx(whole.mean(), abs=2)
    assert found[0] > whole.mean() + 5  # what was measured before, without a word


def test_a_second_evaluation_leaves_no_history_of_the_first(tmp_path, run_folder, photos):
    other, out = tmp_path / "other", tmp_path / "out"
    shutil.copytree(run_folder, other)
    (other / "state.pt").unlink()
    (other / "history.json").write_text("[]")
    command = ["evaluate", "--data", photos, "--nfe", 1, "--metrics", "psnr", "--out", out, "--checkpoint"]
    first = (run_folder / "history.json").read_text()
    for checkpoint, history in ((run_folder, first), (other, "[]"), (run_folder, first)):
        main([str(a) for a in (*command, checkpoint)])
        assert (out / "history.json").read_text() == history
    (other / "history.json").unlink()
    main([str(a) for a in (*command, other)])
    assert not (out / "history.json").exists()
    main([str(a) for a in (*command[:-2], other, "--checkpoint", other)])  # beside its own weights
    assert not (other / "history.json").exists()


def test_a_tilde_is_home_wherever_it_stands(tmp_path, monkeypatch, photos):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    main(["degrade", str(photos), "~/a b/"])
    main(
        [
            "train",
            f"--data={photos}",
            "--out=~/run",
            *[
                "--size=16",
                "--network=unet-tiny",
                "--steps=1",
                "--batch-size=4",
                "--holdout=4",
                "--no-progress",
            ],
        ]
    )
    assert sorted(f.name for f in (tmp_path / "home").iterdir()) == ["a b", "run"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["home"]
    main(["degrade", str(photos / "00.png"), "~/a=b.png"])
    assert (tmp_path / "home" / "a=b.png").exists()
    (tmp_path / "x=~").mkdir()
    main(["degrade", str(photos / "00.png"), "x=~/q.png"])
    assert (tmp_path / "x=~" / "q.png").exists()
    (tmp_path / "~odd").mkdir()  # of no user
    main(["degrade", str(photos / "00.png"), "~odd/x.png"])
    assert (tmp_path / "~odd" / "x.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["1", "9"])
def test_help_is_done_in_a_narrow_terminal(i2sb, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    out, _ = i2sb("degrade", "--help").communicate(timeout=30)
    assert "--noise" in out


def test_a_card_in_another_encoding_is_shown_all_the_same(tmp_path, run_folder, capsys):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "README.md").write_bytes("modèle".encode("latin-1"))
    main(["info", str(tmp_path / "run")])
    assert "mod\ufffdle" in capsys.readouterr().out
