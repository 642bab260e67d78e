"""Folders, zips, parquet and the hub: what is taken of a source, what is left, and what is said."""

import io
import json
import os
import warnings
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import photograph
from PIL import Image

from i2sb_lib import sources
from i2sb_lib.data import load_images


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def heard(source, split=None, size=16):
    """How many images a source gives, and what is said about it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = len(load_images(source, split, size))
    return count, [str(w.message).removeprefix(f"{source}: ") for w in said]


def spread(folder, names):
    """A photograph at each name."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(i).save(folder / name)
    return folder


def zipped(file, entries, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file


def write_parquet(path, seeds, column="image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": png(photograph(s)), "path": f"{s}.png"} for s in seeds]
    pq.write_table(pa.table({column: rows, "label": [0] * len(rows)}), path)
    return path


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
    (tmp_path / "a.zip").rename(tmp_path / "a.ZIP")
    for folder in ("x/plain_text", "y/default/train"):
        write_parquet(tmp_path / folder / "0.parquet", range(24))
    raw = pa.table({"image": pa.array([png(photograph(s)) for s in range(24)], pa.large_binary())})
    pq.write_table(raw, tmp_path / "raw.PARQUET")
    for source in (
        photos,
        tmp_path / "a.ZIP",
        hub,
        single,
        tmp_path / "x",
        tmp_path / "y",
        tmp_path / "raw.PARQUET",
    ):
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
    "names",
    [
        ("train_images", "test_images"),
        ("all/train", "all/test"),
        ("Train", "val"),
        ("X_train_HR", "X_valid_HR"),
        ("DIV2K_train_LR_bicubic/X2", "DIV2K_valid_LR_bicubic/X2"),
        ("Train images", "Test images"),
        ("ImagesTrain", "ImagesTest"),
        ("HR.TRAIN", "HR.VALIDATION"),
        ("my-trainingSet2", "my-testingSet2"),
        ("train_test_split/train", "train_test_split/test"),
        ("trainval", "test2007"),
        ("train/test_tubes", "test/train_wagons"),
        ("traina", "testa"),
    ],
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


def test_two_kinds_of_pictures_have_splits_too(tmp_path):
    spread(tmp_path, ["trainA/a.png", "trainB/b.png", "testA/c.png", "testB/d.png", "trainset/e.png"])
    with pytest.warns(UserWarning, match=r"took split 'train' \(3\), left 'test' \(2\)"):
        assert len(load_images(tmp_path, "train", size=16, progress=False)) == 3


def test_a_split_that_is_not_there_is_refused(photos):
    with pytest.raises(ValueError, match="expected split 'test', got no splits"):
        load_images(photos, "test", 20)


