from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midisynth.errors import MidiError, UsageError
from midisynth.models.spectrogram_diffusion.tokens import (
    PADDING,
    SEGMENT_NOTE_DTYPE,
    Vocabulary,
    decode_segment,
    note_events,
    segment_tokens,
)
from midisynth.music.midi import write_midi
from midisynth.music.notes import DRUM_CHANNEL, NOTE_DTYPE, Performance, is_drum

STEPS = 128


def test_published_vocabulary():
    vocabulary = Vocabulary(514)
    ids = (vocabulary.pitch, vocabulary.velocity, vocabulary.tie, vocabulary.program, vocabulary.drum, len(vocabulary))
    assert ids == (514, 642, 644, 645, 773, 901)


@st.composite
def note_lists(draw) -> np.ndarray:
    """Notes on the grid of steps; notes of one key and program do not overlap, but may follow at once."""
    rows = []
    for program, pitch in draw(st.sets(st.tuples(st.sampled_from([0, 7, 127]), st.integers(0, 127)), max_size=6)):
        borders = sorted(draw(st.sets(st.integers(0, 3 * STEPS), max_size=8)))
        for onset, end in pairwise(borders):
            if draw(st.booleans()):
                rows.append((onset, end, pitch, program, draw(st.integers(1, 127)), 0))
    drums = draw(st.dictionaries(st.tuples(st.integers(0, 3 * STEPS), st.integers(0, 127)), st.integers(1, 127)))
    rows += [(onset, onset + 1, pitch, 0, velocity, DRUM_CHANNEL) for (onset, pitch), velocity in drums.items()]
    notes = np.zeros(len(rows), NOTE_DTYPE)
    for note, (onset, end, pitch, program, velocity, channel) in zip(notes, rows, strict=True):
        note["onset_sec"], note["duration_sec"] = onset / 100, (end - onset) / 100
        note["pitch"], note["program"], note["velocity"], note["channel"] = pitch, program, velocity, channel
    return notes


def expected_segment(notes: np.ndarray, first: int, bins: int) -> np.ndarray:
    """What a segment says of the notes, found note by note."""
    rows = []
    for note in notes:
        onset = round(note["onset_sec"] * 100) - first
        end = round((note["onset_sec"] + note["duration_sec"]) * 100) - first
        velocity_bin = -(-bins * int(note["velocity"]) // 127)
        if note["channel"] == DRUM_CHANNEL:
            if 0 <= onset < STEPS:
                rows.append((onset, onset, note["pitch"], 0, velocity_bin, True, False))
        elif onset < 0 <= end:
            rows.append((0, min(end, STEPS), note["pitch"], note["program"], 1, False, True))
        elif 0 <= onset < STEPS:
            rows.append((onset, min(end, STEPS), note["pitch"], note["program"], velocity_bin, False, False))
    return np.sort(np.array(rows, SEGMENT_NOTE_DTYPE), order=["onset_step", "program", "pitch"])


@settings(max_examples=150, deadline=None)
@given(note_lists(), st.sampled_from([1, 4, 127]), st.integers(0, 3 * STEPS))
def test_decoding_inverts_encoding(notes, bins, first):
    """For segments that start anywhere, whatever sounds across their borders."""
    vocabulary = Vocabulary(STEPS + 2, bins)
    tokens = segment_tokens(note_events(notes, velocity_bins=bins), first, STEPS, vocabulary)
    assert PADDING not in tokens
    assert max(tokens) < len(vocabulary)
    np.testing.assert_array_equal(decode_segment(tokens, STEPS, vocabulary), expected_segment(notes, first, bins))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 130 + 128 * 3 + 4)))
def test_decoding_takes_whatever_a_network_writes(tokens):
    notes = decode_segment(tokens, STEPS, Vocabulary(STEPS + 2, 3))
    assert (notes["onset_step"] <= STEPS + 1).all()


def test_real_files_survive_as_one_segment(build, midi_files):
    codec = build(segment_frames=1600, velocity_bins=127, max_tokens=10000).codec
    for path in midi_files:
        performance = codec.read(path)
        notes = performance.notes
        tokens = codec.encode_segment(performance, 0.0)["tokens"].tolist()
        decoded = decode_segment(tokens, codec.segment_steps, codec.vocabulary)
        assert len(decoded) == len(notes)
        order = np.lexsort((notes["pitch"], np.where(is_drum(notes), 0, notes["program"]), notes["onset_sec"].round(2)))
        np.testing.assert_array_equal(np.sort(decoded["pitch"]), np.sort(notes["pitch"]))
        np.testing.assert_array_equal(np.sort(decoded["velocity_bin"]), np.sort(notes["velocity"]))
        np.testing.assert_allclose(decoded["onset_step"], notes[order]["onset_sec"] * 100, atol=0.51)


