"""The metrics against independent libraries, and the guards that keep them meaningful."""

import math
import socket
import sys
import warnings

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from i2sb_lib import evaluation
from i2sb_lib.data import cache_dir
from i2sb_lib.degradations import create_degradation
from i2sb_lib.evaluation import Metric, MetricUnavailable, bootstrap, calibration, consistency, evaluate
from i2sb_lib.images import to_float, to_uint8


@pytest.fixture
def pair():
    """Six smooth images and noisy copies of them, in [-1, 1]."""
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(6, 3, 8, 8, generator=g) * 2 - 1
    x0 = torch.nn.functional.interpolate(x0, size=64, mode="bilinear")
    return (x0 + 0.1 * torch.randn(x0.shape, generator=g)).clamp(-1, 1), x0


def as_arrays(x):
    return to_uint8(x).permute(0, 2, 3, 1).numpy()


def test_psnr_and_ssim_agree_with_scikit_image(pair):
    result = evaluate(*pair, ["ssim", "psnr"])
    assert list(result) == ["ssim", "psnr"]  # in the order asked for
    for i, (a, b) in enumerate(zip(*map(as_arrays, pair), strict=True)):
        assert float(result["psnr"].per_image[i]) == pytest.approx(peak_signal_noise_ratio(b, a), abs=1e-4)
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        _, map_ = structural_similarity(b, a, channel_axis=-1, data_range=255, full=True, **options)
        assert float(result["ssim"].per_image[i]) == pytest.approx(map_.mean(), abs=2e-3)
    for metric in result.values():
        assert metric.value == pytest.approx(float(metric.per_image.mean()))
        assert metric.low < metric.value < metric.high


def test_what_a_file_cannot_hold_does_not_count(pair):
    x0 = to_float(to_uint8(pair[1]))
    assert evaluate(x0 + 0.003 * torch.rand(x0.shape), x0, ["psnr"])["psnr"].value == float("inf")


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    """200 samples of 50: coverage is binomial; a 95% interval from 50 values covers about 94%.

    With p = 0.94, fewer than 175 or more than 199 of 200 has probability below 1e-3.
    """
    values = torch.rand(200, 50, generator=torch.Generator().manual_seed(0)) ** 2  # skewed, mean 1/3
    metrics = [bootstrap(v, n=500) for v in values]
    covered = sum(m.low <= 1 / 3 <= m.high for m in metrics)
    assert 175 <= covered <= 199
    assert bootstrap(values[0], n=500)[:3] == metrics[0][:3]  # no hidden randomness
    assert bootstrap(torch.tensor([2.0]))[:3] == (2, 2, 2)


def test_an_interval_of_many_values_is_the_normal_one():
    """Half-widths of 1.96 standard errors; 2,000 resamplings know a 2.5% quantile to 3%."""
    values = torch.rand(1000, generator=torch.Generator().manual_seed(1)) ** 2
    found, error = bootstrap(values), float(values.std()) / 1000**0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_lpips_is_that_of_its_authors(pair, lpips_weights):
    import lpips

    x, x0 = (to_float(to_uint8(v)) for v in pair)
    got = evaluate(*pair, ["lpips"])["lpips"].per_image
    with torch.no_grad():
        expected = lpips.LPIPS(net="alex", verbose=False).eval()(x, x0).flatten()
    assert torch.allclose(got.float(), expected, atol=1e-5)
    assert got.min() > 0.01
    assert evaluate(x0, x0, ["lpips"])["lpips"].value == 0


