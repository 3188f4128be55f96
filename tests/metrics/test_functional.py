"""Scores of renderings whose faults are known."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from midisynth.audio.io import load_audio
from midisynth.audio.spectrum import log_spectrum
from midisynth.errors import MidisynthError
from midisynth.metrics.functional import (
    false_onsets,
    held_steps,
    log_spectral_distance,
    loudness_correlation,
    loudness_curve,
    mel_error,
    note_score,
    onset_energy_rise,
    spectral_convergence,
    spectral_flux,
)
from midisynth.music.midi import read_midi
from midisynth.music.notes import NOTE_DTYPE

PIANO = Path(__file__).parent.parent / "audio" / "data"
RATE = 16000


def notes(*rows):
    """(onset, duration, pitch, velocity) of each note."""
    array = np.zeros(len(rows), NOTE_DTYPE)
    for name, column in zip(("onset_sec", "duration_sec", "pitch", "velocity"), zip(*rows, strict=True), strict=False):
        array[name] = column
    return array


@pytest.fixture(scope="module")
def piano():
    return load_audio(PIANO / "piano.flac", RATE)[0]


@pytest.fixture(scope="module")
def melody():
    return read_midi(PIANO / "piano.midi").notes


def test_equal_notes_score_one(melody):
    score = note_score(melody, melody)
    assert score.as_dict() == pytest.approx(dict.fromkeys(score.as_dict(), 1.0))


def test_each_fault_shows_in_its_score():
    reference = notes((0.0, 1.0, 60, 40), (1.0, 1.0, 62, 60), (2.0, 1.0, 64, 80), (3.0, 1.0, 65, 100))
    # Right; 40 ms late and far too short; 60 ms late; wrong pitch; and one too many.
    estimate = notes(
        (0.0, 1.0, 60, 40), (1.04, 0.2, 62, 60), (2.06, 1.0, 64, 80), (3.0, 1.0, 66, 100), (5.0, 1.0, 60, 9)
    )
    score = note_score(reference, estimate)
    assert score.precision == 2 / 5
    assert score.recall == 2 / 4
    assert score.f1 == pytest.approx(4 / 9)
    assert score.offset_f1 == pytest.approx(2 / 9)
    assert note_score(reference, estimate, onset_tolerance=0.1).recall == 3 / 4


def test_velocity_is_judged_up_to_a_linear_map():
    reference = notes(*((i, 0.5, 60, velocity) for i, velocity in enumerate((20, 50, 80, 110))))
    half, shuffled = reference.copy(), reference.copy()
    half["velocity"] //= 2
    shuffled["velocity"] = reference["velocity"][[1, 3, 0, 2]]
    assert note_score(reference, half).velocity_correlation == pytest.approx(1)
    assert note_score(reference, half).velocity_f1 == 1
    assert note_score(reference, shuffled).velocity_correlation == pytest.approx(0)
    assert note_score(reference, shuffled).velocity_f1 == 0
    flat = reference.copy()
    flat["velocity"] = 64
    assert math.isnan(note_score(reference, flat).velocity_correlation)


def test_pieces_without_notes():
    empty, some = notes(), notes((0.0, 0.0, 60, 64))
    assert note_score(empty, empty).f1 == 1
    assert note_score(some, empty).f1 == note_score(empty, some).f1 == 0
    assert note_score(some, some).f1 == 1  # a note of no length


def test_note_score_without_mir_eval(monkeypatch):
    monkeypatch.setitem(sys.modules, "mir_eval", None)
    with pytest.raises(MidisynthError, match="pip install mir_eval"):
        note_score(notes(), notes())


def test_full_scale_sine_is_at_zero():
    sine = torch.sin(2 * torch.pi * 1000 * torch.arange(RATE) / RATE)
    for size in (256, 2048):
        assert log_spectrum(sine, size)[:, 20].max().item() == pytest.approx(0, abs=0.02)
    assert log_spectrum(torch.zeros(100), 256).max().item() == pytest.approx(math.log(1e-5))


def test_gain_is_a_constant_distance(piano):
    loud = torch.randn(RATE)
    assert log_spectral_distance(loud, loud) == 0
    assert log_spectral_distance(loud / 2, loud).item() == pytest.approx(math.log(2), abs=1e-3)
    assert spectral_convergence(loud / 2, loud).item() == pytest.approx(0.5, abs=1e-3)
    assert mel_error(torch.zeros(3, 4), torch.full((3, 4), -0.5)) == 0.5


def test_distances_grow_with_noise(piano):
    noisy = [piano + level * torch.randn(len(piano)) for level in (1e-4, 1e-3, 1e-2)]
    for distance in (log_spectral_distance, spectral_convergence):
        values = [float(distance(audio, piano)) for audio in noisy]
        assert 0 < values[0] < values[1] < values[2]


def test_loudness(piano):
    half = loudness_curve(torch.full((RATE,), 0.5), RATE)
    assert half.tolist() == pytest.approx([-6.02] * 10, abs=0.01)
    assert loudness_curve(torch.zeros(RATE), RATE).tolist() == [-80.0] * 10
    assert loudness_correlation(0.3 * piano, piano, RATE) == pytest.approx(1, abs=0.01)
    assert loudness_correlation(piano.flip(0), piano, RATE) < 0.6
    assert math.isnan(loudness_correlation(torch.zeros(RATE), torch.zeros(RATE), RATE))


def test_onsets_of_a_recording(piano, melody):
    struck = melody[melody["onset_sec"] > 0.1]
    rises = onset_energy_rise(piano, RATE, struck)
    assert rises.shape == struck.shape
    assert (rises > 3).mean() > 0.95
    for shift in (-0.2, 0.2):
        moved = struck.copy()
        moved["onset_sec"] += shift
        assert (onset_energy_rise(piano, RATE, moved) > 3).mean() < 0.4
    assert np.abs(onset_energy_rise(torch.zeros(RATE), RATE, struck)).max() == 0


def test_onsets_at_both_ends():
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(RATE) / RATE)
    rises = onset_energy_rise(tone, RATE, notes((0.0, 1.0, 69, 64), (0.5, 0.5, 69, 64), (1.0, 0.1, 69, 64)))
    assert rises[0] > 40
    assert abs(rises[1]) < 1
    assert rises[2] < -40
    assert onset_energy_rise(tone, RATE, notes()).shape == (0,)


def test_false_onsets_are_told_apart():
    played = notes((0.0, 2.0, 60), (0.5, 0.5, 64))
    heard = notes((0.01, 1.0, 60), (0.5, 0.1, 76), (0.5, 0.5, 64), (1.0, 0.5, 60), (1.5, 0.1, 64))
    assert false_onsets(played, heard) == (1, 2)
    assert false_onsets(played, played) == (0, 0)
    assert false_onsets(played[:0], heard) == (0, 5)
    assert false_onsets(played, heard[:0]) == (0, 0)


def test_flux_of_what_is_held():
    mel = torch.zeros(100, 4)
    mel[10:] = 5.0  # an onset at 0.2 s
    mel[30:60:2] = 5.5  # beats until the note ends at 1.2 s
    mel[80:90:2] = 9.0  # a noise when nothing sounds
    held = held_steps(notes((0.2, 1.0, 60)), 100, 0.02)
    assert spectral_flux(mel) == pytest.approx((5 + 30 * 0.5 + 10 * 4) / 99)
    assert int(held.sum()) == 44 and held.nonzero()[0] == 15 and held.nonzero()[-1] == 58
    assert spectral_flux(mel, held) == pytest.approx(30 * 0.5 / 44, rel=0.05)
