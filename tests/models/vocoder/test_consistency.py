"""The filter that makes audio agree with a spectrogram."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from midisynth.audio.features import LogMel
from midisynth.audio.io import resample
from midisynth.models.vocoder.consistency import MelConsistency

FLOOR = -7.0


def consistency(rate: int, passes: int = 1) -> MelConsistency:
    options = {"mel_rate": 16000, "mel_fft": 1024, "f_min": 0.0, "f_max": 8000.0, "mels": 128}
    return MelConsistency(rate, rate // 50, passes=passes, **options)


def chord(rate: int, seconds: float = 1.0) -> Tensor:
    """Steady sines from 100 Hz to 6 kHz, [samples]."""
    time = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    return (
        0.05 * sum(torch.sin(2 * torch.pi * hertz * time) for hertz in (103.0, 440.0, 1000.0, 2718.0, 6000.0)).float()
    )


def mel_of(audio: Tensor, rate: int) -> Tensor:
    return LogMel()(resample(audio[None], rate, 16000)).clamp(min=FLOOR)


@pytest.mark.parametrize("rate", [16000, 32000, 44100])
def test_what_agrees_stays(rate):
    """The spectrogram is that of `LogMel`, at every rate."""
    audio = chord(rate)
    made = consistency(rate)(audio[None], mel_of(audio, rate), FLOOR)[0]
    inner = slice(rate // 10, -rate // 10)
    assert (made - audio)[inner].square().mean().sqrt() < 0.02 * audio.square().mean().sqrt()


@pytest.mark.parametrize("rate", [16000, 44100])
def test_levels_are_put_right(rate):
    """A sound that is too quiet where the spectrogram says that it rises becomes as loud as that says."""
    audio = chord(rate)
    envelope = torch.linspace(0.3, 1.0, len(audio))
    made = consistency(rate, passes=2)(audio[None] * 0.4, mel_of(audio * envelope, rate), FLOOR)[0]
    inner = slice(rate // 10, -rate // 10)
    wanted = (audio * envelope)[inner]
    assert (made[inner] - wanted).square().mean().sqrt() < 0.06 * wanted.square().mean().sqrt()


def test_every_pass_comes_closer():
    rate, generator = 32000, torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(2, rate, generator=generator)
    mel = mel_of(noise[0], rate)
    errors = []
    for passes in (0, 1, 3):
        made = consistency(rate, passes)(noise[1:], mel, FLOOR)[0]
        errors.append(float((mel_of(made, rate) - mel)[:, 5:-5].abs().mean()))
    assert errors[0] > 1.3 * errors[1] > 1.3 * 1.1 * errors[2]


def test_silence_and_the_band_above_stay():
    rate = 32000
    step = consistency(rate, passes=2)
    silence = torch.zeros(1, rate)
    assert step(silence, torch.full((1, 50, 128), FLOOR), FLOOR).abs().max() == 0
    time = torch.arange(rate, dtype=torch.float64) / rate
    high = 0.1 * torch.sin(2 * torch.pi * 12000 * time).float()[None]
    made = step(high, mel_of(high[0], rate), FLOOR)
    torch.testing.assert_close(made[:, 3000:-3000], high[:, 3000:-3000], rtol=0, atol=1e-3)


def test_silence_has_a_gradient():
    audio = torch.zeros(1, 16000, requires_grad=True)
    consistency(32000)(audio, torch.full((1, 25, 128), -3.0), FLOOR).square().sum().backward()
    assert audio.grad.isfinite().all()
