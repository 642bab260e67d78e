"""The weights of overlapping windows; the walks through them are in test_restoration."""

import pytest
import torch

from i2sb_lib import tiles
from i2sb_lib.tiles import Windows


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(tiles, "WINDOW", 12)
    monkeypatch.setattr(tiles, "OVERLAP", 4)


def test_a_window_s_weight_falls_like_the_square_of_the_distance_to_its_end():
    """Two windows of 12 pixels that begin at 0 and 8: which one is heard, pixel by pixel."""
    windows, calls = Windows(1, 20), []
    heard = windows(lambda x: calls.append(x) or torch.full_like(x, len(calls) - 1), torch.zeros(1, 1, 1, 20))
    near, far = torch.arange(1.0, 5) ** 2, torch.arange(4.0, 0, -1) ** 2
    want = torch.cat([torch.zeros(8), near / (near + far), torch.ones(8)])
    torch.testing.assert_close(heard[0, 0, 0], want)


def test_pixels_far_from_the_ends_of_both_windows_are_shared_alike():
    """The last window begins at 3: an overlap of nine pixels, where four would do."""
    calls, x = [], torch.zeros(1, 1, 1, 15)
    heard = Windows(1, 15)(lambda x: calls.append(x) or torch.full_like(x, len(calls) - 1), x)
    torch.testing.assert_close(heard[0, 0, 0, 6:9], torch.full((3,), 0.5))
    assert bool((heard[0, 0, 0, 2:7].diff() > 0).all())


def test_the_weights_go_where_the_picture_is():
    x = torch.zeros(1, 1, 1, 20, device="meta")  # as on a GPU
    assert Windows(1, 20)(lambda x: x, x).device.type == "meta"


@pytest.mark.parametrize("size", [(13, 12), (12, 21), (20, 29)])
def test_every_pixel_is_seen_in_its_place_and_in_the_first_picture_s_type(size):
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    found = Windows(*size)(lambda a, b: a + b, x.float(), 2 * x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, 3 * x.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("n", "stride", "side", "starts"),
    [
        (512, 1, 512, [0]),
        (528, 8, 320, [0, 208]),
        (640, 16, 384, [0, 256]),
        (1024, 1, 384, [0, 320, 640]),
        (2000, 64, 512, [0, 448, 896, 1344, 1488]),
        (768, 128, 512, [0, 256]),  # for a network that halves seven times
        (600, 300, 600, [0]),
    ],
)
def test_windows_are_alike_and_no_larger_than_their_number_needs(monkeypatch, n, stride, side, starts):
    monkeypatch.setattr(tiles, "WINDOW", 512)
    monkeypatch.setattr(tiles, "OVERLAP", 64)
    spans = Windows(8, n, stride).columns
    assert [(s.start, s.stop) for s, _ in spans] == [(i, i + side) for i in starts]
    total = torch.zeros(n)
    for where, weight in spans:
        total[where] += weight
    torch.testing.assert_close(total, torch.ones(n))
