"""Multi-head attention whose keys and values can be projected once and used many times, and collected in a cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.nn.cache import KeyValue, KeyValueCache


class Attention(nn.Module):
    """Scaled dot-product attention without biases ("Attention Is All You Need", section 3.2.2).

    `heads * head_dim` need not equal `dim`. Without biases, attention to a memory of zeros contributes exactly zero,
    which is what lets a model be unconditional by leaving cross-attention out.

    Args:
        dim: Width of the input and of the output.
        heads: Number of heads.
        head_dim: Width of one head.
        dropout: Probability of dropping an attention weight.
        scaled: Divide the products of queries and keys by sqrt(head_dim); T5 does not.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float = 0.0, scaled: bool = True):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.scale = None if scaled else 1.0
        self.query = nn.Linear(dim, heads * head_dim, bias=False)
        self.key = nn.Linear(dim, heads * head_dim, bias=False)
        self.value = nn.Linear(dim, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        """[batch, length, heads * head_dim] -> [batch, heads, length, head_dim]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def project(self, memory: Tensor) -> KeyValue:
        """Project [batch, length, dim], so that repeated calls with one memory need not do it again."""
        return KeyValue(self._split(self.key(memory)), self._split(self.value(memory)))

    def forward(
        self,
        x: Tensor,
        memory: KeyValue | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Attend from `x` to `memory`, or to `x` itself.

        Args:
            x: [batch, length, dim].
            memory: Projected memory; None for self-attention.
            mask: [batch, 1, 1 or length, memory length] bool, True where attention is allowed; None for everywhere.
            causal: In self-attention every position sees itself and those before alone; in place of `mask`.
            cache: Of the positions before `x`, which self-attention sees too; `x` is added to it.

        Returns:
            [batch, length, dim].
        """
        key, value = self.project(x) if memory is None else memory
        if cache is not None:
            key, value = cache.append(KeyValue(key, value))
        length, total = x.shape[1], key.shape[2]
        if causal and 1 < length < total:
            mask = torch.ones(length, total, dtype=torch.bool, device=x.device).tril(total - length)
        attended = F.scaled_dot_product_attention(
            self._split(self.query(x)),
            key,
            value,
            mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal and length == total,
            scale=self.scale,
        )
        return self.out(attended.transpose(1, 2).flatten(-2))
