"""Algorithm 2 and its kin against restated loops, known marginals and an exact mixture."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from i2sb_lib.bridge import Bridge
from i2sb_lib.gaussian_mixtures import MixturePair
from i2sb_lib.samplers import Samples, generators, sample
from i2sb_lib.schedule import Schedule, symmetric_betas

F64 = torch.float64
BRIDGE = Bridge(Schedule.symmetric())
every_sampler = pytest.mark.parametrize("sampler", ["sde", "ode", "dbim"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def bend(xt, t):
    """A denoiser that depends on state and time, smoothly."""
    return 0.8 * (xt + 0.3 * t[:, None]).tanh()


class Counting:
    def __init__(self):
        self.times = []

    def __call__(self, xt, t):
        self.times.append(t)
        return bend(xt, t)


@every_sampler
@pytest.mark.parametrize("nfe", [1, 2, 7])
def test_calls_are_counted_truly_and_see_the_grid(sampler, nfe):
    denoise, x1, seen = Counting(), torch.randn(5, 3, dtype=F64), []
    out = sample(denoise, BRIDGE, x1, nfe, sampler, keep=True, progress=lambda r: seen.append(len(r)) or r)
    assert out.nfe == len(denoise.times) == nfe
    assert seen == [nfe]
    close(torch.stack(denoise.times), torch.linspace(1, 0, nfe + 1, dtype=F64)[:-1, None].expand(-1, 5), 0)
    assert len(out.trajectory) == len(out.times) == nfe + 1
    assert len(out.predictions) == nfe
    assert all(x.shape == x1.shape for x in out.trajectory + out.predictions)
    assert torch.equal(out.trajectory[0], x1)
    assert torch.equal(out.trajectory[-1], out.x)
    for x, time, x0_hat in zip(out.trajectory, out.times, out.predictions, strict=False):
        assert torch.equal(x0_hat, bend(x, time.expand(5)))
    close(out.x, out.predictions[-1])  # the last step adds nothing to the last prediction
    assert sample(bend, BRIDGE, x1, nfe, sampler).trajectory == []


@pytest.mark.parametrize("ode", [False, True])
def test_parity_with_the_published_loop(ode):
    """Its p_posterior over its table, with the same random stream."""
    n, x1 = 100, torch.randn(6, 4, dtype=F64)
    std = np.sqrt(np.concatenate([[0], np.cumsum(symmetric_betas(n).numpy())]))
    knots, g, x, path = [100, 93, 71, 50, 12, 1, 0], seeded(), x1, [x1]
    for k, prev in pairwise(knots):
        x0_hat = bend(x, torch.full((6,), k / n, dtype=F64))
        delta2 = std[k] ** 2 - std[prev] ** 2
        x = (delta2 * x0_hat + std[prev] ** 2 * x) / std[k] ** 2
        if prev > 0 and not ode:
            x = x + std[prev] * np.sqrt(delta2) / std[k] * torch.randn(6, 4, generator=g, dtype=F64)
        path.append(x)
    bridge = Bridge(Schedule.from_betas(symmetric_betas(n)))
    times = torch.tensor(knots, dtype=F64) / n
    name = "ode" if ode else "sde"
    out = sample(bend, bridge, x1, sampler=name, times=times, generator=seeded(), keep=True)
    close(torch.stack(out.trajectory), torch.stack(path), 1e-10)


def test_dbim_carries_the_first_step_s_noise():
    x1 = torch.randn(6, 4, dtype=F64)
    a, b, c = BRIDGE.coefficients(BRIDGE.schedule.grid(5))
    eps, x = torch.randn(6, 4, generator=seeded(), dtype=F64), x1
    for n in range(5):
        x0_hat = bend(x, torch.full((6,), 1 - n / 5, dtype=F64))
        if n:
            eps = (x - a[n] * x0_hat - b[n] * x1) / c[n]
        x = a[n + 1] * x0_hat + b[n + 1] * x1 + c[n + 1] * eps
    close(sample(bend, BRIDGE, x1, 5, "dbim", generator=seeded()).x, x, 1e-11)


@pytest.mark.parametrize("sampler", ["sde", "dbim"])
@pytest.mark.parametrize("bridge", [BRIDGE, Bridge.indi(0.4), Bridge.ddbm_vp(), Bridge.diffusion()])
def test_states_have_the_bridge_s_marginals(bridge, sampler):
    """Told x0, every state is a draw of q(x_t | x0, x1): mean and variance within 5 standard errors.

    Eight tests of ten numbers: a false alarm once in 20,000 choices of seeds.
    """
    n, x0 = 20_000, torch.full((20_000, 1), 0.7, dtype=F64)
    out = sample(lambda xt, t: x0, bridge, -x0, 6, sampler, generator=seeded(1), keep=True)
    a, b, c = bridge.coefficients(out.times)
    for i in range(1, 6):
        x = out.trajectory[i]
        assert abs(float(x.mean() - 0.7 * (a[i] - b[i]))) < 5 * float(c[i]) / n**0.5
        assert abs(float(x.var() / c[i] ** 2) - 1) < 5 * (2 / n) ** 0.5
    assert torch.equal(out.x, x0)


def test_a_noisy_end_starts_with_noise():
    x1 = torch.zeros(20_000, 1, dtype=F64)
    start = sample(bend, Bridge.indi(0.4), x1, 1, generator=seeded(), keep=True).trajectory[0]
    assert float(start.std()) == pytest.approx(0.4, rel=0.025)  # five standard errors
    start = sample(bend, Bridge.diffusion(), x1 + 7, 1, generator=seeded(), keep=True).trajectory[0]
    assert float(start.std()) == pytest.approx(1, rel=0.025)
    assert abs(float(start.mean())) < 5 / 20_000**0.5


def test_ot_ode_is_the_limit_of_vanishing_noise():
    """Scaling the variance by v leaves the mean path alone: sde tends to ode like sqrt(v)."""
    x1, gap = torch.randn(50, 2, dtype=F64), {}
    ode = sample(bend, BRIDGE, x1, 8, "ode").x
    for v in (1.0, 1e-4, 1e-8):
        bridge = Bridge(Schedule.symmetric(beta_max=0.3 * v, beta_min=0.1 * v))
        gap[v] = float((sample(bend, bridge, x1, 8, "sde", generator=seeded()).x - ode).abs().max())
        close(sample(bend, bridge, x1, 8, "ode").x, ode)
    assert gap[1.0] > 0.05
    assert gap[1e-8] < 1e-4
    assert gap[1e-4] / gap[1e-8] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("sampler", ["sde", "dbim"])
def test_generator_alone_decides(sampler):
    x1, state = torch.randn(4, 3), torch.get_rng_state()
    first, same, other = (sample(bend, BRIDGE, x1, 4, sampler, generator=seeded(s)).x for s in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.allclose(first, other, atol=1e-3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sampler", ["sde", "dbim"])
@pytest.mark.parametrize("bridge", [BRIDGE, Bridge.diffusion()])
def test_a_generator_for_each_image_draws_float32_for_it_alone(bridge, sampler):
    x1 = torch.randn(4, 5, 5, dtype=F64)  # of 16 numbers on, double precision draws others

    def walk(x1, seeds):
        each = [seeded(k) for k in seeds]
        return sample(lambda xt, t: 0.8 * xt.tanh(), bridge, x1, 4, sampler, generator=each).x

    whole = walk(x1, [1, 2, 3, 1])
    for i, k in enumerate([1, 2, 3, 1]):
        assert torch.equal(walk(x1[i : i + 1], [k]), whole[i : i + 1])
    assert torch.equal(walk(x1.flip(0), [1, 3, 2, 1]).flip(0), whole)
    close(walk(x1.float(), [1, 2, 3, 1]).double(), whole, 1e-5)  # the same noise in any precision
    assert not torch.allclose(walk(x1, [1, 2, 3, 4])[3], whole[3], atol=1e-3)


def test_a_seed_means_the_same_noise_for_ever():
    """What is recorded was drawn from these starts: 32 bits of SHA-256 of the seed and the position."""
    assert [g.initial_seed() for g in generators(5, 3)] == [4069051389, 424660162, 3919451211]
    assert [g.initial_seed() for g in generators([5, -7, 5], 3)][::2] == [4069051389] * 2
    for seed, message in (([1, 2], "expected 3 seeds, one for each image, got 2"), (1.5, "got 1.5")):
        with pytest.raises(ValueError, match=message):
            generators(seed, 3)
    for seed in (True, [True, 1, 2]):  # which Python would take for 1
        with pytest.raises(ValueError, match="whole number"):
            generators(seed, 3)


def test_samples_have_one_short_line():
    x = torch.zeros(2, 3)
    assert repr(Samples(x, 4, x)) == "Samples(x of shape (2, 3), nfe=4)"
    assert repr(Samples(x, 4, x, [x] * 5)) == "Samples(x of shape (2, 3), nfe=4, 5 states kept)"


def test_an_answer_of_another_shape_is_not_broadcast():
    for wrong in (torch.zeros(3, 1), torch.zeros(1, 2), torch.zeros(())):
        with pytest.raises(ValueError, match=r"x1 and x0_hat of one shape, .* got \(3, 2\) and \("):
            sample(lambda xt, t, wrong=wrong: wrong, BRIDGE, torch.zeros(3, 2))


def test_uneven_grid_is_used_and_overrides_nfe():
    times, denoise = torch.tensor([1, 0.9, 0.2, 0]), Counting()
    out = sample(denoise, BRIDGE, torch.randn(2, 3), 50, times=times)
    assert out.nfe == 3
    assert out.times.dtype == F64
    close(torch.stack(denoise.times)[:, 0], times[:-1], 1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_time_is_as_precise_as_the_state_and_never_less_than_float32(dtype):
    denoise = Counting()
    out = sample(denoise, BRIDGE, torch.randn(2, 3, dtype=dtype), 3)
    assert denoise.times[1].dtype == (F64 if dtype == F64 else torch.float32)
    assert abs(float(denoise.times[1][0]) - 2 / 3) < (1e-15 if dtype == F64 else 1e-7)
    assert out.x.isfinite().all()


def test_no_graph_is_kept():
    x1 = torch.randn(2, 3, requires_grad=True)
    assert not sample(bend, BRIDGE, x1, 2).x.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "ddim"}, r"sampler in \('sde', 'ode', 'dbim'\), got 'ddim'"),
        ({"nfe": 0}, "whole number of steps, at least one, .*got n=0"),
        ({"nfe": 2.5}, r"got n=2\.5"),
        ({"generator": [seeded(), seeded()]}, "expected 1 generators, one for each image, got 2"),
        ({"generator": 0}, "expected generators of torch's, see `generators` for seeds, got 0"),
        ({"generator": [None]}, "expected generators of torch's"),
        ({"generator": [0]}, "expected generators of torch's, see `generators` for seeds, got 0"),
        ({"times": torch.tensor([0.9, 0.0])}, r"from 1 down to 0, got \[0.89"),
        ({"times": torch.tensor([1.0, 0.1])}, "from 1 down to 0"),
        ({"times": torch.tensor([1.0])}, "from 1 down to 0"),
        ({"times": torch.tensor([[1.0, 0.0]])}, "from 1 down to 0"),
        ({"times": torch.tensor([1.0, 0.5, 0.5, 0.0])}, "falls strictly"),
        ({"times": torch.tensor([1.0, float("nan"), 0.0])}, "falls strictly"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        sample(bend, BRIDGE, torch.zeros(1, 2), **options)
    answers = ((None, "NoneType"), (np.zeros((1, 2)), "ndarray"), (torch.zeros(1, 2).int(), "torch.int32"))
    for answer, got in answers:
        with pytest.raises(ValueError, match=f"x1 and x0_hat, each a tensor of .* numbers, got {got}"):
            sample(lambda xt, t, answer=answer: answer, BRIDGE, torch.zeros(1, 2))
    for x1, got in ((torch.zeros(1, 2, dtype=torch.uint8), "torch.uint8"), (np.zeros((1, 2)), "ndarray")):
        with pytest.raises(
            ValueError, match=f"expected x1, each a tensor of floating-point numbers, got {got}"
        ):
            sample(bend, BRIDGE, x1)
    with pytest.raises(ValueError, match=r"expected x1 of one shape, of 1 axes or more, got \(\)"):
        sample(bend, BRIDGE, torch.zeros(()))
    with pytest.raises(ValueError, match=r"for a diffusion take sde or dbim"):
        sample(bend, Bridge.diffusion(), torch.zeros(1, 2), sampler="ode")


def test_algorithm_2_with_the_exact_denoiser_recovers_a_mixture():
    """Two-sample Kolmogorov-Smirnov tests of three projections, each at level 1e-4: a false alarm in
    at most 3 of 10,000 choices of seeds. Degraded samples and one-step (mean) restorations must fail it.
    """
    means, covs = torch.tensor([[-1.0, 0.5], [1.2, -0.3]]), torch.eye(2).expand(2, 2, 2) * 0.05
    h = torch.tensor([[0.5, 0.3], [0.1, 0.4]])
    pair = MixturePair.degraded(torch.tensor([0.3, 0.7]), means, covs, h, noise=0.5)
    bridge, n = Bridge(Schedule.constant(0.7)), 4000
    x0, (_, x1) = pair.sample(n, seeded(1))[0], pair.sample(n, seeded(2))
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, -0.8]], dtype=F64)

    def worst(x):
        return min(ks_2samp(x0 @ d, x @ d).pvalue for d in directions)

    denoise = pair.denoiser(bridge)
    assert worst(sample(denoise, bridge, x1, 60, generator=seeded(3)).x) > 1e-4
    assert worst(sample(denoise, bridge, x1, 1).x) < 1e-4
    assert worst(x1) < 1e-4


def test_eta_leads_from_dbim_to_sde_and_has_its_bounds():
    bridge, x1 = Bridge(Schedule.symmetric(beta_max=0.3)), torch.linspace(-1, 1, 8)[:, None]

    def walk(sampler, **how):
        generator = torch.Generator().manual_seed(2)
        return sample(lambda xt, t: 0.5 * xt, bridge, x1, 6, sampler, generator=generator, **how).x

    assert torch.equal(walk("sde", eta=0.0), walk("dbim"))
    assert torch.equal(walk("dbim", eta=1.0), walk("sde"))
    between = walk("sde", eta=0.5)
    assert not torch.equal(between, walk("sde"))
    assert not torch.equal(between, walk("dbim"))
    for wrong in ({"eta": 1.5}, {"eta": -0.1}):
        with pytest.raises(ValueError, match="expected eta from 0 to 1"):
            walk("sde", **wrong)
    with pytest.raises(ValueError, match=r"got 0\.5 with ode"):
        walk("ode", eta=0.5)


def test_gradients_pass_through_the_walk_where_they_are_asked_for():
    """The mean of the walk is linear in a denoiser c x_t: its slope in c by differences."""
    bridge, x1 = Bridge(Schedule.symmetric(beta_max=0.3)), torch.ones(3, 1, dtype=torch.float64)

    def end(c, **how):
        return sample(lambda xt, t: c * xt, bridge, x1, 4, "ode", **how).x.sum()

    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert not end(c).requires_grad
    (slope,) = torch.autograd.grad(end(c, grad=True), c)
    wanted = (end(c.detach() + 1e-5) - end(c.detach() - 1e-5)) / 2e-5
    torch.testing.assert_close(slope, wanted, rtol=1e-6, atol=0)


def test_no_images_are_restored_to_none():
    x = torch.zeros(0, 3, 4, 4)
    for sampler in ("sde", "dbim"):
        assert sample(lambda xt, t: xt, BRIDGE, x, 3, sampler, generator=[]).x.shape == x.shape
