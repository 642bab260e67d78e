"""The exact mixtures against quadrature, Monte Carlo, finite differences, and Algorithm 2."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2sb_lib.bridge import Bridge
from i2sb_lib.gaussian_mixtures import Mixture, MixtureBridge, MixturePair
from i2sb_lib.samplers import sample
from i2sb_lib.schedule import Schedule
from i2sb_lib.schrodinger import SchrodingerSystem

BRIDGES = [Bridge(Schedule.constant(0.7)), Bridge(Schedule.symmetric()), Bridge.indi(0.5)]
F64 = torch.float64


def prior(dim: int = 2, k: int = 3, seed: int = 0):
    """Weights, means and covariances of a mixture, none of them special."""
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(k, generator=g, dtype=F64) + 0.2
    root = 0.5 * torch.randn(k, dim, dim, generator=g, dtype=F64)
    covs = root @ root.mT + 0.05 * torch.eye(dim, dtype=F64)
    return w / w.sum(), 2 * torch.randn(k, dim, generator=g, dtype=F64), covs


H = torch.tensor([[0.6, 0.3], [-0.2, 0.9]], dtype=F64)


def pair(kind: str, dim: int = 2) -> MixturePair:
    h = H[:dim, :dim]
    if kind == "independent":
        return MixturePair.independent(prior(dim), prior(dim, 2, seed=1))
    return MixturePair.degraded(*prior(dim), h, {"noisy": 0.3, "deterministic": 0.0}[kind])


KINDS = ["noisy", "deterministic", "independent"]


def log_density(w, m, c, x):
    """Logarithm of a mixture's density at x (N, D), by torch's normal distribution."""
    return (torch.distributions.MultivariateNormal(m, c).log_prob(x[:, None]) + w.log()).logsumexp(1)


def test_degraded_is_the_law_of_h_x0_plus_noise():
    x0, x1 = 2 * torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(4), dtype=F64)
    given_x0 = torch.distributions.MultivariateNormal(x0 @ H.T, 0.3**2 * torch.eye(2, dtype=F64))
    want = log_density(*prior(), x0) + given_x0.log_prob(x1)
    torch.testing.assert_close(log_density(*pair("noisy"), torch.cat([x0, x1], 1)), want, rtol=0, atol=1e-10)
    x0, x1 = pair("deterministic").sample(50, torch.Generator().manual_seed(4))
    torch.testing.assert_close(x1, x0 @ H.T, rtol=0, atol=1e-7)


def test_independent_is_the_product_of_two_laws():
    x0, x1 = 2 * torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(5), dtype=F64)
    want = log_density(*prior(), x0) + log_density(*prior(2, 2, seed=1), x1)
    got = log_density(*pair("independent"), torch.cat([x0, x1], 1))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@functools.cache
def lattice(kind: str):
    """A pair of laws in one dimension, points (x0, x1) and the density there: finer along x0."""
    p = pair(kind, 1)
    z = torch.cartesian_prod(torch.linspace(-8, 8, 801, dtype=F64), torch.linspace(-8, 8, 321, dtype=F64))
    return p, z, log_density(p.weights, p.means, p.covs, z).exp()


@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize("kind", ["noisy", "independent"])
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_quadrature_in_one_dimension(bridge, kind, t):
    """Density, score and E[x0 | x_t] as integrals over p(x0, x1) N(x_t; a x0 + b x1, c^2)."""
    p, z, joint = lattice(kind)
    a, b, c = (float(v) for v in bridge.coefficients(torch.tensor(t, dtype=F64)))
    xt = torch.linspace(-2, 2, 5, dtype=F64)
    r = xt[:, None] - (a * z[:, 0] + b * z[:, 1])
    weight = joint * torch.exp(-(r**2) / (2 * c**2))
    mass = weight.sum(1)
    density = mass * 0.02 * 0.05 / math.sqrt(2 * math.pi * c**2)
    log_p, score, x0 = p.posterior(bridge, t, xt[:, None])
    torch.testing.assert_close(log_p, density.log(), rtol=0, atol=1e-7)
    torch.testing.assert_close(score[:, 0], -(weight * r).sum(1) / c**2 / mass, rtol=0, atol=1e-7)
    torch.testing.assert_close(x0[:, 0], (weight * z[:, 0]).sum(1) / mass, rtol=0, atol=1e-7)


@pytest.mark.parametrize("t", [0.1, 0.6])
def test_conditioning_on_x1_by_quadrature(t):
    p, bridge = pair("noisy", 1), BRIDGES[0]
    x0 = torch.linspace(-9, 9, 20001, dtype=F64)
    x1, xt = 0.4, torch.linspace(-2, 2, 7, dtype=F64)
    law = torch.distributions.MultivariateNormal(p.means, p.covs)
    z = torch.stack([x0, torch.full_like(x0, x1)], 1)
    joint = (law.log_prob(z[:, None]) + p.weights.log()).logsumexp(1).exp()
    mean, var = bridge.q_mean_var(t, x0[:, None], z[:, 1:])
    weight = joint * torch.exp(-((xt[:, None] - mean[:, 0]) ** 2) / (2 * var[0]))
    x0_hat = p.posterior(bridge, t, xt[:, None], torch.full((7, 1), x1, dtype=F64))[2]
    want = (weight * x0).sum(1) / weight.sum(1)
    torch.testing.assert_close(x0_hat[:, 0], want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_score_is_the_gradient_of_the_log_density(kind):
    p, bridge, h = pair(kind), BRIDGES[1], 1e-5
    g = torch.Generator().manual_seed(3)
    x, t = torch.randn(20, 2, generator=g, dtype=F64), torch.rand(20, generator=g, dtype=F64)
    for given_x1 in (None, x.flip(0)) if kind != "deterministic" else (None,):
        score = p.posterior(bridge, t, x, given_x1)[1]
        for axis in range(2):
            e = h * torch.eye(2, dtype=F64)[axis]
            up, down = (p.posterior(bridge, t, x + s * e, given_x1)[0] for s in (1, -1))
            torch.testing.assert_close((up - down) / (2 * h), score[:, axis], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_tweedie(kind):
    """The gradient in x_t of log p(x_t, x1) is (a E[x0 | x_t, x1] + b x1 - x_t) / c^2."""
    p, bridge, t = pair(kind), BRIDGES[0], 0.4
    a, b, c = (float(v) for v in bridge.coefficients(torch.tensor(t, dtype=F64)))
    x0, x1 = p.sample(50, torch.Generator().manual_seed(0))
    xt = bridge.q_sample(t, x0, x1)
    _, score, x0_hat = p.posterior(bridge, t, xt, x1)
    want = (a * x0_hat + b * x1 - xt) / c**2
    torch.testing.assert_close(score[:, :2], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_ends_are_exact(kind):
    p, bridge = pair(kind), BRIDGES[1]
    x0, x1 = p.sample(200, torch.Generator().manual_seed(0))
    torch.testing.assert_close(p.posterior(bridge, 0.0, x0)[2], x0, rtol=0, atol=1e-7)
    torch.testing.assert_close(p.posterior(bridge, 0.0, x0, x1)[2], x0, rtol=0, atol=1e-7)
    late = [p.posterior(bridge, 1.0, x1, end)[2] for end in (None, x1)]
    torch.testing.assert_close(*late, rtol=0, atol=1e-10)  # x_t = x1: seen twice


@pytest.mark.parametrize("given_x1", [False, True])
def test_an_invertible_deterministic_degradation_leaves_nothing_unknown(given_x1):
    h = torch.tensor([[0.6, 0.3], [-0.2, 0.9]], dtype=F64)
    p, bridge = MixturePair.degraded(*prior(), h), BRIDGES[0]
    x0, x1 = p.sample(100, torch.Generator().manual_seed(0))
    t = 0.5 if given_x1 else 1.0
    xt = bridge.q_sample(t, x0, x1)
    x0_hat = p.posterior(bridge, t, xt, x1 if given_x1 else None)[2]
    torch.testing.assert_close(x0_hat, x0, rtol=0, atol=1e-7)


def test_point_masses_at_the_clean_end():
    """Covariances of zero: at t = 0 the state itself says which point it is."""
    points = torch.tensor([[-1.0], [0.5], [2.0]], dtype=F64)
    p = MixturePair.degraded(torch.ones(3) / 3, points, torch.zeros(3, 1, 1), torch.eye(1), 1.0)
    for bridge in BRIDGES:
        x0_hat = p.posterior(bridge, 0.0, points)[2]
        torch.testing.assert_close(x0_hat, points, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"one shape \(B, 1\), got \[\(4, 2\), None\]$"):
        p.posterior(BRIDGES[0], 0.5, torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"got \[\(4, 1\), \(3, 1\)\]$"):
        p.posterior(BRIDGES[0], 0.5, torch.zeros(4, 1), torch.zeros(3, 1))


def test_the_score_given_x1_has_derivatives():
    """In time, too, of which both of its halves depend."""
    t = torch.tensor([0.2, 0.7], dtype=F64, requires_grad=True)
    x = torch.zeros(2, 2, dtype=F64)

    def score(t):
        return pair("noisy").posterior(BRIDGES[0], t, x, x + 1)[1]

    assert torch.autograd.gradcheck(score, t)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_moments_of_the_law(kind):
    """Mean and second moments of 10^5 draws within 5 standard errors (2 x 14 numbers a kind)."""
    p, n = pair(kind), 100_000
    z = torch.cat(p.sample(n, torch.Generator().manual_seed(5)), 1)
    outer = p.covs + p.means[:, :, None] * p.means[:, None]
    want = torch.cat([p.weights @ p.means, (p.weights[:, None, None] * outer).sum(0).flatten()])
    draws = torch.cat([z, (z[:, :, None] * z[:, None]).flatten(1)], 1)
    error = (draws.mean(0) - want) / (draws.std(0) / n**0.5)
    assert error.abs().max() < 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given_x1", [False, True])
def test_denoiser_is_the_best_predictor(kind, given_x1):
    """x0 - E[x0 | .] is uncorrelated with functions of what is given: within 5 standard errors."""
    p, bridge, n = pair(kind), BRIDGES[0], 20_000
    g = torch.Generator().manual_seed(11)
    x0, x1 = p.sample(n, g)
    t = torch.rand(n, generator=g, dtype=F64)
    xt = bridge.q_sample(t, x0, x1, torch.randn(n, 2, generator=g, dtype=F64))
    error = x0 - p.denoiser(bridge, x1 if given_x1 else None)(xt, t)
    tests = [torch.ones(n, 2, dtype=F64), xt, xt.sin(), xt.flip(1).cos(), t[:, None] * xt]
    for f in tests + ([x1, x1.sin()] if given_x1 else []):
        product = error * f
        assert (product.mean(0) / (product.std(0) / n**0.5 + 1e-12)).abs().max() < 5


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    t=st.floats(0, 1),
    k=st.integers(1, 4),
    dim=st.integers(1, 3),
    noise=st.sampled_from([0.0, 0.1, 2.0]),
)
def test_properties(seed, t, k, dim, noise):
    """Shapes, finiteness, one time or many, and shifting everything by a vector."""
    h = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)
    w, m, c = prior(dim, k, seed)
    p, bridge = MixturePair.degraded(w, m, c, h, noise), BRIDGES[seed % 3]
    x0, x1 = p.sample(6, torch.Generator().manual_seed(seed))
    xt = bridge.q_sample(t, x0, x1, torch.zeros_like(x0))
    parts = p.posterior(bridge, t, xt)
    assert [tuple(v.shape) for v in parts] == [(6,), (6, dim), (6, dim)]
    assert all(bool(v.isfinite().all()) for v in parts)
    mixed = torch.full((6,), t, dtype=F64)
    mixed[-1] = 0.5  # not one time for all
    many = p.posterior(bridge, mixed, xt)
    torch.testing.assert_close(many[2][:-1], parts[2][:-1], rtol=1e-9, atol=1e-9)
    a, b, _ = (float(v) for v in bridge.coefficients(torch.tensor(t, dtype=F64)))
    u = torch.arange(1, dim + 1, dtype=F64)
    shifted = MixturePair(p.weights, p.means + torch.cat([u, u]), p.covs)
    moved = shifted.posterior(bridge, t, xt + (a + b) * u)[2]
    torch.testing.assert_close(moved - u, parts[2], rtol=1e-6, atol=1e-6)


def test_float32_states_keep_their_dtype():
    p, xt = pair("noisy"), torch.randn(5, 2)
    assert p.denoiser(BRIDGES[0])(xt, torch.full((5,), 0.3)).dtype == torch.float32


def wasserstein(x, y):
    return float((x.sort().values - y.sort().values).abs().mean())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noisy", pytest.param("independent", marks=pytest.mark.slow)])
def test_algorithm_2_recovers_the_mixture(kind):
    """With the exact denoiser the distance to p_A falls with N, and at N = 200 nothing is left.

    The last statement is a two-sample Kolmogorov-Smirnov test at level 1e-3 on 20,000 samples.
    """
    from scipy.stats import ks_2samp

    p, bridge, n = pair(kind, 1), BRIDGES[0], 20_000
    _, x1 = p.sample(n, torch.Generator().manual_seed(1))
    x0, _ = p.sample(n, torch.Generator().manual_seed(2))
    found = {}
    for nfe in (2, 4, 8, 16, 32, 200):
        g = torch.Generator().manual_seed(3)
        found[nfe] = sample(p.denoiser(bridge), bridge, x1, nfe, generator=g).x[:, 0]
    distance = [wasserstein(found[nfe], x0[:, 0]) for nfe in (2, 4, 8, 16, 32)]
    assert distance == sorted(distance, reverse=True)
    assert ks_2samp(found[200].numpy(), x0[:, 0].numpy()).pvalue > 1e-3
    assert ks_2samp(found[2].numpy(), x0[:, 0].numpy()).pvalue < 1e-3  # the test can tell


def mixture(dim: int, k: int, seed: int) -> Mixture:
    g = torch.Generator().manual_seed(seed)
    w, s = torch.rand(2, k, generator=g, dtype=F64) + 0.1
    return Mixture(w, torch.randn(k, dim, generator=g, dtype=F64), s / 3)


def schrodinger_bridge(dim: int) -> MixtureBridge:
    """Over a table that is not symmetric, so that t and 1 - t cannot be confused."""
    table = Schedule.from_betas(torch.tensor([0.1, 0.5, 0.2, 0.05], dtype=F64))
    return MixtureBridge(Bridge(table), mixture(dim, 2, 6), mixture(dim, 3, 7))


@pytest.mark.parametrize("dim", [1, 2])
def test_a_mixture_and_its_heat_flow_against_torch(dim):
    p, v = mixture(dim, 3, 6), torch.tensor([0.0, 0.4], dtype=F64)
    x = torch.randn(2, dim, generator=torch.Generator().manual_seed(0), dtype=F64)
    for i in range(2):  # one variance for both points, and one a point
        covs = (p.variances + v[i])[..., None] * torch.eye(dim, dtype=F64)
        want = log_density(p.weights, p.means, covs, x)
        torch.testing.assert_close(p.heat(v[i]).log(x), want, rtol=0, atol=1e-12)
        torch.testing.assert_close(p.heat(v).log(x)[i], want[i], rtol=0, atol=1e-12)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(p.log(x).sum(), x)
    torch.testing.assert_close(p.score(x), gradient, rtol=0, atol=1e-12)


def test_a_mixture_given_as_lists_is_exact_in_double_precision():
    p = Mixture([1, 3], [-1.1, 2], [0.3, 1])
    phi = torch.special.ndtr(torch.tensor([1.1 / 0.3**0.5, -2], dtype=F64))
    assert abs(float(p.cdf([0.0])[0] - (phi[0] + 3 * phi[1]) / 4)) < 1e-14
    want = math.exp(-(1.1**2) / 0.6) / math.sqrt(0.6 * math.pi) + 3 * math.exp(-2) / math.sqrt(2 * math.pi)
    assert abs(float(p.log(torch.zeros(1, 1, dtype=F64))) - math.log(want)) < 1e-14


@pytest.mark.parametrize("dim", [1, 2])
def test_draws_of_a_mixture_have_its_distribution_function(dim):
    """Kolmogorov-Smirnov at level 1e-3 for each coordinate; the wrong coordinate is noticed."""
    from scipy.stats import kstest

    p = mixture(dim, 3, 6)
    x = p.sample(20_000, torch.Generator().manual_seed(1)).numpy()
    for i in range(dim):
        found = [kstest(x[:, i], lambda y, j=j: p.cdf(y, j).numpy()).pvalue for j in range(dim)]
        assert found[i] > 1e-3
        assert max([0.0, *found[:i], *found[i + 1 :]]) < 1e-3


@pytest.mark.parametrize("dim", [1, 2])
def test_the_pairs_and_the_potentials_are_one_bridge(dim):
    """pi = Psi_hat(., 0) K Psi(., 1), and the law of X_t made from pi is Psi Psi_hat at every t."""
    p = schrodinger_bridge(dim)
    x0, x1 = torch.randn(2, 40, dim, generator=torch.Generator().manual_seed(2), dtype=F64)
    kernel = Mixture([1], [[0.0] * dim], [p.bridge.schedule.total]).log(x1 - x0)
    want = p.psi_hat(0).log(x0) + kernel + p.psi(1).log(x1)
    torch.testing.assert_close(log_density(*p.pair, torch.cat([x0, x1], 1)), want, rtol=0, atol=1e-10)
    for t in (0.0, 0.15, 0.5, 0.8, 1.0):
        want = p.psi(t).log(x0) + p.psi_hat(t).log(x0)
        torch.testing.assert_close(p.q(t).log(x0), want, rtol=0, atol=1e-10)
        torch.testing.assert_close(p.pair.posterior(p.bridge, t, x0)[0], want, rtol=0, atol=1e-8)


def test_the_grid_finds_the_mixtures_potentials():
    """Sinkhorn is given p_A and p_B alone."""
    p, x = schrodinger_bridge(1), torch.linspace(-7, 7, 701, dtype=F64)
    ends = [p.q(t).log(x[:, None]).exp() for t in (0.0, 1.0)]
    system = SchrodingerSystem(p.bridge.schedule, [x], *ends, tol=1e-10)
    inner = slice(250, 451)
    for t in (0.1, 0.6, 0.9):
        for found, exact in ((system.log_Psi(t), p.psi(t)), (system.log_Psi_hat(t), p.psi_hat(t))):
            slip = (found - exact.log(x[:, None]))[inner]
            assert float((slip - slip.mean()).abs().max()) < 1e-5


@pytest.mark.parametrize("backward", [False, True])
def test_simulated_paths_have_the_bridges_law(backward):
    """At level 1e-3 on 20,000 paths: both ends, the middle, and the correlation of the ends."""
    from scipy.stats import kstest

    p, g = schrodinger_bridge(1), torch.Generator().manual_seed(3)
    times = torch.linspace(0, 1, 61, dtype=F64)
    times = times.flip(0) if backward else times
    paths = dict(p.simulate(p.q(float(times[0])).sample(20_000, g), times, g))
    for t in (0.5, float(times[-1])):
        assert kstest(paths[t][:, 0].numpy(), lambda y, t=t: p.q(t).cdf(y).numpy()).pvalue > 1e-3
    ends = torch.stack([paths[0.0][:, 0], paths[1.0][:, 0]])
    outer = p.pair.covs + p.pair.means[:, :, None] * p.pair.means[:, None]
    mean = p.pair.weights @ p.pair.means
    cov = (p.pair.weights[:, None, None] * outer).sum(0) - torch.outer(mean, mean)
    want = cov[0, 1] / (cov[0, 0] * cov[1, 1]).sqrt()
    assert abs(float(torch.corrcoef(ends)[0, 1] - want)) < 3.3 / 20_000**0.5


def test_simulated_paths_are_of_second_order():
    """Error of the variance at t = 1, normal potentials, 10 and 20 steps; Euler's method has order 1."""
    bridge = Bridge(Schedule.constant(1.0))
    p, error = MixtureBridge(bridge, Mixture([1], [0], [0.5]), Mixture([1], [0.5], [0.1])), []
    for steps in (10, 20):
        g, times = torch.Generator().manual_seed(0), torch.linspace(0, 1, steps + 1, dtype=F64)
        *_, (_, x) = p.simulate(p.q(0.0).sample(100_000, g), times, g)
        error.append(abs(float(x.var() / p.q(1.0).variances) - 1))
    assert math.log2(error[0] / error[1]) > 1.6
