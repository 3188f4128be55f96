"""`PhraseVaeData`: phrases, bars or positions of any corpus of MIDI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from midisynth.datasets.audio_pairs import Part, corpus_shares
from midisynth.datasets.corpus import Split
from midisynth.errors import DataError
from midisynth.models.phrase_ldm.codec import PhraseCodec, phrases_of
from midisynth.models.phrase_ldm.grid import Compat
from midisynth.models.phrase_ldm.rows import (
    BAR_ID,
    INST_ID,
    SEP_ID,
    collate,
    labels,
    random_span_masked,
    row,
    transposed_ids,
)
from midisynth.models.phrase_ldm.units import Unit, units_of_bars
from midisynth.models.phrase_ldm.vae import PhraseVae
from midisynth.module import MidiDataModule, MidiModule
from midisynth.training.sampler import EndlessDataset

#: Rows of a corpus are put into so many groups by their length; those of a batch come from one of them.
LENGTH_GROUPS = 8

#: Ids that the encoder reads, and ids that the decoder shall write.
Example = tuple[list[int], list[int]]


class PhraseVaeData(MidiDataModule):
    """Phrases, bars or positions of songs, as the model's `unit` says.

    Args:
        corpora: Name of a corpus to the folder of its files, or to a mapping of its options (`root`, `weight` and its
            own); null leaves the corpus out.
        batch_size: Examples in a batch of one process.
        workers: Processes that load examples; 0 loads them in the training process.
        seed: Of the order, the random choices and the random numbers of training.
        cache_dir: Folder for prepared data; the user's cache folder when null.
        on_broken: Leave out records that cannot be read and say so, or stop at the first.
        transpose: Most semitones that training examples are moved by, up or down; 6 trains in all keys.
        specials: Share of training examples without notes: empty slots, bar lines or ends of songs.
        validation_rows: Examples for validation, drawn once; null takes all.
    """

    content: ClassVar[frozenset[str]] = frozenset({"midi"})
    codec: PhraseCodec

    def __init__(
        self,
        corpora: dict[str, Any],
        batch_size: int = 128,
        workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
        on_broken: Literal["skip", "stop"] = "skip",
        transpose: int = 0,
        specials: float = 0.1,
        validation_rows: int | None = 2048,
    ):
        super().__init__(corpora, batch_size, workers, seed, cache_dir, on_broken)
        self.transpose = transpose
        self.specials = specials
        self.validation_rows = validation_rows
        self._model: PhraseVae | None = None

    def connect(self, model: MidiModule) -> None:
        super().connect(model)
        assert isinstance(model, PhraseVae)
        self._model = model
        # Training takes rows, rendering whole songs.
        self.collate = join

    def encoder(self) -> PhraseCodec:
        """The codec itself, see `PhraseCodec.__call__`."""
        return self.codec

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # Before weight averaging copies the model; a resumed run goes on with its own weights.
        if stage == "fit" and self.trainer.ckpt_path is None:
            self._model.initialise()

    def dataset(self, split: Split) -> Dataset[Example]:
        """Rows and labels, see `rows.py`."""
        options = self._model.hparams
        corpora = [Phrases(part, self._model.unit, options.compat) for part in self.parts(split)]
        make = Rows(self._model.queries, options.max_tokens, options.compat, options.stage == "infilling")
        if split == "train":
            batch = self.batch_size * self.trainer.world_size
            weights = [part.weight for part in self.parts(split)]
            return RandomRows(corpora, weights, make, batch, self.seed, self.transpose, self.specials)
        return EveryRow(corpora, make, self.validation_rows if split == "validation" else None)


def join(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Examples as one padded batch, see `rows.collate`."""
    rows, targets = zip(*examples, strict=True)
    return collate(rows, targets)


class Rows:
    """Makes examples of phrases, bars or positions.

    Args:
        queries: Query tokens.
        max_tokens: Longest row.
        compat: Of the model.
        masked: Leave out spans.
    """

    def __init__(self, queries: int, max_tokens: int, compat: Any, masked: bool):
        self._options = (queries, max_tokens, compat)
        self._masked = masked

    def __call__(self, ids: Sequence[int], generator: np.random.Generator) -> Example:
        shown = random_span_masked(ids, generator) if self._masked else ids
        return row(shown, *self._options), labels(ids, *self._options)


