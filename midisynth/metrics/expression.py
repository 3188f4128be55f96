"""How one performance of a score differs from another: curves over the score, and numbers that compare them.

Plain functions on NumPy arrays. Deviation, KL divergence and correlation of tempo and velocity curves are measures of
Zhang et al. (2024, arXiv 2406.14850); where the published form measures something else than its name says, the default
is the right form, and `published` gives the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Tempo beyond is a pause or a slip of the alignment, no tempo (beats a minute).
TEMPO_RANGE_BPM = (15.0, 480.0)
#: Bounds of a deviation: relative to a value near zero it may be anything.
MAX_DEVIATION = 5.0
#: Points at which densities are compared.
GRID_POINTS = 512

# Score onsets closer than this are one onset (beats); beats of triplets differ by rounding alone.
_SAME_ONSET = 1e-4
_EVERYWHERE = 1e-3  # share of a density that is spread evenly
_ROUNDING, _SMALLEST = 1e-6, 1e-9  # differences that mean nothing, relative and absolute


def onset_groups(onset_beat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Notes that the score puts at one moment.

    Args:
        onset_beat: [notes] in beats, in any order.

    Returns:
        The distinct onsets [groups] in rising order, and the group of every note [notes].
    """
    _, first, group = np.unique(np.round(onset_beat / _SAME_ONSET), return_index=True, return_inverse=True)
    return onset_beat[first], group


def group_means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Mean of each group, [notes] -> [groups], leaving out NaN; NaN for a group without values.

    Args:
        values: [notes]; floating point keeps its precision.
        group: Group of every note, from `onset_groups`.
    """
    known = np.isfinite(values)
    groups = int(group.max(initial=-1)) + 1
    count = np.bincount(group[known], minlength=groups)
    total = np.bincount(group[known], values[known], minlength=groups)
    means = np.divide(total, count, out=np.full(groups, np.nan), where=count > 0)
    return means.astype(np.result_type(values, np.float32))


def tempo_curve(onset_beat: np.ndarray, beat_period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tempo over the score.

    Args:
        onset_beat: [notes] in beats.
        beat_period: [notes], seconds a beat at each note; NaN where it was not played.

    Returns:
        Onsets in beats and tempo in beats a minute, [groups] each.
    """
    beats, group = onset_groups(onset_beat)
    with np.errstate(divide="ignore"):
        return beats, 60 / group_means(beat_period, group)


