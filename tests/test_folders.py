"""One image or a folder of them: nothing of a stranger's is lost, and what is not done is said."""

import contextlib
import errno
import os
import re
import signal
import sys
import unicodedata
import zlib
from pathlib import Path

import pytest
import torch
from conftest import photograph
from PIL import Image

from i2sb_lib import cli, folders, images
from i2sb_lib.checkpoints import Pretrained
from i2sb_lib.cli import main
from i2sb_lib.data import load_images
from i2sb_lib.faults import warn
from i2sb_lib.images import to_tensor


def told(*args) -> str:
    """The one sentence that a command leaves when it fails; empty where it does not."""
    code = ""
    try:
        main([str(a) for a in args])
    except SystemExit as stop:
        code = stop.code
    assert isinstance(code, str)  # which means exit code 1
    assert "\n" not in code
    return code


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def lay(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(i).save(folder / name)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("one.png", "."),
        ("one.png", "one.png"),
        ("one.png", "alias.png"),  # a link to it
        ("one.png", "ONE.PNG"),  # a second name of the same file, as where case does not count
        ("one.png", "here/"),  # a link to its folder
        ("alias.png", "one.png"),
        ("one.png", "new/../one.png"),  # where there is no new
        ("nest", "new/../nest"),
        ("blurred/a.png", "."),  # beside which another a.png stands
        ("nest", "nest"),
        ("nest", "nest/sub"),  # whose x.png is as original as the one above it
        ("nest", "nest/../here/nest"),
        ("blurred", "."),
        ("blurred", "out"),  # where out/deep leads back into blurred
    ],
)
def test_no_original_is_overwritten(tmp_path, monkeypatch, source, target):
    lay(tmp_path, "one.png", "a.png", "blurred/a.png", "blurred/deep/b.png", "nest/x.png", "nest/sub/x.png")
    os.link(tmp_path / "one.png", tmp_path / "ONE.PNG")
    (tmp_path / "alias.png").symlink_to("one.png")
    (tmp_path / "here").symlink_to(".")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep").symlink_to("../blurred/deep")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    said = told("degrade", source, target)
    assert tree(tmp_path) == before
    assert "overwrites no original" in said


@pytest.mark.parametrize("paths", ["a.png b.png", "in sharp", "in/a.png sharp", "a.tif sharp/a.webp"])
def test_an_original_in_the_target_is_not_overwritten(tmp_path, monkeypatch, paths):
    """As *.png without a target gives it, or the clean pictures' folder for the results'."""
    lay(tmp_path, "a.png", "b.png", "in/a.png", "sharp/a.png", "a.tif", "sharp/a.webp")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    assert "overwrites no original" in told("degrade", *paths.split())
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "command",
    ["degrade b/a.png out", "degrade b out", "degrade out/a.png out/b.png", "restore a/a.png out --degrade"],
)
def test_a_result_is_not_replaced_by_another_picture_s_or_command_s(
    tmp_path, monkeypatch, run_folder, command
):
    """Cameras count from 1 again: a name says little."""
    lay(tmp_path, "a/a.png", "b/a.png", "a/b.png")
    monkeypatch.chdir(tmp_path)
    assert told("degrade", "a/a.png", "a/b.png", "out/") == ""
    before = tree(tmp_path)
    name, *rest = command.split()
    said = told(name, *rest, *(("--checkpoint", run_folder, "--nfe", 1) if name == "restore" else ()))
    assert "overwrites no other result" in said
    assert tree(tmp_path) == before


