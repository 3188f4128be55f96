"""Batches by duration: the same work for every process, nothing twice, and a position that can be continued."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from midisynth.errors import DataError
from midisynth.training.batches import DurationSampler, TimedDataset


class Lengths(TimedDataset):
    """Segments of 3 to 20 s, other ones in every epoch."""

    def __init__(self, count: int):
        self.count = count

    def durations(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(epoch).uniform(3, 20, self.count + 5 * epoch)

    def example(self, place):
        return place


def sampler(rank: int = 0, world: int = 1, position=(0, 0), count: int = 300, **options) -> DurationSampler:
    return DurationSampler(
        Lengths(count), options.pop("max_duration", 200.0), 0, rank, world, lambda: position, **options
    )


def costs(batch: list, epoch: int) -> np.ndarray:
    seconds = Lengths(300).durations(epoch)[[number for _, number in batch]]
    return seconds + seconds**2 / 10


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_is_shared(world: int):
    shares = []
    for rank in range(world):
        one = sampler(rank, world)
        shares.append(list(one))
        assert len(shares[-1]) == len(one)
    seen = list(chain(*chain(*shares)))
    assert len(set(seen)) == len(seen)
    # What is left out is less than a batch for each process.
    assert len(seen) > 300 - 20 * world
    for step in zip(*shares, strict=True):
        sizes = [len(batch) * costs(batch, 0).max() for batch in step]
        assert max(sizes) <= 200
        longest = [costs(batch, 0).max() for batch in step]
        # Of one bucket, or of neighbours among what buckets leave.
        assert max(longest) < 2.5 * min(longest)
    if world == 1:
        # A batch is closed only when the next one would not fit: the mean is well above half of the limit.
        assert np.mean([len(batch) * costs(batch, 0).max() for batch in shares[0]]) > 130


def test_batches_hold_similar_lengths():
    def waste(**options) -> float:
        found = [costs(batch, 0) for batch in sampler(**options)]
        return 1 - sum(map(np.sum, found)) / sum(len(one) * one.max() for one in found)

    assert waste(buckets=10) < 0.15 < waste(buckets=1)


def test_epochs_differ_and_have_one_length():
    one = sampler()
    epochs = []
    for epoch in range(3):
        one.set_epoch(epoch)
        epochs.append(list(one))
        assert {number for number, _ in chain(*epochs[-1])} == {epoch}
    assert len({len(epoch) for epoch in epochs}) == 1
    assert [number for _, number in chain(*epochs[0])] != [number for _, number in chain(*epochs[1])]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("batches", [0, 1, 7])
def test_position_is_continued(world: int, batches: int):
    for rank in range(world):
        full = sampler(rank, world)
        full.set_epoch(2)
        expected = list(full)[batches:]
        resumed = sampler(rank, world)
        resumed.load_state_dict(sampler(rank, world, (2, batches)).state_dict())
        assert list(resumed) == expected
        resumed.set_epoch(3)
        assert len(list(resumed)) == len(full)
    assert sampler(0, world, (2, len(full))).state_dict() == {"epoch": 3, "batches": 0}


def test_largest_batches():
    one = sampler()
    found = one.largest()
    everything = list(one)
    assert all(batch in everything for batch in found)
    assert max(costs(batch, 0).max() for batch in found) == max(costs(batch, 0).max() for batch in everything)
    assert max(map(len, found)) == max(map(len, everything))


def test_a_segment_that_is_too_large_is_alone_and_too_few_are_said_to_be():
    assert {len(batch) for batch in sampler(max_duration=1.0)} == {1}
    with pytest.raises(DataError, match=r"1 training examples are too few for one batch of 200 s on each of 2 proc"):
        sampler(world=2, count=1)
