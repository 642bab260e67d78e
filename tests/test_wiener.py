"""Wiener's guess for what is most likely: against the filter that is told all, and on photographs."""

import math

import pytest
import torch

from i2sb_lib import create_degradation, load_images
from i2sb_lib.estimation import _cosines as cosines
from i2sb_lib.images import psnr, quantise, to_float
from i2sb_lib.wiener import (
    KERNELS,
    NOISES,
    ROUNDING,
    _continued,
    _cosines,
    _mirrored,
    _most_likely,
    blind_wiener,
)


@pytest.fixture(scope="module")
def photos():
    return to_float(load_images("embedded", "test", 64))[::5][:6]


def scenes(exponent: float, size=(64, 48)) -> tuple[torch.Tensor, torch.Tensor]:
    """Three pictures of the model, each cosine normal; and the variances (H, W)."""
    into = [cosines(n)[1] for n in size]
    r = torch.cartesian_prod(*(torch.linspace(0, math.pi, n) for n in size)).norm(dim=1)
    std = 0.02 * r.clamp_min(0.15).pow(-exponent / 2).reshape(size).double()
    normal = torch.randn(3, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.linalg.inv(into[0]) @ (std * normal) @ torch.linalg.inv(into[1]).T, std**2


@pytest.mark.parametrize("exponent", [2.5, 3.0])
@pytest.mark.parametrize(("sigma", "std"), [(1.0, 2e-3), (2.0, 2e-3), (2.0, 2e-2), (3.0, 2e-3)])
def test_scenes_of_the_model_are_guessed_as_well_as_by_the_filter_that_is_told_all(exponent, sigma, std):
    x0, power = scenes(exponent)
    blur = create_degradation("blur-gauss", kernel_size=17, sigma=sigma)
    x1 = blur.apply(x0) + std * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    into = [cosines(n)[1] for n in x0.shape[-2:]]
    k = [(i @ blur.matrix(len(i)) @ torch.linalg.inv(i)).diagonal() for i in into]
    gain = (k := k[0][:, None] * k[1]) * power / (k**2 * power + std**2)
    told = torch.linalg.inv(into[0]) @ (gain * (into[0] @ x1 @ into[1].T)) @ torch.linalg.inv(into[1]).T
    errors = [(g - x0).square().mean() for g in (told, blind_wiener(x1.clamp(-1, 1)), x1)]
    assert errors[1] < 1.25 * errors[0]  # a dB
    assert errors[0] < 0.75 * errors[2]


def test_the_transform_is_its_own_inverse_and_the_blur_s_own():
    x = torch.randn(2, 3, 17, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_cosines(_cosines(x)) / (4 * 16 * 19), x)
    blur = create_degradation("blur-gauss", sigma=1.5)
    x = x.clamp(-1, 1).double()
    ratio = _cosines(blur(x)) / _cosines(x)
    assert (ratio - ratio[:1, :1]).abs().max() < 1e-9


def test_noise_is_told_by_its_variance():
    x = 0.1 * torch.randn(4, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    for mirrored in (torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)):
        best, a = _most_likely(x, mirrored)
        rho = NOISES[best // len(KERNELS) % len(NOISES)]
        assert ((a * rho).sqrt() / 0.1 - 1).abs().max() < 0.1


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0, 3.0])
def test_photographs_under_an_unknown_blur_become_sharper(photos, sigma):
    x1 = quantise(create_degradation("blur-gauss", kernel_size=17, sigma=sigma)(photos)).float()
    gain = psnr(blind_wiener(x1), photos) - psnr(x1, photos)
    assert (gain > 1).sum() >= 5  # a plain one may seem more blurred than it is
    assert gain.mean() > 2


def test_a_cut_picture_is_seen_to_be_one_and_continued(photos):
    """The middle of blurred photographs, whose blur came from beyond what is left."""
    blur = create_degradation("blur-gauss", kernel_size=17, sigma=1.5, quantise=True)
    x0, x1 = photos[..., 8:56, 8:56], blur(photos)[..., 8:56, 8:56].float()
    assert _mirrored(blur(photos).float()).all()
    assert not _mirrored(x1).any()
    gain = psnr(blind_wiener(x1), x0) - psnr(x1, x0)
    assert gain.min() > 0.5
    ramp = torch.arange(24.0).expand(1, 1, 20, 24) / 50
    torch.testing.assert_close(_continued(ramp)[0, 0, 0], torch.arange(-16.0, 40.0) / 50)  # no kink


def test_it_moves_with_the_picture(photos):
    blur = create_degradation("blur-gauss", noise=0.01, quantise=True)
    x1 = blur(photos, torch.Generator().manual_seed(0)).float()
    g = blind_wiener(x1)
    for dim in (-2, -1):
        assert (blind_wiener(x1.flip(dim)).flip(dim) - g).abs().max() < 1e-3
    assert (blind_wiener(x1.mT).mT - g).abs().max() < 1e-3
    assert (blind_wiener(x1.flip(1)).flip(1) - g).abs().max() < 1e-3
    torch.testing.assert_close(torch.cat([blind_wiener(x[None]) for x in x1]), g, rtol=0, atol=1e-4)
    assert g.abs().max() <= 1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(blind_wiener(x1), g)
    assert blind_wiener(x1.double()).dtype == torch.float64


@pytest.mark.parametrize("shape", [(16, 16), (16, 200), (33, 17), (129, 131)])
def test_any_shape_has_a_guess_and_a_small_one_is_its_own(shape):
    x = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0)) - 0.5
    assert blind_wiener(x).isfinite().all()
    assert blind_wiener(x).shape == x.shape
    small = x[..., :15]
    assert blind_wiener(small) is small


def test_a_plain_picture_stays():
    for level in (-1.0, 0.0, 0.3):
        x = torch.full((1, 3, 32, 32), level)
        assert (blind_wiener(x) - x).abs().max() < ROUNDING
