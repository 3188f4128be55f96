"""Reads published weights: sizes and names of both families.

Checkpoints of the PyTorch re-implementation are Lightning `.ckpt` files without hyper-parameters. Sizes come from the
shapes of the tensors. Position tables are random constants and the mel range was learned from the data, so both come
from the file. The file's STFT window and mel filters are constants and are left out: newer versions of torchaudio name
them differently. The official weights are in `t5_checkpoint.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from midisynth.errors import CheckpointError, TensorMismatch
from midisynth.models.spectrogram_diffusion.rendering import SpectrogramModule
from midisynth.models.spectrogram_diffusion.t5_checkpoint import official_sources, read_official
from midisynth.models.spectrogram_diffusion.tokens import Vocabulary
from midisynth.module import Published
from midisynth.tensor_files import LISTED, read_tensors

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
_TIME = "model.diffusion_emb.projection1.weight"


def published_name(name: str) -> str:
    """Our name of a tensor -> its name in a checkpoint of the re-implementation."""
    feed_forward_norm = ".norm3." if ".decoder." in name else ".norm2."
    for ours, theirs in (*_NAMES, (".feed_forward_norm.", feed_forward_norm)):
        name = name.replace(ours, theirs)
    return name


def published_options(
    tensors: Mapping[str, Tensor], context: str, autoregressive: bool = False, head_dim: int = 64
) -> dict[str, Any]:
    """Hyper-parameters of a checkpoint of the re-implementation, from the shapes of its tensors.

    Args:
        tensors: Its state dict.
        context: Names the checkpoint in errors.
        autoregressive: Which of its two models is expected.
        head_dim: Width of an attention head, which shapes do not tell; all published models have 64.

    Raises:
        CheckpointError: It is another kind of checkpoint.
    """
    layer = "model.transformer.encoder.layers.0."
    names = (
        "model.emb.weight",
        "model.in_pos_emb",
        "model.out_pos_emb",
        "model.linear_in.weight",
        layer + "self_attn.q_proj.weight",
        layer + "linear2.weight",
    )
    missing = [name for name in names if name not in tensors]
    if missing:
        raise CheckpointError(f"{context}: not a published spectrogram diffusion model: it has no tensor {missing[0]}")
    if (_TIME not in tensors) != autoregressive:
        kind, entry = ("diffusion", "spectrogram_diffusion") if autoregressive else ("autoregressive", "spectrogram_ar")
        raise CheckpointError(f"{context}: is the {kind} model: `midisynth import {entry}` reads it")
    vocab_size, dim = tensors["model.emb.weight"].shape
    attention_dim = tensors[layer + "self_attn.q_proj.weight"].shape[0]
    if attention_dim % head_dim:
        raise CheckpointError(f"{context}: its attention is {attention_dim} wide, not a multiple of {head_dim} a head")
    options = {
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
    if not autoregressive:
        options["context"] = any(name.startswith("model.transformer.context_encoder.") for name in tensors)
    return options


def convert(
    build: type[SpectrogramModule],
    tensors: Mapping[str, Tensor],
    context: str,
    autoregressive: bool = False,
    head_dim: int = 64,
) -> Published:
    """A checkpoint of the re-implementation in our words.

    Args:
        build: The class of the model.
        tensors: As in `published_options`, like the others.
        context: Names the checkpoint in errors.
        autoregressive: Which of its two models is expected.
        head_dim: Width of an attention head.

    Raises:
        CheckpointError: It is another kind of checkpoint, or not complete.
    """
    options = published_options(tensors, context, autoregressive, head_dim)
    sources = {name: (published_name(name),) for name in tensor_names(build, options)}
    return Published(options, gather(sources, tensors, context))


def tensor_names(build: type[SpectrogramModule], options: Mapping[str, Any]) -> list[str]:
    """Names in the state dict of a model, which is not really built."""
    with torch.device("meta"):
        return list(build(**options).state_dict())


def gather(sources: Mapping[str, Sequence[str]], tensors: Mapping[str, Tensor], context: str) -> dict[str, Tensor]:
    """Tensors under our names.

    Args:
        sources: Our name of every tensor -> the published ones that, one below the other, make it up.
        tensors: What was published.
        context: Names the checkpoint in errors.

    Raises:
        TensorMismatch: Tensors are missing or unknown.
    """
    wanted = {theirs for those in sources.values() for theirs in those}
    missing = sorted(wanted - tensors.keys())
    unknown = sorted(name for name in tensors.keys() - wanted if not name.startswith(_FEATURES))
    reports = [
        f"{len(which)} tensors are {what}: {', '.join(which[:LISTED])}"
        + (f" and {len(which) - LISTED} more" if len(which) > LISTED else "")
        for what, which in (("missing", missing), ("unknown", unknown))
        if which
    ]
    if reports:
        raise TensorMismatch(f"{context}: {'; '.join(reports)}", missing, unknown)
    return {
        ours: torch.cat([tensors[name] for name in those]) if len(those) > 1 else tensors[those[0]]
        for ours, those in sources.items()
    }


def read_published(build: type[SpectrogramModule], path: Path, autoregressive: bool = False) -> Published:
    """Read published weights of either family.

    Args:
        build: The class of the model.
        path: A checkpoint of the re-implementation, or a state dict; for diffusion also what
            `t5_checkpoint.read_official` takes.
        autoregressive: Which of the re-implementation's two models is expected.

    Raises:
        CheckpointError: They cannot be read or are of another kind.
    """
    if not autoregressive and (path.is_dir() or path.suffix == ".npz"):
        tensors, options = read_official(path)
        return Published(options, gather(official_sources(options), tensors, str(path)))
    return convert(build, read_tensors(path), str(path), autoregressive)
