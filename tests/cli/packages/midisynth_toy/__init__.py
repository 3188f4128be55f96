"""A third-party package for the tests of the command line: it learns pitch histograms and plays them as sines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from midisynth.checkpoints import load_state, read_tensors
from midisynth.datasets.corpus import SPLITS, Corpus, Record, Split
from midisynth.errors import CheckpointError
from midisynth.module import MidiDataModule, MidiModule, Noise, Rendering
from midisynth.music.midi import read_midi
from midisynth.music.notes import Performance

SAMPLE_RATE = 8000


class Histogram:
    """Pitch histogram of a file, [128]."""

    sample_rate = SAMPLE_RATE

    def encode(self, path: Path) -> Mapping[str, Tensor]:
        return self.histogram(read_midi(path))

    def histogram(self, performance: Performance) -> Mapping[str, Tensor]:
        pitch = torch.as_tensor(performance.notes["pitch"].astype("int64"))
        return {"histogram": torch.bincount(pitch, minlength=128).float()}


class ToyTones(MidiModule):
    """An autoencoder of pitch histograms.

    Args:
        hidden_dim: Width of the bottleneck.
        activation: Nonlinearity.
        dropout: Share of hidden units left out in training.
        optimizer: Builds the optimizer.
        lr_scheduler: Builds the schedule.
    """

    def __init__(
        self,
        hidden_dim: int = 4,
        activation: Literal["relu", "tanh"] = "tanh",
        dropout: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(optimizer, lr_scheduler)
        self.codec = Histogram()
        self.network = nn.Sequential(
            nn.Linear(128, hidden_dim),
            {"relu": nn.ReLU, "tanh": nn.Tanh}[activation](),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, 128),
        )

    @classmethod
    def load_published(cls, path: Path) -> ToyTones:
        state = read_tensors(path)
        if "0.weight" not in state:
            raise CheckpointError(f"{path}: not the published layout: 0.weight is missing")
        model = cls(hidden_dim=len(state["0.weight"]))
        load_state(model.network, state, str(path))
        return model

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.network(batch["histogram"]), batch["histogram"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self._loss(batch))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test/loss", self._loss(batch))

    def render(self, batch: dict[str, Tensor], noise: Noise) -> Iterator[tuple[int, Rendering]]:
        seconds = torch.arange(SAMPLE_RATE // 4) / SAMPLE_RATE
        hz = 440 * 2 ** ((torch.arange(128) - 69) / 12)
        tones = torch.sin(2 * torch.pi * hz[:, None] * seconds)
        for position, histogram in enumerate(batch["histogram"].cpu()):
            phase = noise.normal(position, 0, (1,)).item() * 1e-3
            yield position, Rendering(audio=((histogram @ tones)[None] * 1e-3 + phase), sample_rate=SAMPLE_RATE)


class Tones(Corpus):
    """All `*.mid` files of a folder, each of them in every split.

    Args:
        root: Folder.
        weight: Share in a mixture.
        pattern: Which files belong to it.
    """

    content = frozenset({"midi"})

    def __init__(self, root: str, weight: float = 1.0, pattern: str = "*.mid"):
        super().__init__(root, weight)
        self.pattern = pattern

    def records(self) -> list[Record]:
        files = sorted(self.root.glob(self.pattern))
        return [Record("tones", f"{p.stem}-{split}", p.stem, split, midi=p) for p in files for split in SPLITS]


class ToyTonesData(MidiDataModule):
    """Pitch histograms of the MIDI files of some corpora.

    Args:
        corpora: Corpus name to its options.
        batch_size: Examples in a batch.
        cache_dir: Folder for prepared data.
    """

    content = frozenset({"midi"})

    def __init__(self, corpora: dict[str, Any], batch_size: int = 1, cache_dir: str | None = None):
        super().__init__(corpora, batch_size=batch_size, cache_dir=cache_dir)

    def dataset(self, split: Split) -> list[Mapping[str, Tensor]]:
        return [self.codec.histogram(made.performance()) for part in self.parts(split) for made in part.prepared]
