"""Ticks to seconds and back through a tempo map, without the drift of adding up rounded steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from midisynth.music.notes import TEMPO_DTYPE, Performance

DEFAULT_USEC_PER_QUARTER = 500_000  # 120 bpm, what a file without tempo events means (SMF 1.0)


class TempoMap:
    """Piecewise constant tempo.

    Args:
        ticks: Where tempi begin (ticks), [tempos], in ascending order; the first is 0.
        usec_per_quarter: Length of a quarter note from there on (microseconds), [tempos].
        ticks_per_quarter: Resolution of the ticks.
    """

    def __init__(self, ticks: ArrayLike, usec_per_quarter: ArrayLike, ticks_per_quarter: int):
        self.ticks_per_quarter = int(ticks_per_quarter)
        self.start_ticks = np.asarray(ticks, np.int64)
        self.usec_per_quarter = np.asarray(usec_per_quarter, np.int64)
        # Python integers: exact and of any size, so that each start is rounded once however many tempi came before.
        elapsed = 0
        starts = [0.0]
        steps = np.diff(self.start_ticks).tolist()
        for step, usec in zip(steps, self.usec_per_quarter.tolist(), strict=False):
            elapsed += step * usec
            starts.append(elapsed / (self.ticks_per_quarter * 10**6))
        self.start_sec = np.asarray(starts)

    @classmethod
    def of(cls, performance: Performance) -> TempoMap:
        """The tempo map of a performance; 120 bpm if it has no tempi."""
        tempos = performance.tempos
        if len(tempos) == 0:
            return cls([0], [DEFAULT_USEC_PER_QUARTER], performance.ticks_per_quarter)
        return cls(tempos["tick"], tempos["usec_per_quarter"], performance.ticks_per_quarter)

    def seconds(self, ticks: ArrayLike) -> np.ndarray:
        """Times of `ticks` (seconds), float64, same shape."""
        ticks = np.asarray(ticks, np.int64)
        index = np.searchsorted(self.start_ticks, ticks, side="right") - 1
        usec_ticks = (ticks - self.start_ticks[index]).astype(np.float64) * self.usec_per_quarter[index]
        return self.start_sec[index] + usec_ticks / (self.ticks_per_quarter * 1e6)

    def ticks(self, seconds: ArrayLike) -> np.ndarray:
        """Nearest ticks to times (seconds), int64, same shape."""
        seconds = np.asarray(seconds, np.float64)
        index = np.maximum(np.searchsorted(self.start_sec, seconds, side="right") - 1, 0)
        offset = (seconds - self.start_sec[index]) * (self.ticks_per_quarter * 1e6) / self.usec_per_quarter[index]
        return self.start_ticks[index] + np.rint(offset).astype(np.int64)

    def table(self) -> np.ndarray:
        """The map as [tempos] of `TEMPO_DTYPE`."""
        table = np.empty(len(self.start_ticks), TEMPO_DTYPE)
        table["time_sec"] = self.start_sec
        table["tick"] = self.start_ticks
        table["usec_per_quarter"] = self.usec_per_quarter
        return table


def ticks_from_seconds(performance: Performance) -> Performance:
    """Set every tick from the seconds beside it: for notes that were made or changed in seconds.

    The tempo map stays; one at 120 bpm is added where there is none. Notes last at least one tick.

    Args:
        performance: Seconds are right, ticks are not.
    """
    clock = TempoMap.of(performance)
    notes = performance.notes.copy()
    notes["onset_tick"] = clock.ticks(notes["onset_sec"])
    end_tick = clock.ticks(notes["onset_sec"] + notes["duration_sec"])
    notes["duration_tick"] = np.maximum(end_tick - notes["onset_tick"], 1)
    notes = notes[np.lexsort((notes["pitch"], notes["channel"], notes["track"], notes["onset_tick"]))]
    changed: dict[str, Any] = {"notes": notes, "tempos": clock.table()}
    for name in ("controls", "bends", "time_signatures", "key_signatures"):
        changed[name] = getattr(performance, name).copy()
        changed[name]["tick"] = clock.ticks(changed[name]["time_sec"])
    return replace(performance, **changed)
