"""What a run shows while it runs, and what it saves when it is stopped."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException

from midisynth.interrupts import Interrupts


class PlainProgress(ProgressBar):
    """Progress as plain lines, for logs and terminals that cannot redraw.

    Args:
        interval_sec: Shortest time between two lines (seconds).
    """

    def __init__(self, interval_sec: float = 10.0):
        super().__init__()
        self._interval_sec = interval_sec
        self._enabled = True
        self._started = self._shown = 0.0
        self._first = 0

    def enable(self) -> None:
        """Show lines."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing; Lightning asks for this on all processes but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._shown = time.monotonic()
        # A resumed run has not spent its time on the steps before.
        self._first = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._step("fit", trainer.global_step, trainer.estimated_stepping_batches, trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._line(f"step {trainer.global_step}: {self._metrics(trainer, pl_module)}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._line(f"stopped at step {trainer.global_step}: {self._metrics(trainer, pl_module)}")

    def _step(self, what: str, done: int, total: float, trainer: Trainer, pl_module: LightningModule) -> None:
        now = time.monotonic()
        if now - self._shown < self._interval_sec:
            return
        self._shown = now
        made = done - self._first
        known = made > 0 and done <= total < 1e15
        left = f", {(now - self._started) / made * (total - done):.0f} s left" if known else ""
        of = f"/{total:.0f}" if total < 1e15 else ""
        self._line(f"{what} step {done}{of}{left}: {self._metrics(trainer, pl_module)}")

    def _metrics(self, trainer: Trainer, pl_module: LightningModule) -> str:
        values = self.get_metrics(trainer, pl_module)
        return " ".join(f"{name}={value}" for name, value in values.items() if name != "v_num")

    def _line(self, text: str) -> None:
        if self._enabled:
            print(text, file=sys.stderr, flush=True)


class InterruptedCheckpoint(Callback):
    """Saves `interrupted.ckpt` beside the other checkpoints when training is stopped by a signal.

    Args:
        interrupts: Signals of this process. SIGTERM is left to Lightning while training runs, which ends after the
            current step; at other times, in preparation for instance, it takes effect at once.
    """

    def __init__(self, interrupts: Interrupts):
        self._interrupts = interrupts

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interrupts.deferred = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interrupts.deferred = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, (KeyboardInterrupt, SIGTERMException)) or trainer.global_step == 0:
            return
        folder = trainer.checkpoint_callback.dirpath if trainer.checkpoint_callback is not None else None
        path = Path(folder or trainer.default_root_dir) / "interrupted.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        print(f"saved {path}; go on with --ckpt_path {path}", file=sys.stderr)
