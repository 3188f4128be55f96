"""Note rows, cutting and prompts of MIDI-VALLE, token for token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midisynth.models.midi_valle.codec import SPECIALS, VOCABULARIES, NoteRows
from midisynth.models.midi_valle.prompts import Prompt, midi_end_sec
from midisynth.models.midi_valle.segments import PUBLISHED_TICKS, published_cut, published_points
from midisynth.music.midi import read_midi


@pytest.fixture(scope="module")
def fixture(parity_root) -> tuple[Path, dict[str, Any]]:
    root = parity_root("midi_valle")
    if not (root / "tokens.json").is_file():
        pytest.skip("tokens.json does not ship; MIDISYNTH_PARITY names the folder of all fixtures")
    return root, json.loads((root / "tokens.json").read_text())


@pytest.fixture
def midi(fixture):
    """Path of a MIDI file of the fixture."""

    def path(name: str) -> Path:
        found = fixture[0] / name
        if not found.is_file():
            pytest.skip(f"{name} does not ship; MIDISYNTH_PARITY names the folder of all fixtures")
        return found

    return path


#: The tokenizer counts more bars than the model has rows for.
ROWS = NoteRows(bars=3000, compat="published")


def test_vocabulary(fixture):
    vocabulary = fixture[1]["vocab"]
    assert list(VOCABULARIES) == vocabulary["sizes_model"]
    assert max(vocabulary["special"].values()) == SPECIALS - 1


@pytest.mark.parametrize("case", ["perf", "edge", "tempo", "prompt"])
def test_files(fixture, midi, case):
    found = fixture[1][case]
    wanted = found["tokens_of_whole_file" if case == "perf" else "tokens"]
    np.testing.assert_array_equal(ROWS.encode(ROWS.read(midi(found["file"]))), wanted)


def test_whole_numbers_where_the_file_is_at_120(fixture, midi):
    """Without "published" too, up to keys that are struck again while they sound."""
    case = fixture[1]["perf"]
    path = midi(case["file"])
    rows = NoteRows(bars=3000)
    file = read_midi(path, overlap="fifo")
    performance = rows.playable(file)
    if performance.ticks_per_quarter != file.ticks_per_quarter or len(set(file.notes["track"].tolist())) > 1:
        pytest.skip(f"{path.name} is not of one track at 120 bpm")
    np.testing.assert_array_equal(rows.encode(performance), case["tokens_of_whole_file"])


def test_points(fixture):
    for duration, points in fixture[1]["segment_points"].items():
        assert published_points(float(duration)) == points


def test_segments(fixture, midi):
    case = fixture[1]["perf"]
    performance = read_midi(midi(case["file"]), overlap="all")
    assert performance.end_sec == pytest.approx(case["duration"], abs=1e-9)
    segments = published_cut(performance, published_points(case["duration"]))
    for segment, wanted in zip(segments, fixture[1]["segments"], strict=True):
        assert (segment.start_sec, segment.end_sec) == (wanted["start"], wanted["end"])
        assert len(segment.performance.notes) == len(wanted["notes"])
        assert len(segment.performance.controls) == wanted["n_control_changes"]
        np.testing.assert_array_equal(ROWS.encode(segment.performance), wanted["tokens"])
        np.testing.assert_array_equal(ROWS.encode(ROWS.read(midi(wanted["file"]))), wanted["tokens"])


def test_prompt_and_segment(fixture, midi):
    case, joined = fixture[1]["prompt"], fixture[1]["concatenated"]
    prompt = read_midi(midi(case["file"]), overlap="all")
    assert midi_end_sec(prompt) == pytest.approx(case["end_time"], abs=1e-9)
    index = int(Path(joined["file"]).stem.rpartition("_")[2])
    segment = read_midi(midi(fixture[1]["segments"][index]["file"]), overlap="all")
    both = Prompt(None, case["audio_prompt_seconds"], prompt, midi_end_sec(prompt), PUBLISHED_TICKS)
    np.testing.assert_array_equal(ROWS.encode(both.followed_by(segment)), joined["tokens"])


def test_decoding(fixture):
    case = fixture[1]["decode"]
    index = int(case["of"].partition("[")[2].partition("]")[0])
    performance = ROWS.decode(np.array(fixture[1]["segments"][index]["tokens"]))
    assert performance.ticks_per_quarter == case["ticks_per_quarter"]
    names = ["onset_tick", "duration_tick", "pitch", "velocity"]
    notes = np.stack([performance.notes[name] for name in names], axis=1)
    np.testing.assert_array_equal(notes, case["notes_tick_dur_pitch_vel"])
