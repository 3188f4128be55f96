"""The pedal rule: a reference table, the fixtures of note_seq, and properties."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smf_bytes import control, midi, off, on, program, tempo, track

from midisynth.music.clock import ticks_from_seconds
from midisynth.music.midi import read_midi
from midisynth.music.notes import CONTROL_DTYPE, NOTE_DTYPE, Performance
from midisynth.music.pedal import SUSTAIN, extend_by_pedal, pedal_stretches


def pedal(tick: int, value: int, channel: int = 0):
    return control(tick, SUSTAIN, value, channel)


def spans(*tracks, group="channel", threshold=64) -> list[tuple[int, int, int]]:
    """Pitch, onset and end (ticks) of the notes of a file under the rule."""
    notes = extend_by_pedal(read_midi(midi(*tracks)), threshold, group).notes
    return [(int(n["pitch"]), int(n["onset_tick"]), int(n["onset_tick"] + n["duration_tick"])) for n in notes]


# 960 ticks are a second; 3 ticks are 3 ms.
TABLE = {
    "no pedal": ((on(0), off(480)), [(60, 0, 480)]),
    "held until the pedal is up": ((pedal(100, 127), on(200), off(300), pedal(900, 0)), [(60, 200, 900)]),
    "key outlasts the pedal": ((pedal(0, 127), on(100), pedal(500, 0), off(900)), [(60, 100, 900)]),
    "down before the first note": ((pedal(0, 127), on(960), off(1000), pedal(2000, 0)), [(60, 960, 2000)]),
    "down after the release": ((on(0), off(300), pedal(301, 127), pedal(900, 0)), [(60, 0, 300)]),
    "down at the release": ((on(0), pedal(300, 127), off(300), pedal(900, 0)), [(60, 0, 900)]),
    "up at the release": ((pedal(0, 127), on(0), off(300), pedal(300, 0)), [(60, 0, 300)]),
    "63 is up": ((pedal(0, 63), on(0), off(300), pedal(900, 0)), [(60, 0, 300)]),
    "64 is down": ((pedal(0, 64), on(0), off(300), pedal(900, 63)), [(60, 0, 900)]),
    "never released": ((pedal(0, 127), on(0), off(300), on(600, 62), off(700, 62)), [(60, 0, 700), (62, 600, 700)]),
    "struck again under the pedal": (
        (pedal(0, 127), on(0), off(100), on(500), off(600), pedal(900, 0)),
        [(60, 0, 500), (60, 500, 900)],
    ),
    "pedal again within 3 ms": (
        (pedal(0, 127), on(0), off(100), pedal(500, 0), pedal(503, 127), on(600, 62), off(610, 62), pedal(900, 0)),
        [(60, 0, 500), (62, 600, 900)],
    ),
    "pedal again while the key is down": (
        (pedal(0, 127), on(0), pedal(500, 0), pedal(503, 127), off(600), pedal(900, 0)),
        [(60, 0, 900)],
    ),
    "repeated values": ((pedal(0, 90), pedal(50, 100), on(60), off(70), pedal(80, 70), pedal(200, 3)), [(60, 60, 200)]),
    "other controllers": ((control(0, 66, 127), control(0, 67, 127), on(0), off(300)), [(60, 0, 300)]),
    "other channel": ((pedal(0, 127, channel=1), on(0), off(300), pedal(900, 0, channel=1)), [(60, 0, 300)]),
    "drums": ((pedal(0, 127, 9), on(0, channel=9), off(300, channel=9), pedal(900, 0, 9)), [(60, 0, 300)]),
}


@pytest.mark.parametrize("events, expected", TABLE.values(), ids=TABLE)
@pytest.mark.parametrize("group", ["channel", "instrument"])
def test_table(events, expected, group):
    assert spans(track(*events), group=group) == expected


def test_pedal_in_another_track():
    tracks = track(pedal(0, 127), pedal(900, 0)), track(on(0), off(300))
    assert spans(*tracks) == [(60, 0, 900)]
    assert spans(*tracks, group="instrument") == [(60, 0, 300)]


def test_pedal_up_and_down_at_one_moment():
    events = pedal(0, 127), on(0), off(100), pedal(500, 0), pedal(500, 127), on(600, 62), off(610, 62), pedal(900, 0)
    assert spans(track(*events)) == [(60, 0, 500), (62, 600, 900)]
    assert spans(track(*events), group="instrument") == [(60, 0, 500), (62, 600, 610)]  # as note_seq has it


def test_threshold():
    assert spans(track(pedal(0, 20), on(0), off(300), pedal(900, 0)), threshold=10) == [(60, 0, 900)]


def test_a_stroke_from_another_track_ends_the_note():
    tracks = track(on(0), off(900)), track(on(300), off(600))
    assert spans(*tracks) == [(60, 0, 300), (60, 300, 600)]
    assert spans(*tracks, group="instrument") == [(60, 0, 900), (60, 300, 600)]


def test_of_strokes_at_one_moment_the_longest_stays():
    tracks = track(on(0), off(900)), track(on(0), off(300))
    assert spans(*tracks) == [(60, 0, 900)]
    assert spans(*reversed(tracks)) == [(60, 0, 900)]


def test_programs_do_not_cut_each_other():
    tracks = track(program(0, 1), on(0), off(900)), track(program(0, 2), on(300), off(600))
    assert spans(*tracks) == [(60, 0, 900), (60, 300, 600)]


def test_seconds_and_ticks_stay_together():
    performance = extend_by_pedal(read_midi(Path(__file__).parent / "data/midi_zoo/muspy_fur-elise.mid"))
    again = ticks_from_seconds(performance)
    np.testing.assert_array_equal(again.notes, performance.notes)


@pytest.mark.parametrize("usec_per_quarter", [333_333, 499_999, 512_345, 1_234_567, 16_777_215])
def test_what_happens_at_one_tick_does_not_depend_on_the_tempo(usec_per_quarter):
    """Ends are sums of floats, which must not tip the order of a release and a pedal."""
    rng = np.random.default_rng(usec_per_quarter)
    for onset, duration in rng.integers(1, 1000, (300, 2)).tolist():
        release = onset + duration
        events = on(onset), pedal(release, 127), off(release), pedal(release + 71, 0)
        assert spans(track(tempo(0, usec_per_quarter), *events)) == [(60, onset, release + 71)]


def test_stretches_of_pedal():
    """In seconds; what moves without crossing the threshold changes nothing, and what is never released ends last."""
    events = (pedal(0, 20), pedal(96, 64), pedal(192, 127), on(200), off(300), pedal(480, 63), pedal(576, 0))
    other = (pedal(960, 127, 1), on(960, 1), off(1920, 1))
    stretches = pedal_stretches(read_midi(midi(track(*events, *other))))
    assert sorted(stretches) == [0, 1]
    assert np.allclose(stretches[0], [[0.1, 0.5]])
    assert np.allclose(stretches[1], [[1.0, 2.0]])
    assert np.allclose(pedal_stretches(read_midi(midi(track(*events))), threshold=100)[0], [[0.2, 0.5]])
    assert pedal_stretches(Performance()) == {}


def test_unknown_group():
    with pytest.raises(ValueError, match="'channel' or 'instrument', not 'track'"):
        extend_by_pedal(Performance(), group="track")


def fixture_performance(rows: list[list], controls: list[list]) -> Performance:
    """A fixture's notes, one track for each of its instruments."""
    notes = np.zeros(len(rows), NOTE_DTYPE)
    for note, (instrument, number, pitch, velocity, drum, start, end) in zip(notes, rows, strict=True):
        note["track"], note["program"], note["pitch"], note["velocity"] = instrument, number, pitch, velocity
        note["channel"], note["onset_sec"], note["duration_sec"] = 9 if drum else 0, start, end - start
    pedals = np.array([(time, 0, SUSTAIN, value, 0, instrument) for instrument, time, value in controls], CONTROL_DTYPE)
    drums = {int(n["track"]) for n in notes if n["channel"] == 9}
    pedals["channel"] = [9 if track in drums else 0 for track in pedals["track"]]
    return ticks_from_seconds(Performance(notes=notes, controls=pedals))


