"""Running averages of weights: of which steps, and what stands in for them before the first."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from midisynth.training.averaging import RunningAverage


class Counter(LightningModule):
    """Its weight is the number of steps so far; validation notes what it sees."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[float] = []

    def training_step(self, batch, batch_idx):
        return -self.weight

    def validation_step(self, batch, batch_idx):
        self.seen.append(float(self.weight))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize(
    ("options", "steps", "validated"),
    [
        ({"every_n_steps": 2}, 6, [1, 2, 2, 3, 3, 4]),
        ({"every_n_steps": 1, "start_step": 3}, 6, [1, 2, 3, 4, 4.5, 5]),
        # Nothing is averaged yet: not the weights from before the first step.
        ({"every_n_steps": 100}, 3, [1, 2, 3]),
    ],
)
def test_means_of_weights(options: dict[str, int], steps: int, validated: list[float]):
    model = Counter()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        val_check_interval=1,
        max_steps=steps,
        callbacks=[RunningAverage(**options)],
    )
    trainer.fit(model, torch.zeros(steps, 1), torch.zeros(1, 1))
    assert model.seen == validated
    assert float(model.weight) == validated[-1]
