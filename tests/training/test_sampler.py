"""Samplers: every example once, equally many batches for all, and a position that can be continued."""

from __future__ import annotations

import random
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from midisynth.errors import DataError
from midisynth.training.sampler import EndlessDataset, EvaluationSampler, TrainingSampler, seed_step


class Numbers(Dataset):
    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length


class Endless(Numbers, EndlessDataset):
    pass


def sampler(dataset: Dataset, rank: int = 0, world: int = 1, position: tuple[int, int] = (0, 0)) -> TrainingSampler:
    return TrainingSampler(dataset, 4, seed=0, rank=rank, world_size=world, position=lambda: position)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("length", [24, 31, 103])
def test_processes_share_an_epoch(world: int, length: int):
    if length < 4 * world:
        pytest.skip("no whole batch for everyone")
    epochs = []
    for epoch in range(2):
        samplers = [sampler(Numbers(length), rank, world) for rank in range(world)]
        for one in samplers:
            one.set_epoch(epoch)
        shares = [list(one) for one in samplers]
        assert {len(share) for share in shares} == {length // (4 * world) * 4} == {len(samplers[0])}
        together = list(chain(*shares))
        assert len(set(together)) == len(together)
        assert set(together) <= set(range(length))
        epochs.append(shares)
    assert epochs[0] != epochs[1]


def test_steps_hold_the_same_examples_on_any_number_of_processes():
    one = list(sampler(Numbers(64)))
    two = [list(TrainingSampler(Numbers(64), 2, 0, rank, 2, lambda: (0, 0))) for rank in (0, 1)]
    for step in range(16):
        halves = [share[2 * step : 2 * step + 2] for share in two]
        assert sorted(chain(*halves)) == sorted(one[4 * step : 4 * step + 4])


def test_endless_numbers_go_on_over_epochs():
    one = sampler(Endless(10))
    assert list(one) == list(range(8))
    one.set_epoch(3)
    assert list(one) == list(range(30, 38))


@pytest.mark.parametrize("dataset", [Numbers(50), Endless(50)], ids=["shuffled", "endless"])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("batches", [0, 1, 5])
def test_position_is_continued(dataset: Dataset, world: int, batches: int):
    for rank in range(world):
        full = sampler(dataset, rank, world)
        full.set_epoch(2)
        expected = list(full)[4 * batches :]
        resumed = sampler(dataset, rank, world)
        resumed.load_state_dict(sampler(dataset, rank, world, (2, batches)).state_dict())
        assert list(resumed) == list(resumed) == expected
        resumed.set_epoch(2)
        assert list(resumed) == expected
        assert len(resumed) == len(full)
        resumed.set_epoch(3)
        assert len(list(resumed)) == len(full)


def test_the_end_of_an_epoch_is_the_start_of_the_next():
    assert sampler(Numbers(50), position=(2, 12)).state_dict() == {"epoch": 3, "examples": 0}
    assert sampler(Numbers(50), position=(2, 11)).state_dict() == {"epoch": 2, "examples": 44}


@pytest.mark.parametrize(("length", "world"), [(103, 2), (7, 2), (1, 2), (10, 3)])
def test_evaluation_sees_everything_once(length: int, world: int):
    shares = [list(EvaluationSampler(Numbers(length), rank, world)) for rank in range(world)]
    assert sorted(chain(*shares)) == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [len(EvaluationSampler(Numbers(length), rank, world)) for rank in range(world)] == [len(s) for s in shares]


def test_too_few_examples_are_said_to_be():
    with pytest.raises(DataError, match="7 training examples are too few for 2 x batch_size 4"):
        sampler(Numbers(7), world=2)


def test_a_step_has_its_own_numbers():
    def draw(*key: int) -> tuple:
        seed_step(*key)
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()

    assert draw(0, 5, 0) == draw(0, 5, 0)
    draws = [draw(0, 5, 0), draw(1, 5, 0), draw(0, 6, 0), draw(0, 5, 1)]
    assert all(a[i] != b[i] for n, a in enumerate(draws) for b in draws[:n] for i in range(3))
