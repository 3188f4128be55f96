"""Log-mel spectrograms, as the published spectrogram models define them, and their scaling to [-1, 1]."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.functional import pad

from midisynth.audio.backend import functional

Framing = Literal["published", "centered"]

#: Magnitudes are clipped to this range before the logarithm.
MAGNITUDE_RANGE = (1e-5, 1e8)


def mel_filters(framing: Framing, sample_rate: int, n_fft: int, f_min: float, f_max: float, mels: int) -> Tensor:
    """Triangular filters on the HTK mel scale without area normalisation, [n_fft // 2 + 1, mels].

    Args:
        framing: "published": triangles are linear in mel and the DC row is zero
            (`tf.signal.linear_to_mel_weight_matrix`); "centered": linear in Hz (torchaudio).
        sample_rate: Of the audio (Hz).
        n_fft: FFT size (samples).
        f_min: Lower edge of the first filter (Hz).
        f_max: Upper edge of the last filter (Hz).
        mels: Number of filters.
    """
    bins = n_fft // 2 + 1
    if framing == "centered":
        return functional.melscale_fbanks(bins, f_min, f_max, mels, sample_rate, norm=None, mel_scale="htk")

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    # In float64: neighbouring edges are close on the mel scale, and their differences are divided by.
    frequency = mel(torch.linspace(0, sample_rate / 2, bins, dtype=torch.float64))[:, None]
    low, high = mel(torch.tensor([f_min, f_max], dtype=torch.float64))
    edges = torch.linspace(float(low), float(high), mels + 2, dtype=torch.float64)
    lower, center, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequency - lower) / (center - lower)
    falling = (upper - frequency) / (upper - center)
    filters = torch.minimum(rising, falling).clamp(min=0)
    filters[0] = 0
    return filters.float()


class LogMel(nn.Module):
    """Audio -> natural logarithm of the mel magnitude spectrogram.

    Args:
        sample_rate: Of the audio (Hz).
        n_fft: FFT size (samples).
        win_length: Length of the periodic Hann window (samples).
        hop_length: Distance of frames (samples).
        f_min: Lower edge of the first filter (Hz).
        f_max: Upper edge of the last filter (Hz).
        mels: Number of filters.
        framing: "published": frame i covers samples [i * hop, i * hop + window), with zeros after the end, and there
            are ceil(samples / hop) frames. Vocoders expect this one. "centered": frame i is centred on sample
            i * hop, the signal is reflected at both ends, and there are samples // hop + 1 frames; with hop = n_fft
            * 5 / 16 it is about one frame later than "published".
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int = 1024,
        win_length: int = 640,
        hop_length: int = 320,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        mels: int = 128,
        framing: Framing = "published",
    ):
        super().__init__()
        if framing not in ("published", "centered"):
            raise ValueError(f"framing is {framing!r}; choose 'published' or 'centered'")
        self.sample_rate = sample_rate
        self.n_fft = n_fft
        self.win_length = win_length
        self.hop_length = hop_length
        self.framing = framing
        # Constants: in a checkpoint they would only be weight, and could disagree with the options.
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)
        # They are computed where values exist, also for a model that is laid out on the meta device.
        with torch.device("cpu"):
            filters = mel_filters(framing, sample_rate, n_fft, f_min, f_max, mels)
        self.register_buffer("filters", filters, persistent=False)

    def frames(self, samples: int) -> int:
        """Number of frames of a signal of so many samples."""
        if self.framing == "centered":
            return samples // self.hop_length + 1
        return math.ceil(samples / self.hop_length)

    def forward(self, audio: Tensor) -> Tensor:
        """Args: audio: [batch, samples]. Returns: ln mel magnitude, [batch, frames, mels]."""
        centered = self.framing == "centered"
        if not centered:
            # torch.stft puts a short window into the middle of the FFT frame.
            left = (self.n_fft - self.win_length) // 2
            needed = (self.frames(audio.shape[-1]) - 1) * self.hop_length + self.n_fft
            audio = pad(audio, (left, needed - left - audio.shape[-1]))
        spectrum = torch.stft(
            audio,
            self.n_fft,
            self.hop_length,
            self.win_length,
            self.window,
            center=centered,
            pad_mode="reflect",
            return_complex=True,
        )
        mel = spectrum.abs().transpose(-1, -2) @ self.filters
        return mel.clamp(*MAGNITUDE_RANGE).log()


class MelRange(nn.Module):
    """Affine map of log-mel values from [minimum, maximum] to [-1, 1].

    Args:
        minimum: Lower end of the range (natural log); the default is the floor of `LogMel`.
        maximum: Upper end of the range (natural log).
        adaptive: The range follows the data, starting from `minimum` and `maximum`: in training mode it is widened
            by every batch before the batch is scaled, and it is saved as the buffers `min` and `max`.
            `MelRange(inf, -inf, adaptive=True, clip=False)` learns the whole range.
        clip: Clip the input to the range. The inverse never clips.
    """

    min: Tensor
    max: Tensor

    def __init__(
        self,
        minimum: float = math.log(MAGNITUDE_RANGE[0]),
        maximum: float = 4.0,
        adaptive: bool = False,
        clip: bool = True,
    ):
        super().__init__()
        self.adaptive = adaptive
        self.clip = clip
        self.register_buffer("min", torch.tensor(float(minimum)), persistent=adaptive)
        self.register_buffer("max", torch.tensor(float(maximum)), persistent=adaptive)

    def forward(self, mel: Tensor) -> Tensor:
        """Log mel -> [-1, 1], same shape."""
        if self.adaptive and self.training:
            self._widen(mel)
        if self.clip:
            mel = mel.clamp(self.min, self.max)
        return 2 * (mel - self.min) / (self.max - self.min) - 1

    def inverse(self, scaled: Tensor) -> Tensor:
        """[-1, 1] -> log mel, same shape."""
        return (scaled + 1) / 2 * (self.max - self.min) + self.min

    @torch.no_grad()
    def _widen(self, mel: Tensor) -> None:
        low, high = torch.aminmax(mel.detach().float())
        # One collective for both ends: max(-low) is -min(low).
        extremes = torch.stack([-low, high])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(extremes, op=torch.distributed.ReduceOp.MAX)
        self.min.copy_(torch.minimum(self.min, -extremes[0]))
        self.max.copy_(torch.maximum(self.max, extremes[1]))
