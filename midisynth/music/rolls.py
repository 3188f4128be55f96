"""Note tables: which notes matter to a stretch of time, in numbers that a network turns into rolls on its device.

A table of some ten to some hundred rows travels from the data loader to the accelerator instead of rolls of
88 keys x frames x channels, which `midisynth.nn.note_rolls` computes there for the whole batch at once.
"""

from __future__ import annotations

import numpy as np

from midisynth.music.notes import is_drum

#: Columns of a note table: onset and end (seconds from the start of the stretch), key (0..87), velocity (0..1].
TABLE_COLUMNS = ("onset_sec", "end_sec", "key", "velocity")

#: Keys of a piano and the MIDI number of the lowest.
KEYS, LOWEST_KEY = 88, 21

#: Notes still matter this long after their end (seconds): the highest strings of a piano have no dampers.
RELEASE_SEC = 2.0


def piano_keys(pitch: np.ndarray) -> np.ndarray:
    """MIDI key numbers -> keys of a piano, 0..87; a pitch beyond them moves by octaves to the nearest that exists."""
    key = np.asarray(pitch, np.int64) - LOWEST_KEY
    below = -np.minimum(key, 0)
    above = np.maximum(key - (KEYS - 1), 0)
    return key + 12 * -(-below // 12) - 12 * -(-above // 12)


def note_table(notes: np.ndarray, start_sec: float, duration_sec: float) -> np.ndarray:
    """Notes that sound in a stretch of time or end shortly before it. Drums, which have no pitch, are left out.

    Args:
        notes: [notes] of `NOTE_DTYPE`, after the pedal has been applied.
        start_sec: Start of the stretch (seconds).
        duration_sec: Its length (seconds).

    Returns:
        [rows, 4] float32, columns as in `TABLE_COLUMNS`. Onsets before the stretch are negative, however long ago.
    """
    onset = notes["onset_sec"] - start_sec
    end = onset + notes["duration_sec"]
    matters = (onset < duration_sec) & (end > -RELEASE_SEC) & ~is_drum(notes)
    chosen = notes[matters]
    columns = [onset[matters], end[matters], piano_keys(chosen["pitch"]), chosen["velocity"] / 127]
    return np.stack(columns, axis=1).astype(np.float32)
