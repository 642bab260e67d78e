"""Pairs of one's own: from folders, zips and parquet, by name, and from memory."""

import io
import unicodedata
import warnings
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from i2sb_lib.data import load_images
from i2sb_lib.images import to_tensor
from i2sb_lib.pairs import as_images, load_pairs

NAMES = ("a", "sub dir/b", "ünï code/c", "d.v2")


def picture(seed, size=(24, 20), mode="RGB"):
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else size[::-1]
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


def darker(image):
    return image.point(lambda v: v // 2)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Clean PNGs and their darker TIFFs under the same names."""
    monkeypatch.setenv("I2SB_CACHE", str(tmp_path / "cache"))
    for i, name in enumerate(NAMES):
        for folder, suffix, image in (
            ("clean", "png", picture(i)),
            ("degraded", "tif", darker(picture(i))),
        ):
            file = tmp_path / folder / f"{name}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
    return tmp_path / "clean", tmp_path / "degraded"


def test_pairs_go_by_name_suffixes_aside(folders, monkeypatch):
    for again in (False, True):  # made, then from the cache, with no picture opened
        if again:
            monkeypatch.setattr("i2sb_lib.data._cuts", lambda *a: pytest.fail("prepared again"))
        x0, x1 = load_pairs(*folders, size=(20, 24))
        assert x0.shape == x1.shape == (4, 3, 20, 24)
        assert torch.equal(x1, x0 // 2)
        assert torch.equal(x0[0], to_tensor(picture(0)))
    assert torch.equal(load_pairs(*map(str, folders), size=(20, 24))[0], x0)


def test_a_zip_and_a_folder_are_pairs_too(folders, tmp_path):
    clean, degraded = folders
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for file in sorted(degraded.rglob("*.tif")):
            archive.write(file, file.relative_to(degraded).as_posix())
    x0, x1 = load_pairs(clean, tmp_path / "d.zip", size=(20, 24))
    assert torch.equal(x1, x0 // 2)


def test_two_columns_of_one_parquet_are_pairs_by_row(tmp_path, monkeypatch):
    monkeypatch.setenv("I2SB_CACHE", str(tmp_path / "cache"))

    def encoded(image):
        stream = io.BytesIO()
        image.save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None}

    pictures = [picture(i) for i in range(3)]
    table = {"sharp": [encoded(p) for p in pictures], "dark": [encoded(darker(p)) for p in pictures]}
    file = tmp_path / "set.parquet"
    pq.write_table(pa.table(table), file)
    x0, x1 = load_pairs(f"{file}:sharp", f"{file}:dark", size=20)
    assert torch.equal(x0[2], to_tensor(pictures[2])[:, :, 2:22])
    assert torch.equal(x1, x0 // 2)
    assert torch.equal(load_images(f"{file}:dark", size=20), x1)  # not what the cache has of another column
    with pytest.raises(ValueError, match='a column "image" of encoded pictures is not among'):
        load_pairs(file, f"{file}:dark", size=20)


def test_a_name_is_the_same_in_both_of_unicode_s_forms(folders, tmp_path):
    """As a Mac's disk or archive has it, and everyone else's."""
    clean, degraded = folders
    (degraded / "ünï code").rename(degraded / unicodedata.normalize("NFD", "ünï code"))
    x0, x1 = load_pairs(*folders, size=(20, 24))
    assert len(x0) == 4
    assert torch.equal(x1, x0 // 2)
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for form in ("NFC", "NFD"):
            archive.write(clean / "a.png", unicodedata.normalize(form, "é.png"))
    with pytest.raises(ValueError, match="expected names that differ, got "):
        load_pairs(tmp_path / "twice.zip", degraded, size=20)


def test_what_has_no_partner_is_listed_or_left_out(folders):
    degraded = folders[1]
    (degraded / "d.v2.tif").rename(degraded / "e.tif")
    with pytest.raises(ValueError, match=r"got 2 images without a partner .*d\.v2\.png, .*e\.tif"):
        load_pairs(*folders, size=20)
    with pytest.warns(UserWarning, match=r"left out 2 images without a partner"):
        x0, x1 = load_pairs(*folders, size=20, skip_corrupt=True)
    assert len(x0) == len(x1) == 3
    for file in degraded.rglob("*.tif"):
        file.rename(file.with_name(f"x{file.name}"))
    with pytest.raises(ValueError, match="expected pairs, got 8 images without"):
        load_pairs(*folders, size=20, skip_corrupt=True)


def test_two_images_of_one_name_and_pairs_of_two_sizes_are_refused(folders):
    clean, degraded = folders
    picture(9).save(clean / "a.bmp")
    with pytest.raises(ValueError, match=r"expected names that differ, got .*a\.bmp and .*a\.png"):
        load_pairs(*folders, size=20)
    (clean / "a.bmp").unlink()
    picture(0, (48, 40)).save(degraded / "a.tif")
    with pytest.raises(ValueError, match=r"a\.png: expected two pictures of one size"):
        load_pairs(*folders, size=20)


def test_crops_are_cut_at_the_same_places_of_both_and_again_the_same(folders):
    x0, x1 = load_pairs(*folders, size=8, crops=5)
    assert x0.shape == (20, 3, 8, 8)
    assert torch.equal(x1, x0 // 2)
    alone = load_images(folders[0], size=8, crops=5)
    assert torch.equal(alone, x0)
    assert len({crop.numpy().tobytes() for crop in alone}) == 20
    whole = to_tensor(picture(0)).unfold(1, 8, 1).unfold(2, 8, 1)
    assert (whole == x0[0][:, None, None]).all(-1).all(-1).all(0).any()  # a part of it, as it is
    with pytest.raises(ValueError, match=r"expected at least 22x8 pixels, got \(20, 24\)"):
        load_images(folders[0], size=(22, 8), crops=1)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_images_of_one_and_four_channels_keep_their_values(channels, mode, tmp_path, monkeypatch):
    monkeypatch.setenv("I2SB_CACHE", str(tmp_path / "cache"))
    image = picture(0, (16, 12), mode)
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "a.png")
    pixels = torch.from_numpy(np.array(image)).reshape(12, 16, channels).permute(2, 0, 1)
    assert torch.equal(load_images(tmp_path / "in", size=(12, 16), channels=channels)[0], pixels)
    assert load_images(tmp_path / "in", size=(12, 16)).shape == (1, 3, 12, 16)  # and not from that cache


class TestMemory:
    @pytest.mark.parametrize("kind", ["tensor", "array", "pillow"])
    def test_pictures_and_pairs_of_any_kind(self, kind):
        pictures = [picture(i, (16, 16)) for i in range(3)]
        as_kind = {"tensor": to_tensor, "array": np.array, "pillow": lambda p: p}[kind]
        want = torch.stack([to_tensor(p) for p in pictures])
        x0, x1 = as_images([as_kind(p) for p in pictures], 16, 3)
        assert x1 is None
        assert torch.equal(x0, want)
        pairs = [(as_kind(p), as_kind(darker(p))) for p in pictures]
        for source in (pairs, iter(pairs)):
            x0, x1 = as_images(source, 16, 3)
            assert torch.equal(x0, want)
            assert torch.equal(x1, want // 2)

    def test_arrays_turned_and_not_to_be_written_are_taken(self, recwarn):
        array = np.array(picture(0, (16, 16)))
        turned = array[::-1]
        turned.setflags(write=False)
        x0, _ = as_images([turned, turned], 16, 3)
        assert torch.equal(x0[1], to_tensor(Image.fromarray(array.copy())).flip(1))
        assert not recwarn.list

    def test_a_data_set_ends_at_its_length(self):
        class Endless:
            def __len__(self):
                return 4

            def __getitem__(self, i):
                return torch.full((1, 8, 8), i, dtype=torch.uint8)

        assert as_images(Endless(), 8, 1)[0][:, 0, 0, 0].tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("items", "message"),
        [
            (torch.zeros(2, 3, 8, 8), r"expected uint8 \(N, C, H, W\), C 1, 3 or 4, got torch.float32"),
            (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), r"of shape \(2, 2, 8, 8\)"),
            ([torch.zeros(3, 8, 8)], "expected uint8 tensors"),
            ([(np.zeros((8, 8), np.uint8), 7)], "got int"),
            (["a.png"], "got str"),
            ([np.zeros((8, 8), np.uint8), np.zeros((9, 8), np.uint8)], "of one shape, got"),
            ([], "of one shape, got"),
            ({"a.png": picture(0, (8, 8))}, "expected a data set or pictures, got dict"),
            (5, "expected a data set or pictures, got int"),
            ("a.png", "expected a data set or pictures, got str"),
        ],
    )
    def test_other_things_are_refused_in_a_sentence(self, items, message):
        with pytest.raises(ValueError, match=message):
            as_images(items, 8, 3)


def test_a_folder_that_is_given_twice_is_said(folders):
    with pytest.warns(UserWarning, match="the degraded images are all equal to the clean ones"):
        load_pairs(folders[0], folders[0], size=20)
    with pytest.raises(
        ValueError, match=r"expected clean images \(--clean FOLDER\) beside --degraded .*degraded"
    ):
        load_pairs("embedded", folders[1], size=20)


def test_pairs_that_are_made_small_say_that_their_damage_is_too(folders):
    def said(**how):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            load_pairs(*folders, progress=False, **how)
        return [str(w.message) for w in found]

    (line,) = said(size=16)
    assert "of 20 x 24 are made 16 x 16" in line
    assert "--crops N" in line
    assert not said(size=16, crops=2)
    assert not said(size=(20, 24))
    assert not said(size=20)  # cut, and at its own scale
