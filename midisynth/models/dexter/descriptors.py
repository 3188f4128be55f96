"""Seven perceptual features of a performance, from its notes alone, and how far a user wants them moved.

The published models were trained on predictions of a network that listens (Chowdhury and Widmer). These are closed-form
stand-ins for its seven features, computed in windows of 15 s around every fifth second:

| feature           | descriptor                                                                                      |
|-------------------|-------------------------------------------------------------------------------------------------|
| melodiousness     | mean of exp(-step / 5 semitones) along the top line                                             |
| articulation      | mean log2 of the duration / the time to the next onset                                          |
| rhythm_complexity | entropy (bits) of ratios of inter-onset times in half octaves + 0.25 log2(1 + onsets a second)  |
| rhythm_stability  | largest autocorrelation of the onsets at 0.2 to 1.2 s, in steps of 20 ms                        |
| dissonance        | mean roughness of intervals up to 2 octaves, weighted by the time that they sound                |
| tonal_stability   | best correlation with the key profiles of Krumhansl and Kessler (1982)                          |
| minorness         | best correlation with a minor profile less the best with a major one                            |
"""

from __future__ import annotations

import numpy as np

from midisynth.models.dexter.sounding import ROUGHNESS
from midisynth.music.alignment import AlignedPerformance
from midisynth.music.score_notes import Score, deadpan

MIDLEVEL = (
    "melodiousness",
    "articulation",
    "rhythm_complexity",
    "rhythm_stability",
    "dissonance",
    "tonal_stability",
    "minorness",
)

_WINDOW_SEC, _HOP_SEC = 15.0, 5.0
_FEWEST_NOTES = 4  # of which something can be said
_CHORD_SEC = 0.05  # notes that begin within it are one onset
_STEP_SEC = 0.02
_SHORTEST_LAG, _LONGEST_LAG = 10, 60  # steps: 0.2 to 1.2 s
_WIDEST_INTERVAL = 24  # semitones

# Krumhansl and Kessler, "Tracing the dynamic changes in perceived tonal organization" (1982): probe tone ratings.
_MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
_MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)