@pytest.mark.slow
def test_fid_compares_sets_and_their_features_are_kept(pair, fid_weights, tmp_path, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    monkeypatch.setenv("I2SB_CACHE", str(tmp_path))
    seen, real = [], FeatureExtractorInceptionV3.forward
    spy = lambda self, x: seen.append(real(self, x)) or seen[-1]  # noqa: E731
    monkeypatch.setattr(FeatureExtractorInceptionV3, "forward", spy)
    x, x0 = pair
    first = evaluate(x, x0, ["fid", "kid"])
    both = torch.cat([found[0] for found in seen]).double().split(6)
    a, b = (f - f.mean(0) for f in both)  # tr (A'A B'B)^(1/2) is the sum of AB's singular values: 6 x 6
    traces = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    expected = (both[0].mean(0) - both[1].mean(0)).square().sum() + traces / 5
    assert first["fid"].value == pytest.approx(float(expected), rel=1e-4)
    assert list(cache_dir().rglob("*.pt"))
    again = evaluate(x, x0, ["kid"])["kid"].value  # without the FID's 2048 eigenvalues, which take seconds
    assert len(torch.cat([found[0] for found in seen])) == 12  # no image was seen twice
    assert again == pytest.approx(first["kid"].value, rel=1e-6)
    flipped = evaluate(x0.flip(0), x0, ["kid"])["kid"].value
    assert flipped < 0.1 < first["kid"].value
    assert len(torch.cat([found[0] for found in seen])) == 18


@pytest.mark.slow
def test_a_faster_inception_has_the_same_features(pair, fid_weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    x = to_uint8(pair[0][:2])
    kinds = (
        FeatureExtractorInceptionV3,
        FEATURE_EXTRACTORS_REGISTRY[evaluation._inception()["feature_extractor"]],
    )
    with torch.no_grad():
        plain, fast = (kind("any", ["2048"]).eval()(x)[0] for kind in kinds)
    assert plain.std() > 0.1
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[..., :32, :32], r"one shape, got \(6, 3, 32, 32\) and \(6, 3, 64, 64\)"),
        (lambda x: x[:5], r"one shape, got \(5, "),
        (lambda x: (x + 1) / 2, r"x0_hat: .*as in \[0, 1\] images"),
        (lambda x: to_float(((x + 1) / 2).to(torch.uint8)), "x0_hat: .*got black.*cast to bytes"),
        (to_uint8, "x0_hat: .*uint8"),
        (lambda x: (x + 1) * 127.5, r"x0_hat: .*\[-1, 1\], got"),
        (lambda x: np.asarray(x), "x0_hat: .*ndarray"),
    ],
    ids=["two sizes", "two counts", "[0, 1]", "[0, 1] cast", "uint8", "[0, 255]", "numpy"],
)
def test_images_that_would_give_a_meaningless_number_are_refused(pair, change, words):
    with pytest.raises(ValueError, match=words):
        evaluate(change(pair[0]), pair[1], ["psnr", "lpips", "fid"])
    with pytest.raises(ValueError, match="x0: " if "x0_hat" in words else words.split(",")[0]):
        evaluate(pair[1], change(pair[0]), ["psnr"])


def test_bright_black_and_constant_photographs_are_measured(pair):
    """A sky, a night with one star, a wall: whatever their range, they are images in [-1, 1]."""
    blur, night = create_degradation("blur-gauss", quantise=True), torch.full((1, 3, 32, 32), -1.0)
    night[..., 16, 16] = -0.8
    assert blur(night).max() < 4 / 255 - 1
    sky, suspect = to_float(to_uint8(0.2 + 0.3 * (pair[1] + 1))), (pair[1] + 1) / 2
    wall = to_float(torch.full((2, 3, 16, 16), 180, dtype=torch.uint8))
    dusk, faint = to_float(to_uint8(0.15 * pair[1] - 0.75)), suspect.clone()
    faint[..., :2, 0] = -0.05  # so that it cannot be in [0, 1]
    pairs = [(sky, blur(sky)), (night, blur(night)), (wall, wall - 0.1), (wall, wall - 0.6)]
    pale = to_float(to_uint8(0.8 + 0.05 * pair[1]))  # a little closer as if in [0, 1]
    pairs += [(dusk, blur(dusk)), (pair[1], faint), (pale - 15 / 127.5, pale)]
    for x0, x0_hat in (*pairs, (suspect, blur(suspect))):  # the last is good, or in [0, 1]
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            found = evaluate(x0_hat, x0, ["psnr"])["psnr"].value
        error = (as_arrays(x0_hat).astype(float) - as_arrays(x0)) ** 2
        expected = -10 * np.log10(error.mean((1, 2, 3)) / 255**2)
        assert found == pytest.approx(float(expected.mean()), abs=1e-4)
        assert ["no value is below 0" in str(w.message) for w in seen] == [True] * (x0 is suspect)


@pytest.mark.parametrize(
    ("metric", "shape", "words"),
    [
        ("ssim", (2, 3, 4, 64), "ssim: expected images of at least 6 pixels a side, got 4 x 64"),
        ("lpips", (2, 3, 64, 30), "lpips: expected images of at least 31 pixels a side, got 64 x 30"),
        ("fid", (1, 3, 32, 32), "fid compares two sets: expected at least 2 images in each, got 1"),
        ("kid", (1, 3, 32, 32), "kid compares two sets: expected at least 2 images in each, got 1"),
    ],
)
def test_images_too_small_or_too_few_for_a_metric_are_one_sentence(metric, shape, words):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with pytest.raises(ValueError, match=words):
        evaluate(x, -x, [metric])


