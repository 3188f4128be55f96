"""What is measured of songs of a test: their structure, their melodies, their form; and what that says of a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from midisynth.evaluation import PREDICTION
from midisynth.metrics.structure import (
    ALIKE,
    bar_vectors,
    bright_ratio,
    centred_bars,
    latent_distance,
    mean_distance,
    ngrams,
    recurrence_by_lag,
    section_recurrence,
    section_similarity,
    self_similarity,
)
from midisynth.models.phrase_ldm.operations import melody
from midisynth.models.phrase_ldm.remiz import Bar, Track
from midisynth.models.phrase_ldm.sections import Section, spans
from midisynth.models.phrase_ldm.texts import phrase_text
from midisynth.models.phrase_ldm.vocabulary import BAR
from midisynth.pictures import draw_similarity
from midisynth.summaries import Summary

#: A model of the same sizes as the tested one.
UNTRAINED = "untrained"
#: Real bars in no order.
RANDOM_BARS = "random bars"
TRAINING = "training songs"
HELD_OUT = "held-out songs"
ROWS = (PREDICTION, UNTRAINED, RANDOM_BARS, TRAINING, HELD_OUT)
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
    "recurrence_published": "published",
}
PLAN = {"same_section": "same", "other_section": "different", "plan_contrast": "contrast"}
MEMORY = {"copied": "MMR", "top2_ratio": "T2R", "memorised": "memorised"}
FORM = {
    "length_accuracy": "length",
    "length_error": "bars off",
    "bars": "bars",
    "layout_accuracy": "layout",
    "dropped": "dropped",
    "repaired": "repaired",
    "notes_per_bar": "notes a bar",
}


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
class SongScores:
    """What is kept of one song of a test.

    Attributes:
        name: Of the held-out song.
        latents: By row, [bars * slots, latent].
        scores: By row.
        sections: Plan of the held-out song.
        wanted_bars: Length of the held-out song.
        dropped: See `Composed`.
        repaired: See `Composed`.
        program: See `melody_words`.
        similarity: [bars, bars] of the model's song.
    """

    name: str
    latents: dict[str, Tensor]
    scores: dict[str, dict[str, float]]
    sections: tuple[Section, ...]
    wanted_bars: int
    dropped: Counter[str]
    repaired: Counter[str]
    program: int | None
    similarity: Tensor


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


def structure_scores(latents: Tensor, means: Tensor, sections: Sequence[Section] = ()) -> dict[str, float]:
    """Structure of one song, see `midisynth.metrics.structure`; nothing of songs shorter than two bars.

    Args:
        latents: [bars * slots, latent].
        means: [slots, latent], what its bars have in common with those of other songs.
        sections: Its plan, or the one that it should have.
    """
    published = bar_vectors(latents, len(means))
    if len(published) < 2:
        return {"bars": len(published)}
    similarity = self_similarity(centred_bars(latents, means))
    scores = {
        "recurrence": section_recurrence(similarity, ALIKE),
        "recurrence_published": section_recurrence(self_similarity(published)),
        "by_lag": recurrence_by_lag(similarity, ALIKE),
        "bright": bright_ratio(similarity, ALIKE),
        "diversity": mean_distance(published),
        "bars": len(published),
    }
    if sections:
        same, other = section_similarity(similarity, spans(sections))
        scores |= {"same_section": same, "other_section": other, "plan_contrast": same - other}
    return scores


def summarize(songs: Sequence[SongScores], pictures: int) -> Summary:
    """Scores of all songs of a test.

    Args:
        songs: What was kept of each.
        pictures: Draw so many songs.
    """
    rows = [row for row in ROWS if row in songs[0].scores]
    names = {name for one in songs for row in one.scores.values() for name in row}
    scores = {row: _means(songs, row, sorted(names)) for row in rows}
    real = [one.scores[HELD_OUT].get("recurrence", math.nan) for one in songs]
    for row in rows[:-1]:
        scores[row]["recurrence_gap"] = _gap([one.scores[row].get("recurrence", math.nan) for one in songs], real)
    unknown = []
    for n in NGRAMS:
        reference = [one.latents[HELD_OUT] for one in songs]
        for row in rows[:-1]:
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
            "similarity of sections that the plan says are the same, and different": PLAN,
            "melodies of the training songs": MEMORY,
            "form": FORM,
        },
        ("fid_1", "recurrence", "recurrence_gap", "plan_contrast", *MEMORY, *FORM),
        (
            ("song", "row", "wanted_bars", *sorted(names)),
            [
                (one.name, row, one.wanted_bars, *(one.scores[row].get(name, math.nan) for name in sorted(names)))
                for one in songs
                for row in rows
            ],
        ),
        remarks,
        {**faults, "songs": [one.name for one in songs]},
        [draw_similarity(one.similarity, one.sections) for one in songs[:pictures]],
    )


def _means(songs: Sequence[SongScores], row: str, names: Sequence[str]) -> dict[str, float]:
    found = {name: [one.scores[row].get(name, math.nan) for one in songs] for name in names}
    known = {name: [value for value in values if not math.isnan(value)] for name, values in found.items()}
    return {name: float(np.mean(values)) if values else math.nan for name, values in known.items()}


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
