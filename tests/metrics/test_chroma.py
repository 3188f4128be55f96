"""Chroma: what it shows, and what it does not care about."""

from __future__ import annotations

import pytest
import torch

from midisynth.metrics.functional import chroma, chroma_error
from midisynth.metrics.scores import ChromaError

RATE = 16000


def tone(pitch, partials=(1.0,), rate=RATE, level=0.3):
    time = torch.arange(rate) / rate
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    return level * sum(a * torch.sin(2 * torch.pi * hertz * (n + 1) * time) for n, a in enumerate(partials))


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("pitch", [45, 60, 71, 93])
def test_a_tone_is_its_class(pitch, rate):
    assert (chroma(tone(pitch, rate=rate), rate)[:, 4:-4].argmax(dim=0) == pitch % 12).all()


def test_octaves_and_levels_are_alike_and_other_notes_are_not():
    same = chroma_error(tone(72, level=0.05), tone(60), RATE)
    other = chroma_error(tone(66), tone(60), RATE)
    assert same < 0.1 < 0.9 < other <= 1
    assert chroma_error(tone(60), tone(60), RATE) == pytest.approx(0, abs=1e-6)
    # A tempered fifth shares a partial.
    partials = [1.0, 0.7, 0.7]
    assert same < chroma_error(tone(67, partials), tone(60, partials), RATE) < other


def test_silence():
    silence = torch.zeros(RATE)
    assert chroma_error(silence, silence, RATE) == 0
    assert chroma_error(silence, tone(60), RATE) == pytest.approx(1)
    assert chroma_error(1e-5 * torch.randn(RATE), silence, RATE) == 0


def test_mean_over_items():
    pairs = [(tone(60), tone(60)), (tone(66), tone(60)), (tone(64), tone(60))]
    metric = ChromaError(RATE)
    metric.update(*(torch.stack(side) for side in zip(*pairs, strict=True)))
    wanted = sum(float(chroma_error(*pair, RATE)) for pair in pairs) / 3
    assert float(metric.compute()) == pytest.approx(wanted, rel=1e-6)
