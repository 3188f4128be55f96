"""Malformed and hostile files: one error type, in bounded time and memory.

MIDISYNTH_MUTANTS=2000 asks for the full run.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import mutants
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smf_bytes import length, midi, off, on, track

from midisynth.errors import MidiError
from midisynth.music.midi import read_midi

DATA = Path(__file__).parent / "data"
BAD = DATA / "midi_bad"

REFUSED = {
    "track 1 is cut off": ["truncated_10pct", "truncated_50pct", "truncated_90pct", "truncated_99pct"],
    "of .* bytes are there": ["MIDIBadTrackLength", "track_length_ffffffff", "test-corrupt-file-missing-byte"],
    "data byte .* is over 127": ["bitflip_64", "data_byte_over_127"],
    "data without a status byte": ["bitflip_256", "running_status_without_status", "seven_bit_damage", "mtrk_noise"],
    "track 1 is damaged at its byte 1: ": ["ftp_ascii_damage"],
    "should begin a track": ["bitflip_1024", "mthd_then_noise", "MIDIBadHeaderLength"],
    "no tracks": ["header_only", "lowercase_mtrk", "MIDIBadTrackHdr", "type2", "ticks-per-beat-480"],
    "header is cut off": ["header_cut"],
    "not a MIDI file": [
        "one_byte",
        "png_image",
        "text_file",
        "random_16k",
        "MIDIBadHeaderChunk",
        "test-not-a-midi-file",
    ],
    "gzip data; unpack it": ["gzipped"],
    "it is empty": ["test-empty-file"],
    "over the limit of 7,200 s": ["absurd_delta", "absurd_delta_many"],
    "number of more than 4 bytes": ["vlq_too_long"],
    "an event is incomplete": ["track_length_short"],
    "division is 0": ["division_zero", "zero-ticks-per-beat"],
    "SMPTE division of": ["division_0x8000", "smpte_invalid_fps", "MIDIBadHeaderSMTPE", "negative-ticks-per-beat"],
    "longer than its track": ["unterminated_sysex", "meta_length_past_end"],
    "bytes stand before the header": ["leading_junk", "utf8_bom"],
    "undefined status byte F4": ["test-illegal-message-all", "test-illegal-message-f4"],
    "type 3 does not exist": ["MIDIBadHeaderFormat"],
}
# File: number of notes, and the start of its only warning.
READ = {
    "bitflip_1": (810, None),
    "bitflip_4": (810, None),
    "bitflip_16": (814, "note never released"),
    "ntracks_65535": (8, "the header announces 65535 tracks, the file has 1"),
    "ntracks_zero": (8, "the header announces 0 tracks"),
    "MIDIBadHeaderTracksNum": (4, "the header announces 2 tracks"),
    "tempo_zero": (8, "impossible tempo"),
    "tempo_length_2": (8, "impossible tempo"),
    "key_signature_100": (8, "impossible key signature"),
    "time_signature_zero": (8, "impossible time signature"),
    "time_signature_pow255": (8, "impossible time signature"),
    "note_off_only": (0, None),
    "concatenated": (8, "a second MIDI file"),
    "riff_rmid": (810, None),
    "path_traversal_name": (8, None),
    "test-corrupt-file-extra-byte": (8, "1 bytes after the last track"),
    "test-illegal-message-f1-xx": (8, "system messages"),
    "test-illegal-message-f2-xx-xx": (8, "system messages"),
    "test-illegal-message-f8": (8, "system messages"),
    "test-illegal-message-fe": (8, "system messages"),
    "test-running-status-sysex": (8, None),
    "MIDIBadFormat1": (4, None),
}
# What `repair` makes of files that are refused without it: number of notes, and a part of a warning.
REPAIRED = {
    "truncated_50pct": (244, "end-of-track event missing"),
    "truncated_99pct": (477, "track 1 is damaged and was cut"),
    "data_byte_over_127": (1, "data bytes over 127 clamped (2 times)"),
    "leading_junk": (8, "128 bytes before the header skipped"),
    "utf8_bom": (8, "3 bytes before the header skipped"),
    "test-corrupt-file-missing-byte": (8, "track 1 is damaged and was cut"),
    "MIDIBadTrackLength": (4, ""),
}


def test_every_file_has_a_verdict():
    files = {path.stem for path in BAD.glob("*.mid")}
    assert files == {name for names in REFUSED.values() for name in names} | set(READ) | {"events_after_eot"}


@pytest.mark.parametrize("cause, name", [(cause, name) for cause, names in REFUSED.items() for name in names])
def test_refused(cause, name):
    path = BAD / f"{name}.mid"
    with pytest.raises(MidiError, match=cause) as caught:
        read_midi(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # it may cross a process


@pytest.mark.parametrize("name", READ)
def test_read(name):
    count, warning = READ[name]
    performance = read_midi(BAD / f"{name}.mid")
    assert len(performance.notes) == count
    assert len(performance.warnings) == (warning is not None)
    assert all(text.startswith(warning) for text in performance.warnings)


def test_events_after_end_of_track_are_ignored():
    performance = read_midi(BAD / "events_after_eot.mid")
    assert len(performance.notes) == 2 and "events after the end of a track ignored" in performance.warnings


@pytest.mark.parametrize("name", REPAIRED)
def test_repair(name):
    count, warning = REPAIRED[name]
    performance = read_midi(BAD / f"{name}.mid", repair=True)
    assert len(performance.notes) == count
    assert any(warning in text for text in performance.warnings) or not warning


def test_things_that_are_no_files(tmp_path):
    folder = tmp_path / "folder.mid"
    folder.mkdir()
    for path, cause in ((folder, "directory"), (tmp_path / "missing.mid", "No such file"), ("a\0b.mid", "null")):
        with pytest.raises(MidiError, match=cause):
            read_midi(path)


HOSTILE = {
    "65,535 empty tracks": midi(*[track()] * 65535),
    "long text": midi(track((0, b"\xff\x01" + length(400_000) + bytes(400_000)), on(0), off(480))),
    "zeros": bytes(65536),
    "500,000 program changes": midi(track((0, b"\xc0\x01" + b"\x00\x01" * 499_999))),
    "333,000 strokes of one key": midi(track((0, b"\x90\x3c\x40" + b"\x00\x3c\x40" * 333_000))),
    "140,000 tempi": midi(
        track((1, b"\xff\x51\x03\x07\xa1\x20" + b"\x01\xff\x51\x03\x07\xa1\x20" * 140_000)), division=32767
    ),
    "250,000 bad key signatures": midi(track((0, b"\xff\x59\x00" + b"\x00\xff\x59\x00" * 250_000))),
    "250,000 track names": midi(track((0, b"\xff\x03\x00" + b"\x00\xff\x03\x00" * 250_000))),
    "330,000 system exclusives": midi(track((0, b"\xf0\x00" + b"\x00\xf0\x00" * 330_000))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bounded_time_and_memory(name):
    data = HOSTILE[name]
    start = time.process_time()
    try:
        read_midi(data)
    except MidiError:
        assert name == "zeros"
    assert time.process_time() - start < 2
    tracemalloc.start()
    try:
        read_midi(data)
    except MidiError:
        assert name == "zeros"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 300e6


@pytest.mark.parametrize("repair", [False, True])
def test_declared_length_is_refused_early(repair):
    """A file of 1 MB that claims centuries, and one that is a second too long."""
    data = midi(track((0, b"\x90\x3c\x40" + b"\xff\xff\xff\x7f\x3c\x40" * 166_000)))
    start = time.process_time()
    with pytest.raises(MidiError, match="over the limit of 7,200 s"):
        read_midi(data, repair=repair)
    assert time.process_time() - start < 1
    tracemalloc.start()
    with pytest.raises(MidiError):
        read_midi(data, repair=repair)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6

    trailing_silence = midi(track(on(0), off(480), end=7201 * 960))
    with pytest.raises(MidiError, match="it lasts 7,201 s"):
        read_midi(trailing_silence)
    assert read_midi(trailing_silence, max_duration_sec=7201).end_sec == 0.5


def test_mutants_of_real_files():
    """Nothing but `MidiError` in 2 s and 300 MB for each file, and no signal: a dead worker breaks the pool."""
    count = int(os.environ.get("MIDISYNTH_MUTANTS", "200"))
    names = ("partitura_bach_midi_score", "muspy_fur-elise", "jazzsoft_test-karaoke-kar", "pedal_edges")
    seeds = [(DATA / "midi_zoo" / f"{name}.mid").read_bytes() for name in names]
    seeds.append((BAD / "riff_rmid.mid").read_bytes())
    files = list(mutants.mutants(seeds, count))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=mutants.limit) as pool:
        results = [*pool.map(mutants.outcome, files * 2, [False] * count + [True] * count, chunksize=50)]
    kinds = {kind for kind, _ in results}
    assert kinds == {"read", "refused"}
    assert max(seconds for _, seconds in results) < mutants.SECONDS
    # The damage is neither so light nor so heavy that only one branch is tried.
    assert 0.2 < sum(kind == "read" for kind, _ in results[:count]) / count < 0.8


@settings(deadline=None, max_examples=200)
@given(body=st.binary(max_size=200), division=st.integers(0, 65535), kind=st.integers(0, 2), repair=st.booleans())
def test_any_bytes_as_a_track(body, division, kind, repair):
    data = midi(b"MTrk" + len(body).to_bytes(4, "big") + body, division=division, kind=kind)
    try:
        performance = read_midi(data, repair=repair, pattern=0)
    except MidiError:
        return
    assert (performance.notes["duration_tick"] > 0).all()
    assert performance.end_sec <= 7201
