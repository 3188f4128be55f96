"""Keys: what key notes are in, and how far it is to another."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from midisynth.errors import UsageError

PITCH_CLASSES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
_LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_NAME = re.compile(r"([A-Ga-g])([#b♯♭]?)\s*(|m|maj|min|major|minor)$")


class Key(NamedTuple):
    """A major or minor key.

    Attributes:
        tonic: Pitch class, 0 (C) to 11.
        minor: Whether it is minor.
    """

    tonic: int
    minor: bool = False

    def __str__(self) -> str:
        return f"{PITCH_CLASSES[self.tonic]} {'minor' if self.minor else 'major'}"


C_MAJOR, A_MINOR = Key(0), Key(9, minor=True)

# Weights of the degrees of a scale, of the tonic most. They are those of remi_z 0.7.1 as its integers have them: it
# means 1.5 for third and fifth, 0 for the leading note's neighbour, and stores 1 and -1.
_MAJOR = (2, 0, 1, 0, 1, 1, 0, 1, 0, 1, -1, 1)
_MINOR = (2, -1, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0)
#: [24, 12]: weight of each pitch class in the major keys from C to B, then in the minor keys.
KEY_PROFILES = np.array([np.roll(weights, tonic) for weights in (_MAJOR, _MINOR) for tonic in range(12)])


def parse_key(text: str) -> Key:
    """The key of a name such as `D`, `Bb major`, `F#m` or `c minor`.

    Raises:
        UsageError: It is none.
    """
    match = _NAME.match(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is no key: write one as D, Bb major, F#m or 'C# minor'")
    letter, accidental, mode = match.groups()
    tonic = _LETTERS[letter.upper()] + {"#": 1, "♯": 1, "b": -1, "♭": -1, "": 0}[accidental]
    return Key(tonic % 12, minor=mode in ("m", "min", "minor") or (letter.islower() and not mode))


def pitch_class_histogram(pitch: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Share of each pitch class, [12], summing to 1 (to 0 without notes).

    Args:
        pitch: MIDI key numbers, [notes].
        weight: How much each note counts, such as duration times velocity, [notes].
    """
    histogram = np.bincount(np.asarray(pitch, np.int64) % 12, weights=weight, minlength=12)
    total = histogram.sum()
    return histogram / total if total else histogram


def estimate_key(histogram: np.ndarray) -> Key:
    """The key whose profile fits best; the major one where a minor key fits no better.

    Args:
        histogram: Share of each pitch class, [12].
    """
    scores = KEY_PROFILES @ histogram
    major, minor = int(np.argmax(scores[:12])), int(np.argmax(scores[12:]))
    return Key(minor, minor=True) if scores[12 + minor] > scores[major] else Key(major)


def shift_to(key: Key, target: Key) -> int:
    """Semitones, -5 to 6, from a key to the signature of another.

    The mode stays: music in A minor that shall go to D major goes to B minor, which shares its signature.
    """
    shift = (normalising_shift(key) - normalising_shift(target)) % 12
    return shift - 12 if shift > 6 else shift


def normalising_shift(key: Key) -> int:
    """Semitones, -6 to 6, from a key to C major or A minor."""
    shift = -3 - key.tonic if key.minor else -key.tonic
    return shift + 12 if shift < -6 else shift


def in_range(shift: int, lowest: int, highest: int) -> int:
    """A shift, moved by octaves until pitches from `lowest` to `highest` stay within 0 to 127.

    Where that cannot be, the highest fits and the lowest does not, as in remi_z.
    """
    while lowest + shift < 0:
        shift += 12
    while highest + shift > 127:
        shift -= 12
    return shift
