"""Windows of notes with their performances, for training and evaluating `DExter`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from midisynth.datasets.aligned import AlignedRecord
from midisynth.datasets.audio_pairs import Part, corpus_shares
from midisynth.datasets.cache import Prepared
from midisynth.datasets.corpus import Split
from midisynth.errors import DataError, UsageError
from midisynth.models.dexter.archives import ArchivedRecord
from midisynth.models.dexter.codec import DExterCodec
from midisynth.models.dexter.evaluation import WholePieces
from midisynth.models.dexter.features import RICH
from midisynth.models.dexter.levels import as_channels, level_of
from midisynth.models.dexter.midlevel import find_heard_features
from midisynth.models.dexter.model import DExter
from midisynth.module import MidiDataModule, MidiModule
from midisynth.training.sampler import EndlessDataset

Example = dict[str, Any]

#: Raised when what is kept of a record changes.
VERSION = 2

#: Performances that a process keeps in memory.
_IN_MEMORY = 512


@dataclass(frozen=True)
class Expressions:
    """What is kept of a performance: its parameters, the features of its score, and mid-level features of both.

    Attributes:
        codec: Of the model.
        heard: Take mid-level features from tables of what a network heard, where there are some.
    """

    codec: DExterCodec
    heard: bool

    @property
    def key(self) -> Mapping[str, Any]:
        """Options that shape the arrays."""
        return {"version": VERSION, "heard": self.heard, **self.codec.key}

    def __call__(self, record: AlignedRecord | ArchivedRecord) -> Mapping[str, np.ndarray]:
        """Arrays of one record, see `DExterCodec.encode_performance`."""
        if isinstance(record, ArchivedRecord):
            if self.codec.expression.compat is None or self.codec.features != "published":
                raise UsageError("archives have what compat 2024 and features published are trained on: set these")
            return record.arrays()
        performance = record.midi or record.alignment
        heard = find_heard_features(performance) if self.heard and performance is not None else None
        return self.codec.encode_performance(record.aligned(), heard)


class DExterData(MidiDataModule):
    """Random windows of performances with their scores for training, consecutive ones for evaluation.

    Args:
        corpora: Name of a corpus to the folder of its files, or to a mapping of its options (`root`, `weight` and its
            own); null leaves the corpus out.
        batch_size: Examples in a batch of one process.
        workers: Processes that load examples; 0 loads them in the training process.
        seed: Of the order, the random choices and the random numbers of training.
        cache_dir: Folder for prepared data; the user's cache folder when null.
        on_broken: Leave out records that cannot be read and say so, or stop at the first.
        mixup: Probability that a training window is the mean of two performances of it, in random shares.
        heard: Learn mid-level features from tables of what a network heard in the recordings, as the published ones,
            where they lie beside the performances (`NAME_cep_features.csv`, or `cep_features/NAME.csv`); elsewhere, and
            otherwise, from the notes.
        transpose: Most semitones that training windows are moved by, up or down; needs the features "rich".
        sampling_temperature: An example comes from a corpus with a probability in proportion to its weight times its
            size to this power: 0 heeds weights alone, 1 mixes corpora as large as they are.
    """

    content: ClassVar[frozenset[str]] = frozenset({"score", "alignment"})
    codec: DExterCodec

    def __init__(
        self,
        corpora: dict[str, Any],
        batch_size: int = 16,
        workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
        on_broken: Literal["skip", "stop"] = "skip",
        mixup: float = 0.0,
        heard: bool = False,
        transpose: int = 0,
        sampling_temperature: float = 1.0,
    ):
        super().__init__(corpora, batch_size, workers, seed, cache_dir, on_broken)
        self.mixup = mixup
        self.heard = heard
        self.transpose = transpose
        self.sampling_temperature = sampling_temperature
        self._model: DExter | None = None

    def connect(self, model: MidiModule) -> None:
        super().connect(model)
        assert isinstance(model, DExter)
        self._model = model
        # Windows of one size are joined, where the model's own takes whole scores, as tests do.
        self.collate = collate

    def encoder(self) -> Expressions:
        """See `Expressions`."""
        return Expressions(self.codec, self.heard)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # Before weight averaging copies the model and before a resumed run loads what it had measured.
        if stage == "fit" and not self._model.measured:
            records = [prepared for part in self.parts("train") for prepared in part.prepared]
            self._model.set_statistics(*_pooled(records))

    def dataset(self, split: Split) -> Dataset[Example]:
        """Windows, see `Performances.example`; for tests whole pieces, see `WholePieces`."""
        options = self._model.hparams
        if split == "test":
            return WholePieces(self.parts(split), self.codec)
        paired = options.target == "transfer"
        if split == "train":
            changes = Changes(self.mixup, self.transpose, pitch_columns(options.features))
            if self.transpose and not changes.pitch_columns:
                raise UsageError("transpose changes features of pitch that are relative: set features to rich")
            return RandomWindows(
                self.parts(split), options.window, paired, self.seed, self.sampling_temperature, changes
            )
        return ConsecutiveWindows(self.parts(split), options.window, paired)


def collate(examples: list[Example]) -> Any:
    """Windows as one batch; whole pieces, which differ in size, as they are."""
    return examples if "humans" in examples[0] else torch.utils.data.default_collate(examples)


def _pooled(records: Sequence[Prepared]) -> tuple[torch.Tensor, ...]:
    """What `DExter.set_statistics` takes, of all records."""
    if not records:
        raise DataError("no records for training")
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in ("values", "midlevel", "written")}
    levels, summaries = [], []
    for record in records:
        arrays = {name: torch.from_numpy(array) for name, array in record.arrays().items()}
        matched = arrays["matched"]
        for name, rows in columns.items():
            rows.append(arrays[name][matched].float())
        levels.append(level_of(columns["values"][-1], matched[matched]))
        columns["values"][-1] = columns["values"][-1] - as_channels(levels[-1])
        summaries.append(arrays["score"].float().mean(dim=0))
    return (*(torch.cat(rows) for rows in columns.values()), torch.stack(levels), torch.stack(summaries))


@dataclass(frozen=True)
class Changes:
    """Random changes of training windows.

    Attributes:
        mixup: Probability of mixing two performances.
        heard: Learn mid-level features from tables of what a network heard in the recordings, as the published ones,
            where they lie beside the performances (`NAME_cep_features.csv`, or `cep_features/NAME.csv`); elsewhere, and
            otherwise, from the notes.
        transpose: Most semitones up or down.
        pitch_columns: Features of the score that count octaves from a fixed pitch.
    """

    mixup: float
    transpose: int
    pitch_columns: list[int]


def pitch_columns(features: str) -> list[int]:
    """Columns of the score features that a transposition by an octave raises by 1; none where it does more."""
    return [list(RICH).index(name) for name in ("pitch", "piece_pitch")] if features == "rich" else []


class Performances:
    """Prepared performances, and which of them are of one score.

    Args:
        parts: Prepared corpora.
        window: Notes in an example.
        paired: Examples have another performance of the same score.
    """

    def __init__(self, parts: Sequence[Part], window: int, paired: bool):
        self.window = window
        self.paired = paired
        self.records = [prepared for part in parts for prepared in part.prepared]
        # One score may be in several files, and one piece in several editions.
        scores: dict[tuple[str, bytes], list[int]] = {}
        self.notes = np.zeros(len(self.records), np.int64)
        for index, prepared in enumerate(self.records):
            score = prepared.arrays()["score_hash"]
            self.notes[index] = len(prepared.arrays()["matched"])
            scores.setdefault((prepared.record.piece, score.tobytes()), []).append(index)
        self.siblings = {index: group for group in scores.values() for index in group}
        self._arrays = lru_cache(_IN_MEMORY)(self._load)

    def _load(self, index: int) -> dict[str, np.ndarray]:
        arrays = self.records[index].arrays()
        level = level_of(torch.from_numpy(arrays["values"]), torch.from_numpy(arrays["matched"]))
        return arrays | {"level": level.numpy()}

    def others(self, index: int) -> list[int]:
        """Other performances of the same score."""
        return [other for other in self.siblings[index] if other != index]

    def example(self, index: int, start: int, partner: int | None = None, share: float = 0.0) -> Example:
        """One window, padded at its end where the score is shorter.

        Args:
            index: Of the performance.
            start: First note.
            partner: Another performance of the same score.
            share: Of the partner in the parameters; 0: none.

        Returns:
            "values" [window, 5], "score" [window, features], "midlevel" and "written" [window, 7] float32: of the
            performance and of the score; "mask", False for padding, and "matched", True where the parameters are those
            of a played note, [window] bool; "onset" [window] float64 (beats); "level" [2], of the whole performance,
            see `levels.py`. If examples are paired also "source" [window, 5], "source_midlevel" [window, 7] and
            "source_level" [2].
        """
        own, level = self._arrays(index), self._arrays(index)["level"]
        rows = slice(start, start + self.window)
        arrays = {name: own[name][rows] for name in ("values", "score", "midlevel", "written", "matched", "onset")}
        arrays["mask"] = np.ones(len(arrays["matched"]), bool)
        whole = {}
        if partner is not None:
            other = {name: self._arrays(partner)[name][rows] for name in ("values", "midlevel", "matched")}
            if self.paired:
                arrays |= {"source": other["values"], "source_midlevel": other["midlevel"]}
                whole["source_level"] = torch.from_numpy(self._arrays(partner)["level"])
            level = (1 - share) * level + share * self._arrays(partner)["level"]
            arrays["matched"] = arrays["matched"] & other["matched"]
            for name in ("values", "midlevel"):
                arrays[name] = (1 - share) * arrays[name] + share * other[name]
        whole["level"] = torch.from_numpy(level)
        return whole | {name: self._padded(array) for name, array in arrays.items()}

    def _padded(self, array: np.ndarray) -> torch.Tensor:
        missing = self.window - len(array)
        padded = np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        return torch.from_numpy(padded if array.dtype in (bool, np.float64) else padded.astype(np.float32))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._arrays = lru_cache(_IN_MEMORY)(self._load)


class RandomWindows(Performances, EndlessDataset[Example]):
    """Windows at random places: a corpus by its weight and size, then all places in it alike.

    Example number i is always the same; an epoch has as many notes as the corpora.

    Args:
        parts: Prepared corpora.
        window: Notes in an example.
        paired: See `Performances`; what has no other performance is left out.
        seed: Of all random choices.
        temperature: How much the size of a corpus counts, see `corpus_shares`.
        changes: Random changes.

    Raises:
        DataError: A corpus has nothing to train on.
    """

    def __init__(
        self, parts: Sequence[Part], window: int, paired: bool, seed: int, temperature: float, changes: Changes
    ):
        super().__init__(parts, window, paired)
        self._seed = seed
        self._changes = changes
        places = np.maximum(self.notes - window, 0) + 1
        if paired:
            places[[not self.others(index) for index in range(len(self.records))]] = 0
        borders = np.cumsum([0, *(len(part.prepared) for part in parts)])
        self._spans = list(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True))
        self._places = [places[first:last].cumsum() for first, last in self._spans]
        for part, within in zip(parts, self._places, strict=True):
            if len(within) == 0 or within[-1] == 0:
                what = "two performances of one score" if paired else "records"
                raise DataError(f"{part.name}: has no {what} for training")
        sizes = [int(self.notes[first:last].sum()) for first, last in self._spans]
        self._shares = corpus_shares([part.weight for part in parts], sizes, temperature)

    def __len__(self) -> int:
        return max(int(self.notes.sum()) // self.window, 1)

    def __getitem__(self, number: int) -> Example:
        generator = np.random.default_rng([self._seed, number])
        part = int(generator.choice(len(self._shares), p=self._shares))
        places = self._places[part]
        place = int(generator.integers(places[-1]))
        within = int(np.searchsorted(places, place, side="right"))
        start = place - (int(places[within - 1]) if within else 0)
        index = self._spans[part][0] + within
        others = self.others(index)
        mixed = bool(generator.random() < self._changes.mixup) and not self.paired
        partner, share = None, 0.0
        if others and (self.paired or mixed):
            partner = others[int(generator.integers(len(others)))]
            share = float(generator.random()) if mixed else 0.0
        example = self.example(index, start, partner, share)
        if most := self._changes.transpose:
            octaves = int(generator.integers(-most, most + 1)) / 12
            example["score"][:, self._changes.pitch_columns] += octaves * example["mask"][:, None]
        return example


class ConsecutiveWindows(Performances, Dataset[Example]):
    """Every performance from its first note to its last; the last window is padded.

    Args:
        parts: Prepared corpora.
        window: Notes in an example.
        paired: See `Performances`; the other performance is the next one of the same score.
    """

    def __init__(self, parts: Sequence[Part], window: int, paired: bool):
        super().__init__(parts, window, paired)
        self._index = [
            (index, start)
            for index, notes in enumerate(self.notes.tolist())
            if not paired or self.others(index)
            for start in range(0, notes, window)
        ]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, number: int) -> Example:
        index, start = self._index[number]
        group = self.siblings[index]
        partner = group[(group.index(index) + 1) % len(group)] if self.paired else None
        return self.example(index, start, partner)
