"""The Gaussian algebra against restated formulas, in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from i2sb_lib.bridge import Bridge, expand, sample_times
from i2sb_lib.gaussian_mixtures import MixturePair
from i2sb_lib.samplers import sample
from i2sb_lib.schedule import Schedule, symmetric_betas

F64 = torch.float64
I2SB = {
    "symmetric": Bridge(Schedule.symmetric()),
    "brownian": Bridge(Schedule.constant(0.8)),
    "report": Bridge(Schedule.from_betas(symmetric_betas(100))),
    "paper": Bridge(Schedule.from_betas(symmetric_betas(1000))),
}
BRIDGES = I2SB | {"indi": Bridge.indi(), "noisy-indi": Bridge.indi(0.3), "ddbm-vp": Bridge.ddbm_vp()}
BRIDGES["diffusion"] = Bridge.diffusion()
every_bridge = pytest.mark.parametrize("bridge", BRIDGES.values(), ids=BRIDGES)
inner = st.floats(1e-3, 1)


def close(a, b, atol=1e-12):
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=0, atol=atol
    )


def scalars(bridge, t):
    return (float(v) for v in bridge.coefficients(torch.tensor(t, dtype=F64)))


@every_bridge
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_ends_are_exact(bridge, dtype):
    x0, x1 = torch.randn(2, 5, 3, 4, 4, dtype=dtype)
    if bridge is BRIDGES["diffusion"]:  # it ends at noise, not at x1
        x1 = torch.zeros_like(x1)
    for t, end in ((0.0, x0), (torch.zeros(5), x0), (1.0, x1), (torch.ones(5), x1)):
        mean, var = bridge.q_mean_var(t, x0, x1)
        assert torch.equal(mean, end)
        assert mean.dtype == var.dtype == dtype
        if bridge not in (BRIDGES["noisy-indi"], BRIDGES["diffusion"]) or end is x0:
            assert not var.any()
            assert torch.equal(bridge.q_sample(t, x0, x1), end)


@pytest.mark.parametrize("name", I2SB)
@settings(max_examples=20, deadline=None)
@given(times=st.lists(inner, min_size=3, max_size=20, unique=True), data=st.data())
def test_composition_on_any_grid_and_sub_grid(name, times, data):
    """p(x_s | x0, x_t) chained over a grid is the kernel of its ends, and from x1 it gives q."""
    bridge, grid = I2SB[name], sorted(times)
    keep = data.draw(st.lists(st.booleans(), min_size=len(grid), max_size=len(grid)))
    sub = [t for t, k in zip(grid, keep, strict=True) if k or t in (grid[0], grid[-1])]
    zero, one = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)

    def chain(path):
        """Weights of x0 and of the start, and the variance, after all of path's reverse steps."""
        k0, kt, var = zero, one, zero
        for s, t in zip(path[-2::-1], path[:0:-1], strict=True):
            a, v = bridge.p_mean_var(s, t, one, zero)
            b, _ = bridge.p_mean_var(s, t, zero, one)
            k0, kt, var = a + b * k0, b * kt, b**2 * var + v
        return k0, kt, var

    for got, want in zip(chain(grid), chain([grid[0], grid[-1]]), strict=True):
        close(got, want)
    for path in (grid, sub):
        k0, kt, var = chain([*path, 1.0] if path[-1] < 1 else path)
        mean, want = bridge.q_mean_var(path[0], one, zero)
        close(k0, mean)
        close(kt, 1 - mean)
        close(var, want)


@pytest.mark.parametrize("name", I2SB)
@settings(max_examples=30, deadline=None)
@given(s=inner, t=inner)
def test_posteriors_are_products_of_gaussians(name, s, t):
    """q is N(x0, sigma_t^2) N(x1, bar sigma_t^2); p is N(x0, sigma_s^2) N(x_t, alpha^2). By precisions."""
    bridge, (s, t) = I2SB[name], sorted((s, t))
    fwd = {u: float(bridge.schedule.var_fwd(u)) for u in (s, t, 1.0)}

    def product(m1, v1, m2, v2):
        precision = 1 / v1 + 1 / v2
        return (m1 / v1 + m2 / v2) / precision, 1 / precision

    left, right = torch.tensor([[0.3]], dtype=F64), torch.tensor([[-1.1]], dtype=F64)
    if fwd[1.0] - fwd[t] > 1e-9:
        want = product(0.3, fwd[t], -1.1, fwd[1.0] - fwd[t])
        close(torch.cat(bridge.q_mean_var(t, left, right)).squeeze(), want)
    if fwd[t] - fwd[s] > 1e-9:
        want = product(0.3, fwd[s], -1.1, fwd[t] - fwd[s])
        close(torch.cat(bridge.p_mean_var(s, t, left, right)).squeeze(), want, atol=1e-11)


