"""The evaluation script, on recordings as if they were renderings."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from midisynth.music.notes import NOTE_DTYPE

ROOT = Path(__file__).parent.parent.parent
PIANO = ROOT / "tests" / "audio" / "data"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("evaluate", ROOT / "benchmarks" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate"] = module  # where its dataclass looks
    spec.loader.exec_module(module)
    yield module
    del sys.modules["evaluate"]


@pytest.fixture
def pairs(tmp_path):
    for folder, suffix in (("audio", ".flac"), ("notes", ".midi")):
        (tmp_path / folder).mkdir()
        for name in ("first", "second"):
            shutil.copy(PIANO / f"piano{suffix}", tmp_path / folder / f"{name}{suffix}")
    return tmp_path


def test_a_folder(script, pairs, capsys):
    arguments = [pairs / "audio", "--midi", pairs / "notes", "--reference", pairs / "audio", "--no-transcriber"]
    assert script.main([*map(str, arguments), "--seconds", "4", "--json", str(pairs / "scores.json")]) == 0
    scores = json.loads((pairs / "scores.json").read_text())
    assert set(scores["files"]) == {"first", "second"}
    assert scores["mean"] == pytest.approx(scores["files"]["first"])
    assert scores["mean"]["log_spectral_distance"] == 0
    assert scores["mean"]["loudness_correlation"] == pytest.approx(1)
    assert scores["mean"]["struck"] > 0.9
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[-1].startswith("mean")
    assert len({len(line) for line in lines}) == 1


def test_through_a_vocoder(script, capsys, tmp_path):
    arguments = [str(PIANO / "piano.flac"), "--through", "griffin_lim", "--no-transcriber", "--offset", "2"]
    assert script.main([*arguments, "--seconds", "3", "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["mean"]
    assert 0.1 < scores["spectral_convergence"] < 0.35
    assert scores["struck"] > 0.8


def test_what_is_missing(script, pairs, capsys):
    assert script.main([str(pairs / "notes"), "--no-transcriber"]) == 2
    assert "no audio files" in capsys.readouterr().err
    assert script.main([str(pairs / "audio"), "--no-transcriber"]) == 2
    assert "first.flac: no first{.mid,.midi}" in capsys.readouterr().err


def test_excerpts_begin_with_the_music(script):
    notes = np.zeros(3, NOTE_DTYPE)
    notes["onset_sec"], notes["duration_sec"] = [7.0, 9.0, 30.0], [1.0, 50.0, 1.0]
    inside, offset = script.excerpt(notes, None, 12.0)
    assert offset == pytest.approx(6.9)
    assert inside["onset_sec"].tolist() == pytest.approx([0.1, 2.1])
    assert inside["duration_sec"].tolist() == pytest.approx([1.0, 9.9])
    inside, offset = script.excerpt(notes, 8.0, 12.0)
    assert offset == 8 and len(inside) == 1
    assert script.excerpt(notes[:0], None, 12.0)[1] == 0
