"""Files in, tensors out and back: orientation, transparency, depth, damage."""

import io
import struct
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photograph
from PIL import Image

from i2sb_lib import images
from i2sb_lib.data import fit
from i2sb_lib.folders import is_hidden, list_images, tally
from i2sb_lib.images import (
    check_images,
    open_image,
    psnr,
    quantise,
    save_image,
    to_float,
    to_image,
    to_tensor,
    to_uint8,
)


@pytest.fixture
def picture():
    """4 rows, 6 columns, no symmetry."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def reopen(image, suffix="png", alpha=False, **options):
    stream = io.BytesIO()
    image.save(stream, suffix, **options)
    return open_image(io.BytesIO(stream.getvalue()), alpha)


def test_every_level_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    x = to_float(levels)
    assert (float(x[0]), float(x[255]), x.dtype) == (-1.0, 1.0, torch.float32)
    assert torch.equal(to_uint8(x), levels)
    assert torch.equal(to_uint8(x + 0.49 / 127.5), levels)  # to the nearest
    assert torch.equal(to_uint8(x - 0.49 / 127.5), levels)
    assert to_uint8(torch.tensor([-1.2, 1.3])).tolist() == [0, 255]
    assert torch.equal(quantise(x), x)
    for kind in (torch.bfloat16, torch.float16, torch.float64):  # half precision is rounded no further
        assert torch.equal(to_uint8(x.to(kind)), to_uint8(x.to(kind).float()))


def test_psnr_is_per_image_with_peak_two():
    x = torch.zeros(2, 3, 4, 4)
    y = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    torch.testing.assert_close(psnr(x, y), torch.tensor([20.0, 40.0]))


TURNS = {
    1: lambda x: x,
    2: lambda x: x.flip(2),
    3: lambda x: x.flip(1, 2),
    4: lambda x: x.flip(1),
    5: lambda x: x.transpose(1, 2),
    6: lambda x: x.rot90(-1, (1, 2)),
    7: lambda x: x.transpose(1, 2).flip(1, 2),
    8: lambda x: x.rot90(1, (1, 2)),
}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_orientation_of_every_kind_of_tiff(picture, mode, tmp_path):
    """By path: uncompressed, which Pillow would map to memory in the wrong shape."""
    deep = np.array(picture.convert("L")).astype(np.uint16) * 257
    image = Image.fromarray(deep) if mode == "I;16" else picture.convert(mode)
    for tag, turn in TURNS.items():
        file = tmp_path / f"{tag}.tif"
        image.save(file, tiffinfo={274: tag})
        want = turn(to_tensor(image))
        assert torch.equal(to_tensor(open_image(file)), want), tag
        assert torch.equal(to_tensor(Image.open(file)), want), tag  # as users open them
    assert not torch.equal(want, to_tensor(image))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_orientation_is_applied_once(picture, kind):
    exif = Image.Exif()
    for tag, turn in TURNS.items():
        exif[274] = tag
        image = reopen(picture, kind, exif=exif)
        plain = to_tensor(reopen(picture, kind))
        assert torch.equal(to_tensor(image), turn(plain)), tag
        assert not image.info


def exif_block(*entries, magic=b"II"):
    """Raw EXIF; entries: tag, type, count, four bytes of value."""
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0" + magic + struct.pack("<HIH", 42, 8, len(entries)) + body + bytes(4)


TURNED = (274, 3, 1, b"\6\0\0\0")


@pytest.mark.parametrize(
    ("block", "turned"),
    [
        (exif_block(TURNED, (282, 2, 4, b"abc\0")), True),  # text in XResolution
        (exif_block((256, 9, 1, b"\xff\xff\xff\xff"), TURNED), True),  # a negative width
        (exif_block((274, 2, 4, b"abc\0")), False),
        (exif_block((274, 5, 1, b"\xff\xff\xff\x7f")), False),
        (exif_block(TURNED, magic=b"XX"), False),
    ],
    ids=["text for a number", "sign", "text for a turn", "fraction", "header"],
)
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on the damaged tags
def test_malformed_tags_do_not_cost_the_picture(picture, kind, block, turned):
    plain = to_tensor(reopen(picture, kind))
    assert torch.equal(to_tensor(reopen(picture, kind, exif=block)), TURNS[6 if turned else 1](plain))


def wide_gamut_profile():
    """Display P3 with a gamma of 563/256, as a minimal ICC profile, and its matrix to D50."""
    matrix = np.array(
        [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
    )

    def xyz(v):
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * c) for c in v))

    tags = {b"wtpt": xyz((0.9642, 1, 0.8249)), b"cprt": b"text" + bytes(8)}
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", 3) + b"P3\0" + bytes(79)
    for i, name in enumerate((b"r", b"g", b"b")):
        tags[name + b"XYZ"] = xyz(matrix[:, i])
        tags[name + b"TRC"] = b"curv" + bytes(4) + struct.pack(">IHH", 1, 563, 0)
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(">I4s4s4s4s4s12x4s28x3i48x", start + len(body), bytes(4), b"\2\x40\0\0", b"mntr",
                       b"RGB ", b"XYZ ", b"acsp", 63190, 65536, 54061)[4:]  # fmt: skip
    return struct.pack(">I", start + len(body)) + head + table + body, matrix


def test_colours_come_out_in_srgb(picture):
    profile, matrix = wide_gamut_profile()
    to_srgb = np.linalg.inv(
        [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
    )
    linear = (to_srgb @ matrix @ ((np.array(picture) / 255.0)[..., None] ** (563 / 256)))[..., 0].clip(0, 1)
    want = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    image = reopen(picture, icc_profile=profile)
    assert np.abs(np.array(image) - want).max() <= 1
    assert np.abs(np.array(picture) - want).max() > 20
    assert torch.equal(to_tensor(image), pixels(image))  # not twice
    rgba = picture.convert("RGBA")
    rgba.putalpha(255)
    assert torch.equal(to_tensor(reopen(rgba, icc_profile=profile)), pixels(image))
    for bad in (b"no profile", profile[:300], profile[:200] + b"?" * 99 + profile[299:]):
        assert torch.equal(to_tensor(reopen(picture, icc_profile=bad)), pixels(picture))
    grey = picture.convert("L")  # a profile of three colours does not fit
    assert torch.equal(to_tensor(reopen(grey, icc_profile=profile)), pixels(grey.convert("RGB")))


def test_alpha_is_composed_over_white(picture):
    alpha = np.tile(np.array([0, 51, 102, 153, 204, 255], dtype=np.uint8), (4, 1))
    rgba = Image.fromarray(np.dstack([np.array(picture), alpha]))
    want = 255 + (np.array(picture, dtype=float) - 255) * (alpha[..., None] / 255)
    found = to_tensor(reopen(rgba)).permute(1, 2, 0).numpy()
    assert np.abs(found - want).max() <= 1
    assert (found[:, 0] == 255).all()
    grey = Image.merge("LA", (picture.convert("L"), Image.fromarray(alpha)))
    assert (to_tensor(reopen(grey)).numpy()[:, :, 0] == 255).all()


def test_what_a_picture_loses_is_said(picture):
    clear, whole = picture.convert("RGBA"), picture.convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 254))
    deep = raw_png([[0, 700, 65535]], 0, 1)
    with pytest.warns(UserWarning, match="see-through are taken as they look over white") as caught:
        to_tensor(reopen(clear))
    ppm = [io.BytesIO(b"P6 1 1 65535\n\0\0\x80\x80\xff\xff"), io.BytesIO(b"P3 1 1 1023\n0 514 1023\n")]
    with pytest.raises(ValueError, match="got at most 12"):  # which would be nearly black
        open_image(io.BytesIO(b"P6 1 1 65535\n\x0f\xff\x08\0\0\0"))
    for many in (deep, *ppm):
        with pytest.warns(UserWarning, match="more than 8 bits a colour are taken as 8") as deep_ones:
            assert to_tensor(open_image(many)).flatten()[-1] == 255
        assert {w.filename for w in (*caught, *deep_ones)} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_tensor(reopen(whole))
        reopen(clear, alpha=True)


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


def raw_png(rows, kind, transparent, bits=16):
    """A PNG whose depth can be chosen: grey (kind 0) or colour (2), with one transparent value."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def packed(row):
        digits = "".join(f"{value:0{bits}b}" for value in row)
        return int(digits.ljust(-len(digits) % 8 + len(digits), "0"), 2).to_bytes(-(-len(digits) // 8), "big")

    lines = b"".join(b"\0" + packed(row) for row in rows)
    size = (len(rows[0]) // (3 if kind else 1), len(rows), bits, kind, 0, 0, 0)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", *size)),
        (b"tRNS", np.array(transparent, dtype=">u2").tobytes()),
    ]
    parts += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def raw_tiff(values, bits=16, **tags):
    """A grey TIFF whose every tag can be chosen: of 16-bit values, or of packed bytes."""
    names = {"photometric": 262, "sign": 339}
    data = values if isinstance(values, bytes) else np.array(values, dtype="<i4").astype("<u2").tobytes()
    width = len(data) * 8 // bits
    entries = {256: width, 257: 1, 258: bits, 259: 1, 262: 1, 277: 1, 278: 1, 279: len(data)}
    entries |= {names[k]: v for k, v in tags.items()}
    entries[273] = 14 + 12 * (len(entries) + 1)
    body = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(entries.items()))
    return io.BytesIO(b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + data)


def made_tiff(strips, tags):
    """A TIFF of these strips; tags: a number or several (SHORT) for each."""
    offsets = np.cumsum([8, *map(len, strips)]).tolist()
    tags = {259: 1} | tags | {273: offsets[:-1], 279: [len(s) for s in strips]}
    values = {tag: np.atleast_1d(v).astype("<u2").tobytes() for tag, v in sorted(tags.items())}
    start, entries, more = offsets[-1], b"", b""
    for tag, data in values.items():
        place = start + 6 + 12 * len(values) + len(more)
        more += data if len(data) > 4 else b""
        value = struct.pack("<I", place) if len(data) > 4 else data.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, 3, len(data) // 2) + value
    head, count = b"II*\0" + struct.pack("<I", start), struct.pack("<H", len(values))
    return io.BytesIO(head + b"".join(strips) + count + entries + bytes(4) + more)


def test_chroma_of_fewer_pixels_is_right_or_refused(tmp_path):
    """Two strips of two rows, each block four of Y, one of Cb and of Cr; red everywhere."""
    block, tags = bytes([76] * 4 + [85, 255]), {256: 8, 257: 4, 258: [8] * 3, 262: 6, 277: 3, 278: 2}
    for sub in ({530: [2, 2]}, {530: [2, 1]}, {}):  # two of each is what no tag means
        (tmp_path / "a.tif").write_bytes(made_tiff([block * 4] * 2, tags | sub).getvalue())
        with pytest.raises(ValueError, match=r"a\.tif: .*got a kind of uncompressed, which"):
            open_image(tmp_path / "a.tif")
    packed = made_tiff([zlib.compress(block * 4)] * 2, tags | {259: 8, 530: [2, 2]})
    each = made_tiff([bytes([76, 85, 255] * 16)] * 2, tags | {530: [1, 1]})
    for file in (packed, each) if Image.open(each).mode == "YCbCr" else (packed,):
        x = to_tensor(open_image(file)).flatten(1).int()
        assert (x - torch.tensor([[254], [0], [0]])).abs().max() <= 1, x


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_colour_map_of_eight_bits_is_taken_as_that(bits):
    """As old programs wrote it, and as libtiff knows it: nothing in it is above 255."""
    colours = np.arange(3 * 2**bits).reshape(3, -1) % 256 // 2 + 100
    data = np.packbits(np.unpackbits(np.uint8([[1], [0], [1]]), axis=1)[:, -bits:])
    tags = {256: 3, 257: 1, 258: bits, 262: 3, 277: 1, 278: 1}
    for scale in (1, 256, 257):
        image = Image.open(made_tiff([data.tobytes()], tags | {320: (colours * scale).flatten()}))
        for _ in range(2):
            assert to_tensor(image)[:, 0].T.tolist() == colours.T[[1, 0, 1]].tolist(), scale


def test_planes_of_sixteen_bits_are_right_or_refused():
    tifffile = pytest.importorskip("tifffile")
    deep = np.random.default_rng(0).integers(0, 65536, (3, 6, 9), dtype=np.uint16)
    for order in "<>":
        stream = io.BytesIO()
        how = {"photometric": "rgb", "planarconfig": "separate", "byteorder": order}
        tifffile.imwrite(stream, deep, **how)
        with pytest.raises(ValueError, match="got 16-bit planes"):
            open_image(io.BytesIO(stream.getvalue()))
        stream = io.BytesIO()
        tifffile.imwrite(stream, (deep >> 8).astype(np.uint8), **how)
        found = to_tensor(open_image(io.BytesIO(stream.getvalue())))
        assert np.array_equal(found.numpy(), deep >> 8)


def levels(file):
    x = to_tensor(open_image(file))
    assert torch.equal(x[0], x[1])
    assert torch.equal(x[0], x[2])
    return x[0, 0].tolist()


def test_sixteen_bits_are_scaled_whatever_their_form():
    deep = [0, 128, 129, 257, 25700, 65406, 65407, 65535]
    want = [round(v / 257) for v in deep]
    assert levels(raw_png([deep], 0, 65535)) == [*want[:-1], 255]
    assert levels(raw_png([deep], 0, 25700)) == [*want[:4], 255, *want[5:]]
    assert levels(raw_tiff(deep)) == want
    assert levels(raw_tiff(deep, photometric=0)) == [255 - v for v in want]
    assert levels(raw_tiff(b"\xff\xf8\x00", bits=12)) == [255, 128]
    assert levels(io.BytesIO(b"P5 8 1 65535\n" + np.array(deep, dtype=">u2").tobytes())) == want
    assert levels(raw_tiff([0, 0])) == [0, 0]  # black at any scale
    assert levels(raw_tiff([4096, 0])) == [16, 0]  # 13 bits are not of a 12-bit camera
    colours = to_tensor(open_image(raw_png([[65535, 0, 0, 25601, 300, 999]], 2, [25601, 300, 999])))
    assert colours[:, 0].T.tolist() == [[255, 0, 0], [255, 255, 255]]
    assert to_tensor(open_image(raw_png([[4096, 0, 9]], 2, [7, 7, 7]))).flatten().tolist() == [16, 0, 0]


def test_pixels_of_no_known_scale_are_refused_by_name(tmp_path):
    float_, wide = (np.linspace(0, 9, 64).reshape(8, 8).astype(t) for t in (np.float32, np.int32))
    buffers = {"float": io.BytesIO(), "wide": io.BytesIO()}
    Image.fromarray(float_).save(buffers["float"], "tiff")
    Image.fromarray(wide).save(buffers["wide"], "tiff")
    buffers |= {"signed": raw_tiff([0, 32767, 9], sign=2), "twelve": raw_tiff([0, 4095, 9])}
    buffers["colour"] = raw_png([[0, 4095, 9]], 2, [7, 7, 7])
    buffers["dark"] = raw_tiff([1, 0, 0])
    buffers["pfm"] = io.BytesIO(b"Pf 1 1 -1.0\n" + struct.pack("<f", 0.5))
    for name, buffer in buffers.items():
        (tmp_path / name).write_bytes(buffer.getvalue())
        with pytest.raises(ValueError, match=rf"{name}: .*whose white is not known"):
            open_image(tmp_path / name)
    with pytest.raises(ValueError, match="signed or 32-bit integers, whose white"):
        to_tensor(Image.fromarray(wide * 1000))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_level_is_clear_at_every_depth_and_nothing_else_is(bits):
    top = 2**bits - 1
    values = sorted({0, 1, top // 3, top // 2, top})
    for key in values:
        opacity = [0 if v == key else 255 for v in values]
        file = raw_png(
            [values], 0, key + 2**bits * (bits in (2, 4, 8)), bits
        )  # a key's high bits do not count
        image = Image.open(file)
        for _ in range(2):  # once decoded it is the same picture
            rgba = to_tensor(image, 4)[:, 0]
            assert rgba[0].tolist() == [round(v * 255 / top) for v in values]
            assert rgba[3].tolist() == opacity, (key, values)
        assert levels(file) == [255 if v == key else round(v * 255 / top) for v in values]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour_is_clear_at_every_depth(bits):
    one = 2 ** (bits - 8)
    row = [255 * one, 0, 0, 100 * one, 2 * one, 3 * one]
    image = Image.open(raw_png([row], 2, row[3:], bits))
    for _ in range(2):
        assert to_tensor(image, 4)[:, 0].T.tolist() == [[255, 0, 0, 255], [100, 2, 3, 0]]


@pytest.mark.parametrize("place", ["stream", "file"])
def test_a_transparent_colour_of_sixteen_bits_is_compared_in_all_of_them(place, tmp_path):
    row = [0, 0, 0, 200, 200, 200, 65535, 30000, 0, 0, 0, 1]  # all but the third have the key's high bytes
    file = raw_png([row, row[::-1]], 2, [0, 0, 0])
    if place == "file":
        (tmp_path / "a.png").write_bytes(file.getvalue())
        file = tmp_path / "a.png"
    image = Image.open(file)
    for source in (image, image, Image.open(file)):
        rgba = to_tensor(source, 4)
        assert rgba[3].tolist() == [[0, 255, 255, 255], [255, 255, 255, 0]]
        assert rgba[:3, 0].T.tolist() == [[0] * 3, [0] * 3, [255, 117, 0], [0] * 3]
    assert to_tensor(open_image(file))[0].tolist() == [[255, 0, 255, 0], [0, 0, 0, 255]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_transparent_palette_entries_of_every_depth(bits, tmp_path):
    colours = [[i, 100 + i, 200 + i] for i in range(min(2**bits, 5))]
    image = Image.new("P", (len(colours), 1))
    image.putpalette([value for colour in colours for value in colour])
    image.putdata(range(len(colours)))
    for clear in (0, 1, bytes([9, 255, 0, 1, 128][: len(colours)])):
        image.save(tmp_path / "a.png", bits=bits, transparency=clear)
        opacity = (
            list(clear) if isinstance(clear, bytes) else [255 * (i != clear) for i in range(len(colours))]
        )
        found = to_tensor(Image.open(tmp_path / "a.png"), 4)[:, 0].T.tolist()
        assert found == [[*colour, a] for colour, a in zip(colours, opacity, strict=True)]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
def test_a_tiff_of_signed_or_float_samples_is_refused(order, photometric, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    shape = (4, 6, 3) if photometric == "rgb" else (4, 6)
    for kind in ("i1", "i2", "i4", "i8", "f2", "f4", "f8", "u4", "u8", "c8", "u1"):
        pixels_ = np.arange(np.prod(shape)).reshape(shape).astype(order + kind)
        file = tmp_path / f"{kind}.tif"
        tifffile.imwrite(file, pixels_, photometric=photometric, byteorder=order)
        if kind == "u1":
            assert to_tensor(open_image(file)).max() == (
                255 if photometric == "miniswhite" else pixels_.max()
            )
            continue
        with pytest.raises(ValueError, match=f"{kind}.tif: expected an image"):
            open_image(file)
        with pytest.raises((ValueError, Image.UnidentifiedImageError)):  # as users open them
            fit(Image.open(file), 4)


def test_signed_bytes_are_refused_by_name(tmp_path):
    for values in ([128, 255, 0, 127], [0, 127, 9, 9]):
        (tmp_path / "signed.tif").write_bytes(raw_tiff(bytes(values), bits=8, sign=2).getvalue())
        with pytest.raises(
            ValueError, match=r"signed\.tif: .*got signed .*integers, whose white is not known"
        ):
            open_image(tmp_path / "signed.tif")
    assert levels(raw_tiff(bytes(values), bits=8, sign=1)) == values


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


def test_a_header_that_claims_too_much_is_named(picture, tmp_path, monkeypatch):
    picture.save(tmp_path / "huge.bmp")
    data = bytearray((tmp_path / "huge.bmp").read_bytes())
    data[18:26] = (99_999).to_bytes(4, "little") * 2  # width and height
    (tmp_path / "huge.bmp").write_bytes(data)
    with pytest.raises(ValueError, match=r"huge\.bmp: expected an image.*exceeds limit"):
        open_image(tmp_path / "huge.bmp")
    monkeypatch.setattr(images, "MAX_PIXELS", 23)
    with pytest.raises(ValueError, match=r"image: expected an image.*6 x 4 pixels, of at most 23"):
        reopen(picture)
    monkeypatch.setattr(images, "MAX_PIXELS", 24)
    assert reopen(picture).size == (6, 4)


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
    for form in (picture, picture.convert("CMYK"), picture.convert("P"), picture.convert("LA")):
        save_image(form, path)
        again = to_tensor(open_image(path, alpha=True), 4)
        assert torch.equal(again, to_tensor(form, 4))
    with pytest.raises(ValueError, match="expected a format that holds opacity"):
        save_image(picture.convert("LA"), tmp_path / "out.jpg")
    save_image(picture, path)
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


@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("value", "got"),
    [(float("nan"), "nan, nan"), (255, "0, 255"), (-float("inf"), "-inf, 0"), (1.6, "0, 1.6")],
)
def test_floats_that_are_no_picture_are_not_saved(value, got, kind, tmp_path):
    x = torch.zeros(3, 4, 4, dtype=kind)
    save_image(x, tmp_path / "a.png")
    x[1, 2, 3] = value
    for path in (tmp_path / "a.png", io.BytesIO()):
        with pytest.raises(ValueError, match=rf"expected values in \[-1, 1\], got \[{got}\]"):
            save_image(x, path)
    assert to_tensor(open_image(tmp_path / "a.png")).unique().tolist() == [128]  # what was there stays
    with pytest.raises(ValueError, match=r"expected values in \[-1, 1\]"):
        to_image(x)
    save_image(torch.full((3, 4, 4), 1.4, dtype=kind), tmp_path / "a.png")  # noise may lead so far
    assert to_tensor(open_image(tmp_path / "a.png")).unique().tolist() == [255]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(3, 8, 8),
            r"x1: expected float images \(B, C, H, W\).*of shape \(3, 8, 8\)",
        ),
        (torch.zeros(1, 2, 8, 8), r"shape \(1, 2, 8, 8\)"),
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
    for edge in (-1.5, 1.5):
        x = torch.full((1, 3, 8, 8), edge)
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
    stripes = torch.zeros(3, 16, 16, dtype=torch.uint8)  # red and blue in turn: half the chroma is grey
    stripes[0, :, ::2], stripes[2, :, 1::2] = 255, 255
    save_image(stripes, tmp_path / "a.jpg")
    assert (to_tensor(open_image(tmp_path / "a.jpg")).float() - stripes).abs().mean() < 8


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tiff"])
def test_colours_under_no_opacity_are_kept(suffix, tmp_path):
    x = torch.randint(0, 256, (4, 16, 16), generator=torch.manual_seed(0), dtype=torch.uint8)
    x[3, :8], x[3, 8:12] = 0, 1
    save_image(x, tmp_path / f"a{suffix}")
    assert torch.equal(to_tensor(open_image(tmp_path / f"a{suffix}", alpha=True), 4), x)


def test_a_suffix_whose_format_would_break_the_promise_is_refused(picture, tmp_path):
    for name in ("a.gif", "a.avif", "a.jp2", "a"):
        with pytest.raises(ValueError, match=rf"{name}: expected a suffix among \.png"):
            save_image(pixels(picture), tmp_path / name)
    assert not list(tmp_path.iterdir())
    for suffix in set(images.SUFFIXES) - {".jpg", ".jpeg", ".jfif"}:
        save_image(pixels(picture), tmp_path / f"a{suffix}")
        assert torch.equal(to_tensor(open_image(tmp_path / f"a{suffix}")), pixels(picture))
    save_image(pixels(picture), tmp_path / "a.jfif")
    save_image(pixels(picture), tmp_path / "a.jpg")
    save_image(pixels(picture), tmp_path / "b.JPG")
    assert (tmp_path / "a.jfif").read_bytes() == (tmp_path / "a.jpg").read_bytes()
    assert (tmp_path / "b.JPG").read_bytes() == (tmp_path / "a.jpg").read_bytes()


@pytest.mark.parametrize("kind", ["gif", "webp", "tiff", "png", "avif", "mpo"])
def test_the_first_of_several_pictures_is_taken_and_said(picture, kind, tmp_path, recwarn):
    first, second = picture.resize((32, 32)), Image.new("RGB", (32, 32), "red")
    first.save(tmp_path / "a", kind, save_all=True, append_images=[second])
    first.save(tmp_path / "b", kind)
    with Image.open(tmp_path / "b") as one:
        assert torch.equal(to_tensor(open_image(tmp_path / "b")), to_tensor(one))
    assert not recwarn
    mean = to_tensor(open_image(tmp_path / "a")).float().mean((1, 2))
    assert (mean - pixels(first).float().mean((1, 2))).abs().max() < 9
    said = [str(w.message) for w in recwarn]
    assert said == ([] if kind == "mpo" else [f"{tmp_path / 'a'}: holds several pictures, took the first"])


def test_only_kinds_of_pictures_that_are_safe_to_decode_are_opened(picture, tmp_path):
    picture.save(tmp_path / "a.png", "eps")  # whose decoder is a program of its own
    with pytest.raises(ValueError, match=r"a\.png: expected an image.*cannot identify"):
        open_image(tmp_path / "a.png")


@pytest.fixture
def tree(tmp_path):
    """Two pictures in a folder with whatever else a stranger's folder may hold."""
    root = tmp_path / "tree"
    names = [
        "a.PNG",
        "sub/b.jpg",
        ".hidden.png",
        ".ipynb_checkpoints/b.png",
        "sub/@eaDir/b.png",
        "c.gif",
        "d.gif",
    ]
    for name in [*names, "e", "notes.txt", "sub/.b.123.tmp.png", "__MACOSX/._a.png"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_any_part_of_a_path_may_be_a_tool_s_own():
    for name in (".a.png", ".git/a.png", "b/@eaDir/a.png", "__MACOSX/a.png", "__MACOSX/b/a.png"):
        assert is_hidden(name)
    for name in ("a.png", "b.c/a.png", "eaDir/a.png", "b/MACOSX.png"):
        assert not is_hidden(name)


def test_a_folder_s_pictures_are_listed_and_the_rest_is_counted(tree):
    files, skipped = list_images(tree)
    assert [str(f.relative_to(tree)) for f in files] == ["a.PNG", "sub/b.jpg"]
    assert skipped == {".gif": 2, "no suffix": 1, ".txt": 1}
    assert tally(skipped) == "4 other files (.gif 2, .txt 1, no suffix 1)"
    assert list_images(tree / "sub" / "@eaDir")[0]  # asked for by name
    assert (tally(Counter()), tally(Counter({".gif": 1}))) == ("no other files", "1 other file (.gif 1)")


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(tree, monkeypatch):
    (tree / "lost+found").mkdir()
    real = Path.iterdir

    def iterdir(self):
        if self.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    files, skipped = list_images(tree)
    assert (len(files), skipped["unreadable folder"]) == (2, 1)


def test_linked_folders_are_followed_once(tree, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "o.png").write_bytes(b"")
    (tree / "link").symlink_to(outside)
    (tree / "again").symlink_to(outside)
    (tree / "a_sub").symlink_to(tree / "sub")  # sorts before it, yet it keeps its own name
    (tree / "sub" / "loop").symlink_to(tree)
    (outside / "up").symlink_to(tmp_path)
    (tree / "self").symlink_to("self")
    (tree / "gone.png").symlink_to(tmp_path / "nowhere")
    found = [str(f.relative_to(tree)) for f in list_images(tree)[0]]
    assert found == ["a.PNG", "again/o.png", "gone.png", "sub/b.jpg"]
    with pytest.raises(ValueError, match=r"gone\.png: expected an image.*No such file"):
        open_image(tree / "gone.png")


def test_what_our_runs_wrote_is_no_picture_of_the_folder(tree):
    for name in ("contact_sheet.png", "sub/restored.png", "run/contact_sheet.png", "run/good.png"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_bytes(b"")
    (tree / "run" / "model.json").write_text('{"model": {}, "record": {}, "shards": []}')
    record = '{"checkpoint": {}, "git_commit": null, "results": [], "seed": 0}'
    (tree / "sub" / "metrics.json").write_text(record)
    found = [str(f.relative_to(tree)) for f in list_images(tree)[0]]
    assert found == ["a.PNG", "contact_sheet.png", "run/good.png", "sub/b.jpg"]
    assert ".json" not in list_images(tree)[1]


def test_the_excluded_folder_is_left_out_but_never_the_whole(tree, tmp_path):
    everything = list_images(tree)[0]
    assert list_images(tree, tree / "sub")[0] == everything[:1]
    (tmp_path / "alias").symlink_to(tree / "sub")
    assert list_images(tree, tmp_path / "alias")[0] == everything[:1]
    for above in (tree, tmp_path, tree / "absent", tree / "sub" / ".." / ".."):
        assert list_images(tree, above)[0] == everything


@pytest.mark.parametrize("take", [to_float, to_uint8, quantise])
def test_an_array_is_no_tensor_of_images(take):
    for x in (np.zeros((1, 3, 4, 4), np.uint8), np.zeros((1, 3, 4, 4), np.float32)):
        with pytest.raises(ValueError, match=rf"got ndarray of {x.dtype} of shape \(1, 3, 4, 4\)$"):
            take(x)


def test_a_psnr_is_of_two_float_images_of_one_shape():
    x = torch.rand(2, 3, 6, 5) * 2 - 1
    want = 10 * np.log10(4 / ((x - x.flip(0)).double() ** 2).mean((1, 2, 3)))
    torch.testing.assert_close(psnr(x, x.flip(0)).double(), want, rtol=1e-6, atol=0)
    assert psnr(x, x).tolist() == [float("inf")] * 2
    assert torch.equal(psnr(x, x[:1]), psnr(x, x[:1].expand(2, 3, 6, 5)))
    for a, b in ((x, x[[0, 0, 0]]), (x, x[:, :1]), (x, to_uint8(x)), (x.numpy(), x)):
        with pytest.raises(ValueError, match=r"^expected float images( of one shape)?, got "):
            psnr(a, b)


def test_a_psnr_of_short_floats_is_not_infinite():
    a, b = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 2.0**-13)
    assert psnr(a.half(), b.half()).item() == pytest.approx(10 * np.log10(4 * 2.0**26), rel=1e-6)


def test_what_is_no_image_is_not_saved(tmp_path):
    for x in (None, [1], np.zeros((3, 4, 4), np.uint8), torch.zeros(3, 0, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"^expected an image \(1, 3 or 4, H, W\), got "):
            save_image(x, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