def gaussian_product(std1, std2):
    """The published code's helper, restated: weights of the two means, and the variance."""
    total = std1**2 + std2**2
    return std2**2 / total, std1**2 / total, std1**2 * std2**2 / total


@pytest.mark.parametrize("n", [100, 1000])
def test_published_discretisation(n):
    """Its reverse step is this bridge's; its q counts one beta twice, which is a table with it twice."""
    betas = symmetric_betas(n)
    std_fwd = np.sqrt(np.cumsum(betas.numpy()))
    std_bwd = np.sqrt(np.flip(np.cumsum(np.flip(betas.numpy()))))
    bridge = Bridge(Schedule.from_betas(betas))
    one, zero = torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64)
    for k in (0, 1, n // 3, n // 2, n - 2, n - 1):
        for prev in {0, k // 2, k - 1} - {k, -1}:
            delta = np.sqrt(std_fwd[k] ** 2 - std_fwd[prev] ** 2)
            of_x0, of_xt, var = gaussian_product(std_fwd[prev], delta)
            s, t = (prev + 1) / n, (k + 1) / n
            close(torch.cat(bridge.p_mean_var(s, t, one, zero)), [of_x0, var])
            close(bridge.p_mean_var(s, t, zero, one)[0], [of_xt])
        of_x0, of_x1, var = gaussian_product(std_fwd[k], std_bwd[k])
        assert std_fwd[k] ** 2 + std_bwd[k] ** 2 == pytest.approx(bridge.schedule.total + float(betas[k]))
        twice = Bridge(Schedule.from_betas(torch.cat([betas[: k + 1], betas[k:]])))
        close(torch.cat(twice.q_mean_var((k + 1) / (n + 1), one, zero)), [of_x0, var])
        close(twice.q_mean_var((k + 1) / (n + 1), zero, one)[0], [of_x1])
        if k in (0, n - 1):  # both ends of the published training bridge are noisy
            assert var**0.5 == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("t", [0.0, 0.13, 0.5, 0.9, 1.0])
def test_restated_special_cases(t):
    """Brownian bridge; InDI; cosine diffusion; DDBM-VP from alpha_t, sigma_t and their SNRs."""
    close(list(scalars(I2SB["brownian"], t)), [1 - t, t, math.sqrt(0.8 * t * (1 - t))])
    close(list(scalars(BRIDGES["noisy-indi"], t)), [1 - t, t, 0.3 * t])
    close(list(scalars(BRIDGES["diffusion"], t)), [math.cos(math.pi * t / 2), 0, math.sin(math.pi * t / 2)])

    def reference(t):
        alpha = math.exp(-quad(lambda u: 0.1 + 2 * u, 0, t)[0] / 2)
        return alpha, 1 - alpha**2

    (alpha, var), (alpha1, var1) = reference(t), reference(1.0)
    ratio = (alpha1**2 / var1) * var / alpha**2  # SNR_1 / SNR_t
    want = [alpha * (1 - ratio), ratio * alpha / alpha1, math.sqrt(max(var * (1 - ratio), 0.0))]
    close(list(scalars(BRIDGES["ddbm-vp"], t)), want, atol=1e-7 if t == 1 else 1e-12)


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.4), (0.3, 0.4), (0.25, 1.0)])
def test_indi_step(s, t):
    """Delbracio & Milanfar's update: x_s = (s / t) x_t + (1 - s / t) x0_hat, no noise added or carried."""
    for eta in (1.0, 0.5, 0.0):
        step = BRIDGES["indi"].step(torch.tensor(s, dtype=F64), torch.tensor(t, dtype=F64), eta)
        close([float(k) for k in step], [1 - s / t, 0, s / t, 0])


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.4), (0.3, 0.4), (0.25, 1.0)])
def test_diffusion_steps_are_those_of_ddpm_and_ddim(s, t):
    """From alpha_bar = a^2, as their papers write them [Ho et al. 2020, eq. 7; Song et al. 2021, eq. 12]."""
    bridge, ends = BRIDGES["diffusion"], (torch.tensor(s, dtype=F64), torch.tensor(t, dtype=F64))
    at, prev = math.cos(math.pi * t / 2) ** 2, math.cos(math.pi * s / 2) ** 2
    alpha = at / prev
    want = [prev**0.5 * (1 - alpha) / (1 - at), 0, alpha**0.5 * (1 - prev) / (1 - at)]
    close([float(k) for k in bridge.step(*ends)], [*want, ((1 - alpha) * (1 - prev) / (1 - at)) ** 0.5])
    ratio = ((1 - prev) / (1 - at)) ** 0.5
    close([float(k) for k in bridge.step(*ends, 0.0)], [prev**0.5 - ratio * at**0.5, 0, ratio, 0])


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(list(BRIDGES)), s=st.floats(0, 1), t=inner, eta=st.floats(0, 1))
def test_step_keeps_every_marginal(name, s, t, eta):
    bridge, (s, t) = BRIDGES[name], sorted((s, t))
    if t < 1e-3 or t - s < 1e-6 or 1 - 1e-6 < t < 1:  # there c_t is too small to divide by
        return
    step = bridge.step(torch.tensor(s, dtype=F64), torch.tensor(t, dtype=F64), eta)
    k0, k1, kt, std = (float(k) for k in step)
    (a_s, b_s, c_s), (a_t, b_t, c_t) = scalars(bridge, s), scalars(bridge, t)
    close([k0 + kt * a_t, k1 + kt * b_t, kt**2 * c_t**2 + std**2], [a_s, b_s, c_s**2])
    markov = bridge.step(torch.tensor(s, dtype=F64), torch.tensor(t, dtype=F64))
    assert float(markov.k1) == 0
    close(std, eta * float(markov.std) if c_t > 0 else float(markov.std))
    assert kt >= 0


