"""The contract that every midisynth model keeps, and what is special about this one."""

import numpy as np
import pytest
import torch
from midisynth_pluck.corpus import KarplusStrong, karplus_strong
from midisynth_pluck.network import NOTES_AT_ONCE, StringNetwork, pluck

from midisynth.testing import contract_suite

TestPluck = contract_suite("pluck")


@pytest.mark.parametrize("pitch", [30, 45, 60, 72])
def test_simulated_strings_are_in_tune(pitch: int):
    rate, hertz = 16000, 440 * 2 ** ((pitch - 69) / 12)
    spectrum = np.abs(np.fft.rfft(karplus_strong(pitch, 100, rate)[: 2 * rate] * np.hanning(2 * rate)))
    near = slice(round(2 * hertz * 0.97), round(2 * hertz * 1.03) + 1)
    assert abs((near.start + spectrum[near].argmax()) / 2 - hertz) <= 0.5


def test_a_string_rings_the_brighter_the_harder_it_is_plucked():
    def third_harmonic(velocity: int) -> float:
        spectrum = np.abs(np.fft.rfft(karplus_strong(57, velocity, 16000)[:1600] * np.hanning(1600)))  # 10 Hz a bin
        return spectrum[66] / spectrum[22]

    assert third_harmonic(120) > 1.5 * third_harmonic(30)


def test_blocks_join_without_seams_whatever_the_polyphony():
    notes = torch.stack(
        [torch.arange(80) * 37, torch.full((80,), 900), 40 + torch.arange(80) % 50, torch.full((80,), 90)], 1
    )
    assert len(notes) > NOTES_AT_ONCE
    with torch.no_grad():
        strings = StringNetwork(4, 8)(notes[:, 2], notes[:, 3])
        phases = torch.rand(80, 4)
        whole = pluck(notes, strings, phases, 0, 4000, 8000)
        parts = [pluck(notes, strings, phases, start, 500, 8000) for start in range(0, 4000, 500)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


def test_a_string_stays_in_tune_two_hours_into_a_piece():
    strings = StringNetwork(1, 8)(torch.tensor([69]), torch.tensor([100]))
    late = 7200 * 8000
    with torch.no_grad():
        early_audio, late_audio = (
            pluck(torch.tensor([[onset, 8000, 69, 100]]), strings, torch.zeros(1, 1), onset, 8000, 8000)
            for onset in (0, late)
        )
    torch.testing.assert_close(early_audio, late_audio, rtol=0, atol=1e-5)


def test_corpus_has_every_split():
    assert {record.split for record in KarplusStrong().records()} == {"train", "validation", "test"}
