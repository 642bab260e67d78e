"""The tensor of a source: what is cut out of a picture, what is cached, and which pictures are bad."""

import io
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import photograph
from PIL import Image
from safetensors import SafetensorError

from i2sb_lib import data
from i2sb_lib.data import embedded_photographs, fingerprint, fit, load_images


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
    import skimage.data  # the pixels that results were made with, whose colour profiles are not applied

    assert np.array_equal(np.asarray(train["rocket.jpg"]), skimage.data.rocket())


def test_resizing_is_pillows_lanczos_on_the_central_square():
    photo = photograph(3, 256, 300)
    square = photo.crop((22, 0, 278, 256))
    assert torch.equal(fit(photo, 64), pixels(square.resize((64, 64), Image.Resampling.LANCZOS)))
    assert torch.equal(fit(square, 256), pixels(square))


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
    with pytest.raises(ValueError, match=r"100 of 100 images cannot be used: .*099\.png: [^;]*$"):
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

    def test_it_is_optional(self, photos, monkeypatch, tmp_path):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("I2SB_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.warns(UserWarning, match=r"cache: cannot keep .* there \(Not a directory\)"):
            assert len(load_images(photos, size=16)) == 24
        monkeypatch.setenv("I2SB_CACHE", str(tmp_path / "cache"))

        def full(tensors, path):
            path.write_bytes(b"half")
            raise SafetensorError("No space left on device")

        monkeypatch.setattr(data, "save_file", full)
        with pytest.warns(UserWarning, match="No space left"):
            assert len(load_images(photos, size=16)) == 24
        assert not list((tmp_path / "cache").iterdir())

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


@pytest.mark.slow
def test_the_book_s_data_sets(shared_data):
    images = load_images(shared_data / "celeba64", "train", progress=False)
    assert images.shape == (14_589, 3, 64, 64)
    table = pq.ParquetFile(min((shared_data / "celeba64").iterdir())).read_row_group(0, ["image"])
    first = Image.open(io.BytesIO(table["image"][0].as_py()["bytes"]))
    assert torch.equal(images[0], pixels(first))
    assert load_images(shared_data / "celebahq256", progress=False).shape == (977, 3, 64, 64)
