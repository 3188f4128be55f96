"""A rehearsal of the largest batches, so that a run that will not fit into memory fails at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from midisynth.errors import TrainingError, UsageError
from midisynth.training.batches import DurationSampler


class RehearseLargestBatches(Callback):
    """Runs forward and backward on the largest batches before training; weights, buffers and random numbers stay.

    It needs a data module whose batches are made by `midisynth.training.batches.DurationSampler`.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader = trainer.train_dataloader
        if not isinstance(loader, DataLoader) or not isinstance(loader.sampler, DurationSampler):
            raise UsageError(
                f"RehearseLargestBatches: the batches of {type(trainer.datamodule).__name__} are all of one size: "
                "leave the callback out"
            )
        kept = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]
        for places in loader.sampler.largest():
            with isolate_rng(), _silent(pl_module):
                batch = trainer.strategy.batch_to_device(loader.collate_fn(loader.dataset[places]))
                try:
                    with trainer.precision_plugin.train_step_context():
                        loss = pl_module.training_step(batch, 0)
                    loss.backward()
                except torch.OutOfMemoryError as error:
                    raise TrainingError(
                        f"a batch of {len(places)} examples does not fit into memory: lower data.max_duration; "
                        "trainer.accumulate_grad_batches keeps the size of a step"
                    ) from error
            pl_module.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, values in kept:
                buffer.copy_(values)


@contextmanager
def _silent(pl_module: LightningModule) -> Iterator[None]:
    """What the module logs in it is dropped: there is no batch that it could belong to."""
    pl_module.log = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del pl_module.log