def test_the_smallest_images_can_be_measured(lpips_weights):
    g = torch.Generator().manual_seed(0)
    for metric, side in (("ssim", 6), ("lpips", 31)):
        x = torch.rand(1, 3, side, side, generator=g) * 2 - 1
        assert evaluate(x, -x, [metric])[metric].value == evaluate(x, -x, [metric])[metric].low


def test_only_a_psnr_may_be_infinite(pair, monkeypatch):
    x = to_float(to_uint8(pair[1]))
    with pytest.warns(UserWarning, match=r"6 of 6 images are the clean ones to the byte, .* infinite$"):
        assert evaluate(x, x, ["psnr"])["psnr"][:3] == (float("inf"),) * 3
    y = torch.cat([x[:1], -x[1:]])  # one that is exact must not hide the others
    with pytest.warns(UserWarning, match=r"psnr: 1 of 6 .*; the others' is \d+\.\d\d$") as said:
        assert evaluate(y, x, ["psnr"])["psnr"].value == float("inf")
    assert said[0].filename == __file__
    assert f"{float(evaluate(-x[1:], x[1:], ['psnr'])['psnr'].value):.2f}" in str(said[0].message)
    monkeypatch.setattr("i2sb_lib.evaluation._fidelity", lambda *a: {"kid": Metric(float("nan"), 0, 0)})
    with pytest.raises(ValueError, match="kid: expected a number, got nan from 6 images"):
        evaluate(x, x, ["kid", "psnr"])


def test_a_missing_package_is_named_with_its_extra(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    assert list(evaluate(*pair)) == ["psnr"]
    with pytest.raises(
        MetricUnavailable, match=r'ssim needs torchmetrics: pip install "i2sb-lib\[metrics\]"'
    ):
        evaluate(*pair, ["ssim"])


def test_unless_said_images_get_the_metrics_that_they_can_have():
    x = torch.rand(2, 3, 6, 6) - 0.5
    assert set(evaluate(x, -x)) == {"psnr", "ssim"}
    assert set(evaluate(x[..., :5], -x[..., :5])) == {"psnr"}


def test_an_unknown_metric_lists_the_known(pair):
    with pytest.raises(ValueError, match=r"'psnr'.*got \['nima'\]"):
        evaluate(*pair, ["psnr", "nima"])


@pytest.mark.parametrize("metric", ["lpips", "fid"])
def test_missing_weights_without_a_network_are_one_sentence(pair, metric, tmp_path, monkeypatch):
    pytest.importorskip("lpips")
    pytest.importorskip("torch_fidelity")

    def refuse(*args, **kwargs):
        raise OSError("the network is unreachable")

    evaluation._alex.cache_clear()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("I2SB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(MetricUnavailable, match=f"{metric}: .*unreachable"):
        evaluate(*pair, [metric])


def test_consistency_is_in_grey_levels_and_sees_what_the_operator_sees(pair):
    x0 = to_float(to_uint8(pair[1]))
    blur = create_degradation("blur-gauss")
    rounded = create_degradation("blur-gauss", quantise=True)(x0)
    assert consistency(x0, rounded, blur).value == pytest.approx(12**-0.5, rel=0.03)
    shifted = (x0 * 0.8 + 3 / 127.5).clamp(-1, 1)  # the blur has unit gain: three levels stay three
    assert consistency(shifted, blur(x0 * 0.8), blur).value == pytest.approx(3, abs=0.3)
    between = (x0 + 0.4 / 127.5).clamp(-1, 1)  # what a file cannot hold does not count
    assert consistency(between, rounded, blur).value == consistency(x0, rounded, blur).value
    with pytest.raises(ValueError, match="one shape"):
        consistency(x0, x0[..., :32], blur)


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (0.5, 0.0), (2.0, 0.0), (1.0, 0.1)])
def test_calibration_knows_samples_of_the_truth_s_own_law(scale, bias):
    """Truth and samples drawn about the same centre; 73,728 pixels make bands of five errors narrow."""
    g, s = torch.Generator().manual_seed(0), 5
    centre = torch.rand(6, 3, 64, 64, generator=g) - 0.5
    x0 = centre + 0.05 * torch.randn(centre.shape, generator=g)
    samples = centre + bias + 0.05 * scale * torch.randn(s, *centre.shape, generator=g)
    found = calibration(samples, x0)
    assert found.spread == pytest.approx(127.5 * 0.05 * scale, rel=0.01)
    error = 127.5 * (0.05**2 * (1 + scale**2 / s) + bias**2) ** 0.5
    assert found.error == pytest.approx(error, rel=0.015)
    assert found.ratio == pytest.approx(found.spread * 1.2**0.5 / error, rel=0.015)
    assert float(found.ranks.sum()) == pytest.approx(1)
    uniform = float((found.ranks - 1 / 6).abs().max()) < 5 * (5 / 36 / x0.numel()) ** 0.5
    assert uniform == (scale == 1 and bias == 0)
    if scale == 0.5:  # too sure: the truth lies outside
        assert float(found.ranks[[0, -1]].sum()) > 0.5