def describe(onset: np.ndarray, duration: np.ndarray, pitch: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
    """The features at some times, interpolated between windows.

    Args:
        onset: Of each note (seconds), [notes], at least one.
        duration: For which each key is down (seconds), [notes].
        pitch: MIDI key number of each note, [notes].
        at: Times to describe (seconds), [times]; the onsets when None.

    Returns:
        [times, 7] float32, in the order of `MIDLEVEL`.
    """
    at = onset if at is None else at
    order = np.argsort(onset, kind="stable")
    onset, duration, pitch = onset[order], duration[order], pitch[order]
    centres = np.arange(onset[0], onset[-1] + _HOP_SEC, _HOP_SEC)
    first = np.searchsorted(onset, centres - _WINDOW_SEC / 2)
    last = np.searchsorted(onset, centres + _WINDOW_SEC / 2)
    enough = last - first >= min(_FEWEST_NOTES, len(onset))
    frames = [
        _describe_window(onset[a:b], duration[a:b], pitch[a:b])
        for a, b in zip(first[enough].tolist(), last[enough].tolist(), strict=True)
    ]
    if not frames:  # nowhere are there enough notes: all of them are one window
        return np.tile(np.float32(_describe_window(onset, duration, pitch)), (len(at), 1))
    columns = np.array(frames).T
    return np.stack([np.interp(at, centres[enough], column) for column in columns], axis=1).astype(np.float32)


def describe_score(score: Score) -> np.ndarray:
    """The features of the page, played to the letter, [notes, 7] float32."""
    notes = deadpan(score).notes
    return describe(notes["onset_sec"], notes["duration_sec"], notes["pitch"])


def describe_aligned(aligned: AlignedPerformance) -> np.ndarray:
    """The features of a performance at the notes of its score, [notes, 7] float32; see `played_onsets`."""
    notes = aligned.performance.notes
    return describe(notes["onset_sec"], notes["duration_sec"], notes["pitch"], played_onsets(aligned))


def played_onsets(aligned: AlignedPerformance) -> np.ndarray:
    """When each note of the score was played (seconds), [notes]; where it was not, when it would have been."""
    rows, played = aligned.pairs[:, 0], aligned.performance.notes["onset_sec"][aligned.pairs[:, 1]]
    order = np.argsort(rows)
    beats = aligned.score.notes["onset_beat"]
    onsets = np.interp(beats, beats[rows[order]], played[order])
    onsets[rows] = played
    return onsets


def _describe_window(onset: np.ndarray, duration: np.ndarray, pitch: np.ndarray) -> tuple[float, ...]:
    """The features of some notes, sorted by onset."""
    starts = onset[np.append(True, np.diff(onset) > _CHORD_SEC)]
    tonal, minorness = _tonality(duration, pitch)
    return (
        _melodiousness(onset, duration, pitch),
        _articulation(onset, duration, starts),
        _complexity(starts),
        _stability(onset),
        _dissonance(onset, duration, pitch),
        tonal,
        minorness,
    )


def _melodiousness(onset: np.ndarray, duration: np.ndarray, pitch: np.ndarray) -> float:
    begins = onset[:, None] + _CHORD_SEC
    sounds = (onset < begins) & (onset + duration > begins)
    top = pitch >= np.where(sounds | np.eye(len(onset), dtype=bool), pitch, -1).max(1)
    steps = np.abs(np.diff(pitch[top]))
    return float(np.exp(-steps / 5).mean()) if len(steps) else 1.0


def _articulation(onset: np.ndarray, duration: np.ndarray, starts: np.ndarray) -> float:
    following = np.searchsorted(starts, onset + _CHORD_SEC, side="right")
    known = following < len(starts)
    if not known.any():
        return 0.0
    ratio = np.maximum(duration[known], 0.01) / (starts[following[known]] - onset[known])
    return float(np.clip(np.log2(ratio), -4, 4).mean())


def _complexity(starts: np.ndarray) -> float:
    steps = np.diff(starts)
    density = len(starts) / max(starts[-1] - starts[0], 1.0)
    if len(steps) < 2:
        return 0.25 * float(np.log2(1 + density))
    _, counts = np.unique(np.rint(2 * np.log2(steps[1:] / steps[:-1])), return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum() + 0.25 * np.log2(1 + density))


def _stability(onset: np.ndarray) -> float:
    train = np.zeros(int((onset[-1] - onset[0]) / _STEP_SEC) + 1 + _LONGEST_LAG)
    np.add.at(train, ((onset - onset[0]) / _STEP_SEC).astype(np.int64), 1.0)
    # An onset at the border of two steps is in both.
    train = np.convolve(np.minimum(train, 1.0), (0.5, 1.0, 0.5), "same")
    train -= train.mean()
    spectrum = np.fft.rfft(train, 2 * len(train))
    correlation = np.fft.irfft(spectrum * spectrum.conj())
    return float(correlation[_SHORTEST_LAG : _LONGEST_LAG + 1].max() / correlation[0])


def _dissonance(onset: np.ndarray, duration: np.ndarray, pitch: np.ndarray) -> float:
    ends = onset + duration
    overlap = np.maximum(np.minimum(ends[:, None], ends) - np.maximum(onset[:, None], onset), 0.0)
    interval = np.abs(pitch[:, None] - pitch)
    weight = np.where((interval > 0) & (interval <= _WIDEST_INTERVAL), overlap, 0.0)
    total = weight.sum()
    classes = np.minimum(interval % 12, -interval % 12)
    return float((weight * ROUGHNESS[classes]).sum() / total) if total > 0 else 0.0


def _tonality(duration: np.ndarray, pitch: np.ndarray) -> tuple[float, float]:
    """Tonal stability and minorness."""
    histogram = np.bincount(pitch % 12, duration, 12)
    histogram = histogram - histogram.mean()
    norm = np.linalg.norm(histogram)
    if norm == 0:
        return 0.0, 0.0
    major, minor = (_KEYS @ (histogram / norm)).reshape(2, 12).max(1)
    return float(max(major, minor)), float(minor - major)


def _unit_profiles() -> np.ndarray:
    """Profiles of all major and minor keys, centred and of unit length, [24, 12]."""
    profiles = np.array([np.roll(profile, tonic) for profile in (_MAJOR, _MINOR) for tonic in range(12)])
    profiles -= profiles.mean(1, keepdims=True)
    return profiles / np.linalg.norm(profiles, axis=1, keepdims=True)


_KEYS = _unit_profiles()
