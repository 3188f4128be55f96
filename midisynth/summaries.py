"""What `midisynth test` measures of models that know best what to measure of them, such as composers.

A model's `test_step` returns `Measurements`, and its `test_summary` makes scores of those of the whole test, on one
process; this callback logs, prints and writes them. So a score may be about all items together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

import midisynth
from midisynth import pictures as drawing
from midisynth.evaluation import PICTURES, PREDICTION
from midisynth.reports import block, gathered, report_path, write_csv, write_json


@dataclass
class Measurements:
    """What a model measured of a batch of a test.

    Attributes:
        items: One for every item of the batch; they travel between processes.
    """

    items: Sequence[Any]


@dataclass
class Summary:
    """Scores of a whole test.

    Attributes:
        title: What was tested.
        scores: Row, such as `PREDICTION`, -> name of the score -> value; NaN where there is none.
        blocks: The tables on screen: title -> name of the score -> heading.
        logged: Names of scores of the row `PREDICTION` that go to the loggers as `test/NAME`.
        singles: Heading and rows of the table of every single item; no rows, no table.
        remarks: What a reader has to know, one sentence each.
        details: Further plain values for the JSON.
        figures: matplotlib figures.
    """

    title: str
    scores: Mapping[str, Mapping[str, float]]
    blocks: Mapping[str, Mapping[str, str]]
    logged: Sequence[str] = ()
    singles: tuple[Sequence[str], Sequence[Sequence[Any]]] = ((), ())
    remarks: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    figures: Sequence[Any] = ()

    def table(self) -> str:
        """The scores as text."""
        tables = (block(title, self.scores, columns) for title, columns in self.blocks.items())
        return "\n\n".join(filter(None, [self.title, *tables, "\n".join(self.remarks)])) + "\n"


class SummaryEvaluation(Callback):
    """Gathers `Measurements`, has the model make a `Summary` of them, and reports it.

    Args:
        report: JSON file to write, with a table of every item beside it as .csv; beside the logs when null.
        pictures: Most figures that the model shall draw; null: a few where matplotlib is installed.
    """

    def __init__(self, report: str | None = None, pictures: int | None = None):
        self.report = report
        self.pictures = pictures
        self._items: list[Any] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._items = []
        if self.pictures:
            drawing.check_available()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(outputs, Measurements):
            self._items.extend(outputs.items)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        items = dealt(gathered(self._items))
        if not items:
            return
        path = report_path(trainer, self.report)
        logged: dict[str, float] = {}
        if trainer.is_global_zero:
            summary = pl_module.test_summary(items, self._to_draw)
            row = summary.scores.get(PREDICTION, {})
            logged = {name: row[name] for name in summary.logged if not math.isnan(row.get(name, math.nan))}
            print(summary.table())
            self._write(path, summary)
        for name, value in trainer.strategy.broadcast(logged).items():
            pl_module.log(f"test/{name}", value, sync_dist=True)

    @property
    def _to_draw(self) -> int:
        if self.pictures is None:
            return PICTURES if drawing.available() else 0
        return self.pictures

    def _write(self, path: Any, summary: Summary) -> None:
        write_json(
            path,
            {
                "midisynth": midisynth.__version__,
                "title": summary.title,
                "scores": summary.scores,
                **summary.details,
                "remarks": list(summary.remarks),
            },
        )
        print(f"scores: {path}")
        heading, rows = summary.singles
        if rows:
            write_csv(path.with_suffix(".csv"), heading, rows)
            print(f"scores of every item: {path.with_suffix('.csv')}")
        for number, figure in enumerate(summary.figures, start=1):
            picture = path.with_name(f"{path.stem}_{number}.png")
            drawing.save(figure, picture)
            print(f"picture: {picture}")


def dealt(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """Items of processes that took turns, in the order of the data set."""
    longest = max(map(len, parts))
    turns = ((part[turn] for part in parts if turn < len(part)) for turn in range(longest))
    return list(chain.from_iterable(turns))
