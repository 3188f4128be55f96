"""Performances as piano rolls at the rate of ticks, whole or by segments."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np

from midisynth.errors import UsageError
from midisynth.music.notes import Performance, is_drum
from midisynth.music.pedal import SUSTAIN, extend_by_pedal
from midisynth.music.rolls import KEYS, LOWEST_KEY

logger = logging.getLogger(__name__)

#: Tables of events: row of the roll, first tick, tick after the last, value 0..1.
EVENT_DTYPE = np.dtype([("row", "<i4"), ("start", "<i8"), ("end", "<i8"), ("value", "<f4")])

#: Times that miss a tick by the last bits of a float belong to it (ticks).
_SAME_TICK = 1e-6


class RollCodec:
    """Performance -> events on a grid of ticks -> piano roll.

    All instruments count, drums excepted. Notes beyond the keys of a piano are left out, with a warning.

    Args:
        roll: "onset": the velocity at the tick of each onset. "sustained": at all ticks while a note sounds.
        pedal: "none" leaves the sustain pedal out. "row": its value at the tick where it moves, in a row of its own.
            "hold": its value until it moves again, likewise. "extend": notes sound until key and pedal are up.
        ticks_per_sec: Rate of ticks (Hz).
        compat: "seed" adds up what falls on one tick, where else the loudest note and the last of the pedal's moves
            count, and has no notes in a sustained roll that begin and end within a tick.

    Raises:
        UsageError: Onset rolls, which show no ends, with pedal "extend".
    """

    def __init__(
        self,
        roll: Literal["onset", "sustained"] = "onset",
        pedal: Literal["none", "row", "hold", "extend"] = "none",
        ticks_per_sec: int = 250,
        compat: Literal["seed"] | None = None,
    ):
        if roll == "onset" and pedal == "extend":
            raise UsageError("pedal extend lengthens notes, and roll onset does not show lengths: choose another")
        self.kind, self.pedal, self.ticks_per_sec, self.compat = roll, pedal, ticks_per_sec, compat

    @property
    def rows(self) -> int:
        """88 keys, and with pedal "row" or "hold" the pedal."""
        return KEYS + (self.pedal in ("row", "hold"))

    def ticks(self, performance: Performance) -> int:
        """Length of the roll: up to the tick of the last event, a controller or bend perhaps, and with it."""
        times = (performance.controls["time_sec"], performance.bends["time_sec"])
        return int(self._tick(np.max(np.concatenate([[performance.end_sec], *times])))) + 1

    def events(self, performance: Performance) -> np.ndarray:
        """What the roll shows, [events] of `EVENT_DTYPE`, by first tick: a small part of what the roll would take."""
        if self.pedal == "extend":
            performance = extend_by_pedal(performance)
        parts = [self._notes(performance)]
        if self.pedal in ("row", "hold"):
            parts.append(self._pedal(performance))
        events = np.concatenate(parts)
        return events[np.argsort(events["start"], kind="stable")]

    def roll(self, events: np.ndarray, start: int, ticks: int) -> np.ndarray:
        """Roll of a stretch, [rows, ticks] float32, from tick `start` on; empty where there are no events."""
        roll = np.zeros((self.rows, ticks), np.float32)
        sounding = events[(events["start"] < start + ticks) & (events["end"] > start)]
        combine = np.add if self.compat else np.maximum
        for row, first, end, value in sounding.tolist():
            cells = roll[row, max(first - start, 0) : end - start]
            combine(cells, value, out=cells)
        return roll

    def encode(self, performance: Performance) -> np.ndarray:
        """The whole roll, [rows, ticks] float32."""
        return self.roll(self.events(performance), 0, self.ticks(performance))

    def _tick(self, seconds: np.ndarray) -> np.ndarray:
        slack = 0.0 if self.compat else _SAME_TICK
        return np.floor(seconds * self.ticks_per_sec + slack).astype(np.int64)

    def _notes(self, performance: Performance) -> np.ndarray:
        notes = performance.notes[~is_drum(performance.notes)]
        key = notes["pitch"] - LOWEST_KEY
        on_keys = (key >= 0) & (key < KEYS)
        if not on_keys.all():
            logger.warning("%d notes beyond the 88 keys of a piano are left out", np.count_nonzero(~on_keys))
        notes = notes[on_keys]
        start = self._tick(notes["onset_sec"])
        end = start + 1
        if self.kind == "sustained":
            end = self._tick(notes["onset_sec"] + notes["duration_sec"])
            end = end if self.compat else np.maximum(end, start + 1)
        return _table(key[on_keys], start, end, notes["velocity"])

    def _pedal(self, performance: Performance) -> np.ndarray:
        moves = performance.controls[performance.controls["number"] == SUSTAIN]
        start = self._tick(moves["time_sec"])
        following = np.append(start[1:], self.ticks(performance))
        end = following if self.pedal == "hold" else start + 1
        table = _table(np.full(len(moves), KEYS), start, end[: len(moves)], moves["value"])
        return table if self.compat else table[following[: len(moves)] > start]


def silence_before_onset(roll: np.ndarray, codes: np.ndarray, hop: int, silence: int) -> np.ndarray:
    """A segment that starts from silence: codes before its first note, where earlier notes fade, are replaced.

    Args:
        roll: [rows, ticks], the keys first.
        codes: [ticks * hop].
        hop: Samples per tick.
        silence: Code of silence.
    """
    (sounding,) = np.nonzero(roll[:KEYS].any(axis=0))
    first = int(sounding[0]) * hop if len(sounding) else len(codes)
    return np.where(np.arange(len(codes)) < first, codes.dtype.type(silence), codes)


def _table(row: np.ndarray, start: np.ndarray, end: np.ndarray, value: np.ndarray) -> np.ndarray:
    table = np.empty(len(row), EVENT_DTYPE)
    table["row"], table["start"], table["end"], table["value"] = row, start, end, value / 127
    return table
