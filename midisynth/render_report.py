"""What became of a run of `predict`."""

from __future__ import annotations

from dataclasses import dataclass

from midisynth.outputs import Outcome

#: Failures and warnings that are listed one by one.
LISTED = 100


@dataclass(frozen=True)
class Report:
    """The outcomes of a run.

    Attributes:
        outcomes: One for each output, and for each input of which nothing could come.
        wall_sec: How long it took (seconds).
        stopped: It ended after the first failure, as asked for.
    """

    outcomes: tuple[Outcome, ...]
    wall_sec: float
    stopped: bool = False

    @property
    def written(self) -> list[Outcome]:
        """Outputs that were made."""
        return [outcome for outcome in self.outcomes if outcome.status == "written"]

    @property
    def skipped(self) -> list[Outcome]:
        """Outputs that existed."""
        return [outcome for outcome in self.outcomes if outcome.status == "skipped"]

    @property
    def failed(self) -> list[Outcome]:
        """Items without an output, with reasons."""
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]

    @property
    def audio_sec(self) -> float:
        """Audio that was made (seconds)."""
        return sum(outcome.audio.seconds for outcome in self.written if outcome.audio is not None)

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio made in a second; 0 without audio."""
        return self.audio_sec / self.wall_sec if self.wall_sec > 0 else 0.0

    def text(self) -> str:
        """The report for a person: what was written, warnings, failures, and a summary in the last line."""
        lines = [f"{self.written[0].output}"] if len(self.written) == 1 else []
        warnings = [f"{outcome.output}: warning: {text}" for outcome in self.written for text in outcome.warnings]
        failures = [f"{outcome.name}: failed: {outcome.reason}" for outcome in self.failed]
        for listed in (warnings, failures):
            lines += listed[:LISTED]
            lines += [f"... and {len(listed) - LISTED} more"] if len(listed) > LISTED else []
        summary = f"{len(self.written)} written, {len(self.skipped)} skipped, {len(self.failed)} failed"
        if self.audio_sec:
            summary += (
                f"; {self.audio_sec:.1f} s of audio in {self.wall_sec:.1f} s ({self.real_time_factor:.1f} x real time)"
            )
        if self.stopped:
            summary += "; stopped after the first failure"
        # File names that are not valid text in this locale must not keep the report from being printed.
        return "\n".join([*lines, summary]).encode("utf-8", "backslashreplace").decode()

    __str__ = text
