"""Datasets of short stretches of audio with the notes that sound in them, for any model that learns from both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from midisynth.datasets.cache import Prepared
from midisynth.datasets.corpus import Split
from midisynth.errors import DataError
from midisynth.music.notes import Performance
from midisynth.music.pedal import extend_by_pedal
from midisynth.training.sampler import EndlessDataset

Example = dict[str, Any]


class SegmentCodec(Protocol):
    """What a codec offers to these datasets.

    Attributes:
        sample_rate: Of the audio (Hz).
        segment_samples: Length of a stretch (samples).
    """

    sample_rate: int
    segment_samples: int

    def encode_segment(self, performance: Performance, start_sec: float) -> Mapping[str, Any]:
        """Tensors of the stretch that starts at `start_sec`; the pedal has been applied."""
        ...


@dataclass(frozen=True)
class Part:
    """The prepared records of one corpus.

    Attributes:
        name: Name of the corpus.
        weight: Share of the corpus when several are mixed, relative to the others.
        prepared: Its records.
    """

    name: str
    weight: float
    prepared: Sequence[Prepared]


def audio_pairs(
    parts: Sequence[Part],
    codec: SegmentCodec,
    split: Split,
    *,
    align: int = 1,
    seed: int = 0,
    apply_pedal: Callable[[Performance], Performance] = extend_by_pedal,
) -> Dataset[Example]:
    """Random stretches for training, consecutive ones for validation and testing.

    Every example is what the codec makes of the notes, and "audio", [samples] float32.

    Args:
        parts: Prepared corpora.
        codec: Of the model.
        split: What the examples are for.
        align: Random stretches start at multiples of this (samples), such as the hop of a spectrogram.
        seed: Of the random stretches.
        apply_pedal: Turns notes as played into notes as they sound.
    """
    if split == "train":
        return RandomStretches(parts, codec, align, seed, apply_pedal)
    return ConsecutiveStretches(parts, codec, apply_pedal)


class _Stretches:
    """Reads audio and notes of records; keeps what it has read."""

    def __init__(self, parts: Sequence[Part], codec: SegmentCodec, apply_pedal: Callable[[Performance], Performance]):
        self._codec = codec
        self._apply_pedal = apply_pedal
        self._records = [prepared for part in parts for prepared in part.prepared]
        self._samples = np.array([len(prepared.audio()) for prepared in self._records], np.int64)
        self._audio: dict[int, np.ndarray] = {}
        self._performances: dict[int, Performance] = {}

    def _example(self, record: int, start: int) -> Example:
        """The stretch of a record from sample `start` on; silence follows audio that ends early."""
        if record not in self._performances:
            # The audio stays on disk, mapped; of the notes, only what sounds is kept.
            self._audio[record] = self._records[record].audio()
            sounding = self._apply_pedal(self._records[record].performance())
            self._performances[record] = Performance(notes=sounding.notes)
        samples = self._audio[record][start : start + self._codec.segment_samples]
        audio = torch.zeros(self._codec.segment_samples)
        audio[: len(samples)] = torch.from_numpy(samples.astype(np.float32)) / 32767
        encoded = self._codec.encode_segment(self._performances[record], start / self._codec.sample_rate)
        return {**encoded, "audio": audio}

    def __getstate__(self) -> dict[str, Any]:
        # Mapped arrays would be copied whole into workers.
        return {**self.__dict__, "_audio": {}, "_performances": {}}


class RandomStretches(_Stretches, EndlessDataset[Example]):
    """Stretches at random places: a corpus by its weight, then all places in it alike.

    Example number i is always the same; an epoch is as many as fit into the audio one after the other.

    Args:
        parts: Prepared corpora.
        codec: Of the model.
        align: Starts are multiples of this (samples).
        seed: Of all random choices.
        apply_pedal: Turns notes as played into notes as they sound.

    Raises:
        DataError: A corpus has no records for training.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        codec: SegmentCodec,
        align: int,
        seed: int,
        apply_pedal: Callable[[Performance], Performance] = extend_by_pedal,
    ):
        super().__init__(parts, codec, apply_pedal)
        for part in parts:
            if not part.prepared:
                raise DataError(f"{part.name}: has no records for training")
        self._align = align
        self._seed = seed
        weights = np.array([part.weight for part in parts], float)
        self._shares = weights / weights.sum()
        # A place is a start for which the stretch lies inside its record; a shorter record has one.
        places = np.maximum(self._samples - codec.segment_samples, 0) // align + 1
        counts = np.cumsum([0, *(len(part.prepared) for part in parts)])
        self._first_record = counts[:-1]
        self._places = [places[a:b].cumsum() for a, b in pairwise(counts)]

    def __len__(self) -> int:
        return max(int(self._samples.sum()) // self._codec.segment_samples, 1)

    def __getitem__(self, number: int) -> Example:
        generator = np.random.default_rng([self._seed, number])
        part = int(generator.choice(len(self._shares), p=self._shares))
        places = self._places[part]
        place = int(generator.integers(places[-1]))
        within = int(np.searchsorted(places, place, side="right"))
        start = place - (int(places[within - 1]) if within else 0)
        return self._example(int(self._first_record[part]) + within, start * self._align)


class ConsecutiveStretches(_Stretches, Dataset[Example]):
    """Every record from its start to its end; a rest that is shorter than a stretch is left out, unless it is all.

    Args:
        parts: Prepared corpora.
        codec: Of the model.
        apply_pedal: Turns notes as played into notes as they sound.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        codec: SegmentCodec,
        apply_pedal: Callable[[Performance], Performance] = extend_by_pedal,
    ):
        super().__init__(parts, codec, apply_pedal)
        self._ends = np.maximum(self._samples // codec.segment_samples, 1).cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not in 0..{len(self) - 1}")
        record = int(np.searchsorted(self._ends, index, side="right"))
        position = index - (int(self._ends[record - 1]) if record else 0)
        return self._example(record, position * self._codec.segment_samples)
