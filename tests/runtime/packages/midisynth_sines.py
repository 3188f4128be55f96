"""Small real models for the tests of the run time: a player of sines, a transposer and a composer of scales.

`Sines` streams: what it holds does not grow with the piece. It can be told to misbehave in the ways models do, for
those pieces that contain a certain pitch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from midisynth.errors import MidiError
from midisynth.module import MidiModule, Noise, Rendering
from midisynth.music.clock import ticks_from_seconds
from midisynth.music.midi import read_midi
from midisynth.music.notes import NOTE_DTYPE, Performance

Fault = Literal["", "nan", "inf", "loud", "silent", "nothing", "raise", "interrupt"]


class NoteRows:
    """MIDI -> rows of notes.

    Attributes:
        sample_rate: Of the audio (Hz).
        max_duration_sec: Longest file (seconds).
        repair: Read what is left of damaged files.
    """

    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate
        self.max_duration_sec = 7200.0
        self.repair = False

    def encode(self, path: Path) -> Mapping[str, Any]:
        """Onset (s), end (s), pitch, velocity: "notes" [notes, 4] float64."""
        notes = read_midi(path, repair=self.repair, max_duration_sec=self.max_duration_sec).notes
        if len(notes) == 0:
            raise MidiError(path, "has no notes")
        columns = notes["onset_sec"], notes["onset_sec"] + notes["duration_sec"], notes["pitch"], notes["velocity"]
        return {"notes": torch.from_numpy(np.stack(columns, axis=1).astype(np.float64))}


class Sines(MidiModule):
    """A sum of harmonics for each note.

    Args:
        sample_rate: Of the audio (Hz).
        harmonics: Number of harmonics.
        block_sec: Length of a chunk (seconds).
        pause_sec: Waits this long before each chunk (seconds).
        fault: What goes wrong.
        fault_pitch: Pieces with this pitch are those in which it does.
        wavetable: Part: "none", or a file of float32 samples, one period of the wave.
        optimizer: Builds the optimizer.
        lr_scheduler: Builds the schedule.
    """

    def __init__(
        self,
        sample_rate: int = 8000,
        harmonics: int = 2,
        block_sec: float = 0.5,
        pause_sec: float = 0.0,
        fault: Fault = "",
        fault_pitch: int = 0,
        wavetable: str = "none",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(optimizer, lr_scheduler)
        self.codec = NoteRows(sample_rate)
        self.levels = nn.Parameter(0.1 / torch.arange(1, harmonics + 1))
        self.register_buffer("tuning_hz", torch.tensor(440.0))
        self.declare_part("wavetable", load_wavetable)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = (self.levels**2).sum()
        self.log("train/loss", loss)
        return loss

    def train_dataloader(self) -> list[Tensor]:
        return [torch.zeros(1)] * 4

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        return [example["notes"] for example in examples]

    def duration_sec(self, example: Mapping[str, Any]) -> float:
        return float(example["notes"][:, 1].max())

    def render(self, batch: Sequence[Tensor], noise: Noise) -> Iterator[tuple[int, Rendering]]:
        for position, notes in enumerate(batch):
            phase = noise.normal(position, 0, (1,), self.device).double()
            faulty = bool((notes[:, 2] == self.hparams.fault_pitch).any())
            for audio in self._blocks(notes, phase):
                time.sleep(self.hparams.pause_sec)
                if faulty and self.hparams.fault:
                    audio = misbehave(self.hparams.fault, audio)
                if audio is not None:
                    yield position, Rendering(audio=audio, sample_rate=self.hparams.sample_rate)

    def _blocks(self, notes: Tensor, phase: Tensor) -> Iterator[Tensor]:
        rate, block = self.hparams.sample_rate, round(self.hparams.block_sec * self.hparams.sample_rate)
        wave = self.part("wavetable")
        onsets, ends = (notes[:, :2] * rate).round().long().T
        for start in range(0, int(ends.max()), block):
            audio = torch.zeros(block, dtype=torch.float64, device=notes.device)
            for index in torch.nonzero((onsets < start + block) & (ends > start)).flatten().tolist():
                first, last = max(int(onsets[index]), start), min(int(ends[index]), start + block)
                seconds = torch.arange(first, last, device=notes.device, dtype=torch.float64) / rate
                hz = self.tuning_hz.double() * 2 ** ((notes[index, 2] - 69) / 12)
                for harmonic, level in enumerate(self.levels.double(), start=1):
                    tone = level * notes[index, 3] / 127 * wave(hz * harmonic * seconds + phase)
                    audio[first - start : last - start] += tone
            yield audio.float()[None]


class Octaves(Sines):
    """Writes MIDI: every note an octave higher, with a figure and a report."""

    writes = ".mid"

    def render(self, batch: Sequence[Tensor], noise: Noise) -> Iterator[tuple[int, Rendering]]:
        for position, rows in enumerate(batch):
            notes = np.zeros(len(rows), NOTE_DTYPE)
            for column, values in zip(
                ("onset_sec", "pitch", "velocity"), rows.cpu().numpy()[:, [0, 2, 3]].T, strict=True
            ):
                notes[column] = values
            notes["duration_sec"] = (rows[:, 1] - rows[:, 0]).cpu().numpy()
            notes["pitch"] = np.minimum(notes["pitch"] + 12, 127)
            performance = ticks_from_seconds(Performance(notes, track_names=[""]))
            yield position, Rendering(performance=performance, report={"notes": len(notes)})


class Scales(Sines):
    """A composer: needs no input."""

    needs_input = False
    reads = ()

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        return [torch.tensor([[0.0, 0.5, 60.0 + example["index"], 80.0]]) for example in examples]

    def duration_sec(self, example: Mapping[str, Any]) -> float:
        return 0.5


def misbehave(fault: str, audio: Tensor) -> Tensor | None:
    """Audio as a broken model would give it."""
    if fault == "raise":
        raise ZeroDivisionError("the model divides by zero")
    if fault == "interrupt":
        os.abort()
    faults: dict[str, Callable[[], Tensor | None]] = {
        "nan": lambda: audio * float("nan"),
        "inf": lambda: audio + float("inf"),
        "loud": lambda: audio * 100,
        "silent": lambda: audio * 0,
        "nothing": lambda: None,
    }
    return faults[fault]()


def load_wavetable(reference: str, content: bytes | None = None) -> Callable[[Tensor], Tensor]:
    """Phase in periods -> sample."""
    if reference == "none":
        return lambda phase: torch.sin(2 * torch.pi * phase)
    table = torch.from_numpy(np.frombuffer(content or Path(reference).read_bytes(), np.float32).copy()).double()
    return lambda phase: table.to(phase.device)[(phase % 1 * len(table)).long()]
