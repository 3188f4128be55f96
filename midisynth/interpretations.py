"""What `midisynth test` measures of performances, for every model that plays scores: how near they are to people's.

A model's `test_step` returns `Interpretations`; this callback compares them with every human performance of the piece,
beside the score as it is written, other renderers, and the people themselves. Its options are no options of a model. A
piece is on one process alone, and what is kept of it merges, so the numbers do not depend on how many there are.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

import midisynth
from midisynth import pictures as drawing
from midisynth.errors import DataError
from midisynth.evaluation import PICTURES, PREDICTION
from midisynth.metrics.expression import onset_groups
from midisynth.metrics.interpretation import CURVES, MEASURES, SCORES, Comparison, Interpretation, mean_interpretation
from midisynth.music.alignment import AlignedPerformance, align
from midisynth.music.midi import read_midi
from midisynth.music.notes import Performance
from midisynth.music.score_notes import Score, deadpan
from midisynth.reports import block, gathered, report_path, write_csv, write_json

#: What the page says, in tempo and with one velocity.
WRITTEN = "as written"
#: A person beside the others: no model that plays like one of them can be expected to agree more.
ANOTHER = "another human"
#: The mean of all others beside one person: the most that the score, and taste that is shared, tell of a performance.
CONSENSUS = "mean of the other humans"

_RESAMPLES = 1000
_CONFIDENCE = 0.95


@dataclass
class InterpretedPiece:
    """A piece of a test.

    Attributes:
        name: Of the piece, safe as the name of a file; other renderers' files have it.
        humans: Performances of one and the same score by people.
        made: The model's.
    """

    name: str
    humans: Sequence[AlignedPerformance]
    made: Sequence[AlignedPerformance]


@dataclass
class Interpretations:
    """What a model made of a batch of a test.

    Attributes:
        pieces: One for every item of the batch.
    """

    pieces: Sequence[InterpretedPiece]


class PieceScores(Metric):
    """Scores of every piece, and their means over pieces with confidence intervals.

    Args:
        rows: Names of what is compared, in order.
    """

    full_state_update = False
    pieces: list[Tensor]
    values: list[Tensor]

    def __init__(self, rows: Sequence[str]):
        super().__init__()
        self.rows = tuple(rows)
        self.add_state("pieces", [], dist_reduce_fx="cat")
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, piece: int, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Count a piece.

        Args:
            piece: A number that identifies it.
            scores: Row -> name out of `SCORES` -> value; rows that are missing are NaN.
        """
        table = [[scores[row][name] if row in scores else math.nan for name in SCORES] for row in self.rows]
        self.pieces.append(torch.tensor([piece], device=self.device))
        self.values.append(torch.tensor(table, dtype=torch.float64, device=self.device)[None])

    def compute(self) -> tuple[Tensor, Tensor]:
        """Numbers of the pieces in rising order, [pieces], and their scores, [pieces, rows, scores]."""
        pieces, values = dim_zero_cat(self.pieces), dim_zero_cat(self.values)
        order = pieces.argsort()
        return pieces[order], values[order]


