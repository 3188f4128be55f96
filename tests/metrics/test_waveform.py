"""Levels and delays of sounds whose levels and delays are known."""

from __future__ import annotations

import math

import pytest
import torch

from midisynth.metrics.waveform import SILENCE_DB, delay_sec, level_db, loudest_db

RATE = 16000


def test_levels_of_a_sine():
    time = torch.arange(RATE) / RATE
    audio = 0.5 * torch.sin(2 * math.pi * 440 * time)
    assert level_db(audio, RATE, 0, 1) == pytest.approx(20 * math.log10(0.5 / math.sqrt(2)), abs=0.01)
    both = torch.stack([audio, torch.zeros(RATE)])
    assert level_db(both, RATE, 0, 1) == pytest.approx(level_db(audio, RATE, 0, 1) - 10 * math.log10(2))
    assert level_db(torch.zeros(RATE), RATE, 0, 1) == SILENCE_DB


def test_a_short_sound_is_found_in_a_long_silence():
    audio = torch.zeros(10 * RATE)
    audio[5 * RATE : 5 * RATE + 1600] = 0.1
    assert loudest_db(audio, RATE, 0, 10) == pytest.approx(-20, abs=0.01)
    assert loudest_db(audio, RATE, 0, 4.9) == SILENCE_DB


@pytest.mark.parametrize("late_ms", [-30, 0, 7])
def test_a_delay_is_found(late_ms):
    audio = torch.zeros(2 * RATE)
    time = torch.arange(4000) / RATE
    for start in (0.4, 0.9, 1.3):
        first = round(start * RATE)
        audio[first : first + 4000] = torch.exp(-time / 0.05) * torch.sin(2 * math.pi * 300 * time)
    assert delay_sec(audio.roll(late_ms * RATE // 1000), audio, RATE) == pytest.approx(late_ms / 1000)
