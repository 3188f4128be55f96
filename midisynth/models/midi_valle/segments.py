"""Cutting performances into segments that a model can take, where the music leaves room for it.

A boundary lies just before an onset, where no key is held or as few as possible, so that joining sounds is easy there.
Nothing is lost: segments cover the performance from its start to its end and what still sounds then, and a note that
crosses a boundary is in both segments, clipped to each and marked as held in the second one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from midisynth.models.midi_valle.codec import in_seconds
from midisynth.music.notes import Performance
from midisynth.music.pedal import extend_by_pedal

#: Distances of boundaries, those of the published model (seconds).
MIN_SEC, MAX_SEC = 15.0, 20.0
#: No segment of several is shorter, if limits of the others allow it (seconds).
SHORTEST_SEC = 3.0
#: Sound after the end of the last note (seconds).
RING_SEC = 1.0
#: A boundary keeps this distance from the onset behind it (seconds), for what of the attack comes early.
GUARD_SEC = 0.02
#: Ticks per quarter of the MIDI files that the original writes.
PUBLISHED_TICKS = 220


@dataclass(frozen=True)
class Segment:
    """A stretch of a performance.

    Attributes:
        start_sec: Where it begins on the clock of the performance (seconds).
        end_sec: Where it ends; later than the start of the next one where segments overlap.
        performance: What is played in it, on its own clock at 120 bpm: controllers too, and at its start the pedals as
            they stand then. It may have no notes.
        held: Which notes began before it, [notes] bool; their onset is 0.
    """

    start_sec: float
    end_sec: float
    performance: Performance
    held: np.ndarray

    @property
    def seconds(self) -> float:
        """Its length (seconds)."""
        return self.end_sec - self.start_sec

    @property
    def struck(self) -> Performance:
        """What begins in it: notes that are held from before are left out."""
        return self.performance.with_notes(self.performance.notes[~self.held])


def cut(
    performance: Performance,
    min_sec: float = MIN_SEC,
    max_sec: float = MAX_SEC,
    *,
    overlap_sec: float = 0.0,
    ring_sec: float = RING_SEC,
    points: Sequence[float] | None = None,
) -> list[Segment]:
    """Cut a whole performance.

    No segment is longer than `max_sec` and its overlap; the last one has `ring_sec` besides.

    Args:
        performance: As `NoteRows.read` returns it.
        min_sec: Shortest distance of boundaries (seconds).
        max_sec: Longest distance of boundaries (seconds). Where it leaves room, no segment of several is shorter than
            `SHORTEST_SEC`.
        overlap_sec: Every segment but the first begins so much earlier than its boundary (seconds).
        ring_sec: The last segment ends so long after the end of the last note (seconds).
        points: Boundaries from 0 on, such as `random_points` draws; None: `musical_points`.

    Returns:
        At least one segment; the first starts at 0.
    """
    points = musical_points(performance, min_sec, max_sec) if points is None else points
    ends = [*points[1:], performance.end_sec + ring_sec]
    starts = [max(point - overlap_sec, 0.0) for point in points]
    return [segment(performance, start, end) for start, end in zip(starts, ends, strict=True)]


def segment(performance: Performance, start_sec: float, end_sec: float) -> Segment:
    """One stretch of a performance, from `start_sec` to `end_sec` on its clock."""
    notes = performance.notes
    ends = notes["onset_sec"] + notes["duration_sec"]
    inside = (notes["onset_sec"] < end_sec) & (np.maximum(ends, notes["onset_sec"]) > start_sec)
    inside |= notes["onset_sec"] == start_sec
    own = notes[inside].copy()
    held = own["onset_sec"] < start_sec
    onset = np.maximum(own["onset_sec"], start_sec)
    own["duration_sec"] = np.minimum(ends[inside], end_sec) - onset
    own["onset_sec"] = onset - start_sec
    # Ticks sort the notes anew, and a column carries the marks through that.
    own["track"] = held
    stretch = in_seconds(Performance(notes=own, controls=_controls(performance.controls, start_sec, end_sec)))
    held = stretch.notes["track"].astype(bool)
    stretch.notes["track"] = 0
    return Segment(start_sec, end_sec, stretch, held)


def _controls(controls: np.ndarray, start_sec: float, end_sec: float) -> np.ndarray:
    """Controllers of a stretch on its own clock; what they were at its start stands there."""
    before = controls[controls["time_sec"] < start_sec]
    last = len(before) - 1 - np.unique(before["number"][::-1], return_index=True)[1]
    own = controls[(controls["time_sec"] >= start_sec) & (controls["time_sec"] < end_sec)]
    found = np.concatenate([before[np.sort(last)], own])
    found["time_sec"] = np.maximum(found["time_sec"] - start_sec, 0.0)
    return found


def musical_points(performance: Performance, min_sec: float = MIN_SEC, max_sec: float = MAX_SEC) -> list[float]:
    """Boundaries where the music pauses (seconds), from 0 on, each `min_sec` to `max_sec` after the one before.

    Candidates lie just before the onsets, and at the latest time that is allowed. The best has the fewest keys held
    across it, then the fewest strings that sound on because of the pedal, then the longest pause before it.
    """
    keys, strings = _Sounding(performance), _Sounding(extend_by_pedal(performance))
    onsets = np.unique(performance.notes["onset_sec"]) - GUARD_SEC
    points = [0.0]
    while performance.end_sec - points[-1] > max_sec:
        first = points[-1] + min_sec
        last = min(points[-1] + max_sec, performance.end_sec - _rest(min_sec, max_sec))
        candidates = [*onsets[(onsets >= first) & (onsets < last)].tolist(), last]
        points.append(min(candidates, key=lambda time: (keys.held(time), strings.held(time), -keys.pause(time))))
    return points


class _Sounding:
    """Counts the notes of a performance that sound at a time (seconds)."""

    def __init__(self, performance: Performance):
        notes = performance.notes
        self._onsets = np.sort(notes["onset_sec"])
        self._ends = np.sort(notes["onset_sec"] + notes["duration_sec"])

    def held(self, time: float) -> int:
        """Notes that began by then and have not ended."""
        return int(np.searchsorted(self._onsets, time, "right") - np.searchsorted(self._ends, time, "right"))

    def pause(self, time: float) -> float:
        """How long ago the last note ended (seconds)."""
        ended = int(np.searchsorted(self._ends, time, "right"))
        return time - float(self._ends[ended - 1]) if ended else time


def random_points(
    duration_sec: float, random: np.random.Generator, min_sec: float = MIN_SEC, max_sec: float = MAX_SEC
) -> list[float]:
    """Boundaries anywhere, for training (seconds), from 0 on; a model then meets every kind of beginning and end.

    Args:
        duration_sec: Of the performance (seconds).
        random: Draws the distances of neighbours, uniform between the next two.
        min_sec: Shortest distance (seconds).
        max_sec: Longest distance (seconds).
    """
    points = [0.0]
    while (left := duration_sec - points[-1]) > max_sec:
        points.append(points[-1] + float(random.uniform(min_sec, min(max_sec, left - _rest(min_sec, max_sec)))))
    return points


def _rest(min_sec: float, max_sec: float) -> float:
    """What a boundary leaves behind it at least (seconds): never so much that it would come before `min_sec`."""
    return min(SHORTEST_SEC, max_sec - min_sec)


def published_points(duration_sec: float) -> list[float]:
    """Where the original cuts every performance of that length (seconds), from 0 on: always at the same times."""
    random = np.random.RandomState(42)
    points = [0.0]
    while (point := points[-1] + random.uniform(MIN_SEC, MAX_SEC)) < duration_sec:
        points.append(point)
    return points


def published_cut(performance: Performance, points: Sequence[float]) -> list[Segment]:
    """Segments as the original makes them.

    What follows the last of the points is lost, and so are notes that begin in a segment and end at its end or later.
    Notes from before begin again, and are not clipped.

    Args:
        performance: With times as pretty_midi reads them: `read_midi(overlap="all")`.
        points: From `published_points`.
    """
    return [_published_segment(performance, start, end) for start, end in pairwise(points)]


def _published_segment(performance: Performance, start_sec: float, end_sec: float) -> Segment:
    notes = performance.notes
    ends = notes["onset_sec"] + notes["duration_sec"]
    held = (notes["onset_sec"] < start_sec) & (ends > start_sec)
    kept = held | ((notes["onset_sec"] >= start_sec) & (ends < end_sec))
    own = notes[kept].copy()
    own["onset_sec"] = np.maximum(own["onset_sec"], start_sec) - start_sec
    own["duration_sec"] = ends[kept] - start_sec - own["onset_sec"]
    own["track"] = held[kept]
    controls = performance.controls
    controls = controls[(controls["time_sec"] >= start_sec) & (controls["time_sec"] < end_sec)].copy()
    controls["time_sec"] -= start_sec
    stretch = in_seconds(Performance(notes=own, controls=controls), PUBLISHED_TICKS)
    marked = stretch.notes["track"].astype(bool)
    stretch.notes["track"] = 0
    return Segment(start_sec, end_sec, stretch, marked)