def test_a_nested_folder_without_split_names_is_read_whole(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    for i, name in enumerate(["b/0.png", "b/c/1.PNG", "2.png"]):
        photograph(i).save(tmp_path / name)
    assert len(load_images(tmp_path, "train", 20)) == 3


class TestSplits:
    @pytest.mark.parametrize("folders", [("car", "plane", "train"), ("train", "."), ("car", "test_tubes")])
    def test_they_hold_for_every_image_or_for_none(self, tmp_path, folders):
        names = [f"{folder}/{i}.png" for folder in folders for i in range(3)]
        spread(tmp_path / "tree", names)
        zipped(tmp_path / "a.zip", {name: (tmp_path / "tree" / name).read_bytes() for name in names})
        for source in (tmp_path / "tree", tmp_path / "a.zip"):
            for split in (None, "train"):
                count, (said,) = heard(source, split)
                assert count == len(names)
                assert said.startswith(f"took all {len(names)} files, 3 under the name of 't")
            with pytest.raises(ValueError, match="'test', got no splits"):
                load_images(source, "test", 16)

    def test_two_of_them_beside_other_images_are_refused_unless_one_is_named(self, tmp_path):
        """Class folders, or splits with more beside them: who wants which says so."""
        spread(tmp_path, ["training_day/a.png", "test_drive/b.png", "test_drive/c.png", "car/d.png"])
        way = "give one folder as the source, or, to evaluate, --split test or all"
        for split in ("train", None):  # training asks for "train" by itself
            with pytest.raises(
                ValueError, match=r"got splits \['test', 'train'\] and 1 outside.*'car'"
            ) as caught:
                load_images(tmp_path, split, 16)
            assert str(caught.value).endswith(f": {way}")
        assert heard(tmp_path, "all") == (4, [])
        assert heard(tmp_path, "test") == (2, ["took split 'test' (2), left 'no split' (1), 'train' (1)"])
        with pytest.raises(
            ValueError, match=r"split 'validation', got splits \['test', 'train'\]: .*test or all"
        ):
            load_images(tmp_path, "validation", 16)

    def test_a_split_that_is_not_there_is_refused_with_those_that_are(self, tmp_path):
        spread(tmp_path, ["X_valid_HR/a.png", "X_test_HR/b.png"])
        way = "give one folder as the source, or, to evaluate, --split test, validation or all"
        with pytest.raises(ValueError, match=rf"'train', got splits \['test', 'validation'\]: {way}$"):
            load_images(tmp_path, "train", 16)
        assert heard(tmp_path, "all") == (2, [])

    @pytest.mark.parametrize("names", [("trainimages", "testimages"), ("train_val", "hold-out")])
    def test_names_that_only_look_like_splits_are_taken_whole_and_it_is_said(self, tmp_path, names):
        spread(tmp_path, [f"{name}/{i}.png" for name in names for i in range(2)])
        alike = "test and train" if "testimages" in names else "train and val"
        said = f"took all 4 files, though their names hold {alike}: none is a split"
        assert heard(tmp_path, "train") == heard(tmp_path) == (4, [said])

    @pytest.mark.parametrize("folder", ["", "deep/"])
    def test_splits_by_the_names_of_files_are_none_and_it_is_said(self, tmp_path, folder):
        names = [f"{folder}{name}.png" for name in ("train_0", "train_1", "test_0", "logo")]
        spread(tmp_path / "tree", names)
        zipped(tmp_path / "a.zip", {name: (tmp_path / "tree" / name).read_bytes() for name in names})
        said = "took all 4 files, though names of files hold test and train: only folders are splits"
        for source in (tmp_path / "tree", tmp_path / "a.zip"):
            assert heard(source, "train") == heard(source) == (4, [said])
            assert heard(source, "all") == (4, [])
        spread(tmp_path / "trains", ["train_0.png", "latest_1.png", "test_vs_train.png"])
        assert heard(tmp_path / "trains") == (3, [])

    @pytest.mark.parametrize(
        "names", [("latest", "older"), ("valley", "peak"), ("Strain", "rest"), ("trainer", "car")]
    )
    def test_words_that_hold_a_split_s_name_are_words(self, tmp_path, names):
        spread(tmp_path, [f"{name}/{i}.png" for name in names for i in range(2)])
        assert heard(tmp_path, "train") == (4, [])

    def test_what_is_taken_and_left_is_said(self, tmp_path, photos):
        spread(tmp_path, ["train/a.png", "train/b.png", "val/c.png", "test/d.png"])
        assert heard(tmp_path) == (1, ["took split 'test' (1), left 'train' (2), 'validation' (1)"])
        assert heard(photos) == (24, [])

    def test_one_parquet_file_is_of_one_split(self, tmp_path):
        file = write_parquet(tmp_path / "train-00000.parquet", [0])
        assert heard(file, "train") == heard(file) == (1, [])
        with pytest.raises(ValueError, match=r"00\.parquet: expected split 'test', got splits \['train'\]"):
            load_images(file, "test", 16)


def test_what_is_no_image_is_counted_and_said(tmp_path):
    spread(tmp_path / "tree", ["a.png", "b.jfif", "c.ppm", ".ipynb_checkpoints/a.png", ".b.12.tmp.png"])
    photograph(9).save(tmp_path / "tree" / "d.gif")
    photograph(9).save(tmp_path / "tree" / "e.gif")
    (tmp_path / "tree" / "f").write_bytes(png(photograph(9)))
    files = [f for f in (tmp_path / "tree").rglob("*") if f.is_file()]
    zipped(tmp_path / "a.zip", {str(f.relative_to(tmp_path / "tree")): f.read_bytes() for f in files})
    said = ["left out 3 other files (.gif 2, no suffix 1)"]
    assert heard(tmp_path / "tree") == heard(tmp_path / "a.zip") == (3, said)
    for suffix in ("png", "jfif", "ppm"):
        for file in (tmp_path / "tree").glob(f"*.{suffix}"):
            file.unlink()
    with pytest.raises(ValueError, match=r"got none but 3 other files \(\.gif 2"):
        load_images(tmp_path / "tree", size=16)


def test_one_picture_is_a_source_and_other_files_are_named(tmp_path):
    spread(tmp_path, ["one.PNG"])
    assert heard(tmp_path / "one.PNG") == heard(tmp_path / "one.PNG", "train") == (1, [])
    with pytest.raises(ValueError, match="expected split 'test', got no splits"):
        load_images(tmp_path / "one.PNG", "test", 16)
    photograph(0).save(tmp_path / "two.gif")
    with pytest.raises(ValueError, match=r"two\.gif: expected .* image, got a file of another kind \(\.gif"):
        load_images(tmp_path / "two.gif", size=16)


@pytest.mark.parametrize("name", ["a" * 5000, "b c/" + "a" * 5000, "a" * 5000 + "/b c", "a" * 999 + ".png"])
def test_a_name_that_no_file_can_have_is_one_sentence(name, monkeypatch):
    monkeypatch.setattr(sources, "_download", lambda s: pytest.fail("asked the hub"))
    for source in (name, f"{name}:column", f"./{name}"):
        with pytest.raises(ValueError, match=r"expected a folder, .* or an image, got none at /[^\n]*$"):
            load_images(source, size=16)


def test_linked_folders_and_what_our_runs_wrote(tmp_path):
    """A run's folder inside its own data: it can be resumed and evaluated again on the same images."""
    spread(tmp_path / "tree", ["a.png", "b.png"])
    spread(tmp_path / "elsewhere", ["c.png"])
    (tmp_path / "tree" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "tree")
    before = load_images(tmp_path / "tree", size=16)
    spread(tmp_path / "tree", ["run/contact_sheet.png", "evaluation/restored.png", "restored.png"])
    keys = ["config", "ema", "pending", "fingerprint"], ["checkpoint", "git_commit", "results", "seed"]
    torch.save(dict.fromkeys(keys[0]), tmp_path / "tree" / "run" / "state.pt")
    for name in ("evaluation/metrics.json", "metrics.partial.json"):
        (tmp_path / "tree" / name).write_text(json.dumps(dict.fromkeys(keys[1])))
    assert torch.equal(load_images(tmp_path / "tree", size=16), before)
    assert len(before) == 3


def test_another_program_s_records_hide_no_picture(tmp_path):
    spread(tmp_path, ["contact_sheet.png", "restored.png", "a.png"])
    torch.save({"config": {}, "model": {}, "step": 3}, tmp_path / "state.pt")
    for name in ("metrics.json", "metrics.partial.json", "model.json"):
        (tmp_path / name).write_text('{"results": [], "seed": 0, "shards": []}')
    count, (said,) = heard(tmp_path)
    assert (count, said) == (3, "left out 4 other files (.json 3, .pt 1)")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "pipe").rename(tmp_path / "metrics.json")  # which nobody writes to
    assert heard(tmp_path)[0] == 3


