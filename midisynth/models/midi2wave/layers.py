"""What a WaveNet is made of: matrices for every column, weights of all layers in one tensor, a table of codes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Gain of Xavier initialisation of what a tanh and a ReLU follow.
TANH_GAIN, RELU_GAIN = 5 / 3, math.sqrt(2)


class Pointwise(nn.Module):
    """The same matrix for every column of [batch, inputs, columns].

    Args:
        inputs: Channels in.
        outputs: Channels out.
        bias: Whether there is one.
        gain: Of the Xavier initialisation.
        softsign: Whether x / (1 + |x|) follows.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, gain: float = 1.0, softsign: bool = False):
        super().__init__()
        self.softsign = softsign
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.xavier_uniform_(self.weight, gain)
        bound = 1 / math.sqrt(inputs)
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, columns] -> [batch, outputs, columns]."""
        y = self.weight @ x
        if self.bias is not None:
            # Under autocast a sum with float32 would undo the half precision of all that follows.
            y = y + self.bias[:, None].to(y.dtype)
        return F.softsign(y) if self.softsign else y


class Stacked(nn.Module):
    """The weights of one kind of convolution in all layers.

    Args:
        layers: How many there are.
        shape: Of the weight of one layer, outputs and inputs first.
        biases: How many rows of biases there are: none, one for all layers, or one for each.
        gain: Of the Xavier initialisation.
    """

    def __init__(self, layers: int, shape: tuple[int, ...], biases: int, gain: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(layers, *shape))
        for weight in self.weight.detach():
            nn.init.xavier_uniform_(weight, gain)
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        self.bias = nn.Parameter(torch.empty(biases, shape[0]).uniform_(-bound, bound)) if biases else None

    def layers(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of each layer. Gradients of slices taken one by one would each be as large as the whole."""
        weights = self.weight.unbind()
        return list(zip(weights, self.bias.unbind() if self.bias is not None else [None] * len(weights), strict=True))


class Embedding(nn.Module):
    """Codes [batch, samples] -> [batch, channels, samples]."""

    def __init__(self, levels: int, channels: int, softsign: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(levels, channels))
        self.softsign = softsign

    def forward(self, codes: Tensor) -> Tensor:
        # The table has fewer rows than there are samples.
        table = F.softsign(self.weight) if self.softsign else self.weight
        return F.embedding(codes, table).transpose(1, 2)
