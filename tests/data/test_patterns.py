"""Generated patterns: equal for equal seeds, well-formed, and all over the keyboard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from midisynth.datasets.patterns import random_exercise, random_pattern
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.pedal import extend_by_pedal


def pattern(seed: int, seconds: float = 30.0):
    return random_pattern(np.random.default_rng(seed), seconds)


MAKERS = pytest.mark.parametrize("make", [random_pattern, random_exercise])


@MAKERS
def test_equal_seeds_give_equal_patterns(make):
    one, two, other = (make(np.random.default_rng(seed), 30.0) for seed in (1, 1, 2))
    assert np.array_equal(one.notes, two.notes)
    assert np.array_equal(one.controls, two.controls)
    assert not np.array_equal(one.notes, other.notes)


@MAKERS
@pytest.mark.parametrize("seed", range(20))
def test_patterns_are_well_formed(seed: int, make):
    made = make(np.random.default_rng(seed), 12.0)
    notes = made.notes
    assert len(notes) > (5 if make is random_pattern else 0)
    assert notes["onset_sec"].min() >= 0
    assert made.end_sec <= 12.0 + 1e-9
    assert (notes["duration_sec"] > 0).all()
    assert (notes["duration_tick"] > 0).all()
    assert set(notes["pitch"]) <= set(range(21, 109))
    assert set(notes["velocity"]) <= set(range(1, 128))
    assert (np.diff(notes["onset_sec"]) >= 0).all()
    assert (np.diff(made.controls["time_sec"]) >= 0).all()
    assert made.controls["value"][-1] == 0 if len(made.controls) else True


def test_an_hour_covers_keys_loudness_and_polyphony():
    notes = np.concatenate([pattern(seed).notes for seed in range(120)])
    assert set(notes["pitch"]) == set(range(21, 109))
    assert np.bincount(notes["pitch"], minlength=109)[21:].min() > 50
    assert len(set(notes["velocity"])) > 120
    loud_and_soft = [{v > 64 for v in notes["velocity"][notes["pitch"] == key]} for key in range(21, 109)]
    assert all(kinds == {True, False} for kinds in loud_and_soft)
    polyphony = []
    pedalled = 0
    for seed in range(40):
        sounding = extend_by_pedal(pattern(seed))
        pedalled += sounding.notes["duration_sec"].sum() > pattern(seed).notes["duration_sec"].sum() + 1
        times = np.arange(0, 30, 0.1)
        onset, end = sounding.notes["onset_sec"], sounding.notes["onset_sec"] + sounding.notes["duration_sec"]
        polyphony += [int(((onset <= t) & (end > t)).sum()) for t in times]
    assert min(polyphony) <= 1
    assert max(polyphony) >= 20
    assert pedalled > 20


@MAKERS
def test_a_hundred_and_fifty_clips_cover_every_key_at_every_loudness(make):
    """Cells of a key and an eighth of the velocities."""
    notes = np.concatenate([make(np.random.default_rng(seed), 30.0).notes for seed in range(150)])
    cells = np.zeros((88, 8), int)
    np.add.at(cells, (notes["pitch"] - 21, notes["velocity"] // 16), 1)
    assert cells.min() >= 5
    assert np.median(cells) >= 20


def test_exercises_have_what_patterns_lack():
    made = [random_exercise(np.random.default_rng(seed), 30.0) for seed in range(60)]
    played = np.concatenate([clip.notes for clip in made])
    assert (played["duration_sec"] > 9).sum() > 3  # held by hand
    sounding = [extend_by_pedal(clip).notes for clip in made]
    assert sum((after["duration_sec"] > 9).sum() for after in sounding) > 10  # or by the pedal
    assert (played["duration_sec"] < 0.06).sum() > 100
    silent = 0
    for notes in sounding:
        times = np.arange(0, 30, 0.1)
        onset, end = notes["onset_sec"], notes["onset_sec"] + notes["duration_sec"]
        quiet = ((onset[:, None] <= times) & (end[:, None] > times)).sum(axis=0) == 0
        silent += "1" * 12 in "".join("01"[value] for value in quiet.astype(int))
    assert silent > 15
    speeds = []
    for clip in made:
        for key in np.unique(clip.notes["pitch"]):
            speeds += np.diff(np.sort(clip.notes["onset_sec"][clip.notes["pitch"] == key])).tolist()
    paces, _ = np.histogram(speeds, [0.06, 0.08, 0.12, 0.2, 0.35, 0.6, 1.0, 1.5])
    assert paces.min() > 50


def test_patterns_survive_a_file(tmp_path: Path):
    made = pattern(3, 10.0)
    write_midi(made, tmp_path / "pattern.mid")
    read = extend_by_pedal(read_midi(tmp_path / "pattern.mid"))
    kept = extend_by_pedal(made)
    assert len(read.notes) == pytest.approx(len(kept.notes), abs=2)
    assert read.end_sec == pytest.approx(kept.end_sec, abs=0.01)
