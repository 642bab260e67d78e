"""What a step sees depends on the seed and the step alone, and takes nobody else's random numbers."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from i2sb_lib.batches import Batches, create_degrade, seeded
from i2sb_lib.config import TrainConfig, stream
from i2sb_lib.degradations import create_degradation
from i2sb_lib.images import to_float

CONFIG = TrainConfig(batch_size=3, dropout=0.5)
CPU = torch.device("cpu")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches(**changes) -> Batches:
    images = torch.randint(0, 256, (20, 3, 16, 16), generator=generator(5))
    config = dataclasses.replace(CONFIG, **changes)
    return Batches(images.to(torch.uint8), create_degradation("noise"), config)


def test_every_image_is_visited_once_an_epoch_in_a_new_order():
    epochs = torch.cat([batches().indices(k) for k in range(20)]).reshape(3, 20)  # 20 is no multiple of 3
    assert all(sorted(epoch.tolist()) == list(range(20)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0][:3], batches(seed=1).indices(0))


def test_a_step_is_the_same_whatever_came_before_it():
    run, again = batches(), batches()
    run(3), run(40), torch.rand(1)
    assert all(torch.equal(a, b) for a, b in zip(run(11), again(11), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(run(11), run(12), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(run(11), batches(seed=1)(11), strict=True))


def test_times_are_spread_over_the_batch():
    assert (batches()(11)[2] * 3).ceil().tolist() == [3, 2, 1]  # one in each third of (0, 1]
    assert batches(process="regression")(11)[2].tolist() == [1, 1, 1]


def test_the_degradation_draws_anew_at_every_step():
    run, other = batches(), batches(seed=1)
    noise = [x1 - x0 for x0, x1, *_ in (run(11), run(12), other(11), batches()(11))]
    assert torch.equal(noise[0], noise[3])
    assert not any(torch.allclose(noise[0], z, atol=0.01) for z in noise[1:3])


def test_times_are_uniform_in_their_strata_and_never_below_a_thousandth():
    """One batch of 1,000: the last stratum alone would hold every time below 1 / 1000."""
    images = torch.zeros(1000, 3, 2, 2, dtype=torch.uint8)
    t = Batches(images, create_degradation("none"), dataclasses.replace(CONFIG, batch_size=1000))(7)[2]
    assert 1e-3 <= t.min() < t.max() <= 1
    within = ((1 - t.double()) / (1 - 1e-3) * 1000 - torch.arange(1000)).numpy()
    assert kstest(within, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(within[1:], within[:-1])[0, 1]) < 4 / 1000**0.5


def test_pictures_are_mirrored_half_of_the_time_and_degraded_as_they_are_seen():
    """Left for right, never upside down: within four standard errors of 300 pictures."""
    run, mirrored = batches(batch_size=30), 0
    run.degrade = lambda x0, generator: -x0
    for step in range(10):
        x0, x1, *_ = run(step)
        plain = to_float(run.images[run.indices(step)])
        same, mirror = ((x0 == y).flatten(1).all(1) for y in (plain, plain.flip(-1)))
        assert bool((same ^ mirror).all())
        assert torch.equal(x1, -x0)
        mirrored += int(mirror.sum())
    assert abs(mirrored / 300 - 0.5) < 4 * 0.5 / 300**0.5


def test_dropout_is_of_the_seed_and_step_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()

    def dropped(run: Batches, step: int) -> torch.Tensor:
        with run.dropout(step):
            return torch.nn.functional.dropout(torch.ones(64), 0.5)

    assert torch.equal(dropped(batches(), 4), dropped(batches(), 4))
    assert not torch.equal(dropped(batches(), 4), dropped(batches(), 5))
    assert not torch.equal(dropped(batches(), 4), dropped(batches(seed=1), 4))
    with batches().dropout(4):  # another stream than that of the step's times and noise
        assert not torch.equal(torch.rand(9), torch.rand(9, generator=generator(stream(CONFIG.seed, 4))))
    with pytest.raises(ZeroDivisionError), seeded(1, CPU):
        torch.rand(1) + 1 / 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_degradation_that_works_in_place_spoils_no_target():
    images = torch.full((20, 3, 8, 8), 255, dtype=torch.uint8)
    run = Batches(images, create_degrade(CONFIG, lambda x: x.mul_(0.5)), CONFIG)
    x0, x1, *_ = run(0)
    assert (x0.unique().tolist(), x1.max() < 0.51) == ([1.0], True)
