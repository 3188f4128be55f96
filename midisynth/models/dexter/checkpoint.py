"""Reads published weights: Lightning checkpoints of 2024, or their tensors alone, of both denoisers.

Sizes come from the shapes of the tensors. What shapes do not tell (number of steps, guidance, constants of the
normalisation) is in the hyper-parameters, among objects of a configuration library that is not needed here: their
content is plain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from midisynth.errors import CheckpointError
from midisynth.models.dexter.network import CHANNELS, Denoiser, DiffWaveDenoiser
from midisynth.models.dexter.predictor import SymbolicPrior
from midisynth.models.dexter.unet import UNetDenoiser
from midisynth.module import Published
from midisynth.tensor_files import Inert, check_state, read_checkpoint, read_tensors

#: Mean and standard deviation of the channels in the published data, padding included.
PUBLISHED_MEAN = (0.7063542604446411, 0.4756112396717071, -0.011089393869042397, 0.6265323758125305, 0.24988953769207)
PUBLISHED_STD = (2.0590381622314453, 0.15276259183883667, 0.6368748545646667, 1.2729265689849854, 0.15391376614570618)

#: Option of the model -> where it is in the hyper-parameters, and the published value.
_SETTINGS: dict[str, tuple[tuple[str, ...], Any]] = {
    "objective": (("training", "mode"), "epsilon"),
    "target": (("training", "target"), "gen_noise"),
    "diffusion_steps": (("timesteps",), 1000),
    "beta_end": (("beta_end",), 0.02),
    "norm": (("loss_type",), "l1"),
    "recon_weight": (("recon_loss_weight",), 0.2),
    "cfg_dropout": (("cond_dropout",), 0.1),
    "window": (("seg_len",), 200),
    "guidance": (("sampling", "w"), 1.2),
}

#: Published value -> value of the option, where there is a choice. Networks of the mode "ex_0" predict the noise.
_CHOICES = {
    "objective": {"epsilon": "epsilon", "ex_0": "epsilon", "x_0": "x0"},
    "target": {"gen_noise": "gen_noise", "transfer": "transfer"},
    "norm": {"l1": "l1", "l2": "l2", "huber": "huber"},
}

#: What all published models have in common: features of a note, of the score and mid-level, and the first step's noise.
_SCORE_FEATURES, _MIDLEVEL_FEATURES, _BETA_START = 4, 7, 1e-4

#: Options of the model that are options of the networks.
_SIZES = ("channels", "layers", "kernel_size", "dilation_base", "dilation_cycle", "dim", "multipliers")


def read_published(path: Path) -> Published:
    """Read published weights as options and state of `model.DExter`.

    Args:
        path: A checkpoint, or a state dict in a file of torch or safetensors.

    Raises:
        CheckpointError: It cannot be read or is of another kind; a `TensorMismatch` tells which tensors are missing,
            unexpected or of another shape.
    """
    settings: Any = {}
    if path.suffix == ".safetensors":
        tensors = read_tensors(path)
    else:
        content = read_checkpoint(path, inert=True)
        settings = content.get("hyper_parameters", {})
        tensors = content.get("state_dict", content)
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path}: expected a state dict: names of tensors to tensors")
    kind, network = published_network(tensors, settings, str(path))
    with torch.device("meta"):
        check_state(build_network(kind, network), tensors, str(path))
    options = {"compat": "2024", "features": "published", "denoiser": kind}
    options |= {option: _setting(settings, *where, str(path)) for option, where in _SETTINGS.items()}
    for option, choices in _CHOICES.items():
        if options[option] not in choices:
            name, known = ".".join(_SETTINGS[option][0]), ", ".join(choices)
            raise CheckpointError(f"{path}: hyper-parameter {name}: expected one of {known}, not {options[option]:.40}")
        options[option] = choices[options[option]]
    options["solver"] = "ddim" if options["target"] == "transfer" else "dpm_solver"
    options["midlevel"] = "symbolic" if network["midlevel_features"] else None
    if network.get("null") == "learned":
        options["null"] = "learned"
    _expect("score_features", network["score_features"], _SCORE_FEATURES, str(path))
    _expect("midlevel_features", network["midlevel_features"], _MIDLEVEL_FEATURES if kind == "unet" else 0, str(path))
    _expect("beta_start", _setting(settings, ("beta_start",), _BETA_START, str(path)), _BETA_START, str(path))
    options |= {option: network[option] for option in _SIZES if option in network}
    return Published(options, _state(tensors, settings, str(path), bool(network["midlevel_features"])))


def _state(tensors: Mapping[str, Tensor], settings: Any, context: str, midlevel: bool) -> dict[str, Tensor]:
    """State dict of the model around a published network."""
    state = {f"network.{name}": tensor.float() for name, tensor in tensors.items()}
    state["mean"] = _constants(settings, "dataset_means", PUBLISHED_MEAN, context)
    state["std"] = _constants(settings, "dataset_stds", PUBLISHED_STD, context)
    # Mid-level features went in as they came from audio. Of a score, nothing is expected that was not asked for:
    # published performances are made with zeros.
    state["midlevel_mean"], state["midlevel_std"] = torch.zeros(_MIDLEVEL_FEATURES), torch.ones(_MIDLEVEL_FEATURES)
    state["measured"] = torch.tensor(True)
    if midlevel:
        prior = SymbolicPrior()
        prior.slope.zero_()
        state |= {f"prior.{name}": tensor for name, tensor in prior.state_dict().items()}
    return state


def build_network(kind: str, options: Mapping[str, Any]) -> Denoiser:
    """A published network of `published_network`, with the weights that it starts with."""
    return (UNetDenoiser if kind == "unet" else DiffWaveDenoiser)(**options, compat="2024")


def published_network(tensors: Mapping[str, Tensor], settings: Any, context: str) -> tuple[str, dict[str, Any]]:
    """Which denoiser published tensors belong to.

    Args:
        tensors: A state dict.
        settings: Hyper-parameters; empty where there are none.
        context: Names the file in errors.

    Returns:
        "diffwave" or "unet", and the arguments of its class but for `compat`.

    Raises:
        CheckpointError: It is another kind of model, or not complete, or its hyper-parameters have no sense.
    """
    if "input_projection.weight" in tensors and "residual_layers.0.conditioner_projection.weight" in tensors:
        kind, options = "diffwave", _diffwave_options(tensors, settings, context)
    elif "condition_init_fc.weight" in tensors and "init_conv.weight" in tensors:
        kind, options = "unet", _unet_options(tensors, settings, context)
    else:
        raise CheckpointError(
            f"{context}: not a published DExter model: it has neither residual_layers.0.conditioner_projection.weight "
            "nor condition_init_fc.weight"
        )
    if "trainable_parameters" in tensors:
        options |= {"null": "learned", "null_notes": tensors["trainable_parameters"].shape[-1]}
    return kind, options


def _expect(name: str, value: float, expected: float, context: str) -> None:
    if value != expected:
        raise CheckpointError(f"{context}: {name} is {value}; all published models have {expected}")


def _diffwave_options(tensors: Mapping[str, Tensor], settings: Any, context: str) -> dict[str, Any]:
    conditioner = tensors["residual_layers.0.conditioner_projection.weight"]
    return {
        "channels": tensors["input_projection.weight"].shape[0],
        "layers": _count(tensors, r"residual_layers\.(\d+)\.conditioner_projection\.weight"),
        "kernel_size": _shape(tensors, "residual_layers.0.dilated_conv.weight", context)[-1],
        "dilation_base": _setting(settings, ("dilation_base",), 2, context),
        "dilation_cycle": _setting(settings, ("dilation_bound",), 4, context),
        "score_features": conditioner.shape[1],
        "midlevel_features": 0,
        "normalise_score": True,
        "steps": _setting(settings, ("timesteps",), 1000, context),
    }


def _unet_options(tensors: Mapping[str, Tensor], settings: Any, context: str) -> dict[str, Any]:
    dim = tensors["init_conv.weight"].shape[0]
    score_features = _setting(settings, ("s_codec_rows",), 4, context)
    levels = _count(tensors, r"downs\.(\d+)\.1\.ds_conv\.weight")
    widths = [_shape(tensors, f"downs.{level}.1.ds_conv.weight", context)[0] for level in range(levels)]
    return {
        "dim": dim,
        "multipliers": [width // dim for width in widths],
        "score_features": score_features,
        "midlevel_features": tensors["condition_init_fc.weight"].shape[1] - score_features,
        "normalise_score": False,
    }


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many tensors have a name of a pattern."""
    return sum(re.fullmatch(pattern, name) is not None for name in tensors)


