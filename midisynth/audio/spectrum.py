"""Magnitude spectra of one scale: what losses train on and what metrics compare."""

from __future__ import annotations

import torch
from torch import Tensor

#: Sizes of multi-resolution spectral distances (samples); hops are a quarter of them.
FFT_SIZES = (256, 512, 1024, 2048, 4096)

#: Spectra are cut off here, relative to a full-scale sine: what lies below is not heard.
FLOOR_DB = -100.0


def magnitude_spectrum(audio: Tensor, n_fft: int) -> Tensor:
    """STFT magnitude, [..., samples] -> [..., bins, frames]; a full-scale sine peaks at 1.

    Args:
        audio: [..., samples].
        n_fft: FFT size and length of the Hann window (samples); the hop is a quarter of it.
    """
    window = torch.hann_window(n_fft, device=audio.device, dtype=audio.dtype)
    # Zeros rather than a reflection: it is defined for signals that are shorter than the window.
    spectrum = torch.stft(audio, n_fft, n_fft // 4, window=window, pad_mode="constant", return_complex=True)
    return spectrum.abs() * (2 / window.sum())


def log_magnitude(magnitude: Tensor, floor_db: float = FLOOR_DB) -> Tensor:
    """Natural logarithm of magnitudes, which are raised to `floor_db` (dB relative to 1) first; same shape."""
    return magnitude.clamp(min=10 ** (floor_db / 20)).log()


def log_spectrum(audio: Tensor, n_fft: int, floor_db: float = FLOOR_DB) -> Tensor:
    """Natural logarithm of the STFT magnitude, [..., samples] -> [..., bins, frames]; a full-scale sine peaks at 0.

    Args:
        audio: [..., samples].
        n_fft: FFT size and length of the Hann window (samples); the hop is a quarter of it.
        floor_db: Magnitudes below are raised to it (dB relative to a full-scale sine).
    """
    return log_magnitude(magnitude_spectrum(audio, n_fft), floor_db)


def convergence(magnitude: Tensor, wanted: Tensor, floor_db: float = FLOOR_DB) -> Tensor:
    """Norm of the difference of magnitudes over the norm of the wanted ones, same shapes -> scalar.

    Args:
        magnitude: Any shape.
        wanted: Same shape.
        floor_db: The divisor is at least the norm of magnitudes at this level (dB relative to 1), so that silence has
            a value, too.
    """
    smallest = wanted.numel() ** 0.5 * 10 ** (floor_db / 20)
    return torch.linalg.vector_norm(magnitude - wanted) / torch.linalg.vector_norm(wanted).clamp(min=smallest)
