"""The parts of a score file to rows of `SCORE_NOTE_DTYPE`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from midisynth.music.score_marks import TempoMarks, loudness_columns, mark_columns
from midisynth.music.score_notes import SCORE_NOTE_DTYPE
from midisynth.music.score_parts import clock_of, common_resolution, sounding_pitches

if TYPE_CHECKING:
    from partitura.score import Note, Part


_ID_LENGTH = 48  # of the file; the rest of the field is for what makes ids unique


def score_rows(path: str, parts: Sequence[Part]) -> tuple[np.ndarray, int]:
    """Every pitched note of the parts.

    Args:
        path: The file, for errors.
        parts: As `score_files.open_score` has them.

    Returns:
        [notes] of `SCORE_NOTE_DTYPE`, sorted by onset and pitch, and the divisions of a quarter note.

    Raises:
        ScoreError: A pitch lies outside the range of MIDI.
    """
    divisions = common_resolution(parts)
    tables = [_part_rows(path, part, index, divisions) for index, part in enumerate(parts)]
    rows = np.concatenate(tables)
    tempo = TempoMarks(parts, divisions)
    rows["tempo"], rows["tempo_change"] = tempo.columns(rows["onset_div"])
    rows = rows[np.lexsort((rows["pitch"], rows["onset_div"]))]
    rows["id"] = unique_ids(rows["id"].tolist(), rows["part"].tolist())
    return rows, divisions


def unique_ids(ids: Sequence[str], parts: Sequence[int]) -> list[str]:
    """Ids that name one note each, [notes].

    Where parts share ids, those of part 3 get the prefix "P03_", as is usual in alignments; where notes of a part
    share one, the later ones get "_2", "_3".

    Args:
        ids: Of the file, with "-1", "-2" behind them where repeats are played, [notes].
        parts: Part of each note, [notes].
    """
    if len(set(zip(ids, parts, strict=True))) > len(set(ids)):
        ids = [f"P{part:02d}_{name}" for name, part in zip(ids, parts, strict=True)]
    taken = set(ids)
    seen: Counter[str] = Counter()
    unique = []
    for name in ids:
        seen[name] += 1
        fresh = name
        while seen[name] > 1 and fresh in taken:
            fresh = f"{name}_{seen[name]}"
            seen[name] += fresh in taken
        taken.add(fresh)
        unique.append(fresh)
    return unique


def _part_rows(path: str, part: Part, index: int, divisions: int) -> np.ndarray:
    """Rows of one part, unsorted, without tempo."""
    notes = part.notes_tied
    clock, beats, quarters = clock_of(part, divisions), part.beat_map, part.quarter_map
    onset = np.array([note.start.t for note in notes], np.int64)
    grace = np.array([_is_grace(note) for note in notes])
    end = np.where(grace, onset, onset + np.array([note.duration_tied for note in notes], np.int64))
    rows = np.zeros(len(notes), SCORE_NOTE_DTYPE)
    rows["id"] = [(note.id or f"n{number}")[:_ID_LENGTH] for number, note in enumerate(notes)]
    rows["onset_div"] = clock(onset)
    rows["duration_div"] = clock(end) - rows["onset_div"]
    for unit, to_unit in (("beat", beats), ("quarter", quarters)):
        rows[f"onset_{unit}"] = to_unit(onset)
        rows[f"duration_{unit}"] = to_unit(end) - rows[f"onset_{unit}"]
    rows["pitch"] = sounding_pitches(path, part, onset, np.array([note.midi_pitch for note in notes]))
    rows["voice"] = [note.voice or 1 for note in notes]
    rows["staff"] = [note.staff or 0 for note in notes]
    rows["part"] = index
    rows["grace"] = grace
    _add_bars(rows, part, onset)
    _add_keys(rows, part, onset)
    rows["loudness"], rows["loudness_change"], forced = loudness_columns(part, onset, rows["staff"])
    for name, column in mark_columns(part, notes, onset, rows["voice"]).items():
        rows[name] = column
    rows["accent"] |= forced
    return rows


def _is_grace(note: Note) -> bool:
    from partitura.score import GraceNote

    return isinstance(note, GraceNote)


def _add_bars(rows: np.ndarray, part: Part, onset: np.ndarray) -> None:
    """Fill in which bar a note is in, and where.

    Args:
        rows: [notes] of `SCORE_NOTE_DTYPE` with beats; changed in place.
        part: Has the bars.
        onset: Times of the part (its own divisions), [notes].
    """
    from partitura.score import Measure

    starts = np.array(sorted({bar.start.t for bar in part.iter_all(Measure)} | {part.first_point.t}), np.int64)
    first_beat = np.asarray(part.beat_map(starts), np.float64)
    length = np.diff(np.append(first_beat, float(part.beat_map(part.last_point.t))))
    full = np.asarray(part.time_signature_map(starts), np.float64).reshape(len(starts), -1)[:, 0]
    bar = np.searchsorted(starts, onset, side="right") - 1
    rows["bar"] = bar
    rows["bar_beats"] = full[bar]
    rows["bar_beat"] = rows["onset_beat"] - first_beat[bar] + bar_offsets(length, full)[bar]


def bar_offsets(length: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Beats that are missing before each bar, [bars]: those of a pick-up, and of the second half of a split bar.

    Args:
        length: Of each bar as it is written (beats), [bars].
        full: Of each bar by its time signature (beats), [bars].
    """
    offset = np.zeros(len(length))
    short = (length < full - 1e-6) & (length > 0)
    if len(short) > 1 and short[0]:
        offset[0] = full[0] - length[0]
    for bar in np.flatnonzero(short[1:] & short[:-1]) + 1:
        if offset[bar - 1] == 0 and math.isclose(length[bar - 1] + length[bar], full[bar], abs_tol=1e-6):
            offset[bar] = length[bar - 1]
    return offset


def _add_keys(rows: np.ndarray, part: Part, onset: np.ndarray) -> None:
    """Fill in sounding keys: those of instruments that transpose are moved along the circle of fifths."""
    from partitura.score import KeySignature, Transposition

    for key in part.iter_all(KeySignature):
        following = onset >= key.start.t
        rows["fifths"][following] = key.fifths or 0
        rows["minor"][following] = key.mode == "minor"
    moved = np.zeros(len(rows), np.int32)
    for change in part.iter_all(Transposition):
        moved[onset >= change.start.t] = (7 * (change.chromatic or 0) + 6) % 12 - 6
    rows["fifths"] += moved