def test_equals_note_seq(parity_root):
    root = parity_root("spectrogram_diffusion")
    manifest = json.loads((root / "tokens.manifest.json").read_text())
    files = [name for name in manifest["files"] if name.startswith("tokens_")]
    assert files
    for name in files:
        fixture = json.loads((root / name).read_text())
        before = fixture_performance(fixture["notes_before_sustain"], fixture["sustain_controls"])
        notes = extend_by_pedal(before, group="instrument").notes
        ends = notes["onset_sec"] + notes["duration_sec"]
        found = [notes[column].tolist() for column in ("track", "pitch", "onset_sec", "velocity")] + [ends.tolist()]
        expected = [(row[0], row[2], row[5], row[3], row[6]) for row in fixture["notes_after_sustain"]]
        assert len(notes) == len(expected)
        np.testing.assert_allclose(sorted(zip(*found, strict=True)), sorted(expected), rtol=0, atol=1e-9)
        assert ends.max() == pytest.approx(fixture["total_time_after_sustain"], abs=1e-9)


EVENT = st.one_of(
    st.tuples(st.just("note"), st.integers(0, 400), st.integers(1, 200), st.integers(60, 63), st.integers(0, 2)),
    st.tuples(st.just("pedal"), st.integers(0, 600), st.integers(0, 127), st.just(0), st.integers(0, 2)),
)


@settings(deadline=None, max_examples=200)
@given(events=st.lists(EVENT, max_size=40), group=st.sampled_from(["channel", "instrument"]))
def test_properties(events, group):
    lines: list[list] = [[], [], []]
    for kind, tick, value, pitch, in_track in events:
        lines[in_track] += [on(tick, pitch), off(tick + value, pitch)] if kind == "note" else [pedal(tick, value)]
    performance = read_midi(midi(*(track(*sorted(line, key=lambda event: event[0])) for line in lines)))
    once = extend_by_pedal(performance, group=group)
    twice = extend_by_pedal(once, group=group).notes
    ticks = ["onset_tick", "duration_tick", "pitch", "velocity", "track"]
    np.testing.assert_array_equal(twice[ticks], once.notes[ticks])
    np.testing.assert_allclose(twice["duration_sec"], once.notes["duration_sec"], rtol=0, atol=1e-12)
    assert (once.notes["duration_tick"] > 0).all()
    assert len(once.notes) <= len(performance.notes)
    kept = set(once.notes[["onset_tick", "pitch"]].tolist())
    assert kept == set(performance.notes[["onset_tick", "pitch"]].tolist())
    if group == "channel":  # one string a key
        for key in range(60, 64):
            notes = once.notes[once.notes["pitch"] == key]
            assert (notes["onset_tick"][1:] >= (notes["onset_tick"] + notes["duration_tick"])[:-1]).all()
