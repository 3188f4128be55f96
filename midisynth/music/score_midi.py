"""Quantised MIDI files as scores: what notation programs export and sequencers snap to a grid."""

from __future__ import annotations

import numpy as np

from midisynth.errors import ScoreError
from midisynth.music.midi import read_midi
from midisynth.music.notes import Performance, is_drum
from midisynth.music.score_notes import SCORE_NOTE_DTYPE, Score
from midisynth.music.score_rows import bar_offsets

_GRID = 48  # of a quarter note: thirty-seconds, and triplets of them
_QUANTISED = 0.5  # share of onsets on the grid; chance puts a tenth of a performance's there

_MAX_QUARTERS = 200_000


def read_score_midi(path: str) -> Score:
    """Read a quantised MIDI file; `score.read_score_notes` reads every kind of score.

    Every track and channel is a voice, tracks are staves, different programs are different parts. Tempo, metre and key
    are those of the file. Lengths that stop just short of the next sixteenth or triplet end there. Where velocities
    differ they say how loud notes are. Everything else that only a page says is left empty; drums are left out.

    Raises:
        MidiError: The file cannot be read.
        ScoreError: It has no notes, or is a performance.
    """
    midi = read_midi(path)
    notes = midi.notes[~is_drum(midi.notes)]
    warnings = list(midi.warnings)
    if len(notes) < len(midi.notes):
        warnings.append(f"{len(midi.notes) - len(notes)} notes of drums are left out")
    if len(notes) == 0:
        raise ScoreError(path, "it has no notes")
    share = on_grid(notes["onset_tick"], midi.ticks_per_quarter)
    if share < _QUANTISED:
        raise ScoreError(
            path,
            f"it is a performance, no score: {share:.0%} of its notes begin on the grid of {_GRID}ths of a quarter "
            "note; give the score, or quantise it in a notation program",
        )
    if int(notes["onset_tick"].max()) > _MAX_QUARTERS * midi.ticks_per_quarter:
        raise ScoreError(path, f"it is longer than {_MAX_QUARTERS:,} quarter notes")
    notes = notes[np.lexsort((notes["pitch"], notes["onset_tick"]))]
    title = next((name for name in midi.track_names if name), "")
    return Score(_rows(midi, notes), midi.ticks_per_quarter, title, warnings)


def on_grid(ticks: np.ndarray, ticks_per_quarter: int) -> float:
    """Share of times (ticks) that are a 48th of a quarter note, rounded to a tick."""
    nearest = np.rint(ticks * (_GRID / ticks_per_quarter)) * (ticks_per_quarter / _GRID)
    return float(np.mean(np.abs(ticks - nearest) <= 0.5))


def _rows(midi: Performance, notes: np.ndarray) -> np.ndarray:
    """[notes] of `SCORE_NOTE_DTYPE`.

    Args:
        midi: Has metre, key and tempo.
        notes: In the order of the score.
    """
    rows = np.zeros(len(notes), SCORE_NOTE_DTYPE)
    rows["id"] = [f"n{number}" for number in range(len(notes))]
    rows["onset_div"] = notes["onset_tick"]
    rows["duration_div"] = _written_lengths(notes, midi.ticks_per_quarter)
    rows["pitch"] = notes["pitch"]
    _, voice = np.unique(notes["track"] * 16 + notes["channel"], return_inverse=True)
    tracks, staff = np.unique(notes["track"], return_inverse=True)
    _, part = np.unique(notes["program"], return_inverse=True)
    rows["voice"], rows["part"] = voice + 1, part
    rows["staff"] = staff + 1 if len(tracks) > 1 else 0
    _add_metre(rows, midi)
    for key in midi.key_signatures:
        following = rows["onset_div"] >= key["tick"]
        rows["fifths"][following], rows["minor"][following] = key["fifths"], key["minor"]
    tempo = np.searchsorted(midi.tempos["tick"], notes["onset_tick"], side="right") - 1
    rows["tempo"] = 60e6 / midi.tempos["usec_per_quarter"][tempo]
    rows["loudness"] = notes["velocity"] if len(np.unique(notes["velocity"])) > 1 else np.nan
    return rows


def _written_lengths(notes: np.ndarray, ticks_per_quarter: int) -> np.ndarray:
    """Lengths as they were written: programs end notes by up to a tenth too early, [notes] (ticks)."""
    end = notes["onset_tick"] + notes["duration_tick"]
    grid = [np.ceil(end * (parts / ticks_per_quarter)) * (ticks_per_quarter / parts) for parts in (4, 3)]
    written = np.rint(np.min(grid, axis=0)).astype(np.int64)
    near = written - end <= notes["duration_tick"] / 10
    return np.where(near, written, end) - notes["onset_tick"]


def _add_metre(rows: np.ndarray, midi: Performance) -> None:
    """Fill in beats, quarters and bars from the time signatures, 4/4 where there are none; `rows` is changed."""
    quarter = midi.ticks_per_quarter
    signatures = {0: (4, 4)} | {
        int(s["tick"]): (int(s["numerator"]), int(s["denominator"])) for s in midi.time_signatures
    }
    starts = np.array(sorted(signatures), np.int64)
    beats, unit = np.array([signatures[tick] for tick in starts.tolist()]).T
    per_beat = quarter * 4 / unit
    stops = np.append(starts[1:], max(int(rows["onset_div"].max()) + 1, int(starts[-1]) + 1))
    bars = [np.arange(*span) for span in zip(starts, stops, beats * per_beat, strict=True)]
    signature = np.repeat(np.arange(len(starts)), [len(bar) for bar in bars])
    lines = np.concatenate(bars)
    knots = np.concatenate([[0], np.cumsum(np.diff(starts) / per_beat[:-1])])

    def beat(ticks: np.ndarray) -> np.ndarray:
        index = np.searchsorted(starts, ticks, side="right") - 1
        return knots[index] + (ticks - starts[index]) / per_beat[index]

    length, full = np.diff(beat(lines), append=np.inf), beats[signature].astype(np.float64)
    if len(starts) > 1 and len(bars[0]) == 1 and length[0] * per_beat[0] < beats[1] * per_beat[1]:
        full[0] = beats[1] * per_beat[1] / per_beat[0]  # a pick-up is written as a bar of its own metre
    offset = bar_offsets(length, full)
    zero = length[0] if offset[0] else 0.0
    onset, end = rows["onset_div"], rows["onset_div"] + rows["duration_div"]
    rows["onset_beat"] = beat(onset) - zero
    rows["duration_beat"] = beat(end) - beat(onset)
    rows["onset_quarter"] = onset / quarter - (lines[1] / quarter if offset[0] else 0.0)
    rows["duration_quarter"] = rows["duration_div"] / quarter
    bar = np.searchsorted(lines, onset, side="right") - 1
    rows["bar"], rows["bar_beats"] = bar, full[bar]
    rows["bar_beat"] = beat(onset) - beat(lines)[bar] + offset[bar]
