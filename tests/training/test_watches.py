"""The watch for numbers that are not finite, and the rehearsal of the largest batches."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from midisynth.errors import TrainingError, UsageError
from midisynth.training.batches import DurationSampler, TimedDataset
from midisynth.training.finite import CheckFinite
from midisynth.training.memory import RehearseLargestBatches
from midisynth.training.sampler import ResumableLoader
from midisynth.training.schedules import Eden

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyData, train


class Log(nn.Module):
    def forward(self, x):
        return x.log()


class Fragile(LightningModule):
    """A logarithm that is fine in the first step; its gradient is infinite where the output is not."""

    def __init__(self, hidden: float):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Sequential(nn.Linear(4, 4), Log())
        self.hidden = hidden
        self.norm = nn.BatchNorm1d(4)
        self.seen: list[int] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(len(batch))
        x = self.norm(self.first(batch)).abs()
        for parameter in self.second.parameters():
            parameter.data.fill_(self.hidden if self.global_step else 1.0)
        loss = self.second(x).mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Rows(TimedDataset):
    def durations(self, epoch):
        return np.linspace(1, 5, 20)

    def example(self, place):
        return torch.full((4,), float(place[1] + 1))


class RowsData(LightningDataModule):
    def train_dataloader(self):
        sampler = DurationSampler(Rows(), 20.0, 0, 0, 1, lambda: (0, 0), buckets=2)
        return ResumableLoader(Rows(), sampler, batch_size=None, collate_fn=torch.stack)


def fit(model: LightningModule, data, *callbacks, **options) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        **{"max_steps": 3, **options},
    )
    trainer.fit(model, DataLoader(data, batch_size=None) if isinstance(data, torch.Tensor) else data)
    return trainer


def test_the_broken_module_is_named():
    batches = torch.ones(3, 8, 4) + torch.arange(32).reshape(8, 4)
    fit(Fragile(1.0), batches, CheckFinite())
    with pytest.raises(TrainingError, match=r"step 1: the output of second\.1 is not finite"):
        fit(Fragile(-1.0), batches, CheckFinite())
    # The output of this one is finite and the gradient is not: 1 / 1e-42.
    with pytest.raises(TrainingError, match=r"step 1: the gradient of the output of second\.0 is not finite"):
        fit(Fragile(1e-42), batches, CheckFinite())
    fit(Fragile(1e-42), batches, CheckFinite(gradients=False), max_steps=2)
    fit(Fragile(-1.0), batches, CheckFinite(every_n_steps=5))


def test_warning_goes_on(caplog: pytest.LogCaptureFixture):
    model = Fragile(-1.0)
    fit(model, torch.rand(3, 8, 4), CheckFinite(action="warn"))
    assert len(model.seen) == 3
    assert not any(module._forward_hooks for module in model.modules())
    assert [record.message.split(":")[0] for record in caplog.records if record.name.startswith("midisynth")] == [
        "step 1",
        "step 2",
    ]


def test_rehearsal_changes_nothing():
    runs = []
    for callbacks in ((), (RehearseLargestBatches(),)):
        torch.manual_seed(0)
        model = Fragile(1.0)
        fit(model, RowsData(), *callbacks)
        runs.append(model)
    plain, rehearsed = runs
    extra = len(rehearsed.seen) - len(plain.seen)
    assert extra >= 2
    assert max(rehearsed.seen[:extra]) == max(len(batch) for batch in RowsData().train_dataloader())
    assert rehearsed.seen[extra:] == plain.seen
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(rehearsed.state_dict()[name], tensor, rtol=0, atol=0)


def test_rehearsal_says_what_does_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    model = Fragile(1.0)

    def full(batch, batch_idx):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "training_step", full)
    with pytest.raises(TrainingError, match=r"a batch of \d+ examples does not fit into memory: lower data.max_dur"):
        fit(model, RowsData(), RehearseLargestBatches())
    with pytest.raises(UsageError, match="batches of ToyData are all of one size"):
        train(tmp_path, ToyData, 1, save_every=1, callbacks=(RehearseLargestBatches(),))


def test_eden_counts_accumulated_batches_and_epochs(tmp_path: Path):
    rates = []

    class Watch(CheckFinite):
        def on_train_batch_end(self, trainer, pl_module, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    import toy

    usual = toy.WarmupCosine
    toy.WarmupCosine = lambda optimizer, **_: Eden(optimizer, 10, 2, warmup_batches=4)
    try:
        toy.train(tmp_path, ToyData, 4, save_every=10, callbacks=(Watch(),), accumulate_grad_batches=2)
    finally:
        toy.WarmupCosine = usual
    # Five batches an epoch: steps after two, four and, because the epoch ends, five.
    schedule = Eden(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01), 10, 2, warmup_batches=4)
    wanted = [
        0.01 * schedule.factor(batch, epoch)
        for batch, epoch in ((0, 0), (2, 0), (2, 0), (4, 0), (5, 1), (5, 1), (7, 1))
    ]
    assert rates == pytest.approx(wanted)
