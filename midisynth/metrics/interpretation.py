"""Interpretations of one score beside each other: what each does at every note and onset, and how far they agree.

The measures are taken from what sounds, not from what a model calculates with, so that human performances and those of
any renderer are judged alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from midisynth.metrics.expression import (
    beat_periods,
    clip_tempo,
    correlation,
    density,
    density_grid,
    deviation,
    divergence,
    group_means,
    onset_groups,
)
from midisynth.metrics.performance_features import FEATURES, MARKINGS, PlayedNotes, performance_features
from midisynth.music.alignment import AlignedPerformance
from midisynth.music.pedal import SUSTAIN

#: Tempo (beats a minute), velocity, and share of time with the pedal down at each onset of the score; how early a note
#: is within its chord (seconds) and log2 of its length over the written one, for each note.
CURVES = ("tempo", "velocity", "timing", "articulation", "pedal")
MEASURES = (*CURVES, *FEATURES)
COMPARISONS = ("deviation", "kl", "correlation")
#: Names of what `compare` returns.
SCORES = tuple(
    f"{measure}_{comparison}{against}" for measure in MEASURES for against in ("", "_all") for comparison in COMPARISONS
)

# Deviations of these are relative to the reference; those of others, which may be 0, to its standard deviation.
_RELATIVE = ("tempo", "velocity")
_PEDAL_DOWN = 64
_SHORTEST_SEC = 1e-3


@dataclass(frozen=True)
class Interpretation:
    """What was done with a score.

    Attributes:
        values: Measure (of `MEASURES`) -> [onsets] or [notes] of the score; NaN where there is nothing to measure.
    """

    values: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, aligned: AlignedPerformance) -> Interpretation:
        """Measure a performance whose notes last as long as the keys are down."""
        notes = aligned.score.notes
        order = np.argsort(aligned.pairs[:, 0], kind="stable")
        rows, played = notes[aligned.pairs[order, 0]], aligned.performance.notes[aligned.pairs[order, 1]]
        grace = rows["grace"] | (rows["duration_div"] <= 0)
        # Where a grace note is, the player decides: it tells nothing of the tempo.
        onset = np.where(grace, np.nan, played["onset_sec"])
        period = beat_periods(rows["onset_beat"], onset, rows["duration_beat"], played["duration_sec"])
        pedal = _pedal_events(aligned)
        values = dict.fromkeys(MEASURES, np.empty(0))
        values |= _curves(notes, aligned.pairs[order, 0], played, period, onset, pedal)
        # Features need a tempo: a chord of nothing but graces is left out.
        known = np.isfinite(period)
        played_notes = _played_notes(rows[known], played[known], period[known], pedal)
        features = performance_features(played_notes) if known.any() else dict.fromkeys(FEATURES, np.empty(0))
        for name, column in features.items():
            values[name] = _spread(len(notes), aligned.pairs[order, 0][known], column)
        return cls(values)


def mean_interpretation(interpretations: Sequence[Interpretation]) -> Interpretation:
    """What several do on average; tempo is averaged on a logarithmic scale."""
    return Interpretation({name: _average(name, interpretations) for name in MEASURES})


def _average(name: str, interpretations: Sequence[Interpretation]) -> np.ndarray:
    values = np.stack([interpretation.values[name] for interpretation in interpretations])
    logarithmic = name == "tempo"
    values = np.log(clip_tempo(values)) if logarithmic else values
    known = np.isfinite(values)
    count = known.sum(axis=0)
    mean = np.divide(np.where(known, values, 0).sum(axis=0), count, out=np.full(count.shape, np.nan), where=count > 0)
    return np.exp(mean) if logarithmic else mean


def _spread(size: int, rows: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Values of some rows among all, NaN elsewhere."""
    whole = np.full(size, np.nan)
    whole[rows] = column
    return whole


def _pedal_events(aligned: AlignedPerformance) -> np.ndarray:
    controls = aligned.performance.controls
    return controls[controls["number"] == SUSTAIN]


