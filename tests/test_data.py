"""Every source gives the same tensor, the cache is exact, and bad input is named."""

import io
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import photograph
from PIL import Image

from i2sb_lib import data
from i2sb_lib.data import embedded_photographs, fingerprint, fit, load_images


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


def write_parquet(path, seeds, column="image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": png(photograph(s)), "path": f"{s}.png"} for s in seeds]
    pq.write_table(pa.table({column: rows, "label": [0] * len(rows)}), path)
    return path


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def test_every_source_gives_the_same_pixels_in_the_same_order(photos, tmp_path):
    expected = torch.stack([pixels(photograph(i)) for i in range(24)])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(photos.iterdir(), reverse=True):  # archive order must not matter
            archive.write(file, f"inner/{file.name}")
        archive.writestr("__MACOSX/inner/._00.png", "not an image")
        archive.writestr("inner/notes.txt", "not an image either")
    hub = tmp_path / "hub"
    write_parquet(hub / "data" / "train-00000-of-00002.parquet", range(13))
    write_parquet(hub / "data" / "train-00001-of-00002.parquet", range(13, 24))
    single = write_parquet(tmp_path / "one.parquet", range(24))
    for source in (photos, tmp_path / "a.zip", hub, single):
        images = load_images(source, size=20, progress=False)
        assert images.dtype == torch.uint8
        assert torch.equal(images, expected), source


def test_folders_and_shards_named_after_splits(tmp_path):
    for split, seeds in {"train": (0, 1, 2), "validation": (3, 4)}.items():
        write_parquet(tmp_path / "hub" / f"{split}-00000-of-00001.parquet", seeds)
        for seed in seeds:
            (tmp_path / "tree" / split / "person").mkdir(parents=True, exist_ok=True)
            photograph(seed).save(tmp_path / "tree" / split / "person" / f"{seed}.png")
    for source in (tmp_path / "hub", tmp_path / "tree"):
        assert len(load_images(source, "train", 20)) == 3
        assert torch.equal(load_images(source, None, 20)[1], pixels(photograph(4)))  # not the train split
        with pytest.raises(ValueError, match=r"'test'.*\['train', 'validation'\]"):
            load_images(source, "test", 20)


@pytest.mark.parametrize(
    "names", [("train_images", "test_images"), ("all/train", "all/test"), ("Train", "val")]
)
def test_splits_are_never_mixed(tmp_path, names):
    counts = dict(zip(names, (3, 2), strict=True))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, count in counts.items():
            (tmp_path / "tree" / name).mkdir(parents=True)
            for i in range(count):
                photograph(i).save(tmp_path / "tree" / name / f"{i}.png")
                archive.write(tmp_path / "tree" / name / f"{i}.png", f"{name}/{i}.png")
    for source in (tmp_path / "tree", tmp_path / "a.zip"):
        assert [len(load_images(source, split, 20)) for split in ("train", None)] == [3, 2]


def test_a_split_that_is_not_there_is_refused(photos):
    with pytest.raises(ValueError, match="expected split 'test', got no splits"):
        load_images(photos, "test", 20)


def test_a_damaged_cache_is_made_again(photos):
    images = load_images(photos, size=20).clone()
    for file in data.cache_dir().glob("*.safetensors"):
        cut = file.read_bytes()[:50]
        file.unlink()  # a tensor may still be mapped to it
        file.write_bytes(cut)
    assert torch.equal(load_images(photos, size=20), images)


def test_a_nested_folder_without_split_names_is_read_whole(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    for i, name in enumerate(["b/0.png", "b/c/1.PNG", "2.png"]):
        photograph(i).save(tmp_path / name)
    assert len(load_images(tmp_path, "train", 20)) == 3


def test_embedded_splits_are_different_photographs():
    train, test = embedded_photographs("train"), embedded_photographs("test")
    assert not set(train) & set(test)
    assert not {p.tobytes() for p in train.values()} & {p.tobytes() for p in test.values()}
    images = {s: load_images("embedded", s, progress=False) for s in ("train", "test")}
    assert all(i.shape[1:] == (3, 64, 64) for i in images.values())
    assert len(images["train"]) > 1000
    assert 30 <= len(images["test"]) < 500
    rows = {s: set(map(bytes, i.flatten(1).numpy())) for s, i in images.items()}
    assert not rows["train"] & rows["test"]
    assert fingerprint(images["test"]) == fingerprint(load_images("embedded", progress=False))
    with pytest.raises(ValueError, match="validation"):
        load_images("embedded", "validation")


def test_an_unreachable_hub_id_is_one_sentence(monkeypatch):
    import huggingface_hub

    def fail(*args, **kwargs):
        assert kwargs["revision"] == data.HUB_REVISIONS[args[0]]  # the data that results were made with
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=r"korexyz/celeba-hq-256x256: .*hub id: no route") as caught:
        load_images("korexyz/celeba-hq-256x256")
    assert "\n" not in str(caught.value)


