"""Performances as five numbers a note: tempo, velocity, timing, articulation and pedal.

What is expected of a note follows from the page and the tempo: notes that begin together on the page form a group, and
a tempo for each group gives the time of every place of the score. The other numbers are deviations from that.

| channel      | unit                                                                                             |
|--------------|--------------------------------------------------------------------------------------------------|
| beat_period  | log2 of seconds a beat until the next group; one value for a group                               |
| velocity     | MIDI velocity / 127                                                                              |
| timing       | seconds by which a note is early; of graces: by which they are earlier than `Grid.grace_leads`   |
| articulation | log2 of the time a key is down / the time that the tempo gives to the written duration; graces 0 |
| pedal        | what the sustain pedal does until the next group, see `pedalling`; one value for a group         |

A beat is the denominator of the time signature. The codec of 2024 is in `published_codec`.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from midisynth.errors import DataError, RenderError, UsageError
from midisynth.models.dexter import published_codec
from midisynth.models.dexter.pedalling import pedal_controls, pedal_values
from midisynth.models.dexter.playing import GRACE_SEC, grace_durations, is_grace, playable_onsets, timed_performance
from midisynth.music.alignment import AlignedPerformance
from midisynth.music.notes import Performance
from midisynth.music.score_marks import LOUDNESS
from midisynth.music.score_notes import DEADPAN_VELOCITY, DEFAULT_TEMPO, Score

CHANNELS = ("beat_period", "velocity", "timing", "articulation", "pedal")
BEAT_PERIOD, VELOCITY, TIMING, ARTICULATION, PEDAL = range(len(CHANNELS))

BEAT_PERIOD_LIMITS = (0.05, 8.0)  # seconds
ARTICULATION_LIMITS = (-4.0, 3.0)  # log2
TIMING_LIMIT = 0.25  # beats
GRACE_TIMING_LIMIT = 1.0  # beats; a run of graces takes longer than a chord takes to roll

_ROUNDING = 1e-6  # of float32, which is nothing to tell of
_SHORTEST_SEC = 1e-3  # so that the logarithm of a key that is released at once is finite


@dataclass
class Expression:
    """A performance as the numbers of `CHANNELS`.

    Attributes:
        values: [notes, 5] float32, in the order of the score's notes.
        matched: [notes] bool; the values of other notes were filled in and must not be learned.
        warnings: What could not be expressed, one sentence each.
    """

    values: np.ndarray
    matched: np.ndarray
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Grid:
    """The groups of notes that begin together on the page, and where they lie.

    Attributes:
        group: Of each note, [notes].
        beats: Onset of each group (beats), [groups].
        quarters: Onset of each group (quarters), [groups].
    """

    group: np.ndarray
    beats: np.ndarray
    quarters: np.ndarray

    @classmethod
    def of(cls, notes: np.ndarray) -> Grid:
        """The grid of [notes] of `SCORE_NOTE_DTYPE`, which are sorted by onset."""
        _, first, group = np.unique(notes["onset_div"], return_index=True, return_inverse=True)
        return cls(group, notes["onset_beat"][first], notes["onset_quarter"][first])

    def mean(self, values: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Mean of the values of the chosen notes in each group, [groups]; NaN for a group without any."""
        count = np.bincount(self.group[rows], minlength=len(self.beats))
        total = np.bincount(self.group[rows], np.asarray(values, np.float64)[rows], len(self.beats))
        return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)

    def times(self, beat_period: np.ndarray) -> np.ndarray:
        """When each group is expected (seconds from the first), [groups], from seconds a beat, [groups]."""
        return np.concatenate([[0.0], np.cumsum(beat_period[:-1] * np.diff(self.beats))])

    def time_at(self, beats: np.ndarray, times: np.ndarray, beat_period: np.ndarray) -> np.ndarray:
        """When places of the score are expected (seconds), same shape; the last tempo goes on after the last group."""
        beyond = np.maximum(beats - self.beats[-1], 0.0) * beat_period[-1]
        return np.interp(beats, self.beats, times) + beyond

    def written_sec(self, notes: np.ndarray, times: np.ndarray, beat_period: np.ndarray) -> np.ndarray:
        """Time that the tempo gives to the written duration of each note (seconds), [notes]."""
        ends = notes["onset_beat"] + notes["duration_beat"]
        return self.time_at(ends, times, beat_period) - times[self.group]

    def grace_leads(self, notes: np.ndarray, times: np.ndarray) -> np.ndarray:
        """How long before its group a grace note is expected (seconds), [notes]; 0 for others.

        Graces of a voice follow each other by 0.08 s, or less where the whole run would fill more than half of the time
        since the last group.
        """
        leads = np.zeros(len(notes))
        rows = np.flatnonzero(is_grace(notes))
        if len(rows) == 0:
            return leads
        owner = np.stack([notes["part"][rows], notes["voice"][rows], self.group[rows]], axis=1)
        _, run, counts = np.unique(owner, axis=0, return_inverse=True, return_counts=True)
        run = run.ravel()
        order = np.argsort(run, kind="stable")
        place = np.empty(len(rows), np.int64)
        place[order] = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        group = self.group[rows]
        since = np.where(group > 0, times[group] - times[np.maximum(group - 1, 0)], np.inf)
        step = np.minimum(GRACE_SEC, since / 2 / counts[run])
        leads[rows] = (counts[run] - place) * step
        return leads


