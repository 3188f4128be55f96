"""Note rows: round trips, clocks, what is left out, and where they end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midisynth.errors import DataError, MidiError
from midisynth.models.midi_valle.codec import (
    BARS,
    BOS,
    EOS,
    PER_BAR,
    PER_QUARTER,
    SPECIALS,
    VOCABULARIES,
    NoteRows,
    in_seconds,
)
from midisynth.music.clock import ticks_from_seconds
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.notes import CONTROL_DTYPE, NOTE_DTYPE, TEMPO_DTYPE, Performance

EXAMPLES = Path(__file__).parents[3] / "examples"


def played(*notes, controls=(), tempos=(), ticks_per_quarter=480, channel=0) -> Performance:
    """Onset (seconds), duration, pitch, velocity and perhaps a track of every note."""
    table = np.zeros(len(notes), NOTE_DTYPE)
    for row, (onset, duration, pitch, velocity, *track) in zip(table, notes, strict=True):
        row["onset_sec"], row["duration_sec"], row["pitch"], row["velocity"] = onset, duration, pitch, velocity
        row["track"] = track[0] if track else 0
    table["channel"] = channel
    pedals = np.array([(time, 0, 64, value, 0, 0) for time, value in controls], CONTROL_DTYPE)
    performance = Performance(
        notes=table,
        controls=pedals,
        tempos=np.array(list(tempos), TEMPO_DTYPE),
        ticks_per_quarter=ticks_per_quarter,
    )
    return ticks_from_seconds(performance)


notes_on_the_grid = st.lists(
    st.tuples(
        st.integers(0, BARS * PER_BAR - 1), st.integers(1, 12 * PER_QUARTER), st.integers(21, 108), st.integers(1, 127)
    ),
    max_size=30,
)


@given(notes_on_the_grid)
@settings(max_examples=60, deadline=None)
def test_round_trip(drawn):
    """Notes on the grid come back, and rows are the same again."""
    table = np.zeros(len(drawn), NOTE_DTYPE)
    for row, (onset, duration, pitch, velocity) in zip(table, drawn, strict=True):
        row["onset_tick"], row["duration_tick"], row["pitch"], row["velocity"] = onset, duration, pitch, velocity
    table["onset_sec"], table["duration_sec"] = table["onset_tick"] / 192, table["duration_tick"] / 192
    codec = NoteRows()
    rows = codec.encode(Performance(notes=table, ticks_per_quarter=PER_QUARTER))
    assert (rows[0] == BOS).all() and (rows[-1] == EOS).all()
    assert (rows[1:-1] >= SPECIALS).all() and (rows < np.array(VOCABULARIES)).all()
    decoded = codec.decode(rows)
    found = sorted(decoded.notes[["onset_tick", "duration_tick", "pitch", "velocity"]].tolist())
    assert found == sorted(
        (onset, duration, pitch, velocity // 2 * 2 + 1) for onset, duration, pitch, velocity in drawn
    )
    np.testing.assert_array_equal(codec.encode(decoded), rows)


def test_what_a_row_says():
    """The example of the published prompt: key 49, velocity 65, 47 positions from position 10 on."""
    codec = NoteRows()
    rows = codec.encode(played((10 / 192, 47 / 192, 49, 65), (2.5, 30.0, 108, 127)))
    np.testing.assert_array_equal(rows[1], [32, 36, 50, 388, 14, 4])
    np.testing.assert_array_equal(rows[2], [91, 67, 1155, 771, 100, 5])  # longest duration, longest interval


def test_files_of_any_tempo_are_the_same_music(tmp_path):
    """Rows count seconds, not quarters; the original counts quarters."""
    notes = [(0.1 * number, 0.25, 60 + number % 12, 64) for number in range(40)]
    slow = [(0.0, 0, 1_000_000), (2.0, 960, 300_000)]
    paths = [tmp_path / "at_120.mid", tmp_path / "slow.mid"]
    for path, tempos in zip(paths, ((), slow), strict=True):
        write_midi(played(*notes, tempos=tempos, ticks_per_quarter=480), path)
    found = [NoteRows().encode(NoteRows().read(path)) for path in paths]
    assert np.abs(found[0] - found[1]).max() <= 1  # a tick of the slow file is 2 ms, a position 5
    published = NoteRows(compat="published")
    assert np.abs(published.encode(published.read(paths[0])) - published.encode(published.read(paths[1]))).max() > 9


def test_tracks_are_one(tmp_path):
    hands = [(0.5 * number, 0.4, 60 + 12 * (number % 2), 64, number % 2) for number in range(8)]
    write_midi(played(*hands), tmp_path / "two_tracks.mid")
    codec = NoteRows()
    performance = codec.read(tmp_path / "two_tracks.mid")
    together = codec.encode(codec.playable(played(*(note[:4] for note in hands))))
    np.testing.assert_array_equal(codec.encode(performance), together)
    published = NoteRows(compat="published")
    assert len(published.encode(published.read(tmp_path / "two_tracks.mid"))) == 4 + 2  # the first track alone


def test_what_is_left_out_is_said(tmp_path):
    performance = played((0.0, 1.0, 20, 64), (0.5, 1.0, 60, 64), (1.0, 1.0, 109, 64))
    playable = NoteRows().playable(performance)
    assert playable.notes["pitch"].tolist() == [60]
    assert playable.warnings == ["2 notes outside the keys of a piano (21 to 108) are left out"]
    assert NoteRows().playable(playable).warnings == playable.warnings
    drums = played((0.0, 1.0, 40, 64), channel=9)
    assert NoteRows().playable(drums).warnings == ["1 notes of drums are left out"]
    write_midi(drums, tmp_path / "drums.mid")
    with pytest.raises(MidiError, match=r"drums\.mid: has no notes of a piano"):
        NoteRows().read(tmp_path / "drums.mid")


def test_the_pedal_is_an_option():
    performance = played((0.0, 0.5, 60, 64), controls=[(0.2, 127), (1.5, 0)])
    durations = []
    for codec in (NoteRows(pedal=False), NoteRows(pedal=True)):
        durations.append(codec.encode(codec.playable(performance))[1, 2] - SPECIALS + 1)
    assert durations == [96, 288]


def test_rows_end_with_their_bars():
    codec = NoteRows()
    assert codec.max_sec == 32
    assert codec.encode(played((31.99, 4.0, 60, 64)))[1, 5] == VOCABULARIES[5] - 1
    with pytest.raises(DataError, match=r"starts at 32\.00 s.*rows of 16 bars reach 32 s"):
        codec.encode(played((32.0, 1.0, 60, 64)))


def test_a_real_file():
    """Every note of a piece comes back within half a position."""
    codec = NoteRows(bars=1000)
    performance = codec.read(EXAMPLES / "mozart_k331.mid")
    decoded = codec.decode(codec.encode(performance)).notes
    order = np.lexsort((performance.notes["pitch"], np.rint(performance.notes["onset_sec"] * 192)))
    wanted = performance.notes[order]
    found = decoded[np.lexsort((decoded["pitch"], decoded["onset_tick"]))]
    np.testing.assert_array_equal(found["pitch"], wanted["pitch"])
    np.testing.assert_allclose(found["onset_sec"], wanted["onset_sec"], atol=0.5 / 192 + 1e-4)
    assert (in_seconds(performance).notes["onset_sec"] == performance.notes["onset_sec"]).all()
    assert len(read_midi(EXAMPLES / "mozart_k331.mid").notes) == len(found)
