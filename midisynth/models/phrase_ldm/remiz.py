"""REMI-z, the music itself: bars of tracks of notes, and how they come from a `Performance` and become one.

Time inside a bar is counted in positions, twelfths of a quarter note. Every bar stands for itself: a track is what one
instrument begins to play in one bar, and PhraseVAE calls it a phrase. Tokens are in `texts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from midisynth.errors import DataError
from midisynth.models.phrase_ldm.grid import (
    DRUMS,
    POSITIONS_PER_QUARTER,
    TICKS_PER_POSITION,
    Columns,
    Compat,
    folded,
    positions,
    to_performance,
)
from midisynth.music.clock import TempoMap
from midisynth.music.midi import program_name
from midisynth.music.notes import Performance

#: Longest song (positions): files can state times that no memory has room for.
MAX_POSITIONS = 20_000 * 4 * POSITIONS_PER_QUARTER


class Note(NamedTuple):
    """One note of a bar.

    Attributes:
        onset: Positions from the start of the bar.
        pitch: MIDI key number.
        duration: Positions, 1 to 127.
        velocity: 0 to 127.
    """

    onset: int
    pitch: int
    duration: int
    velocity: int


@dataclass
class Track:
    """What one instrument begins to play in one bar.

    Attributes:
        program: General MIDI program, or `DRUMS`.
        notes: In the order of the tokens, see `sort_notes`.
        name: Tells instruments of one program apart where that is asked for.
    """

    program: int
    notes: list[Note]
    name: str = ""

    @property
    def mean_pitch(self) -> float:
        """By which the tracks of a bar are ordered; -1 for drums, 0 without notes."""
        if self.program == DRUMS:
            return -1.0
        return sum(note.pitch for note in self.notes) / len(self.notes) if self.notes else 0.0


@dataclass
class Bar:
    """One bar.

    Attributes:
        tracks: From the highest mean pitch to the lowest, drums last.
        time_signature: Numerator and denominator.
        tempo: Quarter notes a minute, two decimals.
    """

    tracks: list[Track] = field(default_factory=list)
    time_signature: tuple[int, int] = (4, 4)
    tempo: float = 120.0

    @property
    def length(self) -> int:
        """Positions in the bar."""
        return bar_length(*self.time_signature)


def bar_length(numerator: int, denominator: int) -> int:
    """Positions in a bar, at least one."""
    return max(1, numerator * 4 * POSITIONS_PER_QUARTER // denominator)


def sort_notes(notes: Sequence[Note]) -> list[Note]:
    """Onset ascending; then pitch, duration and velocity descending."""
    return sorted(notes, key=lambda note: (note.onset, -note.pitch, -note.duration, -note.velocity))


def sort_tracks(tracks: Sequence[Track]) -> list[Track]:
    """From the highest mean pitch to the lowest; equals stay in their order."""
    return sorted(tracks, key=lambda track: -track.mean_pitch)


def bars_from_performance(
    performance: Performance, *, multi_instance: bool = False, compat: Compat = None
) -> list[Bar]:
    """Cut music into bars by the metre that it states.

    Onsets and releases go to the nearest position; durations are limited to `MAX_DURATION`. Notes of one program are
    one track. The last bar is that of the last onset.

    By default a bar is labelled with the signature that gives its length and with its mean tempo, and of notes that
    would sound on one key at once in a track the later one ends the earlier. Then `performance_from_bars` gives back
    music of exactly these bars.

    With `compat` a bar takes the last signature and tempo that stand in it, notes may overlap, and track names that
    contain `128` or `instrument_N` override the program.

    Args:
        performance: Read it with `overlap="fifo"` where `compat` shall agree with what the original reads.
        multi_instance: Keep tracks of one program apart by their name.
        compat: See `Compat`.

    Raises:
        DataError: It is longer than any song.
    """
    notes = performance.notes
    if len(notes) == 0:
        return []
    columns = Columns.of(performance, multi_instance, compat)
    if compat is None:
        columns = columns.without_overlap()
    grid = int(columns.onset.max()) + 1
    if grid > MAX_POSITIONS:
        raise DataError(f"has {grid // (4 * POSITIONS_PER_QUARTER):,} bars of 4/4: no song is as long")
    starts, bars = _empty_bars(performance, grid, compat)
    bar = np.searchsorted(starts, columns.onset, side="right") - 1
    inside = columns.onset - starts[bar]
    # A track comes into being with its first note, which decides the order of tracks of equal pitch.
    order = np.lexsort((columns.order, columns.onset, bar) if compat else (columns.order, columns.group, bar))
    parts: dict[tuple[int, int], Track] = {}
    for index in order.tolist():
        key = (int(bar[index]), int(columns.group[index]))
        if key not in parts:
            program, name = columns.instruments[key[1]]
            parts[key] = Track(program, [], name)
            bars[key[0]].tracks.append(parts[key])
        parts[key].notes.append(
            Note(
                int(inside[index]),
                int(columns.pitch[index]),
                int(columns.duration[index]),
                int(columns.velocity[index]),
            )
        )
    for part in parts.values():
        part.notes = sort_notes(part.notes)
    for item in bars:
        item.tracks = sort_tracks(item.tracks)
    return bars


def performance_from_bars(
    bars: Sequence[Bar],
    *,
    programs: Mapping[int, int] | None = None,
    transpose: Mapping[int, int] | None = None,
    velocities: Mapping[int, int] | None = None,
    tempo: float | None = None,
    compat: Compat = None,
) -> Performance:
    """Music of bars, one track for each instrument, named after it.

    Args:
        bars: One after the other.
        programs: Program to play in place of another.
        transpose: Semitones to add to the notes of a program; pitches that leave MIDI's range come back by octaves.
        velocities: Velocity for all notes of a program. Programs are those of `bars` in all three.
        tempo: Of the whole (quarter notes a minute) in place of the bars' own.
        compat: "published" names tracks `Instrument_N` and lets notes of one key overlap; by default the later ends
            the earlier, since a MIDI file cannot tell their releases apart.
    """
    programs, transpose, velocities = programs or {}, transpose or {}, velocities or {}
    starts = np.concatenate([[0], np.cumsum([bar.length for bar in bars])])[:-1].astype(np.int64)
    instruments: dict[tuple[int, str], int] = {}
    rows = [
        (int(start) + note.onset, note.duration, note.pitch, note.velocity, index)
        for start, bar in zip(starts, bars, strict=True)
        for track in bar.tracks
        for index in [instruments.setdefault((track.program, track.name), len(instruments))]
        for note in track.notes
    ]
    table = np.array(rows, np.int64).reshape(-1, 5)
    columns = Columns(*(table[:, column] for column in range(5)), np.arange(len(table)), list(instruments))
    for index, (program, _) in enumerate(instruments):
        chosen = columns.group == index
        columns.pitch[chosen] = folded(columns.pitch[chosen] + transpose.get(program, 0))
        if program in velocities:
            columns.velocity[chosen] = velocities[program]
    if compat is None:
        columns = columns.without_overlap()
    names = [_track_name(programs.get(program, program), name, compat) for program, name in instruments]
    played = [programs.get(program, program) for program, _ in instruments]
    return to_performance(columns, played, names, _tempos(bars, starts, tempo), _signatures(bars, starts))


def _reduced(numerator: int, denominator: int) -> tuple[int, int]:
    """The signature of the vocabulary that stands for one which is too fine or too long."""
    while denominator > 64:
        numerator, denominator = (numerator + 1) // 2, denominator // 2
    while numerator > 2 * denominator:
        numerator //= next(divisor for divisor in range(2, numerator + 1) if numerator % divisor == 0)
    return numerator, denominator


def _empty_bars(performance: Performance, grid: int, compat: Compat) -> tuple[np.ndarray, list[Bar]]:
    """Bars without notes that cover `grid` positions, and where they start, [bars]."""
    table = performance.time_signatures
    changes = positions(table["tick"], performance.ticks_per_quarter).tolist()
    signatures = [_reduced(int(row["numerator"]), int(row["denominator"])) for row in table]
    if 0 not in changes:
        changes, signatures = [0, *changes], [(4, 4), *signatures]
    starts, bars = [], []
    start = latest = 0
    while start < grid:
        while latest + 1 < len(changes) and changes[latest + 1] <= start:
            latest += 1
        signature = signatures[latest]
        end = start + bar_length(*signature)
        if compat is not None:
            seen = np.searchsorted(changes, min(end, grid), side="left") - 1
            signature = signatures[seen]
        starts.append(start)
        bars.append(Bar([], signature))
        start = end
    ends = np.array([*starts[1:], start])
    for bar, tempo in zip(bars, _bar_tempi(performance, np.array(starts), ends, grid, compat), strict=True):
        bar.tempo = round(float(tempo), 2)
    return np.array(starts, np.int64), bars


def _bar_tempi(performance: Performance, starts: np.ndarray, ends: np.ndarray, grid: int, compat: Compat) -> np.ndarray:
    """Tempo of each bar (quarter notes a minute), [bars]: the mean, or with `compat` the last that stands in it."""
    clock = TempoMap.of(performance)
    resolution = performance.ticks_per_quarter
    if compat is not None:
        changes = positions(clock.start_ticks, resolution)
        seen = np.searchsorted(changes, np.minimum(ends, grid), side="left") - 1
        return 60e6 / clock.usec_per_quarter[seen]
    starts_sec, ends_sec = (
        clock.seconds(np.rint(edges * resolution / POSITIONS_PER_QUARTER)) for edges in (starts, ends)
    )
    ticks = np.rint(ends * resolution / POSITIONS_PER_QUARTER) - np.rint(starts * resolution / POSITIONS_PER_QUARTER)
    return 60 * ticks / resolution / (ends_sec - starts_sec)


def _track_name(program: int, name: str, compat: Compat) -> str:
    if compat is not None:
        return f"Instrument_{program}"
    return name or ("Drums" if program == DRUMS else program_name(program))


def _tempos(bars: Sequence[Bar], starts: np.ndarray, tempo: float | None) -> list[tuple[int, int]]:
    """Ticks and microseconds a quarter of the tempi of bars, where they change."""
    found: list[tuple[int, int]] = []
    for bar, start in zip(bars, starts.tolist(), strict=True):
        usec = round(60e6 / (tempo or bar.tempo))
        if not found or found[-1][1] != usec:
            found.append((start * TICKS_PER_POSITION, usec))
    return found


def _signatures(bars: Sequence[Bar], starts: np.ndarray) -> list[tuple[int, int, int]]:
    """Ticks, numerators and denominators of the time signatures of bars, where they change."""
    found: list[tuple[int, int, int]] = []
    for bar, start in zip(bars, starts.tolist(), strict=True):
        if not found or found[-1][1:] != bar.time_signature:
            found.append((start * TICKS_PER_POSITION, *bar.time_signature))
    return found