def test_notes_far_away_change_no_token(build, midi_files):
    """Cutting a segment out of a piece looks only at the notes that matter to it: also where notes of a key overlap."""
    codec = build().codec
    notes = codec.read(midi_files[1]).notes
    crowded = notes.copy()
    crowded["pitch"], crowded["duration_sec"] = 60 + notes["pitch"] % 3, 3 * notes["duration_sec"]
    for piece in (notes, crowded):
        for start_sec in np.linspace(-0.5, 11, 24):
            events = note_events(piece, start_sec)
            wanted = segment_tokens(events, 0, codec.segment_steps, codec.vocabulary)
            got = codec.encode_segment(Performance(notes=piece), start_sec)["tokens"].tolist()
            assert got == wanted


def test_a_file_is_cut_into_the_segments_that_training_sees(build, midi_files):
    codec = build(note_roll=True).codec
    for path in midi_files:
        performance = codec.read(path)
        piece = codec.encode(path)
        advance_sec = codec.advance_frames * 320 / 16000
        for index, segment in enumerate(piece["segments"]):
            again = codec.encode_segment(performance, index * advance_sec)
            assert segment.keys() == again.keys() == {"tokens", "notes"}
            torch.testing.assert_close(segment["notes"], again["notes"])
            one, other = (
                decode_segment(tokens.tolist(), codec.segment_steps, codec.vocabulary)
                for tokens in (segment["tokens"], again["tokens"])
            )
            # Times are rounded on two clocks, so a step apart is the same.
            for field in ("onset_step", "end_step"):
                keys = ("drum", "program", "pitch", field)
                np.testing.assert_array_equal(np.sort(one, order=keys)["pitch"], np.sort(other, order=keys)["pitch"])
                np.testing.assert_allclose(np.sort(one, order=keys)[field], np.sort(other, order=keys)[field], atol=1)


def test_segments_cover_the_piece_and_its_tail(build, midi_files):
    model = build(tail_sec=0.75)
    piece = model.codec.encode(midi_files[0])
    end_sec = model.codec.read(midi_files[0]).end_sec
    assert piece["samples"] == round((end_sec + 0.75) * 16000)
    assert 0 <= piece["frames"] * 320 - piece["samples"] < 320
    covered = (len(piece["segments"]) - 1) * 56 + 64
    assert 0 <= covered - piece["frames"] < 64


def test_collate_pads_with_what_leaves_no_trace(build):
    codec = build(note_roll=True).codec
    examples = [
        {"tokens": torch.tensor([5, 6]), "notes": torch.ones(2, 4), "audio": torch.ones(10)},
        {"tokens": torch.tensor([7]), "notes": torch.ones(0, 4), "audio": torch.zeros(10)},
    ]
    batch = codec.collate(examples)
    assert batch["tokens"].tolist() == [[5, 6], [7, PADDING]]
    assert batch["notes"].shape == (2, 2, 4) and (batch["notes"][1] == 0).all()
    assert batch["audio"].shape == (2, 10)
    assert codec.collate(examples[1:])["notes"].shape == (1, 1, 4)


def performance_of(*rows: tuple[float, float, int, int]) -> Performance:
    """Rows of onset (s), duration (s), pitch, channel."""
    notes = np.zeros(len(rows), NOTE_DTYPE)
    for note, (onset, duration, pitch, channel) in zip(notes, rows, strict=True):
        note["onset_sec"], note["duration_sec"], note["pitch"], note["channel"] = onset, duration, pitch, channel
        note["onset_tick"], note["duration_tick"] = round(onset * 960), round(duration * 960)
        note["velocity"] = 80
    return Performance(notes=notes, track_names=[""])


def test_files_that_cannot_be_rendered_are_named(build, tmp_path):
    path = tmp_path / "empty.mid"
    write_midi(performance_of(), path)
    with pytest.raises(MidiError, match=r"empty\.mid: has no notes"):
        build().codec.encode(path)
    path = tmp_path / "drums.mid"
    write_midi(performance_of((0.0, 0.1, 36, DRUM_CHANNEL)), path)
    assert len(build().codec.encode(path)["segments"]) == 1
    with pytest.raises(MidiError, match=r"drums\.mid: has no pitched notes"):
        build(tokens=False, note_roll=True).codec.encode(path)
    path = tmp_path / "dense.mid"
    write_midi(performance_of(*((i / 50, 0.01, 40 + i, 0) for i in range(50))), path)
    with pytest.raises(MidiError, match=r"dense\.mid: \d+ note tokens in the 1\.28 s from 0\.00 s.*takes 100"):
        build(max_tokens=100).codec.encode(path)


def test_too_small_a_vocabulary_is_refused(build):
    with pytest.raises(UsageError, match="shift_ids is 100, but a segment has 128 time steps"):
        build(shift_ids=100)
