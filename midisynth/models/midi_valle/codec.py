"""Notes as rows of six numbers, which is all that the language model sees of a performance, and back.

A row is pitch, velocity, duration, inter-onset interval, position in the bar and bar, each shifted by the four special
numbers. The clock is that of a file at 120 bpm in 4/4: 96 positions a quarter, so a position is 1/192 s and a bar 2 s.
The order of the rows and every rounding are those of the tokenizer that the published model was trained with (miditok
3.0.2 on symusic 0.4.5), in integers.

    codec = NoteRows()
    performance = codec.read("piece.mid")
    rows = codec.encode(performance)      # [notes + 2, 6]
    codec.decode(rows)                    # the performance again, within 1/384 s
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from midisynth.errors import DataError, MidiError
from midisynth.music.clock import DEFAULT_USEC_PER_QUARTER, ticks_from_seconds
from midisynth.music.midi import read_midi
from midisynth.music.notes import NOTE_DTYPE, TEMPO_DTYPE, Performance, is_drum
from midisynth.music.pedal import extend_by_pedal
from midisynth.music.rolls import KEYS, LOWEST_KEY

#: Where "published" does as the original program does, oddities included.
Compat = Literal["published"] | None

#: Special numbers of every column: padding, first row, last row, and one that the model does not use.
PAD, BOS, EOS, MASK = range(4)
SPECIALS = 4

PER_QUARTER = 96
PER_BAR = 4 * PER_QUARTER
#: Positions in a second at 120 bpm.
PER_SECOND = 2 * PER_QUARTER
VELOCITIES = 64
MAX_DURATION = 12 * PER_QUARTER
MAX_INTERVAL = PER_BAR - 1
#: Bars that the published model has embeddings for: 32 s of prompt and segment together.
BARS = 16

COLUMNS = ("pitch", "velocity", "duration", "interval", "position", "bar")
#: Rows of the model's tables, by column.
VOCABULARIES = (
    SPECIALS + KEYS,
    SPECIALS + VELOCITIES,
    SPECIALS + MAX_DURATION,
    SPECIALS + 2 * PER_BAR,
    SPECIALS + PER_BAR,
    SPECIALS + BARS,
)

#: Resolution of performances whose ticks come from seconds: 52 microseconds, far below a position.
FINE_TICKS = 9600


class NoteRows:
    """Performances to note rows and back.

    Args:
        pedal: Let notes sound as long as the sustain pedal holds them; rows know nothing else of the pedal. The
            published model was trained on the lengths of the keys.
        bars: Bars of 2 s that the rows can count.
        compat: "published" counts the ticks of the file whatever its tempo is, and takes the first track with notes.
    """

    def __init__(self, pedal: bool = False, bars: int = BARS, compat: Compat = None):
        self.pedal = pedal
        self.bars = bars
        self.compat = compat

    @property
    def max_sec(self) -> float:
        """Where the last bar ends (seconds): notes have to start before."""
        return self.bars * PER_BAR / PER_SECOND

    def read(self, path: str | Path, *, repair: bool = False, max_duration_sec: float = 7200.0) -> Performance:
        """Read a MIDI file as `encode` takes it; what had to be left out is in its `warnings`.

        Args:
            path: The file.
            repair: Read what is left of a damaged file.
            max_duration_sec: Longest file that is accepted (seconds).

        Raises:
            MidiError: It cannot be read, or no key of a piano is played in it.
        """
        # The tokenizer of the published model lets equal notes overlap.
        overlap: Literal["fifo", "restrike"] = "fifo" if self.compat else "restrike"
        performance = self.playable(read_midi(path, overlap=overlap, repair=repair, max_duration_sec=max_duration_sec))
        if len(performance.notes) == 0:
            raise MidiError(path, "has no notes of a piano: there is nothing to render")
        return performance

    def playable(self, performance: Performance) -> Performance:
        """What one piano plays of a performance: one track, 88 keys, at 120 bpm; a second application changes nothing.

        Controllers are kept. Times in seconds stay what they were; ticks do too where the file was at 120 bpm.
        """
        if self.compat:
            return performance
        return self._on_one_piano(extend_by_pedal(performance) if self.pedal else performance)

    @staticmethod
    def _on_one_piano(performance: Performance) -> Performance:
        warnings = list(performance.warnings)
        notes = performance.notes
        low, high = LOWEST_KEY, LOWEST_KEY + KEYS - 1
        drums = is_drum(notes)
        outside = ~drums & ((notes["pitch"] < low) | (notes["pitch"] > high))
        for count, what in (
            (int(drums.sum()), "notes of drums are left out"),
            (int(outside.sum()), f"notes outside the keys of a piano ({low} to {high}) are left out"),
        ):
            if count:
                warnings.append(f"{count} {what}")
        performance = _merged(replace(performance, notes=notes[~(drums | outside)], warnings=warnings))
        return performance if _is_at_120(performance) else in_seconds(performance)

    def encode(self, performance: Performance) -> np.ndarray:
        """Rows of a performance, from its start on.

        Args:
            performance: As `read` or `playable` returns it, or a segment of it.

        Returns:
            [notes + 2, 6] int64: the first row is of `BOS`, the last of `EOS`.

        Raises:
            DataError: A note starts after the last bar.
        """
        # Without the pedal, which a whole performance has had its effect of already: in a prompt it may stay down, and
        # must not hold the notes that follow.
        performance = performance if self.compat else self._on_one_piano(performance)
        notes = performance.notes
        if self.compat:
            notes = notes[notes["track"] == notes["track"].min()] if len(notes) else notes
            notes = notes[(notes["pitch"] >= LOWEST_KEY) & (notes["pitch"] < LOWEST_KEY + KEYS)]
        # Ticks of the file, not positions: notes that fall on one position keep the order in which they were played.
        notes = notes[np.lexsort((notes["duration_tick"], notes["pitch"], notes["onset_tick"]))]
        onset = _positions(notes["onset_tick"], performance.ticks_per_quarter)
        bar = onset // PER_BAR
        if len(bar) and bar[-1] >= self.bars:
            raise DataError(
                f"a note starts at {onset[-1] / PER_SECOND:.2f} s, and rows of {self.bars} bars reach "
                f"{self.max_sec:g} s, with the prompt: cut shorter segments"
            )
        columns = (
            notes["pitch"] - LOWEST_KEY,
            np.minimum(notes["velocity"] // 2, VELOCITIES - 1),
            np.clip(_positions(notes["duration_tick"], performance.ticks_per_quarter), 1, MAX_DURATION) - 1,
            np.minimum(np.diff(onset, prepend=onset[:1]), MAX_INTERVAL) + PER_BAR,
            onset % PER_BAR,
            bar,
        )
        rows = np.full((len(notes) + 2, len(columns)), BOS, np.int64)
        rows[1:-1] = np.stack(columns, axis=1) + SPECIALS
        rows[-1] = EOS
        return rows

    def decode(self, rows: np.ndarray) -> Performance:
        """The performance of rows [rows, 6]; those with a special number are no notes.

        Intervals are not read, because position and bar say the same without a limit.
        """
        values = np.asarray(rows, np.int64).reshape(-1, len(COLUMNS)) - SPECIALS
        values = values[(values >= 0).all(axis=1)]
        notes = np.zeros(len(values), NOTE_DTYPE)
        notes["pitch"] = values[:, 0] + LOWEST_KEY
        notes["velocity"] = 2 * values[:, 1] + 1
        notes["duration_tick"] = values[:, 2] + 1
        notes["onset_tick"] = values[:, 5] * PER_BAR + values[:, 4]
        notes["onset_sec"] = notes["onset_tick"] / PER_SECOND
        notes["duration_sec"] = notes["duration_tick"] / PER_SECOND
        return Performance(notes=notes, tempos=_at_120(), ticks_per_quarter=PER_QUARTER)


def _merged(performance: Performance) -> Performance:
    """All tracks and channels as one."""
    notes, controls = performance.notes.copy(), performance.controls.copy()
    for name in ("track", "channel", "program"):
        notes[name] = 0
    for name in ("track", "channel"):
        controls[name] = 0
    notes = notes[np.lexsort((notes["pitch"], notes["onset_tick"]))]
    return replace(performance, notes=notes, controls=controls, track_names=[])


def in_seconds(performance: Performance, ticks_per_quarter: int = FINE_TICKS) -> Performance:
    """The same performance at 120 bpm: its ticks come from its seconds."""
    return ticks_from_seconds(replace(performance, tempos=_at_120(), ticks_per_quarter=ticks_per_quarter))


def _at_120() -> np.ndarray:
    return np.array([(0.0, 0, DEFAULT_USEC_PER_QUARTER)], TEMPO_DTYPE)


def _is_at_120(performance: Performance) -> bool:
    return bool((performance.tempos["usec_per_quarter"] == DEFAULT_USEC_PER_QUARTER).all())


def _positions(ticks: np.ndarray, ticks_per_quarter: int) -> np.ndarray:
    """Ticks to the nearest positions, halves upwards."""
    return (2 * PER_QUARTER * ticks + ticks_per_quarter) // (2 * ticks_per_quarter)