@every_bridge
def test_the_markov_kernel_is_free_of_x1_to_the_last_bit(bridge):
    s, t = torch.rand(2, 10_000, dtype=F64).sort(0).values
    assert not bridge.step(s, t).k1.any()


@every_bridge
def test_noise_level_is_that_of_the_clean_image_seen_once_x1_is_taken_away(bridge):
    x0, x1, noise = torch.randn(3, 7, 2, dtype=F64)
    t = torch.linspace(0, 0.99, 7, dtype=F64)
    a, b, _ = (v[:, None] for v in bridge.coefficients(t))
    y = (bridge.q_sample(t, x0, x1, noise) - b * x1) / a
    close(y, x0 + bridge.noise_level(t)[:, None] * noise)
    assert bool((bridge.noise_level(t).diff() > 0).all()) or bridge is BRIDGES["indi"]
    assert float(bridge.noise_level(0.0)) == 0
    assert float(bridge.noise_level(1.0)) == math.inf
    assert bridge.noise_level(torch.ones(2, 3)).shape == (2, 3)


@pytest.mark.parametrize("name", I2SB)
def test_noise_level_of_i2sb(name):
    schedule, t = I2SB[name].schedule, torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    want = (schedule.var_fwd(t) * schedule.total / schedule.var_bwd(t)).sqrt()
    close(I2SB[name].noise_level(t), want)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(list(BRIDGES)), s=st.floats(0, 0.98), t=st.floats(1e-2, 0.99), eta=st.floats(0, 1)
)
def test_step_is_that_of_a_diffusion_once_x1_is_taken_away(name, s, t, eta):
    """y_s = x0 + ratio (y_t - x0) + noise: DDIM's [Song et al. 2021a, eq. 16] with its eta, DDPM's at 1.

    Not for noisy InDI, whose own kernel adds no noise: there every eta is DDIM's 0.
    """
    bridge, (s, t) = BRIDGES[name], sorted((s, t))
    if t - s < 1e-6 or t < 1e-2 or name == "indi":
        return
    step = bridge.step(torch.tensor(s, dtype=F64), torch.tensor(t, dtype=F64), eta)
    k0, k1, kt, std = (float(k) for k in step)
    (a_s, b_s, _), (a_t, b_t, _) = scalars(bridge, s), scalars(bridge, t)
    low, high = float(bridge.noise_level(s)), float(bridge.noise_level(t))
    added = 0.0 if name == "noisy-indi" else eta * low * math.sqrt(1 - (low / high) ** 2)
    ratio = math.sqrt(low**2 - added**2) / high
    close([kt * a_t / a_s, k0 / a_s, (std / a_s) ** 2], [ratio, 1 - ratio, added**2], atol=1e-10)
    close(k1 + kt * b_t, b_s)


