"""What the reader makes of ordinary and of ambiguous files."""

from __future__ import annotations

import csv
import io
import random
import time
from fractions import Fraction
from pathlib import Path

import mido
import numpy as np
import pytest
from smf_bytes import control, meta, midi, off, on, program, tempo, track

from midisynth.errors import MidiError
from midisynth.music.midi import read_midi
from midisynth.music.notes import Performance

DATA = Path(__file__).parent / "data"
with open(DATA / "midi_zoo.csv", newline="") as table:
    ZOO = {row["file"]: row for row in csv.DictReader(table)}


def spans(performance: Performance) -> list[tuple[float, float]]:
    """Onset and end of each note (seconds)."""
    notes = performance.notes
    return [(float(n["onset_sec"]), float(n["onset_sec"] + n["duration_sec"])) for n in notes]


# At 480 ticks a quarter and 120 bpm, 240 ticks are 0.25 s.
OVERLAPS = {
    "second release ends the second note": (
        (on(0), on(240), off(480), off(720)),
        [(0, 0.25), (0.25, 0.75)],
        [(0, 0.5), (0.25, 0.75)],
    ),
    "one release for two strokes": ((on(0), on(240), off(480)), [(0, 0.25), (0.25, 0.5)], [(0, 0.5), (0.25, 2.0)]),
    "stroke before release at one tick": (
        (on(0), on(480), off(480), off(960)),
        [(0, 0.5), (0.5, 1.0)],
        [(0, 0.5), (0.5, 1.0)],
    ),
    "chain of strokes before releases": (
        (on(0), on(240), off(240), on(480), off(480), off(720)),
        [(0, 0.25), (0.25, 0.5), (0.5, 0.75)],
        [(0, 0.25), (0.25, 0.5), (0.5, 0.75)],
    ),
    "a lost release does not spread": (
        (on(0), on(240), off(480), on(720), off(960), on(1200), off(1440)),
        [(0, 0.25), (0.25, 0.5), (0.75, 1.0), (1.25, 1.5)],
        [(0, 0.5), (0.25, 1.0), (0.75, 1.5), (1.25, 2.0)],
    ),
    "velocity 0 is a release": ((on(0), on(240, velocity=0)), [(0, 0.25)], [(0, 0.25)]),
    "release of a silent key": ((off(0), on(240), off(480), off(720)), [(0.25, 0.5)], [(0.25, 0.5)]),
    "keys do not mix": (
        (on(0), on(120, 61), off(240), off(480, 61)),
        [(0, 0.25), (0.125, 0.5)],
        [(0, 0.25), (0.125, 0.5)],
    ),
}


@pytest.mark.parametrize("events, restrike, fifo", OVERLAPS.values(), ids=OVERLAPS)
def test_overlapping_notes(events, restrike, fifo):
    data = midi(track(*events, end=1920))
    assert spans(read_midi(data)) == restrike
    assert spans(read_midi(data, overlap="fifo")) == fifo


def test_never_released_notes_end_with_their_track():
    performance = read_midi(midi(track(on(0), end=480), track(on(0, 62), end=960)))
    assert spans(performance) == [(0, 0.5), (0, 1.0)]
    assert performance.warnings == ["note never released, closed at the end of its track (2 times)"]


def test_zero_length_notes_are_kept():
    data = midi(track(on(0), off(0), on(480), off(960)))
    assert read_midi(data).notes["duration_tick"].tolist() == [1, 480]
    assert read_midi(data, min_duration_ticks=24).notes["duration_tick"].tolist() == [24, 480]
    assert "note shorter than 24" in read_midi(data, min_duration_ticks=24).warnings[0]


def test_tempo_counts_in_any_track():
    performance = read_midi(midi(track(on(0), off(960)), track(tempo(480, 1_000_000))))
    assert spans(performance) == [(0, 1.5)]
    assert performance.tempos["usec_per_quarter"].tolist() == [500_000, 1_000_000]


