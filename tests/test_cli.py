"""Every command end to end on tiny data: what it writes, what it prints, how it exits."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from conftest import photograph
from PIL import Image

from i2sb_lib import cli
from i2sb_lib.checkpoints import load_pretrained
from i2sb_lib.cli import COMMANDS, Evaluate, main
from i2sb_lib.config import PRESETS, TrainConfig, config_hash
from i2sb_lib.data import fingerprint, load_images
from i2sb_lib.degradations import create_degradation
from i2sb_lib.images import to_float, to_tensor, to_uint8
from i2sb_lib.restoration import Pretrained


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


def test_presets_on_the_command_line_are_those_of_the_library():
    hint = get_type_hints(cli.Train)["preset"]
    names = next(get_args(a) for a in get_args(hint) if get_args(a))
    assert set(names) == set(PRESETS)


def test_a_preset_sets_flags_that_later_flags_change(monkeypatch, capsys):
    seen = []
    fake = {"finished": True, "step": 1, "psnr_1": 20.0}
    monkeypatch.setattr(cli, "train", lambda config, resume: seen.append((config, resume)) or fake)
    main(["train", "--preset", "celeba64-deblur", "--lr", "0.5", "--resume"])
    main(["train", "--degradation-options", "sigma", "1.5", "--no-quantise"])
    (first, resume), (second, fresh) = seen
    assert (first, resume) == (dataclasses.replace(PRESETS["celeba64-deblur"], lr=0.5), True)
    changes = {"degradation_options": {"sigma": 1.5}, "quantise": False}
    assert (second, fresh) == (dataclasses.replace(TrainConfig(), **changes), False)
    assert "finished at step 1 of 60000, psnr_1 20.0" in capsys.readouterr().out


def test_a_preset_may_be_joined_by_an_equals_sign(monkeypatch):
    seen = []
    fake = {"finished": True, "step": 1}
    monkeypatch.setattr(cli, "train", lambda config, resume: seen.append(config) or fake)
    main(["train", "--preset=celeba64-deblur"])
    assert seen == [PRESETS["celeba64-deblur"]]


def test_a_run_is_resumed_without_its_flags(monkeypatch, run_folder):
    seen = []
    fake = {"finished": True, "step": 1}
    monkeypatch.setattr(cli, "train", lambda config, resume: seen.append(config) or fake)
    main(["train", "--resume", "--out", str(run_folder), "--steps", "50"])
    ((config,), made) = seen, torch.load(run_folder / "state.pt", weights_only=True)["config"]
    assert dataclasses.asdict(config) == made | {"steps": 50}


def test_exit_codes_are_those_of_the_help_text(tmp_path, run_folder, capsys):
    assert code_of("--help") == 0
    assert code_of() == 0
    assert code_of("destroy") == 2
    assert "['train', 'restore'" in capsys.readouterr().out
    assert code_of("train", "--no-such-flag") == 2
    assert code_of("restore") == 2
    assert "absent" in message_of("restore", tmp_path / "absent", tmp_path, "--checkpoint", run_folder)
    assert "got none" in message_of("degrade", tmp_path, tmp_path / "out")
    assert "'nope'" in message_of("info", "nope")
    assert "degradation among" in message_of("degrade", tmp_path, tmp_path, "--name", "fog")
    assert "expected a folder" in message_of("train", "--data", tmp_path / "absent", "--out", tmp_path / "r")
    assert "holds a run" in message_of("train", "--out", run_folder)


def test_train_as_a_process_then_info(tiny, i2sb, photos, capsys):
    flags = ["--network", "unet-tiny", "--steps", "3", "--batch-size", "4", "--holdout", "4", "--size", "16"]
    process = i2sb("train", "--data", photos, "--out", tiny.out, *flags, "--precision", "no")
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, "")  # no bar, no warnings where no terminal is
    assert out.startswith(f"{tiny.out}: finished at step 3 of 3, psnr_1 ")
    files = {f.name for f in Path(tiny.out).iterdir()}
    wanted = {"state.pt", "model.json", "model-1-of-1.safetensors", "history.json", "contact_sheet.png"}
    assert files == wanted
    main(["info", tiny.out])
    content = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert content["parameters"] == sum(p.numel() for p in load_pretrained(tiny.out).denoiser.parameters())
    assert content["config_hash"] == config_hash(content["training"])
    main(["info"])
    assert capsys.readouterr().out.count("(default)") <= 1


def test_a_folder_keeps_names_and_nesting_and_survives_a_bad_file(tmp_path, run_folder, capsys):
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "deep" / "er").mkdir(parents=True)
    photograph(0).save(source / "a.png")
    photograph(1).save(source / "deep" / "b.JPG")
    photograph(2).save(source / "deep" / "er" / "c.webp")
    (source / "deep" / "broken.png").write_bytes(b"no image")
    (source / "notes.txt").write_text("left alone")
    said = message_of("restore", source, target, "--checkpoint", run_folder, "--nfe", "1")
    assert "broken.png: expected an image" in said
    assert "3 of 4 images were written" in said
    found = {str(f.relative_to(target)) for f in target.rglob("*") if f.is_file()}
    assert found == {"a.png", "deep/b.JPG", "deep/er/c.webp"}


def test_sources_are_never_overwritten_nor_targets_read(tmp_path, run_folder, capsys):
    source, how = tmp_path / "in", ("--checkpoint", run_folder, "--nfe", "1")
    source.mkdir()
    photograph(0).save(source / "a.png")
    before = (source / "a.png").read_bytes()
    for target in (source, source / ".." / "in"):
        assert "target beside the source" in message_of("restore", source, target, *how)
    assert "target beside the source" in message_of("restore", source / "a.png", source / "a.png", *how)
    assert "expected a folder" in message_of("restore", source, tmp_path / "x.png", *how)
    assert "got" in message_of("restore", source / "a.png", tmp_path / "x.gif", *how)
    for _ in range(2):
        main(["restore", str(source), str(source / "out"), *map(str, how)])
    assert sorted(f.name for f in source.rglob("*.png")) == ["a.png", "a.png"]
    assert (source / "a.png").read_bytes() == before


def test_images_of_a_folder_have_noise_of_their_own(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name in "ab":
        photograph(0).save(source / f"{name}.png")
    main(["degrade", str(source), str(tmp_path / "out"), "--name", "noise", "--options", "std", "0.1"])
    a, b = (to_tensor(Image.open(tmp_path / "out" / f"{name}.png")) for name in "ab")
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


def test_evaluate_refuses_before_it_works(run_folder, tmp_path):
    base = ("evaluate", "--checkpoint", run_folder, "--out", tmp_path / "e")
    assert "nfe of at least 1, got (0,)" in message_of(*base, "--nfe", "0")
    assert "limit of at least 1" in message_of(*base, "--limit", "-1")
    assert not (tmp_path / "e").exists()


def test_an_evaluation_that_fails_leaves_its_rows_and_no_finished_record(run_folder, tmp_path, monkeypatch):
    calls, whole = [], cli.evaluate
    monkeypatch.setattr(
        cli, "evaluate", lambda *a: calls.append(a) or (whole(*a) if len(calls) < 3 else 1 / 0)
    )
    base = ["evaluate", "--checkpoint", str(run_folder), "--limit", "2", "--out", str(tmp_path)]
    with pytest.raises(ZeroDivisionError):
        main([*base, "--nfe", "1", "2"])
    assert not (tmp_path / "metrics.json").exists()
    assert len(json.loads((tmp_path / "metrics.partial.json").read_text())["results"]) == 2
    monkeypatch.undo()
    main([*base, "--nfe", "1", "2"])
    assert len(json.loads((tmp_path / "metrics.json").read_text())["results"]) == 3
    assert not (tmp_path / "metrics.partial.json").exists()


def test_alpha_grey_rotation_and_odd_sizes_are_restored(tmp_path, run_folder):
    source, exif = tmp_path / "in", Image.Exif()
    source.mkdir()
    exif[0x0112] = 6
    photograph(0, 21, 33).convert("RGBA").save(source / "alpha.png")
    photograph(0, 21, 33).convert("L").save(source / "grey.png")
    photograph(0, 21, 33).save(source / "rotated.png", exif=exif)
    main(["restore", str(source), str(tmp_path / "out"), "--checkpoint", str(run_folder), "--nfe", "1"])
    images = {f.stem: Image.open(f) for f in (tmp_path / "out").iterdir()}
    assert {k: (i.mode, i.size) for k, i in images.items()} == {
        "alpha": ("RGB", (33, 21)), "grey": ("RGB", (33, 21)), "rotated": ("RGB", (21, 33)),
    }  # fmt: skip
    turned = photograph(0, 21, 33).rotate(-90, expand=True)
    error = np.asarray(images["rotated"], dtype=float) - np.asarray(turned)
    assert np.abs(error).mean() < 30  # upright, not only of upright size


def test_degrade_then_restore_is_what_the_library_does(tmp_path, run_folder):
    photo = tmp_path / "photo.png"
    photograph(5, 24, 24).save(photo)
    options = ["--options", "sigma", "1.5", "kernel_size", "5", "--noise", "0.05", "--seed", "3"]
    main(["degrade", str(photo), str(tmp_path / "new" / "blurred.png"), *options])
    x0 = to_float(to_tensor(photograph(5, 24, 24)))[None]
    degrade = create_degradation("blur-gauss", sigma=1.5, kernel_size=5, noise=0.05, quantise=True)
    x1 = degrade(x0, torch.Generator().manual_seed(3 + 2**31))  # not the sampler's stream
    assert torch.equal(to_tensor(Image.open(tmp_path / "new" / "blurred.png")), to_uint8(x1)[0])
    flags = ["--checkpoint", str(run_folder), "--nfe", "2", "--seed", "4"]
    main(["restore", str(tmp_path / "new"), str(tmp_path / "out"), *flags])
    x0_hat = load_pretrained(run_folder).restore(x1, 2, "sde", 4)
    assert torch.equal(to_tensor(Image.open(tmp_path / "out" / "blurred.png")), to_uint8(x0_hat)[0])
    main(["restore", str(photo), str(tmp_path / "both"), "--degrade", *flags])
    assert Image.open(tmp_path / "both" / "photo.png").size == (48, 24)  # degraded and restored


def test_evaluate_writes_a_record_that_can_be_traced(tmp_path, run_folder, photos, capsys):
    out = tmp_path / "record"
    args = ["evaluate", "--checkpoint", run_folder, "--data", photos, "--nfe", "1", "3", "--samplers", "sde"]
    args += ["ode", "--limit", "5", "--seed", "2", "--out", out]
    assert code_of(*args) == 0
    table = capsys.readouterr().out
    record = json.loads((out / "metrics.json").read_text())
    rows = [("identity", 0), ("sde", 1), ("sde", 3), ("ode", 1), ("ode", 3)]
    assert [(r["sampler"], r["nfe"]) for r in record["results"]] == rows
    for row in record["results"]:
        assert row["psnr"]["low"] <= row["psnr"]["value"] <= row["psnr"]["high"]
        assert f"{row['psnr']['value']:9.4f}" in table
    clean = load_images(photos, size=16)[:5]
    assert record["data"] == {"source": photos.name, "images": 5, "fingerprint": fingerprint(clean)}
    assert record["seed"] == 2
    assert record["device"]
    assert record["git_commit"] is None or len(record["git_commit"]) == 40
    assert record["checkpoint"]["config_hash"] == config_hash(record["checkpoint"]["training"])
    assert {f.name for f in out.iterdir()} == {"metrics.json", "history.json", "restored.png"}
    shutil.rmtree(out)
    assert code_of(*args) == 0
    assert json.loads((out / "metrics.json").read_text()) == record  # the same again
    assert "expected metrics among" in message_of(*args, "--metrics", "beauty")


def test_the_default_evaluation_needs_no_download():
    assert (Evaluate().data, Evaluate().metrics) == ("embedded", ("psnr", "ssim"))


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
