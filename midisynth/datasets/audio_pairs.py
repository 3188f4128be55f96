"""Datasets of short stretches of audio with the notes that sound in them, for any model that learns from both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from midisynth.datasets.cache import Mix, Prepared
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
    temperature: float = 0.0,
    apply_pedal: Callable[[Performance], Performance] = extend_by_pedal,
    context: int = 0,
    channels: int = 1,
    controllers: Sequence[int] = (),
) -> Dataset[Example]:
    """Random stretches for training, consecutive ones for validation and testing.

    Every example is what the codec makes of the notes, and "audio", float32 [samples], or [2, samples] with two
    channels. With `context` there are also "context_audio", of the same form, what lies before, and "context_samples",
    int64, how much of it there was: before the start of a record is silence. Consecutive stretches have "name", that of
    their record, as well.

    Args:
        parts: Prepared corpora.
        codec: Of the model.
        split: What the examples are for.
        align: Random stretches start at multiples of this (samples), such as the hop of a spectrogram.
        seed: Of the random stretches.
        temperature: How much the size of a corpus counts in training, see `corpus_shares`.
        apply_pedal: Turns notes as played into notes as they sound.
        context: Audio before the stretch (samples).
        channels: 1 takes the mean of stereo corpora, such as `rendered` makes on request; 2 doubles mono ones.
        controllers: Numbers of the controllers that the codec reads besides the notes.
    """
    if split == "train":
        return RandomStretches(parts, codec, align, seed, temperature, apply_pedal, context, channels, controllers)
    return ConsecutiveStretches(parts, codec, apply_pedal, context, channels, controllers)


def corpus_shares(weights: Sequence[float], sizes: Sequence[int], temperature: float) -> np.ndarray:
    """Probability that an example comes from each of several corpora, [corpora]; they add up to 1.

    In proportion to weight times size to the power of `temperature`, after C. Raffel et al., "Exploring the Limits of
    Transfer Learning with a Unified Text-to-Text Transformer", JMLR 2020, section 3.5.2, whose temperature is the
    inverse of this one.

    Args:
        weights: What the user gave each corpus.
        sizes: Examples in each corpus, one after the other.
        temperature: 0 leaves the weights alone, 1 mixes corpora as large as they are.
    """
    shares = np.asarray(weights, float) * np.asarray(sizes, float) ** temperature
    return shares / shares.sum()


class _Stretches:
    """Reads audio and notes of records; keeps what it has read."""

    def __init__(
        self,
        parts: Sequence[Part],
        codec: SegmentCodec,
        apply_pedal: Callable[[Performance], Performance],
        context: int,
        channels: int,
        controllers: Sequence[int],
    ):
        self._codec = codec
        self._channels = channels
        self._controllers = controllers
        self._context = context
        self._apply_pedal = apply_pedal
        self._records = [prepared for part in parts for prepared in part.prepared]
        self._samples = np.array([len(prepared.audio()) for prepared in self._records], np.int64)
        self._audio: dict[int, np.ndarray | Mix] = {}
        self._performances: dict[int, Performance] = {}

    def _example(self, record: int, start: int) -> Example:
        """The stretch of a record from sample `start` on; silence follows audio that ends early."""
        performance = self._performance(record)
        before = min(start, self._context)
        samples = self._audio[record][start - before : start + self._codec.segment_samples]
        audio = torch.zeros(self._channels, self._context + self._codec.segment_samples)
        first = self._context - before
        audio[:, first : first + len(samples)] = self._remixed(torch.from_numpy(samples.astype(np.float32)) / 32767)
        audio = audio[0] if self._channels == 1 else audio
        example = dict(self._codec.encode_segment(performance, start / self._codec.sample_rate))
        if self._context:
            example |= {"context_audio": audio[..., : self._context], "context_samples": torch.tensor(before)}
        return {**example, "audio": audio[..., self._context :]}

    def _performance(self, record: int) -> Performance:
        """What sounds in a record, and its audio ready to be read."""
        if record not in self._performances:
            # The audio stays on disk, mapped; of the notes, only what sounds is kept.
            self._audio[record] = self._records[record].audio()
            sounding = self._apply_pedal(self._records[record].performance())
            kept = sounding.controls[np.isin(sounding.controls["number"], self._controllers)]
            self._performances[record] = Performance(notes=sounding.notes, controls=kept)
        return self._performances[record]

    def _remixed(self, audio: torch.Tensor) -> torch.Tensor:
        """Prepared audio, [samples] or [samples, 2], as it is wanted, [samples] or [channels, samples]."""
        if audio.ndim == 1:
            return audio
        return audio.mean(dim=1) if self._channels == 1 else audio.T

    def __getstate__(self) -> dict[str, Any]:
        # Mapped arrays would be copied whole into workers.
        return {**self.__dict__, "_audio": {}, "_performances": {}}


class RandomStretches(_Stretches, EndlessDataset[Example]):
    """Stretches at random places: a corpus by its weight and size, then all places in it alike.

    Example number i is always the same; an epoch is as many as fit into the audio one after the other.

    Args:
        parts: Prepared corpora.
        codec: Of the model.
        align: Starts are multiples of this (samples).
        seed: Of all random choices.
        temperature: How much the size of a corpus counts, see `corpus_shares`.
        apply_pedal: Turns notes as played into notes as they sound.
        context: Audio before the stretch (samples).
        channels: See `audio_pairs`.
        controllers: See `audio_pairs`.

    Raises:
        DataError: A corpus has no records for training.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        codec: SegmentCodec,
        align: int,
        seed: int,
        temperature: float = 0.0,
        apply_pedal: Callable[[Performance], Performance] = extend_by_pedal,
        context: int = 0,
        channels: int = 1,
        controllers: Sequence[int] = (),
    ):
        super().__init__(parts, codec, apply_pedal, context, channels, controllers)
        for part in parts:
            if not part.prepared:
                raise DataError(f"{part.name}: has no records for training")
        self._align = align
        self._seed = seed
        # A place is a start for which the stretch lies inside its record; a shorter record has one.
        places = np.maximum(self._samples - codec.segment_samples, 0) // align + 1
        counts = np.cumsum([0, *(len(part.prepared) for part in parts)])
        self._first_record = counts[:-1]
        self._places = [places[a:b].cumsum() for a, b in pairwise(counts)]
        stretches = np.maximum(self._samples // codec.segment_samples, 1)
        sizes = [int(stretches[a:b].sum()) for a, b in pairwise(counts)]
        self._shares = corpus_shares([part.weight for part in parts], sizes, temperature)

    def __len__(self) -> int:
        return max(int(self._samples.sum()) // self._codec.segment_samples, 1)

    def __getitem__(self, number: int) -> Example:
        return self._example(*self._place(np.random.default_rng([self._seed, number])))

    def _place(self, generator: np.random.Generator) -> tuple[int, int]:
        """A record and a start in it (samples)."""
        part = int(generator.choice(len(self._shares), p=self._shares))
        places = self._places[part]
        place = int(generator.integers(places[-1]))
        within = int(np.searchsorted(places, place, side="right"))
        start = place - (int(places[within - 1]) if within else 0)
        return int(self._first_record[part]) + within, start * self._align


class ConsecutiveStretches(_Stretches, Dataset[Example]):
    """Every record from its start to its end; a rest that is shorter than a stretch is left out, unless it is all.

    Args:
        parts: Prepared corpora.
        codec: Of the model.
        apply_pedal: Turns notes as played into notes as they sound.
        context: Audio before the stretch (samples).
        channels: See `audio_pairs`.
        controllers: See `audio_pairs`.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        codec: SegmentCodec,
        apply_pedal: Callable[[Performance], Performance] = extend_by_pedal,
        context: int = 0,
        channels: int = 1,
        controllers: Sequence[int] = (),
    ):
        super().__init__(parts, codec, apply_pedal, context, channels, controllers)
        self._ends = np.maximum(self._samples // codec.segment_samples, 1).cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not in 0..{len(self) - 1}")
        record, start = self._place(index)
        return {**self._example(record, start), "name": self._records[record].record.name}

    def _place(self, index: int) -> tuple[int, int]:
        """The record of a stretch and its start (samples)."""
        record = int(np.searchsorted(self._ends, index, side="right"))
        position = index - (int(self._ends[record - 1]) if record else 0)
        return record, position * self._codec.segment_samples
