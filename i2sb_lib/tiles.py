"""A function of large pictures, done window by window, so that its memory does not grow with the picture."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

WINDOW, OVERLAP = 512, 64


def _spans(n: int, unit: int) -> list[tuple[slice, Tensor]]:
    """Windows that cover n pixels, alike and as many as of WINDOW pixels, and their weights.

    A window is as small as that allows, in units. The weights add up to one at every pixel, and fall towards
    a window's ends like the square of the distance: what is wrong there for want of the rest counts little.
    """
    if n <= WINDOW:
        return [(slice(0, n), torch.ones(n))]
    count = -(-(n - OVERLAP) // (WINDOW - OVERLAP))
    side = min(n, -(-(-(-(n - OVERLAP) // count) + OVERLAP) // unit) * unit)
    starts = [*range(0, n - side, side - OVERLAP), n - side]
    place = torch.arange(1, side + 1)
    ramp = torch.minimum(place, place.flip(0)).clamp(max=OVERLAP).float() ** 2
    total = torch.zeros(n)
    for i in starts:
        total[i : i + side] += ramp
    return [(slice(i, i + side), ramp / total[i : i + side]) for i in starts]


class Windows:
    """Overlapping windows over pictures of height x width pixels: one where both are at most WINDOW.

    Where there are more, their sides are multiples of `stride`.
    """

    def __init__(self, height: int, width: int, stride: int = 1) -> None:
        self.rows, self.columns = (_spans(n, math.lcm(OVERLAP, stride)) for n in (height, width))

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __call__(self, f: Callable[..., Tensor], *pictures: Tensor) -> Tensor:
        """f(*pictures), each (B, C, height, width), by windows: blended, in the first picture's type."""
        if len(self) == 1:
            return f(*pictures)
        out = torch.zeros_like(pictures[0])
        for rows, down in self.rows:
            for columns, right in self.columns:
                weight = (down[:, None] * right).to(out)
                out[..., rows, columns] += weight * f(*(x[..., rows, columns] for x in pictures))
        return out