def test_another_card_at_the_same_place_replaces_no_result(tmp_path, capsys):
    """Nor does a picture that was changed; the same one does, and one that is gone stops no other."""
    card, out = tmp_path / "card", tmp_path / "out"
    lay(card, "0.png", "1.png", "2.png")
    assert told("degrade", card, out) == ""
    first, before = tree(card), tree(out)
    assert told("degrade", card, out) == ""
    photograph(9).save(card / "1.png")
    for source in (card, card / "1.png"):
        said = told("degrade", source, f"{out}/")
        made = "which another command or picture, or this one before it was edited"
        assert f"overwrites no other result, got {out / '1.png'} there, {made}" in said
        assert tree(out) == before
    (card / "1.png").write_bytes(first["1.png"])
    (card / "2.png").unlink()
    (card / "2.png").symlink_to("nowhere")
    capsys.readouterr()
    assert "2 of 3 images were written" in told("degrade", card, out, "--name", "none")
    assert tree(out)["2.png"] == before["2.png"]
    assert tree(out)["1.png"] != before["1.png"]


def test_a_result_is_known_again_from_any_folder_and_through_links(tmp_path, monkeypatch):
    lay(tmp_path, "in/a.png")
    (tmp_path / "link").symlink_to("in")
    places = [(".", "in/a.png"), ("in", "a.png"), ("link", "../in/a.png"), (".", "link"), (".", "moved")]
    for place, source in places:
        if source == "moved":
            (tmp_path / "in").rename(tmp_path / "moved")
        monkeypatch.chdir(tmp_path / place)
        assert told("degrade", source, tmp_path / "out") == ""


def test_an_image_s_noise_is_the_same_in_both_of_unicode_s_forms():
    nfc, nfd = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    assert nfc != nfd
    assert folders.seed_of(3, nfd) == folders.seed_of(3, nfc)
    assert folders.seed_of(3, nfd) != folders.seed_of(3, "e.png")


@pytest.mark.parametrize("suffix", [".bmp", ".ppm"])
def test_a_format_that_holds_no_mark_says_how_to_go_on(tmp_path, suffix):
    lay(tmp_path, f"in/a{suffix}")
    assert told("degrade", tmp_path / "in", tmp_path / "out") == ""
    before = tree(tmp_path)
    said = told("degrade", tmp_path / "in", tmp_path / "out")
    assert f"got {tmp_path}/out/a{suffix} there, and no {suffix} tells if it is one: delete it, or" in said
    assert tree(tmp_path) == before
    assert "delete" not in told("degrade", tmp_path / "in" / f"a{suffix}", tmp_path / "in" / f"a{suffix}")


@pytest.mark.parametrize("suffix", [s for s in images.SUFFIXES if s not in (".bmp", ".ppm")])
def test_a_result_may_be_made_anew(tmp_path, suffix):
    lay(tmp_path, f"a{suffix}")
    file, out = tmp_path / f"a{suffix}", tmp_path / f"out{suffix}"
    assert told("degrade", file, out) == ""
    first = out.read_bytes()
    assert told("degrade", file, out, "--name", "none") == ""
    assert out.read_bytes() != first
    assert images.is_ours(out)
    assert images.is_ours(out, f"degrade {zlib.crc32(file.read_bytes()):08x}")
    assert not images.is_ours(out, f"restore {zlib.crc32(file.read_bytes()):08x}")
    assert not images.is_ours(file)
    assert not images.is_ours(tmp_path / "absent")


def test_a_target_around_or_inside_the_source_is_filled_where_nothing_is_lost(tmp_path, monkeypatch, capsys):
    lay(tmp_path, "in/a.png", "in/deep/b.png", "other.png")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    assert told("degrade", "in", ".") == ""
    assert set(tree(tmp_path)) == {*before, "a.png", "deep/b.png"}
    assert capsys.readouterr().err == ""
    warned = "i2sb: as data, in holds what is written to in/out, too\n"
    for _ in range(2):  # once more is allowed, there too
        assert told("degrade", "in", "in/out") == ""
        assert set(tree(tmp_path / "in" / "out")) == {"a.png", "deep/b.png"}
        assert capsys.readouterr().err == warned
    assert told("degrade", "in", "elsewhere") == ""
    assert told("degrade", "in", "elsewhere") == ""
    assert {k: v for k, v in tree(tmp_path).items() if k in before} == before


