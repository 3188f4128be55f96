"""Scores to notes: what the page says, as `Performance` without expression or as `Score` with every mark.

partitura does the reading of MusicXML and MEI; `score_files` opens, `score_rows` and `score_marks` interpret.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from midisynth.errors import ScoreError
from midisynth.music.clock import DEFAULT_USEC_PER_QUARTER, TempoMap
from midisynth.music.notes import (
    DRUM_CHANNEL,
    KEY_SIGNATURE_DTYPE,
    NOTE_DTYPE,
    TIME_SIGNATURE_DTYPE,
    Performance,
)
from midisynth.music.score_files import one_line, open_score
from midisynth.music.score_midi import read_score_midi
from midisynth.music.score_notes import DEADPAN_VELOCITY, GRACE_SHARE, Score
from midisynth.music.score_parts import clock_of, common_resolution, sounding_pitches
from midisynth.music.score_rows import score_rows

if TYPE_CHECKING:
    from partitura.score import Part

#: Suffixes of the files that `read_score_notes` reads.
SCORE_SUFFIXES = (".musicxml", ".xml", ".mxl", ".mei", ".krn", ".mid", ".midi")


def read_score(path: str | os.PathLike[str], *, repeats: bool = True, max_duration_sec: float = 7200.0) -> Performance:
    """Read a score as strictly quantised notes at its own tempo (120 quarters a minute where it has none).

    Every part becomes a track with program 0, every note has velocity 64, grace notes sound with their main note.

    Args:
        path: .musicxml, .xml, .mxl, .mei or .krn file.
        repeats: Play repeats, voltas and da capo as a player would; otherwise read the page once.
        max_duration_sec: Longest score that is accepted (seconds).

    Raises:
        ScoreError: The file cannot be read, or is refused; the text names the cause.
    """
    path = os.fspath(path)
    opened = open_score(path, repeats)
    try:
        performance = _performance(path, opened.parts)
    except ScoreError:
        raise
    except Exception as error:  # partitura computes much of a part only when it is asked
        raise ScoreError(path, f"partitura cannot play it: {one_line(error)}") from error
    if performance.end_sec > max_duration_sec:
        raise ScoreError(
            path,
            f"it lasts {performance.end_sec:,.0f} s, over the limit of {max_duration_sec:,.0f} s (`max_duration_sec`)",
        )
    performance.warnings = opened.warnings
    return performance


def read_score_notes(path: str | os.PathLike[str], *, repeats: bool = True) -> Score:
    """Read a score with all that the page says of its notes.

    No note is lost: grace notes are rows of their own, ornaments stay marks of their main note, voices in unison keep
    a row each. Several parts become one list.

    Args:
        path: .musicxml, .xml, .mxl, .mei or .krn file, or a quantised MIDI file (.mid, .midi).
        repeats: Play repeats, voltas and da capo as a player would; otherwise read the page once. MIDI has none.

    Raises:
        ScoreError: The file cannot be read, is refused, has no notes, or is MIDI of a performance.
        MidiError: A MIDI file cannot be read.
    """
    path = os.fspath(path)
    if path.lower().endswith((".mid", ".midi")):
        return read_score_midi(path)
    opened = open_score(path, repeats)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # partitura says so wherever a metre is missing
            notes, divisions = score_rows(path, opened.parts)
    except ScoreError:
        raise
    except Exception as error:  # partitura computes much of a part only when it is asked
        raise ScoreError(path, f"partitura cannot read its notes: {one_line(error)}") from error
    return Score(notes, divisions, opened.title, opened.warnings)


def _performance(path: str, parts: list[Part]) -> Performance:
    from partitura.score import KeySignature, Tempo, TimeSignature

    resolution = common_resolution(parts, least=480)
    tempos: dict[int, Any] = {0: DEFAULT_USEC_PER_QUARTER}
    metres: dict[int, Any] = {}
    keys: dict[int, Any] = {}
    tables = []
    for track, part in enumerate(parts):
        to_tick = clock_of(part, resolution)
        tables.append(_notes(path, part, track, to_tick, resolution))
        for kind, found in ((Tempo, tempos), (TimeSignature, metres), (KeySignature, keys)):
            found |= {int(to_tick(event.start.t)): event for event in part.iter_all(kind)}
    usec = {tick: event if isinstance(event, int) else event.microseconds_per_quarter for tick, event in tempos.items()}
    if not all(0 < value < 2**24 for value in usec.values()):
        raise ScoreError(path, "its tempo is impossible; quarter notes last up to 16.7 s")
    clock = TempoMap(sorted(usec), [usec[tick] for tick in sorted(usec)], resolution)
    metre_rows = [(float(clock.seconds(t)), t, e.beats, e.beat_type) for t, e in sorted(metres.items())]
    key_rows = [(float(clock.seconds(t)), t, e.fifths, e.mode == "minor") for t, e in sorted(keys.items())]
    notes = np.concatenate(tables)
    notes["onset_sec"] = clock.seconds(notes["onset_tick"])
    notes["duration_sec"] = clock.seconds(notes["onset_tick"] + notes["duration_tick"]) - notes["onset_sec"]
    return Performance(
        notes=notes[np.lexsort((notes["pitch"], notes["channel"], notes["track"], notes["onset_tick"]))],
        tempos=clock.table(),
        time_signatures=np.array(metre_rows, TIME_SIGNATURE_DTYPE),
        key_signatures=np.array(key_rows, KEY_SIGNATURE_DTYPE),
        ticks_per_quarter=resolution,
        track_names=[part.part_name or "" for part in parts],
    )


def _notes(path: str, part: Part, track: int, to_tick: Callable[[Any], np.ndarray], resolution: int) -> np.ndarray:
    """[notes] of `NOTE_DTYPE` without seconds, at sounding pitch."""
    written = part.note_array()
    notes = np.zeros(len(written), NOTE_DTYPE)
    notes["onset_tick"] = to_tick(written["onset_div"])
    duration = to_tick(written["onset_div"] + written["duration_div"]) - notes["onset_tick"]
    notes["duration_tick"] = np.where(written["duration_div"] > 0, np.maximum(duration, 1), resolution // GRACE_SHARE)
    notes["pitch"] = sounding_pitches(path, part, written["onset_div"], written["pitch"])
    notes["velocity"] = DEADPAN_VELOCITY
    melodic = [channel for channel in range(16) if channel != DRUM_CHANNEL]
    notes["channel"] = melodic[track % len(melodic)]
    notes["track"] = track
    return notes
