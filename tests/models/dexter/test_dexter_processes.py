"""As users do it, in processes of their own: fit, predict, bad files; and two processes that learn what one does."""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from midisynth.main import main
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.score import read_score_notes
from midisynth.music.score_notes import deadpan

ROOT = Path(__file__).resolve().parents[3]
VIENNA = ROOT / "examples" / "vienna4x22"
SCORE = VIENNA / "musicxml" / "Schubert_D783_no15.musicxml"
ONE_PROCESS = ("--trainer.accelerator=cpu", "--trainer.devices=1")
TWO_PROCESSES = ("--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--trainer.devices=2")


def midisynth(*words: Any) -> str:
    """Run a command in a process of its own, at the top of the checkout, where the presets find their data."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "midisynth", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a training by two processes."""
    folder = tmp_path_factory.mktemp("fit")
    words = ["fit", "--config=dexter/tiny", "--trainer.max_steps=4", "--trainer.val_check_interval=2"]
    # The learned prior has parameters of its own, which every step must reach on every process.
    words += ["--trainer.check_val_every_n_epoch=null", "--model.midlevel=learned", "--trainer.limit_val_batches=2"]
    midisynth(*words, f"--trainer.default_root_dir={folder}", *TWO_PROCESSES)
    return folder


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Path:
    (found,) = run.rglob("last.ckpt")
    return found


def test_two_processes_train(run: Path, checkpoint: Path):
    """No parameter is left without a gradient on either, which would be a crash, and both validate."""
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["global_step"] == 4
    assert saved["state_dict"]["measured"]
    (metrics,) = run.rglob("metrics.csv")
    validated = [row for row in csv.DictReader(metrics.open()) if row["val/loss"]]
    assert len(validated) == 2
    for row in validated:
        assert all(math.isfinite(float(row[name])) for name in ("val/loss", "val/correlation"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A score as MusicXML and as quantised MIDI."""
    folder = tmp_path_factory.mktemp("scores")
    shutil.copy(SCORE, folder / "page.musicxml")
    write_midi(deadpan(read_score_notes(SCORE)), folder / "typed.mid")
    return folder


def test_a_score_in_a_performance_out(checkpoint: Path, inputs: Path, tmp_path: Path):
    words = ["predict", inputs, f"--ckpt={checkpoint}", f"--output={tmp_path}/", "--count=2", "--plot"]
    said = midisynth(*words, "--model.tempo=90", "--model.steer={articulation: 1.0}", *ONE_PROCESS)
    assert "4 written, 0 skipped, 0 failed" in said
    page = read_score_notes(SCORE).notes
    for name in ("page-1", "page-2", "typed-1", "typed-2"):
        performance = read_midi(tmp_path / f"{name}.mid")
        assert not performance.warnings
        assert len(performance.notes) == len(page), "a note of the score is missing"
        np.testing.assert_array_equal(np.sort(performance.notes["pitch"]), np.sort(page["pitch"]))
        assert (tmp_path / f"{name}.mid.png").stat().st_size > 10_000
        assert (tmp_path / f"{name}.mid.json").is_file()
    assert (tmp_path / "page-1.mid").read_bytes() != (tmp_path / "page-2.mid").read_bytes()


def test_what_is_no_score_is_an_error_in_a_line(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "broken.musicxml").write_text("<score-partwise><part>", encoding="utf-8")
    (bad / "rests.musicxml").write_text(re.sub(r"<pitch>.*?</pitch>", "<rest/>", SCORE.read_text(), flags=re.DOTALL))
    (bad / "empty.mid").write_bytes(b"")
    assert main(["predict", str(bad), f"--ckpt={checkpoint}", f"--output={tmp_path}/out/", *ONE_PROCESS]) == 1
    # On standard error the Trainer tells of the machine.
    said = capfd.readouterr().out
    assert "0 written, 0 skipped, 3 failed" in said
    for name in ("broken.musicxml", "rests.musicxml", "empty.mid"):
        assert len([line for line in said.splitlines() if name in line]) == 1, said
    assert len(said.splitlines()) == 4, said
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--model.steer={articulatoin: 1}", "did you mean articulation"),
        ("--model.dynamics=loud", "dynamics 'loud'"),
        ("--model.source=nowhere.match", "nowhere.match"),
        ("--model.overlap=500", "overlap is 500"),
    ],
)
def test_wrong_options_are_an_error_in_a_line(
    option: str, complaint: str, checkpoint: Path, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    words = ["predict", str(inputs / "page.musicxml"), f"--ckpt={checkpoint}", f"--output={tmp_path}/", option]
    assert main([*words, *ONE_PROCESS]) != 0
    said = "".join(capfd.readouterr())
    assert len([line for line in said.splitlines() if complaint in line]) == 1, said
    assert not list(tmp_path.rglob("*.mid"))
