"""Weights in the layout of nv-wavenet, NVIDIA's CUDA kernels for generation; neither they nor a GPU are needed.

A file has the arrays that the kernels take, flat: embedding_prev and embedding_curr, row by row [A, R]; all matrices
column by column: of each layer layerK.Wprev, .Wcur [2R, R], .Bh [2R], .Wres [R, R], .Bres [R], .Wskip [S, R] and
.Bskip [S], where the last has zeros for its residual convolution; conv_out [A, S] and conv_end [A, A]. What the layout
has no place for is worked into the weights: a gain g of the residual stream, by powers of g in the layers (with
x_l = g^l z_l the stream z has none); a missing residual convolution, as the identity; activation and kind of the input,
in the table; fewer hidden channels than codes, as zeros. The kernels exist for A 256 with R and S 32 and 128, 64 and
128, 64 and 256, 128 and 256.

Conditioning stays outside: the kernels are given what the layers add for every sample, see `conditioning_array`. Their
sample t is drawn with column t and follows the sample of silence, so it is sample t + 1 here.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from midisynth.datasets.files import replacing
from midisynth.errors import CheckpointError, UsageError
from midisynth.models.midi2wave.engines import Packed
from midisynth.models.midi2wave.network import WaveNet
from midisynth.tensor_files import load_state, read_safetensors


def export(decoder: WaveNet, path: Path) -> None:
    """Write the weights of a decoder; errors as in `arrays`."""
    content = save(arrays(decoder), {"max_dilation": str(max(decoder.dilations))})
    with replacing(path) as file:
        file.write(content)


@torch.no_grad()
def arrays(decoder: WaveNet) -> dict[str, Tensor]:
    """The flat arrays of a decoder, float32 on the CPU.

    Raises:
        UsageError: It does not end in a logit for each code, or has more hidden channels than codes.
    """
    packed = Packed.of(decoder)
    levels, channels = packed.table.shape
    if packed.skip is None or len(packed.output) != levels:
        raise UsageError("nv-wavenet draws from a logit for each code: only a decoder with a categorical head fits it")
    if (hidden := len(packed.hidden)) > levels:
        raise UsageError(f"nv-wavenet has as many hidden channels as codes: decoder.hidden is {hidden}, above {levels}")
    layers = len(packed.dilations)
    skips = packed.skip.unflatten(1, (layers, channels)).unbind(1)
    # One bias of the sum of all layers does the same in the first.
    skip_biases = packed.skip_bias.new_zeros(layers, len(packed.skip_bias))
    if decoder.skip.bias is not None:
        skip_biases[: len(decoder.skip.bias)] = decoder.skip.bias
    found = {"embedding_prev": torch.zeros_like(packed.table), "embedding_curr": packed.table}
    for layer in range(layers):
        scale = packed.gain**layer
        # Nothing reads what the last one would give to the next.
        returned = 0 if layer == layers - 1 else 1 / scale
        found |= {
            f"layer{layer}.Wprev": scale * packed.taps[layer, :, :channels].T,
            f"layer{layer}.Wcur": scale * packed.taps[layer, :, channels:].T,
            f"layer{layer}.Bh": packed.bias[layer],
            f"layer{layer}.Wres": returned * packed.residual[layer].T,
            f"layer{layer}.Bres": returned * packed.residual_bias[layer],
            f"layer{layer}.Wskip": skips[layer].T,
            f"layer{layer}.Bskip": skip_biases[layer],
        }
    found["conv_out"] = F.pad(packed.hidden, (0, 0, 0, levels - hidden)).T
    found["conv_end"] = F.pad(packed.output, (0, levels - hidden)).T
    return {name: tensor.flatten().cpu().clone() for name, tensor in found.items()}


@torch.no_grad()
def conditioning_array(
    decoder: WaveNet, conditioning: Tensor | None, samples: int, attributes: Tensor | None = None
) -> Tensor:
    """What the layers add for every sample, [samples, layers, batch, 2R].

    Args:
        decoder: The decoder.
        conditioning: [batch, channels, ticks], see `WaveNet.layer_conditioning`.
        samples: How many are drawn.
        attributes: [batch, values], see `WaveNet.layer_conditioning`.
    """
    layers, gates = len(decoder.dilations), 2 * decoder.residual_channels
    added = decoder.layer_conditioning(conditioning, attributes)
    if added is None:
        return torch.zeros(samples, layers, 1, gates)
    repeats = 1 if decoder.upsampling is not None else decoder.hop if conditioning is not None else samples
    return added.expand(-1, layers, -1, -1).permute(3, 1, 0, 2).repeat_interleave(repeats, dim=0)[:samples]


def load(path: Path, max_dilation: int | None = None, hop: int = 1) -> WaveNet:
    """Read a decoder.

    Args:
        path: A file as `export` writes it.
        max_dilation: Of its layers; None: as the file says.
        hop: Samples per column of its conditioning.

    Returns:
        A decoder without convolution of the conditioning: it takes what its layers add, [batch, layers * 2R, columns].

    Raises:
        CheckpointError: It is something else, or it adds up the embeddings of two samples.
    """
    tensors = read_safetensors(path)
    with safe_open(path, framework="pt") as file:
        stated = (file.metadata() or {}).get("max_dilation", "")
    if max_dilation is None and not stated.isdecimal():
        raise CheckpointError(f"{path}: does not tell its max_dilation: name it")
    try:
        return _decoder(tensors, max_dilation or int(stated), hop, str(path))
    except (KeyError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path}: not the weights of an nv-wavenet ({error})") from error


def _decoder(tensors: dict[str, Tensor], max_dilation: int, hop: int, context: str) -> WaveNet:
    if tensors["embedding_prev"].any():
        raise CheckpointError(f"{context}: it adds up the embeddings of two samples, which has no place here")
    channels, skip = len(tensors["layer0.Bres"]), len(tensors["layer0.Bskip"])
    layers = sum(name.endswith(".Bh") for name in tensors)
    levels = len(tensors["embedding_curr"]) // channels

    def stacked(name: str, count: int = layers, columns: int | None = None) -> Tensor:
        """[layers, ...] of biases, or of matrices with so many columns."""
        found = torch.stack([tensors[f"layer{layer}.{name}"] for layer in range(count)])
        return found if columns is None else found.unflatten(1, (columns, -1)).mT

    state = {
        "input.weight": tensors["embedding_curr"].view(levels, channels),
        "dilated.weight": torch.stack([stacked("Wprev", columns=channels), stacked("Wcur", columns=channels)], dim=-1),
        "dilated.bias": stacked("Bh"),
        "skip.weight": stacked("Wskip", columns=channels),
        "skip.bias": stacked("Bskip").sum(0, keepdim=True),
        "hidden.weight": tensors["conv_out"].view(skip, levels).T,
        "output.weight": tensors["conv_end"].view(levels, levels).T,
    }
    if layers > 1:
        state["residual.weight"] = stacked("Wres", layers - 1, channels)
        state["residual.bias"] = stacked("Bres", layers - 1)
    decoder = WaveNet(
        inputs=levels,
        outputs=levels,
        layers=layers,
        max_dilation=max_dilation,
        residual=channels,
        skip=skip,
        hidden=levels,
        conditioning=layers * 2 * channels,
        conditioning_conv=False,
        hop=hop,
    )
    load_state(decoder, state, context)
    return decoder.eval()