def test_a_folder_keeps_names_and_nesting_and_survives_a_bad_file(tmp_path):
    lay(tmp_path, "in/a.png", "in/deep/b.JPG", "in/deep/er/c.webp", "in/deep/broken.png")
    (tmp_path / "in" / "deep" / "broken.png").write_bytes(b"no image")
    said = told("degrade", tmp_path / "in", tmp_path / "out")
    assert "broken.png: expected an image" in said
    assert "3 of 4 images were written" in said
    assert set(tree(tmp_path / "out")) == {"a.png", "deep/b.JPG", "deep/er/c.webp"}
    assert "expected a folder as the target" in told("degrade", tmp_path / "in", tmp_path / "x.png")


def test_two_results_never_share_a_file(tmp_path):
    lay(tmp_path, "in/x/a.png", "in/y/a.png")
    (tmp_path / "out" / "y").mkdir(parents=True)
    (tmp_path / "out" / "x").symlink_to("y")
    said = told("degrade", tmp_path / "in", tmp_path / "out", "--name", "none")
    assert "two images" in said
    assert "1 of 2 images were written" in said
    files = tmp_path / "out" / "y" / "a.png", tmp_path / "in" / "x" / "a.png"
    assert torch.equal(*(to_tensor(Image.open(file)) for file in files))


def test_a_slash_or_a_folder_that_is_there_makes_the_target_a_folder(tmp_path, monkeypatch):
    lay(tmp_path, "a.png")
    monkeypatch.chdir(tmp_path)
    for target in ("results.v2/", "x.png/", "results.v2"):
        assert told("degrade", "a.png", target) == ""
        assert (Path(target) / "a.png").is_file()
    assert "got results.v3" in told("degrade", "a.png", "results.v3")
    Path("plain").write_text("a file")
    assert "as the target, got plain" in told("degrade", "a.png", "plain")
    assert "got an empty name" in told("degrade", "a.png", "")
    lay(tmp_path, "in/b.png")
    assert told("degrade", "in", "results.v4") == ""


def test_what_is_left_out_of_a_folder_is_counted(tmp_path, capsys):
    lay(tmp_path, "in/a.png", "in/b.gif", "in/deep/c.gif")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / "README").write_text("no picture")
    assert told("degrade", tmp_path / "in", tmp_path / "out") == ""
    assert set(tree(tmp_path / "out")) == {"a.png"}
    assert "skipped 4 other files (.gif 2, .txt 1, no suffix 1)" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".avif", ".gif", ""])
def test_a_file_of_another_kind_comes_out_without_loss(tmp_path, suffix):
    photograph(0, 32, 32).convert("P").convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / f"a{suffix}")  # a suffix is a promise about losses, no more
    assert told("degrade", tmp_path / f"a{suffix}", tmp_path / "out", "--name", "none") == ""
    (out,) = (tmp_path / "out").iterdir()
    assert out.suffix == ".png"
    assert torch.equal(to_tensor(Image.open(out)), to_tensor(Image.open(tmp_path / f"a{suffix}")))
    if suffix:  # nor is a loss of another kind made on demand
        assert "expected a folder or an image (.png" in told("degrade", out, tmp_path / f"b{suffix}")
        assert not (tmp_path / f"b{suffix}").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes"),
        OSError(errno.EIO, "Input/output error"),
    ],
    ids=["python", "cuda", "cpu", "disk"],
)
def test_what_fails_on_one_image_does_not_stop_a_folder(tmp_path, monkeypatch, error):
    lay(tmp_path, "in/a.png", "in/b.png", "in/c.png")
    bad = to_tensor(photograph(1))

    def degrade(x, generator):
        if torch.equal(((x[0] + 1) * 127.5).round().byte(), bad):
            raise error
        return x

    monkeypatch.setattr(cli, "create_degradation", lambda *a, **k: degrade)
    said = told("degrade", tmp_path / "in", tmp_path / "out")
    assert ("Input/output" if isinstance(error, OSError) else "out of memory") in said
    assert f"{tmp_path / 'in' / 'b.png'}: " in said
    assert "2 of 3 images were written" in said
    assert set(tree(tmp_path / "out")) == {"a.png", "c.png"}


