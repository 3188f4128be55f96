"""Models to run (`packages/midisynth_sines.py`), and MIDI files to run them on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from midisynth.music.clock import ticks_from_seconds
from midisynth.music.midi import write_midi
from midisynth.music.notes import NOTE_DTYPE, Performance

PACKAGES = Path(__file__).parent / "packages"
# The metadata that registers the models lies apart: other tests of the same session must not see them.
ENTRIES = Path(__file__).parent / "entries"
ROOT = Path(__file__).parents[2]

sys.path.insert(0, str(PACKAGES))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ENTRIES)


@pytest.fixture
def environment() -> dict[str, str]:
    """Environment of processes that find the models."""
    path = os.pathsep.join([str(PACKAGES), str(ENTRIES), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(
        os.pathsep
    )
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}


@pytest.fixture
def write_notes() -> Callable[..., Path]:
    """Write a MIDI file of notes in a row."""

    def write(path: Path, pitches: Sequence[int] = (60,), note_sec: float = 0.25, velocity: int = 80) -> Path:
        notes = np.zeros(len(pitches), NOTE_DTYPE)
        notes["onset_sec"] = np.arange(len(pitches)) * note_sec
        notes["duration_sec"], notes["velocity"], notes["pitch"] = note_sec, velocity, pitches
        path.parent.mkdir(parents=True, exist_ok=True)
        write_midi(ticks_from_seconds(Performance(notes, track_names=[""])), path)
        return path

    return write
