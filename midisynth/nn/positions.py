"""Position tables."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(rows: int, dim: int) -> Tensor:
    """Sinusoids of positions, sines before cosines (Vaswani et al. 2017, section 3.5, in another order).

    Args:
        rows: Number of positions.
        dim: Width; even.

    Returns:
        [rows, dim]; rates fall geometrically from 1 to 1/10000 radians per position.
    """
    return sinusoids_at(torch.arange(rows), dim)


def sinusoids_at(positions: Tensor, dim: int) -> Tensor:
    """Rows of `sinusoids`, also between its positions: [positions] -> [positions, dim]."""
    angles = _angles(positions, dim)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def interleaved_sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Sinusoids as Vaswani et al. 2017, section 3.5, have them: a sine, its cosine, and the next rate.

    Args:
        positions: [...].
        dim: Width; even.

    Returns:
        [..., dim]; rates fall geometrically from 1 towards 1/10000 radians per position, which is not reached.
    """
    rates = torch.exp(-math.log(10000.0) / dim * torch.arange(0, dim, 2, device=positions.device))
    angles = positions[..., None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def shuffled_sinusoids(rows: int, dim: int) -> Tensor:
    """Sinusoids with random phases, whose columns are shuffled.

    The table is a random constant: it belongs into the state dict, because no other table fits the same weights.

    Args:
        rows: Number of positions.
        dim: Width; even.

    Returns:
        [rows, dim]; rates as in `sinusoids`.
    """
    angles = _angles(torch.arange(rows), dim)
    sine_phase, cosine_phase = 2 * math.pi * torch.rand(2, dim // 2)
    table = torch.cat([torch.sin(angles + sine_phase), torch.cos(angles + cosine_phase)], dim=1)
    return table[:, torch.randperm(dim)]


def _angles(positions: Tensor, dim: int) -> Tensor:
    """[positions] -> [positions, dim // 2] radians."""
    half = dim // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, device=positions.device) / (half - 1))
    return positions[:, None] * rates
