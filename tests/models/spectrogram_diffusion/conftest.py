from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion
from midisynth.music.midi import read_midi, write_midi

TINY = {
    "segment_frames": 64,
    "overlap_frames": 8,
    "max_tokens": 512,
    "dim": 16,
    "hidden_dim": 24,
    "heads": 2,
    "head_dim": 8,
    "layers": 2,
    "sample_steps": 2,
    "segments_per_batch": 3,
}


@pytest.fixture
def build() -> Callable[..., SpectrogramDiffusion]:
    """A tiny model with the given options, the same weights every time."""

    def build(**options) -> SpectrogramDiffusion:
        torch.manual_seed(0)
        return SpectrogramDiffusion(**{**TINY, **options})

    return build


@pytest.fixture(scope="session")
def excerpts(midi_files, tmp_path_factory) -> list[Path]:
    """The first 3 and 2 seconds of the files, for what takes long."""
    folder = tmp_path_factory.mktemp("excerpts")
    for path, seconds in zip(midi_files, (3.0, 2.0), strict=True):
        performance = read_midi(path)
        notes = performance.notes
        ended = notes["onset_sec"] + notes["duration_sec"] < seconds
        write_midi(performance.with_notes(notes[ended]), folder / path.name)
    return [folder / path.name for path in midi_files]


@pytest.fixture(scope="session")
def midi_files() -> list[Path]:
    """A piano piece and an ensemble with drums and pedals."""
    folder = Path(__file__).parents[2] / "parity" / "fixtures" / "spectrogram_diffusion"
    return [folder / "piano.mid", folder / "ensemble.mid"]
