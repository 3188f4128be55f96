"""The plugin contract on one page: what a model and its data module supply, and what they get for it.

A model is a `MidiModule` with a codec, a loss and `render`; its data module is a `MidiDataModule` with `dataset`.
Both are registered through entry points (groups `midisynth.models` and `midisynth.data`, the same name in both):

    [project.entry-points."midisynth.models"]
    sixth = "midisynth_sixth:Sixth"
    [project.entry-points."midisynth.data"]
    sixth = "midisynth_sixth:SixthData"

From then on `midisynth fit|validate|test|predict --model sixth` work, on one process or many.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.utils.data import default_collate

import midisynth
from midisynth import errors
from midisynth.data_module import MidiDataModule as MidiDataModule
from midisynth.music.notes import Performance
from midisynth.outputs import Outcome, RenderBatch, render_batch
from midisynth.parts import PartLoader, PartReader, Parts, read_file
from midisynth.tensor_files import load_state
from midisynth.training.schedules import BatchSchedule

if TYPE_CHECKING:
    from midisynth.metrics.embeddings import AudioEmbedding
    from midisynth.summaries import Summary


class Codec(Protocol):
    """Music to tensors. It has no weights, so that data can be prepared before a model is trained.

    Attributes:
        max_duration_sec: Longest input that `encode` accepts (seconds); `predict` sets it before it encodes.
        repair: Read what is left of damaged files instead of refusing them; `predict` sets it, too.
    """

    max_duration_sec: float
    repair: bool

    def encode(self, path: Path) -> Mapping[str, Any]:
        """Read one input file and return what `MidiModule.collate` takes.

        Raises:
            midisynth.errors.MidisynthError: The file cannot be used; the text goes to the user.
        """
        ...


@dataclass
class Rendering:
    """One chunk of the output of one item. Chunks of an item arrive in order and are written as they come.

    Attributes:
        audio: [channels, samples] in [-1, 1], or None.
        sample_rate: Of `audio` (Hz).
        performance: The whole output of a model that writes MIDI, or None.
        figure: A matplotlib figure that is saved beside the output, or None.
        report: Plain values that are shown and saved with the output.
    """

    audio: Tensor | None = None
    sample_rate: int | None = None
    performance: Performance | None = None
    figure: Any = None
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """A model as its authors published it, in our words.

    Attributes:
        options: Of the constructor.
        state: State dict.
    """

    options: dict[str, Any]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Item:
    """One output that `predict` has to make.

    Attributes:
        source: The input file; None for a composer.
        output: Where the result goes.
        key: Identifies the content: hash of the input's bytes and the copy index. Noise is seeded from it.
    """

    source: Path | None
    output: Path
    key: str


class Noise:
    """Random numbers that depend on the item and the segment alone: not on rank, order or batch size.

    Args:
        items: The items of a batch, in the order of the batch.
        seed: The user's seed.
    """

    def __init__(self, items: Sequence[Item], seed: int = 0):
        self._items = list(items)
        self._seed = seed

    def generator(self, position: int, segment: int = 0) -> torch.Generator:
        """A fresh CPU generator for one segment of the item at `position` of the batch."""
        text = f"{self._seed}:{self._items[position].key}:{segment}"
        digest = hashlib.sha256(text.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def normal(self, position: int, segment: int, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers of `shape`, drawn on the CPU so that every device gets the same."""
        return torch.randn(*shape, generator=self.generator(position, segment)).to(device)