def _shape(tensors: Mapping[str, Tensor], name: str, context: str) -> torch.Size:
    if name not in tensors:
        raise CheckpointError(f"{context}: not complete: it has no tensor {name}")
    return tensors[name].shape


def _setting(settings: Any, keys: tuple[str, ...], published: Any, context: str) -> Any:
    """One hyper-parameter, of the type of the published value, which holds where there is none."""
    value = settings
    for key in keys:
        value = _plain(value)
        value = value.get(key) if isinstance(value, Mapping) else None
    value = _plain(value)
    if value is None:
        return published
    if isinstance(published, float) and isinstance(value, int):
        value = float(value)
    if type(value) is not type(published):
        name, kind = ".".join(keys), type(published).__name__
        raise CheckpointError(
            f"{context}: hyper-parameter {name}: expected a value of type {kind}, found {value!r:.40}"
        )
    return value


def _constants(settings: Any, key: str, published: tuple[float, ...], context: str) -> Tensor:
    """Constants of the normalisation; newer versions of the published program leave them out."""
    values = _plain(_plain(settings).get(key)) if isinstance(_plain(settings), Mapping) else None
    if values is None:
        return torch.tensor(published)
    if isinstance(values, Tensor):
        values = values.flatten().tolist()
    if isinstance(values, list | tuple):
        values = [_plain(value) for value in values]
        if len(values) == CHANNELS and all(isinstance(value, int | float) for value in values):
            return torch.tensor(values, dtype=torch.float32)
    raise CheckpointError(f"{context}: hyper-parameter {key}: expected {CHANNELS} numbers")


def _plain(value: Any) -> Any:
    """The content of a node of a configuration: a mapping or a list of nodes, or a value."""
    if isinstance(value, Inert) and isinstance(value.state, Mapping):
        for field in ("_content", "_val"):
            if field in value.state:
                return value.state[field]
    return value
