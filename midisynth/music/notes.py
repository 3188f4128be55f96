"""The lingua franca: structured arrays of notes, controllers and tempi, with units in the field names.

Both clocks are kept. Seconds are what audio models need; ticks are what tokenizers with a metrical grid and
round trips through files need, and neither can be recovered from the other without the tempo map.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

NOTE_DTYPE = np.dtype(
    [
        ("onset_sec", "<f8"),
        ("duration_sec", "<f8"),
        ("onset_tick", "<i8"),
        ("duration_tick", "<i8"),
        ("pitch", "<i4"),  # MIDI key number, 0..127
        ("velocity", "<i4"),  # 1..127
        ("channel", "<i4"),  # 0..15; 9 is drums
        ("program", "<i4"),  # General MIDI program, 0..127
        ("track", "<i4"),  # index into `Performance.track_names`
    ]
)

CONTROL_DTYPE = np.dtype(
    [
        ("time_sec", "<f8"),
        ("tick", "<i8"),
        ("number", "<i4"),  # controller number, 0..127
        ("value", "<i4"),  # 0..127
        ("channel", "<i4"),
        ("track", "<i4"),
    ]
)

BEND_DTYPE = np.dtype(
    [("time_sec", "<f8"), ("tick", "<i8"), ("value", "<i4"), ("channel", "<i4"), ("track", "<i4")]  # -8192..8191
)

TEMPO_DTYPE = np.dtype([("time_sec", "<f8"), ("tick", "<i8"), ("usec_per_quarter", "<i8")])

TIME_SIGNATURE_DTYPE = np.dtype([("time_sec", "<f8"), ("tick", "<i8"), ("numerator", "<i4"), ("denominator", "<i4")])

KEY_SIGNATURE_DTYPE = np.dtype([("time_sec", "<f8"), ("tick", "<i8"), ("fifths", "<i4"), ("minor", "?")])

DRUM_CHANNEL = 9


@dataclass
class Performance:
    """Everything that a MIDI file says and a model may want.

    Attributes:
        notes: [notes] of `NOTE_DTYPE`, sorted by onset tick, then track, channel and pitch; file order breaks ties.
        controls: [controls] of `CONTROL_DTYPE`, in time order. Pedal is controller 64.
        bends: [bends] of `BEND_DTYPE`, in time order.
        tempos: [tempos] of `TEMPO_DTYPE`; the first is at tick 0. Empty means 120 bpm.
        time_signatures: [signatures] of `TIME_SIGNATURE_DTYPE`.
        key_signatures: [signatures] of `KEY_SIGNATURE_DTYPE`.
        ticks_per_quarter: Resolution of the tick clock. Files that count ticks of a second (SMPTE division) get a
            resolution and one tempo that give their ticks exactly that length.
        track_names: Name of each track of the file, "" where it has none.
        warnings: What the reader had to mend, one sentence each.
    """

    notes: np.ndarray = field(default_factory=partial(np.empty, 0, NOTE_DTYPE))
    controls: np.ndarray = field(default_factory=partial(np.empty, 0, CONTROL_DTYPE))
    bends: np.ndarray = field(default_factory=partial(np.empty, 0, BEND_DTYPE))
    tempos: np.ndarray = field(default_factory=partial(np.empty, 0, TEMPO_DTYPE))
    time_signatures: np.ndarray = field(default_factory=partial(np.empty, 0, TIME_SIGNATURE_DTYPE))
    key_signatures: np.ndarray = field(default_factory=partial(np.empty, 0, KEY_SIGNATURE_DTYPE))
    ticks_per_quarter: int = 480
    track_names: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def end_sec(self) -> float:
        """End of the last note (seconds); 0 for a file without notes."""
        if len(self.notes) == 0:
            return 0.0
        return float((self.notes["onset_sec"] + self.notes["duration_sec"]).max())

    def with_notes(self, notes: np.ndarray) -> Performance:
        """The same performance with other notes, [notes] of `NOTE_DTYPE`."""
        return replace(self, notes=notes)


def is_drum(notes: np.ndarray) -> np.ndarray:
    """Which notes are drums, [notes] bool: General MIDI reserves channel 10 (index 9) for them."""
    return notes["channel"] == DRUM_CHANNEL


def struck_notes(notes: np.ndarray, start_sec: float, duration_sec: float) -> np.ndarray:
    """Pitched notes that begin in a stretch of time, with its start as time 0; they end with it."""
    onset = notes["onset_sec"] - start_sec
    chosen = (onset >= 0) & (onset < duration_sec) & ~is_drum(notes)
    struck = notes[chosen].copy()
    struck["onset_sec"] = onset[chosen]
    struck["duration_sec"] = np.minimum(struck["duration_sec"], duration_sec - struck["onset_sec"])
    return struck