@pytest.fixture
def pipes(tmp_path):
    """Two pictures, and links named as such to a pipe that nobody writes to and to what has no end."""
    lay(tmp_path, "in/a.png", "in/b.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "in" / "x.png").symlink_to("../pipe.png")
    (tmp_path / "in" / "y.PNG").symlink_to("/dev/zero")
    return tmp_path


def test_a_file_beyond_what_is_read_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 2**6)
    lay(tmp_path, "a.png")
    assert "a.png: expected an image, got something unreadable (over 64 bytes)" in told(
        "degrade", tmp_path / "a.png", f"{tmp_path}/out/"
    )


@pytest.mark.parametrize("name", ["pipe.png", "in/x.png", "/dev/zero", "/dev/null"])
def test_what_is_no_file_is_no_picture(pipes, name):
    said = told("degrade", pipes / name, f"{pipes}/out/")
    assert f"{pipes / name}: expected an image, got something unreadable (a pipe or a device)" in said
    with pytest.raises(ValueError, match=r"expected a folder, .* or an image, got a pipe or a device$"):
        load_images(pipes / name, size=16)


def test_what_is_no_file_is_left_out_of_a_folder_and_counted(pipes, capsys):
    assert told("degrade", pipes / "in", pipes / "out") == ""
    assert set(tree(pipes / "out")) == {"a.png", "b.png"}
    left = "2 other files (pipe or device 2)"
    assert f"in: skipped {left}\n" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=rf"left out {re.escape(left)}"):
        assert len(load_images(pipes / "in", size=16, progress=False)) == 2


def test_a_pipe_at_the_target_is_not_opened(pipes):
    assert "overwrites no original, got" in told("degrade", pipes / "in" / "a.png", pipes / "pipe.png")


def test_what_all_images_fail_by_is_told_once(tmp_path, capsys):
    lay(tmp_path, "in/a.png", "in/b.png", "in/deep/c.png")
    said = told("degrade", tmp_path / "in", tmp_path / "out", "--options", "kernel_size", "55")
    sides = "expected sides of at least 28 pixels for 55 taps, got 20"
    assert said == f"i2sb: {tmp_path / 'in'}: {sides}; 0 of 3 images were written"
    assert capsys.readouterr().err == ""
    photograph(0, 40, 40).save(tmp_path / "in" / "a.png")
    told("degrade", tmp_path / "in", tmp_path / "out", "--options", "kernel_size", "55")
    assert capsys.readouterr().err == f"i2sb: {tmp_path / 'in' / 'deep' / 'c.png'}: {sides}\n"


@pytest.mark.parametrize(
    "option", ["kernel_size 6", "kernel_size nan", "kernel_size inf", "kernel_size 7.5", "sigma nan", "fog 1"]
)
def test_an_option_that_no_image_can_have_is_refused_before_any_is_read(tmp_path, monkeypatch, option):
    lay(tmp_path, "in/a.png", "in/b.png")
    monkeypatch.setattr(folders, "open_image", lambda file: pytest.fail("an image was opened"))
    said = told("degrade", tmp_path / "in", tmp_path / "out", "--options", *option.split())
    assert option.split()[0] in said
    assert ".png" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full disk is Linux's /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_the_output_is_not_a_picture_s_failure(tmp_path, i2sb, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    lay(tmp_path, "in/a.png", "in/b.png")
    with open("/dev/full", "w") as full:
        done = i2sb("degrade", tmp_path / "in", tmp_path / "out", stdout=full)
        said = done.communicate(timeout=60)[1]
    assert (done.returncode, said.count("\n")) == (1, 1)
    assert said.startswith("i2sb: standard output: ")
    assert "No space left" in said
    assert ".png" not in said
    assert set(tree(tmp_path / "out")) == {"a.png", "b.png"}


