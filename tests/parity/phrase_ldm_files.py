"""Reads the network fixtures of PhraseVAE and PhraseLDM through the importer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from midisynth.models.phrase_ldm.checkpoint import read_autoencoder, read_denoiser
from midisynth.models.phrase_ldm.conditions import SectionIds
from midisynth.models.phrase_ldm.ldm import PhraseDenoiser
from midisynth.models.phrase_ldm.network import PhraseAutoencoder
from midisynth.models.phrase_ldm.sampling import LatentDiffusion
from midisynth.tensor_files import load_state


class Folder:
    """One folder of fixtures: its manifest, and the tensors of one of its files."""

    def __init__(self, path: Path, file: str = "io"):
        self.path = path
        self.manifest = json.loads(next(path.glob("m*.json")).read_text())
        self.tensors = load_file(path / f"{file}.safetensors")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def assert_close(self, actual: Tensor, name: str) -> None:
        tolerance = self.manifest["tolerance"]
        absolute = tolerance.get(f"{name}_abs", tolerance["default_abs"])
        torch.testing.assert_close(actual, self[name], atol=absolute, rtol=tolerance["default_rel"])


def autoencoder(path: Path) -> PhraseAutoencoder:
    published = read_autoencoder(path)
    network = PhraseAutoencoder(**published.options)
    load_state(network, published.state, "fixture")
    return network.eval()


def section_ids(manifest: dict[str, Any]) -> SectionIds | None:
    """The numbering that was in force when the fixture was made."""
    if "sec_type_to_id" not in manifest:
        return None
    types, lengths = manifest["sec_type_to_id"], manifest["sec_len_to_id"]
    return SectionIds(tuple(sorted(types, key=types.get)), tuple(int(key) for key in sorted(lengths, key=lengths.get)))


def denoiser(folder: Folder) -> tuple[PhraseDenoiser, LatentDiffusion, float]:
    """The network, its diffusion, and the scale of its latents."""
    published = read_denoiser(folder.path, section_ids(folder.manifest))
    options = dict(published.options)
    diffusion = LatentDiffusion(options.pop("steps"), options.pop("clip"))
    scale = options.pop("scale")
    for name in ("section_types", "section_lengths"):
        options.pop(name, None)
    network = PhraseDenoiser(**options)
    load_state(network, published.state, "fixture")
    return network.eval(), diffusion, scale


def words(texts: Sequence[str]) -> list[str]:
    return " ".join(texts).split()
