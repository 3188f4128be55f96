"""What readers of corpora without MIDI files share: tables of notes become performances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from midisynth.music.clock import ticks_from_seconds
from midisynth.music.notes import DRUM_CHANNEL, NOTE_DTYPE, Performance

#: Where a corpus does not say how loud a note is: mezzo-forte.
UNKNOWN_VELOCITY = 80

PITCHED_CHANNELS = tuple(channel for channel in range(16) if channel != DRUM_CHANNEL)


def from_labels(
    onset_sec: ArrayLike,
    end_sec: ArrayLike,
    pitch: ArrayLike,
    programs: Sequence[int],
    part: ArrayLike = 0,
    velocity: ArrayLike = UNKNOWN_VELOCITY,
) -> Performance:
    """A performance of notes that are given in seconds; those without length are left out.

    Every part has a track and a channel of its own, so that equal keys of two parts do not cut each other short.

    Args:
        onset_sec: Starts (seconds), [notes].
        end_sec: Ends (seconds), [notes].
        pitch: MIDI key numbers, rounded to whole ones, [notes].
        programs: General MIDI program of each part, [parts].
        part: Part of each note, [notes].
        velocity: [notes].
    """
    onset_sec, end_sec = np.asarray(onset_sec, float), np.asarray(end_sec, float)
    part = np.broadcast_to(part, onset_sec.shape)
    notes = np.zeros(len(onset_sec), NOTE_DTYPE)
    notes["onset_sec"] = onset_sec
    notes["duration_sec"] = end_sec - onset_sec
    notes["pitch"] = np.rint(pitch)
    notes["velocity"] = velocity
    notes["program"] = np.asarray(programs)[part]
    notes["channel"] = np.take(PITCHED_CHANNELS, part, mode="wrap")
    notes["track"] = part
    performance = ticks_from_seconds(Performance(notes=notes[end_sec > onset_sec], track_names=[""] * len(programs)))
    order = np.lexsort([performance.notes[name] for name in ("pitch", "channel", "track", "onset_tick")])
    return performance.with_notes(performance.notes[order])
