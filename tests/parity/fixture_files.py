"""Reads the fixtures of the spectrogram models, and renders segments with the noise that they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from midisynth.audio.vocoder import Vocoder, VocoderStream
from midisynth.models.spectrogram_diffusion.rendering import SpectrogramModule
from midisynth.module import Item, MidiModule, Noise, Published
from midisynth.tensor_files import load_state


class Fixture:
    """One `NAME.manifest.json` and the tensors that it names."""

    def __init__(self, root: Path, name: str):
        self.manifest = json.loads((root / f"{name}.manifest.json").read_text())
        self.config = self.manifest["config"]
        self.tensors: dict[str, Tensor] = {}
        for file in self.manifest["files"]:
            if file.endswith("_model.safetensors"):
                self.weights = load_file(root / file)
            else:
                self.tensors |= load_file(root / file)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def tolerance(self, what: str) -> float:
        return float(re.search(r"\d+(\.\d+)?e-\d+", self.manifest["tolerance"][what]).group())


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    difference = (actual - expected).abs().max().item()
    assert difference <= tolerance, f"differs by {difference:.2e}, allowed are {tolerance:.0e}"


def build(cls: type[MidiModule], published: Published) -> Any:
    """The model that was read, in evaluation mode."""
    model = cls(**published.options)
    load_state(model, published.state, "fixture")
    return model.eval()


class Recorder(Vocoder):
    """Keeps the frames that it gets."""

    sample_rate = 16000

    def __init__(self) -> None:
        self.frames: list[Tensor] = []

    def stream(self, seed: int = 0) -> VocoderStream:
        recorder = self

        class Stream(VocoderStream):
            def push(self, mel: Tensor) -> Tensor:
                recorder.frames.append(mel)
                return torch.zeros(1, 0)

            def finish(self) -> Tensor:
                return torch.zeros(1, 0)

        return Stream()


def rendered(model: SpectrogramModule, tokens: Sequence[Tensor], noise: Tensor, monkeypatch, **options: Any) -> Tensor:
    """Render a piece of segments as `predict` does, but with given noise.

    Args:
        model: Its options are overridden.
        tokens: Of each segment.
        noise: [segment, draw, frames, mels].
        monkeypatch: Puts the noise in the place of the model's own.
        options: Options of the model.

    Returns:
        [1, frames, mels] log mel as the vocoder gets it.
    """
    recorder = Recorder()
    # A part is loaded again only when its name is another one.
    model.hparams.update(options, vocoder=f"recorder {id(recorder)}")
    model.declare_part("vocoder", lambda *_, **__: recorder)
    segments = iter(range(len(tokens)))

    def next_noise(generators: Sequence[torch.Generator]):
        (chosen,) = [next(segments) for _ in generators]
        return lambda draw: noise[chosen : chosen + 1, draw]

    monkeypatch.setattr(model, "noise_source", next_noise)
    piece = {"segments": [{"tokens": row} for row in tokens], "frames": 10**6, "samples": 10**9}
    # Without context, segments are batched; the noise above comes one by one.
    model.hparams["segments_per_batch"] = 1
    list(model.render([piece], Noise([Item(None, Path("x.wav"), "x")])))
    return torch.cat(recorder.frames)[None]
