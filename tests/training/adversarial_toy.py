"""A tiny generator with dropout and its adversary, on real clips; run as a script it trains in processes."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from toy import CLIPS, SaveEvery, ToyCodec, ToyData, ToyShuffled

from midisynth.module import MidiModule
from midisynth.nn.discriminators import AudioDiscriminator, MultiPeriodDiscriminator, MultiResolutionDiscriminator
from midisynth.training.adversarial import AdversarialStep
from midisynth.training.schedules import WarmupCosine


def adversary(objective: str = "least_squares") -> AudioDiscriminator:
    parts = [MultiPeriodDiscriminator((2, 3), (2, 4)), MultiResolutionDiscriminator((64,), (2, 2, 2))]
    return AudioDiscriminator(parts, objective)


class ToyVocoder(AdversarialStep, MidiModule):
    """Repeats audio that it hears through noise and dropout; `adam=False` makes its steps linear in the gradient."""

    def __init__(self, start: int | None = 0, noise: float = 0.1, adam: bool = True, fail_at: int = -1, **options: Any):
        optimizer = partial(torch.optim.AdamW, lr=0.01) if adam else partial(torch.optim.SGD, lr=0.5)
        schedule = partial(WarmupCosine, total_steps=40, warmup_steps=3)
        super().__init__(optimizer, schedule)
        self.codec = ToyCodec()
        self.network = nn.Sequential(
            nn.Conv1d(1, 4, 9, padding=4), nn.ReLU(), nn.Dropout(noise), nn.Conv1d(4, 1, 9, padding=4)
        )
        if start is not None:
            self.use_adversary(adversary(), optimizer, schedule, start_step=start, **options)
        self.seen: list[float] = []

    def training_step(self, batch, batch_idx):
        if self.global_step == self.hparams.fail_at:
            raise RuntimeError("killed")
        reference = batch["audio"][:, None, :2000]
        self.seen.append(float(reference.double().abs().sum()))
        audio = self.network(reference + self.hparams.noise * torch.randn_like(reference))
        loss = (audio - reference).abs().mean()
        self.log("train/loss", loss)
        return self.adversarial_step(loss, audio, reference, batch_idx)

    def validation_step(self, batch, batch_idx):
        reference = batch["audio"][:, None]
        loss = (self.network(reference) - reference).abs().mean()
        self.log("val/loss", loss, batch_size=len(reference), sync_dist=True)


def train(
    folder: Path,
    steps: int,
    *,
    data: type[ToyData] = ToyData,
    batch_size: int = 2,
    save_every: int = 1,
    resume: Path | None = None,
    model: dict[str, Any] | None = None,
    callbacks: tuple[Callback, ...] = (),
    **options: Any,
) -> tuple[Trainer, ToyVocoder]:
    """Train for so many steps of the generator."""
    torch.manual_seed(0)
    toy = ToyVocoder(**(model or {}))
    module = data({"folder": str(CLIPS)}, batch_size=batch_size, cache_dir=str(folder.parent / "cache"))
    module.connect(toy)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EMAWeightAveraging(decay=0.9), SaveEvery(folder, save_every), *callbacks],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **{"logger": False, **options},
    )
    trainer.fit(toy, module, ckpt_path=resume)
    return trainer, toy


if __name__ == "__main__":
    folder, arguments = Path(sys.argv[1]), json.loads(sys.argv[2])
    resume = Path(arguments.pop("resume")) if "resume" in arguments else None
    train(folder, data=ToyShuffled, resume=resume, devices=2, strategy="ddp", limit_val_batches=0, **arguments)
