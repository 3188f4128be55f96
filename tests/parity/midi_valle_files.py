"""Reads the fixtures of MIDI-VALLE and builds the networks that they describe, through the importer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from midisynth.models.midi_valle.checkpoint import convert, own_name
from midisynth.models.midi_valle.frames import FrameDecoder, Padded
from midisynth.models.midi_valle.losses import NarDraw
from midisynth.models.midi_valle.network import ValleNetwork
from midisynth.tensor_files import load_state


class Fixture:
    """One `NAME.json` and its tensors."""

    def __init__(self, root: Path, name: str):
        files = [root / f"{name}{suffix}" for suffix in (".json", ".safetensors")]
        if not all(file.is_file() for file in files):
            pytest.skip(f"{name} is not in {root}; MIDISYNTH_PARITY names the folder of all fixtures")
        self.manifest: dict[str, Any] = json.loads(files[0].read_text())
        self.tensors: dict[str, Tensor] = load_file(files[1])

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names start so, without that start."""
        return {name.removeprefix(prefix): self[name] for name in self.tensors if name.startswith(prefix)}

    def tolerances(self, what: str) -> list[float]:
        """Numbers in the words on what may differ."""
        return [float(number) for number in re.findall(r"\d+(?:\.\d+)?e-\d+", self.manifest["tolerance"][what])]

    def assert_activations(self, actual: Tensor, expected: Tensor) -> None:
        absolute, relative = self.tolerances("activations")
        torch.testing.assert_close(actual, expected, rtol=relative, atol=absolute)

    def assert_loss(self, actual: Tensor, expected: Tensor) -> None:
        (relative,) = self.tolerances("losses")
        torch.testing.assert_close(actual.flatten(), expected, rtol=relative, atol=0)


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor], prefix_mode: int | None = None) -> ValleNetwork:
    """The network of a manifest's configuration, which the importer must find out by itself where it can."""
    mode = config["prefix_mode"] if prefix_mode is None else prefix_mode
    published = convert(weights, "fixture", config["nhead"], mode)
    found = published.options
    assert found["vocabularies"] == config["vocab_sizes"] and found["note_dims"] == config["emb_sizes"]
    told = {
        "dim": config["decoder_dim"],
        "layers": config["num_decoder_layers"],
        "norm_first": config["norm_first"],
        "prenet": config["add_prenet"],
        "nar_scale": config["scale_factor"],
        "prepend_bos": config["prepend_bos"],
        "codebooks": config["num_quantizers"],
        "bins": config["num_audio_tokens"],
    }
    assert {name: found[name] for name in told} == told
    if config["num_quantizers"] > 2:
        assert found["share_embedding"] == config["share_embedding"]
    network = ValleNetwork(**found)
    load_state(network, published.state, "fixture")
    return network.eval()


def nar_draw(case: Mapping[str, Any], prompts: Tensor | None) -> NarDraw | None:
    """What was drawn in a case of training."""
    if case["nar_stage"] is None:
        return None
    starts = case.get("prefix_starts")
    return NarDraw(
        case["nar_stage"],
        case["prefix_len"] or 0,
        None if starts is None else torch.tensor(starts),
        prompts if case["prefix_mode"] == 4 else None,
    )


def recorded(network: ValleNetwork, names: Iterable[str]) -> dict[str, Tensor]:
    """What modules of published names will put out at their next calls, and all heads."""
    seen: dict[str, Tensor] = {}

    def record(name: str, output: Tensor) -> Tensor:
        seen[name] = output
        return output

    for name in names:
        # A head that shares a table is no module.
        if not name.startswith("nar_predict_layers"):
            module = network.get_submodule(own_name(name + ".").removesuffix("."))
            module.register_forward_hook(lambda *call, name=name: record(name, call[2]))
    if network.nar is not None:
        predict = network.nar.predict
        network.nar.predict = lambda hidden, stage: record(f"nar_predict_layers.{stage - 1}", predict(hidden, stage))
    return seen


def step_logits(network: ValleNetwork, rows: Tensor, prompt: Tensor, codes: Tensor, steps: int) -> Tensor:
    """Cached logits [steps, bins + 1] when frames [frames] follow a prompt."""
    decoder = FrameDecoder(
        network.ar,
        network.embed_notes(rows),
        torch.ones(rows.shape[:2], dtype=torch.bool),
        Padded.of([prompt[:, 0]], rows.device),
        steps,
    )
    return torch.cat([decoder.logits, *(decoder.step(code[None]) for code in codes[: steps - 1])])
