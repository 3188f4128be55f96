"""Structure of songs from the latents of their bars: what returns, what sounds alike, where the song ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from midisynth.metrics.frechet import Gaussian, frechet_distance


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


def self_similarity(vectors: Tensor) -> Tensor:
    """Cosine of every two of [bars, dim]: [bars, bars]."""
    unit = F.normalize(vectors, dim=-1)
    return unit @ unit.T


def section_recurrence(similarity: Tensor, threshold: float = 0.5, min_bars: int = 4) -> float:
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


def recurrence_by_lag(similarity: Tensor, threshold: float = 0.5) -> float:
    """Sum over lags of the share of bars that are at least as similar as `threshold` to the one after the lag."""
    bright = (similarity >= threshold).double()
    return float(sum(bright.diagonal(lag).mean() for lag in range(1, len(bright))))


def bright_ratio(similarity: Tensor, threshold: float = 0.5) -> float:
    """Pairs of bars that are at least as similar as `threshold`, per bar."""
    return float((similarity >= threshold).triu(1).sum() / len(similarity))


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
