"""Progress of long preparations: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from midisynth.datasets.cache import Report

#: Between two lines where there is no terminal (seconds).
LINE_INTERVAL_SEC = 10.0


@contextmanager
def progress_report(title: str, enabled: bool = True) -> Iterator[Report | None]:
    """Show progress on standard error while the block runs.

    Args:
        title: What is being done.
        enabled: False shows nothing.
    """
    console = Console(stderr=True)
    if not enabled:
        yield None
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bars:
            task = bars.add_task(title, total=None)
            yield lambda done, total, item: bars.update(task, completed=done, total=total)
    else:
        yield _Lines(console, title)


class _Lines:
    def __init__(self, console: Console, title: str):
        self._console = console
        self._title = title
        self._started: float | None = None
        self._last = time.monotonic()

    def __call__(self, done: int, total: int, item: str) -> None:
        now = time.monotonic()
        if self._started is None:
            # The first one takes longer than the others, and would spoil the estimate.
            self._started = now
        elif done == total or now - self._last >= LINE_INTERVAL_SEC:
            self._last = now
            left = (now - self._started) / (done - 1) * (total - done)
            self._console.print(f"{self._title}: {done}/{total}, {left:.0f} s left", highlight=False)
