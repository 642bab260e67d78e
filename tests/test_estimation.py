"""The sigma of a blur is found: on scenes drawn from the model itself, and on photographs."""

import math

import pytest
import torch

from i2sb_lib import create_degradation, estimate_sigma, load_images
from i2sb_lib.estimation import _cosines
from i2sb_lib.images import to_float


@pytest.fixture(scope="module")
def photos():
    return to_float(load_images("embedded", "test", 64))[:2]


@pytest.mark.parametrize("n", [16, 17])
def test_the_components_are_those_that_a_blur_multiplies(n):
    waves, into = _cosines(n)
    a = create_degradation("blur-gauss").matrix(n)
    factors = a[0] @ waves
    assert torch.allclose(into @ a, factors[:, None] * into, atol=1e-12)
    assert (into @ torch.randn(n, 9999, dtype=torch.float64)).std(1)[1:-1].sub(1).abs().max() < 0.06


def scenes(exponent: float) -> torch.Tensor:
    """Three pictures, 64 x 48, of the model: each cosine normal, its variance a power of its frequency."""
    into_h, into_w = (_cosines(n)[1] for n in (64, 48))
    r = torch.cartesian_prod(torch.linspace(0, math.pi, 64), torch.linspace(0, math.pi, 48)).norm(dim=1)
    size = r.clamp_min(0.05).pow(-exponent / 2).reshape(64, 48).double()
    normal = torch.randn(3, 3, 64, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.linalg.inv(into_h) @ (0.02 * size * normal) @ torch.linalg.inv(into_w).T
    assert x.abs().max() < 1
    return x


@pytest.mark.parametrize("exponent", [2.0, 3.0])
@pytest.mark.parametrize(("kernel_size", "sigma", "std"), [(7, 1.0, 1e-3), (7, 2.3, 3e-4), (9, 1.7, 1e-3)])
def test_scenes_of_the_model_tell_their_sigma(exponent, kernel_size, sigma, std):
    blur = create_degradation("blur-gauss", kernel_size=kernel_size, sigma=sigma, noise=std)
    x1 = blur(scenes(exponent), torch.Generator().manual_seed(1))
    assert (estimate_sigma(x1, kernel_size) - sigma).abs().max() < 0.1


@pytest.mark.parametrize("sigma", [1.5, 2.0, 2.6])
def test_photographs_tell_their_sigma(photos, sigma):
    x1 = create_degradation("blur-gauss", sigma=sigma, quantise=True)(photos)
    found = estimate_sigma(x1)
    assert (found - sigma).abs().max() < 0.2
    assert torch.allclose(estimate_sigma(x1[1:].flip(-1).mT), found[1:], atol=1e-6)  # each on its own


def test_a_large_picture_is_judged_by_its_middle(photos):
    x1 = create_degradation("blur-gauss", sigma=1.5, quantise=True)(photos[:1, :1].repeat(1, 1, 3, 4))
    assert torch.equal(estimate_sigma(x1), estimate_sigma(x1[..., 32:160, 64:192]))


def test_what_has_no_waves_gets_a_number_and_other_input_a_sentence():
    assert 0 <= float(estimate_sigma(torch.zeros(1, 1, 16, 16))) <= 4.125
    for bad, words in (
        (torch.zeros(1, 3, 15, 20), "at least 16 pixels a side, got"),
        (torch.ones(3), "float im"),
    ):
        with pytest.raises(ValueError, match=f"estimate_sigma: expected {words}"):
            estimate_sigma(bad)


@pytest.mark.parametrize("kernel_size", [1, 1.0])
def test_a_kernel_of_one_tap_has_no_width(kernel_size):
    with pytest.raises(ValueError, match="expected a kernel_size of at least 3, got 1"):
        estimate_sigma(torch.zeros(1, 3, 16, 16), kernel_size)
