"""Structure of songs from the latents of their bars: what returns, what sounds alike, where the song ends.

Ou and Wang (2025) compare bars by the cosine of their mean latents (`bar_vectors`). Bar lines and empty slots are the
same latents in all of them, and phrases have much in common: bars of different songs are at 0.5 already, so that with
their threshold half of all pairs count as alike. `centred_bars` takes what is common off and keeps slots apart; there
bars that have nothing to do with each other are at 0, and `ALIKE` tells bars that return from others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from midisynth.metrics.frechet import Gaussian, frechet_distance

#: Cosine from which on bars are alike that `centred_bars` describes, and those that `bar_vectors` does, as published.
ALIKE, PUBLISHED_ALIKE = 0.8, 0.5


def ngrams(songs: Sequence[Tensor], n: int) -> Tensor:
    """Every n neighbours of a song as one vector.

    Args:
        songs: Latents of each, [latents, dim]; those with fewer than `n` have none.
        n: Number of neighbours.

    Returns:
        [n-grams, n * dim].
    """
    windows = [song.unfold(0, n, 1).transpose(1, 2).flatten(1) for song in songs if len(song) >= n]
    return torch.cat(windows) if windows else torch.empty(0, n * songs[0].shape[1])


def latent_distance(generated: Sequence[Tensor], real: Sequence[Tensor], n: int = 1, published: bool = False) -> float:
    """Fréchet distance of the latents of two sets of songs, or of their n-grams.

    Args:
        generated: Latents of each song [latents, dim], without what follows its end.
        real: The same.
        n: Number of neighbours that are looked at together.
        published: As Ou and Wang (2025) evaluate: the square root of the product of both covariances comes from an
            eigensolver for symmetric matrices, which the product is not, and sees the lower triangle alone; covariances
            of n-grams divide by their number.
    """
    covariance = "population" if published and n > 1 else "sample"
    first, second = (Gaussian.of(ngrams(songs, n), covariance) for songs in (generated, real))
    if not published:
        return float(frechet_distance(first, second))
    roots = torch.linalg.eigvalsh(first.covariance @ second.covariance, UPLO="L").clamp(min=0).sqrt()
    traces = first.covariance.trace() + second.covariance.trace()
    return float((first.mean - second.mean).square().sum() + traces - 2 * roots.sum())


def bar_vectors(latents: Tensor, slots: int = 4) -> Tensor:
    """Mean latent of every bar: [bars * slots, dim] -> [bars, dim]."""
    return latents.unflatten(0, (-1, slots)).mean(dim=1)


def slot_means(songs: Sequence[Tensor], slots: int = 4) -> Tensor:
    """What the bars of songs have in common.

    Args:
        songs: Latents of each, [bars * slots, dim]; at least one bar in all.
        slots: Latents of a bar.

    Returns:
        Mean latent of every slot, [slots, dim].
    """
    return torch.cat([song.unflatten(0, (-1, slots)) for song in songs]).mean(dim=0)


def centred_bars(latents: Tensor, means: Tensor) -> Tensor:
    """What distinguishes every bar: its slots side by side, less what they have in common with those of other songs.

    Args:
        latents: [bars * slots, dim].
        means: [slots, dim], see `slot_means`.

    Returns:
        [bars, slots * dim].
    """
    return (latents.unflatten(0, (-1, len(means))) - means).flatten(1)


def self_similarity(vectors: Tensor) -> Tensor:
    """Cosine of every two of [bars, dim]: [bars, bars]."""
    unit = F.normalize(vectors, dim=-1)
    return unit @ unit.T


def section_recurrence(similarity: Tensor, threshold: float = PUBLISHED_ALIKE, min_bars: int = 4) -> float:
    """Section recurrence score: how many bars are in passages that return, per bar of the song.

    A passage that returns after k bars is a run of bright cells on diagonal k. Runs beside which diagonal k + 1 is
    bright as well belong to a patch of like bars, and do not count.

    Args:
        similarity: [bars, bars].
        threshold: What is at least as similar is bright.
        min_bars: Shortest passage.
    """
    bright = similarity >= threshold
    found = 0
    for lag in range(1, len(bright)):
        beside = bright.diagonal(lag + 1)
        for start, end in _runs(bright.diagonal(lag)):
            if end - start >= min_bars and not beside[start:end].any():
                found += end - start
    return found / len(bright)


def _runs(cells: Tensor) -> list[tuple[int, int]]:
    """First and one past the last index of every run of True in [cells] bool."""
    edges = torch.diff(F.pad(cells.int(), (1, 1)))
    starts, ends = ((edges == sign).nonzero().flatten().tolist() for sign in (1, -1))
    return list(zip(starts, ends, strict=True))


def recurrence_by_lag(similarity: Tensor, threshold: float = PUBLISHED_ALIKE) -> float:
    """Sum over lags of the share of bars that are at least as similar as `threshold` to the one after the lag."""
    bright = (similarity >= threshold).double()
    return float(sum(bright.diagonal(lag).mean() for lag in range(1, len(bright))))


def bright_ratio(similarity: Tensor, threshold: float = PUBLISHED_ALIKE) -> float:
    """Pairs of bars that are at least as similar as `threshold`, per bar."""
    return float((similarity >= threshold).triu(1).sum() / len(similarity))


def section_similarity(similarity: Tensor, sections: Sequence[tuple[str, int, int]]) -> tuple[float, float]:
    """How alike sections are that a plan says are the same, and those that it says differ.

    Sections are compared bar by bar from their first bars on, as far as the shorter one goes.

    Args:
        similarity: [bars, bars].
        sections: Kind, first bar and the bar after the last of each; what lies beyond the song is left out.

    Returns:
        Mean similarity of bars of sections of one kind, and of different kinds; NaN where there are no such two.
    """
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    for (kind, start, end), (other_kind, other_start, other_end) in combinations(sections, 2):
        bars = min(end - start, other_end - other_start, len(similarity) - other_start)
        if bars > 0:
            found[kind == other_kind].append(
                similarity[start : start + bars, other_start : other_start + bars].diagonal()
            )
    same, other = (float(torch.cat(cells).mean()) if cells else math.nan for cells in (found[True], found[False]))
    return same, other


def mean_distance(vectors: Tensor) -> float:
    """Mean Euclidean distance of every two of [vectors, dim]: how diverse they are."""
    return float(torch.pdist(vectors.double()).mean())


def song_bars(
    latents: Tensor, slots: int = 4, end: Tensor | None = None, threshold: float = 0.95, min_bars: int = 4
) -> int:
    """Where a song ends whose latents are padded.

    Args:
        latents: [bars * slots, dim].
        slots: Latents of a bar.
        end: [dim] latent that stands for the end; None: the last bar is padding if the one before it is like it.
        threshold: Cosine from which on a bar is like the padding.
        min_bars: Shortest song.

    Returns:
        Number of bars before the padding.
    """
    vectors = bar_vectors(latents, slots)
    padding = vectors[-1] if end is None else end
    like = F.cosine_similarity(vectors, padding[None]) >= threshold
    bars = len(vectors) - int(like.flip(0).long().cumprod(0).sum())
    if end is None and bars == len(vectors) - 1:
        bars = len(vectors)
    return max(bars, min(min_bars, len(vectors)))
