r"""How blurred is a picture? The sigma of its Gaussian blur, by maximum likelihood.

Photographs are alike in one thing: the mean square of their waves falls off as a power of the frequency. Of a
blurred one, with amplitude a, exponent g and noise of variance \tau^2, the component of the cosine of
frequency \omega, which the blur multiplies by \hat k_\sigma(\omega), is normal with the variance

    S(\omega) = a |\omega|^{-g} \hat k_\sigma(\omega)^2 + \tau^2

in the Gaussian model of chapter 9.
"""

import math

import torch
from torch import Tensor

from i2sb_lib.blurs import GaussianBlur
from i2sb_lib.images import check_images

SIGMAS = torch.arange(1, 33, dtype=torch.float64) / 8  # tried one by one; a parabola goes between them
LEAST, CROP = 16, 128  # pixels a side; of a larger picture the middle
SLOWEST = 0.15  # frequency that is used: slower waves are the scene's own
STEPS, START = 20, (3.0, -12.0)  # of Fisher's scoring, from this g and log tau^2


def _cosines(n: int) -> tuple[Tensor, Tensor]:
    """cos(pi m i / (n - 1)) for pixel i and wave m, and the matrix that takes pixels to components."""
    i = torch.arange(n, dtype=torch.float64)
    waves, weight = torch.cos(math.pi / (n - 1) * i[:, None] * i), torch.ones(n, dtype=torch.float64)
    weight[[0, -1]] = 0.5  # as in the proof of chapter 9
    return waves, (weight[:, None] * waves / (weight[:, None] * waves**2).sum(0).sqrt()).T


def _likelihoods(image: Tensor, kernel_size: int) -> Tensor:
    """For each of SIGMAS the greatest log likelihood (S,) of an image (C, H, W), over a, g and tau."""
    sides = [_cosines(n) for n in image.shape[-2:]]
    frequency = torch.cartesian_prod(*(math.pi * torch.linspace(0, 1, len(w)) for w, _ in sides)).norm(dim=1)
    used = frequency > SLOWEST
    r = frequency[used].double().log()
    power = (sides[0][1] @ image @ sides[1][1].T).square().mean(0).flatten()[used]
    rows = [[GaussianBlur(kernel_size, float(s)).matrix(len(w))[0] @ w for w, _ in sides] for s in SIGMAS]
    blur = torch.stack([torch.outer(*k).flatten()[used] for k in rows]).square().clamp_min(1e-300).log()

    def variance(theta: Tensor) -> tuple[Tensor, Tensor]:
        """log S (S, K) for theta = (log a, g, log tau^2), and the share of S that is no noise."""
        signal = theta[:, :1] - theta[:, 1:2] * r + blur
        log = torch.logaddexp(signal, theta[:, 2:])
        return log, (signal - log).exp()

    slow = float(power[r < math.log(4 * SLOWEST)].mean().clamp_min(1e-12).log())
    theta = torch.tensor([slow, *START], dtype=torch.float64).repeat(len(SIGMAS), 1)
    for _ in range(STEPS):
        log, share = variance(theta)
        slopes = torch.stack([share, -share * r, 1 - share], -1)
        score = slopes.mT @ (power * (-log).exp() - 1)[..., None]
        information = slopes.mT @ slopes + 1e-3 * torch.eye(3, dtype=torch.float64)
        theta = theta + torch.linalg.solve(information, score)[..., 0].clamp(-1, 1)
    log, _ = variance(theta)
    return -(log + power * (-log).exp()).sum(1)


def estimate_sigma(x1: Tensor, kernel_size: int = 7) -> Tensor:
    """The sigma (B,) in pixels, 1/8 to 4, of the Gaussian blur that each image most likely has.

    x1: (B, C, H, W) in [-1, 1], at least 16 pixels a side: photographs, blurred with kernel_size taps and
    reflected borders, then noisy or rounded. kernel_size: odd, 3 to 255. Sharp ones seem blurred by about
    half a pixel; a JPEG's blocks mislead, and a plain picture tells nothing. ValueError for other input.
    """
    check_images(x1, "estimate_sigma")
    if min(x1.shape[-2:]) < LEAST:
        got = tuple(x1.shape[-2:])
        raise ValueError(f"estimate_sigma: expected at least {LEAST} pixels a side, got {got}")
    if GaussianBlur(kernel_size).kernel_size < 3:
        raise ValueError(f"estimate_sigma: expected a kernel_size of at least 3, got {kernel_size}")
    for dim in (-2, -1):
        n = x1.shape[dim]
        x1 = x1.narrow(dim, (n - min(n, CROP)) // 2, min(n, CROP))
    found = []
    for image in x1.detach().cpu().double():
        likely = _likelihoods(image, kernel_size)
        at = int(likely[1:-1].argmax())
        a, b, c = likely[at : at + 3]
        off = ((c - a) / (2 * (2 * b - a - c))).clamp(-1, 1)  # of the parabola's top
        found.append(SIGMAS[at + 1] + off * SIGMAS[0])
    return torch.stack(found)