@pytest.mark.parametrize("name", I2SB)
def test_ot_ode_is_the_bridge_without_its_noise(name):
    bridge, noisy = Bridge.ot_ode(I2SB[name].schedule), I2SB[name]
    x0, x1, xt = torch.randn(3, 4, 2, dtype=F64)
    grid = noisy.schedule.grid(7)
    for s, t in zip(grid[1:], grid[:-1], strict=True):
        mean, var = bridge.q_mean_var(t, x0, x1)
        close(mean, noisy.q_mean_var(t, x0, x1)[0])
        assert not var.any()
        for eta in (0.0, 0.5, 1.0):
            assert torch.equal(torch.stack(bridge.step(s, t, eta))[3], torch.zeros((), dtype=F64))
        close(bridge.p_mean_var(s, t, x0, xt)[0], noisy.p_mean_var(s, t, x0, xt)[0])


@pytest.mark.parametrize("sampler", ["sde", "dbim"])
@pytest.mark.parametrize("name", ["symmetric", "brownian", "ddbm-vp"])
def test_a_walk_that_is_shown_x1_is_a_diffusion_s(name, sampler):
    """Matched levels, matched noise, the exact denoiser given x1: one result, whatever the process."""
    mixture = [torch.tensor(v, dtype=F64) for v in ([0.4, 0.6], [[-1.0], [0.8]], [[[0.04]], [[0.09]]])]
    pair = MixturePair.degraded(*mixture, torch.tensor([[0.5]]), noise=0.4)
    bridge, diffusion = BRIDGES[name], BRIDGES["diffusion"]
    _, x1 = pair.sample(50, torch.Generator().manual_seed(0))
    times = bridge.schedule.grid(9)
    levels = 2 / math.pi * torch.atan(bridge.noise_level(times))  # where the diffusion has them
    close(diffusion.noise_level(levels[1:]), bridge.noise_level(times[1:]))
    ours, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    if sampler == "sde":  # the diffusion draws a start, which its first step forgets
        torch.randn(x1.shape, generator=ours, dtype=F64)
    given = pair.denoiser(bridge, x1), pair.denoiser(diffusion, x1)
    walk = sample(given[0], bridge, x1, sampler=sampler, times=times, generator=ours)
    noise = sample(given[1], diffusion, x1, sampler=sampler, times=levels, generator=theirs)
    close(walk.x, noise.x, atol=1e-7)
    plain = sample(pair.denoiser(bridge), bridge, x1, 9, sampler, generator=torch.Generator().manual_seed(1))
    assert float((plain.x - noise.x).abs().mean()) > 0.05  # without x1 it is another walk


@every_bridge
def test_target_and_prediction_are_inverse(bridge):
    x0, xt = torch.randn(2, 6, 3, 4, 4, dtype=F64)
    t = torch.linspace(0.01, 1, 6, dtype=F64)
    target = bridge.target(t, x0, xt)
    close(bridge.predict_x0(t, xt, target), x0)
    want = (xt[3] - x0[3]) / math.sqrt(float(bridge.schedule.var_fwd(t[3])))
    close(target[3], want)
    assert bridge.total_std == pytest.approx(math.sqrt(bridge.schedule.total))