def _curves(
    notes: np.ndarray, rows: np.ndarray, played: np.ndarray, period: np.ndarray, onset: np.ndarray, pedal: np.ndarray
) -> dict[str, np.ndarray]:
    """`CURVES` of the matched notes.

    Args:
        notes: All notes of the score.
        rows: Of the matched ones.
        played: What was made of them.
        period: Seconds a beat at each.
        onset: When they were played (seconds); NaN for grace notes.
        pedal: Events of the sustain pedal.
    """
    beats, group = onset_groups(notes["onset_beat"])
    tempo = clip_tempo(60 / np.maximum(group_means(_spread(len(notes), rows, period), group), 1e-9))
    together = group_means(_spread(len(notes), rows, onset), group)
    # Less than a microsecond is rounding.
    timing = np.round(together[group[rows]] - onset, 6)
    chord = np.bincount(group[rows][np.isfinite(onset)], minlength=len(beats)) > 1
    written = period * notes["duration_beat"][rows]
    with np.errstate(divide="ignore", invalid="ignore"):
        articulation = np.log2(np.maximum(played["duration_sec"], _SHORTEST_SEC) / written)
    articulation[~np.isfinite(onset) | ~np.isfinite(articulation)] = np.nan
    end_sec = float((played["onset_sec"] + played["duration_sec"]).max(initial=0))
    return {
        "tempo": tempo,
        "velocity": group_means(_spread(len(notes), rows, played["velocity"]), group),
        "timing": _spread(len(notes), rows, np.where(chord[group[rows]], timing, np.nan)),
        "articulation": _spread(len(notes), rows, articulation),
        "pedal": _pedal_shares(pedal, together, end_sec),
    }


def _pedal_shares(pedal: np.ndarray, onset_sec: np.ndarray, end_sec: float) -> np.ndarray:
    """Share of the time from each onset to the next one that the pedal is down, [onsets]; NaN where time stands."""
    shares = np.full(len(onset_sec), np.nan)
    known = np.flatnonzero(np.isfinite(onset_sec))
    if len(known) == 0:
        return shares
    borders = np.append(onset_sec[known], max(end_sec, onset_sec[known[-1]]))
    down = np.concatenate([[0.0], pedal["value"] >= _PEDAL_DOWN])
    times = np.concatenate([[min(borders.min(), 0.0) - 1], pedal["time_sec"]])
    elapsed = np.concatenate([[0.0], np.cumsum(np.diff(times) * down[:-1])])
    event = np.searchsorted(times, borders, side="right") - 1
    pressed = elapsed[event] + (borders - times[event]) * down[event]
    length = np.diff(borders)
    shares[known] = np.divide(np.diff(pressed), length, out=np.full(len(known), np.nan), where=length > 0)
    return shares


def _played_notes(rows: np.ndarray, played: np.ndarray, period: np.ndarray, pedal: np.ndarray) -> PlayedNotes:
    return PlayedNotes(
        onset_beat=rows["onset_beat"],
        duration_beat=rows["duration_beat"],
        pitch=rows["pitch"],
        voice=np.unique(np.stack([rows["part"], rows["voice"]]), axis=1, return_inverse=True)[1].ravel(),
        onset_sec=played["onset_sec"],
        duration_sec=played["duration_sec"],
        velocity=played["velocity"],
        beat_period=np.maximum(period, 1e-9),
        marking=beginning_markings(rows),
        crescendo=np.maximum(rows["loudness_change"], 0),
        diminuendo=np.maximum(-rows["loudness_change"], 0),
        pedal_sec=pedal["time_sec"],
        pedal_value=pedal["value"],
    )