class MidiModule(LightningModule):
    """Base of every model.

    A subclass passes `optimizer` and `lr_scheduler` on to `super().__init__`, takes plain values for everything else
    (they become the hyper-parameters of its checkpoints), sets `codec`, and implements `training_step`,
    `validation_step` (logging `train/loss` and `val/loss`) and `render`.

    Args:
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds a learning-rate schedule from the optimizer; it advances once a step.

    Attributes:
        reads: Suffixes of the files that `predict` accepts.
        writes: Suffix of the files that it makes.
        needs_input: False for a composer, which predicts without an input file.
        draws: Whether `render` draws a figure when `plot` is set.
        plot: Draw figures; `predict` sets it.
        items_at_once: Items that `predict` renders together, unless it is told a batch size.
        published_files: Patterns of the files of a Hub repository that `read_published` needs; none where there is no
            such repository.
        codec: Music to tensors; see `Codec`.
    """

    reads: ClassVar[tuple[str, ...]] = (".mid", ".midi")
    writes: ClassVar[str] = ".wav"
    needs_input: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    plot: bool = False
    items_at_once: ClassVar[int] = 1
    published_files: ClassVar[tuple[str, ...]] = ()
    codec: Codec

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__()
        # Lightning walks the frames up to the subclass, so this one call records the subclass's arguments too.
        # Callables are left out: they would be pickled, and checkpoints must load with weights_only=True.
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        # Not a module: what is in it stays out of parameters, state dict, weight averaging and DDP.
        self._parts = Parts(self._part_reference)

    def _part_reference(self, name: str) -> str:
        return self.hparams[name]

    def declare_part(self, name: str, load: PartLoader, read: PartReader = read_file) -> None:
        """Announce a frozen component, such as a vocoder, that the hyper-parameter `name` (a string) chooses.

        Args:
            name: Of the hyper-parameter.
            load: Builds the component on first use from the hyper-parameter and, by keyword, `content`: what a
                checkpoint carried of it, else None.
            read: What a checkpoint has to carry, from the hyper-parameter; the file it names unless told otherwise.
        """
        self._parts.declare(name, load, read)

    def part(self, name: str) -> Any:
        """The component declared as `name`.

        Raises:
            midisynth.errors.CheckpointError: Its hyper-parameter names nothing that can be loaded.
        """
        return self._parts.get(name)

    def part_content(self, name: str) -> bytes | None:
        """The bytes that a checkpoint carries of the component declared as `name`; None for one that ships."""
        return self._parts.stored(name)

    def parts_state(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint stores of the parts."""
        return self._parts.state()

    @classmethod
    def class_path(cls) -> str:
        """The shortest dotted path under which the class can be imported.

        Checkpoints and configurations record it, and a package that re-exports its classes may then move its files.
        """
        parents = cls.__module__.split(".")
        modules = [".".join(parents[: depth + 1]) for depth in range(len(parents))]
        exporting = (name for name in modules if getattr(sys.modules.get(name), cls.__qualname__, None) is cls)
        return f"{next(exporting, cls.__module__)}.{cls.__qualname__}"

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Any:
        """Join what `codec.encode` returned for several inputs into one batch."""
        return default_collate(list(examples))

    def render(self, batch: Any, noise: Noise) -> Iterator[tuple[int, Rendering]]:
        """Make the outputs of a batch, chunk by chunk.

        Args:
            batch: What `collate` returned, on this module's device.
            noise: The only source of randomness that may be used here.

        Yields:
            The position of an item in the batch, and the next chunk of its output.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement render()")

    def duration_sec(self, example: Mapping[str, Any]) -> float | None:
        """Length of the output of one example (seconds) for the time left; None where nobody knows before the end."""
        return None

    def predict_step(self, batch: RenderBatch, batch_idx: int = 0) -> list[Outcome]:
        """Render the items of a batch and write them as they come, see `midisynth.outputs`."""
        return render_batch(self, batch)

    def test_summary(self, items: Sequence[Any], pictures: int) -> Summary:
        """Make scores of a whole test, if `test_step` returns `midisynth.summaries.Measurements`.

        Args:
            items: Of all batches and processes, in the order of the data set.
            pictures: Draw at most so many.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement test_summary()")

    def test_embeddings(self) -> list[AudioEmbedding]:
        """Networks of its own that a test compares with, besides those that the user names."""
        return []

    @classmethod
    def is_published(cls, path: Path) -> bool:
        """Whether a folder looks as the authors of this model published it, so that `predict` takes it as it is."""
        return False

    @classmethod
    def read_published(cls, path: Path) -> Published:
        """Read weights as their authors published them (`midisynth import`).

        Raises:
            midisynth.errors.CheckpointError: They are not in one of the published layouts.
        """
        raise errors.UsageError(f"{cls.__name__} has no importer for published weights")

    @classmethod
    def load_published(cls, path: Path) -> MidiModule:
        """Build the model from weights as their authors published them; errors as in `read_published`."""
        published = cls.read_published(path)
        model = cls(**published.options)
        load_state(model, published.state, str(path))
        return model

    def log(self, name: str, value: Any, *args: Any, batch_size: int | None = None, **options: Any) -> None:
        # Lightning averages the number of examples over processes, in the type that it is given: integers would be
        # cut off, and a mean over uneven shares would be wrong.
        weight: Any = None if batch_size is None else float(batch_size)
        super().log(name, value, *args, batch_size=weight, **options)

    def build_optimizer(self, build: OptimizerCallable) -> torch.optim.Optimizer:
        """Hand the parameters to the optimizer; a model with groups of its own overrides this."""
        return build(self.parameters())

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer(self._optimizer)
        if self._lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._lr_scheduler(optimizer), "interval": "step"},
        }

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        if isinstance(scheduler, BatchSchedule):
            batches = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1
            scheduler.step_to(batches, self.current_epoch + self.trainer.is_last_batch)
        else:
            super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # LightningCLI records the class for runs from the command line alone; a checkpoint that was written from
        # Python must be enough for `predict` as well.
        hparams = checkpoint.setdefault("hyper_parameters", {})
        hparams["_class_path"] = self.class_path()
        checkpoint["midisynth_version"] = midisynth.__version__
        checkpoint["parts"] = self.parts_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._parts.restore(checkpoint.get("parts", {}), "the checkpoint")