def velocity_curve(onset_beat: np.ndarray, velocity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean velocity over the score.

    Args:
        onset_beat: [notes] in beats.
        velocity: [notes] in any unit; NaN where a note was not played.

    Returns:
        Onsets in beats, and velocity in the unit of the input, [groups] each.
    """
    beats, group = onset_groups(onset_beat)
    return beats, group_means(velocity, group)


def beat_periods(
    onset_beat: np.ndarray, onset_sec: np.ndarray, duration_beat: np.ndarray, duration_sec: np.ndarray
) -> np.ndarray:
    """Local tempo of every note: seconds from its onset to the next one, over beats between the two.

    All notes of an onset share the mean of their performed onsets. An onset that comes no later than an earlier one is
    put between its neighbours. The last onset is measured to where the last note ends.

    Args:
        onset_beat: [notes] in beats.
        onset_sec: [notes] in seconds; NaN where a note was not played.
        duration_beat: [notes] in beats.
        duration_sec: [notes] in seconds.

    Returns:
        [notes], seconds a beat; NaN at onsets of which no note was played.
    """
    beats, group = onset_groups(onset_beat)
    performed = group_means(onset_sec, group)
    played = np.flatnonzero(np.isfinite(performed))
    periods = np.full(len(beats), np.nan)
    if len(played) == 0:
        return periods[group]
    known = np.isfinite(onset_sec)
    end_beat = max(float((onset_beat + duration_beat)[known].max()), float(beats[played[-1]]))
    end_sec = float((onset_sec + duration_sec)[known].max())
    # A piece that ends with a grace note has no end in the score.
    if end_beat <= beats[played[-1]]:
        end_beat, end_sec = beats[played[-1]] + 1, max(end_sec, performed[played[-1]])
    score = np.append(beats[played], end_beat)
    seconds = np.append(performed[played], end_sec)
    rising = np.diff(np.maximum.accumulate(seconds), prepend=-np.inf) > 0
    periods[played] = np.diff(np.interp(score, score[rising], seconds[rising])) / np.diff(score)
    return periods[group]


def clip_tempo(bpm: np.ndarray) -> np.ndarray:
    """Tempo within `TEMPO_RANGE_BPM` (beats a minute)."""
    return np.clip(bpm, *TEMPO_RANGE_BPM)


def deviation(values: np.ndarray, reference: np.ndarray, scale: np.ndarray | float | None = None) -> float:
    """Mean of (values - reference) / scale, within +-`MAX_DEVIATION`; NaN where nothing can be compared.

    Signed: it tells faster from slower and louder from softer, and says nothing about fluctuations that even out.

    Args:
        values: [values].
        reference: Same shape; the performance, or the mean of several.
        scale: The reference itself when None, which suits what is never negative, such as tempo; else what the
            difference is measured in, such as the standard deviation of several performances.
    """
    values, reference = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = (values - reference) / (reference if scale is None else scale)
    relative = relative[np.isfinite(relative)]
    return float(np.clip(relative.mean(), -MAX_DEVIATION, MAX_DEVIATION)) if len(relative) else float("nan")


def correlation(values: np.ndarray, reference: np.ndarray) -> float:
    """Pearson correlation over what both have.

    Where the values are constant and the reference is not, it is 0: such a rendering follows nothing. Where the
    reference is constant it is NaN: there is nothing to follow.

    Args:
        values: [values].
        reference: Same shape.
    """
    values, reference = _paired(values, reference)
    if len(values) < 2 or is_constant(reference):
        return float("nan")
    if is_constant(values):
        return 0.0
    values, reference = values - values.mean(), reference - reference.mean()
    return float(np.clip(values @ reference / np.sqrt(values @ values * (reference @ reference)), -1, 1))


def _paired(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    known = np.isfinite(first) & np.isfinite(second)
    return first[known], second[known]


def density(values: np.ndarray, points: np.ndarray) -> np.ndarray | None:
    """Kernel estimate of a density: Gaussian, bandwidth by Scott's rule but no less than the distance of the points.

    A thousandth of it is spread evenly: what one of two performances never does is rare in it, not impossible.

    Args:
        values: [values]; NaN is left out.
        points: Evenly spaced, from `density_grid`.

    Returns:
        [points], of sum 1; None where all values are the same, or there are fewer than two: they have no density.
    """
    values = _finite(values)
    if len(values) < 2 or is_constant(values):
        return None
    step = points[1] - points[0]
    place = np.clip((values - points[0]) / step, 0, len(points) - 1)
    left = np.minimum(place.astype(np.intp), len(points) - 2)
    share = place - left
    counts = np.bincount(left, 1 - share, len(points)) + np.bincount(left + 1, share, len(points))
    bandwidth = max(values.std(ddof=1) * len(values) ** -0.2 / step, 1.0)
    kernel = np.exp(-0.5 * np.square(np.arange(1 - len(points), len(points)) / bandwidth))
    smooth = np.convolve(counts, kernel)[len(points) - 1 : 2 * len(points) - 1]
    return (1 - _EVERYWHERE) * smooth / smooth.sum() + _EVERYWHERE / len(points)


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64).ravel()
    return values[np.isfinite(values)]


def is_constant(values: np.ndarray) -> bool:
    """Whether values differ by rounding alone."""
    return bool(np.ptp(values) <= _ROUNDING * np.abs(values).max() + _SMALLEST)


def density_grid(samples: Sequence[np.ndarray], points: int = GRID_POINTS) -> np.ndarray:
    """Evenly spaced points over everything that the densities of some samples cover, [points].

    Args:
        samples: [values] each; NaN is left out.
        points: How many.
    """
    samples = [sample for sample in map(_finite, samples) if len(sample)]
    if not samples:
        return np.linspace(0.0, 1.0, points)
    # Three bandwidths beyond the last value the density is a hundredth of what that value adds.
    margins = [3 * sample.std() * len(sample) ** -0.2 for sample in samples]
    low = min(sample.min() - margin for sample, margin in zip(samples, margins, strict=True))
    high = max(sample.max() + margin for sample, margin in zip(samples, margins, strict=True))
    return np.linspace(low, max(high, low + _SMALLEST), points)


def divergence(first: np.ndarray | None, second: np.ndarray | None) -> float:
    """KL divergence of one density from another (nats), >= 0; NaN where one is missing.

    Args:
        first: From `density`, [points].
        second: At the same points.
    """
    if first is None or second is None:
        return float("nan")
    return max(0.0, float(first @ np.log(first / second)))


def kl_divergence(values: np.ndarray, reference: np.ndarray) -> float:
    """KL divergence of the distribution of some values from that of others (nats), by integration; >= 0.

    Both densities are estimates, see `density`, so two samples of one distribution are a little apart. Samples may
    differ in size; their order does not count.

    Args:
        values: [values]; NaN is left out.
        reference: [values] of another number.

    Returns:
        NaN where one side has no density.
    """
    points = density_grid([values, reference])
    return divergence(density(values, points), density(reference, points))


def published_kl_divergence(
    values: np.ndarray, reference: np.ndarray, points: np.ndarray | None = None, seed: int = 42
) -> float:
    """What is published as KL divergence: both densities at 300 points drawn from the first, made to add up to 1 each.

    Since the points are drawn from p and weighted by p again, it is no estimate of the divergence: p^2 decides, and
    on wide distributions it is several times too small. Comparable with published numbers alone.

    Args:
        values: [values].
        reference: [values] of another number.
        points: [points] to use in place of drawing them.
        seed: Of the drawing.

    Returns:
        -1 where one side has no density.
    """
    from scipy.stats import entropy, gaussian_kde

    try:
        first, second = gaussian_kde(_finite(values)), gaussian_kde(_finite(reference))
    except (ValueError, np.linalg.LinAlgError):
        return -1.0
    drawn = first.resample(300, seed=np.random.RandomState(seed)) if points is None else np.reshape(points, (1, -1))
    return float(entropy(first(drawn), second(drawn)))
