"""Comparisons of symbolic music on a grid: notes of a bar, and a melody with those that a model was trained on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

PITCHES = 128
#: A melody is called memorised if the nearest of the training melodies is this much nearer than the next.
MEMORISED_RATIO = 1 / 3


def duration_roll(notes: np.ndarray, positions: int = 48) -> np.ndarray:
    """Notes on a grid.

    Args:
        notes: [notes, 3] int: onset (positions), pitch, duration (positions). An onset beyond the grid counts as its
            last position.
        positions: Size of the grid.

    Returns:
        [positions, 128] int: duration of the note that begins there, the longest of several; 0 for none.
    """
    roll = np.zeros((positions, PITCHES), dtype=np.int64)
    onset, pitch, duration = np.asarray(notes, dtype=np.int64).reshape(-1, 3).T
    np.maximum.at(roll, (np.minimum(onset, positions - 1), pitch), duration)
    return roll


@dataclass(frozen=True)
class GridScore:
    """F1 of notes, by what has to agree.

    Attributes:
        op: Onset and pitch.
        opd: Duration as well.
        iopd: Instrument as well: mean over instruments of their F1.
    """

    op: float
    opd: float
    iopd: float


def grid_score(
    reference: Mapping[int, np.ndarray],
    estimate: Mapping[int, np.ndarray],
    positions: int = 48,
    published: bool = False,
) -> GridScore:
    """Compare two bars or phrases. When neither has a note every score is 1.

    Args:
        reference: Instrument -> notes, as `duration_roll` takes them.
        estimate: The same.
        positions: Size of the grid.
        published: As Ou and Wang (2025) evaluate: notes where there should be none are right, and instruments that
            the reference lacks do not count.
    """
    pooled = [
        np.max([duration_roll(notes, positions) for notes in side.values()], axis=0, initial=0)
        if side
        else np.zeros((positions, PITCHES), dtype=np.int64)
        for side in (reference, estimate)
    ]
    instruments = set(reference) if published else set(reference) | set(estimate)
    nothing = np.empty((0, 3), dtype=np.int64)
    each = []
    for instrument in sorted(instruments):
        rolls = (duration_roll(side.get(instrument, nothing), positions) for side in (reference, estimate))
        each.append(_f1(*rolls, durations=True, published=published))
    op, opd = (_f1(*pooled, durations=durations, published=published) for durations in (False, True))
    return GridScore(op, opd, float(np.mean(each)) if each else 1.0)


def _f1(reference: np.ndarray, estimate: np.ndarray, durations: bool, published: bool) -> float:
    """F1 of two duration rolls."""
    wanted, found = reference > 0, estimate > 0
    if not wanted.any() and (published or not found.any()):
        return 1.0
    right = wanted & found
    if durations:
        right &= reference == estimate
    return float(2 * right.sum() / (wanted.sum() + found.sum()))


def word_error_rates(hypothesis: Sequence[Hashable], references: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """Insertions, deletions and substitutions that turn each reference into the hypothesis, per word of the reference.

    Args:
        hypothesis: Words.
        references: Words of each; those without a word have no rate.

    Returns:
        [references] float, NaN without words.
    """
    ids = {
        word: number for number, word in enumerate(dict.fromkeys([*hypothesis, *(w for r in references for w in r)]))
    }
    spoken = np.array([ids[word] for word in hypothesis], dtype=np.int64)
    lengths = np.array([len(reference) for reference in references])
    table = np.full((len(references), max(lengths, default=0)), -1)
    for row, reference in zip(table, references, strict=True):
        row[: len(reference)] = [ids[word] for word in reference]
    # One column of the Levenshtein table after the other, for all references together. Within a column a cell can
    # follow from the one before: a running minimum once the steps are taken off.
    steps = np.arange(len(spoken) + 1)
    row_costs = np.broadcast_to(steps, (len(references), len(spoken) + 1)).copy()
    edits = row_costs[:, -1].copy()
    for position in range(table.shape[1]):
        substituted = row_costs[:, :-1] + (table[:, position, None] != spoken)
        following = row_costs + 1
        following[:, 1:] = np.minimum(following[:, 1:], substituted)
        row_costs = np.minimum.accumulate(following - steps, axis=1) + steps
        ended = lengths == position + 1
        edits[ended] = row_costs[ended, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(lengths > 0, edits / lengths, np.nan)


@dataclass(frozen=True)
class Memorisation:
    """How much of a melody is from the training data (Ou and Wang 2025, section 5).

    Attributes:
        nearest: Number of the nearest training melody.
        rate: 1 - its word error rate; below 0 for melodies much longer than any of them.
        ratio: Its word error rate over that of the next nearest: far below 1 if it is a copy.
    """

    nearest: int
    rate: float
    ratio: float

    @property
    def memorised(self) -> bool:
        """Whether one training melody is so much nearer than all others that this is a copy of it."""
        return self.ratio < MEMORISED_RATIO


def memorisation(melody: Sequence[Hashable], training: Sequence[Sequence[Hashable]]) -> Memorisation:
    """Look for a melody in the training data.

    Args:
        melody: Words, such as the tokens of its notes and bar lines. Transpose it to where the training melodies are.
        training: Words of every training melody; at least two that have words.
    """
    rates = word_error_rates(melody, training)
    first, second = np.argsort(rates)[:2]  # NaN comes last
    # Two exact copies, which is a copy, too.
    ratio = float(rates[first] / rates[second]) if rates[second] > 0 else 0.0
    return Memorisation(int(first), float(1 - rates[first]), ratio)


def length_accuracy(bars: Sequence[int], wanted: Sequence[int], bucket: int = 10) -> float:
    """Share of songs whose number of bars is in the bucket that was asked for: 60 to 69 where that was 64."""
    return float(np.mean(np.asarray(bars) // bucket == np.asarray(wanted) // bucket))
