"""Files that say which note of a performance plays which note of a score.

Three forms are in use: match files, which hold score and performance besides; the tables of (n)ASAP
(`note_alignment.tsv`); and those of Parangonada (`align.csv`), which parangonar writes too. Ids of played notes depend
on the program that counted them, so that tables are joined with a MIDI file by time and pitch.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import warnings
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from midisynth.errors import AlignmentError
from midisynth.music.alignment import AlignedPerformance, ScoreIds, unique_pairs
from midisynth.music.clock import DEFAULT_USEC_PER_QUARTER, TempoMap
from midisynth.music.notes import CONTROL_DTYPE, NOTE_DTYPE, Performance
from midisynth.music.score_files import one_line
from midisynth.music.score_notes import Score
from midisynth.music.score_rows import score_rows

if TYPE_CHECKING:
    from partitura.io.matchfile_base import MatchFile

_SUSTAIN, _SOFT = 64, 67  # controllers
_LEAST_FOUND = 0.5  # of the notes that a table names; with fewer it belongs to other files


def read_match(path: str | os.PathLike[str], score: Score | None = None) -> AlignedPerformance:
    """Read a match file, version 0.1 to 1.0.

    Args:
        path: The file.
        score: The score that its ids refer to, with more marks than a match file has. None: the notes of the file.

    Raises:
        AlignmentError: It cannot be read, has no notes, or belongs to another score.
    """
    path = os.fspath(path)
    file = _open_match(path)
    performance, rows = _match_performance(path, file)
    if score is None:
        score = _match_score(path, file)
    from partitura.io.importmatch import note_alignment_from_matchfile

    named = [
        (entry["score_id"], rows[entry["performance_id"]])
        for entry in note_alignment_from_matchfile(file)
        if entry["label"] == "match"
    ]
    return AlignedPerformance(score, performance, _joined(path, score, named))


def read_alignment_table(path: str | os.PathLike[str], score: Score, performance: Performance) -> AlignedPerformance:
    """Read an alignment of (n)ASAP: a table of the columns xml_id, midi_id, track, channel, pitch and onset (s).

    Args:
        path: note_alignment.tsv
        score: The score that its ids refer to.
        performance: The MIDI file that it refers to.

    Raises:
        AlignmentError: It cannot be read, or belongs to other files.
    """
    path = os.fspath(path)
    rows = _table(path, "\t", ("xml_id", "midi_id", "pitch", "onset"))
    played = [row for row in rows if row["xml_id"] != "insertion" and row["midi_id"] != "deletion"]
    notes = _found(path, performance, [(row["onset"], row["pitch"]) for row in played])
    named = [(row["xml_id"], note) for row, note in zip(played, notes, strict=True) if note is not None]
    return AlignedPerformance(score, performance, _joined(path, score, named))


def read_parangonada(path: str | os.PathLike[str], score: Score, performance: Performance) -> AlignedPerformance:
    """Read an alignment of Parangonada.

    Args:
        path: align.csv, or the folder that has it. ppart.csv beside it says which notes its ids are; where there is
            none, they count the notes by onset and pitch, as partitura does.
        score: The score that its ids refer to.
        performance: The MIDI file that it refers to.

    Raises:
        AlignmentError: It cannot be read, or belongs to other files.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "align.csv"
    matches = [row for row in _table(str(file), ",", ("matchtype", "partid", "ppartid")) if row["matchtype"] == "0"]
    names = _played_names(file.with_name("ppart.csv"), performance)
    named = [(row["partid"], names[row["ppartid"]]) for row in matches if row["ppartid"] in names]
    if len(named) < _LEAST_FOUND * len(matches):
        raise AlignmentError(
            file, f"{len(matches) - len(named)} of its {len(matches)} played notes are not in the MIDI"
        )
    return AlignedPerformance(score, performance, _joined(str(file), score, named))


def _joined(path: str, score: Score, named: list[tuple[str, int]]) -> np.ndarray:
    """Pairs of rows from ids of the score and rows of the performance."""
    ids = ScoreIds(score)
    found = [(row, note) for row, note in ((ids.row(name), note) for name, note in named) if row is not None]
    if len(found) < _LEAST_FOUND * len(named) or not named:
        raise AlignmentError(
            path, f"{len(named) - len(found)} of the {len(named)} notes that it matches are not in the score"
        )
    return unique_pairs(found)


