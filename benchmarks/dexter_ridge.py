"""How much of a performance a linear model of the score explains: ridge regression, beside people and a checkpoint.

    python benchmarks/dexter_ridge.py --data asap=data/asap --data vienna4x22=data/vienna4x22 \
        --checkpoint dexter_piano --output benchmarks/dexter_ridge.json

The regression reads the rich features of each note, those of the onsets around it, and their means over longer
stretches, and predicts the codec's parameters; tempo relative to the mean of the performance. It is trained on the
pieces for training and validation. How much context it reads, whether pieces or notes count alike, and its strength
are chosen for each parameter by cross-validation over these pieces, for the highest correlation. Everything is judged
as `midisynth test` does, on the pieces for testing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from midisynth.checkpoints import load_model
from midisynth.datasets.cache import Prepared
from midisynth.datasets.corpus import Split
from midisynth.errors import MidisynthError, UsageError
from midisynth.evaluation import PREDICTION
from midisynth.interpretations import WRITTEN, confidence_interval, every_note, piece_scores, summary, table
from midisynth.metrics.expression import correlation, group_means, onset_groups
from midisynth.metrics.interpretation import SCORES, Interpretation
from midisynth.models.dexter.data import DExterData
from midisynth.models.dexter.evaluation import WholePieces, play_pieces
from midisynth.models.dexter.expression import BEAT_PERIOD, CHANNELS, ExpressionCodec
from midisynth.models.dexter.model import DExter
from midisynth.music.score_notes import deadpan
from midisynth.reports import write_json

RIDGE = "ridge"
#: Onsets before and after whose features are read, and lengths of the stretches whose means are (onsets).
CONTEXTS = {"note": ((), ()), "near": ((1, 2), (4, 16)), "wide": ((1, 2, 3, 4, 6, 8), (4, 16, 64))}
STRENGTHS = 10.0 ** np.arange(-1, 7.5, 0.5)
WEIGHTS = ("notes", "pieces")
FOLDS = 5


def with_context(features: np.ndarray, onset_beat: np.ndarray, context: str) -> np.ndarray:
    """Features of each note and of what is around it, [notes, columns]; the last column is 1.

    Args:
        features: [notes, features].
        onset_beat: [notes].
        context: One of `CONTEXTS`.
    """
    lags, stretches = CONTEXTS[context]
    _, group = onset_groups(onset_beat)
    means = np.stack([group_means(column, group) for column in features.T], axis=1)
    onsets = np.arange(len(means))
    columns = [features]
    for lag in lags:
        for neighbour in (onsets - lag, onsets + lag):
            columns.append(means[np.clip(neighbour, 0, len(means) - 1)][group])
    sums = np.concatenate([np.zeros((1, means.shape[1])), np.cumsum(means, axis=0)])
    for length in stretches:
        for start, stop in ((onsets - length, onsets), (onsets + 1, onsets + 1 + length)):
            start, stop = np.clip(start, 0, len(means)), np.clip(stop, 0, len(means))
            columns.append(((sums[stop] - sums[start]) / np.maximum(stop - start, 1)[:, None])[group])
    return np.concatenate([*columns, np.ones((len(features), 1))], axis=1)


@dataclass
class Played:
    """A score and its performances.

    Attributes:
        rows: For each context what is read of the notes, [notes, columns] float32.
        group: Onset of every note, [notes].
        matched: [performances][notes] bool.
        targets: [performances][notes, 5], tempo relative to the mean of the performance.
    """

    rows: dict[str, np.ndarray]
    group: np.ndarray
    matched: list[np.ndarray] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(cls, features: np.ndarray, onset_beat: np.ndarray) -> Played:
        """A score without performances; arguments as in `with_context`."""
        rows = {context: with_context(features, onset_beat, context).astype(np.float32) for context in CONTEXTS}
        return cls(rows, onset_groups(onset_beat)[1])

    def add(self, values: np.ndarray, matched: np.ndarray) -> float:
        """Count a performance, [notes, 5] and [notes] bool, and return its mean tempo (log2 of seconds a beat)."""
        targets = values.astype(np.float64)
        level = targets[matched, BEAT_PERIOD].mean()
        targets[:, BEAT_PERIOD] -= level
        self.matched.append(matched)
        self.targets.append(targets)
        return float(level)

    def products(self, context: str) -> tuple[np.ndarray, np.ndarray, float]:
        """Second moments of what is read, those with the targets, and the number of notes, over all performances."""
        rows = self.rows[context].astype(np.float64)
        counts = np.sum(self.matched, axis=0)
        targets = np.sum([known[:, None] * one for known, one in zip(self.matched, self.targets, strict=True)], axis=0)
        return rows.T @ (counts[:, None] * rows), rows.T @ targets, float(counts.sum())

    def agreements(self, context: str, weights: np.ndarray, channel: int) -> list[float]:
        """Correlation of a predicted parameter with each performance, averaged over the notes of each onset."""
        predicted = self.rows[context] @ weights
        found = []
        for known, targets in zip(self.matched, self.targets, strict=True):
            sides = (np.where(known, side, np.nan) for side in (predicted, targets[:, channel]))
            found.append(correlation(*(group_means(side, self.group) for side in sides)))
        return found


@dataclass
class Piece:
    """Everything that was played of a composition.

    Attributes:
        scores: By their hash; performances with other repeats, and other editions, have their own.
        levels: Mean tempo of each performance, log2 of seconds a beat.
    """

    scores: dict[bytes, Played] = field(default_factory=dict)
    levels: list[float] = field(default_factory=list)

    def add(self, prepared: Prepared) -> None:
        """Count a performance."""
        arrays = prepared.arrays()
        key = arrays["score_hash"].tobytes()
        if key not in self.scores:
            self.scores[key] = Played.of(arrays["score"].astype(np.float64), arrays["onset"])
        self.levels.append(self.scores[key].add(arrays["values"], arrays["matched"]))

    def products(self, context: str) -> tuple[np.ndarray, np.ndarray, float]:
        """See `Played.products`."""
        gram, moment, count = zip(*(played.products(context) for played in self.scores.values()), strict=True)
        return sum(gram), sum(moment), sum(count)

    def agreement(self, context: str, weights: np.ndarray, channel: int) -> float:
        """Mean correlation over all performances; NaN where none is defined."""
        found = [one for played in self.scores.values() for one in played.agreements(context, weights, channel)]
        known = [value for value in found if value == value]
        return float(np.mean(known)) if known else float("nan")


@dataclass(frozen=True)
class Choice:
    """One way to set up the regression of a parameter.

    Attributes:
        context: One of `CONTEXTS`.
        weight: One of `WEIGHTS`.
        strength: Of the penalty, for columns of variance 1, in notes.
        agreement: Mean correlation over the pieces left out in cross-validation.
    """

    context: str
    weight: str
    strength: float
    agreement: float


class Ridge:
    """Weights for every parameter.

    Args:
        pieces: For training.
    """

    def __init__(self, pieces: Sequence[Piece]):
        self._products = {context: [piece.products(context) for piece in pieces] for context in CONTEXTS}
        self.choices = [self._choose(pieces, channel) for channel in range(len(CHANNELS))]
        # The level is lost in the correlation; people's mean is as good as any.
        self.level = float(np.mean([np.mean(piece.levels) for piece in pieces]))
        everything = range(len(pieces))
        self.weights = [
            self._solve(choice.context, choice.weight, everything, [choice.strength], channel)[0]
            for channel, choice in enumerate(self.choices)
        ]

    def _solve(
        self, context: str, weight: str, pieces: Sequence[int], strengths: Sequence[float], channel: int
    ) -> list[np.ndarray]:
        """Weights of what is read, [columns], for each strength."""
        chosen = [self._products[context][index] for index in pieces]
        total = sum(count for _, _, count in chosen)
        shares = [1.0 if weight == "notes" else total / len(chosen) / count for _, _, count in chosen]
        gram = sum(share * gram for share, (gram, _, _) in zip(shares, chosen, strict=True))
        moment = sum(share * moment[:, channel] for share, (_, moment, _) in zip(shares, chosen, strict=True))
        # The last column is the constant: it gives the means, and is not penalised.
        mean = gram[-1, :-1] / gram[-1, -1]
        centred = gram[:-1, :-1] - gram[-1, -1] * np.outer(mean, mean)
        crossed = moment[:-1] - mean * moment[-1]
        scale = np.sqrt(np.maximum(np.diag(centred) / total, 1e-12))
        # Columns that never change stay out.
        scale[scale < 1e-5] = np.inf
        values, vectors = np.linalg.eigh(centred / np.outer(scale, scale))
        projected = vectors.T @ (crossed / scale)
        solutions = []
        for strength in strengths:
            slopes = vectors @ (projected / (np.maximum(values, 0) + strength)) / scale
            solutions.append(np.append(slopes, moment[-1] / gram[-1, -1] - slopes @ mean))
        return solutions

    def _choose(self, pieces: Sequence[Piece], channel: int) -> Choice:
        folds = [range(len(pieces))[first::FOLDS] for first in range(min(FOLDS, len(pieces)))]
        found = []
        for context, weight in product(CONTEXTS, WEIGHTS):
            agreement = np.zeros((len(STRENGTHS), len(pieces)))
            for left_out in folds:
                rest = [index for index in range(len(pieces)) if index not in left_out]
                for row, weights in enumerate(self._solve(context, weight, rest, STRENGTHS, channel)):
                    for index in left_out:
                        agreement[row, index] = pieces[index].agreement(context, weights, channel)
            means = np.nanmean(agreement, axis=1)
            best = int(means.argmax())
            found.append(Choice(context, weight, float(STRENGTHS[best]), float(means[best])))
        return max(found, key=lambda choice: choice.agreement)

    def values(self, features: np.ndarray, onset_beat: np.ndarray) -> np.ndarray:
        """Parameters of a performance, [notes, 5]."""
        columns = []
        for choice, weights in zip(self.choices, self.weights, strict=True):
            columns.append(with_context(features.astype(np.float64), onset_beat, choice.context) @ weights)
        columns[BEAT_PERIOD] += self.level
        return np.stack(columns, axis=1)


def open_data(corpora: Mapping[str, Any], cache: str | None) -> DExterData:
    """Corpora, by their folders or options, with the rich features and the default codec, prepared."""
    data = DExterData(dict(corpora), cache_dir=cache)
    data.connect(DExter(channels=8, layers=1))
    data.prepare()
    data.setup("fit")
    data.setup("test")
    return data


def training_pieces(data: DExterData) -> list[Piece]:
    """What the regression is trained on, in the order of the names of the pieces."""
    pieces: dict[str, Piece] = {}
    splits: tuple[Split, ...] = ("train", "validation")
    for prepared in (one for split in splits for part in data.parts(split) for one in part.prepared):
        pieces.setdefault(prepared.record.piece, Piece()).add(prepared)
    return [pieces[name] for name in sorted(pieces)]


def interpretations(ridge: Ridge, model: DExter | None, example: Mapping[str, Any]) -> dict[str, list[Interpretation]]:
    """Everything that plays a piece, by name."""
    score = example["humans"][0].score
    values = ridge.values(example["piece"]["features"], score.notes["onset_beat"])
    played = {RIDGE: [ExpressionCodec().decode(score, values)], WRITTEN: [deadpan(score)]}
    rows = {name: [Interpretation.of(every_note(score, one)) for one in many] for name, many in played.items()}
    if model is not None:
        piece = {**example, "piece": model.codec.encode_score(score)}
        rows = {PREDICTION: [Interpretation.of(one) for one in play_pieces(model, [piece]).pieces[0].made], **rows}
    return rows


def judged(ridge: Ridge, model: DExter | None, data: DExterData) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of everything that plays a piece for testing, by piece and by who plays.

    Args:
        ridge: Trained.
        model: Played beside it, unless None.
        data: Of `open_data`.
    """
    examples = WholePieces(data.parts("test"), data.codec)
    pieces = {}
    with torch.inference_mode():
        for example in (examples[index] for index in range(len(examples))):
            humans = [Interpretation.of(human) for human in example["humans"]]
            pieces[example["name"]] = piece_scores(humans, interpretations(ridge, model, example))
            print(f"{example['name']}: {len(humans)} performances", file=sys.stderr)
    return pieces


