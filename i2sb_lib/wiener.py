r"""A guess of the clean picture where nobody says what happened to it: Wiener's filter for the likeliest.

Photographs are alike in one thing: the mean square of their waves falls off as a power of the frequency.
Of one that was blurred and has noise of variance a \rho, the component of the cosine of frequency \omega,
which the blur multiplies by \hat k(\omega), is normal with the variance

    S(\omega) = a (|\omega|^{-g} \hat k(\omega)^2 + \rho)

in the Gaussian model of chapter 9. Of a grid of Gaussian blurs, g and \rho, with the best a for each, the
likeliest is taken; the posterior mean, about the picture's own, multiplies each component by
|\omega|^{-g} \hat k / (|\omega|^{-g} \hat k^2 + \rho).   [empirical Bayes; Wiener 1949]
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from i2sb_lib.blurs import GaussianBlur
from i2sb_lib.operators import kept

REACHES = (3, 4, 5, 6, 8)  # pixels where a kernel ends; a narrow one has ended before
KERNELS = [
    GaussianBlur(2 * reach + 1, sigma)
    for sigma in (0.01, *(k / 8 for k in range(3, 27)), 3.5, 4.0)
    for reach in REACHES
    if sigma > reach / 3.6 or reach == REACHES[-1]
]
EXPONENTS = (2.5, 3.0, 3.5)
NOISES = torch.logspace(-7, 1, 17, dtype=torch.float64)  # rho
CELLS = 32  # of frequencies, along each side, in which the power is averaged
SLOWEST = 0.15  # frequency that is used; slower waves are the picture's own
LEAST, MARGIN = 16, 16  # pixels a side, and how far a cut picture is continued
ROUNDING = 2 / 255 / 12**0.5  # standard deviation of rounding to 8 bits, the least noise of a file
MIRRORED = 0.3  # share of the mean squared difference between neighbours that is left at a mirror


def _frequencies(n: int) -> Tensor:
    return math.pi * torch.linspace(0, 1, n, dtype=torch.float64)


def _length(h: int, w: int) -> Tensor:
    """|omega| (h, w) of every component."""
    return torch.hypot(_frequencies(h)[:, None].float(), _frequencies(w).float())


def _responses(omega: Tensor) -> Tensor:
    """k^ (K, N) of KERNELS at the frequencies (N,)."""
    rows = []
    for kernel in KERNELS:
        taps, half = kernel.kernel(), kernel.kernel_size // 2
        rows.append(taps / taps.sum() @ torch.cos(torch.arange(-half, half + 1)[:, None] * omega))
    return torch.stack(rows)


@kept
def _table(device: torch.device) -> tuple[Tensor, Tensor]:
    """log S / a and a / S, each (G R K, CELLS^2), of all exponents, noises and kernels, in cells' middles."""
    omega = math.pi * (torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS
    k, falls = _responses(omega), torch.cartesian_prod(omega, omega).norm(dim=1)
    power = (k[:, :, None] * k[:, None]).flatten(1).square()
    table = torch.stack([falls**-g * power + rho for g in EXPONENTS for rho in NOISES]).flatten(0, 1)
    return table.log().float().to(device), (1 / table).float().to(device)


@kept
def _sides(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The kernels' responses at the sides' frequencies, (K, h) and (K, w), and |omega| (h, w)."""
    of = *(_responses(_frequencies(n)) for n in (h, w)), _length(h, w).clamp(min=SLOWEST)
    return tuple(v.float().to(device) for v in of)  # type: ignore[return-value]


def _cosines(x: Tensor) -> Tensor:
    """The cosine transform (DCT-I) of both sides: doing it twice multiplies by 4 (h - 1) (w - 1)."""
    for dim in (-2, -1):
        back = x.narrow(dim, 1, x.shape[dim] - 2).flip(dim)
        x = torch.fft.rfft(torch.cat([x, back], dim), dim=dim).real
    return x


def _mirrored(x: Tensor) -> Tensor:
    """(B,) where the picture was blurred with reflected borders: there nearly nothing changes across them."""
    steps = [x.diff(dim=dim).square().movedim(dim, 1).flatten(2).mean(2) for dim in (-2, -1)]
    border = torch.stack([(d[:, 0] + d[:, -1]) / 2 for d in steps]).sum(0)
    return border < MIRRORED * torch.stack([d.mean(1) for d in steps]).sum(0)


def _continued(x: Tensor) -> Tensor:
    """MARGIN pixels more on all sides, by point reflection in the border: no step and no kink."""
    for dim in (-2, -1):
        n, m = x.shape[dim], min(MARGIN, x.shape[dim] - 1)
        first, last = x.narrow(dim, 0, 1), x.narrow(dim, n - 1, 1)
        low, high = x.narrow(dim, 1, m).flip(dim), x.narrow(dim, n - 1 - m, m).flip(dim)
        x = torch.cat([2 * first - low, x, 2 * last - high], dim)
    return x


def _most_likely(x: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
    """The row (B,) of `_table` of greatest likelihood, and its a; what is cut is seen through a window."""
    h, w = x.shape[-2:]
    rise = [torch.sin(_frequencies(n)).square() for n in (h, w)]
    window = (rise[0][:, None] * rise[1]).to(x)
    window = window / window.square().mean().sqrt()
    level = (x * window).mean((-2, -1), keepdim=True) / window.mean()
    seen = torch.where(mirrored[:, None, None, None], x, (x - level) * window)
    # the power of the components of an orthonormal basis, gathered into cells
    ends = [torch.where(torch.arange(n) % (n - 1) == 0, 0.5, 1.0) for n in (h, w)]
    power = torch.stack([_cosines(plane)[:, 0].square() for plane in seen.split(1, 1)]).mean(0)
    power = power * (ends[0][:, None] * ends[1]).to(x) / (4 * (h - 1) * (w - 1))
    used = (_length(h, w) > SLOWEST).to(x)
    at = [(torch.arange(n) * CELLS // (n - 1)).clamp(max=CELLS - 1) for n in (h, w)]
    into = [F.one_hot(cell, CELLS).to(x) for cell in at]
    total, count = ((into[0].T @ v @ into[1]).flatten(-2) / used.sum() for v in (power * used, used))
    log, inverse = _table(x.device)
    a = (total @ inverse.T).clamp(min=1e-12)  # the best for each row
    best = (a.log() + log @ count).argmin(1)
    return best, a.gather(1, best[:, None])[:, 0]


def blind_wiener(x1: Tensor) -> Tensor:
    """The posterior mean above, (B, C, H, W) in [-1, 1]: a guess of x0 from x1 alone.

    x1: floats of that shape, in [-1, 1]; a side under 16 pixels tells too
    little, and x1 itself comes back. Every blur is taken for a Gaussian one, and borders for cut unless
    they are mirrored. Nothing is checked or refused: `restore` does that.
    """
    h, w = x1.shape[-2:]
    if min(h, w) < LEAST or not (torch.compiler.is_compiling() or len(x1)):
        return x1
    with torch.autocast(x1.device.type, enabled=False):
        mean = x1.float().mean((-2, -1), keepdim=True)
        x = x1.float() - mean
        mirrored = _mirrored(x)
        best, a = _most_likely(x, mirrored)
        kernel, rest = best % len(KERNELS), best // len(KERNELS)
        rho = NOISES.float().to(x)[rest % len(NOISES)]
        g = torch.tensor(EXPONENTS, device=x.device)[rest // len(NOISES)]

        def filtered(y: Tensor, least: float) -> Tensor:
            high, wide = y.shape[-2:]
            k_h, k_w, omega = _sides(high, wide, y.device)
            k = k_h[kernel][:, :, None] * k_w[kernel][:, None]
            power = omega ** -g[:, None, None]
            noise = torch.maximum(rho, least**2 / a)[:, None, None]
            gain = k * power / (k**2 * power + noise)
            gain = gain[:, None] / (4 * (high - 1) * (wide - 1))
            return torch.cat([_cosines(_cosines(plane) * gain) for plane in y.split(1, 1)], 1)  # for memory

        cut = filtered(_continued(x), 2 * ROUNDING)
        top, left = ((n - m) // 2 for n, m in zip(cut.shape[-2:], (h, w), strict=True))
        found = torch.where(
            mirrored[:, None, None, None], filtered(x, ROUNDING), cut[..., top : top + h, left : left + w]
        )
        return (found + mean).clamp(-1, 1).to(x1)