def _table(path: str, delimiter: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of a table with a line of names."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=delimiter))
    except OSError as error:
        raise AlignmentError(path, error.strerror or str(error)) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise AlignmentError(path, f"not a table ({one_line(error)})") from None
    absent = [name for name in columns if name not in (rows[0] if rows else {})]
    if absent:
        raise AlignmentError(path, f"it has no column '{absent[0]}'" if rows else "it has no rows")
    return rows


def _found(path: str, performance: Performance, wanted: list[tuple[str, str]]) -> list[int | None]:
    """Rows of the performance for onsets (s) and pitches as a table writes them; None for a note that is not there.

    Several notes of one pitch and moment are taken in turn.
    """
    try:
        onset = np.array([float(time) for time, _ in wanted])
        pitch = [int(float(number)) for _, number in wanted]
    except (TypeError, ValueError) as error:
        raise AlignmentError(path, f"a time or pitch is not a number ({error})") from None
    waiting: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    notes = performance.notes
    for row in range(len(notes) - 1, -1, -1):
        waiting[int(notes["onset_tick"][row]), int(notes["pitch"][row])].append(row)
    found: list[int | None] = []
    for tick, key in zip(TempoMap.of(performance).ticks(onset).tolist(), pitch, strict=True):
        # Times are written with 7 digits or as sums of floats: a tick more or less.
        rows = next((waiting[at, key] for at in (tick, tick - 1, tick + 1) if waiting.get((at, key))), None)
        found.append(rows.pop() if rows else None)
    missing = found.count(None)
    if missing > (1 - _LEAST_FOUND) * len(found):
        raise AlignmentError(path, f"{missing} of its {len(found)} played notes are not in the MIDI file")
    return found


def _played_names(table: Path, performance: Performance) -> dict[str, int]:
    """Id of a played note to its row."""
    if table.is_file():
        rows = _table(str(table), ",", ("id", "onset_sec", "pitch"))
        notes = _found(str(table), performance, [(row["onset_sec"], row["pitch"]) for row in rows])
        return {row["id"]: note for row, note in zip(rows, notes, strict=True) if note is not None}
    order = np.lexsort((performance.notes["pitch"], performance.notes["onset_tick"]))
    return {f"n{number}": row for number, row in enumerate(order.tolist())}


def _open_match(path: str) -> MatchFile:
    try:
        from partitura.io.importmatch import load_matchfile
    except Exception as error:  # some versions reach for the network at import and fail with URLError
        raise AlignmentError(
            path, f"partitura, which reads match files, cannot be imported: {one_line(error)}"
        ) from error
    try:
        if not Path(path).read_bytes().strip():
            raise AlignmentError(path, "it is empty")
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):  # it prints lines that it cannot read
            warnings.simplefilter("ignore")
            file = load_matchfile(path)
            if not file.notes or not file.note_pairs:
                raise AlignmentError(path, "it matches no notes")
            return file
    except AlignmentError:
        raise
    except OSError as error:
        raise AlignmentError(path, error.strerror or str(error)) from None
    except Exception as error:  # partitura has no error type of its own
        raise AlignmentError(path, f"partitura cannot read it: {one_line(error)}") from error


def _match_performance(path: str, file: MatchFile) -> tuple[Performance, dict[str, int]]:
    """The performance of a match file, and the row of each id."""
    from partitura.io.matchfile_utils import format_pnote_id

    resolution = int(file.info("midiClockUnits") or 480)
    clock = TempoMap([0], [int(file.info("midiClockRate") or DEFAULT_USEC_PER_QUARTER)], resolution)
    notes = np.zeros(len(file.notes), NOTE_DTYPE)
    notes["onset_tick"] = [note.Onset for note in file.notes]
    notes["duration_tick"] = np.maximum([note.Offset for note in file.notes] - notes["onset_tick"], 1)
    notes["pitch"] = [note.MidiPitch for note in file.notes]
    notes["velocity"] = np.clip([note.Velocity for note in file.notes], 1, 127)
    notes["onset_sec"] = clock.seconds(notes["onset_tick"])
    notes["duration_sec"] = clock.seconds(notes["onset_tick"] + notes["duration_tick"]) - notes["onset_sec"]
    pedals = [(_SUSTAIN, event) for event in file.sustain_pedal] + [(_SOFT, event) for event in file.soft_pedal]
    controls = np.zeros(len(pedals), CONTROL_DTYPE)
    controls["number"] = [number for number, _ in pedals]
    controls["tick"] = [event.Time for _, event in pedals]
    controls["value"] = [event.Value for _, event in pedals]
    controls["time_sec"] = clock.seconds(controls["tick"])
    order = np.lexsort((notes["pitch"], notes["onset_tick"]))
    performance = Performance(
        notes=notes[order],
        controls=controls[np.argsort(controls["tick"], kind="stable")],
        tempos=clock.table(),
        ticks_per_quarter=resolution,
    )
    row = np.argsort(order)
    return performance, {format_pnote_id(note.Id): int(row[index]) for index, note in enumerate(file.notes)}


def _match_score(path: str, file: MatchFile) -> Score:
    """The score as far as a match file has it."""
    from partitura.io.importmatch import part_from_matchfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            notes, divisions = score_rows(path, [part_from_matchfile(file)])
        for beat, _, key in file.key_signatures:  # partitura puts them in the wrong place
            following = notes["onset_beat"] >= beat
            notes["fifths"][following], notes["minor"][following] = key.fifths, key.mode == "minor"
    except Exception as error:  # partitura has no error type of its own
        raise AlignmentError(path, f"partitura cannot read its score: {one_line(error)}") from error
    title = file.info("piece")
    return Score(notes, divisions, "" if title in (None, "-") else str(title))