class TestZip:
    def test_names_as_other_systems_write_them(self, tmp_path):
        data = png(photograph(0))
        entries = {"x.png/": b"", "train\\a.png": data, "test\\b.png": data, "test\\c.PNG": data}
        file = zipped(tmp_path / "a.zip", entries)
        assert [heard(file, split)[0] for split in ("train", "test")] == [1, 2]

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_of_two_entries_of_one_name_the_last_is_taken_and_it_is_said(self, tmp_path):
        names = ["a.png", "b/c.png", "a.png", "b\\c.png", "__MACOSX/x.png", "__MACOSX/x.png"]
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for i, name in enumerate(names):
                archive.writestr(name, png(photograph(i)))
        count, (said,) = heard(tmp_path / "a.zip")
        assert (count, said) == (2, "left out 2 entries whose names come again later, as 'a.png': the last "
                                 "is taken, as in unpacking")  # fmt: skip
        with pytest.warns(UserWarning, match="come again"):
            images = load_images(tmp_path / "a.zip", size=20)
        assert torch.equal(images, torch.stack([pixels(photograph(i)) for i in (2, 3)]))

    @pytest.mark.parametrize("method", ["STORED", "DEFLATED", "BZIP2", "LZMA"])
    def test_a_damaged_one_is_one_sentence(self, tmp_path, method):
        noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
        entries = {"0.png": png(photograph(0)), "1.bmp": png(Image.fromarray(noise))}
        file = zipped(tmp_path / "a.zip", entries, getattr(zipfile, f"ZIP_{method}"))
        assert heard(file)[0] == 2
        whole = file.read_bytes()
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes(50) + whole[middle + 50 :])
        with pytest.raises(
            ValueError, match=r"a\.zip/1\.bmp: expected an image, got something unr"
        ) as caught:
            load_images(file, size=16)
        assert "\n" not in str(caught.value)
        file.write_bytes(whole[: len(whole) - 30])
        with pytest.raises(ValueError, match=r"a\.zip: expected a complete zip file"):
            load_images(file, size=16)

    def test_an_encrypted_or_absurd_entry_is_named_unread(self, tmp_path, monkeypatch):
        file = zipped(tmp_path / "a.zip", {"0.png": png(photograph(0))})
        monkeypatch.setattr(sources, "MAX_BYTES", 100)
        with pytest.raises(ValueError, match=r"0\.png: .*bytes, of at most 100"):
            load_images(file, size=16)
        locked = bytearray(file.read_bytes())
        locked[6] |= 1
        locked[locked.index(b"PK\1\2") + 8] |= 1
        file.write_bytes(locked)
        monkeypatch.undo()
        with pytest.raises(ValueError, match=r"0\.png: .*encrypted"):
            load_images(file, size=16)


