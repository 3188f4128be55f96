"""`predict`: files to items, items to batches, batches to files, and a report of what became of each.

Encoding happens in the loader, rendering and writing inside the model's `predict_step`. Whatever goes wrong with one
item is an outcome of that item, never an exception of the run. Under several processes each takes every n-th item;
nothing is exchanged before the end, when the first process collects the outcomes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from torch.utils.data import DataLoader, Dataset, Subset

from midisynth import checkpoints, pictures, weights
from midisynth.audio.io import FORMATS
from midisynth.errors import FileError, UsageError
from midisynth.inputs import Task, expand_inputs, is_below, plan, plan_pieces
from midisynth.module import Item, MidiModule
from midisynth.outputs import Outcome, RenderBatch, failure, made_here, remove_leftovers
from midisynth.render_progress import RenderProgress
from midisynth.render_report import Report

logger = logging.getLogger("midisynth.render")

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

#: Longest input that is accepted unless the user says otherwise (seconds).
MAX_DURATION_SEC = 7200.0


def predict(
    model: MidiModule,
    inputs: Paths = (),
    output: str | os.PathLike[str] | None = None,
    *,
    count: int = 1,
    plot: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    skip_existing: bool = False,
    on_error: Literal["continue", "stop"] = "continue",
    max_duration_sec: float = MAX_DURATION_SEC,
    repair: bool = False,
    workers: int = 0,
    trainer: Trainer | None = None,
) -> Report:
    """Render files with a model.

    Args:
        model: With its weights.
        inputs: Input files, folders and patterns; none for a composer.
        output: A file, if there is one output, or a folder; None puts each output beside its input.
        count: Outputs for each input, or pieces to compose.
        plot: Draw a picture beside each output.
        seed: The same seed gives the same output, whatever else is rendered in the same run.
        batch_size: Inputs that are rendered together; None leaves it to the model, see `MidiModule.items_at_once`.
        skip_existing: Leave out outputs that exist; they are complete, because unfinished ones have other names.
        on_error: "stop" starts no further batch after an item has failed (in the process that it failed in).
        max_duration_sec: Longest input that is accepted (seconds).
        repair: Read what is left of damaged inputs instead of refusing them.
        workers: Processes that read and encode inputs; 0 does it between batches.
        trainer: Decides on device, precision and processes. By default one device, the best there is.

    Returns:
        The outcome of each item; under several processes those of all in the first, and its own in each other.

    Raises:
        UsageError: The inputs or the output do not fit the model.
    """
    batch_size = model.items_at_once if batch_size is None else batch_size
    if batch_size < 1 or count < 1:
        raise UsageError(f"{'batch_size' if batch_size < 1 else 'count'} must be at least 1")
    if not max_duration_sec > 0:
        raise UsageError("max_duration must be more than 0 seconds")
    if plot:
        _check_plot(model)
    started = time.monotonic()
    tasks, outcomes = _plan(model, _as_list(inputs), output, count, skip_existing)
    model.codec.max_duration_sec = max_duration_sec
    model.codec.repair = repair
    model.plot = plot
    trainer = trainer or _quiet_trainer()
    run = _Run(tasks, outcomes, model.codec, seed, batch_size, workers, stop_on_error=on_error == "stop")
    if trainer.world_size > 1 or (tasks and not run.stopped):
        _predict(trainer, model, run)
    return Report(tuple(run.outcomes), time.monotonic() - started, stopped=run.stopped)


def synthesize(
    inputs: Paths,
    output: str | os.PathLike[str] | None = None,
    model: MidiModule | str | None = None,
    **options: Any,
) -> Report:
    """Render files in one line: `midisynth.synthesize("song.mid")`.

    Args:
        inputs: Input files, folders and patterns.
        output: As in `predict`.
        model: A model, or what `midisynth.load_model` takes; None is the checkpoint that ships for such files.
        options: Further options of `predict`.
    """
    if model is None:
        model = default_checkpoint(_as_list(inputs))
    if not isinstance(model, MidiModule):
        model = checkpoints.load_model(model)
    return predict(model, inputs, output, **options)


def default_checkpoint(files: Sequence[str]) -> str:
    """Name of the checkpoint that ships for some inputs: the preferred one that reads the first of them.

    Args:
        files: Files, folders and patterns. For a folder all kinds of files are tried in the order of preference.

    Raises:
        UsageError: None ships for such files.
    """
    if not files:
        raise UsageError("name input files, or a model that composes: --model NAME or --ckpt_path FILE")
    first = Path(files[0]).expanduser()
    for shipped in weights.shipped():
        is_default = first.suffix.lower() in shipped.reads
        if is_default or (first.is_dir() and expand_inputs([str(first)], shipped.reads)[0]):
            return shipped.name
    raise UsageError(f"{first}: no checkpoint ships that reads it; name one: --ckpt_path FILE")


def _check_plot(model: MidiModule) -> None:
    """Raise for a model that draws nothing, or without the library that would."""
    if not model.draws:
        raise UsageError(f"plot: {type(model).__name__} draws nothing; leave the option out")
    pictures.check_available()


def _quiet_trainer() -> Trainer:
    """One device, and nothing on the screen but our progress."""
    chatter = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = chatter.level
    chatter.setLevel(logging.WARNING)
    try:
        return Trainer(devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False)
    finally:
        chatter.setLevel(level)


def _as_list(paths: Paths) -> list[str]:
    return [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]


def _plan(
    model: MidiModule, paths: Sequence[str], output: str | os.PathLike[str] | None, count: int, skip_existing: bool
) -> tuple[list[Task], list[Outcome]]:
    """Decide what is to be rendered; the outcomes are those of inputs and outputs of which nothing will come."""
    suffixes = tuple(FORMATS) if model.writes in FORMATS else (model.writes,)
    outcomes: list[Outcome] = []
    if paths:
        if not model.reads:
            raise UsageError(f"{type(model).__name__} takes no input files, but {paths[0]} was given")
        sources, errors = expand_inputs(paths, model.reads)
        outcomes += [failure(Path(error.path or ""), None, error) for error in errors]
        tasks = plan(sources, output, model.writes, suffixes, count)
    elif model.needs_input:
        raise UsageError(f"name input files: {type(model).__name__} reads {', '.join(model.reads)}")
    else:
        tasks = plan_pieces(output, type(model).__name__.lower(), model.writes, suffixes, count)
    todo = []
    for task in tasks:
        outcome = _settled(task, output, skip_existing)
        if outcome is None:
            todo.append(task)
        else:
            outcomes.append(outcome)
    return todo, outcomes


def _settled(task: Task, output: str | os.PathLike[str] | None, skip_existing: bool) -> Outcome | None:
    """The outcome of a task that needs no rendering; None for the others."""
    path = task.output
    if skip_existing and path.is_file():
        return Outcome(task.source, path, "skipped")
    if output is not None and path != Path(output).expanduser() and not is_below(path, Path(output).expanduser()):
        return failure(task.source, path, FileError(path, "lies outside the output folder, through a link"))
    # Recordings lie beside the MIDI files of many data sets, under the very names that outputs would get.
    if output is None and os.path.lexists(path) and not made_here(path):
        reason = "exists and was not made by midisynth; name the output: --output FILE or FOLDER"
        return failure(task.source, path, FileError(path, reason))
    return None


@dataclass(frozen=True)
class _Loaded:
    """What the loader makes of one task: an example, or the outcome that there is none."""

    item: Item | None
    example: Mapping[str, Any] | None
    failed: Outcome | None


class PredictionDataset(Dataset):
    """Reads and encodes the inputs of tasks; what goes wrong is data as well.

    Args:
        tasks: What to make.
        codec: Of the model; only this goes to the processes that load.
    """

    def __init__(self, tasks: Sequence[Task], codec: Any):
        self._tasks = list(tasks)
        self._codec = codec

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> _Loaded:
        task = self._tasks[index]
        if task.source is None:
            item = Item(None, task.output, f"piece:{task.copy}")
            return _Loaded(item, {"index": task.copy}, None)
        try:
            item = Item(task.source, task.output, f"{_content_hash(task.source)}:{task.copy}")
            return _Loaded(item, self._codec.encode(task.source), None)
        # A codec is somebody else's code: whatever it raises, the other items go on.
        except Exception as error:
            return _Loaded(None, None, failure(task.source, task.output, error))


def _content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class _Run(LightningDataModule):
    """One run in one process: hands out batches and keeps the outcomes.

    Args:
        tasks: What to make.
        outcomes: Of what was settled before.
        codec: Of the model.
        seed: The user's seed.
        batch_size: Items in a batch.
        workers: Processes that load; 0 for none.
        stop_on_error: Start no batch after a failure.

    Attributes:
        outcomes: So far; after the run those of all processes in the first, and none in the others.
        gathered: The run has ended and the outcomes were collected.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        outcomes: Sequence[Outcome],
        codec: Any,
        seed: int,
        batch_size: int,
        workers: int,
        stop_on_error: bool,
    ):
        super().__init__()
        # A process may get nothing, when there are fewer items than processes.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.tasks = list(tasks)
        self.outcomes = list(outcomes)
        self.gathered = False
        self._codec = codec
        self._seed = seed
        self._batch_size = batch_size
        self._workers = workers
        self._stop_on_error = stop_on_error

    @property
    def stopped(self) -> bool:
        """No further batch is started."""
        return self._stop_on_error and any(outcome.status == "failed" for outcome in self.outcomes)

    def setup(self, stage: str) -> None:
        """Agree on the tasks: outputs may have appeared since another process looked what exists."""
        strategy = self.trainer.strategy
        self.tasks, outcomes = strategy.broadcast((self.tasks, self.outcomes))
        self.outcomes = outcomes if self.trainer.is_global_zero else []
        for folder in {task.output.parent for task in self.tasks}:
            remove_leftovers(folder)

    def predict_dataloader(self) -> _Batches:
        share = range(self.trainer.global_rank, len(self.tasks), self.trainer.world_size)
        loader = DataLoader(
            Subset(PredictionDataset(self.tasks, self._codec), share),
            batch_size=self._batch_size,
            num_workers=self._workers,
            collate_fn=list,
            # Its own, or the loader would draw a seed for its processes from the random numbers of the caller.
            generator=torch.Generator(),
        )
        return _Batches(loader, self._seed, lambda: self.stopped)

    def transfer_batch_to_device(self, batch: RenderBatch, device: torch.device, dataloader_idx: int) -> RenderBatch:
        """Leave the batch where it is: `render_batch` moves what it hands to the model."""
        return batch

    def teardown(self, stage: str) -> None:
        """Collect the outcomes of all processes in the first."""
        if self.trainer.world_size > 1:
            every: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(every, self.outcomes)
            self.outcomes = [o for share in every for o in share] if self.trainer.is_global_zero else []
        self.gathered = True


