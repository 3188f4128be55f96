"""Clicks are found in sound, and rounding is none."""

from __future__ import annotations

import math

import torch

from midisynth.metrics.seams import sample_jumps

RATE = 32000


def test_a_click_is_found_where_it_is():
    audio = 0.3 * torch.sin(2 * math.pi * 220 * torch.arange(RATE) / RATE)
    broken = audio.clone()
    broken[5000:] += 0.1
    assert sample_jumps(audio, [5000, 9000]).max() < 1.1
    clicks = sample_jumps(broken, [5000, 9000])
    assert clicks[0] > 5 and clicks[1] < 1.1


def test_rounding_is_no_click_but_a_click_in_silence_is():
    """The last bit of 16, now and then two at once, as in the files of sounds that have faded."""
    audio = torch.zeros(1000)
    audio[300:] = 1 / 2**15
    audio[500:] = 3 / 2**15
    assert sample_jumps(audio, [500]).item() == 0.5
    audio[500:] = 0.001
    assert sample_jumps(audio, [500]).item() > 2
