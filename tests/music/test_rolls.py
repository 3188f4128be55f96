import numpy as np

from midisynth.music.notes import DRUM_CHANNEL, NOTE_DTYPE
from midisynth.music.rolls import KEYS, RELEASE_SEC, note_table, piano_keys


def notes_of(*rows: tuple[float, float, int, int, int]) -> np.ndarray:
    """Rows of onset (s), duration (s), pitch, velocity, channel."""
    notes = np.zeros(len(rows), NOTE_DTYPE)
    for note, row in zip(notes, rows, strict=True):
        note["onset_sec"], note["duration_sec"], note["pitch"], note["velocity"], note["channel"] = row
    return notes


def test_table_holds_what_sounds_in_the_stretch():
    notes = notes_of(
        (0.0, 1.0, 60, 127, 0),  # ended long before
        (0.0, 9.7, 62, 127, 0),  # still fades
        (1.0, 99.0, 64, 64, 0),  # held across
        (11.0, 1.0, 66, 32, 0),
        (12.0, 1.0, 68, 127, 0),  # starts with the next stretch
        (11.0, 1.0, 36, 127, DRUM_CHANNEL),
    )
    table = note_table(notes, start_sec=10.0, duration_sec=2.0)
    np.testing.assert_allclose(
        table,
        [[-10, -0.3, 41, 1], [-9, 90, 43, 64 / 127], [1, 2, 45, 32 / 127]],
        rtol=1e-6,
    )
    assert table.dtype == np.float32
    assert RELEASE_SEC > 0.3


def test_no_notes_give_an_empty_table():
    assert note_table(notes_of(), 0.0, 1.0).shape == (0, 4)


def test_pitches_beyond_the_piano_move_by_octaves():
    keys = piano_keys(np.arange(128))
    assert keys.min() == 0 and keys.max() == KEYS - 1
    np.testing.assert_array_equal((keys + 21 - np.arange(128)) % 12, 0)
    np.testing.assert_array_equal(keys[21:109], np.arange(KEYS))
    assert keys[20] == 11 and keys[109] == 109 - 12 - 21
