"""Samplers that know where a training run is, so that a resumed one continues with the very next batch.

torch's own forget their order and position: a run that is resumed within an epoch sees other samples, one that is
resumed at its end has other random numbers. Here the order follows from the seed and the epoch, the position is taken
from the trainer's count of batches that were trained on (not of those that workers have already fetched), and the
random numbers of a step follow from the seed, the step and the rank.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from midisynth.errors import DataError

T_co = TypeVar("T_co", covariant=True)

#: Epoch, and batches of it that have been trained on.
Position = tuple[int, int]


class EndlessDataset(Dataset[T_co], Generic[T_co]):
    """A dataset that draws its examples: any number, not only those below its length, is an example of its own.

    In epoch e its examples are numbers e * len to (e + 1) * len - 1.
    """

    def __len__(self) -> int:
        raise NotImplementedError


class TrainingSampler(DistributedSampler):
    """Indices of this process, from a given position on.

    All processes get equally many whole batches; what is left over at the end of an epoch is left out.

    Args:
        dataset: Shuffled anew in every epoch, unless it is an `EndlessDataset`.
        batch_size: Of one process.
        seed: Of the order.
        rank: Number of this process.
        world_size: Number of processes.
        position: Where training is when a checkpoint is written.

    Raises:
        DataError: There is not one batch for every process.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        position: Callable[[], Position],
    ):
        # Being one of these keeps the trainer from putting another in its place.
        super().__init__(dataset, num_replicas=world_size, rank=rank, seed=seed, drop_last=True)
        self.batch_size = batch_size
        self._position = position
        self._examples = len(dataset)
        self._batches = self._examples // (batch_size * world_size)
        self._resumed_epoch = self._resumed_examples = 0
        if self._batches == 0:
            raise DataError(
                f"{self._examples} training examples are too few for {world_size} x batch_size {batch_size}: "
                "lower batch_size, or use more data"
            )

    def __len__(self) -> int:
        return self._batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        first = self._resumed_examples if self.epoch == self._resumed_epoch else 0
        if isinstance(self.dataset, EndlessDataset):
            order = np.arange(self._examples) + self.epoch * self._examples
        else:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self._examples)
        last = self._batches * self.batch_size * self.num_replicas
        return iter(order[first + self.rank : last : self.num_replicas].tolist())

    def state_dict(self) -> dict[str, int]:
        """Where training is, in examples of all processes together."""
        epoch, batches = self._position()
        if batches >= self._batches:
            epoch, batches = epoch + 1, 0
        return {"epoch": epoch, "examples": batches * self.batch_size * self.num_replicas}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state_dict` was called."""
        self.epoch = self._resumed_epoch = state["epoch"]
        self._resumed_examples = state["examples"]


class EvaluationSampler(DistributedSampler):
    """Every index once: processes may differ by one, where torch's sampler would repeat some.

    Args:
        dataset: What is evaluated.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(self, dataset: Dataset, rank: int, world_size: int):
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False)
        self._indices = range(rank, len(dataset), world_size)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)


class ResumableLoader(DataLoader):
    """A loader whose sampler's position the trainer saves in checkpoints and restores.

    Args:
        dataset: Of the sampler.
        sampler: Knows the position.
        options: For `torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Dataset, sampler: TrainingSampler, **options: Any):
        super().__init__(dataset, sampler=sampler, **options)

    def state_dict(self) -> dict[str, int]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.load_state_dict(state)


def trained_position(trainer: Trainer) -> Position:
    """Epoch and number of its batches that have been trained on, at whatever moment a checkpoint is written."""
    epochs = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    # Between two epochs the batch count is still that of the last one.
    return epochs.processed, batches.processed if epochs.started > epochs.processed else 0


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed the global random numbers of one training step.

    A step then draws the same numbers in a resumed run, and whatever validation did in between.

    Args:
        seed: Of the run.
        step: Batches since the start of training.
        rank: Number of this process.
    """
    digest = hashlib.sha256(f"{seed}:{step}:{rank}".encode()).digest()
    random.seed(digest)
    np.random.seed(int.from_bytes(digest[:4], "little"))
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
