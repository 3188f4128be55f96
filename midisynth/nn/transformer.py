"""Pre-norm transformer encoder, and a decoder that is modulated by a conditioning vector (FiLM).

Both follow "Multi-instrument Music Synthesis with Spectrogram Diffusion" (Hawthorne et al. 2022, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.nn.attention import Attention, KeyValue
from midisynth.nn.conditioning import FiLM


class GatedFeedForward(nn.Module):
    """value * gelu(gate), back to `dim` (Shazeer 2020, "GLU Variants Improve Transformer").

    Args:
        dim: Width of the input and of the output.
        hidden_dim: Width of value and gate.
        dropout: After the activation; the caller drops the output.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0):
        super().__init__()
        self.value_gate = nn.Linear(dim, 2 * hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        value, gate = self.value_gate(x).chunk(2, dim=-1)
        return self.out(self.dropout(value * F.gelu(gate)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each behind a norm and added to its input.

    Args:
        dim: Width.
        heads: Attention heads.
        head_dim: Width of one head.
        hidden_dim: Width inside the feed-forward.
        dropout: Probability, everywhere.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, hidden_dim: int, dropout: float = 0.0):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, head_dim, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = GatedFeedForward(dim, hidden_dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[batch, length, dim] -> the same; `mask` as in `Attention.forward`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask=mask))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Encoder(nn.Module):
    """Stack of `EncoderLayer` and a final norm.

    Args:
        layers: Number of layers.
        dim: Width.
        heads: Attention heads.
        head_dim: Width of one head.
        hidden_dim: Width inside the feed-forward.
        dropout: Probability, everywhere.
    """

    def __init__(self, layers: int, dim: int, heads: int, head_dim: int, hidden_dim: int, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, head_dim, hidden_dim, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[batch, length, dim] -> the same; `mask` as in `Attention.forward`."""
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


class FiLMDecoderLayer(nn.Module):
    """Self-attention and feed-forward modulated by a vector, and cross-attention to a memory in between.

    Args:
        dim: Width.
        heads: Attention heads.
        head_dim: Width of one head.
        hidden_dim: Width inside the feed-forward.
        condition_dim: Width of the conditioning vector.
        dropout: Probability, everywhere.
        cross_attention: False for a decoder that has no memory.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        hidden_dim: int,
        condition_dim: int,
        dropout: float = 0.0,
        cross_attention: bool = True,
    ):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention_film = FiLM(dim, condition_dim)
        self.attention = Attention(dim, heads, head_dim, dropout)
        if cross_attention:
            self.cross_attention_norm = nn.LayerNorm(dim)
            self.cross_attention = Attention(dim, heads, head_dim, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward_film = FiLM(dim, condition_dim)
        self.feed_forward = GatedFeedForward(dim, hidden_dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, condition: Tensor, memory: KeyValue | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """One layer.

        Args:
            x: [batch, length, dim].
            condition: [batch or 1, 1, condition_dim].
            memory: Projected memory of the first rows of the batch; the other rows are unconditional and skip
                cross-attention, which equals attending to zeros. None if all rows are.
            memory_mask: [memory rows, 1, 1, memory length] bool, True where attention is allowed.

        Returns:
            [batch, length, dim].
        """
        x = x + self.dropout(self.attention(self.attention_film(self.attention_norm(x), condition)))
        if memory is not None:
            conditional, unconditional = x.tensor_split([len(memory.key)])
            attended = self.cross_attention(self.cross_attention_norm(conditional), memory, memory_mask)
            x = torch.cat([conditional + self.dropout(attended), unconditional])
        return x + self.dropout(self.feed_forward(self.feed_forward_film(self.feed_forward_norm(x), condition)))


class FiLMDecoder(nn.Module):
    """Stack of `FiLMDecoderLayer` and a final norm.

    Args:
        layers: Number of layers.
        dim: Width.
        heads: Attention heads.
        head_dim: Width of one head.
        hidden_dim: Width inside the feed-forward.
        condition_dim: Width of the conditioning vector.
        dropout: Probability, everywhere.
        cross_attention: False for a decoder that has no memory.
    """

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        head_dim: int,
        hidden_dim: int,
        condition_dim: int,
        dropout: float = 0.0,
        cross_attention: bool = True,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            FiLMDecoderLayer(dim, heads, head_dim, hidden_dim, condition_dim, dropout, cross_attention)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def project(self, memory: Tensor) -> list[KeyValue]:
        """Keys and values of [batch, memory length, dim] for every layer: they serve all steps of a sampler."""
        return [layer.cross_attention.project(memory) for layer in self.layers]

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        memory: Sequence[KeyValue] | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """[batch, length, dim] -> the same; arguments as in `FiLMDecoderLayer.forward`, `memory` one per layer."""
        for index, layer in enumerate(self.layers):
            x = layer(x, condition, None if memory is None else memory[index], memory_mask)
        return self.norm(x)