def test_a_fault_of_the_program_is_not_hidden(tmp_path, monkeypatch):
    lay(tmp_path, "a.png")
    monkeypatch.setattr(cli, "create_degradation", lambda *a, **k: lambda x, g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["degrade", str(tmp_path / "a.png"), str(tmp_path / "out")])


def test_ctrl_c_leaves_whole_files_only_and_says_how_many(tmp_path, monkeypatch, capsys):
    lay(tmp_path, *(f"in/{name}.png" for name in "abc"))
    save = Image.Image.save

    def interrupted(image, path, **how):
        save(image, path, **how)
        if len(tree(tmp_path / "out")) > 1:  # in the middle of the second file
            Path(path).write_bytes(Path(path).read_bytes()[:50])
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["degrade", str(tmp_path / "in"), str(tmp_path / "out"), "--name", "none"])
    assert stop.value.code == 130
    out = tmp_path / "out"
    assert capsys.readouterr().err == f"i2sb: stopped: 1 of 3 images were written to {out}\n"
    assert set(tree(out)) == {"a.png"}
    assert torch.equal(to_tensor(Image.open(tmp_path / "out" / "a.png")), to_tensor(photograph(0)))


def test_a_folder_is_restored_in_batches_and_one_alone_is_as_in_the_folder(tmp_path, monkeypatch, run_folder):
    lay(tmp_path, *(f"in/{i}.png" for i in range(5)))
    photograph(7, 20, 33).save(tmp_path / "in" / "wide.png")
    photograph(8, 33, 20).save(tmp_path / "in" / "broken.png")
    (tmp_path / "in" / "broken.png").write_bytes((tmp_path / "in" / "broken.png").read_bytes()[:300])
    sizes, restore = [], Pretrained.restore
    monkeypatch.setattr(
        Pretrained, "restore", lambda m, x1, *a, **k: sizes.append(len(x1)) or restore(m, x1, *a, **k)
    )
    how = ("--checkpoint", run_folder, "--nfe", "3", "--seed", "5")
    assert "6 of 7 images were written" in told("restore", tmp_path / "in", tmp_path / "out", *how)
    assert sorted(sizes) == [1, 5]
    for name in ("0.png", "3.png", "wide.png"):
        assert told("restore", tmp_path / "in" / name, tmp_path / "alone" / name, *how) == ""
        one, other = (to_tensor(Image.open(tmp_path / f / name)).int() for f in ("alone", "out"))
        assert (one - other).abs().max() <= 1  # the last bit of a float may round a byte
    (tmp_path / "in" / "1.png").write_bytes((tmp_path / "in" / "0.png").read_bytes())
    told("restore", tmp_path / "in", tmp_path / "twins", *how)
    first, second = (to_tensor(Image.open(tmp_path / "twins" / f"{i}.png")).int() for i in (0, 1))
    assert (first - second).abs().max() > 1  # the same picture, noise of its own


def test_images_that_wait_for_others_of_their_size_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "GROUP", 3 * 400)
    monkeypatch.setattr(folders, "HELD", 5 * 400)
    lay(tmp_path, *(f"in/{i:02}.png" for i in range(10)))
    for i in range(8):  # no two of one size
        photograph(i, 20, 19 - i).save(tmp_path / "in" / f"small-{i:02}.png")
    waiting, most, batches, read = 0, 0, [], folders.open_image

    def counted(file, alpha=False):
        nonlocal waiting, most
        image = read(file, alpha)
        waiting += image.width * image.height
        most = max(most, waiting)
        return image

    def work(x, names):
        nonlocal waiting
        batches.append(len(x))
        waiting -= x[:, 0].numel()
        return x

    monkeypatch.setattr(folders, "open_image", counted)
    folders.each_image([tmp_path / "in"], f"{tmp_path / 'out'}", work, "copy")
    assert batches[:3] == [3, 3, 3]
    assert sum(batches) == len(tree(tmp_path / "out")) == 18
    assert 2000 < most <= 2000 + 400


