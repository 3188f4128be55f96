"""Frequencies of the partials of a piano's strings: by formula, and measured on recorded notes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

LOWEST_KEY, KEYS = 21, 88

#: Partials are kept up to this share of the sample rate.
HIGHEST_SHARE = 0.45
#: At most so many partials of a key, but all below `LOW_HZ`: the lowest strings sound through many.
PARTIALS = 40
LOW_HZ = 3000.0

#: Stretch of measured notes (seconds), and how many zeros follow it, relative to its length.
MEASURED_SEC = (0.05, 4.0)
PADDING = 4
#: A partial is measured where its peak is so far above the median of its surroundings (dB), else it is computed.
PROMINENCE_DB = 20.0


def string_frequency(fundamental: np.ndarray | float, inharmonicity: np.ndarray | float, n: np.ndarray) -> np.ndarray:
    """Frequency of partial `n` of a stiff string (Hz): n f sqrt(1 + B n^2) (Fletcher 1964)."""
    return n * fundamental * np.sqrt(1 + inharmonicity * np.square(n))


def typical_inharmonicity(key: np.ndarray | int) -> np.ndarray | float:
    """Inharmonicity B of the strings of a grand piano: high strings are stiff, and so are the short wound ones.

    Two exponentials over the keys, as tuning curves are usually modelled (Rigaud et al. 2013).

    Args:
        key: MIDI key number.
    """
    return np.exp(0.0926 * key - 13.64) + np.exp(-0.0847 * key - 5.82)


def piano_partials(sample_rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Partials of the 88 keys of a typical piano at 440 Hz, by rising frequency.

    Args:
        sample_rate: Of the audio that they sound in (Hz).

    Returns:
        Frequencies [partials] float64 (Hz), index of the key 0..87 [partials], number of the partial from 1 [partials].
    """
    found = []
    for key in range(KEYS):
        fundamental = 440.0 * 2.0 ** ((key + LOWEST_KEY - 69) / 12)
        numbers = np.arange(1, math.ceil(sample_rate / fundamental))
        hertz = string_frequency(fundamental, typical_inharmonicity(key + LOWEST_KEY), numbers)
        kept = (hertz < HIGHEST_SHARE * sample_rate) & ((numbers <= PARTIALS) | (hertz < LOW_HZ))
        found.append(np.stack([hertz[kept], np.full(kept.sum(), key), numbers[kept]]))
    table = np.concatenate(found, axis=1)
    hertz, keys, numbers = table[:, np.argsort(table[0], kind="stable")]
    return hertz, keys.astype(np.int64), numbers.astype(np.int64)


def measured_partials(note: Callable[[int], np.ndarray], sample_rate: int) -> np.ndarray:
    """The partials of `piano_partials` as recorded notes have them.

    Of every key, fundamental and inharmonicity are fitted to peaks of its spectrum, from the lowest partial upwards;
    a partial without a clear peak lies where the fitted string has it.

    Args:
        note: MIDI key number -> sound of the held key, [samples].
        sample_rate: Of the notes (Hz).

    Returns:
        Frequencies in the order of `piano_partials`, [partials] float64 (Hz).
    """
    hertz, keys, numbers = piano_partials(sample_rate)
    measured = np.empty_like(hertz)
    for key in range(KEYS):
        own = keys == key
        start = 440.0 * 2.0 ** ((key + LOWEST_KEY - 69) / 12)
        sound = note(key + LOWEST_KEY)
        measured[own] = _measure(sound, sample_rate, start, typical_inharmonicity(key + LOWEST_KEY), numbers[own])
    return np.minimum(measured, 0.49 * sample_rate)


def _measure(
    sound: np.ndarray, sample_rate: int, fundamental: float, inharmonicity: float, numbers: np.ndarray
) -> np.ndarray:
    first, last = (round(sec * sample_rate) for sec in MEASURED_SEC)
    sound = sound[first:last]
    size = PADDING * len(sound)
    level = 20 * np.log10(np.abs(np.fft.rfft(sound * np.hanning(len(sound)), size)) + 1e-12)
    bin_hz = sample_rate / size
    peaks: dict[int, float] = {}
    for number in numbers.tolist():
        expected = float(string_frequency(fundamental, inharmonicity, np.array(number)))
        # The further the fitted partials reach, the surer is the next one.
        reach = max((0.04 if number < 4 else 0.12) * fundamental, 3 * sample_rate / len(sound))
        low, high = (int((expected + sign * min(reach, 0.4 * fundamental)) / bin_hz) for sign in (-1, 1))
        wide = level[max(int((expected - fundamental / 2) / bin_hz), 0) : int((expected + fundamental / 2) / bin_hz)]
        if high >= len(level) - 1 or high - low < 3:
            continue
        top = low + int(np.argmax(level[low:high]))
        if low < top < high - 1 and level[top] > np.median(wide) + PROMINENCE_DB:
            left, center, right = level[top - 1 : top + 2]
            peaks[number] = (top + 0.5 * (left - right) / (left - 2 * center + right)) * bin_hz
        if len(peaks) >= 4:
            fundamental, inharmonicity = _fit(peaks)
        elif number in peaks:
            fundamental *= peaks[number] / expected
    fitted = string_frequency(fundamental, inharmonicity, numbers)
    return np.array([peaks.get(number, hz) for number, hz in zip(numbers.tolist(), fitted, strict=True)])


def _fit(peaks: dict[int, float]) -> tuple[float, float]:
    """Fundamental (Hz) and inharmonicity of the string whose partials are `peaks`: number -> frequency (Hz)."""
    numbers, hertz = np.array(list(peaks)), np.array(list(peaks.values()))
    # (f / n)^2 = f1^2 + f1^2 B n^2 is a line in n^2. The median of slopes and offsets survives wrong peaks.
    squares, values = np.square(numbers.astype(float)), np.square(hertz / numbers)
    upper = np.triu_indices(len(numbers), max(1, len(numbers) // 3))
    slope = max(float(np.median((values[upper[1]] - values[upper[0]]) / (squares[upper[1]] - squares[upper[0]]))), 0.0)
    offset = float(np.median(values - slope * squares))
    return math.sqrt(offset), slope / offset
