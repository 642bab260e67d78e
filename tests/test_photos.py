"""The default model on photographs that were held out: it helps, and leaves what is whole alone."""

import pytest
import torch
from conftest import script

from i2sb_lib.checkpoints import DEFAULT, load_pretrained
from i2sb_lib.data import load_images
from i2sb_lib.degradations import Mixture, create_degradation
from i2sb_lib.evaluation import evaluate
from i2sb_lib.images import psnr, quantise, to_float

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def robust():
    return load_pretrained(DEFAULT, "cpu")


@pytest.fixture(scope="module")
def clean() -> torch.Tensor:
    """Twenty crops of the embedded photographs that no model was trained on."""
    crops = load_images("embedded", "test", 64)
    return to_float(crops[:: len(crops) // 20][:20])


def test_the_default_is_for_any_picture(robust):
    assert "Mixture" in robust.made_for
    assert not robust.denoiser.config.tikhonov


def test_a_whole_picture_is_left_alone(robust, clean):
    assert float(psnr(robust.restore(clean), clean).mean()) >= 38


@pytest.mark.parametrize(
    ("cell", "gain"), [("blur 1", 1.0), ("blur 2", 2.0), ("noise 0.05", 4.0), ("JPEG 30", -0.1)]
)
def test_each_kind_of_damage_becomes_less(robust, clean, cell, gain):
    x1 = quantise(script("photos").cells()[cell](clean, torch.Generator().manual_seed(0)))
    assert float((psnr(robust.restore(x1), clean) - psnr(x1, clean)).mean()) >= gain


def test_a_blur_that_the_flagship_does_not_know_does_it_harm_and_the_default_none(robust, clean):
    x1 = create_degradation("blur-gauss", sigma=1.5, quantise=True)(clean)
    before = float(psnr(x1, clean).mean())
    with pytest.warns(UserWarning, match="do not look like photographs under the"):
        told = load_pretrained("celeba64-deblur", "cpu").restore(x1, 1)
    assert float(psnr(told, clean).mean()) < before - 2
    assert float(psnr(robust.restore(x1), clean).mean()) > before


def test_at_least_eighteen_of_twenty_real_looking_pictures_get_nearer(robust, clean, lpips_weights):
    x1 = Mixture(clean=0.0)(clean, torch.Generator().manual_seed(1))
    seen = [i for i in range(20) if not torch.equal(x1[i], clean[i])]
    k = 0
    while len(seen) < 20:  # what no stage took, again from others' noise
        k += 1
        again = Mixture(clean=0.0)(clean, torch.Generator().manual_seed(1 + k))
        for i in set(range(20)) - set(seen):
            if not torch.equal(again[i], clean[i]):
                x1[i] = again[i]
                seen.append(i)
    before, after = (evaluate(x, clean, ["lpips"])["lpips"].per_image for x in (x1, robust.restore(x1)))
    assert int((after < before).sum()) >= 18
