"""Sympathetic resonance: while the sustain pedal is down, every string answers to what the others play.

The answer is linear, so one impulse response holds all strings: the soft notes of the piano itself, summed with random
signs. A convolution with it during each stretch of pedal is the whole model.
"""

from __future__ import annotations

import numpy as np
import torch

from midisynth.datasets.piano_bank import KEYS, Bank

#: Length of the impulse response (seconds).
RESPONSE_SEC = 3.0
#: Strings answer with a delay: the response is silent at first and is whole from here on (seconds), which also keeps
#: the strokes of the recorded notes out of it.
QUIET_SEC, RISE_SEC = 0.02, 0.12
#: When dampers fall, resonance takes so long to lose 60 dB (seconds).
FALL_SEC = 0.5
#: Evenness of the response: its spectrum is levelled over bands of this width (octaves), and falls by so much per
#: octave above `TILT_HZ` (dB), for high strings take less from the bridge.
BAND_OCTAVES = 0.5
TILT_DB, TILT_HZ = 3.0, 500.0
LOWEST_HZ = 40.0


class StringResonance:
    """What the undamped strings of a piano add to the sound.

    Args:
        bank: The notes of the piano; its first row are the softest.
        sample_rate: Of the audio (Hz).
        level_db: Energy of the impulse response: resonance to white noise, relative to the noise (dB).
    """

    def __init__(self, bank: Bank, sample_rate: int, level_db: float):
        samples = round(RESPONSE_SEC * sample_rate)
        signs = np.random.default_rng(0).choice([-1.0, 1.0], KEYS)
        response = np.zeros((len(bank.samples), samples), np.float32)
        for key in range(KEYS):
            note = bank.recorded(0, key, samples)
            level = np.sqrt(np.square(note.mean(axis=0)).sum())
            response[:, : note.shape[1]] += note * np.float32(signs[key] / level)
        time = np.arange(samples) / sample_rate
        rise = np.clip((time - QUIET_SEC) / (RISE_SEC - QUIET_SEC), 0, 1)
        fall = np.clip((RESPONSE_SEC - time) / (0.25 * RESPONSE_SEC), 0, 1)
        response *= np.sin(np.pi / 2 * rise) ** 2 * np.sin(np.pi / 2 * fall) ** 2
        response = _levelled(response, sample_rate)
        response *= 10 ** (level_db / 20) / np.sqrt(np.square(response.mean(axis=0)).sum())
        self._response = torch.from_numpy(response)
        self._fall = np.power(10.0, -3.0 / (FALL_SEC * sample_rate) * np.arange(round(FALL_SEC * sample_rate)))

    def add(self, audio: np.ndarray, stretches: np.ndarray) -> None:
        """Add the resonance of each stretch of pedal to the audio in place; it rings on a little beyond the stretch.

        Args:
            audio: [channels, samples] float32.
            stretches: First sample, and first sample after the pedal went up, [stretches, 2].
        """
        for start, end in stretches.tolist():
            played = torch.from_numpy(audio[:, start:end].mean(axis=0))
            if not played.any():
                continue
            length = min(audio.shape[1] - start, end - start + len(self._fall))
            response = self._response[:, :length]
            size = _fast_size(len(played) + response.shape[1] - 1)
            spectrum = torch.fft.rfft(played, size) * torch.fft.rfft(response, size)
            answer = torch.fft.irfft(spectrum, size)[:, :length].numpy()
            answer[:, end - start :] *= self._fall[: max(length - (end - start), 0)]
            audio[:, start : start + length] += answer


def _levelled(response: np.ndarray, sample_rate: int) -> np.ndarray:
    """Equalise the bands of a response, [channels, samples], so that no register answers more than others."""
    samples = response.shape[1]
    spectrum = np.fft.rfft(response)
    frequencies = np.fft.rfftfreq(samples, 1 / sample_rate)
    power = np.square(np.abs(np.fft.rfft(response.mean(axis=0))))
    total = np.concatenate([[0.0], power.cumsum()])
    half = 2 ** (BAND_OCTAVES / 2)
    low = np.searchsorted(frequencies, frequencies / half)
    high = np.maximum(np.searchsorted(frequencies, frequencies * half, side="right"), low + 1)
    band = (total[high] - total[low]) / (high - low)
    tilt_db = -TILT_DB * np.log2(np.maximum(frequencies, TILT_HZ) / TILT_HZ)
    cut = np.clip(frequencies / LOWEST_HZ, 0, 1) ** 2
    # What recordings lack above their own band is not made up.
    gain = cut * 10 ** (tilt_db / 20) / np.sqrt(np.maximum(band, 1e-6 * band.max()))
    return np.fft.irfft(spectrum * gain, samples).astype(np.float32)


def _fast_size(samples: int) -> int:
    """The next length whose Fourier transform is quick: a power of two, times 3 or 5 at most."""
    return min(odd << max(-(-samples // odd) - 1, 0).bit_length() for odd in (1, 3, 5))
