"""What a run says about the time that is left."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from midisynth import progress

SECONDS_A_STEP = 10.0


class Slow(LightningModule):
    """Steps that take their time, by a clock that nobody has to wait for."""

    now = 1000.0

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        Slow.now += SECONDS_A_STEP
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def seconds_left(folder: Path, steps: int, capsys: pytest.CaptureFixture[str], resume: Path | None = None) -> list[int]:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[progress.PlainProgress(0.0)],
        default_root_dir=folder,
    )
    trainer.fit(Slow(), torch.utils.data.DataLoader(torch.ones(20, 1), 1), ckpt_path=resume)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return [int(seconds) for seconds in re.findall(r"(\d+) s left", capsys.readouterr().err)]


def test_a_resumed_run_takes_as_long_as_its_own_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(time, "monotonic", lambda: Slow.now)
    assert seconds_left(tmp_path, 4, capsys) == [30, 20, 10, 0]
    assert seconds_left(tmp_path, 8, capsys, tmp_path / "4.ckpt") == [30, 20, 10, 0]
