"""Batches of examples of similar length that hold about equally much work, the same number for every process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

from midisynth.errors import DataError
from midisynth.training.sampler import Position

#: Number of an epoch, and of an example in it.
Place = tuple[int, int]


class TimedDataset(Dataset):
    """A dataset whose examples may be other ones in every epoch, and whose lengths are known beforehand."""

    def durations(self, epoch: int) -> np.ndarray:
        """Lengths of the examples of an epoch (seconds), [examples]."""
        raise NotImplementedError(f"{type(self).__name__} does not implement durations()")

    def example(self, place: Place) -> Any:
        """One example."""
        raise NotImplementedError(f"{type(self).__name__} does not implement example()")

    def __len__(self) -> int:
        return len(self.durations(0))

    def __getitem__(self, places: Sequence[Place]) -> list[Any]:
        """The examples of a batch, for a loader that leaves batching to its sampler."""
        return [self.example(place) for place in places]


class DurationSampler(DistributedSampler):
    """Batches of this process, from a given position on; for a loader with `batch_size=None`.

    Examples are sorted into buckets of about equal total length. A batch is drawn from one bucket and closed when
    another example would make it too large. The batches that processes get in one step come from one bucket too, so
    that none waits for the others. What is left over, less than a batch for every process, is left out.

    Every epoch has as many batches as the first: examples of later ones may be cut otherwise, and an epoch that would
    be shorter repeats some.

    Args:
        dataset: Knows the lengths.
        max_duration: Largest size of a batch of one process (seconds): number of examples times the largest cost.
        seed: Of the order.
        rank: Number of this process.
        world_size: Number of processes.
        position: Where training is when a checkpoint is written.
        buckets: Number of buckets.
        quadratic_sec: An example of d seconds costs d + d * d / quadratic_sec, as attention makes it.

    Raises:
        DataError: There is not one batch for every process.
    """

    def __init__(
        self,
        dataset: TimedDataset,
        max_duration: float,
        seed: int,
        rank: int,
        world_size: int,
        position: Callable[[], Position],
        buckets: int = 10,
        quadratic_sec: float = 10.0,
    ):
        self._timed = dataset
        self._max_duration = max_duration
        self._position = position
        self._buckets = buckets
        self._quadratic_sec = quadratic_sec
        self._resumed: Position = (0, 0)
        self._plans: dict[int, list[list[list[Place]]]] = {}
        # Being one of these keeps the trainer from putting another in its place.
        super().__init__(dataset, num_replicas=world_size, rank=rank, seed=seed)
        self._batches = len(self._plan(0))
        if self._batches == 0:
            raise DataError(
                f"{len(dataset)} training examples are too few for one batch of {max_duration:g} s on "
                f"each of {world_size} processes: lower max_duration, or use more data"
            )

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[Place]]:
        first = self._resumed[1] if self.epoch == self._resumed[0] else 0
        steps = self._plan(self.epoch)
        for index in range(first, self._batches):
            yield steps[index % len(steps)][self.rank]

    def largest(self) -> list[list[Place]]:
        """Batches of the first epoch that need the most memory: the largest, the longest, and the fullest one."""
        durations = self._timed.durations(0)
        batches = [batch for step in self._plan(0) for batch in step]

        def longest(batch: list[Place]) -> float:
            return max(float(durations[number]) for _, number in batch)

        measures: list[Callable[[list[Place]], float]] = [
            lambda batch: len(batch) * self._cost(longest(batch)),
            longest,
            len,
        ]
        found = [max(batches, key=measure) for measure in measures]
        return [batch for index, batch in enumerate(found) if batch not in found[:index]]

    def state_dict(self) -> dict[str, int]:
        """Where training is, in batches of one process."""
        epoch, batches = self._position()
        return {"epoch": epoch + 1, "batches": 0} if batches >= self._batches else {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state_dict` was called."""
        self.epoch = state["epoch"]
        self._resumed = (state["epoch"], state["batches"])

    def _cost(self, duration: Any) -> Any:
        return duration + duration * duration / self._quadratic_sec

    def _plan(self, epoch: int) -> list[list[list[Place]]]:
        """The batches of every step of an epoch, one for each process."""
        if epoch not in self._plans:
            self._plans = {epoch: self._planned(epoch)}
        return self._plans[epoch]

    def _planned(self, epoch: int) -> list[list[list[Place]]]:
        durations = self._timed.durations(epoch)
        random = np.random.default_rng([self.seed, epoch])
        by_length = np.argsort(durations, kind="stable")
        share = np.cumsum(durations[by_length]) / max(float(durations.sum()), 1e-9)
        bucket = np.minimum((share * self._buckets).astype(int), self._buckets - 1)
        steps, rest = [], []
        for number in range(self._buckets):
            batches = self._batches_of(random.permutation(by_length[bucket == number]), durations, epoch)
            whole = len(batches) // self.num_replicas * self.num_replicas
            steps += [batches[first : first + self.num_replicas] for first in range(0, whole, self.num_replicas)]
            rest += batches[whole:]
        # Buckets went from short to long: neighbours among what they left are alike, too.
        whole = len(rest) // self.num_replicas * self.num_replicas
        steps += [rest[first : first + self.num_replicas] for first in range(0, whole, self.num_replicas)]
        return [steps[index] for index in random.permutation(len(steps))]

    def _batches_of(self, order: np.ndarray, durations: np.ndarray, epoch: int) -> list[list[Place]]:
        batches: list[list[Place]] = []
        largest = 0.0
        for number in order.tolist():
            cost = max(largest, float(self._cost(durations[number])))
            if not batches or (len(batches[-1]) + 1) * cost > self._max_duration:
                batches.append([])
                cost = float(self._cost(durations[number]))
            batches[-1].append((epoch, number))
            largest = cost
        return batches
