"""Transformer layers of MIDI-VALLE: packed projections, adaptive norms, cross-attention for VALL-F, prenets, positions.

Names of parameters inside a layer are those of the published files, which are those of `torch.nn.TransformerDecoder`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.nn.cache import Cache, KeyValue
from midisynth.nn.positions import interleaved_sinusoids


class PackedAttention(nn.Module):
    """Multi-head attention with biases, whose projections of queries, keys and values are one matrix.

    Args:
        dim: Width.
        heads: Attention heads; they divide `dim`.
        dropout: Probability of dropping an attention weight.
    """

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def _split(self, projected: Tensor) -> tuple[Tensor, ...]:
        """[batch, length, parts * dim] -> as many parts [batch, heads, length, head_dim]."""
        batch, length, width = projected.shape
        head_dim = self.out_proj.in_features // self.heads
        parts = width // self.out_proj.in_features
        return projected.view(batch, length, parts, self.heads, head_dim).permute(2, 0, 3, 1, 4).unbind()

    def _query(self, x: Tensor) -> Tensor:
        dim = x.shape[-1]
        return self._split(F.linear(x, self.in_proj_weight[:dim], self.in_proj_bias[:dim]))[0]

    def project(self, memory: Tensor) -> KeyValue:
        """Keys and values of [batch, length, dim]: they serve every call with this memory."""
        dim = memory.shape[-1]
        return KeyValue(*self._split(F.linear(memory, self.in_proj_weight[dim:], self.in_proj_bias[dim:])))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: KeyValue | None = None,
        cache: Cache | None = None,
        keep: int | None = None,
    ) -> Tensor:
        """Attend from `x` to `memory`, or to `x` itself.

        Args:
            x: [batch, length, dim].
            mask: [batch, 1, 1 or length, memory length] bool, True where attention is allowed; None for everywhere.
            memory: Projected memory; None for self-attention.
            cache: Of the positions before `x`, which self-attention sees too; `x` is added to it.
            keep: Attend from this many positions at the end of `x` alone; None: from all.

        Returns:
            [batch, length or keep, dim].
        """
        if memory is not None:
            query, (key, value) = self._query(x), memory
        elif keep is not None:
            query, (key, value) = self._query(x[:, -keep:]), self.project(x)
        else:
            query, key, value = self._split(F.linear(x, self.in_proj_weight, self.in_proj_bias))
        if cache is not None:
            key, value = cache.append(KeyValue(key, value))
        attended = F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out_proj(attended.transpose(1, 2).flatten(-2))


class AdaptiveNorm(nn.Module):
    """LayerNorm whose output is scaled and shifted by projections of a stage embedding (VALL-E, section 4.2.2).

    Args:
        dim: Width.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.project_layer = nn.Linear(dim, 2 * dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """[batch, length, dim] and the embedding [1, dim] of a stage -> [batch, length, dim]."""
        gain, shift = self.project_layer(condition)[0].chunk(2)
        # One embedding for all positions: both scalings are one, and the norm applies it on the way.
        weight, bias = gain * self.norm.weight, gain * self.norm.bias + shift
        return F.layer_norm(x, self.norm.normalized_shape, weight.to(x.dtype), bias.to(x.dtype), self.norm.eps)


def _normed(norm: nn.Module, x: Tensor, condition: Tensor | None) -> Tensor:
    return norm(x) if condition is None else norm(x, condition)


class Layer(nn.Module):
    """Self-attention, cross-attention if there is a memory, and feed-forward.

    Args:
        dim: Width; the feed-forward is four times as wide.
        heads: Attention heads.
        dropout: Probability, everywhere.
        norm_first: Normalise what goes into a block, and not what comes out of it.
        adaptive: Norms are modulated by a stage embedding.
        cross_attention: Attend to a memory as well (VALL-F).
    """

    def __init__(self, dim: int, heads: int, dropout: float, norm_first: bool, adaptive: bool, cross_attention: bool):
        super().__init__()
        norm = AdaptiveNorm if adaptive else nn.LayerNorm
        self.norm_first = norm_first
        self.self_attn = PackedAttention(dim, heads, dropout)
        self.norm1 = norm(dim)
        self.multihead_attn = PackedAttention(dim, heads, dropout) if cross_attention else None
        self.norm2 = norm(dim)
        if cross_attention:
            self.norm3 = norm(dim)
        self.linear1 = nn.Linear(dim, 4 * dim)
        self.linear2 = nn.Linear(4 * dim, dim)
        self.dropout = dropout

    def _dropped(self, x: Tensor) -> Tensor:
        # Not a module: when frames are decoded one by one, calls cost as much as what they compute.
        return F.dropout(x, self.dropout) if self.training else x

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self._dropped(F.relu(self.linear1(x))))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        condition: Tensor | None = None,
        memory: KeyValue | None = None,
        memory_mask: Tensor | None = None,
        cache: Cache | None = None,
        keep: int | None = None,
    ) -> Tensor:
        """One layer; arguments as in `Stack.forward`, with the memory and the cache of this layer."""
        first = self.norm_first
        attended = self.self_attn(_normed(self.norm1, x, condition) if first else x, mask, cache=cache, keep=keep)
        x = (x if keep is None else x[:, -keep:]) + self._dropped(attended)
        x = x if first else _normed(self.norm1, x, condition)
        last_norm = self.norm2
        if self.multihead_attn is not None:
            query = _normed(self.norm2, x, condition) if first else x
            x = x + self._dropped(self.multihead_attn(query, memory_mask, memory))
            x = x if first else _normed(self.norm2, x, condition)
            last_norm = self.norm3
        x = x + self._dropped(self._feed_forward(_normed(last_norm, x, condition) if first else x))
        return x if first else _normed(last_norm, x, condition)