def confidence_interval(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Where 95 % of the means lie that other pieces would give, by the bootstrap over pieces (Efron 1979).

    Args:
        values: [pieces, ...]; NaN is left out.
        seed: Of the resampling.

    Returns:
        Both bounds, [...]; NaN with fewer than two pieces.
    """
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    known = np.isfinite(values)
    filled = np.where(known, values, 0).reshape(len(values), -1)
    drawn = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    weights = np.stack([np.bincount(sample, minlength=len(values)) for sample in drawn]).astype(np.float64)
    count = weights @ known.reshape(len(values), -1)
    means = np.divide(weights @ filled, count, out=np.full(count.shape, np.nan), where=count > 0)
    bounds = np.full((2, means.shape[1]), np.nan)
    enough = np.isfinite(means).any(axis=0)
    tail = (1 - _CONFIDENCE) / 2
    bounds[:, enough] = np.nanquantile(means[:, enough], [tail, 1 - tail], axis=0)
    low, high = bounds.reshape(2, *values.shape[1:])
    return low, high


def piece_scores(
    humans: Sequence[Interpretation], rows: Mapping[str, Sequence[Interpretation]]
) -> dict[str, dict[str, float]]:
    """Scores of everything that plays a piece, row -> name out of `SCORES` -> value.

    Args:
        humans: Performances by people.
        rows: Name -> interpretations; each is compared with all people, and the row is their mean. From three people
            on `ANOTHER` and `CONSENSUS` are added, which compare people with each other, from two on only the former.
    """
    others = [(humans[:index] + humans[index + 1 :]) for index in range(len(humans))] if len(humans) > 1 else []
    consensus = [mean_interpretation(rest) for rest in others] if len(humans) > 2 else []
    comparison = Comparison(humans, [*(one for row in rows.values() for one in row), *consensus])
    scores = {name: _mean_scores([comparison.scores(one, humans) for one in row]) for name, row in rows.items() if row}
    if others:
        pairs = zip(humans, others, strict=True)
        scores[ANOTHER] = _mean_scores([comparison.scores(human, rest) for human, rest in pairs])
    if consensus:
        pairs = zip(consensus, humans, strict=True)
        scores[CONSENSUS] = _mean_scores([comparison.scores(mean, [human]) for mean, human in pairs])
    return scores


def _mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    table = np.array([[values[name] for name in SCORES] for values in scores])
    known = np.isfinite(table)
    count = known.sum(axis=0)
    total = np.where(known, table, 0).sum(axis=0)
    means = np.divide(total, count, out=np.full(len(SCORES), np.nan), where=count > 0)
    return dict(zip(SCORES, means.tolist(), strict=True))


def summary(pieces: Sequence[str], rows: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    """Means over pieces with confidence intervals, as plain values; rows without any score are left out.

    Args:
        pieces: Their names.
        rows: Names of what was compared.
        values: [pieces, rows, scores], the last in the order of `SCORES`; NaN is left out.
    """
    low, high = confidence_interval(values)
    present = [index for index in range(len(rows)) if np.isfinite(values[:, index]).any()]
    return {
        "midisynth": midisynth.__version__,
        "pieces": list(pieces),
        "scores": {
            rows[index]: _mean_scores([dict(zip(SCORES, piece, strict=True)) for piece in values[:, index]])
            for index in present
        },
        "confidence": {
            rows[index]: {key: (float(low[index, at]), float(high[index, at])) for at, key in enumerate(SCORES)}
            for index in present
        },
    }


def every_note(score: Score, performance: Performance) -> AlignedPerformance:
    """A performance whose notes are those of the score, row by row."""
    rows = np.arange(len(score.notes))
    return AlignedPerformance(score, performance, np.stack([rows, rows], axis=1))


class InterpretationEvaluation(Callback):
    """Scores `Interpretations`, logs the scores under `test/`, prints them and writes them to files.

    Args:
        renderers: Name to the folder of another renderer's performances: MIDI files with the names of the pieces.
        report: JSON file to write, with the scores of every piece beside it as .csv; beside the logs when null.
        pictures: Of so many pieces, the first of process zero, the curves of the model and of a person are drawn beside
            the report; null draws three where matplotlib is installed.
    """

    def __init__(
        self, renderers: Mapping[str, str] | None = None, report: str | None = None, pictures: int | None = None
    ):
        self.renderers = {name: Path(folder).expanduser() for name, folder in (renderers or {}).items()}
        self.report = report
        self.pictures = pictures
        self._scores = PieceScores(())
        self._names: dict[int, str] = {}
        self._remarks: list[str] = []
        self._drawn: list[tuple[Score, dict[str, Interpretation]]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, folder in self.renderers.items():
            if not folder.is_dir():
                raise DataError(f"renderers.{name}: no such folder: {folder}")
        rows = (PREDICTION, *self.renderers, WRITTEN, ANOTHER, CONSENSUS)
        self._scores = PieceScores(rows).to(pl_module.device)
        self._names, self._remarks, self._drawn = {}, [], []
        if self.pictures:
            drawing.check_available()

    @torch.inference_mode()
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(outputs, Interpretations):
            return
        for piece in outputs.pieces:
            humans = [Interpretation.of(human) for human in piece.humans]
            rows = {PREDICTION: [Interpretation.of(one) for one in piece.made]}
            score = piece.humans[0].score
            for name, folder in self.renderers.items():
                rows[name] = [Interpretation.of(one) for one in self._played(folder, piece.name, score)]
            rows[WRITTEN] = [Interpretation.of(every_note(score, deadpan(score)))]
            # Names do not travel between processes, numbers do.
            number = zlib.crc32(piece.name.encode())
            self._names[number] = piece.name
            self._scores.update(number, piece_scores(humans, rows))
            if trainer.is_global_zero and len(self._drawn) < self._to_draw and rows[PREDICTION]:
                self._drawn.append((score, {PREDICTION: rows[PREDICTION][0], "human": humans[0]}))

    @property
    def _to_draw(self) -> int:
        if self.pictures is None:
            return PICTURES if drawing.available() else 0
        return self.pictures

    def _played(self, folder: Path, piece: str, score: Score) -> list[AlignedPerformance]:
        """What another renderer made of a piece; nothing where its folder has no such file."""
        for suffix in (".mid", ".midi"):
            path = folder / f"{piece}{suffix}"
            if path.is_file():
                return [matched(score, read_midi(path))]
        return []

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning asks every process in every test; a model of audio never updated this.
        if not self._scores.update_called:
            if self.renderers and trainer.is_global_zero:
                print(f"renderers: {type(pl_module).__name__} plays no scores in a test: there is nothing to compare")
            return
        numbers, values = (part.cpu().numpy() for part in self._scores.compute())
        # torchmetrics makes a scalar of the number of a single piece.
        numbers = np.atleast_1d(numbers)
        names = {number: name for part in gathered(self._names) for number, name in part.items()}
        result = summary([names[int(number)] for number in numbers], self._scores.rows, values)
        for key in (f"{measure}_correlation" for measure in CURVES):
            value = result["scores"].get(PREDICTION, {}).get(key, math.nan)
            if not math.isnan(value):
                pl_module.log(f"test/{key}", value, sync_dist=True)
        for name in self.renderers:
            missing = int(np.isnan(values[:, self._scores.rows.index(name)]).all(axis=1).sum())
            if missing:
                self._remarks.append(f"renderers.{name}: has no file for {missing} of {len(values)} pieces")
        self._write(trainer, result, values)

    def _write(self, trainer: Trainer, result: Mapping[str, Any], values: np.ndarray) -> None:
        path = report_path(trainer, self.report)
        if not trainer.is_global_zero:
            return
        print("\n".join([table(result), *self._remarks]))
        write_json(path, {**result, "remarks": self._remarks})
        singles = path.with_suffix(".csv")
        write_csv(
            singles,
            ("piece", "row", *SCORES),
            (
                (piece, row, *values[at, index].tolist())
                for at, piece in enumerate(result["pieces"])
                for index, row in enumerate(self._scores.rows)
                if row in result["scores"]
            ),
        )
        print(f"scores: {path}\nscores of every piece: {singles}")
        for number, (score, interpretations) in enumerate(self._drawn, start=1):
            picture = path.with_name(f"{path.stem}_{number}.png")
            drawing.save(curves_figure(score, interpretations), picture)
            print(f"picture: {picture}")


def matched(score: Score, performance: Performance) -> AlignedPerformance:
    """Match a renderer's performance with the score.

    Programs mostly play every note of the page: then the n-th note of each key is the n-th that the page has. What has
    other notes is aligned.

    Args:
        score: What was played.
        performance: What a program made of it.

    Raises:
        DataError: It cannot be aligned.
    """
    page = np.lexsort((np.arange(len(score.notes)), score.notes["onset_div"], score.notes["pitch"]))
    heard = np.lexsort((performance.notes["onset_sec"], performance.notes["pitch"]))
    if len(page) != len(heard) or (score.notes["pitch"][page] != performance.notes["pitch"][heard]).any():
        return align(score, performance)
    return AlignedPerformance(score, performance, np.stack([page, heard], axis=1)[np.argsort(page)])


def table(result: Mapping[str, Any]) -> str:
    """What `InterpretationEvaluation` writes, as text."""
    scores = result["scores"]
    version = result["midisynth"]
    blocks = []
    for title, comparison in (
        ("correlation with each human performance", "correlation"),
        ("deviation from each human performance", "deviation"),
        ("KL divergence from the values of each human performance (nats)", "kl"),
    ):
        count = f"pieces: {len(result['pieces'])} (midisynth {version}), " if not blocks else ""
        blocks.append(block(count + title, scores, {f"{name}_{comparison}": name for name in CURVES}))
    # What is one number for a whole performance has no correlation.
    features = [name for name in MEASURES if name not in (*CURVES, "pedal.pedal_coverage")]
    for kind in dict.fromkeys(name.partition(".")[0] for name in features):
        columns = {f"{name}_correlation": name.partition(".")[2][:12] for name in features if name.startswith(kind)}
        blocks.append(block(f"{kind}: correlation", scores, columns))
    correlations = [f"{name}_correlation" for name in ("tempo", "velocity")]
    for row, bounds in result["confidence"].items():
        cells = [f"{key.partition('_')[0]} {bounds[key][0]:.3f} to {bounds[key][1]:.3f}" for key in correlations]
        if not math.isnan(bounds[correlations[0]][0]):
            blocks.append(f"95 % interval of the correlation, {row}: {', '.join(cells)}")
    return "\n\n".join(filter(None, blocks)) + "\n"


def curves_figure(score: Score, interpretations: Mapping[str, Interpretation]) -> Any:
    """Tempo and velocity over the score, of one or several interpretations, as a matplotlib figure.

    Args:
        score: What was played.
        interpretations: Label -> interpretation.

    Raises:
        MidisynthError: matplotlib is not installed.
    """
    beats, _ = onset_groups(score.notes["onset_beat"])
    curves = {label: (one.values["tempo"], one.values["velocity"]) for label, one in interpretations.items()}
    return drawing.draw_curves(beats, curves)