def test_grey_alpha_palette_16_bit_and_rotated_files(tmp_path):
    grey = photograph(0).convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    alpha = photograph(0).convert("RGBA")
    alpha.putalpha(Image.fromarray(np.tile(np.array([[0, 255]], dtype=np.uint8), (20, 10))))
    turned, exif = photograph(0, 20, 24), Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    for name, image in {"a": grey, "b": deep, "c": alpha, "d": grey.convert("P")}.items():
        image.save(tmp_path / f"{name}.png")
    turned.save(tmp_path / "e.png", exif=exif)
    a, b, c, d, e = load_images(tmp_path, size=20)
    assert all(torch.equal(x, pixels(grey.convert("RGB"))) for x in (a, b, d))
    assert (c[:, :, ::2] == 255).all()  # transparent is white
    assert torch.equal(c[:, :, 1::2], pixels(photograph(0))[:, :, 1::2])
    assert torch.equal(e, pixels(turned.rotate(-90, expand=True))[:, 2:22])


def test_resizing_is_pillows_lanczos_on_the_central_square():
    photo = photograph(3, 256, 300)
    square = photo.crop((22, 0, 278, 256))
    assert torch.equal(fit(photo, 64), pixels(square.resize((64, 64), Image.Resampling.LANCZOS)))
    assert torch.equal(fit(square, 256), pixels(square))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: (p / "bad.png").write_bytes(png(photograph(0))[:200]), r"bad\.png: expected an image"),
        (lambda p: photograph(0, 12, 40).save(p / "small.png"), r"small\.png: .*16x16.*\(40, 12\)"),
        (lambda p: (p / "notes.txt").write_text("x"), "expected images .*got none"),
        (lambda p: write_parquet(p / "x.parquet", [0], "picture"), r"x\.parquet: .*column .image. .*picture"),
        (lambda p: (p / "x.parquet").write_bytes(b"PAR1" * 9), r"x\.parquet: expected parquet"),
        (lambda p: pq.write_table(pa.table({"image": [1]}), p / "x.parquet"), r"x\.parquet: .*parquet"),
    ],
)
def test_bad_input_is_named_with_what_was_expected(make, words, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_images(tmp_path, size=16)


def test_a_damaged_zip_and_a_missing_path_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.bmp", bytes(range(200)) * 600)
    whole = (tmp_path / "a.zip").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:40] + b"?" + whole[41:]):
        (tmp_path / "a.zip").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.zip: expected a complete zip"):
            load_images(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="absent: expected a folder"):
        load_images(tmp_path / "absent")


class TestCache:
    @pytest.fixture
    def decoded(self, monkeypatch, tmp_path):
        """Names of the images that were prepared, in an empty cache."""
        names, real = [], fit
        monkeypatch.setenv("I2SB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(data, "fit", lambda im, s, n: names.append(n) or real(im, s, n))
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

    def test_an_interruption_leaves_nothing_to_be_loaded(self, photos, decoded, monkeypatch, tmp_path):
        def interrupted(tensors, path):
            path.write_bytes(b"half a file")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(data, "save_file", interrupted)
            with pytest.raises(KeyboardInterrupt):
                load_images(photos, size=16)
        assert not list((tmp_path / "cache").glob("[!.]*.safetensors"))  # at most a stale .tmp
        assert len(load_images(photos, size=16)) == 24
        assert len(decoded) == 48


def test_fingerprint_changes_with_one_pixel_and_with_the_shape():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    other = images.clone()
    assert fingerprint(images) == fingerprint(other)
    other[3, 1, 2, 2] ^= 1
    assert len({fingerprint(x) for x in (images, other, images.reshape(2, 6, 8, 8))}) == 3


def test_the_book_s_data_sets(shared_data):
    images = load_images(shared_data / "celeba64", "train", progress=False)
    assert images.shape == (14_589, 3, 64, 64)
    table = pq.ParquetFile(min((shared_data / "celeba64").iterdir())).read_row_group(0, ["image"])
    first = Image.open(io.BytesIO(table["image"][0].as_py()["bytes"]))
    assert torch.equal(images[0], pixels(first))
    assert load_images(shared_data / "celebahq256", progress=False).shape == (977, 3, 64, 64)
