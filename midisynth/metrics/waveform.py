"""What can be read off a waveform alone: levels, and delays between equal sounds."""

from __future__ import annotations

import torch
from torch import Tensor

#: Levels are not lower than this (dB relative to full scale).
SILENCE_DB = -120.0


def level_db(audio: Tensor, sample_rate: int, start_sec: float, end_sec: float) -> float:
    """Root mean square of a stretch of [..., samples], over all channels (dB relative to full scale)."""
    stretch = audio[..., round(start_sec * sample_rate) : round(end_sec * sample_rate)]
    return _decibels(stretch.square().mean())


def loudest_db(audio: Tensor, sample_rate: int, start_sec: float, end_sec: float, window_sec: float = 0.05) -> float:
    """Largest level of any `window_sec` in a stretch of [..., samples] (dB relative to full scale)."""
    stretch = audio[..., round(start_sec * sample_rate) : round(end_sec * sample_rate)]
    window = min(round(window_sec * sample_rate), stretch.shape[-1])
    return _decibels(stretch.unfold(-1, window, max(window // 2, 1)).square().mean(dim=-1).max())


def _decibels(power: Tensor) -> float:
    return max(10 * float(power.double().clamp(min=1e-20).log10()), SILENCE_DB)


def delay_sec(audio: Tensor, reference: Tensor, sample_rate: int, most_sec: float = 0.1) -> float:
    """By how much one sound is later than another, from their envelopes (seconds, in steps of 1 ms).

    Args:
        audio: [samples].
        reference: [samples].
        sample_rate: Of both (Hz).
        most_sec: Largest delay that is looked for, either way (seconds).
    """
    first, second = (_envelope(sound, sample_rate) for sound in (audio, reference))
    most = round(most_sec * 1000)
    length = min(len(first), len(second)) - 2 * most
    second = second[most : most + length]
    matches = torch.stack([first[shift : shift + length] @ second for shift in range(2 * most + 1)])
    return (int(matches.argmax()) - most) / 1000


def _envelope(audio: Tensor, sample_rate: int) -> Tensor:
    """How much the level rises in every millisecond, [milliseconds]."""
    window = sample_rate // 1000
    power = audio.unfold(0, 4 * window, window).square().mean(dim=-1).clamp(min=1e-10)
    return power.sqrt().diff().clamp(min=0)
