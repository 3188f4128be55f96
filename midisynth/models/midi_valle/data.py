"""`MidiValleData`: segments of recordings of any corpora with audio and MIDI, as notes and codes."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

from torch.utils.data import DataLoader, Dataset

from midisynth.datasets.corpus import Split
from midisynth.errors import UsageError
from midisynth.models.midi_valle.examples import Cuts, EverySegment, RandomSegments, Stretches, collate
from midisynth.models.midi_valle.model import MidiValle
from midisynth.models.midi_valle.pieces import PieceTokens
from midisynth.models.midi_valle.prompts import PROMPT_SEC
from midisynth.module import MidiDataModule, MidiModule
from midisynth.stored_parts import store_part
from midisynth.training.batches import DurationSampler, TimedDataset
from midisynth.training.sampler import ResumableLoader, trained_position


class MidiValleData(MidiDataModule):
    """Segments of recordings. Notes and codes are computed once (`midisynth prepare`); cutting is done again and again.

    Training batches hold segments of similar length and are measured in seconds.

    Args:
        corpora: Name of a corpus to the folder of its files, or to a mapping of its options (`root`, `weight` and its
            own); null leaves the corpus out. A corpus of weight 3 comes three times in an epoch.
        batch_size: Segments in a batch of validation, and stretches in one of a test.
        workers: Processes that load examples; 0 loads them in the training process.
        seed: Of the order, the random choices and the random numbers of training.
        cache_dir: Folder for prepared data; the user's cache folder when null.
        on_broken: Leave out records that cannot be read and say so, or stop at the first.
        max_duration: Size of a training batch of one process (seconds): number of segments times the cost of the
            longest, d + d * d / 10 for d seconds.
        buckets: Groups of similar length that batches are drawn from.
        min_sec: Shortest segment but the last of a recording (seconds).
        max_sec: Longest segment (seconds).
        cuts: "random" cuts at other places in every epoch, "published" always where the original cuts.
        test_sec: Length of the stretches that are generated in a test (seconds).

    Raises:
        UsageError: A length is out of its range.
    """

    content: ClassVar[frozenset[str]] = frozenset({"midi", "audio"})

    def __init__(
        self,
        corpora: dict[str, Any],
        batch_size: int = 4,
        workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
        on_broken: Literal["skip", "stop"] = "skip",
        max_duration: float = 200.0,
        buckets: int = 10,
        min_sec: float = 15.0,
        max_sec: float = 20.0,
        cuts: Cuts = "random",
        test_sec: float = 12.0,
    ):
        super().__init__(corpora, batch_size, workers, seed, cache_dir, on_broken)
        if not 0 < min_sec <= max_sec:
            raise UsageError(f"min_sec ({min_sec:g}) and max_sec ({max_sec:g}): expected 0 < min_sec <= max_sec")
        for name, value in (("max_duration", max_duration), ("buckets", buckets), ("test_sec", test_sec)):
            if not value >= 1:
                raise UsageError(f"{name} is {value:g}, expected at least 1")
        self.max_duration = max_duration
        self.buckets = buckets
        self.min_sec, self.max_sec = min_sec, max_sec
        self.cuts: Cuts = cuts
        self.test_sec = test_sec
        self._model: MidiValle | None = None
        self._encoder: PieceTokens | None = None

    def connect(self, model: MidiModule) -> None:
        assert isinstance(model, MidiValle)
        self._model = model
        self.codec = model.codec
        # Training takes segments, rendering whole performances.
        self.collate = collate
        limit = model.codec.note_rows.max_sec
        for name, seconds in (("max_sec", self.max_sec), ("test_sec", self.test_sec + PROMPT_SEC)):
            if seconds > limit:
                raise UsageError(f"{name}: segments of up to {seconds:g} s are too long: rows reach {limit:g} s")

    def encoder(self) -> PieceTokens:
        """See `PieceTokens`."""
        if self._encoder is None:
            # A codec that does not fit is refused before an hour is spent on encoding with it.
            _ = self._model.neural_codec
            self._encoder = PieceTokens(store_part(self._model, "neural_codec", self.cache_dir), self.codec.note_rows)
        return self._encoder

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # Before weight averaging copies the model and before a resumed run loads what it had learned.
        if stage == "fit":
            self._model.initialise()

    def dataset(self, split: Split) -> Dataset:
        """Segments of a split, see `Cutter.example`; for testing, stretches that follow a prompt, see `Stretches`."""
        model = self._model
        cutter = model.cutter()
        if split == "train":
            return RandomSegments(
                self.parts(split), cutter, self.min_sec, self.max_sec, self.cuts, self.seed, model.needs_neighbours
            )
        if split == "test":
            return Stretches(self.parts(split), cutter, self.test_sec, model.neural_codec.sample_rate)
        return EverySegment(self.parts(split), cutter, self.min_sec, self.max_sec, model.needs_neighbours)

    def train_dataloader(self) -> DataLoader:
        dataset = self.dataset("train")
        assert isinstance(dataset, TimedDataset)
        sampler = DurationSampler(
            dataset,
            self.max_duration,
            self.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
            partial(trained_position, self.trainer),
            self.buckets,
        )
        return ResumableLoader(dataset, sampler, **{**self._loader_options(), "batch_size": None})
