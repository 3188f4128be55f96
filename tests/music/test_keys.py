"""Keys: names, estimates and distances."""

from __future__ import annotations

import numpy as np
import pytest

from midisynth.errors import UsageError
from midisynth.music.keys import (
    Key,
    estimate_key,
    in_range,
    normalising_shift,
    parse_key,
    pitch_class_histogram,
    shift_to,
)


@pytest.mark.parametrize(
    ("text", "key", "name"),
    [
        ("D", Key(2), "D major"),
        ("Bb major", Key(10), "Bb major"),
        ("F#m", Key(6, True), "F# minor"),
        ("c minor", Key(0, True), "C minor"),
        ("a", Key(9, True), "A minor"),
        ("Cb maj", Key(11), "B major"),
        (" G♯min ", Key(8, True), "Ab minor"),
    ],
)
def test_names(text: str, key: Key, name: str):
    assert parse_key(text) == key
    assert str(key) == name
    assert parse_key(name) == key


@pytest.mark.parametrize("text", ["", "H", "C major seven", "4", "Dmm"])
def test_what_is_no_key(text: str):
    with pytest.raises(UsageError, match="is no key: write one as D"):
        parse_key(text)


@pytest.mark.parametrize("tonic", range(12))
@pytest.mark.parametrize("minor", [False, True])
def test_scales_are_recognised_and_normalised(tonic: int, minor: bool):
    degrees = (0, 2, 3, 5, 7, 8, 10) if minor else (0, 2, 4, 5, 7, 9, 11)
    pitch = 48 + tonic + np.array([*degrees, 0, 7, 3 if minor else 4])
    histogram = pitch_class_histogram(pitch, np.array([1] * 7 + [3, 2, 1]))
    assert histogram.sum() == pytest.approx(1)
    key = estimate_key(histogram)
    assert key == Key(tonic, minor)
    shift = normalising_shift(key)
    assert -6 <= shift <= 6
    assert (tonic + shift) % 12 == (9 if minor else 0)
    for target in (Key(2), Key(11, True)):
        moved = Key((tonic + shift_to(key, target)) % 12, minor)
        assert normalising_shift(moved) % 12 == normalising_shift(target) % 12


def test_no_notes():
    assert pitch_class_histogram(np.empty(0), np.empty(0)).tolist() == [0] * 12


def test_shifts_stay_in_range():
    assert in_range(-6, 3, 60) == 6
    assert in_range(6, 60, 125) == -6
    assert in_range(5, 40, 90) == 5
