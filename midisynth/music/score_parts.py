"""What the parts of one score have in common: a clock and sounding pitch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from midisynth.errors import ScoreError

if TYPE_CHECKING:
    from partitura.score import Part

_FINEST = 10080  # a multiple of 2 to 10 and 12; what is finer is rounded by half a division


def common_resolution(parts: Sequence[Part], least: int = 1) -> int:
    """Divisions of a quarter note in which every time of the parts is a whole number, and a multiple of `least`."""
    resolution = math.lcm(least, *(int(divisions) for part in parts for divisions in part.quarter_durations()[:, 1]))
    return resolution if resolution < 0x8000 else _FINEST


def clock_of(part: Part, resolution: int) -> Callable[[Any], np.ndarray]:
    """Times of the part to common divisions; the first bar begins at 0, also if it is a pick-up."""
    quarters = part.quarter_map
    start = float(quarters(part.first_point.t))
    return lambda time: np.rint((np.asarray(quarters(time), np.float64) - start) * resolution).astype(np.int64)


def sounding_pitches(path: str, part: Part, onset: np.ndarray, written: np.ndarray) -> np.ndarray:
    """Pitches of notes as an instrument that transposes sounds them, [notes].

    Args:
        path: The file, for errors.
        part: Tells where which transposition begins.
        onset: Times of the part (its own divisions), [notes].
        written: MIDI key numbers, [notes].

    Raises:
        ScoreError: A pitch lies outside the range of MIDI.
    """
    from partitura.score import Transposition

    pitch = np.array(written, np.int64)
    for change in part.iter_all(Transposition):
        following = onset >= change.start.t
        pitch[following] = written[following] + (change.chromatic or 0)
    if (pitch < 0).any() or (pitch > 127).any():
        raise ScoreError(path, "a note lies outside the range of MIDI (C-1 to G9)")
    return pitch
