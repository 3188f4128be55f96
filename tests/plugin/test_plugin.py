"""A package of a stranger: installed beside midisynth, used through the command line in processes of its own."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from midisynth.music.midi import read_midi

ROOT = Path(__file__).resolve().parents[2]
MUSIC = ROOT / "examples" / "plugin" / "midisynth_pluck" / "music"


def midisynth(environment: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, and insist that it succeeds."""
    command = [sys.executable, "-m", "midisynth", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def trained(plugin_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a fit with the preset of the plugin."""
    folder = tmp_path_factory.mktemp("fit")
    midisynth(plugin_environment, folder, "fit", "--config", "pluck/tiny")
    return folder


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Path:
    (saved,) = trained.rglob("last.ckpt")
    return saved


def test_lists_name_the_package(plugin_environment: dict[str, str], tmp_path: Path):
    for group, name in (("models", "pluck"), ("data", "pluck"), ("corpora", "karplus_strong")):
        lines = midisynth(plugin_environment, tmp_path, group).stdout.splitlines()
        assert any(line.startswith(name) and "midisynth-pluck 0.1.0" in line for line in lines)


def test_fit_learns(trained: Path):
    (metrics,) = trained.rglob("metrics.csv")
    losses = [float(row["val/loss"]) for row in csv.DictReader(metrics.open()) if row.get("val/loss")]
    assert losses[-1] < 0.8 * losses[0]


def test_test_reports_the_loss(plugin_environment: dict[str, str], checkpoint: Path, tmp_path: Path):
    done = midisynth(plugin_environment, tmp_path, "test", "--config", "pluck/tiny", "--ckpt_path", str(checkpoint))
    assert "test/loss" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_predict_with_one_and_with_two_processes(plugin_environment: dict[str, str], checkpoint: Path, tmp_path: Path):
    sources = sorted(MUSIC.glob("[mt]*.mid"))
    inputs = tmp_path / "in"
    inputs.mkdir()
    for number, source in enumerate([*sources, sources[0]]):
        shutil.copy(source, inputs / f"{number} {source.name}")
    outputs = {}
    for processes in (1, 2):
        output = tmp_path / f"out{processes}"
        words = ["--ckpt_path", str(checkpoint), "--output", f"{output}/", "--trainer.accelerator", "cpu"]
        if processes == 2:
            words += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
        midisynth(plugin_environment, tmp_path, "predict", str(inputs), *words)
        outputs[processes] = {path.name: path.read_bytes() for path in output.rglob("*.wav")}
    assert set(outputs[1]) == {f"{path.stem}.wav" for path in inputs.iterdir()}
    assert outputs[1] == outputs[2]
    for path in inputs.iterdir():
        audio, sample_rate = soundfile.read(tmp_path / "out1" / f"{path.stem}.wav")
        assert np.abs(audio).max() > 0.01
        assert len(audio) / sample_rate >= read_midi(path).end_sec


def test_the_plugin_passes_its_own_tests(plugin_environment: dict[str, str], tmp_path: Path):
    """They hold the contract suite, in one line."""
    tests = ROOT / "examples" / "plugin" / "tests"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, cwd=tmp_path, env=plugin_environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "passed" in done.stdout
