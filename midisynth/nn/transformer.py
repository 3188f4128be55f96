"""Pre-norm transformer encoder and decoder; the decoder may be modulated by a conditioning vector (FiLM).

Both follow "Multi-instrument Music Synthesis with Spectrogram Diffusion" (Hawthorne et al. 2022, section 3). Their
layers come in two kinds, of which all published weights are one: layers with LayerNorm and biases, and those of T5 1.1
(`t5`; Raffel et al. 2020), with a root-mean-square norm, no biases, attention that is not scaled, an approximated gelu
and dropout also of the input and of the output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.nn.attention import Attention
from midisynth.nn.cache import KeyValue, KeyValueCache
from midisynth.nn.conditioning import FiLM


def _norm(dim: int, t5: bool) -> nn.Module:
    return nn.RMSNorm(dim, eps=1e-6) if t5 else nn.LayerNorm(dim)


class GatedFeedForward(nn.Module):
    """value * gelu(gate), back to `dim` (Shazeer 2020, "GLU Variants Improve Transformer").

    Args:
        dim: Width of the input and of the output.
        hidden_dim: Width of value and gate.
        dropout: After the activation; the caller drops the output.
        t5: No biases, and the tanh approximation of gelu.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0, t5: bool = False):
        super().__init__()
        self.value_gate = nn.Linear(dim, 2 * hidden_dim, bias=not t5)
        self.approximate = "tanh" if t5 else "none"
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden_dim, dim, bias=not t5)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        value, gate = self.value_gate(x).chunk(2, dim=-1)
        return self.out(self.dropout(value * F.gelu(gate, approximate=self.approximate)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each behind a norm and added to its input.

    Args:
        dim: Width.
        heads: Attention heads.
        head_dim: Width of one head.
        hidden_dim: Width inside the feed-forward.
        dropout: Probability, everywhere.
        t5: Layers of T5.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, hidden_dim: int, dropout: float = 0.0, t5: bool = False):
        super().__init__()
        self.attention_norm = _norm(dim, t5)
        self.attention = Attention(dim, heads, head_dim, dropout, scaled=not t5)
        self.feed_forward_norm = _norm(dim, t5)
        self.feed_forward = GatedFeedForward(dim, hidden_dim, dropout, t5)
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
        t5: Layers of T5.
    """

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        head_dim: int,
        hidden_dim: int,
        dropout: float = 0.0,
        t5: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, head_dim, hidden_dim, dropout, t5) for _ in range(layers))
        self.norm = _norm(dim, t5)
        self.outer_dropout = nn.Dropout(dropout if t5 else 0.0)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[batch, length, dim] -> the same; `mask` as in `Attention.forward`."""
        x = self.outer_dropout(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.outer_dropout(self.norm(x))


class DecoderLayer(nn.Module):
    """Self-attention and feed-forward, modulated by a vector if there is one, and cross-attention in between.

    Args:
        dim: Width.
        heads: Attention heads.
        head_dim: Width of one head.
        hidden_dim: Width inside the feed-forward.
        condition_dim: Width of the conditioning vector; None for a decoder without one.
        dropout: Probability, everywhere.
        cross_attention: False for a decoder that has no memory.
        t5: Layers of T5.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        hidden_dim: int,
        condition_dim: int | None,
        dropout: float = 0.0,
        cross_attention: bool = True,
        t5: bool = False,
    ):
        super().__init__()
        self.attention_norm = _norm(dim, t5)
        self.attention_film = None if condition_dim is None else FiLM(dim, condition_dim, bias=not t5)
        self.attention = Attention(dim, heads, head_dim, dropout, scaled=not t5)
        if cross_attention:
            self.cross_attention_norm = _norm(dim, t5)
            self.cross_attention = Attention(dim, heads, head_dim, dropout, scaled=not t5)
        self.feed_forward_norm = _norm(dim, t5)
        self.feed_forward_film = None if condition_dim is None else FiLM(dim, condition_dim, bias=not t5)
        self.feed_forward = GatedFeedForward(dim, hidden_dim, dropout, t5)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        memory: KeyValue | None = None,
        memory_mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """One layer.

        Args:
            x: [batch, length, dim].
            condition: [batch or 1, 1, condition_dim]; None for a decoder without one.
            memory: Projected memory of the first rows of the batch; the other rows are unconditional and skip
                cross-attention, which equals attending to zeros. None if all rows are.
            memory_mask: [memory rows, 1, 1, memory length] bool, True where attention is allowed.
            causal: Positions see themselves and those before alone.
            cache: Of the positions before `x`, to which `x` is added.

        Returns:
            [batch, length, dim].
        """
        normed = self.attention_norm(x)
        if self.attention_film is not None:
            normed = self.attention_film(normed, condition)
        x = x + self.dropout(self.attention(normed, causal=causal, cache=cache))
        if memory is not None:
            conditional, unconditional = x.tensor_split([len(memory.key)])
            attended = self.cross_attention(self.cross_attention_norm(conditional), memory, memory_mask)
            x = torch.cat([conditional + self.dropout(attended), unconditional])
        normed = self.feed_forward_norm(x)
        if self.feed_forward_film is not None:
            normed = self.feed_forward_film(normed, condition)
        return x + self.dropout(self.feed_forward(normed))


class Decoder(nn.Module):
    """Stack of `DecoderLayer` and a final norm.

    Args:
        layers: Number of layers.
        dim: Width.
        heads: Attention heads.
        head_dim: Width of one head.
        hidden_dim: Width inside the feed-forward.
        condition_dim: Width of the conditioning vector; None for a decoder without one.
        dropout: Probability, everywhere.
        cross_attention: False for a decoder that has no memory.
        t5: Layers of T5.
    """

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        head_dim: int,
        hidden_dim: int,
        condition_dim: int | None,
        dropout: float = 0.0,
        cross_attention: bool = True,
        t5: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(dim, heads, head_dim, hidden_dim, condition_dim, dropout, cross_attention, t5)
            for _ in range(layers)
        )
        self.norm = _norm(dim, t5)
        self.outer_dropout = nn.Dropout(dropout if t5 else 0.0)

    def project(self, memory: Tensor) -> list[KeyValue]:
        """Keys and values of [batch, memory length, dim] for every layer: they serve all calls with this memory."""
        return [layer.cross_attention.project(memory) for layer in self.layers]

    def caches(self, capacity: int) -> list[KeyValueCache]:
        """Empty caches, one for each layer, for decoding up to `capacity` positions one after the other."""
        return [KeyValueCache(capacity) for _ in self.layers]

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        memory: Sequence[KeyValue] | None = None,
        memory_mask: Tensor | None = None,
        causal: bool = False,
        caches: Sequence[KeyValueCache] | None = None,
    ) -> Tensor:
        """[batch, length, dim] -> the same; arguments as in `DecoderLayer.forward`, memory and caches one per layer."""
        x = self.outer_dropout(x)
        for index, layer in enumerate(self.layers):
            x = layer(
                x,
                condition,
                None if memory is None else memory[index],
                memory_mask,
                causal,
                None if caches is None else caches[index],
            )
        return self.outer_dropout(self.norm(x))
