"""Progress of `predict`, with the time left: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from midisynth.module import MidiModule
from midisynth.outputs import RenderBatch

#: Between two lines where there is no terminal (seconds).
LINE_INTERVAL_SEC = 10.0


class RenderProgress(Callback):
    """Shows the progress of the first process, whose share is like that of the others.

    Items count as a whole when they are done. Where the model can tell how long an output will be, the item that is
    being rendered counts by the seconds of audio that have been made.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars: Progress | None = None
        self._done = 0.0
        self._rendered_sec = 0.0
        self._made_sec = 0.0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._total = max(1, int(sum(trainer.num_predict_batches)))
        self._started = self._shown = time.monotonic()
        self._enabled = trainer.is_global_zero
        if self._enabled and self._console.is_terminal:
            columns = (TextColumn("rendering"), BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
            self._bars = Progress(*columns, TimeRemainingColumn(), console=self._console)
            self._bars.start()
            self._task = self._bars.add_task("", total=1.0)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: RenderBatch, *args: Any
    ) -> None:
        assert isinstance(pl_module, MidiModule)
        lengths = [pl_module.duration_sec(example) for example in batch.examples]
        self._expected_sec = sum(lengths) if lengths and None not in lengths else None
        self._rendered_sec = 0.0
        batch.on_chunk = self._chunk

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: RenderBatch, *args: Any
    ) -> None:
        self._done += 1
        self._rendered_sec = 0.0
        self._show()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _chunk(self, seconds: float) -> None:
        self._rendered_sec += seconds
        self._made_sec += seconds
        self._show()

    def _show(self) -> None:
        part = min(1.0, self._rendered_sec / self._expected_sec) if self._expected_sec else 0.0
        share = min(1.0, (self._done + part) / self._total)
        what = f"{self._done:.0f}/{self._total} batches, {self._made_sec:.0f} s of audio"
        if self._bars is not None:
            self._bars.update(self._task, completed=share, description=what)
            return
        now = time.monotonic()
        if self._enabled and now - self._shown >= LINE_INTERVAL_SEC and share > 0:
            self._shown = now
            left = (now - self._started) * (1 / share - 1)
            self._console.print(f"rendering: {share:.0%}, {what}, {left:.0f} s left", highlight=False)
