"""The two heads: what they can hold, how time enters, and that fast synthesis is the slow one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from midisynth.metrics.functional import log_spectrum
from midisynth.models.vocoder.network import MAX_CORRECTION, OscillatorHead
from midisynth.models.vocoder.partials import measured_partials, piano_partials, string_frequency


def spectrum_db(audio: torch.Tensor) -> torch.Tensor:
    """Level of every Hz of one second of audio at 32 kHz (dB, 0 for a full-scale sine)."""
    return (20 / np.log(10)) * log_spectrum(audio, 32000)[:, 2]


@torch.no_grad()
def test_oscillators_hold_a_note_where_spectra_repeat_every_frame(build, held):
    """The reason for the oscillators: equal frames make 50 Hz and its multiples, unless phases run on."""
    sounds = {}
    for head in ("oscillators", "istft"):
        audio = build(head=head, mel_passes=0)(held)[0]
        sounds[head] = spectrum_db(audio[16000:48000])
    oscillators, spectra = sounds["oscillators"], sounds["istft"]
    assert abs(int(oscillators.argmax()) - 440) <= 1
    assert oscillators[440] > -25
    assert oscillators[475:485].max() < oscillators[440] - 15  # untrained, the noise is loud
    on_grid, off_grid = spectra[torch.arange(50, 8000, 50)], spectra[torch.arange(75, 8000, 50)]
    assert on_grid.mean() > off_grid.mean() + 15


@torch.no_grad()
def test_synthesis_is_the_sum_of_its_sines(build):
    """Against sines in double precision, sample by sample: what is cut off from their spectra is inaudible."""
    head = build(sample_rate=32000).network.head
    assert isinstance(head, OscillatorHead)
    for parameter in (*head.oscillators.parameters(), *head.key_steps.parameters()):
        parameter.zero_()
    first, frames, level, floor = 1000, 10, -1.0, -7.0
    mel = torch.full((1, frames, 128), level)
    audio = head._tones(torch.zeros(1, frames, 24), mel, floor, first)[0]
    sample = torch.arange(first * 640, (first + frames) * 640, dtype=torch.float64)
    amplitude = (np.exp(level) - np.exp(floor)) / 160
    wanted = sum(torch.cos(2 * torch.pi * sample * hertz / 32000) for hertz in head.frequencies) * amplitude
    error = (audio - wanted)[640:].square().mean().sqrt()
    assert error < 1e-3 * wanted[640:].square().mean().sqrt()


@pytest.mark.parametrize("first", [37, 180_000])
@torch.no_grad()
def test_phase_is_a_matter_of_absolute_time(build, changing, first):
    """A stretch that is rendered by itself joins what was rendered before it, after an hour too."""
    network = build().network
    whole = network(changing[None, :200], first)[0]
    start = network.reach + 23
    part = network(changing[None, start - network.reach : 200], first + start - network.reach)[0]
    same = network.reach * network.hop
    torch.testing.assert_close(part[same:], whole[start * network.hop :], rtol=0, atol=2e-5)
    elsewhere = network(changing[None, start - network.reach : 200], first)[0]
    assert (elsewhere[same:] - whole[start * network.hop :]).abs().max() > 1e-2


@pytest.mark.parametrize("head", ["oscillators", "istft"])
@torch.no_grad()
def test_reach(build, changing, head):
    """What lies beyond the reach of a frame changes nothing, and what lies within it does."""
    network = build(head=head).network
    frames, hop = 2 * network.reach + 20, network.hop
    mel = changing[None, :frames].clone()
    before = network(mel)[0]
    mel[0, network.reach] += 2
    after = network(mel)[0]
    changed = (after - before).abs().unflatten(0, (-1, hop)).amax(1) > 0
    assert changed[network.reach]
    assert not changed[2 * network.reach + 1 :].any()
    assert not changed[:1].any()


@pytest.mark.parametrize("rate", [16000, 32000, 44100])
@torch.no_grad()
def test_rates(build, held, rate):
    """A second is a second, the note stays where it is, and nothing sounds beyond the highest partials."""
    model = build(sample_rate=rate, noise_steps=6 if rate == 44100 else 4)
    assert model.hop_samples * 50 == model.sample_rate == rate
    audio = model(held)[0]
    assert len(audio) == 2 * rate
    spectrum = torch.fft.rfft(audio[rate // 2 : -rate // 2] * torch.hann_window(rate)).abs()
    assert abs(int(spectrum.argmax()) - 440) <= 1
    hertz, _, _ = piano_partials(rate)
    assert 0.4 * rate < hertz.max() < 0.45 * rate


@torch.no_grad()
def test_silence_is_silent(build):
    assert build()(torch.full((60, 128), -11.5)).abs().max() < 1e-9


@torch.no_grad()
def test_amplitudes_have_a_limit(build, held):
    """Whatever the network says, the mel decides within reason: a broken input cannot deafen anyone."""
    model = build()
    quiet = model(held).abs().max()
    model.network.head.oscillators.bias.fill_(1e6)
    assert model(held).abs().max() < quiet * np.exp(2 * MAX_CORRECTION + 1)


def test_partials_of_recorded_notes_are_found():
    """Strings that are tuned and stretched otherwise than typical ones, with a partial that is missing."""
    rate = 32000
    hertz, keys, numbers = piano_partials(rate)
    time = np.arange(5 * rate) / rate

    def note(key: int) -> np.ndarray:
        wanted = string_frequency(443.0 * 2 ** ((key - 69) / 12), 4e-4, np.arange(1, 9))
        sines = (np.exp(-time) * np.sin(2 * np.pi * f * time) / n for n, f in enumerate(wanted, 1) if n != 5)
        return 0.1 * sum(sine for sine, f in zip(sines, wanted, strict=False) if f < rate / 2)

    chosen = (36 - 21, 60 - 21)
    silent = np.zeros(len(time))
    silent[0] = 1e-3
    measured = measured_partials(lambda key: note(key) if key - 21 in chosen else silent, rate)
    for key in chosen:
        own = (keys == key) & (numbers <= 8)
        exact = string_frequency(443.0 * 2 ** ((key + 21 - 69) / 12), 4e-4, numbers[own])
        np.testing.assert_allclose(measured[own], exact, rtol=2e-4)  # a third of a cent
        assert np.abs(hertz[own] / exact - 1).max() > 4e-3
    others = ~np.isin(keys, chosen)
    np.testing.assert_allclose(measured[others], hertz[others], rtol=1e-9)
