"""The official weights, as diffusers and as T5X store them: names, sizes and files.

diffusers has three folders, each with `config.json` and a file of tensors. T5X has the transposed matrices under other
names, in a folder of zarr arrays or, flattened, in an .npz file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from midisynth.errors import CheckpointError
from midisynth.models.spectrogram_diffusion import t5_tokens
from midisynth.models.spectrogram_diffusion.t5x_files import read_arrays
from midisynth.nn.conditioning import TIME_SCALE
from midisynth.tensor_files import read_tensors

#: Folders of a repository in diffusers' layout, and their names in T5X with and without context.
COMPONENTS = {
    "notes_encoder": ("token_encoder", "encoder"),
    "continuous_encoder": ("continuous_encoder",),
    "decoder": ("decoder",),
}
VOCODER = "melgan/model.onnx"
#: What `read_official` needs of a repository.
FILES = (
    *(f"{name}/{file}" for name in COMPONENTS for file in ("config.json", "diffusion_pytorch_model.*")),
    "model_index.json",
    VOCODER,
)
_TENSOR_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


class _Name(NamedTuple):
    """One tensor in three dialects. Those with the same name here are put one below the other in this order."""

    ours: str
    diffusers: str
    t5x: str


def _attention(ours: str, diffusers: str, t5x: str, parts: str) -> tuple[_Name, ...]:
    names = zip(("query", "key", "value", "out"), parts.split(), strict=True)
    return tuple(_Name(f"{ours}.{own}.weight", f"{diffusers}.{d}.weight", f"{t5x}.{own}.kernel") for own, d in names)


def _feed_forward(layer: int) -> tuple[_Name, ...]:
    theirs = f"layer.{layer}.DenseReluDense"
    return (
        _Name("feed_forward.value_gate.weight", f"{theirs}.wi_1.weight", "mlp.wi_1.kernel"),
        _Name("feed_forward.value_gate.weight", f"{theirs}.wi_0.weight", "mlp.wi_0.kernel"),
        _Name("feed_forward.out.weight", f"{theirs}.wo.weight", "mlp.wo.kernel"),
        _Name("feed_forward_norm.weight", f"layer.{layer}.layer_norm.weight", "pre_mlp_layer_norm.scale"),
    )


_ENCODER_LAYER = (
    _Name("attention_norm.weight", "layer.0.layer_norm.weight", "pre_attention_layer_norm.scale"),
    *_attention("attention", "layer.0.SelfAttention", "attention", "q k v o"),
    *_feed_forward(1),
)
_DECODER_LAYER = (
    _Name("attention_norm.weight", "layer.0.layer_norm.weight", "pre_self_attention_layer_norm.scale"),
    _Name("attention_film.linear.weight", "layer.0.FiLMLayer.scale_bias.weight", "FiLMLayer_0.DenseGeneral_0.kernel"),
    *_attention("attention", "layer.0.attention", "self_attention", "to_q to_k to_v to_out.0"),
    _Name("cross_attention_norm.weight", "layer.1.layer_norm.weight", "pre_cross_attention_layer_norm.scale"),
    *_attention("cross_attention", "layer.1.attention", "MultiHeadDotProductAttention_0", "to_q to_k to_v to_out.0"),
    _Name("feed_forward_film.linear.weight", "layer.2.film.scale_bias.weight", "FiLMLayer_1.DenseGeneral_0.kernel"),
    *_feed_forward(2),
)
_POSITIONS = "position_encoding.weight", "Embed_0.embedding"
#: Component -> its stack of layers here and in diffusers, their names, and the names outside of layers.
_TABLE: dict[str, tuple[str, str, tuple[_Name, ...], tuple[_Name, ...]]] = {
    "notes_encoder": (
        "encoder.layers",
        "encoders",
        _ENCODER_LAYER,
        (
            _Name("embedding.weight", "token_embedder.weight", "token_embedder.embedding"),
            _Name("token_positions", *_POSITIONS),
            _Name("encoder.norm.weight", "layer_norm.weight", "encoder_norm.scale"),
        ),
    ),
    "continuous_encoder": (
        "context_encoder.layers",
        "encoders",
        _ENCODER_LAYER,
        (
            _Name("context_in.weight", "input_proj.weight", "input_proj.kernel"),
            _Name("context_positions", *_POSITIONS),
            _Name("context_encoder.norm.weight", "layer_norm.weight", "encoder_norm.scale"),
        ),
    ),
    "decoder": (
        "decoder.layers",
        "decoders",
        _DECODER_LAYER,
        (
            _Name("time.expand.weight", "conditioning_emb.0.weight", "time_emb_dense0.kernel"),
            _Name("time.mix.weight", "conditioning_emb.2.weight", "time_emb_dense1.kernel"),
            _Name("frame_positions", *_POSITIONS),
            _Name("frame_in.weight", "continuous_inputs_projection.weight", "continuous_inputs_projection.kernel"),
            _Name("frame_out.weight", "spec_out.weight", "spec_out_dense.kernel"),
            _Name("decoder.norm.weight", "decoder_norm.weight", "decoder_norm.scale"),
        ),
    ),
}


def names(layers: int, context: bool) -> Iterator[_Name]:
    """Every tensor of an official model, without the prefix "target." of T5X.

    Args:
        layers: Layers of each encoder, and of the decoder.
        context: Whether there is a context encoder.
    """
    for component, (ours, theirs, in_layer, outside) in _TABLE.items():
        if component == "continuous_encoder" and not context:
            continue
        t5x = COMPONENTS[component][0 if context else -1]
        for name in outside:
            yield _Name(f"network.{name.ours}", f"{component}.{name.diffusers}", f"{t5x}.{name.t5x}")
        for layer in range(layers):
            for name in in_layer:
                yield _Name(
                    f"network.{ours}.{layer}.{name.ours}",
                    f"{component}.{theirs}.{layer}.{name.diffusers}",
                    f"{t5x}.layers_{layer}.{name.t5x}",
                )


def from_t5x(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Arrays under T5X's names, joined by dots or slashes -> the same in diffusers' layout.

    What the optimizer remembers is left out. Unknown names are kept, so that they are reported.
    """
    arrays = {re.sub(r"^(optimizer\.)?target\.", "", name.replace("/", ".")): array for name, array in arrays.items()}
    context = any(name.startswith("continuous_encoder.") for name in arrays)
    layers = len({name for name in arrays if re.fullmatch(r"decoder\.layers_\d+\.pre_mlp_layer_norm\.scale", name)})
    diffusers = {name.t5x: name.diffusers for name in names(layers, context)}
    tensors = {}
    for name, array in arrays.items():
        if name.startswith(("state.", "optimizer.state.")):
            continue
        if name.endswith(".kernel"):
            # Attention may have its heads apart: [in, heads, head_dim], and on the way out [heads, head_dim, out].
            array = (array.flatten(0, -2) if name.endswith(".out.kernel") else array.flatten(1)).T
        tensors[diffusers.get(name, name)] = array
    return tensors