class Stack(nn.Module):
    """Layers, and a final norm if they normalise their inputs.

    Args:
        layers: Number of layers.
        dim: Width.
        heads: Attention heads.
        dropout: Probability, everywhere.
        norm_first: See `Layer`.
        adaptive: See `Layer`.
        cross_attention: See `Layer`.
    """

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        dropout: float,
        norm_first: bool = True,
        adaptive: bool = False,
        cross_attention: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(dim, heads, dropout, norm_first, adaptive, cross_attention) for _ in range(layers)
        )
        self.norm = None
        if norm_first:
            self.norm = AdaptiveNorm(dim) if adaptive else nn.LayerNorm(dim)

    def project(self, memory: Tensor) -> list[KeyValue]:
        """Keys and values of [batch, memory length, dim] for every layer; of a stack with cross-attention."""
        return [layer.multihead_attn.project(memory) for layer in self.layers]

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        condition: Tensor | None = None,
        memory: Sequence[KeyValue] | None = None,
        memory_mask: Tensor | None = None,
        caches: Sequence[Cache] | None = None,
        keep: int | None = None,
    ) -> Tensor:
        """Apply all layers.

        Args:
            x: [batch, length, dim].
            mask: [batch, 1, 1 or length, length, with what is in the caches] bool, True where attention is allowed;
                None for everywhere.
            condition: [1, dim] stage embedding for adaptive norms.
            memory: Projected memory of each layer, if there is cross-attention.
            memory_mask: [batch, 1, 1, memory length] bool; None for everywhere.
            caches: One for each layer, see `PackedAttention.forward`.
            keep: Return this many positions at the end alone: the last layer computes no other. None: all.

        Returns:
            [batch, length or keep, dim].
        """
        for index, layer in enumerate(self.layers):
            x = layer(
                x,
                mask,
                condition,
                None if memory is None else memory[index],
                memory_mask,
                None if caches is None else caches[index],
                keep if index == len(self.layers) - 1 else None,
            )
        return x if self.norm is None else _normed(self.norm, x, condition)


class Position(nn.Module):
    """Adds sinusoids, scaled by one number.

    Args:
        dim: Width.
        dropout: Probability, of the sum.
        trained: Whether the number is trained; otherwise it stays 1, or what a checkpoint says.
    """

    def __init__(self, dim: int, dropout: float, trained: bool):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1), requires_grad=trained)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """[batch, length, dim] at positions [length] or [batch, length] -> the same."""
        return self.dropout(x + self.alpha * interleaved_sinusoids(positions, x.shape[-1]).to(x.dtype))


class TextPrenet(nn.Module):
    """Three convolutions over neighbouring notes and a projection.

    Args:
        dim: Width.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, dim, 5, padding="same") for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim) for _ in range(3))
        self.dropout = nn.Dropout(0.5)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[batch, rows, dim] -> the same.

        Args:
            x: Embedded notes.
            mask: [batch, rows] bool, False for padding, which convolutions must not see; None: there is none.
        """
        x = x.transpose(1, 2)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            if mask is not None:
                x = x * mask[:, None]
            x = self.dropout(F.relu(norm(convolution(x))))
        return self.out(x.transpose(1, 2))


def audio_prenet(dim: int) -> nn.Sequential:
    """A narrow multi-layer perceptron for embedded frames, [..., dim] -> [..., dim]."""
    hidden, dropout = 256, 0.25
    return nn.Sequential(
        *(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout)),
        *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout)),
        nn.Linear(hidden, dim),
    )
