"""Makes audio agree with the spectrogram that it was made from, by a filter that follows their difference."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.audio.features import mel_filters

#: Most that one pass moves a band up or down (nats).
MAX_CHANGE = 2.0


class MelConsistency(nn.Module):
    """Audio, log mel -> audio whose spectrogram is closer to that log mel.

    Sines and noise that share a mel filter interfere as chance has it, so that their sum rises and falls where the
    spectrogram does not, which sounds like notes struck again. In every pass the mel of the audio is compared with the
    wanted one, twice as often as that has frames, and what is missing or too much is made up for by a gain that is
    smooth over frequency. This is the projection of Griffin and Lim (1984) with an envelope in the place of magnitudes:
    what lies between the bands of the mel stays as it is, phases included.

    Args:
        sample_rate: Of the audio (Hz).
        hop: Samples of a frame.
        mel_rate: Of the audio that the spectrogram is of (Hz).
        mel_fft: FFT size of the spectrogram (samples at `mel_rate`).
        f_min: Lower edge of its first filter (Hz).
        f_max: Upper edge of its last filter (Hz).
        mels: Number of its filters.
        passes: How often.
    """

    window: Tensor
    filters: Tensor
    spread: Tensor

    def __init__(
        self,
        sample_rate: int,
        hop: int,
        *,
        mel_rate: int,
        mel_fft: int,
        f_min: float,
        f_max: float,
        mels: int,
        passes: int,
    ):
        super().__init__()
        self.hop = hop
        self.passes = passes
        # Bins no further apart than those of the spectrogram.
        self.size = 2 ** math.ceil(math.log2(mel_fft * sample_rate / mel_rate))
        with torch.device("cpu"):
            filters = mel_filters("published", sample_rate, self.size, f_min, f_max, mels)
            window = torch.hann_window(2 * hop)
        filters = filters[: math.ceil(f_max / sample_rate * self.size)]  # none of them reaches higher
        # Peaks grow with the samples in the window, and sums with the number of bins.
        scale = (mel_rate / sample_rate) * (mel_fft / mel_rate) / (self.size / sample_rate)
        self.register_buffer("filters", filters * scale, persistent=False)
        spread = filters / filters.sum(dim=1, keepdim=True).clamp(min=1e-3)
        self.register_buffer("spread", spread.T.contiguous(), persistent=False)
        self.register_buffer("window", window, persistent=False)

    @property
    def reach(self) -> int:
        """Frames on either side of a frame that its audio depends on."""
        return 3 * self.passes

    def forward(self, audio: Tensor, mel: Tensor, floor: float) -> Tensor:
        """Filter.

        Args:
            audio: [batch, frames * hop].
            mel: What its log mel should be, [batch, frames, mels].
            floor: What counts as silence (natural log of mel magnitude).

        Returns:
            Same shape as `audio`. Frames at its ends, which see what is not there, are left as they are.
        """
        halves = torch.stack([mel[:, :-1], (mel[:, :-1] + mel[:, 1:]) / 2], dim=2).flatten(1, 2)
        for _ in range(self.passes):
            audio = self._pass(audio, halves, floor)
        return audio

    def _pass(self, audio: Tensor, wanted: Tensor, floor: float) -> Tensor:
        step = self.hop // 2
        # Every sample is seen by four windows, of which those at the ends begin before the audio or end after it.
        frames = F.pad(audio, (3 * step, 3 * step)).unfold(-1, 2 * self.hop, step) * self.window
        spectrum = torch.fft.rfft(frames, n=self.size)
        inner = torch.view_as_real(spectrum[:, 3 : 3 + wanted.shape[1], : len(self.filters)])
        # The magnitude of 0 has no gradient.
        magnitude = (inner.square().sum(dim=-1) + 1e-14).sqrt()
        found = (magnitude @ self.filters).clamp(min=1e-6).log().clamp(min=floor)
        gain = ((wanted - found).clamp(-MAX_CHANGE, MAX_CHANGE) @ self.spread).exp()
        # The ends and what lies above the spectrogram stay.
        before_after = 3, frames.shape[1] - 3 - wanted.shape[1]
        gain = F.pad(gain, (0, spectrum.shape[2] - len(self.filters), *before_after), value=1.0)
        frames = torch.fft.irfft(spectrum * gain, n=self.size)[..., : 2 * self.hop] * self.window
        pieces = frames.unflatten(-1, (4, step))
        total = sum(F.pad(pieces[:, :, index], (0, 0, index, 3 - index)) for index in range(4))
        # Squares of four overlapping Hann windows add up to 3/2.
        return total.flatten(1)[:, 3 * step : 3 * step + audio.shape[1]] / 1.5
