"""The argmax autoencoder: one of as many codes as there are channels for every tick (Dieleman et al. 2018)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Discrete(NamedTuple):
    """What passes the bottleneck.

    Attributes:
        codes: [batch, channels, ticks] one-hot, with gradients.
        usage: [channels] mean of the normalised channels over batch and ticks: what `diversity` wants uniform.
        perplexity: Of the codes that were chosen, 1 to channels.
    """

    codes: Tensor
    usage: Tensor
    perplexity: Tensor


class ArgmaxBottleneck(nn.Module):
    """Channels -> one-hot codes, whose gradient goes straight through (arXiv 1806.10474, section 3.3).

    Args:
        mode: "argmax" takes the largest channel, the first if none is positive. "gumbel" draws while training, by
            Gumbel softmax.
        temperature: Of the Gumbel softmax, whose gradient is that of soft codes.
        compat: "seed" draws always, and from the channels where their logarithms belong: noise, as in the original.
    """

    def __init__(
        self,
        mode: Literal["argmax", "gumbel"] = "argmax",
        temperature: float = 1.0,
        compat: Literal["seed"] | None = None,
    ):
        super().__init__()
        self.mode, self.temperature, self.compat = mode, temperature, compat

    def forward(self, z: Tensor, gumbel: Tensor | None = None) -> Discrete:
        """Choose codes.

        Args:
            z: [batch, channels, ticks].
            gumbel: Noise of the same shape in place of the module's own draws.
        """
        kind = z.dtype
        z = F.relu(z.to(torch.promote_types(kind, torch.float32)))
        q = z / (z.sum(dim=1, keepdim=True) + 1e-5)
        if self.compat or (self.mode == "gumbel" and self.training):
            logits = q if self.compat else torch.log(q + 1e-5)
            noise = -torch.empty_like(q).exponential_().log() if gumbel is None else gumbel
            soft = F.softmax((logits + noise) / self.temperature, dim=1)
        else:
            soft = q
        chosen = F.one_hot(soft.argmax(dim=1), q.shape[1]).transpose(1, 2).to(q.dtype)
        shares = chosen.mean(dim=(0, 2))
        codes = (chosen + (soft - soft.detach())).to(kind)
        return Discrete(codes, q.mean(dim=(0, 2)), torch.special.entr(shares).sum().exp())


def diversity(usage: Tensor) -> Tensor:
    """Sum of (channels * usage - 1)^2: 0 where all codes are used equally (arXiv 1806.10474, equation 4)."""
    return ((len(usage) * usage - 1) ** 2).sum()