def test_times_of_a_batch_are_each_sample_s_own():
    bridge, (x0, x1, noise) = I2SB["symmetric"], torch.randn(3, 4, 3, 2, 2, dtype=F64)
    t = torch.tensor([0.1, 0.4, 0.6, 1.0], dtype=F64)
    batch = bridge.q_sample(t, x0, x1, noise)
    for i in range(4):
        a, b, c = scalars(bridge, float(t[i]))
        close(batch[i], a * x0[i] + b * x1[i] + c * noise[i])
    assert bridge.q_mean_var(t, x0, x1)[1].shape == (4, 1, 1, 1)
    for one in (0.4, t[1], t[1:2]):  # a number, a time and a list of one are the same for all
        close(bridge.q_mean_var(one, x0, x1)[0][1], bridge.q_mean_var(t, x0, x1)[0][1])


def test_errors():
    bridge, x = I2SB["symmetric"], torch.zeros(4, 3, 2, 2)
    with pytest.raises(ValueError, match=r"one shape, .* got \(4, 3, 2, 2\) and \(3, 2, 2\)"):
        bridge.q_mean_var(0.5, x, x[0])
    with pytest.raises(ValueError, match=r"t of shape \(\) or \(4,\).*got \(3,\)"):
        bridge.q_sample(torch.rand(3), x, x)
    with pytest.raises(ValueError, match=r"got \(4, 1\)"):
        expand(torch.rand(4, 1), x)
    for call in (bridge.target, bridge.predict_x0):
        with pytest.raises(ValueError, match=r"one shape, .* got \(4, 3, 2, 2\) and \(4, 1, 2, 2\)"):
            call(0.5, x, x[:, :1])
    with pytest.raises(ValueError, match=r"x0 and noise of one shape"):
        bridge.q_sample(0.5, x, x, x[:1])
    with pytest.raises(ValueError, match=r"x0 and xt of one shape"):
        bridge.p_mean_var(0.2, 0.5, x, x[:1])


def test_what_is_no_bridge_is_refused():
    bridge, pictures = I2SB["symmetric"], torch.full((2, 3, 2, 2), 200, dtype=torch.uint8)
    for call in (bridge.q_mean_var, bridge.q_sample, bridge.target, bridge.predict_x0):
        with pytest.raises(ValueError, match=r"floating-point numbers, got torch\.uint8"):
            call(0.5, pictures, pictures)
    for eta in (-1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="expected eta from 0 to 1, got"):
            bridge.step(0.2, 0.4, eta)
    for noise in (-0.1, float("nan"), float("inf"), 1e20):
        with pytest.raises(ValueError, match="noise from 0 to 1e18"):
            Bridge.indi(noise)
    for beta in (-1.0, float("nan"), float("inf"), 160.0):
        with pytest.raises(
            ValueError, match=f"a sum from 1e-18 to 160, got beta_min=0.1 and beta_max={beta}"
        ):
            Bridge.ddbm_vp(beta_max=beta)
    for generator in (0, [torch.Generator()] * 2):
        for call in (bridge.q_sample, bridge.loss):
            first = 0.5 if call == bridge.q_sample else lambda xt, t: xt
            with pytest.raises(ValueError, match="expected generators of torch's"):
                call(first, torch.zeros(2, 3), torch.zeros(2, 3), generator=generator)
    with pytest.raises(TypeError):
        Bridge.ddbm_vp(0.1, 2.1)  # which of the two is which?


@pytest.mark.parametrize("ends", [(0.0, 159.9), (159.9, 0.0), (80.0, 80.0)])
def test_at_the_ends_of_what_is_taken_ddbm_and_indi_are_finite(ends):
    t = torch.tensor([0.0, 1e-3, 0.3, 0.9, 0.999, 1.0])
    for bridge in (Bridge.ddbm_vp(beta_min=ends[0], beta_max=ends[1]), Bridge.indi(1e18)):
        for dtype in (torch.float32, F64):
            found = (*bridge.coefficients(t.to(dtype)), *bridge.step(t[:-1].to(dtype), t[1:].to(dtype)))
            assert all(bool((part.isfinite() & (part**2).isfinite()).all()) for part in found)
    single, double = (Bridge.ddbm_vp(beta_max=159.0).coefficients(t.to(d)) for d in (torch.float32, F64))
    for a, b in zip(single, double, strict=True):
        close(a, b, atol=1e-4)


