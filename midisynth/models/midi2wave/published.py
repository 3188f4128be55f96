"""The original's names of options and parameters, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: Options that only have another name.
_OPTIONS = {
    "n_in_channels": "inputs",
    "n_out_channels": "outputs",
    "n_layers": "layers",
    "max_dilation": "max_dilation",
    "n_residual_channels": "residual",
    "n_skip_channels": "skip",
    "n_skip_to_out_channels": "hidden",
    "use_in_act": "input_softsign",
    "use_dilate_bias": "dilated_bias",
    "use_res_out_conv": "residual_conv",
    "use_res_out_bias": "residual_bias",
    "use_skip_bias": "skip_bias",
    "use_skip_out": "skips",
    "res_block_gain": "gain",
    "use_cond_conv": "conditioning_conv",
    "use_cond_bias": "conditioning_bias",
    "use_cond_act": "conditioning_softsign",
    "same_cond_each_resblock": "shared_conditioning",
    "upsamp_scale": "hop",
    "resblock_drop_prob": "dropout",
    "out_drop_prob": "output_dropout",
}

#: What its configuration files leave out although its network needs it.
_LEFT_OUT = {"use_skip_out": True, "same_cond_each_resblock": False}

#: Parameters of one layer each, and of the whole network; 1x1 convolutions lose their last axis.
_STACKED = {"dilate_layers": "dilated", "res_layers": "residual", "skip_layers": "skip"}
_WHOLE = {
    "in_layer.embed": "input",
    "in_layer.conv": "input",
    "cond_layers.conv": "conditioning",
    "conv_out.conv": "hidden",
    "conv_end.conv": "output",
    "upsample": "upsampling",
}


def network_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a `WaveNet`, with compat "seed".

    Args:
        config: The section of the encoder or decoder in a configuration of the original.

    Raises:
        KeyError: An option that the original needs is not there.
    """
    config = {**_LEFT_OUT, **config}
    return {
        **{ours: config[theirs] for theirs, ours in _OPTIONS.items()},
        # Embeddings have none.
        "input_bias": config["use_in_bias"] and not config["onehot_input"],
        "kind": "embedded" if config["onehot_input"] else "rows",
        "conditioning": config["n_cond_channels"] if config["use_conditioning"] else 0,
        "upsampling_window": 0 if config["upsample_by_copy"] else config["upsamp_conv_window"],
        "compat": "seed",
    }


def network_state(published: Mapping[str, Tensor], conditioned: bool) -> dict[str, Tensor]:
    """State of a `WaveNet`.

    Args:
        published: Parameters of one network, without prefix.
        conditioned: Whether the network is conditioned; the original has weights for it either way.
    """
    state: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in published.items():
        module, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"(\w+_layers)\.(\d+)\.conv", module)
        if module.endswith("conv") and kind == "weight" and tensor.shape[-1] == 1:
            tensor = tensor[..., 0]
        if layer:
            stacks.setdefault(f"{_STACKED[layer[1]]}.{kind}", {})[int(layer[2])] = tensor
        elif conditioned or not module.startswith(("cond_layers", "upsample")):
            state[f"{_WHOLE[module]}.{kind}"] = tensor
    return state | {name: torch.stack([of[layer] for layer in sorted(of)]) for name, of in stacks.items()}
