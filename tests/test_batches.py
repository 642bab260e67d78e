"""What a step sees depends on the seed and the step alone, and takes nobody else's random numbers."""

import dataclasses

import pytest
import torch

from i2sb_lib.batches import Batches, seeded
from i2sb_lib.config import TrainConfig
from i2sb_lib.degradations import create_degradation

CONFIG = TrainConfig(batch_size=3, dropout=0.5)
CPU = torch.device("cpu")


def batches(**changes) -> Batches:
    images = torch.randint(0, 256, (20, 3, 16, 16), generator=torch.Generator().manual_seed(5))
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


def test_dropout_is_of_the_seed_and_step_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()

    def dropped(run: Batches, step: int) -> torch.Tensor:
        with run.dropout(step):
            return torch.nn.functional.dropout(torch.ones(64), 0.5)

    assert torch.equal(dropped(batches(), 4), dropped(batches(), 4))
    assert not torch.equal(dropped(batches(), 4), dropped(batches(), 5))
    assert not torch.equal(dropped(batches(), 4), dropped(batches(seed=1), 4))
    with pytest.raises(ZeroDivisionError), seeded(1, CPU):
        torch.rand(1) + 1 / 0
    assert torch.equal(torch.get_rng_state(), before)