def official_options(tensors: Mapping[str, Tensor], context: str, head_dim: int = 64) -> dict[str, Any]:
    """Hyper-parameters of official weights, from the shapes of their tensors in diffusers' layout.

    Args:
        tensors: "COMPONENT.NAME" to tensor.
        context: Names the weights in errors.
        head_dim: Width of an attention head, which shapes do not tell.

    Raises:
        CheckpointError: They are something else.
    """
    try:
        rows, dim = tensors["notes_encoder.token_embedder.weight"].shape
        frames, mels = len(tensors["decoder.position_encoding.weight"]), len(tensors["decoder.spec_out.weight"])
        max_tokens = len(tensors["notes_encoder.position_encoding.weight"])
        hidden_dim = len(tensors["decoder.decoders.0.layer.2.DenseReluDense.wi_0.weight"])
        attention_dim = len(tensors["decoder.decoders.0.layer.0.attention.to_q.weight"])
    except KeyError as error:
        raise CheckpointError(f"{context}: not the official weights: there is no tensor {error.args[0]}") from error
    if rows != t5_tokens.table_rows(t5_tokens.vocabulary()):
        raise CheckpointError(f"{context}: its vocabulary has {rows} ids; only models with 1 velocity bin can be read")
    if attention_dim % head_dim:
        raise CheckpointError(f"{context}: its attention is {attention_dim} wide, not a multiple of {head_dim} a head")
    return {
        "compat": "t5x",
        "mels": mels,
        "segment_frames": frames,
        "overlap_frames": 0,
        "max_tokens": max_tokens,
        "context": any(name.startswith("continuous_encoder.") for name in tensors),
        "dim": dim,
        "hidden_dim": hidden_dim,
        "heads": attention_dim // head_dim,
        "head_dim": head_dim,
        "layers": sum(
            name.startswith("decoder.decoders.") and name.endswith(".2.layer_norm.weight") for name in tensors
        ),
    }


def official_sources(options: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Our name of every tensor -> the names in diffusers' layout that, one below the other, make it up."""
    found: dict[str, tuple[str, ...]] = {}
    for name in names(options["layers"], options["context"]):
        found[name.ours] = (*found.get(name.ours, ()), name.diffusers)
    return found


def is_official(path: Path) -> bool:
    """Whether a folder holds weights in diffusers' or in T5X's layout."""
    return all((path / name / "config.json").is_file() for name in ("notes_encoder", "decoder")) or any(
        path.glob("target.*decoder.decoder_norm.scale")
    )


def read_official(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read official weights.

    Args:
        path: A folder in diffusers' layout, with a vocoder in it or not; a T5X checkpoint: the folder with one zarr
            array for each parameter; or an .npz file with T5X's names.

    Returns:
        Tensors in diffusers' layout, and hyper-parameters.

    Raises:
        CheckpointError: They cannot be read or are something else.
    """
    if not (path / "decoder").is_dir():
        tensors = from_t5x(read_arrays(path))
        return tensors, official_options(tensors, str(path))
    tensors, config = {}, {}
    for component in COMPONENTS:
        folder = path / component
        if component == "continuous_encoder" and not folder.is_dir():
            continue
        file = next((folder / name for name in _TENSOR_FILES if (folder / name).is_file()), None)
        if file is None:
            raise CheckpointError(f"{folder}: has no {' and no '.join(_TENSOR_FILES)}: download it again")
        tensors |= {f"{component}.{name}": tensor for name, tensor in read_tensors(file).items()}
        config |= _config(folder / "config.json")
    if (noise := config.get("max_decoder_noise_time", TIME_SCALE)) != TIME_SCALE:
        raise CheckpointError(f"{path}: max_decoder_noise_time is {noise}; only {TIME_SCALE:g} is known")
    options = official_options(tensors, str(path), config.get("d_kv", 64))
    options["dropout"] = config.get("dropout_rate", 0.1)
    if (path / VOCODER).is_file():
        options["vocoder"] = str(path / VOCODER)
    return tensors, options


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a mapping")
    return config
