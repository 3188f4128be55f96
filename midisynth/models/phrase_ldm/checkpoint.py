"""Reads published weights: autoencoders of all stages, and denoisers with their conditions.

Two layouts are read. A Hub folder has `model.safetensors` and `config.json`; a Lightning checkpoint has these tensors
under other prefixes, and in that of a denoiser the whole autoencoder as well. Sizes come from the shapes of the
tensors; the configuration is asked only for what shapes do not tell. Names in the networks are as published.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from midisynth.errors import CheckpointError
from midisynth.models.phrase_ldm.conditions import SectionIds
from midisynth.models.phrase_ldm.network import EMBEDDING, TIED
from midisynth.models.phrase_ldm.sampling import PUBLISHED_QUANTILE, PUBLISHED_SCALE
from midisynth.module import Published
from midisynth.tensor_files import read_checkpoint, read_safetensors

#: Files of a Hub repository.
FILES = ("model.safetensors", "config.json")
#: Of the published denoisers; shapes do not tell them.
HEAD_DIM, ROWS, STEPS, LENGTH_BUCKET = 32, 512, 1000, 10
#: Prefixes in the dialects of the Hub and of Lightning -> ours.
_AUTOENCODER_PREFIX = re.compile(r"^(vae\.)?(model\.)?(?=(t5|layer_norm|proj|post_proj|vq)\.)")
_DENOISER_PREFIXES = (
    (re.compile(r"^(ldm|model)\.(?=\w)"), "ldm."),
    (re.compile(r"^(length_encoder\.)?length_embedding\."), "length_encoder.length_embedding."),
)
Number = TypeVar("Number", int, float)
#: A codebook that was switched off in all stages.
_IDLE = "vq."


class _File(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: By name.
        config: Plain values that describe them.
        context: Names the file in errors.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    context: str

    def number(self, name: str, default: Number) -> Number:
        """A positive number of the configuration, or of the configuration of the network in it."""
        network = self.config.get("model_config")
        value = {**self.config, **(network if isinstance(network, Mapping) else {})}.get(name, default)
        if isinstance(value, bool) or not isinstance(value, type(default)) or not 0 < value < math.inf:
            raise CheckpointError(f"{self.context}: {name} of its configuration is {value!r}, not a positive number")
        return value


def is_autoencoder(path: Path) -> bool:
    """Whether a folder is laid out like the repositories of PhraseVAE."""
    return "t5_config" in _hub_config(path)


def is_denoiser(path: Path) -> bool:
    """Whether a folder is laid out like the repositories of PhraseLDM."""
    return {"scale_factor", "clip_range"} <= _hub_config(path).keys()


def _hub_config(path: Path) -> dict[str, Any]:
    """Configuration of a Hub folder; nothing of any other."""
    if not all((path / name).is_file() for name in FILES):
        return {}
    try:
        return _json(path / FILES[1])
    except CheckpointError:
        return {}


def read_autoencoder(path: Path) -> Published:
    """Read an autoencoder of any stage, or the one in a Lightning checkpoint of a denoiser.

    Args:
        path: A Hub folder, its `model.safetensors`, or a Lightning checkpoint.

    Returns:
        Options of `PhraseAutoencoder`, and its state dict.

    Raises:
        CheckpointError: It is something else.
    """
    file = _read(path)
    tensors = {
        _AUTOENCODER_PREFIX.sub("", name): tensor
        for name, tensor in file.tensors.items()
        if _AUTOENCODER_PREFIX.match(name)
    }
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_IDLE)}
    embedding = next((name for name in (EMBEDDING, *TIED) if f"t5.{name}" in tensors), None)
    if embedding is None:
        raise CheckpointError(f"{file.context}: not a published phrase autoencoder: it has no embedding of a T5")
    table = tensors[f"t5.{embedding}"]
    for name in (EMBEDDING, *TIED):
        if not tensors.pop(f"t5.{name}", table).equal(table):
            raise CheckpointError(
                f"{file.context}: t5.{name} is not the embedding of the rest: the T5 is a different one"
            )
    tensors[f"t5.{EMBEDDING}"] = table
    return Published(_autoencoder_options(tensors, file), tensors)


def _autoencoder_options(tensors: Mapping[str, Tensor], file: _File) -> dict[str, Any]:
    block = "t5.encoder.block.{}.layer"
    attention = block.format(0) + ".0.SelfAttention."
    vocab_size, dim = _shape(tensors, f"t5.{EMBEDDING}", file)
    heads = _shape(tensors, attention + "relative_attention_bias.weight", file)[1]
    options = {
        "vocab_size": vocab_size,
        "dim": dim,
        "hidden_dim": _shape(tensors, block.format(0) + ".1.DenseReluDense.wi.weight", file)[0],
        "layers": _count(tensors, r"t5\.encoder\.block\.(\d+)\."),
        "heads": heads,
        "head_dim": _shape(tensors, attention + "q.weight", file)[0] // heads,
    }
    if "proj.weight" in tensors:
        doubled, flat = tensors["proj.weight"].shape
        return {**options, "queries": flat // dim, "latent": doubled // 2}
    # The tensors of the first two stages are the same.
    queries = file.config.get("n_compress_tokens")
    if not isinstance(queries, int):
        raise CheckpointError(
            f"{file.context}: its tensors do not tell the stage, nor does a config.json beside it: write into that "
            '{"n_compress_tokens": 0} for span infilling, 4 for multi-query compression'
        )
    return {**options, "queries": queries, "latent": None}


def read_denoiser(path: Path, section_ids: SectionIds | None = None) -> Published:
    """Read a denoiser and the encoders of its conditions.

    Args:
        path: As for `read_autoencoder`.
        section_ids: The order of sections that the weights were trained with; None: that of `sec_type_to_id` and
            `sec_len_to_id` in the configuration, or with a warning the sorted one.

    Returns:
        Options: those of `PhraseDenoiser`, and "steps", "scale" and "clip" of its diffusion, "section_types" and
        "section_lengths" where it knows sections. State dict of `PhraseDenoiser`.

    Raises:
        CheckpointError: It is something else.
    """
    file = _read(path)
    tensors = {}
    for name, tensor in file.tensors.items():
        if name.startswith("vae."):
            continue
        for prefix, ours in _DENOISER_PREFIXES:
            name = prefix.sub(ours, name)
        tensors[name] = tensor
    options = _denoiser_options(tensors, file)
    if options["sections"] is not None:
        ids = section_ids or _section_ids(file)
        if (len(ids.types), len(ids.lengths)) != options["sections"]:
            raise CheckpointError(
                f"{file.context}: has {options['sections'][0]} kinds and {options['sections'][1]} lengths of sections, "
                f"not {len(ids.types)} and {len(ids.lengths)}"
            )
        options |= {"section_types": list(ids.types), "section_lengths": list(ids.lengths)}
    return Published(options, tensors)


def _denoiser_options(tensors: Mapping[str, Tensor], file: _File) -> dict[str, Any]:
    width, latent = _shape(tensors, "ldm.proj_in.weight", file)
    head_dim = file.number("attention_head_dim", HEAD_DIM)
    cross_dim, memory_dim = _shape(tensors, "ldm.cross_attention_proj.0.weight", file)
    lengths = "length_encoder.length_embedding.weight" in tensors
    sections = None
    if "sec_encoder.type_embed.weight" in tensors:
        tables = (_shape(tensors, f"sec_encoder.{name}_embed.weight", file) for name in ("type", "len"))
        sections = tuple(rows - 1 for rows, _ in tables)
    return {
        "latent": latent,
        "rows": file.number("sample_size", ROWS),
        "layers": _count(tensors, r"ldm\.transformer_blocks\.(\d+)\."),
        "heads": width // head_dim,
        "head_dim": head_dim,
        "memory_heads": _shape(tensors, "ldm.transformer_blocks.0.attn2.to_k.weight", file)[0] // head_dim,
        "time_dim": 2 * _shape(tensors, "ldm.time_proj.weight", file)[0],
        "token_dim": _shape(tensors, "ldm.global_proj.0.weight", file)[1],
        "memory_dim": memory_dim,
        "cross_dim": cross_dim,
        "length": lengths,
        "length_bucket": file.number("length_bucket_size", LENGTH_BUCKET),
        "sections": sections,
        "published": True,
        "steps": file.number("diffusion_steps", STEPS),
        "scale": file.number("scale_factor", PUBLISHED_SCALE),
        "clip": file.number("clip_range", PUBLISHED_QUANTILE),
    }


def _section_ids(file: _File) -> SectionIds:
    types, lengths = file.config.get("sec_type_to_id"), file.config.get("sec_len_to_id")
    if isinstance(types, Mapping) and isinstance(lengths, Mapping):
        return SectionIds(
            tuple(sorted(types, key=types.__getitem__)),
            tuple(int(bars) for bars in sorted(lengths, key=lengths.__getitem__)),
        )
    warnings.warn(
        f"{file.context}: how its sections were numbered is not known, so plans of sections mean nothing to it; "
        "config.json may state it as sec_type_to_id and sec_len_to_id",
        stacklevel=4,
    )
    return SectionIds()


def _read(path: Path) -> _File:
    if path.is_dir():
        path = path / FILES[0]
    if path.suffix == ".safetensors":
        config = path.with_name(FILES[1])
        return _File(read_safetensors(path), _json(config) if config.is_file() else {}, str(path))
    content = read_checkpoint(path)
    tensors, config = content.get("state_dict"), content.get("hyper_parameters", {})
    if not isinstance(tensors, Mapping) or not isinstance(config, Mapping):
        raise CheckpointError(f"{path}: expected a Lightning checkpoint with a state_dict")
    return _File(
        {str(name): value for name, value in tensors.items() if isinstance(value, Tensor)}, dict(config), str(path)
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a mapping")
    return config


def _shape(tensors: Mapping[str, Tensor], name: str, file: _File) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"{file.context}: not a published model of this kind: it has no tensor {name}")
    return tuple(tensors[name].shape)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})
