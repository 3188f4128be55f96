"""Songs as the denoiser sees them: the latents of their phrases, computed once and kept where training needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from midisynth.datasets.audio_pairs import Part
from midisynth.datasets.corpus import Record
from midisynth.errors import DataError
from midisynth.models.phrase_ldm.codec import PhraseCodec, phrases_of
from midisynth.models.phrase_ldm.rows import INST_ID, SEP_ID, transposed_ids
from midisynth.models.phrase_ldm.sections import Section, parse_sections
from midisynth.stored_parts import StoredPart

#: Share of the components of latents that estimates are not clipped to.
CLIPPED_SHARE = 0.001

#: Raised when the arrays change.
VERSION = 1


@dataclass(frozen=True)
class SongLatents:
    """Makes what is kept of a song (`midisynth.datasets.cache.Encoder`). Only this goes to the processes that work.

    Attributes:
        vae: The autoencoder.
        codec: Makes slots of phrases of songs.
        transpose: Most semitones up or down; every shift has latents of its own.
    """

    vae: StoredPart
    codec: PhraseCodec
    transpose: int

    @property
    def key(self) -> Mapping[str, Any]:
        """What shapes the arrays."""
        return {"version": VERSION, "vae": self.vae.digest, "transpose": self.transpose, **self.codec.key}

    def __call__(self, record: Record) -> dict[str, np.ndarray]:
        """Arrays of the song, see `codec.song_arrays`, and its "latents" [2 * transpose + 1, rows, latent] float32."""
        arrays = self.codec(record)
        phrases = phrases_of(arrays)
        vae = self.vae.load()
        shifts = range(-self.transpose, self.transpose + 1)
        latents = [vae.encode([transposed_ids(phrase, shift) for phrase in phrases]).cpu().numpy() for shift in shifts]
        return {**arrays, "latents": np.stack(latents).astype(np.float32)}


@dataclass(frozen=True)
class StoredSong:
    """Where a song is in a `LatentTable`.

    Attributes:
        first: Row of its first latent; shifts follow each other, `rows` apart.
        rows: How many latents it has.
        shifts: How many shifts there are.
        sections: Its plan; nothing where it is not known.
    """

    first: int
    rows: int
    shifts: int
    sections: tuple[Section, ...]


class LatentTable:
    """Latents of all songs of a split as one table. Its last row is that of the end of a song.

    Args:
        parts: Prepared with `SongLatents`.
        end: [latent] latent of `[SEP]`.

    Attributes:
        values: [rows, latent] float32.
        first_tokens: [rows] int64: the first token of each phrase.
        songs: What lies where.
        corpora: Indices of the songs of every part.
    """

    def __init__(self, parts: Sequence[Part], end: Tensor):
        self.songs: list[StoredSong] = []
        self.corpora: list[list[int]] = []
        tables: list[Tensor] = []
        self._counted: list[Tensor] = []
        tokens: list[np.ndarray] = []
        first = 0
        for part in parts:
            self.corpora.append([])
            for prepared in part.prepared:
                arrays = prepared.arrays()
                latents = torch.from_numpy(arrays["latents"])
                shifts, rows = latents.shape[:2]
                plan = str(arrays["sections"])
                phrases = phrases_of(arrays)
                self.corpora[-1].append(len(self.songs))
                self.songs.append(StoredSong(first, rows, shifts, tuple(parse_sections(plan)) if plan else ()))
                tables.append(latents.flatten(0, 1))
                # Empty slots, of which there may be any number, say nothing about the scale of the others.
                begin = np.array([phrase[0] for phrase in phrases], np.int64)
                tokens.append(np.tile(begin, shifts))
                self._counted.append(torch.from_numpy(tokens[-1] != INST_ID))
                first += shifts * rows
        self.values = torch.cat([*tables, end[None].cpu().float()])
        self.first_tokens = np.concatenate([*tokens, [SEP_ID]])

    @property
    def end(self) -> int:
        """Row of the latent of the end of a song."""
        return len(self.values) - 1

    def statistics(self) -> tuple[float, float]:
        """Standard deviation of the latents, and what all but a few of their components stay below.

        Raises:
            DataError: There are no songs.
        """
        if not self.songs:
            raise DataError("no songs for training")
        chosen = self.values[:-1][torch.cat(self._counted)]
        largest = chosen.abs().flatten().sort().values
        return float(chosen.std()), float(largest[int((1 - CLIPPED_SHARE) * (len(largest) - 1))])
