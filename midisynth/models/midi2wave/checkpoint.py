"""Reads checkpoints of the original: `wavenet_<iteration>` files, which hold whole module objects.

The modules are read as inert trees of attributes and tensors, and their classes are not looked for. Sizes come from the
tensors; attributes are asked for the rest. Three generations of files have different names: those of today; those from
before April 2019, whose encoder is `cond_wavenet` and lacks attributes that were constants then; and those of the
decoder of nv-wavenet, from which the original was made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from midisynth.errors import CheckpointError
from midisynth.models.midi2wave.network import WaveNet
from midisynth.models.midi2wave.published import network_options, network_state
from midisynth.module import Published
from midisynth.music.rolls import KEYS
from midisynth.tensor_files import Inert, load_state, read_checkpoint

#: Of all audio that the original reads (Hz).
SAMPLE_RATE = 16000
#: Of the residual stream, before it was an option.
OLD_GAIN = math.sqrt(0.5)
#: Rows of a roll, with a row for the sustain pedal.
ROWS_WITH_PEDAL = KEYS + 1


class PublishedNetwork(NamedTuple):
    """One WaveNet of a checkpoint, in the words of the original.

    Attributes:
        config: As in the sections of its configuration files.
        state: Parameters by name.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]


class PublishedNetworks(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        decoder: Makes audio.
        encoder: Reads the roll; None in checkpoints of a decoder alone, which may be conditioned on the roll itself.
        discrete: Codes pass an argmax bottleneck.
        old: From before April 2019, when rolls had only onsets.
    """

    decoder: PublishedNetwork
    encoder: PublishedNetwork | None
    discrete: bool
    old: bool


def read_published(path: Path) -> Published:
    """Read a checkpoint: options of `Midi2Wave`, and its state.

    Args:
        path: A file `wavenet_<iteration>`.

    Raises:
        CheckpointError: It is something else, or a decoder that is conditioned neither on a roll nor on what an encoder
            in the file makes.
    """
    found = read_networks(path)
    decoder = found.decoder.config
    encoder = None if found.encoder is None else found.encoder.config
    conditioned = decoder["use_conditioning"]
    # Before the original had encoders it conditioned its decoder on the roll.
    rows = encoder["n_in_channels"] if encoder is not None else decoder["n_cond_channels"] if conditioned else KEYS
    if rows not in (KEYS, ROWS_WITH_PEDAL):
        raise CheckpointError(
            f"{path}: a decoder alone, without the encoder that makes the {rows} channels it is conditioned on, cannot "
            "play MIDI: import a checkpoint of the whole autoencoder"
            if encoder is None
            else f"{path}: its encoder reads rolls of {rows} rows; known are those of {KEYS} and {ROWS_WITH_PEDAL}"
        )
    levels, outputs = decoder["n_in_channels"], decoder["n_out_channels"]
    options: dict[str, Any] = {
        "sample_rate": SAMPLE_RATE,
        "ticks_per_sec": SAMPLE_RATE // decoder["upsamp_scale"],
        "levels": levels,
        "head": "categorical" if outputs == levels else "mixture",
        "components": max(outputs // 3, 1),
        "conditioned": conditioned,
        "context_stack": encoder is not None,
        "bottleneck": "argmax" if found.discrete else None,
        "roll": "onset" if found.old else "sustained",
        "pedal": "row" if rows == ROWS_WITH_PEDAL else "none",
        "decoder": _options(decoder, "outputs"),
    }
    state = _state(found.decoder, "network.decoder.")
    if found.encoder is not None:
        options["encoder"] = _options(found.encoder.config)
        state |= _state(found.encoder, "network.encoder.")
    return Published(options, state)


def read_decoder(path: Path) -> WaveNet:
    """Read the decoder of a checkpoint, in evaluation mode, whatever it is conditioned on.

    Args:
        path: A file `wavenet_<iteration>`.

    Raises:
        CheckpointError: It is something else.
    """
    found = read_networks(path).decoder
    decoder = WaveNet(**network_options(found.config))
    load_state(decoder, network_state(found.state, found.config["use_conditioning"]), str(path))
    return decoder.eval()


def _options(config: Mapping[str, Any], *derived: str) -> dict[str, Any]:
    """Options of a network without those that follow from the rest of the model."""
    derived = ("inputs", "kind", "conditioning", "hop", "compat", *derived)
    return {name: value for name, value in network_options(config).items() if name not in derived}


def _state(network: PublishedNetwork, prefix: str) -> dict[str, Tensor]:
    state = network_state(network.state, network.config["use_conditioning"])
    if "skip.bias" in state:
        # Only the sum matters; with compat "seed" there would be one for each layer.
        state["skip.bias"] = state["skip.bias"].sum(0, keepdim=True)
    return {prefix + name: tensor for name, tensor in state.items()}


def read_networks(path: Path) -> PublishedNetworks:
    """Read the networks of a checkpoint in either container of torch.

    Args:
        path: A file `wavenet_<iteration>`.

    Raises:
        CheckpointError: It is something else.
    """
    model = read_checkpoint(path, legacy=True, inert=True).get("model")
    try:
        modules = _Module(model)
        if "wavenet" not in modules.children:
            return PublishedNetworks(_network(modules), None, False, "res_block_gain" not in modules.attributes)
        old = "cond_wavenet" in modules.children
        decoder = _network(modules.children["wavenet"])
        encoder = _network(modules.children["cond_wavenet" if old else "encoder_wavenet"], encoder=True)
        return PublishedNetworks(decoder, encoder, bool(modules.attributes.get("use_VAE")), old)
    except (KeyError, AttributeError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of midi2wave: its model is not a WaveNet ({error})") from error


class _Module:
    """A module that was read as an inert object.

    Args:
        content: The object.

    Attributes:
        attributes: Plain ones.
        children: Modules in it.
        tensors: Parameters and buffers that are not None.
    """

    def __init__(self, content: Inert):
        self.attributes: dict[str, Any] = content.state
        self.children = {name: _Module(child) for name, child in content.state["_modules"].items()}
        tensors = {**content.state["_parameters"], **content.state["_buffers"]}
        self.tensors: dict[str, Tensor] = {name: value for name, value in tensors.items() if value is not None}

    def state(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Tensors of this and all modules below, as in a state dict."""
        for name, tensor in self.tensors.items():
            yield prefix + name, tensor.detach()
        for name, child in self.children.items():
            yield from child.state(f"{prefix}{name}.")

    def softsign(self, name: str, default: bool) -> bool:
        """Whether the child of that name has a Softsign at its end."""
        return name in self.children and bool(self.children[name].attributes.get("use_act", default))

    def dropout(self, name: str) -> float:
        """Probability of the child of that name; 0 without it."""
        return self.children[name].attributes["p"] if name in self.children else 0.0


def _network(module: _Module, encoder: bool = False) -> PublishedNetwork:
    state, attributes = dict(module.state()), module.attributes
    if from_nvidia := "embed.weight" in state:
        state["in_layer.embed.weight"] = state.pop("embed.weight")
    table, matrix = state.get("in_layer.embed.weight"), state.get("in_layer.conv.weight")
    dilated = module.children["dilate_layers"].children.values()
    dilations = [layer.children["conv"].attributes["dilation"][0] for layer in dilated]
    gates, channels, _ = state["dilate_layers.0.conv.weight"].shape
    conditioning, window = state.get("cond_layers.conv.weight"), state.get("upsample.weight")
    shared = attributes.get("same_cond_each_resblock", conditioning is not None and len(conditioning) == gates)
    added = gates * (1 if shared else len(dilations))
    skips = "conv_out.conv.weight" in state
    config = {
        "onehot_input": table is not None,
        "n_in_channels": len(table) if table is not None else matrix.shape[1],
        "use_in_bias": "in_layer.conv.bias" in state,
        "use_in_act": module.softsign("in_layer", False),
        "n_layers": len(dilations),
        "max_dilation": max(dilations),
        "n_residual_channels": channels,
        "use_dilate_bias": "dilate_layers.0.conv.bias" in state,
        "use_res_out_conv": "res_layers.0.conv.weight" in state,
        "use_res_out_bias": "res_layers.0.conv.bias" in state,
        "res_block_gain": attributes.get("res_block_gain", 1 if from_nvidia else OLD_GAIN),
        "use_skip_out": skips,
        "n_skip_channels": len(state["skip_layers.0.conv.weight"]) if skips else channels,
        "use_skip_bias": "skip_layers.0.conv.bias" in state,
        "n_skip_to_out_channels": len(state["conv_out.conv.weight"]) if skips else channels,
        "n_out_channels": len(state["conv_end.conv.weight"]) if skips else channels,
        "use_conditioning": attributes.get("use_conditioning", True),
        "same_cond_each_resblock": shared,
        "n_cond_channels": added if conditioning is None else conditioning.shape[1],
        "use_cond_conv": conditioning is not None,
        "use_cond_bias": "cond_layers.conv.bias" in state,
        "use_cond_act": module.softsign("cond_layers", not from_nvidia),
        "upsamp_scale": _hop(module),
        "upsample_by_copy": window is None,
        "upsamp_conv_window": 0 if window is None else window.shape[-1],
        "resblock_drop_prob": module.dropout("resblock_dropout"),
        "out_drop_prob": module.dropout("out_dropout"),
    }
    if encoder and config["use_conditioning"]:
        _fold_conditioning_bias(config, state)
    return PublishedNetwork(config, state)


def _hop(module: _Module) -> int:
    """Samples per tick of the conditioning."""
    upsampling = module.children["upsample"].attributes
    return upsampling["stride"][0] if "stride" in upsampling else upsampling["upscale"]


def _fold_conditioning_bias(config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Put what an old encoder adds for its conditioning, which is always zero, into the biases of its layers."""
    config["use_conditioning"] = False
    if not config["use_cond_bias"]:
        return
    added = state["cond_layers.conv.bias"]
    added = F.softsign(added) if config["use_cond_act"] else added
    parts = added.unflatten(0, (-1, 2 * config["n_residual_channels"])).expand(config["n_layers"], -1)
    for layer, part in enumerate(parts):
        name = f"dilate_layers.{layer}.conv.bias"
        state[name] = state[name] + part if config["use_dilate_bias"] else part
    config["use_dilate_bias"] = True
