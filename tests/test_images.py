"""Files in, tensors out and back: orientation, transparency, depth, damage."""

import io

import numpy as np
import pytest
import torch
from conftest import photograph
from PIL import Image

from i2sb_lib.images import (
    check_images,
    open_image,
    psnr,
    quantise,
    save_image,
    to_float,
    to_tensor,
    to_uint8,
)


@pytest.fixture
def picture():
    """4 rows, 6 columns, no symmetry."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def reopen(image, suffix="png", **options):
    stream = io.BytesIO()
    image.save(stream, suffix, **options)
    return open_image(io.BytesIO(stream.getvalue()))


def test_every_level_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    x = to_float(levels)
    assert (float(x[0]), float(x[255]), x.dtype) == (-1.0, 1.0, torch.float32)
    assert torch.equal(to_uint8(x), levels)
    assert torch.equal(to_uint8(x + 0.49 / 127.5), levels)  # to the nearest
    assert torch.equal(to_uint8(x - 0.49 / 127.5), levels)
    assert to_uint8(torch.tensor([-1.2, 1.3])).tolist() == [0, 255]
    assert torch.equal(quantise(x), x)


def test_psnr_is_per_image_with_peak_two():
    x = torch.zeros(2, 3, 4, 4)
    y = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    torch.testing.assert_close(psnr(x, y), torch.tensor([20.0, 40.0]))


@pytest.mark.parametrize(("tag", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation_is_applied(picture, tag, turn):
    exif = Image.Exif()
    exif[0x0112] = tag
    found = to_tensor(reopen(picture, exif=exif))
    assert torch.equal(found, pixels(picture).rot90(turn, (1, 2)))
    assert not torch.equal(found, pixels(picture))


def test_alpha_is_composed_over_white(picture):
    alpha = np.tile(np.array([0, 51, 102, 153, 204, 255], dtype=np.uint8), (4, 1))
    rgba = Image.fromarray(np.dstack([np.array(picture), alpha]))
    want = 255 + (np.array(picture, dtype=float) - 255) * (alpha[..., None] / 255)
    found = to_tensor(reopen(rgba)).permute(1, 2, 0).numpy()
    assert np.abs(found - want).max() <= 1
    assert (found[:, 0] == 255).all()
    grey = Image.merge("LA", (picture.convert("L"), Image.fromarray(alpha)))
    assert (to_tensor(reopen(grey)).numpy()[:, :, 0] == 255).all()


def test_a_transparent_palette_entry_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert to_tensor(reopen(image)).permute(1, 2, 0).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    clear = reopen(image, transparency=0)
    assert to_tensor(clear).permute(1, 2, 0).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_grey_black_and_white_and_cmyk(picture):
    grey = picture.convert("L")
    plane = torch.from_numpy(np.array(grey))
    assert torch.equal(to_tensor(reopen(grey)), plane.expand(3, 4, 6))
    assert set(to_tensor(reopen(picture.convert("1"))).flatten().tolist()) == {0, 255}
    cmyk = to_tensor(reopen(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpeg", quality=95)).float()
    assert (cmyk.mean((1, 2)) - torch.tensor([255.0, 0, 0])).abs().max() < 8


def test_sixteen_bits_are_scaled_not_clipped():
    deep = np.array([[0, 128, 129, 257, 25700, 65406, 65407, 65535]], dtype=np.uint16)
    found = to_tensor(reopen(Image.fromarray(deep)))
    assert found[0].tolist() == [[round(v / 257) for v in deep[0].tolist()]]
    assert found.shape == (3, 1, 8)


@pytest.mark.parametrize("suffix", ["png", "jpeg", "bmp", "webp", "tiff"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on the damaged TIFF
def test_a_damaged_file_is_named(picture, suffix, tmp_path):
    whole, cut = io.BytesIO(), tmp_path / "sub" / f"cut.{suffix}"
    cut.parent.mkdir()
    picture.resize((60, 40)).save(whole, suffix)
    message = rf"sub.cut\.{suffix}: expected an image, got something unreadable"
    for size in (0, 10, len(whole.getvalue()) // 2):
        cut.write_bytes(whole.getvalue()[:size])
        with pytest.raises(ValueError, match=message):
            open_image(cut)


def test_a_header_that_claims_too_much_is_named(picture, tmp_path):
    picture.save(tmp_path / "huge.bmp")
    data = bytearray((tmp_path / "huge.bmp").read_bytes())
    data[18:26] = (99_999).to_bytes(4, "little") * 2  # width and height
    (tmp_path / "huge.bmp").write_bytes(data)
    with pytest.raises(ValueError, match=r"huge\.bmp: expected an image.*exceeds limit"):
        open_image(tmp_path / "huge.bmp")


def test_missing_and_nameless_input(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.png: expected an image.*No such file"):
        open_image(tmp_path / "nothing.png")
    stream = io.BytesIO(b"no image")
    stream.name = "row 7"
    with pytest.raises(ValueError, match="row 7: expected an image"):
        open_image(stream)


def test_saving_is_exact_and_atomic(picture, tmp_path, monkeypatch):
    path, x = tmp_path / "out.png", to_float(pixels(picture))
    for form in (x, x.double(), to_uint8(x)):
        save_image(form, path)
        assert torch.equal(to_tensor(open_image(path)), pixels(picture))
    before = path.read_bytes()

    def half(self, file, *args, **kwargs):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_image(-x, path)
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(3, 8, 8),
            r"x1: expected float images \(B, 3, H, W\).*of shape \(3, 8, 8\)",
        ),
        (torch.zeros(1, 4, 8, 8), r"shape \(1, 4, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), r"shape \(0, 3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "got torch.uint8"),
        (np.zeros((1, 3, 8, 8)), "got ndarray"),
        (torch.full((1, 3, 8, 8), 255.0), r"values in \[-1, 1\], got \[255, 255\]"),
        (torch.full((1, 3, 8, 8), -1.6), r"got \[-1.6, -1.6\]"),
        (torch.full((1, 3, 8, 8), float("nan")), r"got \[nan, nan\]"),
    ],
)
def test_check_images_says_what_came(x, message):
    with pytest.raises(ValueError, match=message):
        check_images(x, "x1")


def test_check_images_lets_a_noisy_state_pass_and_dtypes_are_not_mixed_up():
    x = torch.full((1, 3, 8, 8), 1.4)
    assert check_images(x) is x
    with pytest.raises(ValueError, match=r"uint8 images, got torch\.float32"):
        to_float(x)
    with pytest.raises(ValueError, match=r"float images.*got torch\.uint8"):
        to_uint8(x.to(torch.uint8))


def test_a_jpeg_is_saved_well_and_a_webp_without_loss(tmp_path):
    x = to_tensor(photograph(0, 64, 64).resize((16, 16)).resize((64, 64)))  # smooth, as photographs are
    save_image(x, tmp_path / "a.webp")
    save_image(x, tmp_path / "a.jpg")
    assert torch.equal(to_tensor(open_image(tmp_path / "a.webp")), x)
    again = to_float(to_tensor(open_image(tmp_path / "a.jpg")))[None]
    plain = io.BytesIO()
    Image.fromarray(x.permute(1, 2, 0).numpy()).save(plain, "JPEG")
    usual = to_float(to_tensor(Image.open(plain)))[None]
    assert psnr(again, to_float(x)[None]) > psnr(usual, to_float(x)[None]) + 3


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_no_known_scale_are_refused(tmp_path, dtype):
    Image.fromarray(np.linspace(0, 1, 64).reshape(8, 8).astype(dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="expected 8 or 16 bits a pixel"):
        to_tensor(open_image(tmp_path / "a.tiff"))
