"""`PhraseLdmData`: songs of any corpus of MIDI as latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from midisynth.datasets.audio_pairs import corpus_shares
from midisynth.datasets.corpus import Split
from midisynth.errors import DataError
from midisynth.models.phrase_ldm.arrangements import Arrangement, permuted_bars, permuted_sections, section_subset
from midisynth.models.phrase_ldm.conditions import SectionIds
from midisynth.models.phrase_ldm.evaluation import HeldOutSongs
from midisynth.models.phrase_ldm.latents import LatentTable, SongLatents, StoredSong
from midisynth.models.phrase_ldm.layouts import LayoutIds
from midisynth.models.phrase_ldm.model import PhraseLdm
from midisynth.models.phrase_ldm.sections import Section, bar_count
from midisynth.module import MidiDataModule, MidiModule
from midisynth.stored_parts import store_part
from midisynth.training.sampler import EndlessDataset

#: Ways to arrange a song anew.
Augmentation = Literal["permuted_sections", "section_subset", "permuted_bars"]

#: What `Songs.example` returns.
Example = Mapping[str, Tensor]


class PhraseLdmData(MidiDataModule):
    """Whole songs as latents, or where one is too long for the model, as many of its sections or bars as it takes.

    Latents are computed once (`midisynth prepare`) and kept on the device that trains.

    Args:
        corpora: Name of a corpus to the folder of its files, or to a mapping of its options (`root`, `weight` and its
            own); null leaves the corpus out.
        batch_size: Examples in a batch of one process.
        workers: Processes that load examples; 0 loads them in the training process.
        seed: Of the order, the random choices and the random numbers of training.
        cache_dir: Folder for prepared data; the user's cache folder when null.
        on_broken: Leave out records that cannot be read and say so, or stop at the first.
        transpose: Most semitones that training songs are moved by, up or down; 6 trains in all keys.
        augmentations: Ways to arrange training songs anew, of which each song takes one at random:
            "permuted_sections": sections, some of them twice, in any order; "section_subset": first and last section
            and some of the others; "permuted_bars": bars in any order.
        augmented: Share of training songs that are arranged anew.
        examples_per_song: How often a song comes in an epoch.
        untrained: Have a test measure an untrained model of the same sizes beside the trained one.
    """

    content: ClassVar[frozenset[str]] = frozenset({"midi"})

    def __init__(
        self,
        corpora: dict[str, Any],
        batch_size: int = 128,
        workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
        on_broken: Literal["skip", "stop"] = "skip",
        transpose: int = 0,
        augmentations: list[Augmentation] | None = None,
        augmented: float = 0.5,
        examples_per_song: int = 1,
        untrained: bool = True,
    ):
        super().__init__(corpora, batch_size, workers, seed, cache_dir, on_broken)
        self.transpose = transpose
        self.augmentations: Sequence[Augmentation] = augmentations or ()
        self.augmented = augmented
        self.examples_per_song = examples_per_song
        self.untrained = untrained
        self._model: PhraseLdm | None = None
        self._encoder: SongLatents | None = None
        self._tables: dict[Split, LatentTable] = {}
        self._on_device: dict[tuple[Split, torch.device], Tensor] = {}

    def connect(self, model: MidiModule) -> None:
        assert isinstance(model, PhraseLdm)
        self._model = model
        self.codec = model.codec
        # Training takes rows of a table, rendering whole songs.
        self.collate = default_collate

    def encoder(self) -> SongLatents:
        """See `SongLatents`."""
        if self._encoder is None:
            vae = store_part(self._model, "vae", self.cache_dir)
            codec = self._model.song_codec()
            # A song that is too long for the model can be cut.
            codec.max_bars = None
            self._encoder = SongLatents(vae, codec, self.transpose)
        return self._encoder

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._on_device.clear()
        for split in self._needed(stage):
            self._tables[split] = LatentTable(self.parts(split), self._model.padding())
        # Before weight averaging copies the model and before a resumed run loads what it had measured.
        if stage == "fit" and not self._model.measured:
            self._model.set_statistics(*self._tables["train"].statistics())

    def dataset(self, split: Split) -> Dataset[Example]:
        """Rows of the table of the split, see `Songs.example`."""
        table, options = self._tables[split], self._model.hparams
        sizes = options.slots, options.max_bars, self._model.section_ids, self._model.layout_ids
        if split == "train":
            weights = [part.weight for part in self.parts(split)]
            return RandomSongs(
                table,
                *sizes,
                weights,
                self.seed,
                self.augmentations,
                self.augmented,
                self.examples_per_song,
            )
        songs = EverySong(table, *sizes)
        return HeldOutSongs(songs) if split == "test" else songs

    def _needed(self, stage: str) -> Sequence[Split]:
        # A test looks for its songs in those of training.
        return ("train", "test") if stage == "test" else super()._needed(stage)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look up the latents of a batch on its device: "latents" [batch, rows, latent]."""
        if not isinstance(batch, Mapping) or "rows" not in batch:
            return batch
        split: Split = "train" if self.trainer.training else "test" if self.trainer.testing else "validation"
        device = batch["rows"].device
        if (split, device) not in self._on_device:
            self._on_device[split, device] = self._tables[split].values.to(device)
        return {**batch, "latents": self._on_device[split, device][batch["rows"]]}


