"""What a test measures of composed songs: how near they are to songs that people wrote, and whose they are.

For every held-out song the model composes one of its length and plan, which it is told and has to keep by itself:
nothing is cut. Beside the model stand others: an untrained one of its sizes, bars drawn at random from the training
songs, which are real bars without a song, and whole training songs, which no model can be expected to surpass. The
reference are the held-out songs themselves, in the autoencoder's latents.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from midisynth.datasets.audio_pairs import Part
from midisynth.errors import DataError, UsageError
from midisynth.evaluation import PREDICTION
from midisynth.metrics.phrases import length_accuracy, memorisation
from midisynth.metrics.structure import centred_bars, self_similarity, slot_means
from midisynth.models.phrase_ldm.codec import phrases_of
from midisynth.models.phrase_ldm.composing import Request, decode_songs, sample_latents, song_end
from midisynth.models.phrase_ldm.remiz import Bar
from midisynth.models.phrase_ldm.sections import MAX_SECTIONS, parse_sections
from midisynth.models.phrase_ldm.song_scores import (
    HELD_OUT,
    LENGTH_BUCKET,
    RANDOM_BARS,
    TRAINING,
    UNTRAINED,
    KnownSong,
    SongScores,
    melody_program,
    melody_words,
    structure_scores,
)
from midisynth.models.phrase_ldm.texts import parse
from midisynth.models.phrase_ldm.vocabulary import BAR, to_text
from midisynth.module import Item, Noise

if TYPE_CHECKING:
    from midisynth.models.phrase_ldm.ldm import PhraseDenoiser
    from midisynth.models.phrase_ldm.model import PhraseLdm


@dataclass
class Composed:
    """What the model made.

    Attributes:
        latents: [bars * slots, latent] float32 on the CPU, of the autoencoder's scale, up to the end of the song.
        bars: The same as music.
        dropped: Tokens that say nothing, by their letter.
        repaired: Faults in the structure of bars, by their kind.
        tokens: How many tokens it wrote.
    """

    latents: Tensor
    bars: list[Bar]
    dropped: Counter[str]
    repaired: Counter[str]
    tokens: int


class HeldOutSongs(Dataset[Mapping[str, Tensor]]):
    """Songs with their "number".

    Args:
        songs: As for validation.
    """

    def __init__(self, songs: Dataset[Mapping[str, Tensor]]):
        self._songs = songs

    def __len__(self) -> int:
        return len(self._songs)  # type: ignore[arg-type]

    def __getitem__(self, number: int) -> Mapping[str, Tensor]:
        return {**self._songs[number], "number": torch.tensor(number)}


def known_songs(parts: Sequence[Part]) -> list[KnownSong]:
    """All songs of prepared corpora, in their order and their own key."""
    songs = []
    for part in parts:
        for prepared in part.prepared:
            arrays = prepared.arrays()
            latents = arrays["latents"]
            text = " ".join(to_text(phrase.tolist()) for phrase in phrases_of(arrays))
            name = f"{part.name}/{prepared.record.id}"
            own_key = torch.from_numpy(latents[len(latents) // 2].copy())
            plan = str(arrays["sections"])
            sections = tuple(parse_sections(plan)) if plan else ()
            songs.append(KnownSong(name, own_key, parse(text).bars, sections))
    return songs


def shortened(song: KnownSong, bars: int, slots: int) -> KnownSong:
    """The first bars of a song, and those of its sections that are whole and not more than a model takes."""
    ends = np.cumsum([section.bars for section in song.sections])
    sections = song.sections[: int((ends <= bars).sum())][:MAX_SECTIONS]
    return song._replace(latents=song.latents[: bars * slots], bars=song.bars[:bars], sections=sections)


class Examiner:
    """Has a model compose, and measures songs.

    Args:
        model: In evaluation mode.
        training: Songs that it was trained on.
        held_out: Songs that it was not trained on, in the order of the test.
        untrained: Measure an untrained model of the same sizes as well.
        seed: Of the noise, of the choice of bars and of the weights of the untrained model. What is drawn for a
            held-out song depends on it and on nothing else.

    Raises:
        DataError: There are no training songs to compare with.
        UsageError: The model is set to work on other songs.
    """

    def __init__(
        self,
        model: PhraseLdm,
        training: Sequence[KnownSong],
        held_out: Sequence[KnownSong],
        untrained: bool = True,
        seed: int = 0,
    ):
        if not training:
            raise DataError("a test looks for songs in those of training, of which the corpora have none")
        if model.hparams.mode != "compose":
            raise UsageError(f"mode is {model.hparams.mode}: a test composes new songs, leave mode out")
        self._model, self._training, self._held_out, self._seed = model, training, held_out, seed
        self._slots = model.hparams.slots
        self._means = slot_means([song.latents for song in training], self._slots)
        self._composers: dict[str, PhraseDenoiser] = {PREDICTION: model.network}
        if untrained:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self._composers[UNTRAINED] = model.new_network().to(model.device).eval()
        self.program = melody_program(training)
        self._melodies = [melody_words(song.bars, self.program) for song in training]
        self._bars = [(song, bar) for song in training for bar in range(len(song.bars))]

    def measure(self, batch: Mapping[str, Tensor]) -> list[SongScores]:
        """Scores of a batch of held-out songs and of what stands beside them.

        Args:
            batch: Examples of `HeldOutSongs`. The model is told the lengths, plans and layouts that it was trained to
                be told.
        """
        numbers = batch["number"].tolist()
        known = [
            shortened(self._held_out[number], bars, self._slots)
            for number, bars in zip(numbers, batch["bars"].tolist(), strict=True)
        ]
        noise = Noise([Item(None, Path(), song.name) for song in known], self._seed)
        requests = [self._request(song) for song in known]
        made = {
            row: self._read(sample_latents(self._model, requests, noise, network))
            for row, network in self._composers.items()
        }
        return [
            self._measured(number, song, {row: songs[place] for row, songs in made.items()})
            for place, (number, song) in enumerate(zip(numbers, known, strict=True))
        ]

    def _request(self, song: KnownSong) -> Request:
        told = self._model.conditions
        return Request(
            None,
            len(song.bars) if told else 0,
            song.sections if "sections" in told else (),
            torch.zeros(self._model.network.rows, dtype=torch.bool),
            layout=self._layout(song),
            cut=False,
        )

    def _layout(self, song: KnownSong) -> tuple[tuple[int, ...], ...]:
        """Programs of every bar; nothing where the model cannot be told them."""
        if "layout" not in self._model.conditions:
            return ()
        layout = layout_of(song.bars)
        return layout if {p for bar in layout for p in bar} <= set(self._model.layout_ids.programs) else ()

    def _read(self, latents: Tensor) -> list[Composed]:
        """Songs of latents [songs, rows, latent] of the autoencoder's scale, each as long as it says it is."""
        model = self._model
        songs = [rows[: song_end(model, rows) * self._slots] for rows in latents]
        made = []
        for rows, texts in zip(songs, decode_songs(model.vae, songs), strict=True):
            decoded = model.codec.decode_texts(texts)
            count = min(len(decoded.bars) * self._slots, len(rows))
            tokens = sum(len(text.split()) for text in texts[:count])
            bars = decoded.bars[: count // self._slots]
            made.append(Composed(rows[:count].float().cpu(), bars, decoded.dropped, decoded.repaired, tokens))
        return made

    def _measured(self, number: int, song: KnownSong, composed: Mapping[str, Composed]) -> SongScores:
        wanted_bars, layout = len(song.bars), self._layout(song)
        generator = np.random.default_rng([self._seed, zlib.crc32(song.name.encode())])
        drawn = self._random_bars(wanted_bars, generator)
        training = shortened(self._training[number % len(self._training)], self._model.hparams.max_bars, self._slots)
        latents = {row: one.latents for row, one in composed.items()}
        latents |= {RANDOM_BARS: drawn.latents, TRAINING: training.latents, HELD_OUT: song.latents}
        music = {row: one.bars for row, one in composed.items()} | {RANDOM_BARS: drawn.bars, HELD_OUT: song.bars}
        scores = {
            row: structure_scores(values, self._means, training.sections if row == TRAINING else song.sections)
            for row, values in latents.items()
        }
        for row, bars in music.items():
            scores[row] |= self._memory(bars)
            notes = sum(len(track.notes) for bar in bars for track in bar.tracks)
            scores[row]["notes_per_bar"] = notes / max(len(bars), 1)
            if layout:
                same = (set(one) == set(other) for one, other in zip(layout_of(bars), layout, strict=False))
                scores[row]["layout_accuracy"] = sum(same) / wanted_bars
        for row, one in composed.items():
            scores[row] |= {
                "dropped": sum(one.dropped.values()) / max(one.tokens, 1),
                "repaired": sum(one.repaired.values()) / max(len(one.bars), 1),
                "length_accuracy": length_accuracy([len(one.bars)], [wanted_bars], LENGTH_BUCKET),
                "length_error": abs(len(one.bars) - wanted_bars),
            }
        model = composed[PREDICTION]
        return SongScores(
            song.name,
            latents,
            scores,
            song.sections,
            wanted_bars,
            model.dropped,
            model.repaired,
            self.program,
            self_similarity(centred_bars(model.latents, self._means)),
        )

    def _random_bars(self, count: int, generator: np.random.Generator) -> KnownSong:
        chosen = [self._bars[index] for index in generator.integers(len(self._bars), size=count)]
        slots = self._slots
        latents = [song.latents[bar * slots : (bar + 1) * slots] for song, bar in chosen]
        return KnownSong(RANDOM_BARS, torch.cat(latents), [song.bars[bar] for song, bar in chosen])

    def _memory(self, bars: Sequence[Bar]) -> dict[str, float]:
        """How much of its melody is from the training songs; nothing where there are no two melodies to compare."""
        words = melody_words(bars, self.program)
        if all(word == BAR for word in words) or len(self._melodies) < 2:
            return {}
        found = memorisation(words, self._melodies)
        return {"copied": found.rate, "top2_ratio": found.ratio, "memorised": float(found.memorised)}


def layout_of(bars: Sequence[Bar]) -> tuple[tuple[int, ...], ...]:
    """Programs of every bar, in the order of its tracks."""
    return tuple(tuple(track.program for track in bar.tracks) for bar in bars)
