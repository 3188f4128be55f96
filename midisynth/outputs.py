"""Renderings to files: every output appears under its name when it is complete, or not at all."""

from __future__ import annotations

import json
import os
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import soundfile

from midisynth.audio.io import FORMATS, AudioReport, AudioWriter
from midisynth.datasets.files import replacing
from midisynth.errors import FileError, MidisynthError, RenderError
from midisynth.music.midi import write_midi
from midisynth.music.notes import Performance

if TYPE_CHECKING:
    from midisynth.module import Item, MidiModule, Rendering

#: Names under which outputs are written before they get theirs.
UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.part")

# A file that was touched this recently may belong to a run that is just about to lock it (seconds).
_UNFINISHED_AGE_SEC = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of one output.

    Attributes:
        source: The input file; None for a composer.
        output: The output file; None where it was not decided, because there is no input.
        status: What happened.
        reason: Why it failed, in one line.
        trace: Traceback of an error that is not the user's.
        audio: Length and level, for audio.
        warnings: What deserves a look, one sentence each.
        report: Plain values from the model.
    """

    source: Path | None
    output: Path | None
    status: Literal["written", "skipped", "failed"]
    reason: str = ""
    trace: str = ""
    audio: AudioReport | None = None
    warnings: tuple[str, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the item is called in messages."""
        return str(self.source or self.output)


def failure(source: Path | None, output: Path | None, error: Exception) -> Outcome:
    """The outcome of an item that raised `error`."""
    if isinstance(error, FileError) and error.path in (str(source), str(output)):
        reason = error.reason if error.path == str(source) else str(error)
    elif isinstance(error, MidisynthError):
        reason = str(error)
    elif isinstance(error, OSError) and error.strerror:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        reason = f"{type(error).__name__}: {error}"
    trace = "" if isinstance(error, MidisynthError) else "".join(traceback.format_exception(error))
    return Outcome(source, output, "failed", " ".join(reason.split()), trace)


class RenderBatch:
    """What `predict` hands to a model: inputs that were encoded, and the outcomes of those that could not be.

    Args:
        items: What is to be made.
        examples: What the codec returned, for each item.
        failures: Outcomes of the items that could not be encoded.
        seed: The user's seed.

    Attributes:
        on_chunk: Called with the seconds of audio of each chunk as it is written.
    """

    def __init__(
        self, items: Sequence[Item], examples: Sequence[Mapping[str, Any]], failures: Sequence[Outcome], seed: int
    ):
        self.items = list(items)
        self.examples = list(examples)
        self.failures = list(failures)
        self.seed = seed
        self.on_chunk: Callable[[float], None] = lambda seconds: None


def render_batch(model: MidiModule, batch: RenderBatch) -> list[Outcome]:
    """Render and write a batch; when it fails as a whole, each item by itself, so that one fails alone.

    Args:
        model: On its device, in evaluation mode, attached to a trainer.
        batch: What to render.

    Returns:
        One outcome for each item, failures included.
    """
    outcomes = list(batch.failures)
    pairs = list(zip(batch.items, batch.examples, strict=True))
    if len(pairs) > 1:
        try:
            return outcomes + _render(model, pairs, batch)
        except Exception:
            # Whose fault it was shows when the items are alone.
            pass
    for item, example in pairs:
        try:
            outcomes += _render(model, [(item, example)], batch)
        # A model is somebody else's code: whatever it raises, the other items go on.
        except Exception as error:
            outcomes.append(failure(item.source, item.output, error))
    return outcomes


def _render(model: MidiModule, pairs: Sequence[tuple[Item, Mapping[str, Any]]], batch: RenderBatch) -> list[Outcome]:
    from midisynth.module import Noise

    items = [item for item, _ in pairs]
    data = model.collate([example for _, example in pairs])
    data = model.transfer_batch_to_device(model.trainer.precision_plugin.convert_input(data), model.device, 0)
    failed: dict[int, Outcome] = {}
    with ExitStack() as stack:
        writers = [stack.enter_context(OutputWriter(item)) for item in items]
        for position, chunk in model.render(data, Noise(items, batch.seed)):
            if position in failed:
                continue
            try:
                writers[position].write(chunk)
            except (MidisynthError, OSError) as error:
                writers[position].discard()
                failed[position] = failure(items[position].source, items[position].output, error)
            else:
                if chunk.audio is not None and chunk.sample_rate:
                    batch.on_chunk(chunk.audio.shape[-1] / chunk.sample_rate)
            if len(failed) == len(items):
                break
        outcomes = []
        for position, writer in enumerate(writers):
            try:
                outcomes.append(failed.get(position) or writer.finish())
            except (MidisynthError, OSError) as error:
                outcomes.append(failure(items[position].source, items[position].output, error))
    return outcomes


