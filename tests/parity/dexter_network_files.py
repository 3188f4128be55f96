"""Reads the network fixtures of DExter: tensors, sizes and tolerances, and the networks that they belong to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from midisynth.diffusion.schedules import LinearSchedule
from midisynth.models.dexter.checkpoint import build_network, published_network
from midisynth.models.dexter.network import Denoiser
from midisynth.tensor_files import load_state


class Part:
    """One safetensors file of a fixture, and what the manifest says of it."""

    def __init__(self, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]):
        self.manifest = manifest
        self.tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def tolerance(self, what: str = "") -> dict[str, float]:
        return tolerance(self.manifest["tolerance"], what)


class NetworkFixture:
    """`KIND.manifest.json`, the tensors that it names, and the network through the importer."""

    def __init__(self, root: Path, kind: str):
        self.kind = kind
        manifest = json.loads((root / f"{kind}.manifest.json").read_text())
        self.manifest = manifest
        self.config = manifest["config"]
        self.parts = {
            name.removeprefix(f"{kind}_").removesuffix(".safetensors"): Part(entry, load_file(root / name))
            for name, entry in manifest["files"].items()
        }
        self.schedule = LinearSchedule(self.config["timesteps"], self.config["beta_start"], self.config["beta_end"])

    def __getitem__(self, part: str) -> Part:
        return self.parts[part]

    def network(self) -> Denoiser:
        return network(self.parts["state"].tensors, self.config)

    def conditions(self, part: str) -> tuple[Tensor, Tensor | None]:
        """Score and mid-level rows as the network takes them."""
        tensors = self.parts[part].tensors
        return tensors["s_codec"], tensors["c_codec"] if self.kind == "unet" else None


def network(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Denoiser:
    """The published network of a state dict, in evaluation mode."""
    settings = {**config["model"], "timesteps": config["timesteps"]}
    built = build_network(*published_network(tensors, settings, "fixture"))
    load_state(built, {name: tensor.float() for name, tensor in tensors.items()}, "fixture")
    return built.eval()


def tolerance(text: str, what: str = "") -> dict[str, float]:
    """ "... what abs 1e-4 + rel 1e-5; ..." -> what `torch.testing.assert_close` takes; 0 where nothing is said."""
    (part,) = [part for part in re.split("[;,]", text) if what in part][:1]
    found = {name: re.search(rf"{name} ([\d.]+e-\d+)", part) for name in ("abs", "rel")}
    return {
        key: float(found[name].group(1)) if found[name] else 0.0 for key, name in (("atol", "abs"), ("rtol", "rel"))
    }


def assert_close(actual: Tensor, expected: Tensor, allowed: Mapping[str, float]) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), **allowed)
