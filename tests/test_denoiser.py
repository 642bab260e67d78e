"""The preconditioned denoiser against the posterior of Gaussian pixels, by regression on draws."""

import dataclasses

import pytest
import torch
from torch import nn

from i2sb_lib.degradations import GaussianBlur
from i2sb_lib.denoiser import Denoiser, ModelConfig
from i2sb_lib.schedule import Schedule
from i2sb_lib.wiener import blind_wiener

TINY = ModelConfig(network="unet-tiny")
TIMES = [0.02, 0.3, 0.7, 1.0]


def build(**options):
    return Denoiser(dataclasses.replace(TINY, **options))


def gaussian_pixels(n, moments=TINY.moments):
    """n independent pixels (x0, x1) of zero mean with the given second moments, float64."""
    m00, m11, m01 = moments
    cov = torch.tensor([[m00, m01], [m01, m11]], dtype=torch.float64)
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (z @ torch.linalg.cholesky(cov).T).T


def factors(model, t):
    return [float(f) for f in model.scalings(torch.tensor(t, dtype=torch.float64))]


@pytest.mark.parametrize("cond_x1", [False, True])
def test_eps_starts_at_x_t_and_inverts_the_paper_s_target(cond_x1):
    model = build(prediction="eps", cond_x1=cond_x1)
    x0, x1, noise = torch.rand(3, 2, 3, 8, 8) * 2 - 1
    t = torch.tensor([0.3, 0.9])
    xt = model.bridge.q_sample(t, x0, x1, noise)
    assert torch.equal(model(xt, t, x1), xt)  # the raw network starts at zero
    target = model.bridge.target(t, x0, xt)
    model.net = Fixed(target)
    torch.testing.assert_close(model(xt, t, x1), x0, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.loss(x0, x1, t, noise), torch.zeros(2), rtol=0, atol=1e-9)
    model.net = Fixed(0 * target)
    torch.testing.assert_close(model.loss(x0, x1, t, noise), target.square().flatten(1).mean(1))


