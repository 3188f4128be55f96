"""Steps in plain torch: always there, on every device. Everything is allocated before the first step.

What bounds it is the number of calls, three for each layer:

- The past taps of all layers need no result of the step, and become one batched product together with conditioning and
  biases.
- A layer's residual convolution and the current tap of the next layer have no nonlinearity between them, so their
  product is one matrix, which makes both what the next layer adds to and what it gates.
- The logistic function is a tanh: s(x) = (1 + tanh(x / 2)) / 2. The halves are in the weights, and tanh(a) (1 +
  tanh(b / 2)) is one call after the tanh of both.
- All skip convolutions are one product at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from midisynth.models.midi2wave.engines.base import Packed, count_passes, rows_of
from midisynth.models.midi2wave.heads import Head


class _Layer(NamedTuple):
    """What the calls of one layer take: views of the memory of a state, and weights.

    Attributes:
        sums: [rows, 2R].
        tanh: [rows, R] of the sums.
        logistic: [rows, R] of the sums.
        gated: [rows, R], twice what the gate lets through.
        added: [rows, 3R] of the next layer.
        pair: [rows, 2R], gated and input.
        matrix: [2R, 3R].
        entry: [rows, 3R] of the next layer: input and sums.
    """

    sums: Tensor
    tanh: Tensor
    logistic: Tensor
    gated: Tensor
    added: Tensor
    pair: Tensor
    matrix: Tensor
    entry: Tensor


@dataclass
class TorchState:
    """Streams between two calls, and the memory of their steps. There are rows for each pass of each stream.

    Attributes:
        queues: [sum of dilations, rows, R] past inputs of the layers.
        current: [streams] codes that go in next.
        step: [] since the start.
        positions: [layers] rows of the queues that a step reads and then writes.
        past: [layers, rows, R] what it reads there.
        added: [layers + 1, rows, 3R] what each layer's input and sums get besides the product.
        work: [layers + 1, rows, 4R] of each layer, side by side: gated, input, both halves of the sums. The last is
            that of the output without skips.
        layers: Views of them, and weights.
        gated: [rows, layers, R].
        graphs: Steps of these streams that were recorded.
    """

    queues: Tensor
    current: Tensor
    step: Tensor
    positions: Tensor
    past: Tensor
    added: Tensor
    work: Tensor
    layers: list[_Layer]
    gated: Tensor
    graphs: dict[Any, Any] = field(default_factory=dict)


class TorchEngine:
    """Steps in plain torch, for all streams at once.

    Args:
        packed: Weights, on the device that is to work.
        head: How codes are drawn.
        temperature: See `Head.sample`.
        top_p: See `Head.sample`.
        guidance: See `Engine`.
    """

    name, flat = "torch", False

    def __init__(self, packed: Packed, head: Head, temperature: float = 1.0, top_p: float = 1.0, guidance: float = 1.0):
        self.device = packed.table.device
        self.head, self._temperature, self._top_p = head, temperature, top_p
        self.passes, self._guidance = count_passes(guidance), guidance
        self._channels = packed.table.shape[1]
        self._dilations = torch.tensor(packed.dilations, device=self.device)
        self._offsets = packed.offsets.to(self.device)
        self._fuse(packed)
        self._skip = None
        if packed.skip is not None:
            # The gated values of this engine are twice the true ones.
            self._skip, self._skip_bias = (packed.skip / 2).T.contiguous(), packed.skip_bias
            self._hidden, self._output = packed.hidden.T.contiguous(), packed.output.T.contiguous()

    def _fuse(self, packed: Packed) -> None:
        """Make `_table` [levels, 3R], `_past` [layers, R, 3R], `_bias` [layers, 3R], `_next` of each layer [2R, 3R].

        Columns are the input of a layer, then its sums, where the half for the logistic function is halved.
        """
        channels, layers = self._channels, len(packed.dilations)

        def exact(weights: Tensor) -> Tensor:
            # Not on every device there are numbers of 64 bits.
            return weights.cpu().double()

        def placed(weights: Tensor) -> Tensor:
            return weights.float().contiguous().to(self.device)

        halves = torch.ones(2 * channels, dtype=torch.float64)
        halves[channels:] = 0.5
        taps = exact(packed.taps) * halves[:, None]
        previous, current = taps[..., :channels], taps[..., channels:]
        identity = torch.eye(channels, dtype=torch.float64)
        #: [layers + 1, 3R, R]: a layer's input -> that input and the sums that it makes. None follow the last layer.
        spread = torch.cat([identity.expand(layers, -1, -1), current], dim=1)
        spread = torch.cat([spread, torch.cat([identity, torch.zeros_like(current[0])])[None]])
        residual = packed.gain * exact(packed.residual) / 2
        steps = torch.cat([spread[1:] @ residual, packed.gain * spread[1:]], dim=2)
        bias = torch.zeros(layers, 3 * channels, dtype=torch.float64)
        bias[:, channels:] = exact(packed.bias) * halves
        shift = (spread[1:] @ (packed.gain * exact(packed.residual_bias))[..., None])[..., 0]
        bias[1:] += shift[:-1]
        past = torch.cat([torch.zeros_like(identity).expand(layers, -1, -1), previous], dim=1)
        self._table, self._past = placed(exact(packed.table) @ spread[0].T), placed(past.mT)
        self._bias, self._last_bias = placed(bias), placed(shift[-1])
        self._next = [placed(matrix.T) for matrix in steps]
        self._halves = placed(halves)

    def start(self, streams: int) -> TorchState:
        """See `Engine.start`."""
        layers, channels, rows = len(self._dilations), self._channels, streams * self.passes

        def zeros(*shape: int) -> Tensor:
            # With a model in half precision, that is what torch makes unless told otherwise.
            return torch.zeros(shape, dtype=torch.float32, device=self.device)

        work, added = zeros(layers + 1, rows, 4 * channels), zeros(layers + 1, rows, 3 * channels)
        added[-1] = self._last_bias
        return TorchState(
            queues=zeros(int(self._dilations.sum()), rows, channels),
            current=torch.full((streams,), self.head.levels // 2, device=self.device),
            step=torch.zeros((), dtype=torch.int64, device=self.device),
            positions=torch.zeros_like(self._offsets),
            past=zeros(layers, rows, channels),
            added=added,
            work=work,
            layers=[self._views(index, work, added) for index in range(layers)],
            gated=zeros(rows, layers, channels),
        )

    def _views(self, index: int, work: Tensor, added: Tensor) -> _Layer:
        gated, _, tanh, logistic = work[index].split(self._channels, dim=1)
        return _Layer(
            sums=work[index, :, 2 * self._channels :],
            tanh=tanh,
            logistic=logistic,
            gated=gated,
            added=added[index + 1],
            pair=work[index, :, : 2 * self._channels],
            matrix=self._next[index],
            entry=work[index + 1, :, self._channels :],
        )

    def keep(self, state: TorchState, streams: list[int]) -> TorchState:
        """See `Engine.keep`."""
        kept = self.start(len(streams))
        kept.queues = state.queues[:, rows_of(streams, self.passes)]
        kept.current, kept.step = state.current[streams], state.step
        return kept

    @torch.inference_mode()
    def run(
        self, state: TorchState, conditioning: Tensor, hop: int, noise: Tensor, teacher: Tensor | None = None
    ) -> Tensor:
        """See `Engine.run`."""
        added = self._columns(conditioning)
        uniforms = noise.to(self.device).transpose(0, 1).contiguous()
        forced = None if teacher is None else teacher.to(self.device).T.contiguous()
        codes = torch.empty(uniforms.shape[:2], dtype=torch.int64, device=self.device)
        # Half precision would save nothing here: the time goes into calls.
        with torch.autocast(self.device.type, enabled=False):
            self._steps(state, added, hop, uniforms, forced, codes)
        return codes.T.cpu()

    def _steps(
        self, state: TorchState, added: Tensor, hop: int, noise: Tensor, teacher: Tensor | None, codes: Tensor
    ) -> None:
        for index in range(len(codes)):
            forced = None if teacher is None else teacher[index]
            codes[index] = self._step(state, added[index // hop], noise[index], forced)

    def _columns(self, conditioning: Tensor) -> Tensor:
        """[rows, columns, layers, 2R] -> with all biases [columns, layers, rows, 3R]."""
        columns = (conditioning.to(self.device) * self._halves).permute(1, 2, 0, 3)
        return torch.nn.functional.pad(columns, (self._channels, 0)) + self._bias[:, None]

    def _step(self, state: TorchState, added: Tensor, noise: Tensor, teacher: Tensor | None) -> Tensor:
        """Draw the next codes [streams] with the conditioning [layers, rows, 3R] and uniforms [streams, draws]."""
        if teacher is not None:
            state.current.copy_(torch.where(teacher >= 0, teacher, state.current))
        channels = self._channels
        torch.remainder(state.step, self._dilations, out=state.positions)
        state.positions += self._offsets
        state.step += 1
        torch.index_select(state.queues, 0, state.positions, out=state.past)
        torch.baddbmm(added, state.past, self._past, out=state.added[:-1])
        work, addcmul, addmm = state.work, torch.addcmul, torch.addmm
        read = self._table[state.current]
        if self.passes > 1:
            read = read[:, None].expand(-1, self.passes, -1).flatten(0, 1)
        torch.add(state.added[0], read, out=work[0, :, channels:])
        for sums, tanh, logistic, gated, added_next, pair, matrix, entry in state.layers:
            sums.tanh_()
            addcmul(tanh, tanh, logistic, out=gated)
            addmm(added_next, pair, matrix, out=entry)
        state.queues.index_copy_(0, state.positions, work[:-1, :, channels : 2 * channels])
        outputs = self._outputs(state)
        if self.passes > 1:
            outputs = torch.lerp(outputs[1::2], outputs[::2], self._guidance)
        state.current.copy_(self.head.sample(outputs, noise, self._temperature, self._top_p))
        return state.current

    def _outputs(self, state: TorchState) -> Tensor:
        """[rows, outputs] from what the layers left."""
        if self._skip is None:
            return state.work[-1, :, self._channels : 2 * self._channels]
        state.gated.copy_(state.work[:-1, :, : self._channels].transpose(0, 1))
        skip = torch.addmm(self._skip_bias, state.gated.flatten(1), self._skip).relu_()
        return torch.mm(torch.mm(skip, self._hidden).relu_(), self._output)
