"""The sustain pedal in one number a note: how much of the time until the next onset it is down.

The pedal at the moment of an onset, which the published codec stores, says nothing of the change of pedal that follows:
pianists lift it just after a chord has begun and press it again, so that it is down at every onset and a decoder that
copies what it sees never changes it. A share of time tells a pedal that is held from one that is changed, and
neighbouring shares tell where in the time between two onsets it moves.
"""

from __future__ import annotations

import numpy as np

from midisynth.models.dexter.playing import ticks_of
from midisynth.music.notes import CONTROL_DTYPE
from midisynth.music.pedal import SUSTAIN

_DOWN = 64  # controller values from here on
_SHORTEST_SEC = 0.04  # a damper needs this long to stop a string

# Shares of a pedal that moves end here. The gap to 1 keeps the noise of a model from lifting a pedal that is held.
_MOVING = 0.75
_HELD = (1 + _MOVING) / 2


def pedal_values(controls: np.ndarray, onsets: np.ndarray, end: float) -> np.ndarray:
    """What the pedal does after each onset.

    Args:
        controls: [controls] of `CONTROL_DTYPE`; only the sustain pedal is looked at, down from 64 on.
        onsets: Strictly increasing times (seconds), [groups].
        end: Of the last note (seconds).

    Returns:
        [groups]: 0 for up until the next onset, 1 for down until then, and 0.75 times the share of time that it is down
        where it moves.
    """
    pedals = controls[controls["number"] == SUSTAIN]
    if len(pedals) == 0:
        return np.zeros(len(onsets))
    borders = np.append(onsets, max(end, onsets[-1] + _SHORTEST_SEC))
    times = np.concatenate([[-np.inf], pedals["time_sec"], [np.inf]]).clip(borders[0], borders[-1])
    down = np.concatenate([[0], pedals["value"] >= _DOWN])
    elapsed = np.concatenate([[0.0], np.cumsum(np.diff(times) * down)])
    time_down = np.diff(np.interp(borders, times, elapsed))
    length = np.diff(borders)
    share = time_down / length
    moved = length - time_down > np.minimum(_SHORTEST_SEC, length) / 2
    return np.where(moved, _MOVING * share, 1.0)


def pedal_controls(values: np.ndarray, onsets: np.ndarray, end: float) -> np.ndarray:
    """Pedal events that do what the values say; the last lifts the pedal.

    Between two onsets the pedal moves at most twice. It is down at an onset if it is down for more than half of the
    time around it. Where it is down at both ends, it is lifted at the first and pressed again: a change of pedal.

    Args:
        values: As `pedal_values` gives them, [groups].
        onsets: Strictly increasing times (seconds), [groups]; a first that lies before 0 counts as 0.
        end: Of the last note (seconds).

    Returns:
        [events] of `CONTROL_DTYPE`, in time order.
    """
    values = np.asarray(values, np.float64)
    onsets = np.maximum(onsets, 0.0)
    borders = np.append(onsets, max(end, onsets[-1]))
    length = np.diff(borders)
    held = values >= _HELD
    shortest = np.minimum(_SHORTEST_SEC / np.maximum(length, 1e-9), 0.5)
    share = np.clip(values / _MOVING, 0.0, 1.0)
    share = np.where(held, 1.0, np.where(share < shortest, 0.0, np.minimum(share, 1 - shortest)))
    before = np.concatenate([held[:1], share[:-1] + share[1:] >= 1, [False]])
    ends_down = before[1:] | held
    start = np.where(ends_down & ~held, borders[1:] - share * length, borders[:-1])
    stop = np.where(ends_down, borders[1:], borders[:-1] + share * length)
    sounding = share > 0
    start, stop = start[sounding], stop[sounding]
    if len(start) == 0:
        return np.zeros(0, CONTROL_DTYPE)
    joined = start[1:] - stop[:-1] <= 1e-9
    start, stop = start[np.concatenate([[True], ~joined])], stop[np.concatenate([~joined, [True]])]
    events = np.zeros(2 * len(start), CONTROL_DTYPE)
    events["time_sec"] = np.stack([start, stop], axis=1).ravel()
    events["tick"] = ticks_of(events["time_sec"])
    events["number"] = SUSTAIN
    events["value"] = np.tile([127, 0], len(start))
    return events