def test_calibration_refuses_other_shapes(pair):
    for samples in (pair[0], pair[0][None], torch.stack([pair[0][:3]] * 2)):
        with pytest.raises(ValueError, match="expected samples"):
            calibration(samples, pair[1])
    with pytest.raises(ValueError, match=r"expected values in \[-1, 1\], got them as in \[0, 1\]"):
        calibration(torch.stack([(pair[0] + 1) / 2] * 2), pair[1])


def test_a_sample_that_is_right_is_not_below_the_truth(pair):
    x0 = to_float(to_uint8(pair[1]))
    samples = torch.stack([x0, x0 - 1 / 127.5, x0 - 2 / 127.5]).clamp(min=-1)
    inside = (x0 > -1).float().mean()  # elsewhere none of them is
    torch.testing.assert_close(calibration(samples, x0).ranks, torch.tensor([1 - inside, 0, inside, 0]))


def test_diversity_is_the_mean_lpips_of_pairs(pair, lpips_weights):
    samples = torch.stack([pair[0], pair[1], pair[1].flip(-1)])
    pairs = [evaluate(samples[i], samples[j], ["lpips"])["lpips"].value for i, j in ((1, 0), (2, 0), (2, 1))]
    assert calibration(samples, pair[1], lpips=True).diversity == pytest.approx(sum(pairs) / 3)
    assert calibration(samples, pair[1]).diversity is None


@pytest.mark.parametrize("name", ["lpips", "fid", "kid"])
def test_metrics_of_networks_refuse_a_fourth_channel(name):
    with pytest.raises(ValueError, match=f"{name}: expected images of 1 or 3 channels, got 4"):
        evaluate(torch.zeros(2, 4, 64, 64), torch.zeros(2, 4, 64, 64), [name])


@pytest.mark.parametrize("error", [OSError("no network"), ImportError("no such module")])
def test_the_metric_that_cannot_be_had_is_named_alone(monkeypatch, error):
    def fail(device):
        raise error

    monkeypatch.setattr("i2sb_lib.evaluation._alex", fail)
    x = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    with pytest.raises(MetricUnavailable, match=r"^lpips") as said:
        evaluate(x, 0.9 * x, ["psnr", "lpips"])
    assert str(error) in str(said.value)
    assert ("pip install" in str(said.value)) == isinstance(error, ImportError)


@pytest.mark.parametrize(
    ("values", "n"),
    [(torch.zeros(0), 9), (torch.zeros(3, 2), 9), (torch.tensor(1.0), 9), ([1.0], 9), (torch.ones(3), 0)],
)
def test_a_bootstrap_is_of_some_numbers_in_a_row(values, n):
    with pytest.raises(ValueError, match=rf"^bootstrap: expected a tensor \(N,\) .*, got .*, n={n}$"):
        bootstrap(values, n)


def test_samples_that_are_the_truth_have_no_ratio_and_no_fault():
    x0 = torch.rand(2, 3, 8, 8) * 2 - 1
    exact = calibration(x0.expand(3, *x0.shape), x0)
    assert (exact.spread, exact.error) == (0, 0)
    assert math.isnan(exact.ratio)
    apart = calibration(torch.stack([torch.full_like(x0, 0.25), torch.full_like(x0, -0.25)]), x0 * 0)
    assert (apart.error, apart.ratio) == (0, math.inf)
    with pytest.raises(ValueError, match=r"expected samples \(S >= 2, .*, got list$"):
        calibration([x0, x0], x0)


def test_consistency_wants_an_operator_that_keeps_the_shape():
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    for bad in (lambda z: z.mean(1, keepdim=True), lambda z: z[..., :4], lambda z: None):
        with pytest.raises(ValueError, match=r"expected \(2, 3, 8, 8\) from the operator, got "):
            consistency(x, x, bad)