def beginning_markings(rows: np.ndarray) -> np.ndarray:
    """Marking of loudness that begins at each note, [notes] of strings, "" for none.

    Args:
        rows: [notes] of `SCORE_NOTE_DTYPE`, whose markings are given as velocities.
    """
    # Staves are marked apart: in one the next note tells whether its marking is new.
    order = np.lexsort((np.arange(len(rows)), rows["staff"], rows["part"]))
    levels = rows["loudness"].astype(np.float64)[order]
    place = np.stack([rows["part"], rows["staff"]])[:, order]
    same = (np.diff(place, axis=1, prepend=-1) == 0).all(axis=0) & (levels == np.roll(levels, 1))
    begins = np.zeros(len(rows), bool)
    begins[order] = np.isfinite(levels) & ~same
    # Markings are sixteen velocities apart, and the softest has the first sixteen.
    rank = np.clip(np.round(np.nan_to_num(rows["loudness"]) / 16) - 1, 0, len(MARKINGS) - 1).astype(int)
    return np.where(begins, np.array(MARKINGS)[rank], "")


class Comparison:
    """Interpretations of one score, with what comparing them over and over needs once.

    Args:
        references: That others are compared with.
        others: Every interpretation that will be compared, besides the references.
    """

    def __init__(self, references: Sequence[Interpretation], others: Sequence[Interpretation] = ()):
        everything = [*references, *others]
        self._points = {
            name: density_grid([interpretation.values[name] for interpretation in everything]) for name in MEASURES
        }
        self._densities: dict[tuple[int, str], np.ndarray | None] = {}
        # Densities are found by identity: the interpretations must stay alive.
        self._everything = everything

    def _density(self, interpretation: Interpretation, name: str) -> np.ndarray | None:
        key = id(interpretation), name
        if key not in self._densities:
            self._densities[key] = density(interpretation.values[name], self._points[name])
        return self._densities[key]

    def _common_density(self, references: Sequence[Interpretation], name: str) -> np.ndarray | None:
        known = [one for reference in references if (one := self._density(reference, name)) is not None]
        return np.mean(known, axis=0) if known else None

    def scores(self, interpretation: Interpretation, references: Sequence[Interpretation]) -> dict[str, float]:
        """All of `SCORES` of one interpretation.

        Args:
            interpretation: What is judged.
            references: One or several of the others. The scores `..._all` compare with all of them together: the
                deviation from their mean in their standard deviations, the divergence from the mixture of their
                distributions, the correlation with their mean; NaN with fewer than two. The other scores are means
                over the references.
        """
        together = mean_interpretation(references) if len(references) > 1 else None
        scores = {}
        for name in MEASURES:
            values, own = interpretation.values[name], self._density(interpretation, name)
            singles = [self._pair(name, values, own, reference) for reference in references]
            for index, comparison in enumerate(COMPARISONS):
                scores[f"{name}_{comparison}"] = _mean([single[index] for single in singles])
                scores[f"{name}_{comparison}_all"] = math.nan
            if together is not None:
                spread = _deviation_of([reference.values[name] for reference in references])
                mixture = self._common_density(references, name)
                scores[f"{name}_deviation_all"] = deviation(values, together.values[name], spread)
                scores[f"{name}_kl_all"] = divergence(own, mixture)
                scores[f"{name}_correlation_all"] = correlation(values, together.values[name])
        return {name: scores[name] for name in SCORES}

    def _pair(
        self, name: str, values: np.ndarray, own: np.ndarray | None, reference: Interpretation
    ) -> tuple[float, float, float]:
        wanted = reference.values[name]
        known = wanted[np.isfinite(wanted)]
        scale = None if name in _RELATIVE else float(known.std()) if len(known) else math.nan
        return (
            deviation(values, wanted, scale),
            divergence(own, self._density(reference, name)),
            correlation(values, wanted),
        )


def _deviation_of(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Standard deviation of several interpretations at each place; NaN with fewer than two."""
    values = np.stack(columns)
    known = np.isfinite(values)
    count = known.sum(axis=0)
    mean = np.where(known, values, 0).sum(axis=0) / np.maximum(count, 1)
    squares = np.where(known, np.square(values - mean), 0).sum(axis=0)
    return np.sqrt(np.divide(squares, count - 1, out=np.full(count.shape, np.nan), where=count > 1))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
