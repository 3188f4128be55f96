"""Datasets of prepared recordings: segments for training and validation, stretches behind a prompt for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from midisynth.datasets.audio_pairs import Part
from midisynth.datasets.cache import Prepared
from midisynth.datasets.corpus import Record
from midisynth.errors import DataError
from midisynth.models.midi_valle.codec import PAD
from midisynth.models.midi_valle.pieces import Cutter, frames_of
from midisynth.models.midi_valle.prompts import PROMPT_SEC
from midisynth.models.midi_valle.segments import SHORTEST_SEC, published_points, random_points, segment
from midisynth.music.notes import Performance
from midisynth.music.pedal import extend_by_pedal
from midisynth.training.batches import Place, TimedDataset

#: Where recordings are cut for training: at other places in every epoch, or always where the original cuts.
Cuts = Literal["random", "published"]


#: Where limits of cuts leave less at the end of a recording, it is no example (seconds).
TELLING_SEC = 1.0


class Stretch(NamedTuple):
    """Where a segment lies.

    Attributes:
        prepared: Its recording.
        first: Its first frame.
        last: The frame after its last one.
        neighbour: First and last frame of the segment before or after it; itself where it is alone.
    """

    prepared: Prepared
    first: int
    last: int
    neighbour: tuple[int, int]


def stretches(
    prepared: Prepared,
    cutter: Cutter,
    points: Sequence[float],
    seconds: float,
    random: np.random.Generator,
    shortest_sec: float,
) -> list[Stretch]:
    """The segments between some points of a recording that are long enough to learn from, or all of a short recording.

    Args:
        prepared: The recording.
        cutter: Knows frames.
        points: Where segments begin (seconds).
        seconds: Length of the recording (seconds).
        random: Chooses neighbours.
        shortest_sec: What is shorter is left out (seconds).
    """
    bounds = [cutter.frame(point) for point in (*points, seconds)]
    shortest = cutter.frame(shortest_sec)
    pairs = [(first, last) for first, last in pairwise(bounds) if last - first >= shortest]
    pairs = pairs or [(bounds[0], bounds[-1])]
    found = []
    for index, (first, last) in enumerate(pairs):
        others = [pairs[other] for other in (index - 1, index + 1) if 0 <= other < len(pairs)] or [(first, last)]
        found.append(Stretch(prepared, first, last, others[int(random.integers(len(others)))]))
    return found


def stretch_example(
    stretch: Stretch, cutter: Cutter, needs_neighbours: bool, random: np.random.Generator
) -> dict[str, Any]:
    """What `collate_segments` takes: `Cutter.example` and, if wanted, "neighbour" [frames, codebooks] and "place",
    a number in [0, 1) that says where the prompt is in it."""
    example: dict[str, Any] = cutter.example(stretch.prepared, stretch.first, stretch.last)
    if needs_neighbours:
        example["neighbour"] = cutter.codes(stretch.prepared, *stretch.neighbour)
        example["place"] = float(random.random())
        example["longest"] = cutter.frame(PROMPT_SEC)
    return example


class RandomSegments(TimedDataset):
    """Recordings cut into segments, at other places in every epoch.

    Args:
        parts: Prepared corpora.
        cutter: Of the model.
        min_sec: Shortest distance of cuts (seconds).
        max_sec: Longest distance (seconds).
        cuts: See `MidiValleData`.
        seed: Of all random choices.
        needs_neighbours: Whether examples have a neighbour to take a prompt from.

    Raises:
        DataError: A corpus has no records for training.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        cutter: Cutter,
        min_sec: float,
        max_sec: float,
        cuts: Cuts,
        seed: int,
        needs_neighbours: bool = False,
    ):
        for part in parts:
            if not part.prepared:
                raise DataError(f"{part.name}: has no records for training")
        self._cutter, self._seed, self._needs_neighbours = cutter, seed, needs_neighbours
        self._min_sec, self._max_sec, self._cuts = min_sec, max_sec, cuts
        self._shortest_sec = SHORTEST_SEC if cuts == "published" else min(TELLING_SEC, min_sec)
        self._records = [(prepared, part.weight) for part in parts for prepared in part.prepared]
        self._seconds = [frames_of(prepared) / cutter.frames_per_sec for prepared, _ in self._records]
        self._planned: tuple[int, list[Stretch]] = (-1, [])

    def durations(self, epoch: int) -> np.ndarray:
        return np.array([one.last - one.first for one in self._plan(epoch)], float) / self._cutter.frames_per_sec

    def example(self, place: Place) -> dict[str, Any]:
        epoch, number = place
        random = np.random.default_rng([self._seed, epoch, number])
        return stretch_example(self._plan(epoch)[number], self._cutter, self._needs_neighbours, random)

    def _plan(self, epoch: int) -> list[Stretch]:
        if self._planned[0] != epoch:
            random = np.random.default_rng([self._seed, epoch])
            plan = []
            for (prepared, weight), seconds in zip(self._records, self._seconds, strict=True):
                # A weight of 1.5 is one pass, and another one in every second epoch.
                for _ in range(int(weight) + int(random.random() < weight % 1)):
                    points = self._points(seconds, random)
                    plan += stretches(prepared, self._cutter, points, seconds, random, self._shortest_sec)
            self._planned = epoch, plan
        return self._planned[1]

    def _points(self, seconds: float, random: np.random.Generator) -> list[float]:
        if self._cuts == "published":
            return published_points(seconds)
        return random_points(seconds, random, self._min_sec, self._max_sec)

    def __getstate__(self) -> dict[str, Any]:
        # Workers plan for themselves.
        return {**self.__dict__, "_planned": (-1, [])}


