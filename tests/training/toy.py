"""A tiny model with dropout, buffers and a moving average, on real clips; run as a script it trains in processes."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.utils.data import Subset

from midisynth.datasets.audio_pairs import audio_pairs
from midisynth.module import MidiDataModule, MidiModule
from midisynth.training.schedules import WarmupCosine

CLIPS = Path(__file__).resolve().parents[2] / "examples" / "data"


class ToyCodec:
    sample_rate = 8000
    segment_samples = 8000

    def encode_segment(self, performance, start_sec: float) -> dict:
        onsets = torch.from_numpy(performance.notes["onset_sec"] - start_sec)
        return {"count": ((onsets >= 0) & (onsets < 1)).sum().float()}


class Toy(MidiModule):
    """Guesses the number of onsets; all randomness is dropout and noise from the global generator."""

    def __init__(self, fail_at: int = -1, dim: int = 8):
        super().__init__(partial(torch.optim.AdamW, lr=0.01), partial(WarmupCosine, total_steps=40, warmup_steps=3))
        self.codec = ToyCodec()
        self.network = nn.Sequential(
            nn.Conv1d(1, dim, 64, 32), nn.BatchNorm1d(dim), nn.ReLU(), nn.Dropout(0.3), nn.Conv1d(dim, 1, 1)
        )
        self.seen: list[float] = []
        self.validated: list[float] = []

    def forward(self, audio):
        return self.network(audio[:, None]).mean(dim=(1, 2))

    def training_step(self, batch, batch_idx):
        if self.global_step == self.hparams.fail_at:
            raise RuntimeError("killed")
        self.seen.append(float(batch["audio"].double().abs().sum()))
        noisy = batch["audio"] + 0.01 * torch.randn_like(batch["audio"])
        loss = (self(noisy) - batch["count"]).square().mean()
        self.log("train/loss", loss)
        return loss

    def on_validation_epoch_start(self):
        self.validated = []

    def validation_step(self, batch, batch_idx):
        torch.rand(7)  # whatever validation draws, training must not notice
        losses = (self(batch["audio"]) - batch["count"]).square()
        self.validated += losses.tolist()
        self.log("val/loss", losses.mean(), batch_size=len(batch["count"]), sync_dist=True)


class ToyData(MidiDataModule):
    def dataset(self, split):
        pairs = audio_pairs(self.parts(split), self.codec, split, align=10, seed=self.seed)
        # Nine: of two processes one has three batches of them, and the other two.
        return Subset(pairs, range(9)) if split == "validation" else pairs


class ToyShuffled(ToyData):
    """A dataset with an end, which the sampler shuffles."""

    def dataset(self, split):
        return audio_pairs(self.parts("validation" if split == "validation" else "train"), self.codec, "test")


class SaveEvery(ModelCheckpoint):
    def __init__(self, folder: Path, steps: int):
        super().__init__(dirpath=folder, filename="{step}", every_n_train_steps=steps, save_top_k=-1)


def train(
    folder: Path,
    data: type[ToyData],
    steps: int,
    *,
    save_every: int,
    fail_at: int = -1,
    resume: Path | None = None,
    callbacks: tuple[Callback, ...] = (),
    **options: Any,
) -> tuple[Trainer, Toy]:
    """Train; a run that is to fail does so in the step after `fail_at`."""
    torch.manual_seed(0)
    model = Toy(fail_at)
    module = data(
        {"folder": str(CLIPS)}, batch_size=2, workers=options.pop("workers", 0), cache_dir=str(folder / "cache")
    )
    module.connect(model)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EMAWeightAveraging(decay=0.9), SaveEvery(folder, save_every), *callbacks],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(model, module, ckpt_path=resume)
    return trainer, model


if __name__ == "__main__":
    folder, steps, save_every, fail_at, resume = sys.argv[1:6]
    trainer, model = train(
        Path(folder),
        ToyData,
        int(steps),
        save_every=int(save_every),
        fail_at=int(fail_at),
        resume=Path(resume) if resume else None,
        devices=2,
        strategy="ddp",
        val_check_interval=3,
        check_val_every_n_epoch=None,
    )
    result = {"seen": model.seen, "validated": model.validated, "val/loss": float(trainer.callback_metrics["val/loss"])}
    Path(folder, f"rank{trainer.global_rank}.json").write_text(json.dumps(result))