class _Batches:
    """Batches of a loader as the model takes them; ends early when the run stops."""

    def __init__(self, loader: DataLoader, seed: int, stopped: Callable[[], bool]):
        self._loader = loader
        self._seed = seed
        self._stopped = stopped

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[RenderBatch]:
        for loaded in self._loader:
            if self._stopped():
                return
            failures = [entry.failed for entry in loaded if entry.failed is not None]
            fine = [entry for entry in loaded if entry.failed is None]
            yield RenderBatch([e.item for e in fine], [e.example for e in fine], failures, self._seed)


class _Collector(Callback):
    """Takes the outcomes of each batch."""

    def __init__(self, run: _Run):
        self._run = run

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._run.outcomes += outputs
        for outcome in outputs:
            if outcome.trace:
                logger.debug("%s failed:\n%s", outcome.name, outcome.trace)


def _predict(trainer: Trainer, model: MidiModule, run: _Run) -> None:
    """Let the trainer run, with our progress in place of its own."""
    usual = trainer.callbacks
    ours: list[Callback] = [_Collector(run)]
    if any(isinstance(callback, ProgressBar) for callback in usual):
        ours.append(RenderProgress())
    trainer.callbacks = [callback for callback in usual if not isinstance(callback, ProgressBar)] + ours
    try:
        trainer.predict(model, datamodule=run, return_predictions=False)
    finally:
        trainer.callbacks = usual
    if not run.gathered:
        raise UsageError("predict cannot report on processes that are forked or spawned: use --trainer.strategy ddp")
