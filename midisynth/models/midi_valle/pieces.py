"""Recordings as the language model sees them: notes and codes, computed once, cut when they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from midisynth.audio.neural_codec import NeuralCodec
from midisynth.datasets.cache import Prepared
from midisynth.datasets.corpus import Record
from midisynth.errors import DataError
from midisynth.models.midi_valle.codec import NoteRows
from midisynth.models.midi_valle.segments import Segment, segment
from midisynth.music.notes import Performance
from midisynth.stored_parts import StoredPart

#: Raised when the arrays change.
VERSION = 1

#: Recordings are encoded in blocks of this length (seconds), each with so much on both sides that is not kept.
BLOCK_SEC, CONTEXT_SEC = 20.0, 1.0
#: What follows the last note of a recording is kept for so long (seconds).
TAIL_SEC = 3.0

#: What becomes of notes that began before a segment: they are left out, or struck again at its start.
Held = Literal["drop", "strike"]


@dataclass(frozen=True)
class PieceTokens:
    """Makes what is kept of a recording (`midisynth.datasets.cache.Encoder`); this alone goes to other processes.

    Attributes:
        neural_codec: The codec.
        note_rows: Reads the notes.
    """

    neural_codec: StoredPart
    note_rows: NoteRows

    @property
    def key(self) -> Mapping[str, Any]:
        """What shapes the arrays."""
        rows = self.note_rows
        return {"version": VERSION, "codec": self.neural_codec.digest, "pedal": rows.pedal, "compat": rows.compat}

    def __call__(self, record: Record) -> dict[str, np.ndarray]:
        """Arrays of the recording: "codes" [frames, codebooks], "frames" [], "notes" and "controls" as in
        `Performance`, in seconds of the recording.

        Raises:
            DataError: There is nothing to learn from.
        """
        performance = self.note_rows.playable(record.performance())
        if len(performance.notes) == 0:
            raise DataError("has no notes of a piano")
        codec = self.neural_codec.load()
        audio = record.waveform(codec.sample_rate)
        codes = encode_blocks(codec, audio if audio.ndim == 1 else audio.mean(dim=0))
        last = int(np.ceil((performance.end_sec + TAIL_SEC) * codec.sample_rate / codec.hop))
        codes = codes[:last].numpy().astype(np.min_scalar_type(codec.bins - 1))
        frames = np.array(len(codes))
        return {"codes": codes, "frames": frames, "notes": performance.notes, "controls": performance.controls}


@torch.no_grad()
def encode_blocks(codec: NeuralCodec, audio: Tensor) -> Tensor:
    """Codes of audio of any length, [samples] -> [frames, codebooks] int64, in memory for one block."""
    block, context = (round(sec * codec.sample_rate / codec.hop) * codec.hop for sec in (BLOCK_SEC, CONTEXT_SEC))
    parts = []
    for start in range(0, len(audio), block):
        first = max(start - context, 0)
        codes = codec.encode(audio[None, first : start + block + context])[0]
        begin = (start - first) // codec.hop
        parts.append(codes[begin : begin + block // codec.hop])
    return torch.cat(parts)


def told(cut_out: Segment, held: Held) -> Performance:
    """What of a segment a model is told."""
    return cut_out.struck if held == "drop" else cut_out.performance


@dataclass(frozen=True)
class Piece:
    """A prepared recording.

    Attributes:
        codes: [frames, codebooks].
        performance: Its notes and controllers, on the clock of the recording.
    """

    codes: np.ndarray
    performance: Performance


# Segments of a recording come at different times of an epoch.
@lru_cache(maxsize=256)
def _read(path: Path) -> Piece:
    with np.load(path, allow_pickle=False) as arrays:
        return Piece(arrays["codes"], Performance(notes=arrays["notes"], controls=arrays["controls"]))


def frames_of(prepared: Prepared) -> int:
    """Length of a prepared recording (frames)."""
    with np.load(prepared.notes_path, allow_pickle=False) as arrays:
        return int(arrays["frames"])


@dataclass(frozen=True)
class Cutter:
    """Cuts prepared recordings into what a network takes.

    Attributes:
        note_rows: Of the model.
        held: Of the model.
        frames_per_sec: Of the neural codec.
        codebooks: Of the network, which may have fewer than the neural codec.
    """

    note_rows: NoteRows
    held: Held
    frames_per_sec: float
    codebooks: int

    def frame(self, time_sec: float) -> int:
        """The frame boundary nearest to a time."""
        return round(time_sec * self.frames_per_sec)

    def rows(self, cut_out: Segment) -> Tensor:
        """Note rows of a segment, [notes + 2, columns] int64."""
        return torch.from_numpy(self.note_rows.encode(self.played(cut_out)))

    def played(self, cut_out: Segment) -> Performance:
        """What of a segment the model is told."""
        return told(cut_out, self.held)

    def performance(self, prepared: Prepared) -> Performance:
        """Notes and controllers of a recording."""
        return _read(prepared.notes_path).performance

    def segment(self, prepared: Prepared, first: int, last: int) -> Segment:
        """Frames `first` to `last` of a recording as music."""
        return segment(self.performance(prepared), first / self.frames_per_sec, last / self.frames_per_sec)

    def codes(self, prepared: Prepared, first: int, last: int) -> Tensor:
        """Codes of a stretch of a recording, [frames, codebooks] int64."""
        return torch.from_numpy(_read(prepared.notes_path).codes[first:last, : self.codebooks].astype(np.int64))

    def example(self, prepared: Prepared, first: int, last: int) -> dict[str, Tensor]:
        """A stretch of a recording: "rows" [note rows, columns] and "codes" [frames, codebooks]."""
        return {
            "rows": self.rows(self.segment(prepared, first, last)),
            "codes": self.codes(prepared, first, last),
        }
