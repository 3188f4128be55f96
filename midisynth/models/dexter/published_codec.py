"""The codec of 2024 to the digit, faults included: what the published models were trained on and decode with.

Notes that were not played take part in the tempo at onset -1, all controllers make one pedal curve, notes last until
the pedal is lifted, and the tempo is linear in seconds a beat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from midisynth.music.alignment import AlignedPerformance
from midisynth.music.clock import DEFAULT_USEC_PER_QUARTER, TempoMap
from midisynth.music.notes import CONTROL_DTYPE, NOTE_DTYPE, Performance
from midisynth.music.pedal import SUSTAIN
from midisynth.music.score_notes import Score

_PEDAL_UP = 64  # up to here
_SHORTEST_SEC = 0.075
MISSING = -1.0  # onset, duration and velocity of notes that were not played
_TICKS_PER_QUARTER = 480


@dataclass(frozen=True)
class MatchedTable:
    """What the codec is fed with, one row for each note of the score; -1 where it was not played.

    Attributes:
        s_onset: Written onset (beats), [notes].
        s_duration: Written duration (beats), [notes].
        p_onset: Played onset (seconds), [notes].
        p_duration: For which the note sounds (seconds), at least 0.075, [notes].
        velocity: MIDI velocity, [notes].
        group: Number of the written onset, [notes].
    """

    s_onset: np.ndarray
    s_duration: np.ndarray
    p_onset: np.ndarray
    p_duration: np.ndarray
    velocity: np.ndarray
    group: np.ndarray


def matched_table(aligned: AlignedPerformance) -> MatchedTable:
    """Rounded to float32 as in the original, float64."""
    notes = aligned.score.notes
    rows, played = aligned.pairs[:, 0], aligned.performance.notes[aligned.pairs[:, 1]]
    onset = notes["onset_beat"].astype(np.float32)
    duration = (onset + notes["duration_beat"].astype(np.float32)) - onset
    performed = np.full((3, len(notes)), MISSING, np.float32)
    performed[0, rows] = played["onset_sec"]
    sounding = sounding_ends(played, aligned.performance.controls) - played["onset_sec"]
    performed[1, rows] = np.maximum(sounding, _SHORTEST_SEC)
    performed[2, rows] = played["velocity"]
    beats = onset.astype(np.float64)
    return MatchedTable(beats, duration.astype(np.float64), *performed.astype(np.float64), group=_groups(beats))


def encode(aligned: AlignedPerformance) -> np.ndarray:
    """Beat period (seconds), velocity / 127, timing (seconds), log2 articulation and pedal / 127, [notes, 5] float32.

    Rows of notes that were not played are the means of the others.
    """
    table = matched_table(aligned)
    beat_period, expected = _tempo(table)
    beat_period = beat_period[table.group]
    grace = table.s_duration <= 0
    performed, written = np.where(grace, beat_period, table.p_duration), np.where(grace, 1.0, table.s_duration)
    with np.errstate(invalid="ignore"):  # a duration of -1 has no logarithm
        articulation = np.log2(performed / (beat_period * written))
    timing = expected[table.group] - table.p_onset
    curve = _controller_curve(aligned.performance.controls, table.p_onset)
    columns = [beat_period, table.velocity / 127, timing, articulation, curve / 127]
    values = np.stack(columns, axis=1).astype(np.float32)
    missing = table.velocity == MISSING
    values[missing] = np.nanmean(values[~missing], axis=0)
    return values


def sounding_ends(notes: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """When notes end whose lengths are those of their keys (seconds), [notes].

    A note sounds on while the pedal is down, also when its key is struck again.

    Args:
        notes: [notes] of `NOTE_DTYPE`.
        controls: [controls] of `CONTROL_DTYPE`.
    """
    release = notes["onset_sec"] + notes["duration_sec"]
    pedals = controls[controls["number"] == SUSTAIN]
    if len(pedals) == 0 or len(notes) == 0:
        return release
    # A pedal that is never lifted is taken for lifted a second after the last event.
    times = np.append(pedals["time_sec"], max(release.max(), pedals["time_sec"][-1]) + 1)
    down = np.append(pedals["value"] > _PEDAL_UP, False)
    # From each event on, the next at which the pedal is up.
    up = np.where(down, len(times), np.arange(len(times)))
    up = np.minimum.accumulate(up[::-1])[::-1]
    now = np.searchsorted(times, release) - 1
    held = (now >= 0) & down[np.maximum(now, 0)]
    return np.where(held, times[up[np.maximum(now, 0)]], release)


def _groups(onset: np.ndarray) -> np.ndarray:
    """Group of each note, [notes]: those whose onsets (beats) agree in four decimals."""
    return np.unique((1e4 * onset).astype(np.int64), return_inverse=True)[1]


def _tempo(table: MatchedTable) -> tuple[np.ndarray, np.ndarray]:
    """Seconds a beat from each group on, and when each is expected (seconds), both [groups]."""
    s_onset, p_onset, count = table.s_onset, table.p_onset, np.bincount(table.group)
    beats, times = np.bincount(table.group, s_onset) / count, np.bincount(table.group, p_onset) / count
    epsilon = np.finfo(np.float64).eps
    beats = np.append(beats, max(s_onset.max() + epsilon, (s_onset + table.s_duration).max()))
    times = np.append(times, max(p_onset.max() + epsilon, (p_onset + table.p_duration).max()))
    highest = np.maximum.accumulate(times)
    rises = np.append(True, highest[1:] > highest[:-1])
    times = np.interp(beats, beats[rises], times[rises])
    beat_period = np.diff(times) / np.diff(beats)
    expected = times[0] + np.concatenate([[0.0], np.cumsum(beat_period * np.diff(beats))[:-1]])
    return beat_period, expected


def _controller_curve(controls: np.ndarray, times: np.ndarray) -> np.ndarray:
    """All controllers as one curve (0..127) at some times (seconds), same shape; 0 outside."""
    if len(controls) <= 1:
        return np.zeros_like(times)
    return np.interp(times, controls["time_sec"], controls["value"], left=0.0, right=0.0)


def decode(score: Score, values: np.ndarray) -> Performance:
    """Play values as the original does; graces have no length, and notes of a pitch may overlap.

    Args:
        score: What is played.
        values: [notes, 5], in the order of the score's notes.
    """
    notes = score.notes
    onset = notes["onset_beat"].astype(np.float32).astype(np.float64)
    duration = notes["duration_beat"].astype(np.float32).astype(np.float64)
    group = _groups(onset)
    count = np.bincount(group)
    beats = np.bincount(group, onset) / count
    beat_period = np.bincount(group, values[:, 0]) / count
    times = np.concatenate([[0.0], np.cumsum(beat_period[:-1] * np.diff(beats))])
    played = np.zeros(len(notes), NOTE_DTYPE)
    played["onset_sec"] = times[group] - values[:, 2]
    played["onset_sec"] -= played["onset_sec"].min()
    played["duration_sec"] = 2.0 ** values[:, 3] * duration * beat_period[group]
    played["pitch"] = np.clip(notes["pitch"], 1, 127)
    played["velocity"] = np.clip(np.rint(127 * values[:, 1]), 1, 127)
    clock = TempoMap([0], [DEFAULT_USEC_PER_QUARTER], _TICKS_PER_QUARTER)
    played["onset_tick"] = clock.ticks(played["onset_sec"])
    played["duration_tick"] = clock.ticks(played["onset_sec"] + played["duration_sec"]) - played["onset_tick"]
    return Performance(
        notes=played,
        controls=pedal(played["onset_sec"], values[:, 4]),
        tempos=clock.table(),
        ticks_per_quarter=_TICKS_PER_QUARTER,
    )


def pedal(onset: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[notes] of `CONTROL_DTYPE`, in time order: a position of the pedal at every onset (seconds), 1 at least."""
    clock = TempoMap([0], [DEFAULT_USEC_PER_QUARTER], _TICKS_PER_QUARTER)
    order = np.argsort(onset, kind="stable")
    controls = np.zeros(len(onset), CONTROL_DTYPE)
    controls["time_sec"] = onset[order]
    controls["tick"] = clock.ticks(onset[order])
    controls["number"] = SUSTAIN
    controls["value"] = np.clip(np.rint(127 * values[order]), 1, 127)
    return controls
