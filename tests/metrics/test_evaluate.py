"""The scripts that judge renderings, on recordings as if they were renderings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from midisynth.music.notes import NOTE_DTYPE

ROOT = Path(__file__).parent.parent.parent
PIANO = ROOT / "tests" / "audio" / "data"


@pytest.fixture
def pairs(tmp_path):
    for folder, suffix in (("audio", ".flac"), ("notes", ".midi")):
        (tmp_path / folder).mkdir()
        for name in ("first", "second"):
            shutil.copy(PIANO / f"piano{suffix}", tmp_path / folder / f"{name}{suffix}")
    return tmp_path


def test_a_folder(pairs, capsys):
    arguments = [pairs / "audio", "--midi", pairs / "notes", "--reference", pairs / "audio", "--no-transcriber"]
    assert evaluate.main([*map(str, arguments), "--seconds", "4", "--json", str(pairs / "scores.json")]) == 0
    scores = json.loads((pairs / "scores.json").read_text())
    assert set(scores["pieces"]) == {"first", "second"}
    assert scores["mean"] == pytest.approx(scores["pieces"]["first"])
    assert scores["mean"]["log_spectral_distance"] == 0
    assert scores["mean"]["loudness_correlation"] == pytest.approx(1)
    assert scores["mean"]["flux_ratio"] == scores["mean"]["held_flux_ratio"] == 1
    assert scores["mean"]["struck"] > 0.9
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[-1].startswith("mean")
    assert len({len(line) for line in lines}) == 1


def test_through_a_vocoder(capsys, tmp_path):
    arguments = [str(PIANO / "piano.flac"), "--through", "griffin_lim", "--no-transcriber", "--offset", "2"]
    assert evaluate.main([*arguments, "--seconds", "3", "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["mean"]
    assert 0.1 < scores["spectral_convergence"] < 0.35
    assert scores["struck"] > 0.8
    assert 0.8 < scores["flux_ratio"] < 1.2


def test_what_is_missing(pairs, capsys):
    assert evaluate.main([str(pairs / "notes"), "--no-transcriber"]) == 2
    assert "no audio files" in capsys.readouterr().err
    assert evaluate.main([str(pairs / "audio"), "--no-transcriber"]) == 2
    assert "first.flac: no first{.mid,.midi}" in capsys.readouterr().err


def test_excerpts_begin_with_the_music():
    notes = np.zeros(3, NOTE_DTYPE)
    notes["onset_sec"], notes["duration_sec"] = [7.0, 9.0, 30.0], [1.0, 50.0, 1.0]
    inside, offset = evaluate.excerpt(notes, None, 12.0)
    assert offset == pytest.approx(6.9)
    assert inside["onset_sec"].tolist() == pytest.approx([0.1, 2.1])
    assert inside["duration_sec"].tolist() == pytest.approx([1.0, 9.9])
    inside, offset = evaluate.excerpt(notes, 8.0, 12.0)
    assert offset == 8 and len(inside) == 1
    assert evaluate.excerpt(notes[:0], None, 12.0)[1] == 0


def test_nothing_is_heard_twice(tmp_path):
    loaded, heard = [], []

    def load():
        loaded.append(True)

        def hear(audio, sample_rate):
            heard.append(sample_rate)
            notes = np.zeros(1, NOTE_DTYPE)
            notes["pitch"] = len(audio)
            return notes

        return hear

    audio = torch.rand(100)
    memory = evaluate.RememberingTranscriber(tmp_path / "kept", load)
    assert not loaded
    for rate in (8000, 16000, 8000):
        assert memory(audio, rate)["pitch"] == [100]
    assert memory(audio[:50], 8000)["pitch"] == [50]
    assert evaluate.RememberingTranscriber(tmp_path / "kept", load)(audio, 16000)["pitch"] == [100]
    assert len(loaded) == 1 and heard == [8000, 16000, 8000]