def test_one_image_has_the_noise_that_it_has_in_a_folder_however_deep(tmp_path):
    lay(tmp_path, "in/deep/er/b.png", "in/a.png")
    main(["degrade", str(tmp_path / "in"), str(tmp_path / "out"), "--name", "noise"])
    main(["degrade", str(tmp_path / "in/deep/er/b.png"), str(tmp_path / "alone.png"), "--name", "noise"])
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "out/deep/er/b.png").read_bytes()


def test_originals_in_the_target_are_neither_mixed_with_results_nor_passed_over(tmp_path):
    lay(tmp_path, "in/a.png", "in/sub/b.png")
    before = tree(tmp_path)
    assert "without originals" in told("degrade", tmp_path / "in", tmp_path / "in" / "sub")
    assert tree(tmp_path) == before


def test_a_target_that_cannot_be_written_is_one_sentence_before_any_image(tmp_path, monkeypatch):
    lay(tmp_path, "in/a.png", "in/b.png")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(folders, "open_image", lambda file: pytest.fail("an image was opened"))
    assert "expected a folder that can be written to" in told(
        "degrade", tmp_path / "in", f"{tmp_path}/file/x/"
    )


def test_several_sources_each_go_under_their_own_name(tmp_path, monkeypatch, capsys):
    lay(tmp_path, "a.png", "b.JPG", "nest/x.png", "nest/deep/y.png", "other/x.png")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    assert told("degrade", "a.png", "b.JPG", "nest/x.png", "out") == ""
    assert set(tree(tmp_path / "out")) == {"a.png", "b.JPG", "x.png"}
    assert told("degrade", "nest", "other", "a.png", "both/") == ""
    assert set(tree(tmp_path / "both")) == {"nest/x.png", "nest/deep/y.png", "other/x.png", "a.png"}
    assert told("degrade", "a.png", "b.JPG", "out") == ""  # once more is allowed there
    assert told("degrade", "a.png", "--noise", "0.1", "nest/deep", "./other/.", "spread") == ""
    assert set(tree(tmp_path / "spread")) == {"a.png", "deep/y.png", "other/x.png"}
    main(["degrade", "nest/deep/y.png", "alone.png"])  # the noise of one alone is what it has among others
    assert Path("alone.png").read_bytes() == Path("both/nest/deep/y.png").read_bytes()
    assert {k: v for k, v in tree(tmp_path).items() if k in before} == before


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ("a.png b.png .", "overwrites no original"),
        ("a.png nest out", "overwrites no original"),  # where out/nest is a link to nest
        ("b.png nest/a.png there", "overwrites no original"),  # where there/b.png is a.png of nest
        ("nest b.png nest/deep", "without originals inside the source"),
        ("nest a.png nest", "without originals inside the source"),
        ("a.png b.png c.png", "expected a folder as the target, got c.png"),  # c.png is an original, too
        ("a.png b.png new.png", "expected a folder as the target, got new.png"),
        ("a.png nest/a.png new", "expected a file for each image, got new/a.png for 2 images"),
        ("a.png a.png new", "expected a file for each image, got new/a.png for 2 images"),
        ("nest other/nest new", "expected a file for each image, got new/nest/a.png for 2 images"),
        ("a.png absent.png new", "at absent.png, got nothing there"),
        ("a.png bare new", "bare: expected images"),
    ],
)
def test_several_sources_are_refused_before_anything_is_lost(tmp_path, monkeypatch, paths, said):
    lay(tmp_path, "a.png", "b.png", "c.png", "nest/a.png", "nest/deep/x.png", "other/nest/a.png")
    for folder in ("out", "there", "bare"):
        (tmp_path / folder).mkdir()
    (tmp_path / "out" / "nest").symlink_to("../nest")
    (tmp_path / "there" / "b.png").symlink_to("../nest/a.png")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    assert said in told("degrade", *paths.split())
    assert tree(tmp_path) == before


