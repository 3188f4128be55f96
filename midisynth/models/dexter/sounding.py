"""What sounds together on the page, by onset: outer voices and the roughness of intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Roughness of the interval classes from unison to tritone, 0 to 1.
ROUGHNESS = np.array([0.0, 1.0, 0.55, 0.12, 0.08, 0.04, 0.75])

_LONGEST = 64  # onsets for which a note is followed, so that a pedal point does not make the table grow with its square


@dataclass(frozen=True)
class Sounding:
    """What sounds at each onset of a score.

    Attributes:
        lowest: MIDI pitch, [groups].
        highest: MIDI pitch, [groups].
        dissonance: Mean roughness over the pairs of pitch classes, [groups]; 0 where there is only one.
    """

    lowest: np.ndarray
    highest: np.ndarray
    dissonance: np.ndarray

    @classmethod
    def of(cls, notes: np.ndarray) -> Sounding:
        """From [notes] of `SCORE_NOTE_DTYPE`."""
        onsets, group = np.unique(notes["onset_div"], return_inverse=True)
        last = np.searchsorted(onsets, notes["onset_div"] + np.maximum(notes["duration_div"], 1))
        span = np.clip(last - group, 1, _LONGEST)
        row = np.repeat(np.arange(len(notes)), span)
        place = group[row] + np.arange(len(row)) - (np.cumsum(span) - span)[row]
        pitch = notes["pitch"][row]
        lowest, highest = np.full(len(onsets), 128), np.full(len(onsets), -1)
        np.minimum.at(lowest, place, pitch)
        np.maximum.at(highest, place, pitch)
        classes = np.zeros((len(onsets), 12), bool)
        classes[place, pitch % 12] = True
        rough, pairs = np.zeros(len(onsets)), np.zeros(len(onsets))
        for interval in range(1, 7):
            # Every pair is met once, but a tritone from both sides.
            met = (classes & np.roll(classes, -interval, axis=1)).sum(1) / (2 if interval == 6 else 1)
            rough += ROUGHNESS[interval] * met
            pairs += met
        return cls(lowest, highest, np.divide(rough, pairs, out=np.zeros(len(onsets)), where=pairs > 0))