class Phrases:
    """Phrases, bars or positions of a corpus in memory: about a megabyte for a hundred songs.

    Args:
        part: Prepared by a `PhraseCodec`.
        unit: Which of them.
        compat: See `units_of_bars`.

    Attributes:
        name: Of the corpus.
        ids: Those that have notes, and all bars; [tokens] each.
        lengths: [phrases] tokens of each.
        specials: Those without notes, each once: empty slots, bar lines, the end of a song.
    """

    def __init__(self, part: Part, unit: Unit = "phrase", compat: Compat = None):
        self.name = part.name
        self.ids: list[np.ndarray] = []
        # The published positions have a bar line in place of the end of a song.
        specials = set() if unit == "position" and compat else {(SEP_ID,)}
        if unit == "phrase":
            specials.add((INST_ID,))
        for prepared in part.prepared:
            arrays = prepared.arrays()
            bars = units_of_bars(phrases_of(arrays), int(arrays["slots"]), unit, compat)
            for ids in (ids for bar in bars for ids in bar):
                if unit == "bar" or ids[-1] != BAR_ID:
                    self.ids.append(ids)
                else:
                    specials.add(tuple(ids.tolist()))
        self.lengths = np.array([len(ids) for ids in self.ids], np.int64)
        self.specials = [np.array(ids, np.int16) for ids in sorted(specials)]


class RandomRows(EndlessDataset[Example]):
    """Rows drawn at random, those of one batch of similar length. Example number i is always the same.

    Args:
        corpora: What there is.
        weights: Of the corpora.
        make: Makes examples.
        batch: Examples of all processes that go through the network together.
        seed: Of all random choices.
        transpose: Most semitones up or down.
        specials: Share of phrases without notes.

    Raises:
        DataError: A corpus has no phrases.
    """

    def __init__(
        self,
        corpora: Sequence[Phrases],
        weights: Sequence[float],
        make: Rows,
        batch: int,
        seed: int,
        transpose: int,
        specials: float,
    ):
        for corpus in corpora:
            if not corpus.ids:
                raise DataError(f"{corpus.name}: has no phrases for training")
        self._corpora, self._make, self._batch, self._seed = corpora, make, batch, seed
        self._transpose, self._special_share = transpose, specials
        sizes = [len(corpus.ids) for corpus in corpora]
        self._shares = corpus_shares(weights, sizes, 1.0)
        self._groups = [
            np.array_split(np.argsort(corpus.lengths, kind="stable"), min(LENGTH_GROUPS, len(corpus.ids)))
            for corpus in corpora
        ]
        self._length = max(sum(sizes) // batch, 1) * batch

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Example:
        shared = np.random.default_rng([self._seed, 0, number // self._batch])
        which = int(shared.choice(len(self._corpora), p=self._shares))
        groups = self._groups[which]
        group = groups[int(shared.integers(len(groups)))]
        corpus = self._corpora[which]
        generator = np.random.default_rng([self._seed, 1, number])
        if generator.random() < self._special_share:
            ids = corpus.specials[int(generator.integers(len(corpus.specials)))].tolist()
        else:
            ids = corpus.ids[int(group[generator.integers(len(group))])].tolist()
        if self._transpose:
            ids = transposed_ids(ids, int(generator.integers(-self._transpose, self._transpose + 1)))
        return self._make(ids, generator)


class EveryRow(Dataset[Example]):
    """Every phrase with notes once, and every one without; from the shortest to the longest.

    Args:
        corpora: What there is.
        make: Makes examples.
        limit: A random choice of so many, always the same; None: all.
    """

    def __init__(self, corpora: Sequence[Phrases], make: Rows, limit: int | None):
        rows = [ids for corpus in corpora for ids in corpus.ids]
        if limit is not None and limit < len(rows):
            chosen = np.random.default_rng(0).choice(len(rows), limit, replace=False)
            rows = [rows[index] for index in chosen]
        specials = {tuple(ids.tolist()): ids for corpus in corpora if corpus.ids for ids in corpus.specials}
        self._rows = sorted([*specials.values(), *rows], key=len)
        self._make = make

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Example:
        return self._make(self._rows[number].tolist(), np.random.default_rng(number))
