"""Stretches of audio with their rolls, for training and evaluating `Midi2Wave`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from midisynth.datasets.audio_pairs import ConsecutiveStretches, Example, Part, RandomStretches
from midisynth.datasets.corpus import Record, Split
from midisynth.errors import DataError
from midisynth.models.midi2wave.codec import silence_before_onset
from midisynth.models.midi2wave.conditioning import Vocabulary
from midisynth.models.midi2wave.model import Midi2Wave
from midisynth.models.midi2wave.pieces import PieceCodec
from midisynth.module import MidiDataModule, MidiModule
from midisynth.music.notes import Performance, struck_notes
from midisynth.music.rolls import KEYS

#: So many places are tried for one in which a note is played.
ATTEMPTS = 1000


class Midi2WaveData(MidiDataModule):
    """Random segments of any corpora with audio and MIDI for training, consecutive ones for evaluation.

    In a training segment nothing sounds before the first note of its roll, so that the network learns to start from
    silence. Segments for evaluation come with the audio before them.

    Args:
        corpora: Name of a corpus to the folder of its files, or to a mapping of its options (`root`, `weight` and its
            own); null leaves the corpus out.
        batch_size: Examples in a batch of one process.
        workers: Processes that load examples; 0 loads them in the training process.
        seed: Of the order, the random choices and the random numbers of training.
        cache_dir: Folder for prepared data; the user's cache folder when null.
        on_broken: Leave out records that cannot be read and say so, or stop at the first.
        segment_sec: Length of a segment for training and validation (seconds).
        test_sec: Length of a segment for testing (seconds): what is rendered freely.
        primed_sec: Real audio before such a segment that the rendering goes on from (seconds).
        sampling_temperature: An example comes from a corpus with a probability in proportion to its weight times its
            size to this power: 0 heeds weights alone, 1 mixes corpora as large as they are.
    """

    codec: PieceCodec

    def __init__(
        self,
        corpora: dict[str, Any],
        batch_size: int = 2,
        workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
        on_broken: Literal["skip", "stop"] = "skip",
        segment_sec: float = 7.5,
        test_sec: float = 2.0,
        primed_sec: float = 2.0,
        sampling_temperature: float = 1.0,
    ):
        super().__init__(corpora, batch_size, workers, seed, cache_dir, on_broken)
        self.segment_sec = segment_sec
        self.test_sec = test_sec
        self.primed_sec = primed_sec
        self.sampling_temperature = sampling_temperature
        self._vocabulary = Vocabulary({})
        self._history = 0

    def connect(self, model: MidiModule) -> None:
        super().connect(model)
        assert isinstance(model, Midi2Wave)
        self.collate = collate
        if model.unlearned_attributes:
            records = [record for _, found in self._open().values() for record in found if record.split == "train"]
            model.learn_attributes([attributes_of(record) for record in records])
        self._vocabulary = model.vocabulary
        self._history = model.receptive_ticks

    def dataset(self, split: Split) -> Dataset[Example]:
        """Examples with "audio" [samples] float32, "roll" [rows, ticks] and "attributes", of `Vocabulary.row`.

        Those for evaluation start with "history" samples that are given, and have "other", the roll of another example,
        where there is another. Those for testing have "truth", the notes that are struck after the history.
        """
        parts = self.parts(split)
        if split == "train":
            stretch = Stretch(self.codec, self.segment_sec)
            return RandomSegments(parts, stretch, self._vocabulary, self.seed, self.sampling_temperature)
        if split == "validation":
            stretch = Stretch(self.codec, self.segment_sec, self._history)
        else:
            primed = round(self.primed_sec * self.codec.ticks_per_sec)
            stretch = Stretch(self.codec, self.test_sec, primed, truth=True)
        return HeldOutSegments(parts, stretch, self._vocabulary)


def attributes_of(record: Record) -> dict[str, str]:
    """What is known of a whole recording. A corpus that does not say which piano it is, is taken for one piano."""
    known = {"piano": record.corpus, **record.metadata}
    return {name: str(known[name]) for name in ("year", "composer", "piano") if known.get(name) is not None}


class Stretch:
    """Makes rolls of stretches of one length; what the data sets ask of a codec.

    Args:
        codec: Of the model.
        seconds: Length of a stretch (seconds).
        history: Ticks before it that its roll shows, too.
        truth: Add the notes that are struck in it.

    Raises:
        DataError: It is shorter than a tick.
    """

    def __init__(self, codec: PieceCodec, seconds: float, history: int = 0, truth: bool = False):
        self.codec = codec
        self.history = history
        self.ticks = round(seconds * codec.ticks_per_sec)
        if self.ticks < 1:
            raise DataError(f"segments of {seconds:g} s are shorter than a tick: raise segment_sec or test_sec")
        self.sample_rate = codec.sample_rate
        self.segment_samples = self.ticks * codec.hop
        self._truth = truth

    def encode_segment(self, performance: Performance, start_sec: float) -> Mapping[str, Any]:
        first = round(start_sec * self.codec.ticks_per_sec)
        example: dict[str, Any] = {
            "roll": self.codec.roll(performance, first - self.history, self.history + self.ticks)
        }
        if self._truth:
            example["truth"] = struck_notes(performance.notes, start_sec, self.ticks / self.codec.ticks_per_sec)
        return example


class RandomSegments(RandomStretches):
    """Segments at random ticks in which a note is played, silent until the first.

    Example number i is always the same; numbers go on from epoch to epoch, and every process has its own.

    Args:
        parts: Prepared corpora.
        stretch: Makes the rolls.
        vocabulary: Of the attributes.
        seed: Of all random choices.
        temperature: How much the size of a corpus counts, see `corpus_shares`.
    """

    def __init__(self, parts: Sequence[Part], stretch: Stretch, vocabulary: Vocabulary, seed: int, temperature: float):
        codec = stretch.codec
        super().__init__(parts, stretch, codec.hop, seed, temperature, codec.sounding, controllers=codec.controllers)
        self._stretch = stretch
        self._vocabulary = vocabulary

    def __getitem__(self, number: int) -> Example:
        generator = np.random.default_rng([self._seed, number])
        codec, stretch = self._stretch.codec, self._stretch
        for _ in range(ATTEMPTS):
            record, start = self._place(generator)
            performance, first = self._performance(record), start // codec.hop
            # The audio may go on for long after the notes, and the other way round.
            if first and first + stretch.ticks > codec.ticks(performance):
                continue
            example = self._example(record, start)
            roll = example["roll"].numpy()
            if roll[:KEYS].any():
                audio = silence_before_onset(roll, example["audio"].numpy(), codec.hop, 0)
                attributes = _row(self._vocabulary, self._records[record].record)
                return {**example, "audio": torch.from_numpy(audio), "attributes": attributes}
        raise DataError(
            f"{ATTEMPTS} random segments of {stretch.ticks / codec.ticks_per_sec:g} s have no notes: is there music in "
            f"{self._records[record].record.corpus}?"
        )


class HeldOutSegments(ConsecutiveStretches):
    """Every record from its start to its end, each segment with what lies before it.

    Args:
        parts: Prepared corpora.
        stretch: Makes the rolls.
        vocabulary: Of the attributes.
    """

    def __init__(self, parts: Sequence[Part], stretch: Stretch, vocabulary: Vocabulary):
        codec = stretch.codec
        context = stretch.history * codec.hop
        super().__init__(parts, stretch, codec.sounding, context, controllers=codec.controllers)
        self._stretch = stretch
        self._vocabulary = vocabulary

    def __getitem__(self, index: int) -> Example:
        example = super().__getitem__(index)
        record, _ = self._place(index)
        before = example.pop("context_audio", None)
        example.pop("context_samples", None)
        if before is not None:
            example["audio"] = torch.cat([before, example["audio"]])
        example["history"] = torch.tensor(self._stretch.history * self._stretch.codec.hop)
        example["attributes"] = _row(self._vocabulary, self._records[record].record)
        # Far away, which is another piece as a rule; always the same, on however many processes.
        other = (index + len(self) // 2) % len(self)
        if other != index:
            record, start = self._place(other)
            example["other"] = self._stretch.encode_segment(self._performance(record), start / self._codec.sample_rate)[
                "roll"
            ]
        return example


def _row(vocabulary: Vocabulary, record: Record) -> Tensor:
    known = attributes_of(record)
    return vocabulary.row({name: known[name] for name in vocabulary.values if name in known})


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join examples: tensors are stacked, other values become lists."""
    return {
        name: torch.stack([example[name] for example in examples])
        if isinstance(value, Tensor)
        else [example[name] for example in examples]
        for name, value in examples[0].items()
    }
