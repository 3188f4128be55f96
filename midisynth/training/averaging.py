"""Averages of weights besides those of Lightning."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging


class RunningAverage(WeightAveraging):
    """The mean of the weights after every few steps since the start; validation and checkpoints have the mean.

    Before the first of these steps there is no mean, and they have the weights as they are.

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

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._latest_update_step == 0:
            # A run that ends now would otherwise keep the weights that it started with. The first update of a mean is
            # a copy; it does not count.
            self._average_model.update_parameters(pl_module)
            self._average_model.n_averaged.zero_()
