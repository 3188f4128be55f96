"""What the engines of generation share: their interface, and the weights of a decoder as a step uses them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from midisynth.models.midi2wave.heads import Head
from midisynth.models.midi2wave.network import WaveNet


class Engine(Protocol):
    """Carries out steps of one decoder: each takes a code and the conditioning of its sample, and draws the next code.

    Engines differ in speed alone: from the same noise all of them draw the same codes, up to values that rounding
    brings to the other side of a border.

    Guidance takes two passes of the network for each stream, which share their codes: the first knows the attributes
    that are chosen, the second knows none, and codes are drawn from `second + guidance * (first - second)` of their
    outputs (Ho and Salimans 2022, arXiv 2207.12598; here of logits). Guidance of 1 is the first alone, which then is
    the only one.

    Attributes:
        name: For the log.
        flat: Many streams take about as long as one.
        head: How codes are drawn.
        passes: Of the network, for each stream.
    """

    name: str
    flat: bool
    head: Head
    passes: int

    def start(self, streams: int) -> Any:
        """The state of streams before their first sample: empty queues, and silence as the first code."""
        ...

    def keep(self, state: Any, streams: list[int]) -> Any:
        """The state of some of the streams; the one that it is taken from must not be used any more."""
        ...

    def run(self, state: Any, conditioning: Tensor, hop: int, noise: Tensor, teacher: Tensor | None = None) -> Tensor:
        """Carry out the next steps of all streams.

        Args:
            state: Of the streams; it is advanced.
            conditioning: [streams * passes, columns, layers, 2R], the passes of a stream one after the other: what is
                added to the gates besides their biases. Step s of this call uses column s // hop.
            hop: Steps that share a column.
            noise: [streams, steps, draws] in [0, 1), as the head wants it. Its length is the number of steps.
            teacher: [streams, steps] codes that are put in instead of those that were drawn; -1 where there is none.

        Returns:
            [streams, steps] int64 codes on the CPU. Step s draws the code of the sample after the one it is put in.
        """
        ...


def count_passes(guidance: float) -> int:
    """How often the network is carried out for each stream."""
    return 1 if guidance == 1 else 2


def rows_of(streams: list[int], passes: int) -> list[int]:
    """Where the passes of streams are in what has [streams * passes] rows."""
    return [stream * passes + index for stream in streams for index in range(passes)]


@dataclass(frozen=True)
class Packed:
    """Weights of a decoder in float32, with the previous and the current tap of a layer side by side.

    Layer l makes `sums = taps[l] @ [previous | current] + bias[l] + conditioning`, `gated[l] = tanh * sigmoid` of its
    halves, and `current = (residual[l] @ gated[l] + residual_bias[l] + current) * gain`. The output is `output @
    relu(hidden @ relu(skip @ gated + skip_bias))`, or without skips the last `current`.

    Attributes:
        table: [levels, R], what the input layer makes of every code.
        taps: [layers, 2R, 2R].
        bias: [layers, 2R].
        residual: [layers, R, R]; the identity where a layer has none.
        residual_bias: [layers, R].
        skip: [S, layers * R], None without skips.
        skip_bias: [S], None without skips.
        hidden: [hidden, S], None without skips.
        output: [outputs, hidden], None without skips.
        gain: Of the residual stream.
        dilations: Of the layers (samples).
    """

    table: Tensor
    taps: Tensor
    bias: Tensor
    residual: Tensor
    residual_bias: Tensor
    skip: Tensor | None
    skip_bias: Tensor | None
    hidden: Tensor | None
    output: Tensor | None
    gain: float
    dilations: tuple[int, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, decoder: WaveNet) -> Packed:
        """Take the weights of a decoder, without gradients, on its device."""
        weights = {name: tensor.detach().float() for name, tensor in decoder.state_dict().items()}
        layers, channels = len(decoder.dilations), decoder.residual_channels
        taps = weights["dilated.weight"]
        residual = torch.eye(channels, dtype=taps.dtype, device=taps.device).repeat(layers, 1, 1)
        residual_bias = taps.new_zeros(layers, channels)
        if "residual.weight" in weights:
            residual[: layers - 1] = weights["residual.weight"]
            residual_bias[: layers - 1] = weights.get("residual.bias", 0)
        skip = skip_bias = None
        if "skip.weight" in weights:
            skip = weights["skip.weight"].transpose(0, 1).flatten(1)
            skip_bias = weights["skip.bias"].sum(0) if "skip.bias" in weights else taps.new_zeros(len(skip))
        return cls(
            table=decoder.input_table().float(),
            taps=torch.cat(taps.unbind(-1), dim=2),
            bias=weights.get("dilated.bias", taps.new_zeros(layers, 2 * channels)),
            residual=residual,
            residual_bias=residual_bias,
            skip=skip,
            skip_bias=skip_bias,
            hidden=weights.get("hidden.weight"),
            output=weights.get("output.weight"),
            gain=decoder.gain,
            dilations=decoder.dilations,
        )

    @property
    def offsets(self) -> Tensor:
        """[layers] where the queue of each layer begins in one buffer of `sum(dilations)` rows."""
        return torch.tensor(self.dilations).cumsum(0) - torch.tensor(self.dilations)


@rank_zero_only
def tell(text: str) -> None:
    """Say something to the user, on the first process.

    Not through a logger: where there is a progress bar, only what goes through `sys.stderr` of the moment comes above
    it.
    """
    print(f"midi2wave: {text}", file=sys.stderr, flush=True)
