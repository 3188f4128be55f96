"""Timed notes -> a `Performance` that MIDI can hold: voices in order, graces audible, no key struck while down."""

from __future__ import annotations

import math

import numpy as np

from midisynth.music.clock import DEFAULT_USEC_PER_QUARTER, TempoMap
from midisynth.music.notes import NOTE_DTYPE, Performance

GRACE_SEC = 0.08
_SHORTEST_GRACE_SEC = 0.02

TICKS_PER_QUARTER = 480
_TICK_SEC = DEFAULT_USEC_PER_QUARTER / (1e6 * TICKS_PER_QUARTER)


def is_grace(notes: np.ndarray) -> np.ndarray:
    """Which of [notes] of `SCORE_NOTE_DTYPE` have no duration of their own, [notes] bool."""
    return notes["grace"] | (notes["duration_div"] <= 0)


def playable_onsets(
    notes: np.ndarray, onset: np.ndarray, duration: np.ndarray, *, in_order: bool
) -> tuple[np.ndarray, int]:
    """Onsets at which a piano can play the notes: those of one pitch are at least a tick apart.

    Of several voices that share a note the longest is heard, and the others are struck just before it, each for a tick:
    the key can only be struck once, but every note of the score has to be one of the performance.

    Args:
        notes: [notes] of `SCORE_NOTE_DTYPE`.
        onset: Wanted onsets (seconds), [notes].
        duration: Wanted durations (seconds), [notes].
        in_order: No note begins before those of its voice that stand earlier on the page.

    Returns:
        Onsets (seconds, the first at 0), [notes], and how many notes had to be moved to keep their voices in order.
    """
    order = np.lexsort((duration, notes["pitch"], ~is_grace(notes), notes["onset_div"]))
    wanted = _before_longest(notes, onset, order)
    moved, late = _after_predecessors(notes, wanted - wanted.min(), order, in_order)
    if moved.min() > 0:  # whoever was to begin was moved
        moved, _ = _after_predecessors(notes, moved - moved.min(), order, in_order)
    moved[moved.argmin()] = 0.0
    return moved, late


def _before_longest(notes: np.ndarray, onset: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Onsets with notes that voices share put before the longest of them, [notes]; `order` has the longest last."""
    rows = order[~is_grace(notes)[order]]
    key = notes["onset_div"][rows] * 128 + notes["pitch"][rows]
    _, run, counts = np.unique(key, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)[run] - 1  # rows are sorted by key, and by duration within one
    wanted = onset.copy()
    wanted[rows] = onset[rows[last]] - (last - np.arange(len(rows))) * _TICK_SEC
    return wanted


def _after_predecessors(
    notes: np.ndarray, wanted: np.ndarray, order: np.ndarray, in_order: bool
) -> tuple[np.ndarray, int]:
    """Move notes back until they follow those of their voice and of their pitch; see `playable_onsets`."""
    voices = ((notes["part"].astype(np.int64) << 32) + notes["voice"]).tolist()
    pitches, steps = notes["pitch"].tolist(), notes["onset_div"].tolist()
    times = wanted.tolist()
    voice_state: dict[int, list[float]] = {}  # voice: [step, latest onset before it, latest onset up to now]
    struck: dict[int, int] = {}  # pitch: tick of the last stroke
    late = 0
    for row in order.tolist():
        time = times[row]
        state = voice_state.setdefault(voices[row], [steps[row], 0.0, 0.0])
        if state[0] != steps[row]:
            state[0], state[1] = steps[row], state[2]
        if in_order and time < state[1]:
            late += 1
            time = state[1]
        tick = _tick(time)
        if tick <= struck.get(pitches[row], -1):
            tick = struck[pitches[row]] + 1
            time = tick * _TICK_SEC
        struck[pitches[row]] = tick
        state[2] = max(state[2], time)
        times[row] = time
    return np.array(times), late


def _tick(seconds: float) -> int:
    return math.floor(seconds / _TICK_SEC + 0.5)


def grace_durations(notes: np.ndarray, onset: np.ndarray) -> np.ndarray:
    """How long grace notes last (seconds), [notes]: until their main note begins, but at most 0.08 s.

    Args:
        notes: [notes] of `SCORE_NOTE_DTYPE`.
        onset: When each is played (seconds), [notes].
    """
    durations = np.full(len(notes), GRACE_SEC)
    grace = is_grace(notes)
    main = np.flatnonzero(~grace)
    # A main note stands in the same voice; where that has none, any note of the same onset takes its place.
    own, anybody = ({}, {})
    for row in main[np.argsort(-onset[main], kind="stable")].tolist():
        own[notes["part"][row], notes["voice"][row], notes["onset_div"][row]] = onset[row]
        anybody[notes["onset_div"][row]] = onset[row]
    for row in np.flatnonzero(grace).tolist():
        step = notes["onset_div"][row]
        key = (notes["part"][row], notes["voice"][row], step)
        left = own.get(key, anybody.get(step, math.inf)) - onset[row]
        if left > 0:
            durations[row] = min(max(left, _SHORTEST_GRACE_SEC), GRACE_SEC)
    return durations


def timed_performance(notes: np.ndarray, onset: np.ndarray, duration: np.ndarray, velocity: np.ndarray) -> Performance:
    """The notes in seconds and in ticks, at 120 bpm; one that still sounds when its key is struck again ends there.

    Args:
        notes: [notes] of `SCORE_NOTE_DTYPE`.
        onset: Of `playable_onsets` (seconds), [notes].
        duration: Positive (seconds), [notes].
        velocity: MIDI velocity / 127, [notes].
    """
    clock = TempoMap([0], [DEFAULT_USEC_PER_QUARTER], TICKS_PER_QUARTER)
    order = np.lexsort((onset, notes["pitch"]))
    following = np.full(len(notes), np.inf)
    same = np.diff(notes["pitch"][order]) == 0
    following[order[:-1][same]] = onset[order[1:][same]]
    played = np.zeros(len(notes), NOTE_DTYPE)
    played["onset_sec"] = onset
    played["duration_sec"] = np.minimum(duration, following - onset)
    played["onset_tick"] = ticks_of(onset)
    played["duration_tick"] = ticks_of(onset + played["duration_sec"]) - played["onset_tick"]
    # What is shorter than half a tick lasts one, on both clocks.
    none = played["duration_tick"] == 0
    played["duration_tick"][none] = 1
    played["duration_sec"][none] = (played["onset_tick"][none] + 1) * _TICK_SEC - onset[none]
    played["pitch"] = notes["pitch"]
    played["velocity"] = np.clip(np.rint(127 * velocity), 1, 127)
    return Performance(notes=played, tempos=clock.table(), ticks_per_quarter=TICKS_PER_QUARTER)


def ticks_of(seconds: np.ndarray) -> np.ndarray:
    """Nearest ticks; halves go up, so that notes that are a tick apart never fall on one."""
    return np.floor(seconds / _TICK_SEC + 0.5).astype(np.int64)
