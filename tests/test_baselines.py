"""Classical restorations against dense solves, a second implementation and what they promise."""

from itertools import pairwise

import pytest
import torch

from i2sb_lib.baselines import Wiener, richardson_lucy, tikhonov
from i2sb_lib.data import load_images
from i2sb_lib.degradations import JPEG, CentreMask, GaussianBlur, create_degradation
from i2sb_lib.images import psnr, to_float

F64 = torch.float64
BLUR = GaussianBlur()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def waves(n, side=16, seed=0):
    """Images whose rows and columns are correlated: white noise, blurred, within [-1, 1]."""
    x = torch.randn(n, 3, side, side, generator=generator(seed), dtype=F64)
    return (0.8 * GaussianBlur(5, 1.0).apply(x)).clamp(-1, 1)


def dense(operator, side):
    """The operator as one (side^2, side^2) matrix, for images flattened row by row."""
    return torch.kron(operator.matrix(side), operator.matrix(side))


def test_wiener_is_the_posterior_mean_of_the_gaussian_that_it_fits():
    """Against (H P H^T + n)^-1 solved densely, P built from the fitted variances in pixel space."""
    photos, y, noise = waves(40), BLUR(waves(3, seed=1)), 1e-3
    h = dense(BLUR, 16)
    _, _, v = torch.linalg.svd(BLUR.matrix(16))
    basis = torch.kron(v, v)
    got = Wiener(BLUR, photos, noise)(y)
    for channel in range(3):
        flat = photos[:, channel].flatten(1)
        mean, cov = flat.mean(0), basis.T @ torch.diag((flat @ basis.T).var(0)) @ basis
        gain = cov @ h.T @ torch.linalg.inv(h @ cov @ h.T + noise * torch.eye(256, dtype=F64))
        want = mean + (y[:, channel].flatten(1) - mean @ h.T) @ gain.T
        torch.testing.assert_close(got[:, channel].flatten(1), want, rtol=0, atol=1e-8)


def test_wiener_assumes_the_error_of_rounding_unless_told():
    """Measured on 15,360 values: its relative standard error is 0.007."""
    photos, x = waves(20), waves(20, seed=4)
    y = BLUR(x)
    rounding = create_degradation("none", quantise=True)(y) - y
    plain, told = Wiener(BLUR, photos), Wiener(BLUR, photos, float(rounding.var()))
    torch.testing.assert_close(plain.gain, told.gain, rtol=0.03, atol=0)
    y = y.float()
    assert plain(y).dtype == tikhonov(y, BLUR).dtype == richardson_lucy(y, BLUR, 1).dtype == torch.float32
    torch.testing.assert_close(plain(y).double(), plain(y.double()), rtol=0, atol=1e-6)
    wide, tall = Wiener(BLUR, photos[..., :12, :]), Wiener(BLUR, photos[..., :12, :].mT)
    torch.testing.assert_close(wide(y[..., :12, :]), tall(y[..., :12, :].mT).mT, rtol=0, atol=1e-6)


def test_wiener_beats_every_tikhonov_weight_on_new_images_of_its_kind():
    x0 = waves(30, seed=2)
    y = (BLUR(x0) + 0.05 * torch.randn(x0.shape, generator=generator(3), dtype=F64)).clamp(-1.4, 1.4)
    best = max(float(psnr(tikhonov(y, BLUR, 10**-k), x0).mean()) for k in range(6))
    assert float(psnr(Wiener(BLUR, waves(200), 0.05**2)(y), x0).mean()) > best + 0.2


def test_tikhonov_solves_its_normal_equations_and_inverts_without_a_weight():
    x0 = to_float(load_images("embedded", "test", progress=False)[:4]).double()
    y = BLUR(x0)
    assert float(psnr(tikhonov(y, BLUR, 0.0), x0).min()) > 100
    x = tikhonov(y, BLUR, 0.01)
    torch.testing.assert_close(BLUR.adjoint(BLUR.apply(x) - y), -0.01 * x, rtol=0, atol=1e-10)
    quantised = create_degradation("blur-gauss", quantise=True)(x0)  # the task here
    assert float((psnr(tikhonov(quantised, BLUR), x0) - psnr(quantised, x0)).min()) > 1
    weights = [psnr(tikhonov(quantised, BLUR, lam), x0).mean() for lam in (2e-5, 2e-4, 2e-3)]
    assert weights[1] == max(weights) == psnr(tikhonov(quantised, BLUR), x0).mean()  # the default


def test_richardson_lucy_agrees_with_scikit_image_away_from_the_border():
    """There the paddings differ: three iterations of a seven-tap blur reach 18 pixels inwards."""
    from skimage.restoration import richardson_lucy as skimage_richardson_lucy

    y = BLUR(waves(1, side=48))
    row = BLUR.matrix(48)[20, 17:24]
    kernel = torch.outer(row, row).numpy()
    want = skimage_richardson_lucy(((y[0, 0] + 1) / 2).numpy(), kernel, num_iter=3, clip=False)
    got = (richardson_lucy(y, BLUR, 3)[0, 0] + 1) / 2
    inner = slice(18, -18)
    torch.testing.assert_close(got[inner, inner], torch.from_numpy(want)[inner, inner], rtol=0, atol=1e-9)


def test_richardson_lucy_raises_the_likelihood_and_stays_at_a_solution():
    x0 = waves(2, side=32) * 0.9
    v = (BLUR(x0) + 1) / 2

    def likelihood(x):
        u = BLUR.apply((x + 1) / 2)
        return float((v * u.log() - u).sum())

    values = [likelihood(richardson_lucy(2 * v - 1, BLUR, n)) for n in (1, 2, 5, 20)]
    assert all(b > a for a, b in pairwise(values))
    for grey in (0.3, -0.999):
        flat = torch.full((1, 3, 16, 16), grey, dtype=F64)
        torch.testing.assert_close(richardson_lucy(flat, BLUR, 9), flat, rtol=0, atol=1e-12)
    assert richardson_lucy(flat - 0.2, BLUR, 1).min() > -1  # noise may lead below black, not to u <= 0
    x = x0[:1, :, :16, :16]
    assert torch.equal(richardson_lucy(x, BLUR), richardson_lucy(x, BLUR, 30))  # as recorded
    assert float(psnr(richardson_lucy(2 * v - 1, BLUR), x0).mean()) > float(psnr(2 * v - 1, x0).mean()) + 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: tikhonov(x[0], BLUR), "tikhonov: expected float images"),
        (lambda x: richardson_lucy(x, BLUR, 0), "at least one iteration, got 0"),
        (lambda x: Wiener(BLUR, x[:1]), "expected 2 photographs and noise > 0, got 1"),
        (lambda x: Wiener(BLUR, x, -1.0), r"noise > 0, got 2 and -1\.0"),
        (lambda x: Wiener(BLUR, x, float("nan")), "noise > 0, got 2 and nan"),
        (lambda x: Wiener(BLUR, x, 0.0), r"noise > 0, got 2 and 0\.0"),
        (lambda x: Wiener(BLUR, x, float("inf")), "noise > 0, got 2 and inf"),
        (lambda x: tikhonov(x, JPEG()), r"tikhonov: expected a separable blur, got JPEG\(quality=10\)"),
        (
            lambda x: richardson_lucy(x, CentreMask()),
            "richardson_lucy: expected a separable blur, got CentreMask",
        ),
        (lambda x: Wiener(None, x), "Wiener: expected a separable blur, got None"),
        (lambda x: Wiener(BLUR, x)(x[..., :8]), r"expected images \(3, 16, 16\), got \(3, 16, 8\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(waves(2))
