"""The book's figures: one style, colours that the colour-blind can tell apart, grids of images."""

from collections.abc import Sequence

from torch import Tensor

from i2sb_lib.faults import extra
from i2sb_lib.images import to_uint8

with extra("book", "plotting"):
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

# Okabe & Ito: clean end, degraded end, reference, and three more
COLOURS = {
    "x0": "#0072B2",
    "x1": "#D55E00",
    "xt": "#009E73",
    "grey": "#666666",
    "pink": "#CC79A7",
    "sky": "#56B4E9",
    "gold": "#E69F00",
}


def use_style() -> None:
    """Set the book's matplotlib style: call once, in a chapter's first code cell."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.0, 3.0),
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": plt.cycler(color=list(COLOURS.values())),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "font.size": 10,
            "legend.frameon": False,
            "image.interpolation": "nearest",
        }
    )


def image_grid(
    rows: Sequence[Tensor], labels: Sequence[str], scale: float = 0.9, titles: Sequence[str] = ()
) -> Figure:
    """One row of images for each batch (B, C, H, W) in [-1, 1] or uint8, with its label at the left.

    scale: inches a picture. titles: optional headings over the columns. Raises ValueError unless
    there is a label for each row, a title (or none) for each column, and the rows are equally long.
    """
    lengths = [len(r) for r in rows]
    if len(labels) != len(rows) or len(set(lengths)) != 1 or len(titles) not in (0, lengths[0]):
        raise ValueError(
            "expected a label a row, a title a column and rows of one length, "
            f"got {len(labels)} labels for rows of {lengths} and {len(titles)} titles"
        )
    n = len(rows[0])
    size = (scale * n + 0.9, scale * len(rows))
    fig, axes = plt.subplots(len(rows), n, figsize=size, squeeze=False, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)  # type: ignore[union-attr, call-arg]
    for r, (batch, label) in enumerate(zip(rows, labels, strict=True)):
        for c, image in enumerate(batch):
            ax = axes[r][c]
            pixels = to_uint8(image) if image.is_floating_point() else image
            ax.imshow(pixels.permute(1, 2, 0).cpu().numpy())
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if r == 0 and titles:
                ax.set_title(titles[c], fontsize=8)
        axes[r][0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    return fig
