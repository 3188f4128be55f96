from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from midisynth.models.vocoder import NeuralVocoder

TINY = {"dim": 24, "hidden_dim": 32, "layers": 2, "segment_frames": 24}


@pytest.fixture
def build() -> Callable[..., NeuralVocoder]:
    """A tiny model with the given options, in evaluation mode, the same weights every time."""

    def build(**options) -> NeuralVocoder:
        torch.manual_seed(0)
        return NeuralVocoder(**{**TINY, **options}).eval()

    return build


def tone_mel(hertz: float, frames: int, amplitude: float = 0.3) -> Tensor:
    """Log mel [frames, mels] of a sine."""
    model = NeuralVocoder(**TINY, sample_rate=16000)
    time = torch.arange(frames * 320, dtype=torch.float64) / 16000
    return model.spectrogram((amplitude * torch.sin(2 * torch.pi * hertz * time)).float()[None])[0]


@pytest.fixture(scope="session")
def held() -> Tensor:
    """Two seconds of a sine at the A above middle C; its last frames, which see its end, are left out."""
    return tone_mel(440.0, 102)[:100]


@pytest.fixture(scope="session")
def changing() -> Tensor:
    """A spectrogram without any regularity, longer than a block, [700, mels]."""
    return torch.randn(700, 128, generator=torch.Generator().manual_seed(1)) * 2 - 3
