"""Reads checkpoints of the PyTorch re-implementation (a Lightning `.ckpt` without hyper-parameters).

Sizes come from the shapes of the tensors. Position tables are random constants and the mel range was learned from the
data, so both come from the file. The file's STFT window and mel filters are constants and are left out: newer versions
of torchaudio name them differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from midisynth.checkpoints import load_state, read_tensors
from midisynth.errors import CheckpointError
from midisynth.models.spectrogram_diffusion.codec import Vocabulary
from midisynth.models.spectrogram_diffusion.model import SpectrogramDiffusion

#: Our name -> published name, replaced from top to bottom.
_NAMES = (
    ("mel_range.", "mel.1."),
    ("network.token_positions", "model.in_pos_emb"),
    ("network.frame_positions", "model.out_pos_emb"),
    ("network.embedding.", "model.emb."),
    ("network.frame_in.", "model.linear_in."),
    ("network.frame_out.", "model.linear_out."),
    ("network.time.expand.", "model.diffusion_emb.projection1."),
    ("network.time.mix.", "model.diffusion_emb.projection2."),
    ("network.", "model.transformer."),
    (".attention_norm.", ".norm1."),
    (".attention_film.", ".film1."),
    (".attention.", ".self_attn."),
    (".cross_attention_norm.", ".norm2."),
    (".cross_attention.", ".multihead_attn."),
    (".feed_forward_film.", ".film2."),
    (".feed_forward.value_gate.", ".linear1."),
    (".feed_forward.out.", ".linear2."),
    (".query.", ".q_proj."),
    (".key.", ".k_proj."),
    (".value.", ".v_proj."),
    (".out.", ".emb_proj."),
)

#: Feature extraction of the file; its constants are computed here.
_FEATURES = "mel.0."


def published_name(name: str) -> str:
    """Our name of a tensor -> its name in a published checkpoint."""
    feed_forward_norm = ".norm3." if ".decoder." in name else ".norm2."
    for ours, theirs in (*_NAMES, (".feed_forward_norm.", feed_forward_norm)):
        name = name.replace(ours, theirs)
    return name


def published_options(tensors: Mapping[str, Tensor], context: str, head_dim: int = 64) -> dict[str, Any]:
    """Hyper-parameters of a published checkpoint, from the shapes of its tensors.

    Args:
        tensors: Its state dict.
        context: Names the checkpoint in errors.
        head_dim: Width of an attention head, which shapes do not tell; all published models have 64.

    Raises:
        CheckpointError: It is another kind of checkpoint.
    """
    if any(name.startswith("model.transformer.context_encoder.") for name in tensors):
        raise CheckpointError(
            f"{context}: this model was trained with context (the previous segment), which cannot be loaded yet; "
            "take the published checkpoint without context"
        )
    layer = "model.transformer.encoder.layers.0."
    names = (
        "model.emb.weight",
        "model.in_pos_emb",
        "model.out_pos_emb",
        "model.linear_in.weight",
        "model.diffusion_emb.projection1.weight",
        layer + "self_attn.q_proj.weight",
        layer + "linear2.weight",
    )
    missing = [name for name in names if name not in tensors]
    if missing:
        raise CheckpointError(f"{context}: not a published spectrogram diffusion model: it has no tensor {missing[0]}")
    vocab_size, dim = tensors["model.emb.weight"].shape
    attention_dim = tensors[layer + "self_attn.q_proj.weight"].shape[0]
    if attention_dim % head_dim:
        raise CheckpointError(f"{context}: its attention is {attention_dim} wide, not a multiple of {head_dim} a head")
    return {
        "compat": "seed",
        "mels": tensors["model.linear_in.weight"].shape[1],
        "segment_frames": len(tensors["model.out_pos_emb"]) - 1,
        "overlap_frames": 0,
        "shift_ids": vocab_size - len(Vocabulary(pitch=0)),
        "max_tokens": len(tensors["model.in_pos_emb"]),
        "dim": dim,
        "hidden_dim": tensors[layer + "linear2.weight"].shape[1],
        "heads": attention_dim // head_dim,
        "head_dim": head_dim,
        "layers": sum(
            name.startswith("model.transformer.encoder.layers.") and name.endswith(".self_attn.q_proj.weight")
            for name in tensors
        ),
    }


def convert(tensors: Mapping[str, Tensor], context: str, head_dim: int = 64) -> SpectrogramDiffusion:
    """Build the model of a published checkpoint; arguments and errors as in `published_options`."""
    model = SpectrogramDiffusion(**published_options(tensors, context, head_dim))
    names = {name: published_name(name) for name in model.state_dict()}
    missing = sorted(set(names.values()) - set(tensors))
    unexpected = sorted(name for name in set(tensors) - set(names.values()) if not name.startswith(_FEATURES))
    for what, which in (("missing", missing), ("unknown", unexpected)):
        if which:
            more = f" and {len(which) - 5} more" if len(which) > 5 else ""
            raise CheckpointError(f"{context}: {len(which)} tensors are {what}: {', '.join(which[:5])}{more}")
    load_state(model, {ours: tensors[theirs] for ours, theirs in names.items()}, context)
    return model


def load_published(path: Path) -> SpectrogramDiffusion:
    """Read a published checkpoint file, or its state dict alone.

    Raises:
        CheckpointError: The file cannot be read or is of another kind.
    """
    content = read_tensors(path)
    return convert(content.get("state_dict", content), str(path))