class OutputWriter:
    """Takes the chunks of one item. As a context it discards what is not finished.

    Args:
        item: What is made.
    """

    def __init__(self, item: Item):
        self._item = item
        self._path = item.output
        self._stack = ExitStack()
        self._audio: AudioWriter | None = None
        self._performance: Performance | None = None
        self._figure: Any = None
        self._report: dict[str, Any] = {}

    def __enter__(self) -> OutputWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def write(self, chunk: Rendering) -> None:
        """Take the next chunk.

        Raises:
            MidisynthError: It cannot or must not be written.
        """
        if chunk.audio is not None:
            if chunk.sample_rate is None:
                raise RenderError(f"{self._path}: the model gave audio without a sample rate")
            if self._audio is None:
                self._make_folder()
                writer = AudioWriter(self._path, chunk.sample_rate, chunk.audio.shape[0])
                self._audio = self._stack.enter_context(writer)
            self._audio.write(chunk.audio)
        if chunk.performance is not None:
            self._performance = chunk.performance
        if chunk.figure is not None:
            self._figure = chunk.figure
        self._report.update(chunk.report)

    def finish(self) -> Outcome:
        """Give the output its name, after the figure and the report that belong to it.

        Raises:
            MidisynthError: There is nothing to write, or it cannot be written.
            OSError: The system refuses.
        """
        is_audio = self._path.suffix.lower() in FORMATS
        if (self._audio is None) if is_audio else (self._performance is None):
            raise RenderError(f"{self._path}: the model made nothing to write")
        self._make_folder()
        if self._figure is not None:
            with replacing(self._companion(".png")) as file:
                self._figure.savefig(file, format="png")
        if self._report:
            text = json.dumps(self._report, indent=2, ensure_ascii=False) + "\n"
            with replacing(self._companion(".json")) as file:
                file.write(text.encode())
        if self._audio is None:
            assert self._performance is not None
            write_midi(self._performance, self._path)
            return Outcome(self._item.source, self._path, "written", report=self._report)
        # On leaving it without an error the audio writer renames its file.
        self._stack.close()
        audio = self._audio.report
        return Outcome(self._item.source, self._path, "written", "", "", audio, _warnings(audio), self._report)

    def discard(self) -> None:
        """Delete what was written and not finished; does nothing after `finish`."""
        error = RenderError("unfinished")
        self._stack.__exit__(RenderError, error, None)

    def _make_folder(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(self._path, f"its folder cannot be made ({error.strerror})") from error

    def _companion(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)


def _warnings(audio: AudioReport) -> tuple[str, ...]:
    warnings = []
    if audio.clipped_samples:
        warnings.append(f"{audio.clipped_samples} samples were clipped; the peak was {audio.peak:.2f} of full scale")
    if audio.peak == 0:
        warnings.append("the output is silent")
    return tuple(warnings)


def made_here(path: Path) -> bool:
    """Whether an audio file was written by midisynth, which marks what it writes."""
    try:
        with soundfile.SoundFile(path) as file:
            return file.software.startswith("midisynth")
    except (soundfile.LibsndfileError, OSError):
        return False


def remove_leftovers(folder: Path) -> None:
    """Delete what runs that were killed have left in a folder; files of runs that are alive are locked."""
    try:
        names = [entry.name for entry in os.scandir(folder) if UNFINISHED.fullmatch(entry.name)]
    except OSError:
        return  # nothing there yet, or not for us to tidy
    for name in names:
        path = folder / name
        try:
            if time.time() - path.stat().st_mtime > _UNFINISHED_AGE_SEC and not _is_locked(path):
                path.unlink()
        except OSError:
            continue  # another run was faster


def _is_locked(path: Path) -> bool:
    try:
        import fcntl
    except ImportError:
        return False  # Windows refuses to delete open files
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