class EverySegment(Dataset):
    """Recordings cut into segments, always at the same places.

    Args:
        parts: Prepared corpora.
        cutter: Of the model.
        min_sec: Shortest distance of cuts (seconds).
        max_sec: Longest distance (seconds).
        needs_neighbours: Whether examples have a neighbour to take a prompt from.
    """

    def __init__(
        self, parts: Sequence[Part], cutter: Cutter, min_sec: float, max_sec: float, needs_neighbours: bool = False
    ):
        self._cutter, self._needs_neighbours = cutter, needs_neighbours
        self._stretches: list[Stretch] = []
        for prepared in (one for part in parts for one in part.prepared):
            random = np.random.default_rng(0)
            seconds = frames_of(prepared) / cutter.frames_per_sec
            points = random_points(seconds, random, min_sec, max_sec)
            self._stretches += stretches(prepared, cutter, points, seconds, random, min(TELLING_SEC, min_sec))

    def __len__(self) -> int:
        return len(self._stretches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng(index)
        return stretch_example(self._stretches[index], self._cutter, self._needs_neighbours, random)


class Stretches(Dataset):
    """Stretches of one length that follow each other, each after a prompt that is the end of what was before it.

    Examples have "rows" [note rows, columns] of prompt and stretch, "prompt_notes", how many are the prompt's, "prompt"
    and "codes" [frames, codebooks] of either, "audio" [samples] of the stretch, "truth" [notes] of `NOTE_DTYPE`, what
    is struck in it, "name", that of its record, and where there is another stretch "other", the rows of one.

    Args:
        parts: Prepared corpora.
        cutter: Of the model.
        seconds: Length of a stretch (seconds).
        sample_rate: Of the audio (Hz).

    Raises:
        DataError: There are recordings, and none is so long.
    """

    def __init__(self, parts: Sequence[Part], cutter: Cutter, seconds: float, sample_rate: int):
        self._cutter, self._sample_rate = cutter, sample_rate
        self._prompt, self._frames = cutter.frame(PROMPT_SEC), cutter.frame(seconds)
        self._places = [
            (prepared, first)
            for part in parts
            for prepared in part.prepared
            for first in range(0, frames_of(prepared) - self._prompt - self._frames + 1, self._frames)
        ]
        if not self._places and any(part.prepared for part in parts):
            raise DataError(
                f"no recording for testing has the {PROMPT_SEC + seconds:g} s that a prompt and data.test_sec are "
                "together: lower data.test_sec"
            )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        prepared, start = self._places[index]
        first, last = start + self._prompt, self._last(start)
        samples = round(self._sample_rate / self._cutter.frames_per_sec)
        audio = _waveform(_Known(prepared.record), self._sample_rate)[first * samples : last * samples]
        prompt = self._cutter.played(self._cutter.segment(prepared, start, first))
        example = {
            "rows": self._rows(prepared, start),
            "prompt_notes": len(prompt.notes),
            "prompt": self._cutter.codes(prepared, start, first),
            "codes": self._cutter.codes(prepared, first, last),
            "audio": torch.nn.functional.pad(audio, (0, (last - first) * samples - len(audio))),
            "truth": self._struck(prepared, first, last),
            "name": prepared.record.name,
        }
        # Far away, which is another piece as a rule; always the same, on however many processes.
        other = (index + len(self) // 2) % len(self)
        return example if other == index else {**example, "other": self._rows(*self._places[other])}

    def _rows(self, prepared: Prepared, start: int) -> Tensor:
        """Note rows of a prompt and the stretch that follows it."""
        return self._cutter.rows(self._cutter.segment(prepared, start, self._last(start)))

    def _last(self, start: int) -> int:
        return start + self._prompt + self._frames

    def _struck(self, prepared: Prepared, first: int, last: int) -> np.ndarray:
        sounding = extend_by_pedal(self._cutter.performance(prepared))
        rate = self._cutter.frames_per_sec
        return segment(Performance(notes=sounding.notes), first / rate, last / rate).struck.notes


class _Known:
    """A record as a key: records hold mappings and have no hash."""

    def __init__(self, record: Record):
        self.record = record

    def __hash__(self) -> int:
        return hash((self.record.corpus, self.record.id))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and self.record == other.record


# Stretches of a recording come one after the other.
@lru_cache(maxsize=1)
def _waveform(known: _Known, sample_rate: int) -> Tensor:
    audio = known.record.waveform(sample_rate)
    return audio if audio.ndim == 1 else audio.mean(dim=0)


def collate(examples: Sequence[Mapping[str, Any]]) -> Any:
    """Join examples of any split: stretches of a test stay apart."""
    return list(examples) if "audio" in examples[0] else collate_segments(examples)


def collate_segments(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pad segments to a batch.

    Args:
        examples: With "rows" and "codes" and perhaps what a prompt is cut from, see `stretch_example`.

    Returns:
        "rows" [batch, note rows, columns] and "codes" [batch, frames, codebooks] int64, "row_lengths" and
        "code_lengths" [batch] int64, "frames", the latter as numbers; "prompts" [batch, frames, codebooks], of one
        length, if there are neighbours.
    """
    rows, codes = ([example[name] for example in examples] for name in ("rows", "codes"))
    frames = [len(one) for one in codes]
    batch: dict[str, Any] = {
        "rows": pad_sequence(rows, batch_first=True, padding_value=PAD),
        "row_lengths": torch.tensor([len(one) for one in rows]),
        "codes": pad_sequence(codes, batch_first=True),
        "code_lengths": torch.tensor(frames),
        "frames": frames,
    }
    if "neighbour" in examples[0]:
        length = min(examples[0]["longest"], *(len(example["neighbour"]) for example in examples))
        prompts = []
        for example in examples:
            start = int(example["place"] * (len(example["neighbour"]) - length + 1))
            prompts.append(example["neighbour"][start : start + length])
        batch["prompts"] = torch.stack(prompts)
    return batch
