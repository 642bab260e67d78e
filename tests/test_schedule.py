"""Variances against quadrature, their exact ends, and the published tables."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2sb_lib.bridge import Bridge
from i2sb_lib.samplers import sample
from i2sb_lib.schedule import Schedule, check_times, symmetric_betas

F64 = torch.float64
UNEVEN = torch.tensor([0.03, 0.2, 0.0, 0.01, 0.4, 0.07, 0.11], dtype=F64)
SCHEDULES = {
    "symmetric": Schedule.symmetric(),
    "steep": Schedule.symmetric(beta_max=4.0, beta_min=0.0),
    "falling": Schedule.symmetric(beta_max=0.0, beta_min=2.0),
    "constant": Schedule.constant(0.7),
    "report": Schedule.from_betas(symmetric_betas(100)),
    "paper": Schedule.from_betas(symmetric_betas(1000)),
    "uneven": Schedule.from_betas(UNEVEN),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
unit = st.floats(0, 1)


def published_table(n, beta_max=0.3, linear_start=1e-4):
    """The published code's table, restated: a whole ramp, then its first half and that half mirrored."""
    ramp = np.linspace(linear_start**0.5, (beta_max / n) ** 0.5, n) ** 2
    return np.concatenate([ramp[: n // 2], np.flip(ramp[: n // 2])])


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("shape", [(), (37,)])
def test_ends_are_exact(schedule, dtype, shape):
    zero, one = torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype)
    total = torch.full(shape, schedule.total, dtype=dtype)
    assert torch.equal(schedule.var_fwd(zero), zero)
    assert torch.equal(schedule.var_bwd(one), zero)
    assert torch.equal(schedule.var_fwd(one), total)
    assert torch.equal(schedule.var_bwd(zero), total)


@every_schedule
@pytest.mark.parametrize("t", [0.003, 0.21, 0.5, 0.77])
def test_variance_is_the_integral_of_beta(schedule, t):
    """By Gauss and Legendre on each piece, where beta is a polynomial of degree 2 at most."""
    knots = len(schedule.betas) if hasattr(schedule, "betas") else 2
    edges = np.array([u for u in np.arange(knots + 1) / knots if u < t] + [t])
    nodes, weights = np.polynomial.legendre.leggauss(4)
    half, middle = np.diff(edges)[:, None] / 2, (edges[:-1] + edges[1:])[:, None] / 2
    want = float((half * weights * schedule.beta(torch.tensor(middle + half * nodes)).numpy()).sum())
    assert float(schedule.var_fwd(t)) == pytest.approx(want, rel=1e-10, abs=1e-14)
    assert float(schedule.var_bwd(t)) == pytest.approx(schedule.total - want, rel=1e-10, abs=1e-13)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(list(SCHEDULES)), t=unit, u=unit)
def test_variance_gathers_and_never_falls(name, t, u):
    schedule, (s, t) = SCHEDULES[name], sorted((t, u))
    fwd_s, fwd_t = schedule.var_fwd(s), schedule.var_fwd(t)
    assert float(fwd_t - fwd_s) >= -1e-16
    assert float(fwd_t + schedule.var_bwd(t)) == pytest.approx(schedule.total, abs=1e-14)
    top = float(schedule.beta(torch.linspace(0, 1, 2001, dtype=F64)).max())
    assert float(fwd_t - fwd_s) <= top * (t - s) * (1 + 1e-9) + 1e-15  # hence continuous


@every_schedule
def test_no_jump_at_any_knot(schedule):
    n = len(schedule.betas) if hasattr(schedule, "betas") else 2
    knot, h = torch.arange(1, n, dtype=F64) / n, 1e-13
    for var in (schedule.var_fwd, schedule.var_bwd):
        torch.testing.assert_close(var(knot - h), var(knot + h), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["symmetric", "steep", "falling", "constant", "report"])
def test_symmetric_schedules_read_the_same_from_either_end(name):
    t, schedule = torch.rand(50, dtype=F64), SCHEDULES[name]
    torch.testing.assert_close(schedule.var_fwd(t), schedule.var_bwd(1 - t), rtol=0, atol=1e-15)
    torch.testing.assert_close(schedule.beta(t), schedule.beta(1 - t), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("n", "std"), [(100, "0.221"), (1000, "0.376"), (4000, "0.611")])
def test_published_tables(n, std):
    table = published_table(n)
    np.testing.assert_allclose(symmetric_betas(n).numpy(), table, rtol=1e-13)
    assert f"{table.sum() ** 0.5:.3f}" == std
    schedule, t = Schedule.from_betas(symmetric_betas(n)), torch.arange(1, n + 1, dtype=F64) / n
    np.testing.assert_allclose(schedule.var_fwd(t), np.cumsum(table), rtol=1e-12)
    want = np.flip(np.cumsum(np.flip(table)))  # var_bwd at the left end of each increment
    np.testing.assert_allclose(schedule.var_bwd(t - 1 / n), want, rtol=1e-11)


def test_the_continuous_schedule_is_the_paper_s_table_and_has_no_n():
    schedule, table = SCHEDULES["symmetric"], SCHEDULES["paper"]
    assert f"{schedule.total**0.5:.3f}" == "0.376"
    assert schedule.total == pytest.approx(table.total, rel=1e-3)
    t = torch.linspace(0, 1, 101, dtype=F64)
    torch.testing.assert_close(schedule.var_fwd(t), table.var_fwd(t), rtol=1e-3, atol=0)
    coarse, fine = schedule.grid(10), schedule.grid(1000)
    torch.testing.assert_close(schedule.var_fwd(fine)[::100], schedule.var_fwd(coarse), rtol=0, atol=1e-15)


def test_grid_runs_down_and_a_table_is_constant_between_its_knots():
    assert SCHEDULES["symmetric"].grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert SCHEDULES["symmetric"].grid(4, power=2).tolist() == [1.0, 0.5625, 0.25, 0.0625, 0.0]
    schedule = SCHEDULES["uneven"]
    middle = (torch.arange(7, dtype=F64) + 0.5) / 7
    torch.testing.assert_close(schedule.beta(middle), 7 * UNEVEN, rtol=1e-14, atol=0)
    assert float(schedule.beta(1.0)) == pytest.approx(7 * 0.11)


@every_schedule
def test_shape_and_dtype_follow_the_times(schedule):
    for f in (schedule.beta, schedule.var_fwd, schedule.var_bwd):
        assert f(torch.rand(2, 3)).shape == (2, 3)
        assert f(torch.rand(2, 3)).dtype == torch.float32
        assert f(torch.tensor(0.5, dtype=F64)).dtype == F64
        assert f(0.3).dtype == f(torch.tensor(1)).dtype == F64
        t = torch.rand(20, dtype=F64)
        torch.testing.assert_close(f(t).float(), f(t.float()), rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: symmetric_betas(7), "even n of at least 2, got n=7"),
        (lambda: symmetric_betas(0), "even n of at least 2, got n=0"),
        (lambda: symmetric_betas(10, beta_max=-0.3), "finite betas >= 0 .*got n=10, beta_max=-0.3"),
        (lambda: symmetric_betas(10, beta_max=float("nan")), "finite betas >= 0 .*beta_max=nan"),
        (lambda: symmetric_betas(10, linear_start=-1e-4), "finite betas >= 0 .*linear_start=-0.0001"),
        (lambda: Schedule.from_betas(torch.full((3,), 1e300, dtype=F64)), "a sum from 1e-18 to 1e18"),
        (lambda: Schedule.constant().beta(1 + 1e-9), r"\[0, 1\], got 1\.000000001 to"),
        (lambda: Schedule.symmetric(beta_max=-1), r"beta_min and beta_max >= 0.*beta_max=-1"),
        (lambda: Schedule.symmetric(beta_max=float("nan")), "beta_min and beta_max >= 0.*nan"),
        (lambda: Schedule.constant(0), "one from 1e-18 to 1e18"),
        (lambda: Schedule.from_betas(torch.ones(2, 2)), r"1-D table.*got shape \(2, 2\)"),
        (lambda: Schedule.from_betas(torch.tensor([0.1, -0.1, 1])), "non-negative betas"),
        (lambda: Schedule.from_betas(torch.zeros(3)), "a sum from 1e-18 to 1e18"),
        (lambda: Schedule.symmetric(beta_max=float("inf")), "one from 1e-18 to 1e18"),
        (lambda: Schedule.symmetric(beta_max=10**400), "one from 1e-18 to 1e18"),
        (lambda: Schedule.from_betas(torch.tensor([0.1, float("inf")])), "a sum from 1e-18 to 1e18"),
        (
            lambda: Schedule.from_betas(torch.tensor([0.0, 0.0, 1.0, 1.0])),
            "above 0 at both ends, got 0 and 1",
        ),
        (lambda: Schedule.from_betas(torch.tensor([1.0, 1.0, 0.0])), "above 0 at both ends, got 1 and 0"),
        (lambda: Schedule.constant(1e-320), "one from 1e-18 to 1e18"),
        (lambda: Schedule.constant(1e180), "one from 1e-18 to 1e18"),
        (lambda: Schedule.symmetric().grid(0), "whole number of steps, at least one, .*got n=0"),
        (lambda: Schedule.symmetric().grid(2.5), r"whole number of steps, .*got n=2\.5"),
        (lambda: Schedule.symmetric().grid(True), "whole number of steps, .*got n=True"),
        (lambda: Schedule.symmetric().grid(3, float("nan")), "power > 0, .*got n=3, power=nan"),
        (lambda: Schedule.symmetric().grid(2, power=0.0), "power > 0, .*got n=2, power=0.0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@every_schedule
@pytest.mark.parametrize("t", [-0.1, 1.5, -1e-9, 1 + 1e-9, float("nan")])
def test_times_outside_0_to_1_are_refused(schedule, t):
    for f in (schedule.beta, schedule.var_fwd, schedule.var_bwd):
        for times in (t, torch.tensor([0.5, t], dtype=F64)):
            with pytest.raises(ValueError, match=r"expected times in \[0, 1\], got "):
                f(times)
        assert f(torch.empty(0)).shape == (0,)


def test_times_on_another_device_are_taken_as_they_come():
    t = torch.full((3,), 2.0, device="meta")  # as on a GPU: to look at them would be to wait for it
    assert check_times(t, positive=True) is t
    assert SCHEDULES["symmetric"].var_fwd(t).shape == (3,)


def test_a_whole_number_may_be_written_as_a_float():
    assert torch.equal(symmetric_betas(1e2), symmetric_betas(100))


def test_the_two_betas_cannot_be_confused():
    with pytest.raises(TypeError, match="positional"):
        Schedule.symmetric(0.1, 0.3)
    assert Schedule.symmetric(beta_min=0.1, beta_max=0.3) == SCHEDULES["symmetric"]


@pytest.mark.parametrize("beta", [1e-18, 1e18])
def test_at_the_ends_of_what_is_taken_all_is_finite(beta):
    bridge, x = Bridge(Schedule.constant(beta)), torch.ones(2, 3)
    t = torch.tensor([0.25, 1.0])
    assert bridge.q_sample(t, x, x, x).isfinite().all()
    assert sample(lambda xt, t: xt, bridge, x, 4).x.isfinite().all()
