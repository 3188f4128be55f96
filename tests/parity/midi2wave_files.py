"""Reads the fixtures of midi2wave, and builds the networks that they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from midisynth.models.midi2wave.bottleneck import ArgmaxBottleneck
from midisynth.models.midi2wave.network import WaveNet, WaveNetAutoencoder
from midisynth.models.midi2wave.published import network_options, network_state
from midisynth.tensor_files import load_state


class Fixture:
    """One manifest `NN_name.json` and the tensors beside it; skips where they do not ship."""

    def __init__(self, root: Path, name: str):
        if not (root / f"{name}.json").is_file():
            pytest.skip(f"{name} is not among the fixtures in {root}")
        self.manifest = json.loads((root / f"{name}.json").read_text())
        self.tensors = load_file(root / f"{name}.safetensors")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Parameters of the original under a prefix, without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def tolerance(self, what: str) -> float:
        """The number that the manifest's text gives after the word."""
        return float(re.search(rf"{what}\D*?(\d+(\.\d+)?e-\d+)", self.manifest["tolerance"])[1])


def network(config: Mapping[str, Any], state: Mapping[str, Tensor], **options: Any) -> WaveNet:
    """A network of the original, in evaluation mode."""
    wavenet = WaveNet(**network_options(config) | options)
    load_state(wavenet, network_state(state, config["use_conditioning"]), "fixture")
    return wavenet.eval()


def autoencoder(fixture: Fixture, bottleneck: ArgmaxBottleneck | None = None, **options: Any) -> WaveNetAutoencoder:
    """The two networks of a fixture, in evaluation mode."""
    decoder = network(fixture.manifest["decoder"], fixture.state("sd.wavenet."), **options)
    encoder = network(fixture.manifest["encoder"], fixture.state("sd.encoder_wavenet."), **options)
    return WaveNetAutoencoder(decoder, encoder, bottleneck).eval()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, relative: float = 0.0) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), atol=tolerance, rtol=relative)
