"""Reads published language models: a bare state dict, or a file of the original trainer.

Sizes and variants come from names and shapes of the tensors. What shapes do not tell, the number of heads and the
prefix mode, is that of the published model unless it is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from midisynth.errors import CheckpointError
from midisynth.models.midi_valle.losses import PrefixMode
from midisynth.module import Published
from midisynth.tensor_files import read_checkpoint, read_safetensors

#: Width of an attention head of the published model.
HEAD_DIM = 64

#: Published names -> ours, applied one after the other.
_RENAMES = (
    (r"\.word_embeddings\.", "."),
    (r"^feat_emb\.", "notes."),
    (r"^(ar|nar)_", r"\1."),
    # Convolutions and batch norms of the prenet of notes stand in one sequence.
    (r"(?<=\.text_prenet\.)([159]|10|[26]|14)\.", lambda match: _PRENET[match[1]] + "."),
)
_PRENET = {
    "1": "convolutions.0",
    "5": "convolutions.1",
    "9": "convolutions.2",
    "2": "norms.0",
    "6": "norms.1",
    "10": "norms.2",
    "14": "out",
}


def read_language_models(
    path: Path, heads: int | None = None, prefix_mode: PrefixMode = 1, averaged: bool = True
) -> Published:
    """Read a published file.

    Args:
        path: A state dict (torch or safetensors), or a checkpoint of the original trainer, whose other content is
            neither used nor executed.
        heads: Attention heads; None: one for each 64 of the width.
        prefix_mode: What it was trained with.
        averaged: Of a trainer's checkpoint, take the running average of the weights if there is one.

    Returns:
        Options and state dict of `network.ValleNetwork`.

    Raises:
        CheckpointError: It is something else.
    """
    if path.suffix == ".safetensors":
        tensors: Any = read_safetensors(path)
    else:
        content = read_checkpoint(path, legacy=True, inert=True)
        nested = [content.get(name) for name in (("model_avg",) if averaged else ()) + ("model",)]
        tensors = next((state for state in nested if state), content)
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(
            f"{path}: not a published MIDI-VALLE: expected a state dict, bare or under 'model' or 'model_avg'"
        )
    return convert(tensors, str(path), heads, prefix_mode)


def convert(
    tensors: Mapping[str, Tensor], context: str, heads: int | None = None, prefix_mode: PrefixMode = 1
) -> Published:
    """Translate a published state dict; arguments and errors as in `read_language_models`, `context` names the file."""
    state = {own_name(name): tensor for name, tensor in tensors.items()}
    try:
        options = _options(state, heads)
    except KeyError as error:
        raise CheckpointError(f"{context}: not a published MIDI-VALLE: it has no tensor {error.args[0]}") from error
    if heads is None and options["dim"] % HEAD_DIM:
        raise CheckpointError(
            f"{context}: its width {options['dim']} is not one of heads of {HEAD_DIM}: tell the number of heads"
        )
    shared = _shared_heads(state)
    options["share_embedding"] = bool(shared)
    # With one codebook the original keeps an embedding for a second decoder that it has not.
    idle = "nar." if options["codebooks"] == 1 else ()
    state = {name: tensor for name, tensor in state.items() if name not in shared and not name.startswith(idle)}
    counters = {name: tensor.long() for name, tensor in state.items() if name.endswith("num_batches_tracked")}
    return Published({**options, "prefix_mode": prefix_mode, "count_padding": True}, {**state, **counters})


def own_name(name: str) -> str:
    """A published name of a tensor as it is called here."""
    name = name.removeprefix("module.")
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _options(state: Mapping[str, Tensor], heads: int | None) -> dict[str, Any]:
    """Sizes and variants that names and shapes tell."""

    def count(pattern: str) -> int:
        return len({match[1] for name in state if (match := re.match(pattern, name))})

    table, head = state["ar.audio_embedding.weight"], state["ar.predict_layer.weight"]
    dim = table.shape[1]
    notes = [state[f"notes.{feature}.weight"].shape for feature in range(max(count(r"notes\.(\d+)\."), 1))]
    codebooks = count(r"nar\.audio_embeddings\.(\d+)\.") or 1
    return {
        "dim": dim,
        "heads": heads or dim // HEAD_DIM,
        "layers": count(r"ar\.decoder\.layers\.(\d+)\."),
        "codebooks": codebooks,
        "bins": len(head) - 1,
        "vocabularies": [shape[0] for shape in notes],
        "note_dims": [shape[1] for shape in notes],
        "architecture": "vall_f" if count(r"ar\.decoder\.layers\.(\d+)\.multihead_attn\.") else "vall_e",
        "norm_first": "ar.decoder.norm.weight" in state,
        "prenet": "ar.audio_prenet.0.weight" in state,
        "nar_scale": state["nar.audio_embeddings.0.weight"].shape[1] / dim if codebooks > 1 else 1.0,
        "prepend_bos": len(table) > len(head),
    }


def _shared_heads(state: Mapping[str, Tensor]) -> set[str]:
    """Names of the heads that are tables as well: all but the last one, or none."""
    found = set()
    stage = 1
    while f"nar.audio_embeddings.{stage + 1}.weight" in state:
        name, table = f"nar.predict_layers.{stage - 1}.weight", state[f"nar.audio_embeddings.{stage + 1}.weight"]
        if name in state and not state[name].equal(table):
            return set()
        found.add(name)
        stage += 1
    return found