class TestParquet:
    @pytest.mark.parametrize(
        ("column", "words"),
        [
            (pa.array([[b"x"]]), "column .image. of encoded pictures is not among .*image.: .list"),
            (pa.array([1]), "not among .*image.: .int64"),
            (pa.array([{"path": "a.png"}]), "not among .*image.: .struct<path: string>"),
            (
                pa.array([{"bytes": None, "path": "a.png"}], pa.struct({"bytes": pa.binary()})),
                "row 0: .*no bytes",
            ),
            (
                pa.array([None], pa.binary()),
                r"row 0: expected an image, got something unreadable \(no bytes\)",
            ),
            (pa.array([b"no image"], pa.binary()), "row 0: expected an image"),
        ],
    )
    def test_columns_without_pictures_are_refused_in_one_sentence(self, column, words, tmp_path):
        pq.write_table(pa.table({"image": column}), tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=rf"x\.parquet.*{words}"):
            load_images(tmp_path, size=16)

    def test_another_column_and_a_damaged_file_are_named(self, tmp_path):
        file = write_parquet(tmp_path / "x.parquet", [0], "picture")
        with pytest.raises(ValueError, match=r"x\.parquet: .*column .image. .*picture"):
            load_images(tmp_path, size=16)
        file.write_bytes(b"PAR1" * 9)
        with pytest.raises(ValueError, match=r"x\.parquet: expected parquet"):
            load_images(tmp_path, size=16)

    def test_beside_images_it_hides_nothing(self, tmp_path):
        spread(tmp_path, ["a.png", "b.png"])
        write_parquet(tmp_path / "data" / "0.parquet", [0])
        with pytest.raises(ValueError, match="either images or parquet files, got 2 and 1"):
            load_images(tmp_path, size=16)


class TestHub:
    @pytest.fixture
    def asked(self, monkeypatch):
        import huggingface_hub

        asked = []

        def fail(*args, **kwargs):
            asked.append((args[0], kwargs["revision"]))
            raise ConnectionError("no route\nand much more")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        return asked

    def test_an_unreachable_id_is_one_sentence(self, asked):
        with pytest.raises(ValueError, match=r"korexyz/celeba-hq-256x256: .*hub id: no route$") as caught:
            load_images("korexyz/celeba-hq-256x256")
        assert "\n" not in str(caught.value)
        assert asked == list(sources.HUB_REVISIONS.items())  # the data that results were made with

    def test_a_mistyped_path_is_not_looked_for_there(self, asked, tmp_path, monkeypatch):
        """And where it was looked for is said: a run that is resumed elsewhere keeps its relative path."""
        monkeypatch.chdir(tmp_path)
        spread(tmp_path, ["photos/a.png"])
        for source in ("photos/b", "./photo", "../photos", "photo", str(tmp_path / "photo"), "a/b/c"):
            with pytest.raises(ValueError, match=f"^{source}: expected a folder, a .zip, a ") as caught:
                load_images(source)
            where = "there" if source[0] == "/" else f"at {os.path.abspath(source)}"
            assert str(caught.value).endswith(f"got none {where}")
        assert not asked
        with pytest.raises(ValueError, match=f"none at {tmp_path}/elsewhere/photos.* or a reachable hub id"):
            load_images("elsewhere/photos")


@pytest.mark.parametrize(
    ("one", "other"), [("train2017", "val2017"), ("training", "testing"), ("Train", "test1")]
)
def test_splits_with_years_and_other_endings_are_not_merged(tmp_path, one, other):
    spread(tmp_path, [f"{one}/a.png", f"{one}/b.png", f"{other}/c.png"])
    with pytest.warns(UserWarning, match=r"took split 'train' \(2\)"):
        assert len(load_images(tmp_path, "train", 16)) == 2


def test_a_stranger_s_metrics_file_makes_no_folder_ours(tmp_path):
    spread(tmp_path, ["restored.png", "a.png"])
    (tmp_path / "metrics.json").write_text('{"accuracy": 1}')
    with pytest.warns(UserWarning, match="left out 1 other file"):
        assert len(load_images(tmp_path, "train", 16)) == 2
