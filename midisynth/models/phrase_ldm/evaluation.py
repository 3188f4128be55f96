"""What a test measures of composed songs: how near they are to songs that people wrote, and whose they are.

For every held-out song the model composes one of its length and plan. Beside the model stand two others: bars drawn at
random from the training songs, which are real bars without a song, and whole training songs, which no model can be
expected to surpass. The reference are the held-out songs themselves, in the autoencoder's latents.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from midisynth.datasets.audio_pairs import Part
from midisynth.errors import DataError, UsageError
from midisynth.evaluation import PREDICTION
from midisynth.metrics.phrases import length_accuracy, memorisation
from midisynth.metrics.structure import (
    bar_vectors,
    bright_ratio,
    latent_distance,
    mean_distance,
    ngrams,
    recurrence_by_lag,
    section_recurrence,
    self_similarity,
)
from midisynth.models.phrase_ldm.codec import phrases_of
from midisynth.models.phrase_ldm.composing import Request, sample_latents
from midisynth.models.phrase_ldm.operations import melody
from midisynth.models.phrase_ldm.remiz import Bar, Track
from midisynth.models.phrase_ldm.sections import MAX_SECTIONS, Section, parse_sections
from midisynth.models.phrase_ldm.texts import parse, phrase_text
from midisynth.models.phrase_ldm.vocabulary import BAR, to_text
from midisynth.module import Item, Noise
from midisynth.pictures import draw_similarity
from midisynth.summaries import Summary

if TYPE_CHECKING:
    from midisynth.models.phrase_ldm.model import PhraseLdm

#: Real bars in no order.
RANDOM_BARS = "random bars"
TRAINING = "training songs"
HELD_OUT = "held-out songs"
ROWS = (PREDICTION, RANDOM_BARS, TRAINING, HELD_OUT)
#: Neighbours that Fréchet distances look at together (Ou and Wang 2025).
NGRAMS = (1, 2, 4, 8, 16, 32)
#: Program of the melody in POP909.
MELODY_PROGRAM = 13
#: Bars that count as one length.
LENGTH_BUCKET = 10
STRUCTURE = {
    "recurrence": "recurrence",
    "recurrence_gap": "gap",
    "by_lag": "by lag",
    "bright": "bright",
    "diversity": "diversity",
    "bars": "bars",
}
MEMORY = {"copied": "MMR", "top2_ratio": "T2R", "memorised": "memorised"}
FORM = {"length_accuracy": "length", "dropped": "dropped", "repaired": "repaired", "notes_per_bar": "notes a bar"}


class KnownSong(NamedTuple):
    """A song of a corpus.

    Attributes:
        name: Unique.
        latents: [bars * slots, latent] float32, of the autoencoder's scale.
        bars: Its bars.
        sections: Its plan, perhaps nothing.
    """

    name: str
    latents: Tensor
    bars: list[Bar]
    sections: tuple[Section, ...] = ()


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


@dataclass
class SongScores:
    """What is kept of one song of a test.

    Attributes:
        name: Of the held-out song.
        latents: By row, [bars * slots, latent].
        scores: By row.
        sections: Plan that the model was told.
        wanted_bars: Length of the held-out song.
        dropped: See `Composed`.
        repaired: See `Composed`.
        program: See `melody_words`.
    """

    name: str
    latents: dict[str, Tensor]
    scores: dict[str, dict[str, float]]
    sections: tuple[Section, ...]
    wanted_bars: int
    dropped: Counter[str]
    repaired: Counter[str]
    program: int | None


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


def melody_words(bars: Sequence[Bar], program: int | None) -> list[str]:
    """Words of a melody: tokens of its notes, and the lines between bars.

    Args:
        bars: Of a song.
        program: Plays the melody; None takes the highest notes that do not overlap, whoever plays them.
    """
    words = []
    for bar in bars:
        if program is None:
            tracks = [Track(0, line)] if (line := melody(bar, "line")) else []
        else:
            tracks = [track for track in bar.tracks if track.program == program]
        words += [word for track in tracks for word in phrase_text(track).split()]
        words.append(BAR)
    return words


def melody_program(songs: Sequence[KnownSong]) -> int | None:
    """`MELODY_PROGRAM` if it plays in most of the songs."""
    count = sum(any(track.program == MELODY_PROGRAM for bar in song.bars for track in bar.tracks) for song in songs)
    return MELODY_PROGRAM if 2 * count > len(songs) else None


def structure_scores(latents: Tensor, slots: int) -> dict[str, float]:
    """Structure of one song, see `midisynth.metrics.structure`; nothing of songs shorter than two bars.

    Args:
        latents: [bars * slots, latent].
        slots: Latents of a bar.
    """
    vectors = bar_vectors(latents, slots)
    if len(vectors) < 2:
        return {"bars": len(vectors)}
    similarity = self_similarity(vectors)
    return {
        "recurrence": section_recurrence(similarity),
        "by_lag": recurrence_by_lag(similarity),
        "bright": bright_ratio(similarity),
        "diversity": mean_distance(vectors),
        "bars": len(vectors),
    }


class Examiner:
    """Has a model compose, and measures songs.

    Args:
        model: In evaluation mode.
        training: Songs that it was trained on.
        held_out: Songs that it was not trained on, in the order of the test.
        seed: Of the noise and of the choice of bars, which depend on the held-out song and on nothing else.

    Raises:
        DataError: There are no training songs to compare with.
        UsageError: The model is set to work on other songs.
    """

    def __init__(self, model: PhraseLdm, training: Sequence[KnownSong], held_out: Sequence[KnownSong], seed: int = 0):
        if not training:
            raise DataError("a test looks for songs in those of training, of which the corpora have none")
        if model.hparams.mode != "compose":
            raise UsageError(f"mode is {model.hparams.mode}: a test composes new songs, leave mode out")
        self._model, self._training, self._held_out, self._seed = model, training, held_out, seed
        self._slots = model.hparams.slots
        self.program = melody_program(training)
        self._melodies = [melody_words(song.bars, self.program) for song in training]
        self._bars = [(song, bar) for song in training for bar in range(len(song.bars))]

    def measure(self, batch: Mapping[str, Tensor]) -> list[SongScores]:
        """Scores of a batch of held-out songs and of what stands beside them.

        Args:
            batch: Examples of `HeldOutSongs`. The model is told the lengths and plans that it was trained to be told.
        """
        known = [
            shortened(self._held_out[number], bars, self._slots)
            for number, bars in zip(batch["number"].tolist(), batch["bars"].tolist(), strict=True)
        ]
        noise = Noise([Item(None, Path(), song.name) for song in known], self._seed)
        latents = sample_latents(self._model, [self._request(song) for song in known], noise)
        return [
            self._measured(number, song, self._read(rows))
            for number, song, rows in zip(batch["number"].tolist(), known, latents, strict=True)
        ]

    def _request(self, song: KnownSong) -> Request:
        told = self._model.conditions
        return Request(
            None,
            len(song.bars) if told else 0,
            song.sections if "sections" in told else (),
            torch.zeros(self._model.network.rows, dtype=torch.bool),
        )

    def _read(self, latents: Tensor) -> Composed:
        """A song of latents [rows, latent] of the autoencoder's scale."""
        model = self._model
        texts = model.vae.decode(latents, model.vae.shortcuts())
        decoded = model.codec.decode_texts(texts)
        rows = min(len(decoded.bars) * self._slots, len(latents))
        tokens = sum(len(text.split()) for text in texts[:rows])
        bars = decoded.bars[: rows // self._slots]
        return Composed(latents[:rows].float().cpu(), bars, decoded.dropped, decoded.repaired, tokens)

    def _measured(self, number: int, song: KnownSong, composed: Composed) -> SongScores:
        wanted_bars = len(song.bars)
        generator = np.random.default_rng([self._seed, zlib.crc32(song.name.encode())])
        drawn = self._random_bars(wanted_bars, generator)
        training = self._training[number % len(self._training)]
        longest = self._model.hparams.max_bars
        latents = {
            PREDICTION: composed.latents,
            RANDOM_BARS: drawn.latents,
            TRAINING: shortened(training, longest, self._slots).latents,
            HELD_OUT: song.latents,
        }
        bars = {PREDICTION: composed.bars, RANDOM_BARS: drawn.bars, HELD_OUT: song.bars}
        scores = {row: structure_scores(values, self._slots) for row, values in latents.items()}
        for row, music in bars.items():
            scores[row] |= self._memory(music)
            notes = sum(len(track.notes) for bar in music for track in bar.tracks)
            scores[row]["notes_per_bar"] = notes / max(len(music), 1)
        scores[PREDICTION] |= {
            "dropped": sum(composed.dropped.values()) / max(composed.tokens, 1),
            "repaired": sum(composed.repaired.values()) / max(len(composed.bars), 1),
            "length_accuracy": length_accuracy([len(composed.bars)], [wanted_bars], LENGTH_BUCKET),
        }
        return SongScores(
            song.name,
            latents,
            scores,
            song.sections if "sections" in self._model.conditions else (),
            wanted_bars,
            composed.dropped,
            composed.repaired,
            self.program,
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


def summarize(songs: Sequence[SongScores], slots: int, pictures: int) -> Summary:
    """Scores of all songs of a test.

    Args:
        songs: What was kept of each.
        slots: Latents of a bar.
        pictures: Draw so many songs.
    """
    names = {name for one in songs for row in one.scores.values() for name in row}
    scores = {row: _means(songs, row, sorted(names)) for row in ROWS}
    real = [one.scores[HELD_OUT].get("recurrence", math.nan) for one in songs]
    for row in ROWS[:-1]:
        scores[row]["recurrence_gap"] = _gap([one.scores[row].get("recurrence", math.nan) for one in songs], real)
    unknown = []
    for n in NGRAMS:
        reference = [one.latents[HELD_OUT] for one in songs]
        for row in ROWS[:-1]:
            made = [one.latents[row] for one in songs]
            distance = _distance(made, reference, n)
            if math.isnan(distance) and n not in unknown:
                unknown.append(n)
            scores[row][f"fid_{n}"] = distance
    remarks = []
    if unknown:
        which = ", ".join(map(str, unknown))
        remarks.append(f"too few phrases for a Fréchet distance of {which} neighbours: test on more songs")
    faults = {name: dict(sum((getattr(one, name) for one in songs), Counter())) for name in ("dropped", "repaired")}
    program = songs[0].program
    melodies = "the highest notes" if program is None else f"those of program {program}"
    remarks.append(f"melodies are {melodies}")
    return Summary(
        f"{len(songs)} songs, one for each held-out song",
        scores,
        {
            "Fréchet distance from the held-out songs, of 1, 2, ... neighbouring phrases": {
                f"fid_{n}": str(n) for n in NGRAMS
            },
            "structure": STRUCTURE,
            "melodies of the training songs": MEMORY,
            "form": FORM,
        },
        ("fid_1", "recurrence", "recurrence_gap", "copied", "top2_ratio", "memorised", *FORM),
        (
            ("song", "row", "wanted_bars", *sorted(names)),
            [
                (one.name, row, one.wanted_bars, *(one.scores[row].get(name, math.nan) for name in sorted(names)))
                for one in songs
                for row in ROWS
            ],
        ),
        remarks,
        {**faults, "slots": slots, "songs": [one.name for one in songs]},
        similarity_figures(songs[:pictures], slots),
    )


def _means(songs: Sequence[SongScores], row: str, names: Sequence[str]) -> dict[str, float]:
    found = {name: [one.scores[row][name] for one in songs if name in one.scores[row]] for name in names}
    return {name: float(np.mean(values)) if values else math.nan for name, values in found.items()}


def _gap(first: Sequence[float], second: Sequence[float]) -> float:
    """Earth mover's distance of two sets of scores; NaN is left out."""
    from scipy.stats import wasserstein_distance

    first, second = ([value for value in side if not math.isnan(value)] for side in (first, second))
    return float(wasserstein_distance(first, second)) if first and second else math.nan


def _distance(made: Sequence[Tensor], reference: Sequence[Tensor], n: int) -> float:
    """Fréchet distance of n-grams; NaN where there are fewer than twice as many as they have dimensions."""
    needed = 2 * n * reference[0].shape[1]
    if min(len(ngrams(made, n)), len(ngrams(reference, n))) < needed:
        return math.nan
    return latent_distance(made, reference, n)


def similarity_figures(songs: Sequence[SongScores], slots: int) -> list[Any]:
    """Self-similarity of the model's songs, as matplotlib figures.

    Args:
        songs: Of a test.
        slots: Latents of a bar.
    """
    return [
        draw_similarity(self_similarity(bar_vectors(one.latents[PREDICTION], slots)), one.sections) for one in songs
    ]
