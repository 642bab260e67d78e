"""The Schrödinger system against closed forms, dense log-sum-exp and a second library."""

import math
from itertools import pairwise

import pytest
import torch

from i2sb_lib import schrodinger
from i2sb_lib.schedule import Schedule
from i2sb_lib.schrodinger import SchrodingerSystem, heat

SCHEDULE = Schedule.symmetric()
V = SCHEDULE.total


def line(n: int = 301, edge: float = 3.0) -> torch.Tensor:
    return torch.linspace(-edge, edge, n, dtype=torch.float64)


def bumps(x: torch.Tensor, *means: float, std: float = 0.2) -> torch.Tensor:
    return torch.stack([torch.exp(-((x - m) ** 2) / (2 * std**2)) for m in means]).sum(0)


@pytest.fixture(scope="module")
def system() -> SchrodingerSystem:
    x = line()
    return SchrodingerSystem(SCHEDULE, [x], bumps(x, -1.0, 0.2), bumps(x, -0.4, 0.8))


@pytest.mark.parametrize(
    ("n", "edge", "variance"), [(81, 3, 1e-3), (81, 3, 0.02), (81, 3, 0.5), (11, 0.5, 0.5)]
)
def test_heat_is_the_dense_log_sum_exp_with_a_kernel_of_unit_mass(
    n: int, edge: float, variance: float
) -> None:
    x = line(n, edge)  # the last one is narrower than the kernel
    f = torch.linspace(-1, 1, n, dtype=torch.float64).sin() * 30
    log_k = -((x[:, None] - x) ** 2) / (2 * variance)
    lattice = torch.arange(-4000, 4001, dtype=torch.float64) * float(x[1] - x[0])
    log_k = log_k - torch.logsumexp(-(lattice**2) / (2 * variance), 0)
    expected = torch.logsumexp(log_k + f, 1)
    assert torch.allclose(heat(f, [float(x[1] - x[0])], variance), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variance", [-1.0, math.nan])
def test_heat_does_not_run_backwards(variance: float) -> None:
    with pytest.raises(ValueError, match=r"domain|nonnegative|NaN"):
        heat(torch.zeros(5), [0.1], variance)


def test_heat_survives_where_a_matrix_product_underflows() -> None:
    x = line(81)
    f = -500 * (x + 3) ** 2  # falls to -18,000: most of exp(f) is 0 in float64
    log_k = -((x[:, None] - x) ** 2) / (2 * 0.01)
    expected = torch.logsumexp(log_k - torch.logsumexp(-(x**2) / 0.02, 0) + f, 1)
    assert torch.allclose(heat(f, [float(x[1] - x[0])], 0.01), expected, rtol=1e-12, atol=0)
    empty = heat(torch.full((81,), -math.inf, dtype=torch.float64), [0.075], 0.01)
    assert bool((empty == -math.inf).all())


def test_heat_keeps_a_field_at_variance_zero_and_acts_on_axes_separately() -> None:
    f, g = bumps(line(41), 0.3).log(), bumps(line(31), -0.5).log()
    plane = f[:, None] + g
    assert torch.equal(heat(plane, [0.15, 0.2], 0.0), plane)
    expected = heat(f, [0.15], 0.1)[:, None] + heat(g, [0.2], 0.1)
    assert torch.allclose(heat(plane, [0.15, 0.2], 0.1), expected, rtol=0, atol=1e-12)


def test_boundary_products(system: SchrodingerSystem) -> None:
    h = system.spacing[0]
    for t, p in ((0.0, system.p_a), (1.0, system.p_b)):
        q = (system.log_Psi(t) + system.log_Psi_hat(t)).exp()
        assert float((q - p).abs().sum()) * h < 1e-9
        assert float(p.sum()) * h == pytest.approx(1, abs=1e-12)
    assert float(system.log_Psi_hat(0.37).exp().sum()) * h == pytest.approx(1, abs=1e-6)
    assert system.errors[0] > system.errors[len(system.errors) // 2] > system.errors[-1]


def test_errors_are_those_of_the_product_at_the_clean_end() -> None:
    x = line(61)
    got = SchrodingerSystem(SCHEDULE, [x], bumps(x, -1.0, 0.2), bumps(x, 0.5), tol=1e-2)
    gap = (got.log_Psi(0.0) + got.log_Psi_hat(0.0)).exp() - got.p_a
    assert got.errors[-1] == pytest.approx(float(gap.abs().sum()) * got.spacing[0], rel=1e-9)
    assert got.errors[-2] > 1e-2 > got.errors[-1] > 1e-6


@pytest.mark.parametrize("schedule", [SCHEDULE, Schedule.constant(0.5)])
def test_gaussian_closed_form(schedule: Schedule) -> None:
    x, v, m0, m1, a, b = line(401, 4.0), schedule.total, -0.7, 0.8, 0.3**2, 0.45**2
    got = SchrodingerSystem(schedule, [x], bumps(x, m0, std=0.3), bumps(x, m1, std=0.45))
    cross = math.sqrt(a * b + v * v / 4) - v / 2
    for t in (0.0, 0.25, 0.5, 0.9, 1.0):
        time = torch.tensor(t, dtype=torch.float64)
        s, r = float(schedule.var_fwd(time)), float(schedule.var_bwd(time))
        q = (got.log_Psi(t) + got.log_Psi_hat(t)).exp() * got.spacing[0]
        mean = float(q @ x)
        assert mean == pytest.approx((r * m0 + s * m1) / v, abs=1e-8)
        expected = (r * r * a + s * s * b + 2 * r * s * cross) / v**2 + r * s / v
        assert float(q @ (x - mean) ** 2) == pytest.approx(expected, abs=1e-8)


def test_drifts_of_a_gaussian_bridge_are_linear_and_interpolated_exactly() -> None:
    x = line(401, 4.0)
    a, b = 0.3**2, 0.45**2
    got = SchrodingerSystem(SCHEDULE, [x], bumps(x, -0.7, std=0.3), bumps(x, 0.8, std=0.45))
    cross = math.sqrt(a * b + V * V / 4) - V / 2
    points = torch.tensor([[-0.713], [0.0], [0.5123]], dtype=torch.float64)
    beta = float(SCHEDULE.beta(torch.tensor(0.0, dtype=torch.float64)))
    # E[X_1 | X_0 = x] - x = V grad log Psi(x, 0), and its mirror image at t = 1
    forward = beta / V * (0.8 + cross / a * (points + 0.7) - points)
    assert torch.allclose(got.drift(0.0, points), forward, rtol=0, atol=1e-6)
    backward = -beta / V * (-0.7 + cross / b * (points - 0.8) - points)
    assert torch.allclose(got.drift(1.0, points, backward=True), backward, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_two_dimensions_factorise_for_product_densities(system: SchrodingerSystem) -> None:
    x, y = line(), line(121, 2.0)
    other = SchrodingerSystem(SCHEDULE, [y], bumps(y, 0.3), bumps(y, -0.2, 0.4))
    plane = SchrodingerSystem(
        SCHEDULE,
        [x, y],
        system.p_a[:, None] * other.p_a,
        system.p_b[:, None] * other.p_b,
    )
    for t in (0.2, 0.7):
        q = plane.log_Psi(t) + plane.log_Psi_hat(t)
        parts = [s.log_Psi(t) + s.log_Psi_hat(t) for s in (system, other)]
        expected = (parts[0][:, None] + parts[1]).exp()
        assert torch.allclose(q.exp(), expected, rtol=0, atol=1e-7)
    points = torch.tensor([[0.11, -0.43], [-0.9, 0.31], [3.4, 2.5]], dtype=torch.float64)
    got = plane.drift(0.4, points)
    for d, s in enumerate((system, other)):
        inside = points[:2, d : d + 1]
        assert torch.allclose(got[:2, d : d + 1], s.drift(0.4, inside), rtol=0, atol=1e-5)
    assert bool(got.isfinite().all())


@pytest.mark.slow
def test_the_coupling_is_pots() -> None:
    ot = pytest.importorskip("ot")
    x = line(121, 2.0)
    p, q = bumps(x, -0.8, 0.3), bumps(x, -0.2, 0.7)
    got = SchrodingerSystem(SCHEDULE, [x], p, q)
    cost = (x[:, None] - x) ** 2
    log_pi = got.log_Psi_hat(0.0)[:, None] - cost / (2 * V) + got.log_Psi(1.0)
    pi = log_pi.exp() * got.spacing[0] ** 2 / math.sqrt(2 * math.pi * V)
    a, b = (p / p.sum()).numpy(), (q / q.sum()).numpy()
    plan = ot.sinkhorn(a, b, cost.numpy(), 2 * V, method="sinkhorn_log", stopThr=1e-11, warn=False)
    assert abs(pi.numpy() - plan).sum() < 1e-8


def test_simulation_meets_the_other_end_in_both_directions(system: SchrodingerSystem) -> None:
    generator = torch.Generator().manual_seed(0)
    times = 1 - (1 - torch.linspace(0, 1, 81, dtype=torch.float64)) ** 2
    x = system.axes[0]
    for p, q, grid in (
        (system.p_a, system.p_b, times),
        (system.p_b, system.p_a, 1 - times),
    ):
        path = list(system.simulate(system.sample(p, 20_000, generator), grid, generator))
        assert [t for t, _ in path] == grid.tolist()
        end = path[-1][1][:, 0]
        mean = float(q @ x) * system.spacing[0]
        std = math.sqrt(float(q @ (x - mean) ** 2) * system.spacing[0])
        assert float(end.mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(20_000) + 2e-3)
        assert float(end.std()) == pytest.approx(std, rel=0.02)


def test_samples_follow_the_density_they_are_drawn_from() -> None:
    x, y = line(61), line(41, 2.0)
    p = bumps(x, -1.0, std=0.4)[:, None] * bumps(y, 0.5, std=0.3)
    any_system = SchrodingerSystem(SCHEDULE, [x, y], p, p)
    points = any_system.sample(any_system.p_a, 50_000, torch.Generator().manual_seed(1))
    assert points.shape == (50_000, 2)
    assert points.mean(0).tolist() == pytest.approx([-1.0, 0.5], abs=0.01)
    expected = [math.sqrt(0.4**2 + 0.1**2 / 6), math.sqrt(0.3**2 + 0.1**2 / 6)]
    assert points.std(0).tolist() == pytest.approx(expected, rel=0.02)


def test_samples_are_spread_over_the_two_cells_beside_a_node_as_a_tent() -> None:
    """The interpolant of a single spike is a tent: the jitter's law, axis by axis."""
    stats = pytest.importorskip("scipy.stats")
    x, y = line(7), line(5, 1.0)
    p = torch.zeros(7, 5)
    p[2, 3] = 1
    points = SchrodingerSystem(SCHEDULE, [x, y], torch.ones(7, 5), torch.ones(7, 5)).sample(
        p, 20_000, torch.Generator().manual_seed(2)
    )
    u = (points - torch.stack([x[2], y[3]])) / torch.tensor([1.0, 0.5])
    for d in (0, 1):
        assert stats.kstest(u[:, d].numpy(), stats.triang(0.5, -1, 2).cdf).pvalue > 0.01
    assert abs(float(torch.corrcoef(u.T)[0, 1])) < 2.58 / math.sqrt(20_000)


def test_drift_off_the_grid_continues_the_last_cell_s_linear_interpolant(system: SchrodingerSystem) -> None:
    x, h, beta = system.axes[0], system.spacing[0], float(SCHEDULE.beta(0.4))
    for backward in (False, True):
        f = system.drift(0.4, backward=backward)[:, 0]
        log_f = -system.log_Psi_hat(0.4) if backward else system.log_Psi(0.4)
        for k in (1, -1):  # at the border itself the difference is one-sided and of second order
            y = log_f if k == 1 else log_f.flip(0)
            slope = k * (-3 * y[0] + 4 * y[1] - y[2]) / (2 * h)
            assert float(f[0 if k == 1 else -1]) == pytest.approx(beta * float(slope), rel=1e-9)
        for far in (0.3, 2.5):
            got = system.drift(0.4, torch.stack([x[:1] - far, x[-1:] + far]), backward=backward)[:, 0]
            expected = torch.stack([f[0] - far * (f[1] - f[0]) / h, f[-1] + far * (f[-1] - f[-2]) / h])
            assert torch.allclose(got, expected, rtol=1e-9, atol=0)


def test_drift_in_the_plane_is_bilinear_on_the_grid_and_off_it() -> None:
    x, y = line(41), line(31, 2.0)
    p, q = (bumps(x, a)[:, None] * bumps(y, b) + bumps(x, b)[:, None] for a, b in ((-0.8, 0.5), (0.3, -0.2)))
    got = SchrodingerSystem(SCHEDULE, [x, y], p, q, tol=1e-8)
    field = got.drift(0.3)
    for u, v in ((12.25, 7.6), (-1.5, 29.8), (42.0, 31.75), (0.5, -0.5)):  # in cells; three are off the grid
        i, j = min(max(int(u), 0), 39), min(max(int(v), 0), 29)
        point = torch.tensor(
            [[float(x[0]) + u * got.spacing[0], float(y[0]) + v * got.spacing[1]]], dtype=torch.float64
        )
        c = field[i : i + 2, j : j + 2]
        low, high = c[0] + (u - i) * (c[1] - c[0])  # along x, at y_j and at y_{j+1}
        expected = low + (v - j) * (high - low)
        assert torch.allclose(got.drift(0.3, point)[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("times", [[0.0, 0.4, 1.0], [1.0, 0.7, 0.0]])
def test_a_step_of_the_simulation_has_the_variance_of_its_interval(
    system: SchrodingerSystem, times: list[float]
) -> None:
    """beta(s) |t - s| would miss the variance of the first step by about a fifth."""
    start, backward = torch.linspace(-1, 1, 64, dtype=torch.float64)[:, None], times[1] < times[0]
    path = list(system.simulate(start, torch.tensor(times), torch.Generator().manual_seed(3)))
    again = torch.Generator().manual_seed(3)
    assert torch.equal(path[0][1], start)
    for (s, xs), (t, xt) in pairwise(path):
        noise = torch.randn(64, 1, generator=again, dtype=torch.float64)
        var = abs(float(SCHEDULE.var_fwd(t)) - float(SCHEDULE.var_fwd(s)))
        expected = xs + (t - s) * system.drift(s, xs, backward=backward) + math.sqrt(var) * noise
        assert torch.allclose(xt, expected, rtol=0, atol=1e-12)


def test_a_tolerance_that_is_not_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    p, calls = line(3) + 4, []
    monkeypatch.setattr(schrodinger, "heat", lambda log_f, *_: calls.append(1) or log_f)  # fast, of no use
    with pytest.raises(ValueError, match=r"no error below -1 in 10,000 iterations: raise tol or beta"):
        SchrodingerSystem(SCHEDULE, [line(3)], p, p, tol=-1)
    assert len(calls) == 20_000


@pytest.mark.slow
@pytest.mark.parametrize("v", [0.05, 0.01])
def test_mixing_finds_the_same_system_in_several_times_fewer_iterations(v: float) -> None:
    x, schedule = line(201), Schedule.constant(v)
    box = ((x.abs() > 0.5) & (x.abs() < 1)).double()  # with zeros
    for p, q in ((bumps(x, -1.0, 0.2), bumps(x, -0.4, 0.8)), (box, bumps(x, 0.0, 0.7))):
        own, mixed = (SchrodingerSystem(schedule, [x], p, q, mixing=m) for m in (0, 6))
        assert len(mixed.errors) < len(own.errors) / 3
        assert mixed.errors[-1] <= 1e-10
        for t in (0.0, 0.5, 1.0):
            gap = (mixed.density(t) - own.density(t)).abs().sum() * own.spacing[0]
            assert float(gap) < 5e-8


def test_a_mixture_that_is_worse_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x, mixed = line(61), schrodinger._mixed

    def far(kept: list, weight: torch.Tensor) -> torch.Tensor:
        return mixed(kept, weight) if len(kept) == 1 else kept[-1][0] + 30 * x.sin()

    ends = bumps(x, -1.0, 0.2), bumps(x, 0.5)
    plain = SchrodingerSystem(SCHEDULE, [x], *ends, tol=1e-8).errors
    monkeypatch.setattr(schrodinger, "_mixed", far)
    errors = SchrodingerSystem(SCHEDULE, [x], *ends, tol=1e-8, mixing=3).errors
    rises = [k for k, (a, b) in enumerate(pairwise(errors)) if b > a]
    assert len(rises) > 3
    kept = [e for k, e in enumerate(errors) if k - 1 not in rises]  # what is left is Sinkhorn's own iteration
    assert kept == pytest.approx(plain, rel=1e-6)


def test_zero_mass_is_allowed() -> None:
    x = line(121)
    box = ((x.abs() > 0.5) & (x.abs() < 1)).double()
    got = SchrodingerSystem(SCHEDULE, [x], box, bumps(x, 0.0))
    assert torch.allclose((got.log_Psi(0.0) + got.log_Psi_hat(0.0)).exp(), got.p_a, atol=1e-8)
    assert bool(got.drift(0.5).isfinite().all())


@pytest.mark.parametrize(
    ("axes", "p", "message"),
    [
        ([], torch.ones(5), "1 or 2 uniform axes"),
        ([line(5)] * 3, torch.ones(5, 5, 5), "1 or 2 uniform axes"),
        ([torch.tensor([0.0, 1.0, 3.0])], torch.ones(3), "1 or 2 uniform axes"),
        ([line(5).flip(0)], torch.ones(5), "1 or 2 uniform axes"),
        ([torch.tensor([0.0, 1.0, 2.01])], torch.ones(3), "1 or 2 uniform axes"),
        ([line(2)], torch.ones(2), "1 or 2 uniform axes"),
        (line(5), torch.ones(5), "a list of 1 or 2 uniform axes"),
        ([torch.ones(3, 3)], torch.ones(9), "1 or 2 uniform axes"),
        ([line(5)], torch.ones(4), r"of shape \(5,\), got \(4,\)"),
        ([line(5)], -torch.ones(5), "at least 0, .* got -1 as the least and -5 as the sum"),
        ([line(5)], torch.zeros(5), "not all 0 and finite, got 0 as the least and 0 as the sum"),
        ([line(5)], torch.full((5,), math.nan), "got nan as the least"),
        ([line(5)], torch.full((5,), math.inf), "got inf as the least and inf as the sum"),
    ],
)
def test_bad_input_is_one_clear_error(axes: list, p: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SchrodingerSystem(SCHEDULE, axes, p, p)


@pytest.mark.parametrize("mixing", [-1, 1.5])
def test_bad_mixing_is_one_clear_error(mixing: float) -> None:
    with pytest.raises(ValueError, match=f"mixing as a whole number of at least 0, got {mixing}"):
        SchrodingerSystem(SCHEDULE, [line(5)], torch.ones(5), torch.ones(5), mixing=mixing)  # type: ignore[arg-type]


def test_points_and_densities_of_another_grid_are_refused(system: SchrodingerSystem) -> None:
    n = len(system.p_a)
    for points in (torch.zeros(7), torch.zeros(7, 2)):
        with pytest.raises(ValueError, match=r"expected points \(N, 1\), got \(7"):
            system.drift(0.5, points)
    with pytest.raises(ValueError, match=rf"densities of shape \({n},\), got \(10,\)"):
        system.sample(system.p_a[:10], 5)
    with pytest.raises(ValueError, match="n >= 1 points, got 0"):
        system.sample(system.p_a, 0)
    for p in (0 * system.p_a, -system.p_a, math.nan * system.p_a, system.p_a / 0):
        with pytest.raises(ValueError, match="densities of at least 0, not all 0 and finite, got"):
            system.sample(p, 5)
    (_, first), (_, last) = system.simulate(torch.zeros(7, 1), [1.0, 0.9])  # type: ignore[arg-type]
    assert first.shape == last.shape
    assert first.dtype == last.dtype == torch.float64


def test_densities_and_points_may_be_arrays_of_any_precision(system: SchrodingerSystem) -> None:
    x = torch.linspace(-1, 1, 5)[:, None]
    for points in (x.double(), x.double().numpy(), x.tolist()):
        assert torch.equal(system.drift(0.5, points), system.drift(0.5, x))  # type: ignore[arg-type]
        path = [list(system.simulate(p, [0.0, 0.5], torch.Generator().manual_seed(0))) for p in (points, x)]  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*path, strict=True))
    for p in (system.p_a.numpy(), system.p_a.tolist()):
        drawn = [system.sample(q, 5, torch.Generator().manual_seed(0)) for q in (p, system.p_a)]
        assert torch.equal(*drawn)
    p = torch.tensor([0.0, 1.0, 2.0, 1.0, 0.0])
    found = [SchrodingerSystem(SCHEDULE, [line(5)], q, q).p_a for q in (p, p.tolist(), p.int())]  # type: ignore[arg-type]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_density_is_the_marginals_at_both_ends_and_has_unit_mass(system: SchrodingerSystem) -> None:
    cell = system.spacing[0]
    for t, p in ((0.0, system.p_a), (1.0, system.p_b)):
        assert float((system.density(t) - p).abs().sum()) * cell < 1e-9
    assert abs(float(system.density(0.4).sum()) * cell - 1) < 1e-9
