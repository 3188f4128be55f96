"""What is written reads back, and a file appears whole or not at all; pretty_midi objects in and out."""

from __future__ import annotations

import os
from pathlib import Path

import mido
import numpy as np
import pretty_midi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midisynth.errors import MidiError
from midisynth.music.clock import TempoMap, ticks_from_seconds
from midisynth.music.midi import from_pretty_midi, read_midi, to_pretty_midi, write_midi
from midisynth.music.notes import (
    BEND_DTYPE,
    CONTROL_DTYPE,
    KEY_SIGNATURE_DTYPE,
    NOTE_DTYPE,
    TIME_SIGNATURE_DTYPE,
    Performance,
)

ZOO = Path(__file__).parent / "data" / "midi_zoo"
TABLES = ("notes", "controls", "bends", "tempos", "time_signatures", "key_signatures")
GOOD = sorted(path.name for path in ZOO.glob("*.mid") if path.name not in ("midifile_MIDIOkFormat2.mid",))
GOOD.remove("jazzsoft_test-2-tracks-type-2.mid")


def assert_same(performance: Performance, again: Performance) -> None:
    for name in TABLES:
        np.testing.assert_array_equal(getattr(performance, name), getattr(again, name), err_msg=name)
    assert again.ticks_per_quarter == performance.ticks_per_quarter
    assert again.track_names == performance.track_names


def simple(**columns) -> Performance:
    """One note of one second, with other values in some columns."""
    notes = np.zeros(1, NOTE_DTYPE)
    values = {"duration_tick": 960, "duration_sec": 1.0, "pitch": 60, "velocity": 64} | columns
    for column, value in values.items():
        notes[column] = value
    return Performance(notes=notes)


@st.composite
def performances(draw) -> Performance:
    """Anything that a file can say; strokes of one key in one track and channel do not overlap."""
    tracks, division = draw(st.integers(1, 4)), draw(st.sampled_from([1, 24, 480, 32767]))
    tick, byte, channel, track = (
        st.integers(0, 5000),
        st.integers(0, 127),
        st.integers(0, 15),
        st.integers(0, tracks - 1),
    )
    starts = draw(st.dictionaries(st.integers(1, 6000), st.integers(1, 2**24 - 1), max_size=5))
    changes = sorted({0: draw(st.integers(1, 2**24 - 1)), **starts}.items())
    clock = TempoMap([start for start, _ in changes], [usec for _, usec in changes], division)
    row = st.tuples(tick, st.integers(1, 300), byte, st.integers(1, 127), channel, byte, track)
    busy: dict[tuple[int, int, int], int] = {}
    rows = []
    for onset, duration, pitch, velocity, on_channel, program, in_track in sorted(draw(st.lists(row, max_size=40))):
        if busy.get((in_track, on_channel, pitch), 0) <= onset:
            rows.append((0, 0, onset, duration, pitch, velocity, on_channel, program, in_track))
            busy[in_track, on_channel, pitch] = onset + duration
    notes = np.array(rows, NOTE_DTYPE)
    notes = notes[np.lexsort((notes["pitch"], notes["channel"], notes["track"], notes["onset_tick"]))]
    notes["onset_sec"] = clock.seconds(notes["onset_tick"])
    notes["duration_sec"] = clock.seconds(notes["onset_tick"] + notes["duration_tick"]) - notes["onset_sec"]

    def table(dtype, *columns, order=None, unique=False):
        found = draw(st.lists(st.tuples(tick, *columns), max_size=10, unique_by=(lambda r: r[0]) if unique else None))
        found.sort(key=order or (lambda r: r[0]))
        return np.array([(float(clock.seconds(r[0])), *r) for r in found], dtype)

    return Performance(
        notes=notes,
        controls=table(CONTROL_DTYPE, byte, byte, channel, track, order=lambda r: (r[0], r[4])),
        bends=table(BEND_DTYPE, st.integers(-8192, 8191), channel, track, order=lambda r: (r[0], r[3])),
        tempos=clock.table(),
        time_signatures=table(
            TIME_SIGNATURE_DTYPE, st.integers(1, 255), st.sampled_from([1, 2, 4, 8, 128]), unique=True
        ),
        key_signatures=table(KEY_SIGNATURE_DTYPE, st.integers(-7, 7), st.booleans(), unique=True),
        ticks_per_quarter=division,
        track_names=draw(st.lists(st.text(max_size=20), min_size=tracks, max_size=tracks)),
    )


