"""SIGINT and SIGTERM, so that a run cleans up and its exit code tells what happened."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interrupts:
    """Context in which SIGINT and SIGTERM unwind the stack, so that every `finally` runs.

    While `deferred` is set, the first SIGTERM is left to Lightning, which ends training after the current step; a
    second one unwinds at once.

    Attributes:
        received: Number of the first signal that came, or None.
        deferred: See above.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferred = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        first = self.received is None
        if first:
            self.received = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if not (self.deferred and first):
            raise SystemExit(128 + number)
