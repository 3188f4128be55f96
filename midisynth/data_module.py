"""`MidiDataModule`, the half of the plugin contract that feeds a model; import it from `midisynth.module`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from midisynth import errors
from midisynth.datasets.audio_pairs import Part
from midisynth.datasets.cache import Encoder, corpus_folder, prepare, prepared
from midisynth.datasets.corpus import SPLITS, Corpus, Record, Split
from midisynth.datasets.files import cache_folder
from midisynth.datasets.progress import progress_report
from midisynth.registry import open_corpus
from midisynth.training.sampler import (
    EvaluationSampler,
    ResumableLoader,
    TrainingSampler,
    seed_step,
    trained_position,
)

if TYPE_CHECKING:
    from midisynth.module import MidiModule


class MidiDataModule(LightningDataModule):
    """Base of every data module: corpora in, loaders out. A subclass implements `dataset`, perhaps `encoder`.

    Records are prepared once (`midisynth.datasets.cache`). The order of training examples, the position in it and the
    random numbers of every step survive a resumed run (`midisynth.training.sampler`).

    Args:
        corpora: Name of a corpus to the folder of its files, or to a mapping of its options (`root`, `weight` and its
            own); null leaves the corpus out.
        batch_size: Examples in a batch of one process.
        workers: Processes that load examples; 0 loads them in the training process.
        seed: Of the order, the random choices and the random numbers of training.
        cache_dir: Folder for prepared data; the user's cache folder when null.
        on_broken: Leave out records that cannot be read and say so, or stop at the first.

    Attributes:
        content: What it needs of a record, out of "midi", "audio" and "score".
        codec: Of the model; there after `connect`.
        collate: Joins examples into a batch; the model's after `connect`.
    """

    content: ClassVar[frozenset[str]] = frozenset({"midi", "audio"})
    codec: Any
    collate: Callable[[list[Any]], Any]

    def __init__(
        self,
        corpora: dict[str, Any],
        batch_size: int = 8,
        workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
        on_broken: Literal["skip", "stop"] = "skip",
    ):
        super().__init__()
        # validate and test need nothing but a checkpoint. Logging them beside the model's would fail where both have an
        # option of the same name.
        self.save_hyperparameters(logger=False)
        self.corpora = {
            name: {"root": options} if isinstance(options, str) else dict(options)
            for name, options in corpora.items()
            if options is not None
        }
        if not self.corpora:
            raise errors.UsageError("data.corpora is empty: name a corpus (see `midisynth corpora`) and its folder")
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.cache_dir = cache_folder() if cache_dir is None else Path(cache_dir).expanduser()
        self.on_broken = on_broken
        self._opened: dict[str, tuple[Corpus, list[Record]]] = {}
        self._parts: dict[Split, list[Part]] = {}

    def connect(self, model: MidiModule) -> None:
        """Take from the model what only it knows. The command line calls this before anything else."""
        self.codec = model.codec
        self.collate = model.collate

    def encoder(self) -> Encoder | None:
        """What turns a record into the arrays that are kept of it; None keeps its audio and its notes.

        Called after `connect`.
        """
        return None

    def dataset(self, split: Split) -> Dataset:
        """Examples of a split, for `collate`; usually made of `parts(split)`."""
        raise NotImplementedError(f"{type(self).__name__} does not implement dataset()")

    def prepare(self, workers: int | None = None, progress: bool = True, splits: Sequence[Split] = SPLITS) -> None:
        """Make the prepared data of all corpora.

        Args:
            workers: Processes; None for one per available core.
            progress: Show how far it is, on standard error.
            splits: What is needed.

        Raises:
            midisynth.errors.MidisynthError: A corpus cannot be read.
        """
        for name, (_, records) in self._open().items():
            wanted = [record for record in records if record.split in splits]
            with progress_report(f"preparing {name}", progress) as report:
                prepare(
                    wanted,
                    self._folder(name),
                    self._sample_rate,
                    workers=workers,
                    on_error=self.on_broken,
                    report=report,
                    encode=self.encoder(),
                )

    def parts(self, split: Split) -> list[Part]:
        """Prepared records of a split, by corpus; there after `setup`."""
        return self._parts[split]

    def prepare_data(self) -> None:
        self.prepare(splits=self._needed(self.trainer.state.fn))

    def setup(self, stage: str) -> None:
        for split in self._needed(stage):
            self._parts[split] = [
                Part(name, corpus.weight, prepared([r for r in records if r.split == split], self._folder(name)))
                for name, (corpus, records) in self._open().items()
            ]

    def train_dataloader(self) -> DataLoader:
        dataset = self.dataset("train")
        position = partial(trained_position, self.trainer)
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        sampler = TrainingSampler(dataset, self.batch_size, self.seed, rank, processes, position)
        return ResumableLoader(dataset, sampler, **self._loader_options())

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        dataset = self.dataset("validation")
        # Training without validation is fine; the trainer takes an empty list for that.
        return self._evaluation_loader(dataset) if len(dataset) else []

    def test_dataloader(self) -> DataLoader:
        dataset = self.dataset("test")
        if len(dataset) == 0:
            raise errors.DataError(f"no records for testing in: {', '.join(self.corpora)}")
        return self._evaluation_loader(dataset)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seed the random numbers of a training step."""
        if self.trainer.training:
            step = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
            seed_step(self.seed, step, self.trainer.global_rank)
        return batch

    def _open(self) -> dict[str, tuple[Corpus, list[Record]]]:
        for name, options in self.corpora.items():
            if name not in self._opened:
                corpus = open_corpus(name, options)
                if not self.content <= corpus.content:
                    missing = ", ".join(sorted(self.content - corpus.content))
                    raise errors.DataError(f"corpora.{name}: has no {missing}, which {type(self).__name__} needs")
                self._opened[name] = corpus, corpus.records()
        return self._opened

    def _folder(self, name: str) -> Path:
        corpus, _ = self._opened[name]
        return corpus_folder(self.cache_dir, corpus, name, self.corpora[name], self._sample_rate, self.encoder())

    @property
    def _sample_rate(self) -> int | None:
        return self.codec.sample_rate if "audio" in self.content and self.encoder() is None else None

    def _needed(self, stage: str) -> Sequence[Split]:
        return {"validate": ("validation",), "test": ("test",), "predict": ()}.get(stage, ("train", "validation"))

    def _evaluation_loader(self, dataset: Dataset) -> DataLoader:
        if len(dataset) < self.trainer.world_size:
            # The others would wait forever for the results of a process without examples.
            raise errors.DataError(
                f"{len(dataset)} examples are too few for evaluation on {self.trainer.world_size} processes: use fewer"
            )
        sampler = EvaluationSampler(dataset, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(dataset, sampler=sampler, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "collate_fn": self.collate,
            "pin_memory": torch.cuda.is_available(),
            # Loaders draw a seed for their workers; from the global generator, that would disturb everything else.
            "generator": torch.Generator(),
        }
