"""Averages of weights besides those of Lightning."""

from __future__ import annotations

from lightning.pytorch.callbacks import WeightAveraging


class RunningAverage(WeightAveraging):
    """The mean of the weights after every few steps since the start; validation and checkpoints have the mean.

    Args:
        every_n_steps: Steps between the weights that are averaged.
        start_step: Steps before the first of them.
    """

    def __init__(self, every_n_steps: int = 100, start_step: int = 0):
        super().__init__()
        self._every_n_steps, self._start_step = every_n_steps, start_step

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is None:
            return False
        step = step_idx + 1 - self._start_step
        return step > 0 and step % self._every_n_steps == 0
