"""Augmentation of whole songs: their sections or bars in another order.

An arrangement names bars of the song, so that it holds for latents (four rows a bar), instrument layouts and texts
alike; its sections say what the result consists of, which the original leaves as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from midisynth.models.phrase_ldm.sections import Section, spans


@dataclass(frozen=True)
class Arrangement:
    """Bars of a song in a new order.

    Attributes:
        bars: Indices into the bars of the song.
        sections: The new sections; none where bars went their own way.
    """

    bars: tuple[int, ...]
    sections: tuple[Section, ...] = ()

    def rows(self, slots: int) -> np.ndarray:
        """Indices of phrases or latents, [bars * slots] int64.

        Args:
            slots: Phrases in a bar, its end among them.
        """
        return (np.array(self.bars, np.int64)[:, None] * slots + np.arange(slots)).reshape(-1)


def _of_sections(sections: Sequence[Section], order: Sequence[int]) -> Arrangement:
    places = spans(sections)
    bars = tuple(bar for index in order for bar in range(places[index][1], places[index][2]))
    return Arrangement(bars, tuple(sections[index] for index in order))


def permuted_sections(sections: Sequence[Section], max_bars: int, generator: np.random.Generator) -> Arrangement:
    """All sections and, until the next would be too much, random ones again, in random order.

    Args:
        sections: Of the song.
        max_bars: Longest result.
        generator: Makes the choices.
    """
    order = list(range(len(sections)))
    total = sum(section.bars for section in sections)
    while total < max_bars:
        index = int(generator.integers(len(sections)))
        total += sections[index].bars
        if total > max_bars:
            break
        order.append(index)
    return _of_sections(sections, generator.permutation(order).tolist())


def section_subset(sections: Sequence[Section], generator: np.random.Generator) -> Arrangement:
    """The first and the last section, and a random choice of at least one of those between them, in their order."""
    body = len(sections) - 2
    if body < 1:
        return _of_sections(sections, range(len(sections)))
    chosen = 1 + generator.choice(body, size=int(generator.integers(1, body + 1)), replace=False)
    return _of_sections(sections, [0, *np.sort(chosen).tolist(), body + 1])


def permuted_bars(bars: int, max_bars: int, generator: np.random.Generator) -> Arrangement:
    """The song again and again until it has `max_bars`, its bars in random order."""
    return Arrangement(tuple(generator.permutation(np.arange(max(bars, max_bars)) % bars).tolist()))
