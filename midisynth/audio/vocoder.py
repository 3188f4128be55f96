"""Mel spectrogram -> waveform: the interface."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class VocoderStream(ABC):
    """Turns consecutive blocks of one spectrogram into consecutive blocks of audio, without audible seams.

    What has been pushed and finished amounts to frames * hop_samples samples, whatever the sizes of the blocks.
    """

    @abstractmethod
    def push(self, mel: Tensor) -> Tensor:
        """Take the next log-mel frames [frames, mels] and return the audio that is final by now, [samples]."""

    @abstractmethod
    def finish(self) -> Tensor:
        """Return the audio that was held back, [samples]. The stream cannot be used afterwards."""


class Vocoder(ABC):
    """A mel spectrogram -> waveform backend.

    Attributes:
        sample_rate: Of the audio it makes (Hz).
        hop_samples: Samples per mel frame.
        mels: Mel bins it expects (natural log of magnitude; framing in `midisynth.audio.features`).
    """

    sample_rate: int
    hop_samples: int
    mels: int

    @abstractmethod
    def stream(self, seed: int = 0) -> VocoderStream:
        """Start on a new spectrogram. `seed` decides whatever is random, so equal calls give equal audio."""

    def __call__(self, mel: Tensor, seed: int = 0) -> Tensor:
        """Whole spectrogram [frames, mels] -> audio [frames * hop_samples]."""
        import torch

        stream = self.stream(seed)
        return torch.cat([stream.push(mel), stream.finish()])
