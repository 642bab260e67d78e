"""Grids hold the pixels they were given, under any style."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from i2sb_lib.images import to_uint8
from i2sb_lib.plotting import COLOURS, image_grid, use_style


@pytest.fixture(autouse=True)
def _own_style():
    backend = plt.get_backend()
    plt.switch_backend("agg")
    with mpl.rc_context():
        yield
    plt.close("all")
    plt.switch_backend(backend)


@pytest.mark.parametrize("styled", [False, True])
def test_grid(styled):
    if styled:
        use_style()
    x = torch.rand(3, 3, 4, 5) * 2 - 1
    fig = image_grid([x, to_uint8(-x)], ["clean", "negative"], titles=["a", "b", "c"])
    fig.canvas.draw()  # the layout works as well
    axes = np.array(fig.axes).reshape(2, 3)
    for row, batch in enumerate((x, -x)):
        for column in range(3):
            shown = np.asarray(axes[row, column].images[0].get_array())
            assert (shown == to_uint8(batch[column]).permute(1, 2, 0).numpy()).all()
    assert [a.get_ylabel() for a in axes[:, 0]] == ["clean", "negative"]
    assert [a.get_title() for a in axes.flat] == ["a", "b", "c", "", "", ""]
    assert all(a.get_xticks().size == a.get_yticks().size == 0 for a in axes.flat)


@pytest.mark.parametrize(
    ("rows", "labels", "titles", "message"),
    [
        ([2, 2], ["a"], [], r"got 1 labels for rows of \[2, 2\]"),
        ([2, 3], ["a", "b"], [], r"got 2 labels for rows of \[2, 3\]"),
        ([], [], [], r"got 0 labels for rows of \[\]"),
        ([2], ["a"], ["one"], r"got 1 labels for rows of \[2\] and 1 titles"),
    ],
)
def test_errors(rows, labels, titles, message):
    with pytest.raises(ValueError, match=message):
        image_grid([torch.zeros(n, 3, 2, 2) for n in rows], labels, titles=titles)


def test_style_uses_colours_that_can_be_told_apart():
    """Any two differ by 10 of 100 in lightness or in blue against yellow: red and green do not count."""
    use_style()
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLOURS.values())
    rgb = np.array([mpl.colors.to_rgb(c) for c in COLOURS.values()])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    light = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    blue = 100 * (rgb[:, 2] - rgb[:, :2].mean(1))
    gap = np.maximum(np.abs(light[:, None] - light), np.abs(blue[:, None] - blue))
    assert (gap + 100 * np.eye(len(rgb))).min() >= 10
