"""Log-mel spectrogram -> waveform in one pass: a convolutional backbone, and a head that makes sound of its features.

The backbone is ConvNeXt over time, as in Vocos (Siuzdak 2023, arXiv 2306.00814). Two heads share one interface:

- `SpectrumHead` predicts short-time spectra, as Vocos does. Equal frames in give equal frames out, so a held note of
  constant spectrum repeats every hop and only multiples of the frame rate can sound; without a discriminator that is
  what one hears.
- `OscillatorHead` has one oscillator for every partial of the 88 keys, whose phases run on absolute time, and noise.
  It can hold a note, but it is tuned to one piano.

Either way the audio is then made to agree with the spectrogram (`consistency.py`).

Frame i of the spectrogram is centred on the end of its hop, sample (i + 1) * hop of the output.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.audio.features import MelRange
from midisynth.models.vocoder.consistency import MelConsistency
from midisynth.models.vocoder.partials import KEYS, piano_partials

HeadName = Literal["oscillators", "istft"]

#: Rate (Hz) and FFT size (samples) of the spectrogram.
MEL_RATE = 16000
MEL_FFT = 1024

#: Natural logarithm of the mel magnitude of a sine of amplitude 1 in the middle of a filter: half the window's sum.
SINE_LEVEL = math.log(160.0)
#: Corrections of log amplitudes are kept below this: the mel is right to within a factor of 20.
MAX_CORRECTION = 3.0
#: Amplitudes beyond the mel's upper edge start from its top filter and fall by this (nats per kHz).
TILT_PER_KHZ = 0.6


class Block(nn.Module):
    """ConvNeXt block over time: depthwise convolution, normalisation, feed-forward, scaled and added.

    Args:
        dim: Width.
        hidden_dim: Width inside the feed-forward.
        kernel: Frames of the convolution.
        scale: Initial scale of what is added.
    """

    def __init__(self, dim: int, hidden_dim: int, kernel: int, scale: float):
        super().__init__()
        self.convolution = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.expand = nn.Linear(dim, hidden_dim)
        self.reduce = nn.Linear(hidden_dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: [batch, frames, dim]. Returns: the same shape."""
        y = self.norm(self.convolution(x.transpose(1, 2)).transpose(1, 2))
        return x + self.scale * self.reduce(F.gelu(self.expand(y)))