def test_coefficients_without_a_markov_kernel_are_refused():
    """c_t / b_t = t rises: no r = b_s / b_t keeps the variance, while r = c_s / c_t always does."""
    bridge = Bridge(Schedule.constant(), lambda t: (1 - t, t, t**2))
    for eta in (1.0, 0.5):
        with pytest.raises(ValueError, match=f"no Markov kernel: expected eta=0, got eta={eta}"):
            bridge.step(0.3, 0.6, eta)
    with pytest.raises(ValueError, match="no Markov kernel"):
        sample(lambda xt, t: xt, bridge, torch.zeros(1, 2), 3)
    k0, k1, kt, std = bridge.step(0.3, 0.6, 0.0)
    close((k0 + kt * 0.4, k1 + kt * 0.6, (kt * 0.36) ** 2 + std**2), (0.7, 0.3, 0.09**2))


def test_numbers_may_be_without_axes_of_their_own():
    """(B,) is (B, *D) with no D; a single number is no batch."""
    bridge, (x0, x1) = I2SB["symmetric"], torch.rand(2, 7, dtype=F64)
    for width in (x0.shape, (7, 1)):
        a, b = x0.reshape(width), x1.reshape(width)
        losses = bridge.loss(lambda xt, t: 0 * xt, a, b, torch.Generator().manual_seed(0))
        t = sample_times(7, torch.Generator().manual_seed(0)).double()
        xt = bridge.q_sample(t, a, b, generator=after_times(7))
        close(losses, bridge.target(t, a, xt).reshape(7) ** 2, atol=1e-12)
    one = torch.tensor(0.5)
    calls = (bridge.q_mean_var, bridge.q_sample, bridge.target, bridge.predict_x0)
    for call in calls:
        with pytest.raises(ValueError, match=r"of one shape, of 1 axes or more, got \(\) and \(\)"):
            call(0.5, one, one)
    for call in (expand, bridge.std):
        with pytest.raises(ValueError, match="each a tensor of floating-point numbers, got ndarray"):
            call(0.5, np.zeros((2, 3)))


def after_times(count):
    """A generator that has drawn so many times already."""
    generator = torch.Generator().manual_seed(0)
    sample_times(count, generator)
    return generator


def test_each_of_several_tensors_has_to_be_of_floats():
    bridge, x, whole = I2SB["symmetric"], torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.int64)
    calls = (
        lambda: bridge.q_mean_var(0.5, x, whole),
        lambda: bridge.p_mean_var(0.2, 0.5, x, whole),
        lambda: bridge.target(0.5, x, whole),
        lambda: bridge.predict_x0(0.5, x, whole),
        lambda: bridge.q_sample(0.5, x, x, whole),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"floating-point numbers, got torch\.int64"):
            call()


def test_a_step_s_times_are_of_one_shape():
    s, t = torch.tensor([0.1, 0.2]), torch.tensor([[0.5], [0.6]])
    for wrong in (t, torch.tensor([0.5, 0.6, 0.7])):
        with pytest.raises(ValueError, match=r"s and t of one shape, got \(2,\) and"):
            I2SB["symmetric"].step(s, wrong)
    for eta in ("1", None):
        with pytest.raises(ValueError, match="expected eta from 0 to 1, got"):
            I2SB["symmetric"].step(0.1, 0.5, eta)


def test_a_step_takes_floats():
    bridge = I2SB["symmetric"]
    tensors = bridge.step(torch.tensor(0.2, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64), 0.5)
    assert bridge.step(0.2, 0.4, 0.5) == tensors


@every_bridge
@pytest.mark.parametrize("t", [-0.1, 1.5, float("nan")])
def test_times_outside_0_to_1_are_refused(bridge, t):
    x, s = torch.zeros(2, 3), torch.tensor(0.2)
    for time in (t, torch.tensor(t), torch.tensor([0.5, t])):
        for call in (bridge.q_sample, bridge.q_mean_var, bridge.target, bridge.predict_x0):
            with pytest.raises(ValueError, match=r"expected times in [\[(]0, 1\], got "):
                call(time, x, x)
        with pytest.raises(ValueError, match="expected times in"):
            bridge.p_mean_var(0.0, time, x, x)
    with pytest.raises(ValueError, match="expected times in"):
        bridge.step(s, torch.tensor(t))


