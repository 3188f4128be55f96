"""WaveNet, and the autoencoder of two of them: one reads a piano roll, the other makes audio sample by sample.

van den Oord et al. 2016 (arXiv 1609.03499); the autoencoder and its context stack are those of MAESTRO (Hawthorne et
al. 2019, arXiv 1810.12247, section 5). Every network is causal and ends by shifting its output one step right: column
t depends on inputs up to t - 1, column 0 is zero. A note at tick k is therefore heard from sample hop * (k + 1) + 1 on.

What is the same for many samples or layers is computed once. Conditioning stays at the rate of ticks: the layers add
it to all samples of a tick through a view. Layers hand their gated outputs to one skip product instead of adding up
as many small ones. Weights of all layers are stacked, so that generators can use them as they are.

Parameters of a `WaveNet`, by name in its state; R residual, S skip, L layers, C conditioning channels:

| name | shape |
| --- | --- |
| `input.weight`, `input.bias` | [levels, R] if embedded, else [R, inputs], [R] |
| `upsampling.weight`, `.bias` | [C, C, window], [C]; transposed upsampling |
| `conditioning.weight`, `.bias` | [L * 2R, C], [L * 2R]; if shared, [2R, C], [2R]; layers outermost, tanh first |
| `dilated.weight`, `.bias` | [L, 2R, R, 2], [L, 2R]; past tap first, tanh first |
| `residual.weight`, `.bias` | [L - 1, R, R], [L - 1, R]; the last layer has none |
| `skip.weight`, `.bias` | [L, S, R], [1, S] (in compat [L, S], of which only the sum matters) |
| `hidden.weight` | [hidden, S] |
| `output.weight` | [outputs, hidden] |
| `global_cond.NAME.weight` | [values of the attribute, L * 2R] |

`WaveNetAutoencoder` holds them under `encoder.` and `decoder.`. `published.py` translates the names of the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.errors import UsageError
from midisynth.models.midi2wave.bottleneck import ArgmaxBottleneck
from midisynth.models.midi2wave.conditioning import GlobalConditioning
from midisynth.models.midi2wave.layers import RELU_GAIN, TANH_GAIN, Embedding, Pointwise, Stacked

InputKind = Literal["embedded", "scalar", "rows"]


class WaveNet(nn.Module):
    """Stack of gated dilated convolutions over codes of audio, or over the rows of a piano roll.

    Args:
        inputs: Levels of the codes, or rows of the roll.
        kind: What comes in. "embedded": codes, looked up. "scalar": codes, as amplitudes from -1 to 1 (for 16 bit,
            whose table would be large). "rows": a roll.
        outputs: Channels out; without `skips` the residual channels come out.
        layers: Gated layers.
        max_dilation: Dilations are 1, 2, 4, ... up to the last power of two that is not above it, and over again.
        residual: Channels of the residual stream.
        skip: Channels of the skip sum.
        hidden: Channels between the two output layers.
        input_bias: Bias of the first layer; an embedding has none.
        input_softsign: Softsign after the first layer.
        dilated_bias: Biases of the dilated convolutions.
        residual_conv: Convolution of what returns to the residual stream; without, it returns as it is.
        residual_bias: Its biases.
        skip_bias: Bias of the skip sum.
        skips: Whether there are a skip sum and output layers.
        gain: The residual stream is multiplied by this after each layer.
        conditioning: Channels of the conditioning; 0 for none.
        conditioning_conv: Whether a matrix makes of it what layers add; without, its channels must be 2 * residual
            for each layer, or once if shared.
        conditioning_bias: Its bias.
        conditioning_softsign: Softsign after it.
        shared_conditioning: All layers add the same.
        hop: Samples per tick of the conditioning.
        upsampling_window: Kernel of the transposed convolution that brings conditioning to the rate of samples, at
            least `hop`; 0 repeats it.
        attributes: Name of each attribute of a whole recording to the number of its values, the unknown one included.
        dropout: Of the input of every layer.
        output_dropout: Before each output layer.
        compat: "seed" lets dropout act on the residual stream itself, so that it compounds over layers, and gives
            each layer a bias of the skip sum, as the original did.

    Raises:
        UsageError: Options that contradict each other.
    """

    def __init__(
        self,
        inputs: int = 256,
        kind: InputKind = "embedded",
        outputs: int = 256,
        layers: int = 22,
        max_dilation: int = 2048,
        residual: int = 32,
        skip: int = 128,
        hidden: int = 256,
        input_bias: bool = False,
        input_softsign: bool = False,
        dilated_bias: bool = True,
        residual_conv: bool = True,
        residual_bias: bool = True,
        skip_bias: bool = True,
        skips: bool = True,
        gain: float = 1.0,
        conditioning: int = 0,
        conditioning_conv: bool = True,
        conditioning_bias: bool = True,
        conditioning_softsign: bool = False,
        shared_conditioning: bool = False,
        hop: int = 64,
        upsampling_window: int = 0,
        attributes: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
        compat: Literal["seed"] | None = None,
    ):
        super().__init__()
        self.kind, self.levels, self.gain, self.hop = kind, inputs, gain, hop
        self.residual_channels, self.outputs = residual, outputs if skips else residual
        self.dropout, self.output_dropout, self.compat = dropout, output_dropout, compat
        self.conditioning_channels, self.shared_conditioning = conditioning, shared_conditioning
        cycle = max_dilation.bit_length()
        self.dilations = tuple(2 ** (layer % cycle) for layer in range(layers))
        gates = 2 * residual
        if kind == "embedded":
            if input_bias:
                raise UsageError("an embedding has no bias: set input_bias to false")
            self.input: nn.Module = Embedding(inputs, residual, input_softsign)
        else:
            self.input = Pointwise(inputs if kind == "rows" else 1, residual, input_bias, TANH_GAIN, input_softsign)
        added = gates if shared_conditioning else gates * layers
        if conditioning and not conditioning_conv and conditioning != added:
            raise UsageError(f"conditioning has {conditioning} channels; without conditioning_conv it needs {added}")
        if upsampling_window and upsampling_window < hop:
            raise UsageError(f"upsampling_window is {upsampling_window}; it must be 0 or at least hop, {hop}")
        self.upsampling = self.conditioning = self.residual = self.skip = self.global_cond = None
        if conditioning and upsampling_window:
            self.upsampling = nn.ConvTranspose1d(conditioning, conditioning, upsampling_window, stride=hop)
        if conditioning and conditioning_conv:
            self.conditioning = Pointwise(conditioning, added, conditioning_bias, TANH_GAIN, conditioning_softsign)
        self.dilated = Stacked(layers, (gates, residual, 2), layers * dilated_bias, TANH_GAIN)
        if residual_conv and layers > 1:
            self.residual = Stacked(layers - 1, (residual, residual), (layers - 1) * residual_bias)
        if skips:
            self.skip = Stacked(layers, (skip, residual), (layers if compat else 1) * skip_bias, RELU_GAIN)
            self.hidden = Pointwise(skip, hidden, False, RELU_GAIN)
            self.output = Pointwise(hidden, outputs, False)
        if attributes:
            self.global_cond = GlobalConditioning(attributes, gates * layers)

    @property
    def receptive_field(self) -> int:
        """How many columns of the input reach a column of the output."""
        return 1 + sum(self.dilations)

    def input_table(self) -> Tensor:
        """What the first layer makes of every code, [levels, residual]."""
        return self._read(torch.arange(self.levels, device=self.dilated.weight.device)[None])[0].T

    def layer_conditioning(self, conditioning: Tensor | None, attributes: Tensor | None = None) -> Tensor | None:
        """What layers add to their gates, besides their biases.

        Args:
            conditioning: [batch, channels, ticks]; ignored by a network without.
            attributes: [batch, values] weights of the values of all attributes, see `Vocabulary`; None is unknown.

        Returns:
            [batch or 1, layers or 1, 2 * residual, columns], one column per tick; one per sample if a transposed
            convolution brings it there; one in all without conditioning. None if nothing is added.
        """
        added = None
        if self.conditioning_channels:
            x = conditioning
            if self.upsampling is not None:
                x = self.upsampling(x)[..., : x.shape[-1] * self.hop]
            if self.conditioning is not None:
                x = self.conditioning(x)
            added = x.unflatten(1, (1 if self.shared_conditioning else len(self.dilations), -1))
        if self.global_cond is not None:
            whole = self.global_cond(attributes).unflatten(1, (len(self.dilations), -1))[..., None]
            added = whole if added is None else added + whole
        return added

    def forward(self, inputs: Tensor, conditioning: Tensor | None = None, attributes: Tensor | None = None) -> Tensor:
        """All columns at once.

        Args:
            inputs: [batch, samples] int64 codes, or [batch, rows, ticks].
            conditioning: [batch, channels, ticks] of `hop` samples each; more ticks than samples need are cut.
            attributes: As in `layer_conditioning`.

        Returns:
            [batch, outputs, samples]; column t depends on inputs up to t - 1, column 0 is zero.

        Raises:
            ValueError: The conditioning ends before the inputs.
        """
        samples = inputs.shape[-1]
        if self.conditioning_channels:
            ticks = -(-samples // self.hop)
            if conditioning is None or conditioning.shape[-1] < ticks:
                raise ValueError(f"{samples} samples need {ticks} ticks of conditioning")
            conditioning = conditioning[..., :ticks]
            # Whole ticks, so that the samples of a tick can be viewed as an axis. The network is causal.
            inputs = F.pad(inputs, (0, ticks * self.hop - samples))
        out = self._layers(self._read(inputs), self.layer_conditioning(conditioning, attributes))
        return F.pad(out[..., : samples - 1], (1, 0))

    def _read(self, inputs: Tensor) -> Tensor:
        """What comes in, [batch, residual, columns]."""
        if self.kind != "scalar":
            return self.input(inputs)
        # An amplitude in half precision has 8 of its 16 bits left.
        with torch.autocast(inputs.device.type, enabled=False):
            amplitudes = inputs.to(self.dilated.weight.dtype) * (2 / (self.levels - 1)) - 1
            return self.input(amplitudes[:, None])

    def _layers(self, x: Tensor, added: Tensor | None) -> Tensor:
        """Gated layers and output, before the shift: [batch, residual, columns] -> [batch, outputs, columns]."""
        additions = (
            [None] * len(self.dilations) if added is None else added.expand(-1, len(self.dilations), -1, -1).unbind(1)
        )
        residuals = [] if self.residual is None else self.residual.layers()
        gated = []
        for layer, (weight, bias) in enumerate(self.dilated.layers()):
            dropped = F.dropout(x, self.dropout, self.training)
            if self.compat:
                x = dropped
            dilation = self.dilations[layer]
            a = _add(F.conv1d(F.pad(dropped, (dilation, 0)), weight, bias, dilation=dilation), additions[layer])
            tanh, sigmoid = a.chunk(2, dim=1)
            g = tanh.tanh() * sigmoid.sigmoid()
            gated.append(g)
            if layer < len(residuals):
                matrix, offset = residuals[layer]
                g = F.conv1d(g, matrix[..., None], offset)
            if self.skip is None or layer < len(self.dilations) - 1:
                x = x + g if self.gain == 1 else (x + g) * self.gain
        return x if self.skip is None else self._head(torch.cat(gated, dim=1))

    def _head(self, gated: Tensor) -> Tensor:
        """[batch, layers * residual, columns] -> [batch, outputs, columns]."""
        y = self.skip.weight.transpose(0, 1).flatten(1) @ gated
        if self.skip.bias is not None:
            y = y + self.skip.bias.sum(0)[:, None].to(y.dtype)
        y = F.relu(F.dropout(y, self.output_dropout, self.training))
        return self.output(F.relu(F.dropout(self.hidden(y), self.output_dropout, self.training)))


def _add(a: Tensor, addition: Tensor | None) -> Tensor:
    """Add [batch, channels, columns] to [batch, channels, samples], each column to as many samples."""
    if addition is None:
        return a
    columns = addition.shape[-1]
    return (a.unflatten(-1, (columns, -1)) + addition[..., None]).flatten(-2)


class Direct(nn.Module):
    """In the place of an encoder: the decoder is conditioned on the roll itself, without a tick of delay.

    Args:
        rows: Of the roll.

    Attributes:
        outputs: As many channels.
        receptive_field: Each column is its own.
    """

    def __init__(self, rows: int):
        super().__init__()
        self.outputs, self.receptive_field = rows, 1

    def forward(self, roll: Tensor, attributes: Tensor | None = None) -> Tensor:
        """[batch, rows, ticks], as they are."""
        return roll


class Reconstruction(NamedTuple):
    """What the autoencoder makes of audio that it is shown.

    Attributes:
        logits: [batch, outputs, samples].
        usage: [channels] how often the bottleneck uses each code, differentiable; None without bottleneck.
        perplexity: Of the codes, 1 to channels; None without bottleneck.
    """

    logits: Tensor
    usage: Tensor | None
    perplexity: Tensor | None


class WaveNetAutoencoder(nn.Module):
    """A WaveNet that reads the roll, and one that makes the audio, conditioned on it.

    Args:
        decoder: Reads codes.
        encoder: Reads rows; `Direct` passes them on, and None makes audio from nothing.
        bottleneck: What makes codes of the encoder's channels; None passes them on as they are.
        lookahead: The encoder sees the roll this many ticks early.

    Raises:
        UsageError: The encoder's channels are not those that the decoder is conditioned on.
    """

    def __init__(
        self,
        decoder: WaveNet,
        encoder: WaveNet | Direct | None = None,
        bottleneck: ArgmaxBottleneck | None = None,
        lookahead: int = 0,
    ):
        super().__init__()
        channels = encoder.outputs if encoder is not None else 0
        if channels != decoder.conditioning_channels:
            raise UsageError(f"the encoder has {channels} channels, the decoder wants {decoder.conditioning_channels}")
        self.decoder, self.encoder, self.bottleneck, self.lookahead = decoder, encoder, bottleneck, lookahead

    def forward(self, roll: Tensor | None, codes: Tensor, attributes: Tensor | None = None) -> Reconstruction:
        """Predict every sample from those before it.

        Args:
            roll: [batch, rows, ticks]; None without encoder.
            codes: [batch, samples].
            attributes: [batch, values], see `Vocabulary`; None is unknown.
        """
        z = self._context(roll, attributes)
        usage = perplexity = None
        if self.bottleneck is not None:
            z, usage, perplexity = self.bottleneck(z)
        return Reconstruction(self.decode(codes, z, attributes), usage, perplexity)

    def encode(self, roll: Tensor | None, attributes: Tensor | None = None) -> Tensor | None:
        """[batch, rows, ticks] -> what conditions the decoder, [batch, channels, ticks]; None without encoder."""
        z = self._context(roll, attributes)
        return z if self.bottleneck is None else self.bottleneck(z).codes

    def decode(self, codes: Tensor, z: Tensor | None, attributes: Tensor | None = None) -> Tensor:
        """Codes [batch, samples] and z [batch, channels, ticks] -> logits [batch, outputs, samples] of each code."""
        return self.decoder(codes, z, attributes)

    def _context(self, roll: Tensor | None, attributes: Tensor | None) -> Tensor | None:
        if self.encoder is None:
            return None
        return self.encoder(F.pad(roll[..., self.lookahead :], (0, self.lookahead)), attributes=attributes)