def test_controllers_are_kept_without_notes_and_across_tracks():
    performance = read_midi(midi(track(control(480, 64, 127)), track(control(0, 7, 90, channel=3))))
    assert performance.controls[["time_sec", "number", "value", "channel", "track"]].tolist() == [
        (0.0, 7, 90, 3, 1),
        (0.5, 64, 127, 0, 0),
    ]


def test_programs():
    performance = read_midi(
        midi(
            track(program(0, 5), program(960, 6)),  # a set-up track for those without a program of their own
            track(on(0), off(480), on(960), off(1440)),
            # A program of its own does not spread to a track that has one too, though they share a channel.
            track(program(0, 40, 1), on(0, channel=1), off(480, channel=1), program(480, 41, 1), on(480, channel=1)),
            track(program(0, 50, 1), on(0, channel=1), off(480, channel=1), on(960, channel=1)),
            track(on(0, channel=2), off(480, channel=2)),
        )
    )
    programs = {(int(n["track"]), int(n["onset_tick"])): int(n["program"]) for n in performance.notes}
    assert programs == {(1, 0): 5, (1, 960): 6, (2, 0): 40, (2, 480): 41, (3, 0): 50, (3, 960): 50, (4, 0): 0}


@pytest.mark.parametrize("frames, rate", [(24, 24), (25, 25), (29, Fraction(30000, 1001)), (30, 30)])
@pytest.mark.parametrize("ticks", [1, 3, 40, 80, 255])
def test_smpte_division(frames, rate, ticks):
    onsets = [0, 7, 1000, 100_000]
    events = [event for onset in onsets for event in (on(onset), off(onset + 5))]
    performance = read_midi(
        midi(track(tempo(0, 123_456), *events), division=(256 - frames) << 8 | ticks), max_duration_sec=1e9
    )
    exact = [float(Fraction(onset) / (rate * ticks)) for onset in onsets]
    np.testing.assert_allclose(performance.notes["onset_sec"], exact, rtol=0, atol=1e-9)


def test_riff_wrapper():
    inner = midi(track(on(0), off(480)))
    chunk = b"LIST\x03\x00\x00\x00abc\x00" + b"data" + len(inner).to_bytes(4, "little") + inner
    wrapped = b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"RMID" + chunk
    assert spans(read_midi(wrapped)) == [(0, 0.5)]


def test_impossible_signatures_are_ignored():
    performance = read_midi(
        midi(track(meta(0, 0x59, b"\x64\x05"), meta(0, 0x58, b"\x00\x02\x18\x08"), meta(0, 0x58, b"\x06\x03\x18\x08")))
    )
    assert len(performance.key_signatures) == 0
    assert performance.time_signatures[["numerator", "denominator"]].tolist() == [(6, 8)]
    assert performance.warnings == ["impossible time signature ignored", "impossible key signature ignored"]


def test_type_2_needs_a_pattern():
    data = midi(track(on(0), off(480)), track(tempo(0, 250_000), on(0, 72), off(480, 72)), kind=2)
    with pytest.raises(MidiError, match=r"type 2: 2 independent patterns.*`pattern` picks one"):
        read_midi(data)
    performance = read_midi(data, pattern=1)
    assert spans(performance) == [(0, 0.25)] and performance.notes["pitch"].tolist() == [72]
    assert spans(read_midi(data, pattern=0)) == [(0, 0.5)]
    with pytest.raises(MidiError, match="pattern 2 does not exist; it has patterns 0 to 1"):
        read_midi(data, pattern=2)


def test_fine_resolution_is_limited_by_seconds_not_ticks():
    performance = read_midi(midi(track(on(0), off(13_106_800)), division=32767))
    assert performance.end_sec == pytest.approx(200)


@pytest.mark.parametrize("source", ["bytes", "file", "path", "str"])
def test_sources(source, tmp_path):
    data = midi(track(meta(0, 0x03, b"piano"), on(0), off(480)))
    path = tmp_path / "x.mid"
    path.write_bytes(data)
    performance = read_midi({"bytes": data, "file": io.BytesIO(data), "path": path, "str": str(path)}[source])
    assert performance.track_names == ["piano"] and len(performance.notes) == 1


