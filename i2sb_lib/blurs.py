"""Blur and shrinking: each a matrix for the rows and one for the columns."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from i2sb_lib.operators import Separable


class Blur(Separable):
    """A filter with an odd kernel, reflecting at both ends without repeating the border."""

    def kernel(self) -> Tensor:
        """The taps, float64, which are scaled to the sum one."""
        raise NotImplementedError

    def band(self, n: int, start: int, stop: int) -> tuple[int, Tensor]:
        kernel = self.kernel() / self.kernel().sum()
        half = len(kernel) // 2
        if half >= n:
            raise ValueError(f"expected sides of at least {half + 1} pixels for {len(kernel)} taps, got {n}")
        at = torch.arange(start, stop)[:, None] + torch.arange(-half, half + 1)
        at = n - 1 - (n - 1 - at.abs()).abs()
        first = int(at.min())
        band = torch.zeros(stop - start, int(at.max()) + 1 - first, dtype=torch.float64)
        return first, band.scatter_add_(1, at - first, kernel.expand(at.shape))

    def matrix(self, n: int) -> Tensor:
        return self.band(n, 0, n)[1]


@dataclass(frozen=True)
class GaussianBlur(Blur):
    """Gaussian blur: taps exp(-i^2 / (2 sigma^2)), |i| <= kernel_size // 2, of unit gain, reflect padding.

    kernel_size: odd, 1 to 255; a side needs more than half as many pixels. sigma: in pixels, 0.01 to 1000.
    """

    kernel_size: int = 7
    sigma: float = 2.0

    def kernel(self) -> Tensor:
        x = torch.arange(self.kernel_size, dtype=torch.float64) - self.kernel_size // 2
        return torch.exp(-(x**2) / (2 * self.sigma**2))


@dataclass(frozen=True)
class UniformBlur(Blur):
    """Box blur over kernel_size x kernel_size pixels (odd, 1 to 255), reflect padding."""

    kernel_size: int = 9

    def kernel(self) -> Tensor:
        return torch.ones(self.kernel_size, dtype=torch.float64)


@dataclass(frozen=True)
class Downsample(Separable):
    """What super-resolution undoes: shrink by `factor`, then repeat pixels to the first size.

    factor: 1 to 1024, which has to divide both sides. bicubic: antialiased bicubic shrinking, which may
    overshoot [-1, 1] at edges, instead of the mean over each block.
    """

    factor: int = 4
    bicubic: bool = False

    def matrix(self, n: int) -> Tensor:
        if n < 1 or n % self.factor:
            raise ValueError(f"expected a size divisible by {self.factor}, got {n}")
        eye = torch.eye(n, dtype=torch.float64).reshape(n, 1, 1, n)
        mode, small = ("bicubic" if self.bicubic else "area"), (1, n // self.factor)
        shrunk = F.interpolate(eye, size=small, mode=mode, antialias=self.bicubic)
        return shrunk.repeat_interleave(self.factor, -1).reshape(n, n).T
