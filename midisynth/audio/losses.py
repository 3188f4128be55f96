"""Spectral losses of networks that make audio.

    loss = MultiResolutionStftLoss()(audio, reference) + MelLoss(sample_rate=32000)(audio, reference)

Both take [batch, samples] or [batch, channels, samples], compute in float32 whatever autocast says, and have values and
gradients everywhere, silence included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from midisynth.audio.features import LogMel
from midisynth.audio.spectrum import FFT_SIZES, FLOOR_DB, convergence, log_magnitude, magnitude_spectrum


class MultiResolutionStftLoss(nn.Module):
    """Distance of STFT magnitudes at several resolutions (Yamamoto et al. 2019, arXiv 1910.11480, equations 4 to 7).

    At every FFT size the mean absolute difference of log magnitudes (nats), times `log_weight`, and the spectral
    convergence, times `convergence_weight`, are added; the result is the mean over sizes. The first term hears quiet
    partials, the second makes loud ones right first. Window = FFT size, hop = a quarter of it.

    Args:
        fft_sizes: FFT sizes (samples).
        log_weight: Of the log-magnitude term.
        convergence_weight: Of the spectral convergence; its norms are taken over the whole batch, so a quiet example
            weighs little and a silent one harms nothing.
        floor_db: Magnitudes below are raised to it in the log term (dB relative to a full-scale sine).
    """

    def __init__(
        self,
        fft_sizes: Sequence[int] = FFT_SIZES,
        log_weight: float = 1.0,
        convergence_weight: float = 1.0,
        floor_db: float = FLOOR_DB,
    ):
        super().__init__()
        self.fft_sizes = tuple(fft_sizes)
        self.log_weight = log_weight
        self.convergence_weight = convergence_weight
        self.floor_db = floor_db

    def forward(self, audio: Tensor, reference: Tensor) -> Tensor:
        """Args: audio, reference: [batch, samples] or [batch, channels, samples]. Returns: scalar."""
        with torch.autocast(audio.device.type, enabled=False):
            audio, reference = _signals(audio), _signals(reference)
            return torch.stack([self._at(size, audio, reference) for size in self.fft_sizes]).mean()

    def _at(self, n_fft: int, audio: Tensor, reference: Tensor) -> Tensor:
        magnitude, wanted = magnitude_spectrum(audio, n_fft), magnitude_spectrum(reference, n_fft)
        nats = (log_magnitude(magnitude, self.floor_db) - log_magnitude(wanted, self.floor_db)).abs().mean()
        return self.log_weight * nats + self.convergence_weight * convergence(magnitude, wanted, self.floor_db)


class MelLoss(nn.Module):
    """Mean absolute difference of log-mel spectrograms (nats), averaged over resolutions.

    One resolution is the loss of HiFi-GAN and Vocos, several are that of the Descript codec (Kumar et al. 2023, arXiv
    2306.06546, section 3.5). Window = FFT size, hop = a quarter of it.

    Args:
        sample_rate: Of the audio (Hz).
        fft_sizes: FFT sizes (samples).
        mels: Number of mel filters, for every FFT size.
        f_min: Lower edge of the first filter (Hz).
        f_max: Upper edge of the last filter (Hz); half the sample rate when None.
        floor_db: Mel magnitudes below are raised to it (dB relative to the peak of a full-scale sine).

    Raises:
        ValueError: `mels` has another length than `fft_sizes`.
    """

    def __init__(
        self,
        sample_rate: int,
        fft_sizes: Sequence[int] = (1024,),
        mels: Sequence[int] = (128,),
        f_min: float = 0.0,
        f_max: float | None = None,
        floor_db: float = FLOOR_DB,
    ):
        super().__init__()
        if len(mels) != len(fft_sizes):
            raise ValueError(f"mels has {len(mels)} numbers and fft_sizes has {len(fft_sizes)}: give one for each")
        highest = sample_rate / 2 if f_max is None else f_max
        self.resolutions = nn.ModuleList(
            LogMel(sample_rate, size, size, size // 4, f_min, highest, count)
            for size, count in zip(fft_sizes, mels, strict=True)
        )
        # A full-scale sine peaks at a quarter of the FFT size: half of the window's sum.
        self._floors = [math.log(size / 4) + floor_db * math.log(10) / 20 for size in fft_sizes]

    def forward(self, audio: Tensor, reference: Tensor) -> Tensor:
        """Args: audio, reference: [batch, samples] or [batch, channels, samples]. Returns: scalar."""
        with torch.autocast(audio.device.type, enabled=False):
            audio, reference = _signals(audio), _signals(reference)
            distances = [
                (log_mel(audio).clamp(min=floor) - log_mel(reference).clamp(min=floor)).abs().mean()
                for log_mel, floor in zip(self.resolutions, self._floors, strict=True)
            ]
            return torch.stack(distances).mean()


def _signals(audio: Tensor) -> Tensor:
    """[batch, (channels,) samples] -> [batch * channels, samples] in single precision."""
    return audio.float().flatten(0, -2)