def test_track_names_in_any_encoding():
    names = read_midi(DATA / "midi_zoo" / "track_name_encodings.mid").track_names
    assert len(names) == 5 and names[-1] == "" and all(names[:-1])


@pytest.mark.parametrize("seed", range(3))
def test_tempo_map_is_exact(seed):
    """200 tempo changes in random tracks, and every time equal to its exact fraction."""
    rng = random.Random(seed)
    division = rng.choice([1, 96, 480, 960, 32767])
    changes = {
        rng.randrange(division * 600): rng.choice([1, 250_000, 333_333, 500_001, 16_777_215]) for _ in range(200)
    }
    ticks = sorted({rng.randrange(division * 700) for _ in range(500)})
    tracks = [[] for _ in range(4)]
    for tick, usec in changes.items():
        rng.choice(tracks).append(tempo(tick, usec))
    tracks[3] += [event for tick in ticks for event in (on(tick, tick % 128), off(tick + 1, tick % 128))]
    data = midi(*(track(*sorted(events, key=lambda e: e[0])) for events in tracks), division=division)
    performance = read_midi(data, max_duration_sec=1e6)

    def exact(tick: int) -> Fraction:
        elapsed, last, usec = Fraction(0), 0, 500_000
        for change in sorted(changes):
            if change > tick:
                break
            elapsed, last, usec = elapsed + (change - last) * usec, change, changes[change]
        return (elapsed + (tick - last) * usec) / (division * 10**6)

    notes = performance.notes
    assert notes["onset_tick"].tolist() == ticks
    np.testing.assert_allclose(notes["onset_sec"], [float(exact(t)) for t in ticks], rtol=0, atol=1e-9)
    ends = notes["onset_sec"] + notes["duration_sec"]
    np.testing.assert_allclose(ends, [float(exact(t + 1)) for t in ticks], rtol=0, atol=1e-9)


@pytest.mark.parametrize("file", ZOO)
def test_zoo(file):
    performance, row = read_midi(DATA / "midi_zoo" / file), ZOO[file]
    assert len(performance.notes) == int(row["notes"])
    assert int((performance.notes["channel"] == 9).sum()) == int(row["drum_notes"])
    assert int((performance.controls["number"] == 64).sum()) == int(row["sustain_events"])
    assert len(performance.bends) == int(row["pitch_bends"])
    assert performance.end_sec == pytest.approx(float(row["end_sec"]), abs=1e-4)
    assert (performance.notes["duration_tick"] > 0).all()
    assert (np.diff(performance.notes["onset_tick"]) >= 0).all()


@pytest.mark.parametrize("file", [name for name, row in ZOO.items() if row["notes"] != "0" and "non-midi" not in name])
def test_onsets_agree_with_mido(file):
    """Onsets, pitches and velocities are beyond dispute, so that another reader must find the same."""
    performance = read_midi(DATA / "midi_zoo" / file)
    expected = []
    for one in (source := mido.MidiFile(DATA / "midi_zoo" / file, clip=True)).tracks:
        tick = 0
        for message in one:
            tick += message.time
            if message.type == "note_on" and message.velocity:
                expected.append((tick, message.note, message.velocity, message.channel))
    notes = performance.notes
    assert len(source.tracks) == len(performance.track_names)
    assert sorted(expected) == sorted(notes[["onset_tick", "pitch", "velocity", "channel"]].tolist())


def test_speed():
    rng = random.Random(0)
    events = [on(0)]
    for index in range(100_000):
        pitch = rng.randrange(128)
        events += [on(index * 10, pitch), off(index * 10 + 8, pitch)]
    data = midi(track(*events), division=960)
    start = time.process_time()
    performance = read_midi(data)
    assert len(performance.notes) == 100_001
    assert time.process_time() - start < 2