def test_what_several_sources_all_fail_by_is_told_once(tmp_path, monkeypatch, capsys):
    lay(tmp_path, "a.png", "b.png", "c.png")
    monkeypatch.chdir(tmp_path)
    said = told("degrade", "a.png", "b.png", "c.png", "out", "--options", "kernel_size", "55")
    assert said.startswith("i2sb: 3 sources: expected sides of at least 28 pixels")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("paths", [("", "out"), ("a.png", "", "out"), ("a.png", ""), ("a.png", "a.png", "")])
def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch, paths):
    lay(tmp_path, "a.png")
    monkeypatch.chdir(tmp_path)
    what = "source" if "" in paths[:-1] else "target"
    assert told("degrade", *paths) == f"i2sb: expected an image or a folder as the {what}, got an empty name"
    assert set(tree(tmp_path)) == {"a.png"}


def test_a_link_to_itself_is_one_file_s_failure_and_no_link_is_written_over(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "c.png"):
        photograph(0).save(tmp_path / "in" / name)
    (tmp_path / "in" / "b.png").symlink_to("b.png")
    with pytest.raises(SystemExit, match=r"i2sb: .*b\.png"):
        main(["degrade", str(tmp_path / "in"), str(tmp_path / "out")])
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    for target in ("nowhere.png", "link.png"):
        (tmp_path / "link.png").unlink(missing_ok=True)
        (tmp_path / "link.png").symlink_to(target)
        with pytest.raises(SystemExit, match=r"overwrites no link, got .*link\.png"):
            main(["degrade", str(tmp_path / "in" / "a.png"), str(tmp_path / "link.png")])
        assert (tmp_path / "link.png").is_symlink()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full disk is Linux's /dev/full")
def test_an_stderr_that_is_full_fails_nothing(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    photograph(0).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "note.txt").write_text("skipped, and said on stderr")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        main(["degrade", str(tmp_path / "in"), str(tmp_path / "out")])
        assert sys.stderr is full
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert (tmp_path / "out" / "a.png").exists()


def test_results_with_opacity_go_where_it_is_held_and_else_are_refused_before_the_work(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.png", "c.bmp"):
        Image.new("RGB", (8, 8), (10, 90, 200)).save(tmp_path / "in" / name)

    def halve(x, names):
        assert x.shape[1] == 4
        return torch.cat([x[:, :3], torch.zeros_like(x[:, 3:])], 1)

    folders.each_image([tmp_path / "in"], str(tmp_path / "out"), halve, "restore", channels=4)
    found = {f.name: to_tensor(images.open_image(f, alpha=True), 4) for f in (tmp_path / "out").iterdir()}
    assert sorted(found) == ["a.jpg.png", "b.png", "c.bmp.png"]
    assert all(set(x[3].unique().tolist()) <= {127, 128} for x in found.values())
    one, refused = [tmp_path / "in" / "b.png"], r"x\.jpg: expected a format that holds opacity"
    with pytest.raises(ValueError, match=refused):
        folders.each_image(one, str(tmp_path / "x.jpg"), lambda *_: 1 / 0, "restore", channels=4)


def test_a_warning_says_of_which_images_it_is(tmp_path, capsys, monkeypatch):
    """Two sharp pictures of two sizes: a line for each, though the sentence is one."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    crops = load_images("embedded", "test", 64)[:3]
    for name, x in (("a", crops[0]), ("b", crops[0, :, :48]), ("c", crops[1]), ("d", crops[2])):
        images.save_image(x, f"in/{name}.png")
    main(["restore", "in", "out", "--checkpoint", "celeba64-deblur-blind", "--nfe", "1"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "look like" in line]
    assert [line.split(": restore: ")[0] for line in lines] == ["i2sb: a.png … d.png", "i2sb: b.png"]
    assert "3 of 3 images do not look like photographs under the" in lines[0]
    assert "the image does not look like a photograph under the" in lines[1]


def test_a_warning_is_not_lost_where_the_work_then_fails():
    @folders._named(["a.png"])
    def work():
        warn("it is odd")
        raise ValueError("and then it fails")

    with (
        pytest.warns(UserWarning, match=r"^a\.png: it is odd$"),
        pytest.raises(ValueError, match="then it fails"),
    ):
        work()