@every_bridge
def test_a_grid_may_end_in_very_small_times(bridge):
    times = torch.tensor([1.0, 0.5, 1e-100, 1e-200, 0.0], dtype=F64)
    for eta in (1.0, 0.5, 0.0):
        assert all(bool(k.isfinite().all()) for k in bridge.step(times[1:], times[:-1], eta))


@every_bridge
def test_a_target_needs_noise_and_a_step_goes_down(bridge):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"times in \(0, 1\], got 0 to 0\.5"):
        bridge.target(torch.tensor([0.5, 0.0]), x, x)
    assert torch.equal(bridge.predict_x0(0.0, x, x), x)  # where a prediction is x_t itself
    for s, t in ((0.8, 0.3), (0.3, 0.3)):
        with pytest.raises(ValueError, match=r"goes down, from t to s < t, got t=0\.3.* and s=0\.[38]"):
            bridge.step(torch.tensor(s), torch.tensor(t))
        with pytest.raises(ValueError, match="goes down"):
            bridge.p_mean_var(s, t, x, x)
    with pytest.raises(ValueError, match="goes down"):  # each of a batch
        bridge.step(torch.tensor([0.2, 0.8]), torch.tensor([0.5, 0.5]))
    for s, t, low in ((-0.1, 0.5, r"\["), (0.0, 0.0, r"\(")):
        with pytest.raises(ValueError, match=f"times in {low}0, 1], got "):
            bridge.step(torch.tensor(s), torch.tensor(t))


def test_algorithm_1_in_five_lines_finds_the_conditional_mean():
    """A linear network on Gaussian pairs, for which E[x0 | x_t] is linear too."""
    generator = torch.Generator().manual_seed(0)
    bridge, n = Bridge(Schedule.symmetric(beta_max=0.3)), 50_000
    x0 = torch.randn(n, 1, generator=generator)
    x1 = 0.8 * x0 + 0.3 * torch.randn(n, 1, generator=generator)
    slope = torch.zeros(9, requires_grad=True)

    def net(xt, t):  # a slope for each ninth of the time
        return slope[(t * 9).long().clamp(max=8)][:, None] * xt

    optimizer = torch.optim.SGD([slope], lr=1.0)
    for _ in range(60):
        bridge.loss(net, x0, x1, generator).mean().backward()
        optimizer.step(), optimizer.zero_grad()
    t = torch.full((n,), 0.5)
    xt = bridge.q_sample(t, x0, x1, generator=generator)
    best = (x0 * xt).mean() / xt.square().mean()  # of x0 on x_t
    found = bridge.denoiser(net)(torch.ones(1, 1), torch.tensor([0.5]))
    assert abs(float(found.detach()) - float(best)) < 0.01
    with pytest.raises(ValueError, match=r"expected target and found of one shape"):
        bridge.loss(lambda xt, t: xt[:, 0], x0, x1)


def test_draws_of_times_and_states_are_the_generator_s():
    def drawn():
        return torch.Generator().manual_seed(5)

    t = sample_times(1000, drawn())
    assert torch.equal(t, sample_times(1000, drawn()))
    assert torch.equal((t * 1000 / 0.999).flip(0).diff().sign(), torch.ones(999))  # one in each part, falling
    assert 0 < float(t.min()) < 2e-3 < 0.998 < float(t.max()) <= 1
    bridge, x = Bridge(Schedule.constant()), torch.zeros(4, 2)
    first = bridge.q_sample(0.5, x, x, generator=drawn())
    assert torch.equal(first, bridge.q_sample(0.5, x, x, generator=drawn()))
    assert first.std() > 0


def test_a_network_that_gives_no_tensor_is_told_so():
    bridge, x = Bridge(Schedule.symmetric()), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"expected target and found, each a tensor of .*, got tuple"):
        bridge.loss(lambda xt, t: (xt, t), x, x)
