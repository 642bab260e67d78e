"""The tensor of a source: what is cut out of a picture, what is cached, and which pictures are bad."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, photograph
from PIL import Image
from safetensors.torch import load_file
from test_faults import limited_files

from i2sb_lib import data
from i2sb_lib import pixels as pixels_module
from i2sb_lib.data import embedded_photographs, fingerprint, fit, load_images
from i2sb_lib.images import open_image
from i2sb_lib.pairs import as_images, load_pairs


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def test_a_damaged_cache_is_made_again(photos):
    images = load_images(photos, size=20).clone()
    for file in data.cache_dir().glob("*.safetensors"):
        cut = file.read_bytes()[:50]
        file.unlink()  # a tensor may still be mapped to it
        file.write_bytes(cut)
    assert torch.equal(load_images(photos, size=20), images)


def test_embedded_photographs_have_as_many_channels_as_are_asked_for():
    many = (3, np.int64(1), 4)
    rgb, grey, opaque = (load_images("embedded", "test", 128, progress=False, channels=c) for c in many)
    assert torch.equal(opaque[:, :3], rgb)
    assert (opaque[:, 3] == 255).all()
    assert grey.shape == (len(rgb), 1, 128, 128)


@pytest.mark.slow
def test_embedded_splits_are_different_photographs(monkeypatch):
    train, test = embedded_photographs("train"), embedded_photographs("test")
    assert not set(train) & set(test)
    assert not {p.tobytes() for p in train.values()} & {p.tobytes() for p in test.values()}
    images = {s: load_images("embedded", s, progress=False) for s in ("train", "test")}
    assert all(i.shape[1:] == (3, 64, 64) for i in images.values())
    assert len(images["train"]) > 1000
    assert 30 <= len(images["test"]) < 500
    rows = {s: set(map(bytes, i.flatten(1).numpy())) for s, i in images.items()}
    assert not rows["train"] & rows["test"]
    with monkeypatch.context() as patch:
        patch.setattr(data, "_cuts", None)  # what is prepared is kept, as of any other source
        assert fingerprint(images["test"]) == fingerprint(load_images("embedded", progress=False))
        with pytest.raises(TypeError):
            load_images("embedded", size=60, progress=False)
    with pytest.raises(ValueError, match="validation"):
        load_images("embedded", "validation")
    import skimage.data  # the pixels that results were made with, whose colour profiles are not applied

    assert np.array_equal(np.asarray(train["rocket.jpg"]), skimage.data.rocket())


def test_resizing_is_pillows_lanczos_on_the_central_square():
    photo = photograph(3, 256, 300)
    square = photo.crop((22, 0, 278, 256))
    assert torch.equal(fit(photo, 64), pixels(square.resize((64, 64), Image.Resampling.LANCZOS)))
    assert torch.equal(fit(square, 256), pixels(square))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_in_memory_is_measured_upright(kind, turn, tmp_path):
    """As Pillow opens it, as torchvision converts it, and as our own reading has it: one picture."""
    exif = Image.Exif()
    exif[274] = turn
    file = tmp_path / f"a.{kind}"
    photograph(turn, 40, 60).save(file, exif=exif)
    upright = open_image(file)
    assert upright.size == ((60, 40) if turn < 5 else (40, 60))
    for size in (32, upright.size[::-1]):  # the second fits only one way round
        want = fit(upright, size)
        converted = Image.open(file).convert("RGB")
        for pair in ((Image.open(file), converted), (upright, Image.open(file))):
            assert all(torch.equal(x[0], want) for x in as_images([pair], size, 3))
        assert torch.equal(load_images(file, size=size)[0], want)
    with pytest.raises(ValueError, match=rf"at least 41x41 pixels, got \({upright.height}, "):
        fit(Image.open(file), 41)
    assert load_images(file, size=20, crops=2).shape == (2, 3, 20, 20)


def test_every_image_that_cannot_be_used_is_named_or_left_out_with_a_list(tmp_path, monkeypatch):
    monkeypatch.setenv("I2SB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        photograph(i).save(folder / f"{i}.png")
    (folder / "cut.png").write_bytes(png(photograph(9))[:200])
    photograph(9, 12, 40).save(folder / "small.png")
    Image.fromarray(np.zeros((20, 20), np.float32)).save(folder / "float.tiff")
    (folder / "gone.png").symlink_to("nowhere")
    names = [
        r"cut\.png: expected an image",
        r"float\.tiff: .*floats",
        r"gone\.png: .*No such file",
        r"small\.png: .*16x16",
    ]
    found = r".*; .*".join(names)
    for _ in range(2):  # nothing is cached that would hide them
        with pytest.raises(ValueError, match=rf"photos: 4 of 8 images cannot be used: .*{found}") as caught:
            load_images(folder, size=16)
        assert "\n" not in str(caught.value)
        with pytest.warns(UserWarning, match=rf"photos: left out 4 images: .*{found}"):
            assert len(load_images(folder, size=16, skip_corrupt=True)) == 4
    for i in range(4):
        (folder / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="4 of 4 images cannot be used"):
        load_images(folder, size=16, skip_corrupt=True)


def test_a_source_that_is_wrong_throughout_is_refused_early(tmp_path):
    for i in range(120):
        photograph(0).save(tmp_path / f"{i:03}.png")
    with pytest.raises(ValueError, match=r"100 of 100 images cannot be used: .*019\.png: .*; and 80 more$"):
        load_images(tmp_path, size=64)


class TestCache:
    @pytest.fixture
    def decoded(self, monkeypatch, tmp_path):
        """Names of the images that were prepared, in an empty cache."""
        names, real = [], fit
        monkeypatch.setenv("I2SB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(data, "fit", lambda im, s, n, c: names.append(n) or real(im, s, n, c))
        return names

    def test_second_load_reads_it_and_changed_content_does_not(self, photos, decoded, tmp_path):
        copy = shutil.copytree(photos, tmp_path / "copy")
        first = load_images(copy, size=16)
        assert torch.equal(load_images(copy, size=16), first)
        assert len(decoded) == 24
        load_images(copy, size=18)
        assert len(decoded) == 48
        photograph(99).save(copy / "05.png")
        second = load_images(copy, size=16)
        assert len(decoded) == 72
        assert (first != second).flatten(1).any(1).nonzero().tolist() == [[5]]

    def test_an_empty_name_is_none(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("I2SB_CACHE", "")
        assert data.cache_dir() == tmp_path / ".cache" / "i2sb"

    def test_without_a_home_it_goes_with_the_process(self, photos, monkeypatch, tmp_path, recwarn):
        """As of a container's user whom no one knows."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
        assert data.cache_dir() == Path(os.environ["I2SB_CACHE"])
        monkeypatch.delenv("I2SB_CACHE")
        assert len(load_images(photos, size=16)) == 24
        assert (len(list(data.cache_dir().iterdir())), list(tmp_path.iterdir())) == (1, [])
        assert not recwarn.list

    def test_it_is_optional(self, photos, monkeypatch, tmp_path):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("I2SB_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.warns(UserWarning, match=r"cache: cannot keep .* there \(Not a directory\)"):
            assert len(load_images(photos, size=16)) == 24
        monkeypatch.setenv("I2SB_CACHE", str(tmp_path / "cache"))
        whole = load_images(photos, size=16, progress=False)
        for room in (100, 10_000):  # for nothing at all, and for seven pictures of 24
            monkeypatch.setenv("I2SB_CACHE", str(tmp_path / "full"))
            limit = limited_files(room)
            try:
                with pytest.warns(UserWarning, match=r"full: cannot keep .* there \(File too large\)"):
                    images = load_images(photos, size=16, progress=False)
            finally:
                limited_files(limit)
            assert torch.equal(images, whole)
            assert not list((tmp_path / "full").iterdir())

    def test_an_interruption_leaves_nothing_to_be_loaded(self, photos, decoded, monkeypatch, tmp_path):
        def interrupted(image, size, name, channels, fit=data.fit):
            if len(decoded) == 5:
                raise KeyboardInterrupt
            return fit(image, size, name, channels)

        with monkeypatch.context() as patch:
            patch.setattr(data, "fit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                load_images(photos, size=16)
        assert not list((tmp_path / "cache").iterdir())
        assert len(load_images(photos, size=16)) == 24
        assert len(decoded) == 29


def test_the_cache_is_safetensors_and_what_is_written_to_an_image_does_not_reach_it(
    photos, monkeypatch, tmp_path
):
    monkeypatch.setenv("I2SB_CACHE", str(tmp_path))
    images = load_images(photos, size=16)
    (file,) = tmp_path.iterdir()
    assert torch.equal(load_file(file)["images"], images)
    images[0] = 255 - images[0]
    again = load_images(photos, size=16)
    assert torch.equal(again, load_file(file)["images"])
    assert not torch.equal(again, images)
    assert fingerprint(again, images) == fingerprint(torch.stack([again, images]))


def test_a_cache_of_more_bytes_than_the_machine_has_opens(tmp_path):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = 4 * memory // (3 * 64 * 64)
    size, path = count * 3 * 64 * 64, tmp_path / "x"
    pixels_module.spool([torch.full((1, 3, 64, 64), 7, dtype=torch.uint8)], path)
    about = {"dtype": "U8", "shape": [count, 3, 64, 64], "data_offsets": [0, size]}
    with path.open("r+b") as file:  # a file of holes, but for its first picture
        file.seek(8)
        file.write(json.dumps({"images": about}).encode().ljust(pixels_module.HEAD - 8))
        try:
            file.truncate(pixels_module.HEAD + size)
        except OSError as error:
            pytest.skip(f"this disk has no files of holes: {error}")
    images = pixels_module.mapped(path)
    assert len(images) == count
    assert [int(images[i].float().mean()) for i in (0, 1, count // 2, count - 1)] == [7, 0, 0, 0]


STREAM = """
import os, sys, threading, time
import torch
from i2sb_lib.batches import Batches
from i2sb_lib.config import TrainConfig
from i2sb_lib.data import load_images
from i2sb_lib.degradations import create_degradation

def anonymous():
    status = open("/proc/self/status").read()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)

torch.set_num_threads(1)
config = TrainConfig(batch_size=4)
degrade = create_degradation("none")
import pyarrow.parquet
before, peak = anonymous(), [0]
threading.Thread(target=watch, daemon=True).start()
images = load_images(sys.argv[1], size=256, progress=False)
prepared = peak[0] - before
seen = Batches(images, degrade, config, places=torch.arange(8, len(images)))
steps = len(seen.places) // 4
order = torch.cat([seen.indices(k) for k in range(steps)])
level = [float(seen(k)[0].sum()) for k in range(steps)]
print(images.nbytes, prepared, peak[0] - before, len(order.unique()), len(images), *level[:3])
print(*Batches(images, degrade, config, places=torch.arange(8, len(images)))(2)[0].sum()[None].tolist())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_more_images_than_memory_holds_are_prepared_and_visited(tmp_path):
    """142 MB of pixels of three shards: while prepared a sixth at most is in memory, with batches half."""
    number = 0
    for shard in range(3):
        rows = []
        for _ in range(240):
            flat = Image.new("RGB", (256, 256), (number % 256, number // 256, 100))
            rows.append({"bytes": png(flat), "path": None})
            number += 1
        pq.write_table(pa.table({"image": rows}), tmp_path / f"{shard}.parquet", row_group_size=60)
    env = {**os.environ, "I2SB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(tmp_path)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    size, prepared, peak, visited, count, *level, again = map(float, done.stdout.split())
    print(f"pixels {size:.3g} bytes, at most {prepared:.3g} more in memory while prepared, {peak:.3g} in all")
    assert (count, visited) == (720, 712)
    assert prepared < size / 6
    assert peak < size / 2  # what the allocator keeps of batches varies
    assert again == level[2]  # the third step of an epoch, alone


def test_fingerprint_changes_with_one_pixel_and_with_the_shape():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    other = images.clone()
    assert fingerprint(images) == fingerprint(other)
    other[3, 1, 2, 2] ^= 1
    assert len({fingerprint(x) for x in (images, other, images.reshape(2, 6, 8, 8))}) == 3


@pytest.mark.slow
def test_the_book_s_training_photographs(shared_data, tmp_path):
    """Unchanged, as they have the size already; those for testing: test_results."""
    shards = sorted((shared_data / "celeba64").iterdir())
    first, *_ = tables = [pq.ParquetFile(shard) for shard in shards]
    assert sum(table.metadata.num_rows for table in tables) == 14_589
    (tmp_path / shards[0].name).symlink_to(shards[0])
    images = load_images(tmp_path, "train", progress=False)
    assert images.shape == (first.metadata.num_rows, 3, 64, 64)
    row = first.read_row_group(0, ["image"])["image"][0].as_py()["bytes"]
    assert torch.equal(images[0], pixels(Image.open(io.BytesIO(row))))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "size of at least 1, or height and width, got 0"),
        ({"size": 16.0}, r"size .* got 16\.0"),
        ({"size": None}, "size .* got None"),
        ({"size": True}, "size .* got True"),
        ({"size": (1, 2, 3)}, r"size .* got \(1, 2, 3\)"),
        ({"crops": -1}, "crops of at least 0, got -1"),
        ({"channels": 2}, "expected 1, 3 or 4 channels, got 2"),
        ({"channels": [3]}, r"expected 1, 3 or 4 channels, got \[3\]"),
        ({"channels": True}, "expected 1, 3 or 4 channels, got True"),
        ({"crops": True}, "crops of at least 0, got True"),
        ({"crops": 10**8}, r"crops of an image in 4 GiB, got 100000000 of \d+x\d+ pixels"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_sentence(options, words, tmp_path):
    for load, sources in ((load_images, (tmp_path,)), (load_pairs, (tmp_path, tmp_path))):
        with pytest.raises(ValueError, match=words):
            load(*sources, **options)


def test_numpy_s_numbers_are_numbers(tmp_path):
    photograph(0).save(tmp_path / "a.png")
    assert torch.equal(load_images(tmp_path, size=np.int64(16)), load_images(tmp_path, size=16))
