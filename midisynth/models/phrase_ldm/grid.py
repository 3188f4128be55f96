"""Notes of a whole song on one axis of positions: between a `Performance` and the bars of `remiz`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from midisynth.music.clock import TempoMap
from midisynth.music.notes import DRUM_CHANNEL, NOTE_DTYPE, TIME_SIGNATURE_DTYPE, Performance, is_drum

POSITIONS_PER_QUARTER = 12
#: Number of the instrument that stands for drums, one above General MIDI's programs.
DRUMS = 128
#: Longest note (positions).
MAX_DURATION = 127
TICKS_PER_QUARTER = 480
TICKS_PER_POSITION = TICKS_PER_QUARTER // POSITIONS_PER_QUARTER

#: "published": to the digit as the package remi_z 0.7.1 does; None: with its faults mended.
Compat = Literal["published"] | None


@dataclass
class Columns:
    """Notes of a whole song, [notes] each, on one axis of positions.

    Attributes:
        onset: Positions from the start.
        duration: Positions.
        pitch: MIDI key numbers.
        velocity: MIDI velocities.
        group: Index into `instruments`.
        order: Ranks by time, then track: the order in which instruments of equal pitch were first heard.
        instruments: Program and name.
    """

    onset: np.ndarray
    duration: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray
    group: np.ndarray
    order: np.ndarray
    instruments: list[tuple[int, str]]

    @classmethod
    def of(cls, performance: Performance, multi_instance: bool, compat: Compat) -> Columns:
        """Notes on the grid, instruments by program and name."""
        notes = performance.notes
        onset = positions(notes["onset_tick"], performance.ticks_per_quarter)
        end = positions(notes["onset_tick"] + notes["duration_tick"], performance.ticks_per_quarter)
        tracks = notes["track"].tolist()
        names = [performance.track_names[track] if track < len(performance.track_names) else "" for track in tracks]
        programs = np.where(is_drum(notes), DRUMS, notes["program"]).tolist()
        if compat is not None:
            programs = [_published_program(*item) for item in zip(programs, names, strict=True)]
        keys = list(zip(programs, names if multi_instance else [""] * len(names), strict=True))
        instruments = sorted(set(keys))
        rank = {key: index for index, key in enumerate(instruments)}
        return cls(
            onset=onset,
            duration=np.clip(end - onset, 1, MAX_DURATION),
            pitch=notes["pitch"].astype(np.int64),
            velocity=notes["velocity"].astype(np.int64),
            group=np.array([rank[key] for key in keys], np.int64),
            order=np.argsort(np.lexsort((notes["onset_tick"], notes["track"], onset))),
            instruments=instruments,
        )

    def without_overlap(self) -> Columns:
        """One note at a time on each key of an instrument.

        Of notes that begin together the longest stays; a note ends where the next one on its key begins.
        """
        order = np.lexsort((-self.velocity, -self.duration, self.onset, self.pitch, self.group))
        key = self.group[order] * 128 + self.pitch[order]
        onset = self.onset[order]
        repeats = np.concatenate([[False], (np.diff(key) == 0) & (np.diff(onset) == 0)])
        order = np.sort(order[~repeats]) if len(order) else order
        order = order[np.lexsort((self.onset[order], self.pitch[order], self.group[order]))]
        key, onset = self.group[order] * 128 + self.pitch[order], self.onset[order]
        duration = self.duration[order].copy()
        same = np.flatnonzero(np.diff(key) == 0)
        duration[same] = np.minimum(duration[same], np.diff(onset)[same])
        return Columns(
            onset,
            duration,
            self.pitch[order],
            self.velocity[order],
            self.group[order],
            self.order[order],
            self.instruments,
        )


def to_performance(
    columns: Columns,
    programs: list[int],
    names: list[str],
    tempos: list[tuple[int, int]],
    signatures: list[tuple[int, int, int]],
) -> Performance:
    """Both clocks from positions. The first track is empty: it holds tempi and signatures, as in files of type 1."""
    melodic = [channel for channel in range(16) if channel != DRUM_CHANNEL]
    channels, pitched = [], 0
    for program in programs:
        channels.append(DRUM_CHANNEL if program == DRUMS else melodic[pitched % len(melodic)])
        pitched += program != DRUMS
    ticks, usec = zip(*tempos, strict=True) if tempos else ((0,), (500_000,))
    clock = TempoMap(ticks, usec, TICKS_PER_QUARTER)
    notes = np.zeros(len(columns.onset), NOTE_DTYPE)
    notes["onset_tick"] = columns.onset * TICKS_PER_POSITION
    notes["duration_tick"] = columns.duration * TICKS_PER_POSITION
    notes["pitch"], notes["velocity"] = columns.pitch, np.clip(columns.velocity, 1, 127)
    if len(notes):
        notes["channel"] = np.array(channels)[columns.group]
        notes["program"] = np.array([0 if program == DRUMS else program for program in programs])[columns.group]
    notes["track"] = columns.group + 1
    notes["onset_sec"] = clock.seconds(notes["onset_tick"])
    notes["duration_sec"] = clock.seconds(notes["onset_tick"] + notes["duration_tick"]) - notes["onset_sec"]
    table = np.zeros(len(signatures), TIME_SIGNATURE_DTYPE)
    for row, (tick, numerator, denominator) in zip(table, signatures, strict=True):
        row["tick"], row["numerator"], row["denominator"] = tick, numerator, denominator
    table["time_sec"] = clock.seconds(table["tick"])
    return Performance(
        notes=notes[np.lexsort((notes["pitch"], notes["channel"], notes["track"], notes["onset_tick"]))],
        tempos=clock.table(),
        time_signatures=table,
        ticks_per_quarter=TICKS_PER_QUARTER,
        track_names=["", *names],
    )


def positions(ticks: np.ndarray, ticks_per_quarter: int) -> np.ndarray:
    """Nearest positions to ticks, int64, same shape; halves go to the even one."""
    return np.rint(ticks * POSITIONS_PER_QUARTER / ticks_per_quarter).astype(np.int64)


def folded(pitch: np.ndarray) -> np.ndarray:
    """Pitches outside 0 to 127 moved into it by octaves, same shape."""
    pitch = np.where(pitch < 0, pitch % 12, pitch)
    return np.where(pitch > 127, 116 + (pitch - 116) % 12, pitch)


def _published_program(program: int, name: str) -> int:
    """The program that remi_z takes from a track: drums if the name has `128` in it, N if it is `..instrument_.._N`."""
    last = name.split("_")[-1]
    if "instrument_" in name.lower() and last.isdigit():
        return int(last)
    return DRUMS if "128" in name else program