class Backbone(nn.Module):
    """Mel frames -> features.

    Args:
        mels: Mel bins.
        dim: Width.
        hidden_dim: Width inside the feed-forwards.
        layers: Number of blocks.
        kernel: Frames of every convolution, odd.
    """

    def __init__(self, mels: int, dim: int, hidden_dim: int, layers: int, kernel: int = 7):
        super().__init__()
        self.inlet = nn.Conv1d(mels, dim, kernel, padding=kernel // 2)
        self.inlet_norm = nn.LayerNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList(Block(dim, hidden_dim, kernel, 1 / layers) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        #: How many frames on either side a feature depends on.
        self.reach = (layers + 1) * (kernel // 2)

    def forward(self, mel: Tensor) -> Tensor:
        """Args: mel: [batch, frames, mels] in [-1, 1]. Returns: [batch, frames, dim]."""
        x = self.inlet_norm(self.inlet(mel.transpose(1, 2)).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def mel_interpolation(hertz: np.ndarray, mels: int, f_min: float, f_max: float) -> np.ndarray:
    """Weights that read a mel frame at any frequencies, [mels, frequencies]; beyond the outer filters, their values.

    Args:
        hertz: Frequencies (Hz).
        mels: Number of filters.
        f_min: Lower edge of the first filter (Hz).
        f_max: Upper edge of the last filter (Hz).
    """
    low, high, wanted = (1127.0 * np.log1p(np.asarray(value) / 700.0) for value in (f_min, f_max, hertz))
    # Centres of the filters lie at (index + 1) / (mels + 1) of the range.
    position = np.clip((wanted - low) / (high - low) * (mels + 1) - 1, 0, mels - 1)
    return linear_weights(position, mels)


def linear_weights(position: np.ndarray, nodes: int) -> np.ndarray:
    """Weights of linear interpolation between nodes 0, 1, ..., [nodes, positions]."""
    return np.maximum(1 - np.abs(np.arange(nodes)[:, None] - position), 0)


def upsampled(values: Tensor, factor: int) -> Tensor:
    """[batch, frames, n] -> [batch, frames * factor, n]: linear, so that every frame is the last of its group."""
    before = torch.cat([values[:, :1], values[:, :-1]], dim=1)
    share = torch.arange(1, factor + 1, device=values.device, dtype=values.dtype) / factor
    return torch.lerp(before[:, :, None], values[:, :, None], share[:, None]).flatten(1, 2)


def overlap_add_halves(frames: Tensor) -> Tensor:
    """Frames [batch, n, length] centred on the ends of steps of half their length -> [batch, n * length / 2]."""
    first, second = frames.chunk(2, dim=-1)
    return (first + F.pad(second, (0, 0, 1, 0))[:, :-1]).flatten(1)


class OscillatorHead(nn.Module):
    """Features -> audio: a bank of oscillators at the partials of a piano, and filtered noise.

    The amplitude of an oscillator is what the mel has at its frequency times a correction: one for the oscillator in
    every frame, one for all partials of its key in every step. Steps are shorter than frames, so that attacks stay
    sharp, and the amplitude of a sine is faded between them. Frames of windowed sines are summed up as spectra, where
    each touches few bins (Rodet and Depalle 1992), so that synthesis is a handful of small matrix products.

    Args:
        dim: Width of the features.
        sample_rate: Of the audio (Hz).
        hop: Samples of a frame.
        mels: Mel bins.
        f_min: Lower edge of the first mel filter (Hz).
        f_max: Upper edge of the last mel filter (Hz).
        steps: Amplitude steps in a frame.
        noise_steps: Steps of the noise in a frame.
        noise_bands: Bands of the noise, equally wide on the mel scale.
    """

    frequencies: Tensor
    keys: Tensor
    oscillator_mel: Tensor
    band_mel: Tensor
    bin_bands: Tensor
    noise: Tensor

    #: Length of the noise before it repeats (steps).
    NOISE_PERIOD = 1021
    #: Chunks of neighbouring oscillators that are summed up together, and the bins kept beyond each.
    CHUNKS = 4
    MARGIN = 10

    def __init__(
        self,
        dim: int,
        sample_rate: int,
        hop: int,
        mels: int,
        f_min: float,
        f_max: float,
        steps: int = 2,
        noise_steps: int = 4,
        noise_bands: int = 64,
    ):
        super().__init__()
        self.sample_rate, self.hop = sample_rate, hop
        self.steps, self.noise_steps = steps, noise_steps
        hertz, keys, _ = piano_partials(sample_rate)
        self.register_buffer("frequencies", torch.from_numpy(hertz))
        self.register_buffer("keys", torch.from_numpy(keys), persistent=False)
        self._constant("oscillator_mel", mel_interpolation(hertz, mels, f_min, f_max))
        top = 1127.0 * math.log1p(sample_rate / 2 / 700.0)
        centers = 700.0 * np.expm1((np.arange(noise_bands) + 0.5) / noise_bands * top / 1127.0)
        self._constant("band_mel", mel_interpolation(centers, mels, f_min, f_max))
        bins = np.arange(hop // noise_steps + 1) * sample_rate / 2 / (hop // noise_steps)
        position = 1127.0 * np.log1p(bins / 700.0) / top * noise_bands - 0.5
        self._constant("bin_bands", linear_weights(np.clip(position, 0, noise_bands - 1), noise_bands))
        turns = np.random.default_rng(0).random((self.NOISE_PERIOD, len(bins)))
        self._constant("noise", np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)]))
        # Oscillators that the mel cannot tell apart share what it shows.
        crowd = np.array([np.sum(np.abs(hertz - f) < 25.0 + 0.02 * f) for f in hertz])
        level = -0.5 * np.log(crowd) - TILT_PER_KHZ * np.maximum(hertz - f_max, 0) / 1000
        self.oscillators = nn.Linear(dim, len(hertz))
        self.key_steps = nn.Linear(dim, KEYS * steps)
        self.bands = nn.Linear(dim, noise_bands * noise_steps)
        for linear in (self.oscillators, self.key_steps, self.bands):
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)
        with torch.no_grad():
            self.oscillators.bias.copy_(torch.from_numpy(level) - 0.5)
            tilt = torch.from_numpy(-TILT_PER_KHZ * np.maximum(centers - f_max, 0) / 1000)
            self.bands.bias.copy_((tilt - 3.0).repeat(noise_steps))
        self._spectra: tuple[torch.device, list[tuple[slice, tuple[int, int], Tensor, Tensor]]] | None = None
        self.register_load_state_dict_post_hook(lambda module, _: module.retuned())

    def _constant(self, name: str, values: np.ndarray) -> None:
        self.register_buffer(name, torch.from_numpy(values.astype(np.float32)), persistent=False)

    def retuned(self) -> None:
        """Forget what was computed from the frequencies."""
        self._spectra = None

    def forward(self, features: Tensor, mel: Tensor, floor: float, first_frame: int, seed: int) -> Tensor:
        """Make sound.

        Args:
            features: [batch, frames, dim].
            mel: Log-mel frames, not below `floor`, [batch, frames, mels].
            floor: What counts as silence (natural log of mel magnitude).
            first_frame: Position of the first frame in its piece.
            seed: Chooses the noise.

        Returns:
            [batch, frames * hop]; the first frame fades in.
        """
        return self._tones(features, mel, floor, first_frame) + self._noise(features, mel, floor, first_frame, seed)

    def _tones(self, features: Tensor, mel: Tensor, floor: float, first_frame: int) -> Tensor:
        level = ((mel @ self.oscillator_mel).exp() - math.exp(floor)).clamp(min=0)
        amplitude = level * (self.oscillators(features).clamp(max=MAX_CORRECTION) - SINE_LEVEL).exp()
        key_gain = self.key_steps(features).unflatten(-1, (self.steps, KEYS)).flatten(1, 2)
        gain = key_gain.clamp(max=MAX_CORRECTION).exp().index_select(-1, self.keys)
        amplitude = upsampled(amplitude, self.steps) * gain
        count, step = amplitude.shape[1], self.hop // self.steps
        ends = first_frame * self.steps + torch.arange(1, count + 1, device=mel.device, dtype=torch.float64)
        # In float64 and modulo one turn: after an hour, float32 would be off by more than a turn.
        turns = ends[:, None] * (self.frequencies * (step / self.sample_rate))
        phase = (turns - turns.floor()).to(amplitude.dtype) * (2 * math.pi)
        even, odd = amplitude * phase.cos(), amplitude * phase.sin()
        real, imaginary = torch.zeros(()), torch.zeros(())
        for chosen, margins, cosine, sine in self._windowed_spectra():
            real = real + F.pad(even[..., chosen] @ cosine, margins)
            imaginary = imaginary + F.pad(odd[..., chosen] @ sine, margins)
        frames = torch.fft.irfft(torch.complex(real, imaginary), n=2 * step).roll(step, dims=-1)
        return overlap_add_halves(frames)

    def _noise(self, features: Tensor, mel: Tensor, floor: float, first_frame: int, seed: int) -> Tensor:
        bands = self.bands(features).unflatten(-1, (self.noise_steps, -1)).flatten(1, 2).clamp(max=MAX_CORRECTION)
        level = upsampled((mel @ self.band_mel).exp() - math.exp(floor), self.noise_steps).clamp(min=0)
        magnitude = (level * (bands - SINE_LEVEL).exp()) @ self.bin_bands
        step = self.hop // self.noise_steps
        count = magnitude.shape[1]
        position = torch.arange(count, device=mel.device) + (first_frame * self.noise_steps + seed)
        cosine, sine = self.noise[:, position % self.NOISE_PERIOD]
        # A noise of amplitude 1 in every bin has the power of that many sines.
        frames = torch.fft.irfft(torch.complex(magnitude * cosine, magnitude * sine), n=2 * step) * step
        # The powers of overlapping windows add up to 1.
        window = torch.sin(torch.pi * (torch.arange(2 * step, device=mel.device) + 0.5) / (2 * step))
        return overlap_add_halves(frames * window)

    def _windowed_spectra(self) -> list[tuple[slice, tuple[int, int], Tensor, Tensor]]:
        """What adds up chunks of neighbouring oscillators: which, and how many bins are left out below and above.

        Then the spectra of a windowed cosine and of a windowed minus sine at each of their frequencies.
        """
        device = self.frequencies.device
        if self._spectra is None or self._spectra[0] != device:
            # What is made in inference mode could not be used for training afterwards.
            with torch.inference_mode(False), torch.no_grad():
                self._spectra = device, self._make_spectra(device)
        return self._spectra[1]

    def _make_spectra(self, device: torch.device) -> list[tuple[slice, tuple[int, int], Tensor, Tensor]]:
        step = self.hop // self.steps
        hertz = self.frequencies.detach().cpu().numpy()
        time = np.fft.ifftshift(np.arange(-step, step))
        window = 0.5 + 0.5 * np.cos(np.pi * time / step)
        made = []
        for chunk in np.array_split(np.arange(len(hertz)), self.CHUNKS):
            angle = 2 * np.pi * hertz[chunk, None] / self.sample_rate * time
            position = hertz[chunk] / self.sample_rate * 2 * step
            low = max(math.floor(position.min()) - self.MARGIN, 0)
            high = min(math.ceil(position.max()) + self.MARGIN, step) + 1
            # About time 0 a cosine has a real spectrum and a sine an imaginary one.
            cosine = np.fft.rfft(np.cos(angle) * window).real[:, low:high]
            sine = np.fft.rfft(-np.sin(angle) * window).imag[:, low:high]
            constants = (torch.tensor(values, dtype=torch.float32, device=device) for values in (cosine, sine))
            made.append((slice(int(chunk[0]), int(chunk[-1]) + 1), (low, step + 1 - high), *constants))
        return made


class SpectrumHead(nn.Module):
    """Features -> audio by short-time spectra and their inverse transform, as Vocos does.

    Args:
        dim: Width of the features.
        hop: Samples of a frame.
        overlap: Length of the window (frames).
    """

    def __init__(self, dim: int, hop: int, overlap: int = 4):
        super().__init__()
        self.hop, self.overlap = hop, overlap
        self.size = overlap * hop
        self.spectrum = nn.Linear(dim, 2 * (self.size // 2 + 1))
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)
        nn.init.normal_(self.spectrum.weight, std=0.02)
        nn.init.zeros_(self.spectrum.bias)

    def forward(self, features: Tensor, mel: Tensor, floor: float, first_frame: int, seed: int) -> Tensor:
        """As `OscillatorHead.forward`; equal everywhere in a piece, and nothing is random."""
        magnitude, phase = self.spectrum(features).float().chunk(2, dim=-1)
        frames = torch.fft.irfft(torch.polar(magnitude.clamp(max=7.0).exp(), phase), n=self.size) * self.window
        # Frame i is centred on the end of hop i.
        count, left = frames.shape[1], self.size // 2 - self.hop
        pieces = frames.unflatten(-1, (self.overlap, self.hop))
        audio = torch.zeros(len(frames), count + self.overlap - 1, self.hop, device=frames.device)
        for index in range(self.overlap):
            audio = audio + F.pad(pieces[:, :, index], (0, 0, index, self.overlap - 1 - index))
        weight = (self.window**2).unflatten(0, (self.overlap, self.hop)).sum(0)
        return (audio / weight).flatten(1)[:, left : left + count * self.hop]


class VocoderNetwork(nn.Module):
    """Log mel -> audio.

    Args:
        head: "oscillators" or "istft".
        sample_rate: Of the audio (Hz).
        hop: Samples per mel frame.
        mels: Mel bins.
        f_min: Lower edge of the first mel filter (Hz).
        f_max: Upper edge of the last mel filter (Hz).
        mel_min: Log magnitude that counts as silence.
        mel_max: Upper end of the scaled range (natural log).
        dim: Width.
        hidden_dim: Width inside the feed-forwards.
        layers: Blocks of the backbone.
        steps: Amplitude steps of the oscillators in a frame.
        noise_steps: Steps of the noise in a frame.
        noise_bands: Bands of the noise.
        mel_passes: Passes of `MelConsistency` over the audio of the head.
    """

    def __init__(
        self,
        head: HeadName,
        *,
        sample_rate: int,
        hop: int,
        mels: int,
        f_min: float,
        f_max: float,
        mel_min: float,
        mel_max: float,
        dim: int,
        hidden_dim: int,
        layers: int,
        steps: int,
        noise_steps: int,
        noise_bands: int,
        mel_passes: int,
    ):
        super().__init__()
        self.hop = hop
        self.mel_min, self.mel_max = mel_min, mel_max
        self.scale = MelRange(mel_min, mel_max)
        self.backbone = Backbone(mels, dim, hidden_dim, layers)
        self.head = (
            SpectrumHead(dim, hop)
            if head == "istft"
            else OscillatorHead(dim, sample_rate, hop, mels, f_min, f_max, steps, noise_steps, noise_bands)
        )

        self.consistency = MelConsistency(
            sample_rate,
            hop,
            mel_rate=MEL_RATE,
            mel_fft=MEL_FFT,
            f_min=f_min,
            f_max=f_max,
            mels=mels,
            passes=mel_passes,
        )

    @property
    def reach(self) -> int:
        """Frames on either side of a frame that its audio depends on."""
        return self.backbone.reach + 4 + self.consistency.reach

    def forward(self, mel: Tensor, first_frame: int = 0, seed: int = 0) -> Tensor:
        """Make sound.

        Args:
            mel: Natural log of mel magnitude, [batch, frames, mels].
            first_frame: Position of the first frame in its piece.
            seed: Chooses the noise.

        Returns:
            [batch, frames * hop]; samples within `reach` frames of either end depend on what is not there.
        """
        mel = mel.clamp(self.mel_min, self.mel_max)
        audio = self.head(self.backbone(self.scale(mel)), mel, self.mel_min, first_frame, seed)
        return self.consistency(audio, mel, self.mel_min)
