"""Position tables."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def shuffled_sinusoids(rows: int, dim: int) -> Tensor:
    """Sinusoids with random phases, whose columns are shuffled.

    The table is a random constant: it belongs into the state dict, because no other table fits the same weights.

    Args:
        rows: Number of positions.
        dim: Width; even.

    Returns:
        [rows, dim]; rates fall geometrically from 1 to 1/10000 radians per position.
    """
    half = dim // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half) / (half - 1))
    angles = torch.arange(rows)[:, None] * rates
    sine_phase, cosine_phase = 2 * math.pi * torch.rand(2, half)
    table = torch.cat([torch.sin(angles + sine_phase), torch.cos(angles + cosine_phase)], dim=1)
    return table[:, torch.randperm(dim)]