class ExpressionCodec:
    """A performance of a score to five numbers a note, and back.

    Args:
        compat: "2024" computes what the published models were trained on, faults included; see `published_codec`.
    """

    def __init__(self, compat: Literal["2024"] | None = None):
        if compat not in (None, "2024"):
            raise UsageError(f"compat is {compat!r}; it is '2024' or null")
        self.compat = compat

    def encode(self, aligned: AlignedPerformance) -> Expression:
        """Say how a score was played.

        Args:
            aligned: The lengths of its notes are those of the keys: the pedal is not applied.

        Raises:
            DataError: No note is matched.
        """
        notes = aligned.score.notes
        rows = aligned.pairs[:, 0]
        if len(rows) == 0:
            raise DataError("no note of the performance is matched with the score")
        matched = np.zeros(len(notes), bool)
        matched[rows] = True
        if self.compat:
            return Expression(published_codec.encode(aligned), matched)
        played = np.zeros(len(notes), aligned.performance.notes.dtype)
        played[rows] = aligned.performance.notes[aligned.pairs[:, 1]]
        grid = Grid.of(notes)
        grace = is_grace(notes)
        leaders = matched & ~grace
        onset = grid.mean(played["onset_sec"], leaders if leaders.any() else matched)
        times, beat_period, warnings = _expected_times(grid, onset, written_beat_periods(grid, notes))
        written = np.where(grace, 1.0, grid.written_sec(notes, times, beat_period))
        duration = np.where(grace | ~matched, written, np.maximum(played["duration_sec"], _SHORTEST_SEC))
        end = (played["onset_sec"] + played["duration_sec"])[matched].max()
        values = np.empty((len(notes), len(CHANNELS)))
        values[:, BEAT_PERIOD] = np.log2(beat_period)[grid.group]
        values[:, VELOCITY] = played["velocity"] / 127
        expected = times[grid.group] - grid.grace_leads(notes, times)
        values[:, TIMING] = np.where(matched, expected - played["onset_sec"], 0.0)
        values[:, ARTICULATION] = np.log2(duration / written)
        values[:, PEDAL] = pedal_values(aligned.performance.controls, times, end)[grid.group]
        for channel, known in ((VELOCITY, matched), (ARTICULATION, matched & ~grace)):
            filled = ~matched
            if known.any():
                # As loud, and as long, as the notes around it.
                mean = grid.mean(values[:, channel], known)
                there = np.isfinite(mean)
                values[filled, channel] = np.interp(grid.beats, grid.beats[there], mean[there])[grid.group[filled]]
        return Expression(values.astype(np.float32), matched, warnings)

    def decode(self, score: Score, values: np.ndarray, *, exact: bool = False) -> Performance:
        """Play a score.

        Args:
            score: Its notes are all played, each as one note.
            values: [notes, 5], in the order of the score's notes.
            exact: Neither limit values nor keep the notes of a voice in order: the inverse of `encode`, for values that
                come from a performance. Otherwise what had to be changed is told in the warnings.

        Returns:
            The first note begins at 0. Notes are in the order of the score's, at 480 ticks a quarter and 120 bpm. No
            two notes of one pitch overlap, except in compat with `exact`.

        Raises:
            RenderError: A value is not finite.
        """
        values = np.asarray(values, np.float64)
        if values.shape != (len(score.notes), len(CHANNELS)):
            raise ValueError(f"values have shape {values.shape}, the score has {len(score.notes)} notes")
        if not np.isfinite(values).all():
            raise RenderError("the expression of a note is not a finite number")
        if self.compat and exact:
            return published_codec.decode(score, values)
        warnings: list[str] = []
        if not exact:
            values, warnings = self.limited(score, values)
        notes = score.notes
        grid = Grid.of(notes)
        grace = is_grace(notes)
        beat_period = grid.mean(self.beat_periods(values))
        times = grid.times(beat_period)
        onset = times[grid.group] - values[:, TIMING]
        if self.compat:
            written = notes["duration_beat"] * beat_period[grid.group]
        else:
            onset -= grid.grace_leads(notes, times)
            written = grid.written_sec(notes, times, beat_period)
        duration = written * 2.0 ** values[:, ARTICULATION]
        start = onset.min()
        onset, moved = playable_onsets(notes, onset, duration, in_order=not exact)
        if moved:
            warnings.append(f"{moved} note(s) moved so that each voice stays in order")
        duration = np.where(grace, grace_durations(notes, onset), duration)
        performance = timed_performance(notes, onset, duration, values[:, VELOCITY])
        if self.compat:
            performance.controls = published_codec.pedal(onset, values[:, PEDAL])
        else:
            pedal = grid.mean(values[:, PEDAL])
            performance.controls = pedal_controls(pedal, times - start, performance.end_sec)
        performance.warnings = warnings
        return performance

    def limited(self, score: Score, values: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Values that can be played: one tempo for a group, and nothing beyond the limits of this module.

        Args:
            score: What the values play.
            values: [notes, 5].

        Returns:
            [notes, 5] float64, and what was limited, one sentence for each channel.
        """
        notes = score.notes
        grid = Grid.of(notes)
        limited = np.array(values, np.float64)
        beat_period = grid.mean(self.beat_periods(limited))[grid.group]
        playable = np.clip(beat_period, *BEAT_PERIOD_LIMITS)
        limited[:, BEAT_PERIOD] = playable if self.compat else np.log2(playable)
        limited[:, ARTICULATION] = np.clip(limited[:, ARTICULATION], *ARTICULATION_LIMITS)
        furthest = np.where(is_grace(notes), GRACE_TIMING_LIMIT, TIMING_LIMIT) * playable
        limited[:, TIMING] = np.clip(limited[:, TIMING], -furthest, furthest)
        outside = np.abs(limited - values) > _ROUNDING
        outside[:, BEAT_PERIOD] = np.abs(playable - beat_period) > _ROUNDING
        counts = zip(CHANNELS, outside.sum(0).tolist(), strict=True)
        return limited, [f"{name.replace('_', ' ')} of {count} note(s) limited" for name, count in counts if count]

    def beat_periods(self, values: np.ndarray) -> np.ndarray:
        """Seconds a beat of each note, [..., notes], from values, [..., notes, 5]."""
        channel = np.asarray(values[..., BEAT_PERIOD], np.float64)
        return channel if self.compat else np.exp2(channel)

    def deadpan(self, score: Score) -> np.ndarray:
        """Values of the page played to the letter: its tempo and loudness marks, and nothing else, [notes, 5].

        Without a tempo mark a minute has 120 quarters, without a loudness mark velocities are 64.
        """
        notes = score.notes
        grid = Grid.of(notes)
        beat_period = written_beat_periods(grid, notes)[grid.group]
        loudness = notes["loudness"].astype(np.float64)
        values = np.zeros((len(notes), len(CHANNELS)))
        values[:, BEAT_PERIOD] = beat_period if self.compat else np.log2(beat_period)
        values[:, VELOCITY] = np.where(np.isnan(loudness), DEADPAN_VELOCITY, loudness) / 127
        return values

    def with_tempo(self, score: Score, values: np.ndarray, bpm: float) -> np.ndarray:
        """The same performance faster or slower, so that it has `bpm` quarters a minute on average.

        Args:
            score: What the values play.
            values: [notes, 5].
            bpm: Quarters from the first onset to the last written end / minutes that they take.
        """
        if not 5 <= bpm <= 1000:
            raise UsageError(f"a tempo of {bpm:g} bpm; it is 5 to 1000 quarters a minute")
        notes = score.notes
        grid = Grid.of(notes)
        beat_period = grid.mean(self.beat_periods(values))
        times = grid.times(beat_period)
        length = (times[grid.group] + grid.written_sec(notes, times, beat_period)).max()
        quarters = (notes["onset_quarter"] + notes["duration_quarter"]).max() - grid.quarters[0]
        factor = quarters * 60 / bpm / length
        changed = np.array(values, np.float64)
        changed[:, BEAT_PERIOD] = (
            changed[:, BEAT_PERIOD] * factor if self.compat else (changed[:, BEAT_PERIOD] + np.log2(factor))
        )
        return changed

    def with_dynamics(self, values: np.ndarray, level: float | str) -> np.ndarray:
        """The same performance louder or softer, so that its velocities have the wanted mean.

        Differences between notes are kept, or shrunk where velocities would leave 1..127.

        Args:
            values: [notes, 5].
            level: Mean MIDI velocity, or the name of a dynamic, such as mf.
        """
        if isinstance(level, str) and level not in LOUDNESS:
            raise UsageError(f"dynamics {level!r}; they are a velocity or one of {', '.join(LOUDNESS)}")
        velocity = float(LOUDNESS[level] if isinstance(level, str) else level)
        if not 1 <= velocity <= 127:
            raise UsageError(f"a mean velocity of {velocity:g}; velocities are 1 to 127")
        changed = np.array(values, np.float64)
        deviation = changed[:, VELOCITY] - changed[:, VELOCITY].mean()
        room = [(1 - velocity / 127) / max(deviation.max(), 1e-9), (1 - velocity) / 127 / min(deviation.min(), -1e-9)]
        changed[:, VELOCITY] = velocity / 127 + min(1.0, *room) * deviation
        return changed


def written_beat_periods(grid: Grid, notes: np.ndarray) -> np.ndarray:
    """Seconds a beat that the page asks for at each group, [groups]; 120 quarters a minute where it names no tempo."""
    first = np.unique(grid.group, return_index=True)[1]
    tempo = notes["tempo"][first].astype(np.float64)
    tempo = np.where(np.isnan(tempo), DEFAULT_TEMPO, tempo)
    if len(first) > 1:
        quarters_a_beat = np.diff(grid.quarters) / np.diff(grid.beats)
        quarters_a_beat = np.append(quarters_a_beat, quarters_a_beat[-1])
    else:
        beats = notes["duration_beat"].max()
        quarters_a_beat = notes["duration_quarter"].max() / beats if beats > 0 else 1.0
    return 60 / tempo * quarters_a_beat


def _expected_times(
    grid: Grid, onset: np.ndarray, written_beat_period: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Tempo curve through the onsets of the groups.

    Groups that were played before an earlier one, or so soon after it that the tempo would leave the limits, and those
    that were not played at all, are expected between their neighbours.

    Args:
        grid: Of the score.
        onset: When each group was played (seconds), [groups]; NaN where it was not.
        written_beat_period: Seconds a beat for a performance that says nothing of tempo, [groups].

    Returns:
        When each group is expected (seconds), [groups], seconds a beat from each on, [groups], and warnings.
    """
    played = np.flatnonzero(np.isfinite(onset))
    kept = played[_longest_rise(onset[played] - BEAT_PERIOD_LIMITS[0] * grid.beats[played])]
    warnings = []
    if len(kept) < len(played):
        warnings.append(f"{len(played) - len(kept)} group(s) of notes were played out of order")
    beats, times = grid.beats[kept], onset[kept]
    outside = (times[-1] - times[0]) / (beats[-1] - beats[0]) if len(kept) > 1 else written_beat_period[kept[0]]
    expected = np.interp(grid.beats, beats, times)
    expected += outside * (np.minimum(grid.beats - beats[0], 0.0) + np.maximum(grid.beats - beats[-1], 0.0))
    if len(expected) == 1:
        return expected, np.array([outside]), warnings
    beat_period = np.diff(expected) / np.diff(grid.beats)
    return expected, np.append(beat_period, beat_period[-1]), warnings


def _longest_rise(values: np.ndarray) -> np.ndarray:
    """Indices of a longest strictly increasing subsequence: the fewest outliers are dropped."""
    tails: list[float] = []
    ends: list[int] = []
    before = []
    for index, value in enumerate(values.tolist()):
        place = bisect_left(tails, value)
        before.append(ends[place - 1] if place else -1)
        tails[place : place + 1] = [value]
        ends[place : place + 1] = [index]
    chain = [ends[-1]]
    while before[chain[-1]] >= 0:
        chain.append(before[chain[-1]])
    return np.array(chain[::-1])
