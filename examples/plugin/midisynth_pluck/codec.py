"""Notes as integers on the sample clock, which stay exact however long the piece is.

A note is a row (onset, duration, pitch, velocity) with times in samples. Rows of velocity 0 are padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from midisynth.errors import MidiError
from midisynth.music.clock import ticks_from_seconds
from midisynth.music.midi import read_midi
from midisynth.music.notes import NOTE_DTYPE, Performance, is_drum
from midisynth.music.pedal import extend_by_pedal

TAIL_SEC = 1.0  # how long a string may ring after its release; `network.MIN_RELEASE_RATE` sees to it that it is enough


class PluckCodec:
    """MIDI files to note rows.

    Args:
        sample_rate: Clock of the rows and rate of the audio (Hz).
        segment_samples: Length of a training clip (samples).

    Attributes:
        max_duration_sec: Longest piece that `encode` accepts (seconds); the command line sets it.
        repair: Read what is left of damaged files; the command line sets it, too.
    """

    max_duration_sec = 7200.0
    repair = False

    def __init__(self, sample_rate: int, segment_samples: int):
        self.sample_rate = sample_rate
        self.segment_samples = segment_samples

    def encode(self, path: Path) -> dict[str, Tensor]:
        """Read a MIDI file: `notes` [notes, 4], int64, by onset.

        Raises:
            MidiError: The file cannot be read, or no string plays in it.
        """
        notes = self._rows(extend_by_pedal(read_midi(path, repair=self.repair, max_duration_sec=self.max_duration_sec)))
        if len(notes) == 0:
            raise MidiError(path, "holds no notes that a string could play")
        return {"notes": torch.from_numpy(notes)}

    def decode(self, encoded: Mapping[str, Tensor]) -> Performance:
        """The notes of `encode` as a performance; its pedal has become longer notes."""
        onset, duration, pitch, velocity = encoded["notes"].numpy().T
        notes = np.zeros(len(onset), NOTE_DTYPE)
        notes["onset_sec"], notes["duration_sec"] = onset / self.sample_rate, duration / self.sample_rate
        notes["pitch"], notes["velocity"] = pitch, velocity
        return ticks_from_seconds(Performance(notes))

    def encode_segment(self, performance: Performance, start_sec: float) -> dict[str, Tensor]:
        """Note rows of one training clip, with the notes that still ring when it starts (their onset is negative).

        Args:
            performance: A piece whose notes already last as long as its pedal says.
            start_sec: Where the clip starts (seconds).

        Returns:
            `notes` [notes, 4], int64.
        """
        notes = self._rows(performance)
        notes[:, 0] -= round(start_sec * self.sample_rate)
        ringing = notes[:, 0] + notes[:, 1] + round(TAIL_SEC * self.sample_rate) > 0
        return {"notes": torch.from_numpy(notes[ringing & (notes[:, 0] < self.segment_samples)])}

    def _rows(self, performance: Performance) -> np.ndarray:
        notes = performance.notes[~is_drum(performance.notes)]
        notes = notes[np.argsort(notes["onset_sec"], kind="stable")]
        onsets = np.rint(notes["onset_sec"] * self.sample_rate).astype(np.int64)
        ends = np.rint((notes["onset_sec"] + notes["duration_sec"]) * self.sample_rate).astype(np.int64)
        return np.stack([onsets, ends - onsets, notes["pitch"], notes["velocity"]], axis=1).astype(np.int64)
