"""Packages that are broken, slow, clashing or malformed, seen from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_files import PACKAGES

SLOW = "import time\ntime.sleep(10)\n"


@pytest.fixture
def zoo(install) -> Path:
    """One package with everything that can go wrong."""
    folder = install(
        "zoo",
        {"zoo_raises": "raise RuntimeError('no driver')", "zoo_slow": SLOW, "zoo_other": "class Other: pass"},
        {
            "midisynth.models": {
                "raises": "zoo_raises:Model",
                "slow": "zoo_slow:Model",
                "wrong_type": "zoo_other:Other",
                "absent": "zoo_absent:Model",
                "malformed": "this is no target",
                "toy_tones": "zoo_raises:Model",
            }
        },
    )
    return folder


def test_lists_and_help_import_no_plugin(zoo: Path, tmp_path: Path):
    paths = os.pathsep.join([str(PACKAGES), str(zoo), *filter(None, [os.environ.get("PYTHONPATH")])])
    for command in ("--help", "models"):
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "midisynth", command],
            env={**os.environ, "PYTHONPATH": paths},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0
        assert time.monotonic() - started < 2
    assert ["slow", "zoo", "0.3", "zoo_slow:Model"] in [line.split() for line in done.stdout.splitlines()]
    # Both packages are named, whichever keeps the name; so is the malformed target.
    assert "midisynth: WARNING: model 'toy_tones' of zoo is ignored: the name belongs to midisynth-toy" in done.stderr
    assert "model 'malformed' of zoo is ignored" in done.stderr


def test_other_models_still_work(zoo: Path, midisynth, music: Path):
    words = ("--data=tones", f"--data.root={music}", "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu")
    assert midisynth("fit", "--model=toy_tones", *words).code == 0


def test_a_broken_model_that_is_asked_for(zoo: Path, midisynth):
    result = midisynth("fit", "--model", "raises")
    assert result.code == 2
    assert result.error == ("model 'raises' of zoo 0.3 (zoo_raises:Model) cannot be imported: RuntimeError: no driver")


def test_check_goes_through_all_of_them(zoo: Path, midisynth, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    result = midisynth("models", "--check")
    assert result.code == 1
    states = {line.split()[0]: line for line in result.out.splitlines()}
    assert "BROKEN RuntimeError: no driver" in states["raises"]
    assert (
        "BROKEN model 'wrong_type' of zoo 0.3 (zoo_other:Other) is not a subclass of MidiModule" in states["wrong_type"]
    )
    assert "BROKEN ModuleNotFoundError: No module named 'zoo_absent'" in states["absent"]
    assert "BROKEN AttributeError" in states["slow"]
    assert "ok  .mid .midi -> .wav" in states["toy_tones"]


def test_check_of_sound_packages(midisynth):
    result = midisynth("corpora", "--check")
    (line,) = [line for line in result.out.splitlines() if line.startswith("tones ")]
    assert line.split()[-3] == "ok"