class Fixed(nn.Module):
    """A raw network that gives one answer and keeps what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, t):
        self.seen = x
        return self.answer


def test_x0_prediction_is_the_raw_network():
    model, answer = build(prediction="x0"), torch.randn(2, 3, 8, 8)
    model.net = Fixed(answer)
    assert torch.equal(model(torch.randn(2, 3, 8, 8), torch.rand(2), torch.zeros(2, 3, 8, 8)), answer)


@pytest.mark.parametrize("cond_x1", [False, True])
@pytest.mark.parametrize("t", TIMES[:3])
def test_precond_is_the_posterior_of_gaussian_pixels(cond_x1, t):
    """Mean and deviation of x0 given (x_t, x1), or x_t alone, by the joint covariance restated."""
    model = build(cond_x1=cond_x1)
    m00, m11, m01 = TINY.moments
    joint = torch.tensor([[m00, m01, 0], [m01, m11, 0], [0, 0, 1]], dtype=torch.float64)  # x0, x1, eps
    share = float(model.bridge.schedule.var_fwd(t)) / model.bridge.schedule.total
    noise = (model.bridge.schedule.total * share * (1 - share)) ** 0.5
    see = torch.tensor([[1 - share, share, noise], [0, 1, 0]], dtype=torch.float64)[: 1 + cond_x1]
    gain = torch.linalg.solve(see @ joint @ see.T, see @ joint[0])
    var = m00 - gain @ (see @ joint[0])
    skip_t, skip_1, skip_g, out, in_t, in_1 = factors(model, t)
    assert skip_t == pytest.approx(float(gain[0]), rel=1e-9)
    assert skip_1 + skip_g == pytest.approx(float(gain[1]) if cond_x1 else 0, rel=1e-8, abs=1e-12)
    assert out == pytest.approx(float(var.sqrt()), rel=1e-7)
    assert in_t == pytest.approx(float((see @ joint @ see.T)[0, 0] ** -0.5), rel=1e-9)
    assert in_1 == pytest.approx(m11**-0.5 if cond_x1 else 1.0)


@pytest.mark.parametrize(("process", "cond_x1"), [("bridge", False), ("bridge", True), ("diffusion", True)])
@pytest.mark.parametrize("t", TIMES)
def test_the_raw_network_s_target_has_unit_variance_and_is_uncorrelated(process, cond_x1, t):
    """On 400,000 Gaussian pixels, within five standard errors: the loss at F = 0 is one."""
    model, n = build(process=process, cond_x1=cond_x1), 400_000
    x0, x1 = gaussian_pixels(n)
    a, b, c = model.bridge.coefficients(torch.tensor(t, dtype=torch.float64))
    noise = torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    xt = a * x0 + b * x1 + c * noise
    skip_t, skip_1, skip_g, out, in_t, _ = factors(model, t)
    target = (x0 - skip_t * xt - (skip_1 + skip_g) * x1) / out
    assert abs(float(target.square().mean()) - 1) < 5 * (2 / n) ** 0.5
    assert abs(float((in_t * xt).square().mean()) - 1) < 5 * (2 / n) ** 0.5
    for known in (xt, x1) if cond_x1 else (xt,):
        assert abs(float((target * known).mean())) < 5 * float(known.std()) / n**0.5
    images = [v[: 48 * 8000].float().reshape(8, 3, 16, 1000) for v in (x0, x1, noise)]
    model.net = Fixed(torch.zeros(8, 3, 16, 1000))
    assert abs(float(model.loss(*images[:2], torch.full((8,), t), images[2]).mean()) - 1) < 0.02


def test_the_tikhonov_inverse_is_the_guess_and_a_third_input():
    model = build(tikhonov=1e-3, degradation_options={"sigma": 1.5})
    x1, xt = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    g, t = GaussianBlur(7, 1.5).inverse(x1, 1e-3), torch.tensor([0.4, 1.0])
    model.net = Fixed(torch.zeros_like(x1))
    s = model.scalings(t[:, None, None, None])
    want = s.skip_t * xt + s.skip_1 * x1 + s.skip_g * g
    torch.testing.assert_close(model(xt, t, x1), want, rtol=0, atol=1e-5)
    parts = torch.cat([s.in_t * xt, s.in_1 * x1, s.in_1 * g], dim=1)
    torch.testing.assert_close(model.net.seen, parts, rtol=0, atol=1e-5)
    assert (g - x1).abs().max() > 0.1
    assert build(tikhonov=1e-3)(xt, t, x1).shape == xt.shape
    assert build().guess(x1) is x1


def test_wiener_s_guess_is_a_third_input_and_is_trusted_as_far_as_the_network_says():
    model = build(wiener=True)
    x1, xt = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    g, t = blind_wiener(x1), torch.tensor([0.4, 1.0])
    s = model.scalings(t[:, None, None, None])
    for trust in (0.0, 0.5, 1.0):
        said = torch.full((2, 1, 16, 16), trust)
        model.net = Fixed(torch.cat([torch.full_like(x1, 0.1), said], 1))
        base = torch.lerp(x1, g, trust)
        want = s.skip_t * xt + s.skip_1 * x1 + s.skip_g * base + 0.1 * s.out
        torch.testing.assert_close(model(xt, t, x1), want, rtol=0, atol=1e-5)
    parts = torch.cat([s.in_t * xt, s.in_1 * x1, s.in_1 * g], dim=1)
    torch.testing.assert_close(model.net.seen, parts, rtol=0, atol=1e-5)
    assert (g - x1).abs().max() > 0.1
    assert build(wiener=True)(xt, t, x1).shape == xt.shape
    assert (build(wiener=True).planes, build(wiener=True).outputs) == (9, 4)


def test_precond_guess_has_the_posterior_of_x0_given_x_t_x1_and_a_guess():
    """x0 | g ~ N(rho g, v) times N(x_t; a x0 + b x1, c^2), by quadrature over x0."""
    model, (m00, m11, m01) = build(tikhonov=1e-3), TINY.moments
    g, x1, xt, t = 0.4, -0.2, 0.1, 0.5
    a, b, c = (float(v) for v in model.bridge.coefficients(torch.tensor(t, dtype=torch.float64)))
    x0 = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    prior = (x0 - m01 / m11 * g) ** 2 / (m00 - m01**2 / m11)
    weight = torch.exp(-(prior + ((xt - a * x0 - b * x1) / c) ** 2) / 2)
    mean = float((weight * x0).sum() / weight.sum())
    std = float(((weight * (x0 - mean) ** 2).sum() / weight.sum()).sqrt())
    skip_t, skip_1, skip_g, out, *_ = factors(model, t)
    assert skip_t * xt + skip_1 * x1 + skip_g * g == pytest.approx(mean, rel=1e-8)
    assert out == pytest.approx(std, rel=1e-8)


@pytest.mark.parametrize("cond_x1", [False, True])
def test_factors_are_finite_at_every_time_in_single_precision(cond_x1):
    t = torch.cat([torch.zeros(1), torch.logspace(-12, 0, 1000)])
    s = build(cond_x1=cond_x1).scalings(t)
    assert all(bool(f.isfinite().all()) for f in s[:5])
    if not cond_x1:  # no division by what is left of x0 once x_t is known
        assert s.out.min() == pytest.approx(1e-4)
    assert s.out.max() < 1


def test_a_guess_that_is_given_is_not_made_again(monkeypatch):
    model, (xt, x1, g), t = build(tikhonov=1e-3), torch.rand(3, 2, 3, 16, 16), torch.tensor([0.4, 1.0])
    own = model(xt, t, x1, model.guess(x1))
    assert torch.equal(own, model(xt, t, x1))
    monkeypatch.setattr(model, "guess", None)
    assert torch.equal(own, model(xt, t, x1, GaussianBlur().inverse(x1, 1e-3)))
    assert (model(xt, t, x1, g) - own).abs().max() > 0.01


def test_without_x1_the_network_sees_x_t_at_unit_scale():
    model, t, xt = build(cond_x1=False), torch.tensor([0.3, 0.9]), torch.randn(2, 3, 8, 8)
    model.net, s = Fixed(torch.ones(2, 3, 8, 8)), model.scalings(t[:, None, None, None])
    torch.testing.assert_close(model(xt, t), s.skip_t * xt + s.out, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.net.seen, s.in_t * xt, rtol=0, atol=1e-6)


def test_each_image_has_its_own_loss():
    model, t = build(), torch.tensor([0.3, 0.9])
    x0, x1, noise = torch.rand(3, 2, 3, 8, 8) * 2 - 1
    both = model.loss(x0, x1, t, noise)
    for i in range(2):
        one = slice(i, i + 1)
        torch.testing.assert_close(model.loss(x0[one], x1[one], t[one], noise[one]), both[one])


def test_with_a_floor_an_image_s_own_damage_takes_the_place_of_the_mean_variance():
    model, t = build(), torch.tensor([0.3, 0.9])
    x0, x1, noise = torch.rand(3, 2, 3, 8, 8) * 2 - 1
    x1[1] = (x0[1] + 0.01).clamp(-1, 1)
    squares = (model(model.bridge.q_sample(t, x0, x1, noise), t, x1) - x0).square().flatten(1).mean(1)
    a, _, c = model.bridge.coefficients(t)
    damage = (x1 - x0).square().flatten(1).mean(1) + 0.05**2
    torch.testing.assert_close(
        model.loss(x0, x1, t, noise, 0.05), squares * (1 / damage + a**2 / c**2), rtol=1e-3, atol=0
    )
    m00, m11, m01 = model.config.moments  # damage of the mean variance: nothing changes
    floor = (m00 - m01**2 / m11) ** 0.5
    torch.testing.assert_close(model.loss(x0, x0, t, noise, floor), model.loss(x0, x0, t, noise))


def test_the_configuration_reaches_the_schedule_the_network_and_the_name():
    model = build(beta_min=0.2, beta_max=0.5, dropout=0.25)
    assert model.bridge.schedule == Schedule.symmetric(beta_min=0.2, beta_max=0.5)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.25}
    count = sum(len(p.flatten()) for p in model.parameters())
    assert repr(model) == f"Denoiser(bridge, blind, unet-tiny of {count:,} weights)"
    told = build(tikhonov=0.1, process="regression")
    assert "regression, told GaussianBlur(kernel_size=7, sigma=2.0), unet-tiny" in repr(told)
    assert "(bridge, not shown x1, unet-tiny of" in repr(build(cond_x1=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "noise"}, r"prediction in \('precond', 'eps', 'x0'\), got 'noise'"),
        ({"moments": (0.3, 0.3, 0.3)}, r"moments of two unequal images, got \(0\.3"),
        ({"moments": (-1.0, 0.3, 0.1)}, "moments of two unequal images"),
        ({"moments": (float("inf"), 0.3, 0.1)}, "moments of two unequal images"),
        ({"tikhonov": -0.1}, r"finite tikhonov of at least 0, got -0\.1"),
        ({"tikhonov": float("nan")}, "got nan"),
        ({"tikhonov": 0.1, "cond_x1": False}, "tikhonov needs cond_x1 and a separable blur"),
        ({"tikhonov": 0.1, "degradation": "jpeg"}, r"separable blur, got JPEG\(quality=10\)"),
        ({"wiener": True, "tikhonov": 0.1}, "takes the place of tikhonov, got cond_x1=True, tikhonov=0.1"),
        ({"wiener": True, "cond_x1": False}, "wiener needs cond_x1 .* got cond_x1=False, tikhonov=0.0"),
        ({"network": "resnet"}, "expected a network among"),
        ({"dropout": 1.0}, r"dropout from 0 to below 1, got planes=6, out=3, dropout=1\.0"),
        ({"dropout": float("nan")}, "dropout=nan"),
        ({"process": "flow"}, r"process in \('bridge', 'regression', 'diffusion'\), got 'flow'"),
        ({"process": "diffusion", "cond_x1": False}, "a diffusion needs cond_x1"),
        ({"process": "diffusion", "prediction": "eps"}, "eps is the bridge's"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_conditioned_denoiser_needs_x1():
    xt, t = torch.zeros(2, 3, 8, 8), torch.full((2,), 0.5)
    with pytest.raises(ValueError, match=r"conditioned on x1: expected x1 of xt's shape, got none"):
        build()(xt, t)


WRONG = {  # (one of two images, what is said of it)
    "another shape": (
        lambda x: x[:1],
        r"of one shape, of . axes or more, got \(2, 3, 8, 8\) and .*\(1, 3, 8, 8\)",
    ),
    "bytes": (lambda x: x.byte(), r"each a tensor of floating-point numbers, got torch\.uint8"),
    "an array": (lambda x: x.numpy(), "each a tensor of floating-point numbers, got ndarray"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("options", [{}, {"tikhonov": 0.1}, {"wiener": True}])
def test_images_that_do_not_fit_are_refused_in_one_sentence(options, change, message):
    model, x, t = build(**options), torch.zeros(2, 3, 8, 8), torch.full((2,), 0.5)
    calls = (
        lambda: model(x, t, change(x)),
        lambda: model(x, t, x, change(x)),
        lambda: model.consistent(x, change(x), 1e-3),
        lambda: model.loss(x, change(x), t, x),
    )
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    for call in (model.guess, lambda one: model(one, t, one), lambda one: model.consistent(one, one, 1e-3)):
        with pytest.raises(ValueError, match=r"of one shape, of 4 axes or more, got \(3, 8, 8\)"):
            call(x[0])


def test_planes_and_times_that_do_not_fit_are_refused_in_one_sentence():
    model, x, t = build(), torch.zeros(2, 3, 8, 8), torch.full((2,), 0.5)
    with pytest.raises(
        ValueError, match=r"x \(B, 6, H, W\), t \(B,\), got torch.float32 \(2, 2, 8, 8\), \(2,\)"
    ):
        model(x[:, :1], t, x[:, :1])
    for one in (0.5, torch.tensor(0.5)):
        with pytest.raises(ValueError, match=r"t \(B,\), got torch.float32 \(2, 6, 8, 8\), \(\)"):
            model(x, one, x)
    for zero in (torch.zeros(2), 0.0):
        with pytest.raises(ValueError, match=r"times in \(0, 1\], got 0 to 0"):
            model.loss(x, x, zero, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_every_precision_are_taken(dtype):
    model, t = randomised(build()), torch.tensor([0.3, 0.9])
    xt, x1 = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found, wanted = model(xt.to(dtype), t, x1.to(dtype)), model(xt, t, x1)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=1e-6 if dtype == torch.float64 else 0.05)


def randomised(model):
    """With a last layer that does not start at zero."""
    torch.manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn(p.shape) * 0.1
    return model


@pytest.mark.parametrize("options", [{"tikhonov": 0.1}, {"wiener": True}, {}])
def test_no_images_have_a_guess_and_an_estimate(options):
    model, none = build(**options), torch.zeros(0, 3, 16, 24)
    assert model.guess(none).shape == model(none, torch.zeros(0), none).shape == none.shape
    assert model.consistent(none, none, 1e-3).shape == none.shape


@pytest.mark.parametrize("options", [{"prediction": "eps"}, {"prediction": "x0"}, {"cond_x1": False}, {}])
def test_a_floor_is_for_a_loss_that_has_a_variance_of_its_own(options):
    """With eps the weight 1 + out^2 (1 / d^2 - 1 / v) would fall below zero: away from the image."""
    x, t, floor = torch.rand(2, 3, 8, 8) - 0.5, torch.tensor([0.4, 0.9]), 1.0
    if not options:
        assert bool((build().loss(x, 0.5 * x, t, x, floor) > 0).all())
        floor = float("nan")
    with pytest.raises(ValueError, match=f"above it with precond and cond_x1, got {floor}"):
        build(**options).loss(x, 0.5 * x, t, x, floor)


def test_consistent_is_the_best_linear_update_with_the_dense_operator():
    model, lam = Denoiser(ModelConfig("unet-tiny")), 2e-3
    a = model.operator.matrix(16)
    h = torch.kron(a, a)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 2, 3, 16, 16, generator=generator, dtype=torch.float64) - 0.5
    flat_x, flat_y = x.flatten(2).mT, y.flatten(2).mT
    gain = h.T @ torch.linalg.inv(h @ h.T + lam * torch.eye(256, dtype=torch.float64))
    dense = (flat_x + gain @ (flat_y - h @ flat_x)).mT.reshape(x.shape)
    with torch.autocast("cpu", torch.bfloat16):
        ours, single = model.consistent(x, y, lam), model.consistent(x.float(), y.float(), lam)
    torch.testing.assert_close(ours, dense, rtol=0, atol=1e-10)
    torch.testing.assert_close(single, dense.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.consistent(x, model.operator.apply(x), lam), x, rtol=0, atol=1e-12)


def test_consistent_needs_a_separable_blur():
    model = Denoiser(ModelConfig("unet-tiny", degradation="jpeg"))
    with pytest.raises(ValueError, match="consistency needs a separable blur, got JPEG"):
        model.consistent(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), 1e-3)


@pytest.mark.slow
def test_a_compiled_loss_is_one_graph_and_the_same():
    """No check of times or of shapes breaks it."""
    model, t = build(), torch.tensor([0.3, 0.9])
    x0, x1, noise = torch.rand(3, 2, 3, 8, 8) * 2 - 1
    model.net = Fixed(torch.zeros(2, 3, 8, 8))  # the network itself is not in question
    compiled = torch.compile(model.loss, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x0, x1, t, noise), model.loss(x0, x1, t, noise))


# a weight, a kernel and a size that no other test has in memory
AWARE = {"tikhonov": 3e-3, "degradation_options": {"kernel_size": 9, "sigma": 1.75}}


@pytest.mark.slow
@pytest.mark.parametrize("options", [AWARE, {"wiener": True}], ids=["operator-aware", "wiener"])
def test_it_exports_for_any_number_of_images(tmp_path, options):
    """The graph of a blind one is a part of these."""
    model = build(**options)
    for p in model.parameters():  # the last layer starts at zero
        p.data = torch.randn(p.shape) * 0.1
    batch = torch.export.Dim("batch", max=1024)
    dynamic = {"xt": {0: batch}, "t": {0: batch}, "x1": {0: batch}}

    def example(n):
        return torch.rand(n, 3, 20, 28) * 2 - 1, torch.linspace(0.01, 1, n), torch.rand(n, 3, 20, 28) * 2 - 1

    program = torch.export.export(model, example(3), dynamic_shapes=dynamic, strict=False)
    torch.export.save(program, tmp_path / "denoiser.pt2")
    exported = torch.export.load(tmp_path / "denoiser.pt2").module()
    with torch.no_grad():
        for n in (1, 2, 5):
            xt, t, x1 = example(n)
            found, wanted = (
                exported(xt, t, x1),
                model(xt, t, x1),
            )  # eager after it: nothing traced is remembered
            assert found.std() > 0.1
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="expected times in"):  # the checks of eager input stay
            model(xt, 2 * t, x1)
