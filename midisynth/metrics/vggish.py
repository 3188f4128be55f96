"""VGGish (Hershey et al. 2017) as a torch module, with the front end that its weights were trained with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from midisynth.audio.features import mel_filters
from midisynth.errors import CheckpointError
from midisynth.metrics.embeddings import AudioEmbedding


class VggishFrontEnd(nn.Module):
    """16 kHz audio -> log-mel examples of 0.96 s, as AudioSet's `vggish_input` makes them.

    Frames of 25 ms every 10 ms with a periodic Hann window, FFT of 512, magnitudes, 64 triangles on the HTK mel scale
    from 125 to 7500 Hz, natural log of magnitude + 0.01, 96 frames an example without overlap.

    Args:
        ending: What happens to audio after the last whole example: "pad" fills it up with silence, "drop" leaves it
            out, as the original does (of 5.12 s the last 0.32 s are then never heard).
    """

    sample_rate = 16000
    window_samples, hop_samples, n_fft = 400, 160, 512
    mels, f_min, f_max, log_offset = 64, 125.0, 7500.0, 0.01
    example_frames = 96

    def __init__(self, ending: Literal["pad", "drop"] = "pad"):
        super().__init__()
        self.ending = ending
        # Constants have values also where the network is laid out on the meta device.
        with torch.device("cpu"):
            window = torch.hann_window(self.window_samples)
            filters = mel_filters("published", self.sample_rate, self.n_fft, self.f_min, self.f_max, self.mels)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """[batch, samples] -> [batch, examples, 96, 64], at least one example."""
        advance = self.example_frames * self.hop_samples
        beyond = self.window_samples - self.hop_samples  # of the last frame of an example
        samples = audio.shape[-1]
        examples = math.ceil(samples / advance) if self.ending == "pad" else (samples - beyond) // advance
        examples = max(examples, 1)
        needed = examples * advance + beyond
        audio = pad(audio, (0, max(needed - samples, 0)))[..., :needed]
        frames = audio.unfold(-1, self.window_samples, self.hop_samples) * self.window
        magnitude = torch.fft.rfft(frames, n=self.n_fft).abs()
        return (magnitude @ self.filters + self.log_offset).log().unflatten(1, (examples, self.example_frames))


class Vggish(AudioEmbedding):
    """VGGish in the layout of torchvggish, 128 values for each 0.96 s; random weights until `load`.

    Args:
        final_relu: Cut off negative values of the embedding, as torchvggish does. AudioSet's code and the FAD papers
            that use it do not: their embedding is the output of the last linear layer. The numbers of both do not
            compare, hence the two names, "vggish" and "vggish_relu".
        ending: See `VggishFrontEnd`.
    """

    sample_rate = VggishFrontEnd.sample_rate
    dim = 128
    frames_per_sec = 1 / 0.96

    def __init__(self, final_relu: bool = False, ending: Literal["pad", "drop"] = "pad"):
        super().__init__()
        self.name = "vggish_relu" if final_relu else "vggish"
        self.version = "random weights"
        self.front_end = VggishFrontEnd(ending)
        layers: list[nn.Module] = []
        channels = 1
        # "M" halves both axes.
        for width in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M"):
            if isinstance(width, int):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        # 96 frames and 64 bands, halved four times.
        self.embeddings = nn.Sequential(
            nn.Linear(channels * 6 * 4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, self.dim)
        )
        if final_relu:
            self.embeddings.append(nn.ReLU())
        self.eval().requires_grad_(False)

    def load(self, tensors: Mapping[str, Tensor], version: str) -> None:
        """Take weights in the layout of torchvggish: `features.0.weight` to `embeddings.4.bias`.

        Args:
            tensors: A state dict. The PCA that torchvggish keeps beside the network (`pproc.*`) is not used.
            version: Describes where they come from.

        Raises:
            CheckpointError: A tensor is missing, has no place, or has another shape.
        """
        state = {name: tensor for name, tensor in tensors.items() if not name.startswith("pproc.")}
        own = self.state_dict()
        wrong = sorted(own.keys() ^ state.keys()) or sorted(n for n in own if own[n].shape != state[n].shape)
        if wrong:
            raise CheckpointError(
                f"{version}: not VGGish in the layout of torchvggish: {len(wrong)} tensors are missing, unexpected or "
                f"of another shape, such as {wrong[0]}"
            )
        self.load_state_dict(state, assign=True)
        self.requires_grad_(False)
        self.version = version

    def forward(self, audio: Tensor) -> Tensor:
        examples = self.front_end(audio)
        rows = self.in_batches(_Flattened(self.features, self.embeddings), examples.flatten(0, 1).unsqueeze(1))
        return rows.unflatten(0, examples.shape[:2])


class _Flattened(nn.Module):
    """Convolutions and linear layers with TensorFlow's order between them: frames, bands, channels."""

    def __init__(self, features: nn.Module, embeddings: nn.Module):
        super().__init__()
        self.features, self.embeddings = features, embeddings

    def forward(self, examples: Tensor) -> Tensor:
        return self.embeddings(self.features(examples).permute(0, 2, 3, 1).flatten(1))