@settings(deadline=None, max_examples=150)
@given(performance=performances())
def test_round_trip(performance, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round_trip.mid"
    write_midi(performance, path)
    assert_same(performance, read_midi(path, max_duration_sec=1e9))


@pytest.mark.parametrize("file", GOOD)
def test_round_trip_of_real_files(file, tmp_path):
    performance = read_midi(ZOO / file)
    write_midi(performance, tmp_path / file)
    again = read_midi(tmp_path / file)
    assert_same(performance, again)
    write_midi(again, tmp_path / "again.mid")
    assert (tmp_path / "again.mid").read_bytes() == (tmp_path / file).read_bytes()


def test_other_readers_accept_what_is_written(tmp_path):
    performance = read_midi(ZOO / "muspy_fur-elise.mid")
    write_midi(performance, tmp_path / "x.mid")
    assert mido.MidiFile(tmp_path / "x.mid").type == 1
    midi = pretty_midi.PrettyMIDI(str(tmp_path / "x.mid"))
    onsets = sorted(note.start for instrument in midi.instruments for note in instrument.notes)
    np.testing.assert_allclose(onsets, performance.notes["onset_sec"], rtol=0, atol=1e-9)


def test_pauses_longer_than_one_event_can_state(tmp_path):
    clock = TempoMap([0], [1], 32767)
    onset = 3 * 2**28
    performance = simple(onset_tick=onset, onset_sec=clock.seconds(onset), duration_tick=1, duration_sec=0)
    performance.tempos, performance.ticks_per_quarter = clock.table(), 32767
    write_midi(performance, tmp_path / "x.mid")
    assert read_midi(tmp_path / "x.mid").notes[["onset_tick", "duration_tick"]].tolist() == [(onset, 1)]


@pytest.mark.parametrize(
    "columns, cause",
    [
        ({"pitch": 128}, "pitch of notes[0] is 128, not 0 to 127"),
        ({"velocity": 0}, "velocity of notes[0] is 0, not 1 to 127"),
        ({"duration_tick": 0, "duration_sec": 0}, "duration_tick of notes[0] is 0"),
        ({"onset_tick": -1}, "onset_tick of notes[0] is -1"),
        ({"channel": 16}, "channel of notes[0] is 16"),
        ({"onset_sec": 1.0}, "its ticks and seconds disagree; use clock.ticks_from_seconds"),
    ],
)
def test_what_midi_cannot_say(columns, cause, tmp_path):
    with pytest.raises(MidiError) as caught:
        write_midi(simple(**columns), tmp_path / "x.mid")
    assert cause in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "x.mid"
    write_midi(simple(), path)
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> None:
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(MidiError, match=r"x\.mid: cannot be written: No space left on device"):
        write_midi(simple(pitch=72), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.mid"]


def test_no_such_folder(tmp_path):
    with pytest.raises(MidiError, match="cannot be written: No such file or directory"):
        write_midi(simple(), tmp_path / "missing" / "x.mid")


def test_ticks_from_seconds(tmp_path):
    performance = read_midi(ZOO / "tempo_extremes.mid")
    scrambled = performance.notes.copy()
    scrambled["onset_tick"] = scrambled["duration_tick"] = 0
    restored = ticks_from_seconds(performance.with_notes(scrambled))
    np.testing.assert_array_equal(restored.notes, performance.notes)
    slower = performance.notes.copy()
    slower["onset_sec"] *= 1.1
    slower["duration_sec"] *= 1.1
    stretched = ticks_from_seconds(performance.with_notes(slower))
    write_midi(stretched, tmp_path / "x.mid")
    assert read_midi(tmp_path / "x.mid").end_sec == pytest.approx(performance.end_sec * 1.1, abs=0.04)


@pytest.mark.parametrize("file", GOOD)
def test_pretty_midi_round_trip(file):
    performance = read_midi(ZOO / file)
    again = from_pretty_midi(to_pretty_midi(performance))
    columns = ["onset_tick", "duration_tick", "pitch", "velocity", "program"]
    assert sorted(again.notes[columns].tolist()) == sorted(performance.notes[columns].tolist())
    assert ((again.notes["channel"] == 9).sum()) == (performance.notes["channel"] == 9).sum()
    np.testing.assert_array_equal(again.tempos["tick"], performance.tempos["tick"])
    np.testing.assert_array_equal(again.tempos["usec_per_quarter"], performance.tempos["usec_per_quarter"])
    keys, expected = again.key_signatures, performance.key_signatures
    assert ((keys["fifths"] - expected["fifths"]) % 12 == 0).all()  # pretty_midi does not tell C sharp from D flat
    np.testing.assert_array_equal(keys[["tick", "minor"]], expected[["tick", "minor"]])
    np.testing.assert_array_equal(again.time_signatures, performance.time_signatures)


@pytest.mark.parametrize("file", ["muspy_fur-elise.mid", "music21_test11.mid", "partitura_mozart_k265_var1.mid"])
def test_same_notes_as_pretty_midi(file):
    midi = pretty_midi.PrettyMIDI(str(ZOO / file))
    expected = sorted((n.start, n.end, n.pitch, n.velocity, i.program) for i in midi.instruments for n in i.notes)
    notes = read_midi(ZOO / file).notes
    ends = notes["onset_sec"] + notes["duration_sec"]
    found = sorted(zip(notes["onset_sec"], ends, notes["pitch"], notes["velocity"], notes["program"], strict=True))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert len(from_pretty_midi(midi).controls) == len(read_midi(ZOO / file).controls)