class Songs:
    """Songs of a table.

    Args:
        table: Of their latents.
        slots: Rows of a bar.
        max_bars: Longest song of the model.
        section_ids: Numbers of sections.
        layout_ids: Numbers of instruments.
    """

    def __init__(self, table: LatentTable, slots: int, max_bars: int, section_ids: SectionIds, layout_ids: LayoutIds):
        self.songs, self._end = table.songs, table.end
        self.slots, self.max_bars, self.section_ids = slots, max_bars, section_ids
        self._layout = layout_ids.of_tokens()[table.first_tokens]
        self._unknown = layout_ids.unknown

    def whole(self, song: StoredSong, start: int = 0) -> Arrangement:
        """As much of a song as the model takes, from a bar or, where sections are known, from a section on."""
        first, kept = start, list[Section]()
        if song.sections:
            first = bar_count(song.sections[:start])
            for section in song.sections[start:]:
                if bar_count(kept) + section.bars > self.max_bars:
                    break
                kept.append(section)
        # A section alone may be too long.
        bars = bar_count(kept) or min(song.rows // self.slots - first, self.max_bars)
        return Arrangement(tuple(range(first, first + bars)), tuple(kept))

    def starts(self, song: StoredSong) -> int:
        """From how many places on as much can be taken of a song as the model takes, or all of it."""
        if not song.sections:
            return max(song.rows // self.slots - self.max_bars, 0) + 1
        return 1 + sum(bar_count(song.sections[index:]) > self.max_bars for index in range(len(song.sections) - 1))

    def example(self, song: StoredSong, arrangement: Arrangement, shift: int) -> Example:
        """What a model learns from.

        Args:
            song: The song.
            arrangement: Its bars in their order.
            shift: Index of the shift.

        Returns:
            "rows" [max_bars * slots] int64: of the table, that of the end after the song; "bars" [] int64; "types" and
            "lengths" [MAX_SECTIONS] int64: ids of the sections, 0 for none, and everywhere if a section has no id;
            "layout" [max_bars * slots] int64: ids of the slots, all unknown if an instrument has no id.
        """
        rows = np.full(self.max_bars * self.slots, self._end, np.int64)
        indices = arrangement.rows(self.slots)
        rows[: len(indices)] = song.first + shift * song.rows + indices
        plan = arrangement.sections if self.section_ids.knows(arrangement.sections) else ()
        types, lengths = self.section_ids.encode([plan])
        layout = self._layout[rows]
        if (layout < 0).any():
            layout = np.full_like(layout, self._unknown)
        return {
            "rows": torch.from_numpy(rows),
            "bars": torch.tensor(len(arrangement.bars)),
            "types": types[0],
            "lengths": lengths[0],
            "layout": torch.from_numpy(layout),
        }


class RandomSongs(Songs, EndlessDataset[Example]):
    """Songs drawn at random, in random keys and arrangements. Example number i is always the same.

    Args:
        table: See `Songs`.
        slots: See `Songs`.
        max_bars: See `Songs`.
        section_ids: See `Songs`.
        layout_ids: See `Songs`.
        weights: Of the corpora.
        seed: Of all random choices.
        augmentations: See `PhraseLdmData`.
        augmented: See `PhraseLdmData`.
        examples_per_song: See `PhraseLdmData`.

    Raises:
        DataError: A corpus has no songs.
    """

    def __init__(
        self,
        table: LatentTable,
        slots: int,
        max_bars: int,
        section_ids: SectionIds,
        layout_ids: LayoutIds,
        weights: Sequence[float],
        seed: int,
        augmentations: Sequence[Augmentation],
        augmented: float,
        examples_per_song: int,
    ):
        super().__init__(table, slots, max_bars, section_ids, layout_ids)
        if not all(table.corpora):
            raise DataError("a corpus has no songs for training")
        self._corpora, self._seed = table.corpora, seed
        self._augmentations, self._augmented = augmentations, augmented
        self._shares = corpus_shares(weights, [len(songs) for songs in table.corpora], 1.0)
        self._length = len(self.songs) * examples_per_song

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Example:
        generator = np.random.default_rng([self._seed, number])
        corpus = self._corpora[int(generator.choice(len(self._corpora), p=self._shares))]
        song = self.songs[corpus[int(generator.integers(len(corpus)))]]
        shift = int(generator.integers(song.shifts))
        if self._augmentations and generator.random() < self._augmented:
            way = self._augmentations[int(generator.integers(len(self._augmentations)))]
            arrangement = self._arranged(way, song, generator)
        else:
            arrangement = self.whole(song, int(generator.integers(self.starts(song))))
        return self.example(song, arrangement, shift)

    def _arranged(self, way: Augmentation, song: StoredSong, generator: np.random.Generator) -> Arrangement:
        if way == "permuted_bars":
            found = permuted_bars(song.rows // self.slots, self.max_bars, generator)
            return Arrangement(found.bars[: self.max_bars])
        part = self.whole(song, int(generator.integers(self.starts(song))))
        if not part.sections:
            return part
        if way == "permuted_sections":
            found = permuted_sections(part.sections, self.max_bars, generator)
        else:
            found = section_subset(part.sections, generator)
        return Arrangement(tuple(part.bars[bar] for bar in found.bars), found.sections)


class EverySong(Songs, Dataset[Example]):
    """Every song once, in its own key, from its beginning."""

    def __len__(self) -> int:
        return len(self.songs)

    def __getitem__(self, number: int) -> Example:
        song = self.songs[number]
        return self.example(song, self.whole(song), song.shifts // 2)