def report(pieces: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Print and return the means over pieces, and how far the model is ahead of the regression where it was played."""
    rows = list(dict.fromkeys(row for scores in pieces.values() for row in scores))
    absent = dict.fromkeys(SCORES, np.nan)
    values = np.array([[list(scores.get(row, absent).values()) for row in rows] for scores in pieces.values()])
    result = summary(list(pieces), rows, values)
    print(table(result))
    for name in ("tempo_correlation", "velocity_correlation") if PREDICTION in rows else ():
        at = SCORES.index(name)
        ahead = values[:, rows.index(PREDICTION), at] - values[:, rows.index(RIDGE), at]
        low, high = confidence_interval(ahead)
        result.setdefault("ahead_of_ridge", {})[name] = (float(ahead.mean()), float(low), float(high))
        wins = int((ahead > 0).sum())
        print(f"{name}: {ahead.mean():+.3f} ahead of the ridge ({low:+.3f} to {high:+.3f}), on {wins} of {len(ahead)}")
    return {**result, "by_piece": pieces}


def main() -> None:
    """Train, test, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, metavar="CORPUS=FOLDER", help="may be repeated")
    parser.add_argument("--checkpoint", help="of DExter, to be tested beside the regression")
    parser.add_argument("--cache", help="folder for prepared data")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    corpora = dict(text.split("=", 1) for text in options.data if "=" in text)
    if len(corpora) != len(options.data):
        raise UsageError("--data: expected CORPUS=FOLDER")
    model = None if options.checkpoint is None else load_model(options.checkpoint)
    data = open_data(corpora, options.cache)
    ridge = Ridge(training_pieces(data))
    for name, choice in zip(CHANNELS, ridge.choices, strict=True):
        print(f"{name}: {choice}")
    result = report(judged(ridge, model, data))
    if options.output is not None:
        chosen = {name: vars(choice) for name, choice in zip(CHANNELS, ridge.choices, strict=True)}
        write_json(options.output, {**result, "corpora": sorted(corpora), "ridge": chosen})


if __name__ == "__main__":
    try:
        main()
    except MidisynthError as error:
        sys.exit(f"error: {error}")
