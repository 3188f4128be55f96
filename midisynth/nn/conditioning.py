"""Ways to tell a network something: diffusion time, feature-wise modulation, dropped conditions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Diffusion time 0..1 is stretched to 0..TIME_SCALE, which is also the longest wavelength of its sinusoids.
TIME_SCALE = 20000.0


def time_signal(t: Tensor, dim: int, interleaved: bool = True) -> Tensor:
    """Sinusoids of diffusion time.

    Args:
        t: [batch] in [0, 1].
        dim: Width; even.
        interleaved: Order of the columns.

    Returns:
        [batch, dim] = cos(a_0), sin(a_0), cos(a_1), ... with a_j = 20000 t * 20000^(-j / (dim/2 - 1)) if interleaved,
        else all sines, then all cosines.
    """
    # Angles reach 20000, where rounding shows in the fourth decimal of a sine: these are the operations in float32 with
    # which the weights of each order are used elsewhere.
    index = torch.arange(dim // 2, device=t.device, dtype=t.dtype)
    if interleaved:
        angles = TIME_SCALE * t[:, None] * torch.exp(-math.log(TIME_SCALE) / (dim // 2 - 1) * index)
        return torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(-2)
    angles = TIME_SCALE * t[:, None] * torch.exp(-math.log(TIME_SCALE) * index / (dim // 2 - 1))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeEmbedding(nn.Module):
    """Diffusion time -> conditioning vector of width `4 * dim`.

    Args:
        dim: Width of the network that is conditioned.
        interleaved: Order of the sinusoids, as in `time_signal`.
        bias: Whether the layers have biases.
    """

    def __init__(self, dim: int, interleaved: bool = True, bias: bool = True):
        super().__init__()
        self.dim = dim
        self.interleaved = interleaved
        self.expand = nn.Linear(dim, 4 * dim, bias)
        self.mix = nn.Linear(4 * dim, 4 * dim, bias)

    def forward(self, t: Tensor) -> Tensor:
        """[batch] -> [batch, 1, 4 * dim]; the middle axis broadcasts over frames."""
        signal = time_signal(t, self.dim, self.interleaved).to(self.expand.weight.dtype)
        return F.silu(self.mix(F.silu(self.expand(signal)))).unsqueeze(1)


class FiLM(nn.Module):
    """Feature-wise linear modulation: (1 + gamma) * x + beta (Perez et al. 2018, section 3.1).

    Args:
        dim: Width of the features.
        condition_dim: Width of the conditioning vector.
        bias: Whether there is a gain and a shift of no condition.
    """

    def __init__(self, dim: int, condition_dim: int, bias: bool = True):
        super().__init__()
        self.linear = nn.Linear(condition_dim, 2 * dim, bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Modulate `x` [batch, frames, dim] by `condition` [batch or 1, 1, condition_dim]."""
        gamma, beta = self.linear(condition).chunk(2, dim=-1)
        return torch.addcmul(beta, 1 + gamma, x)


def draw_kept(batch: int, dropout: float, device: torch.device | str) -> Tensor:
    """Draw which rows of a batch keep their condition (Ho and Salimans 2022, algorithm 1), [batch] bool."""
    return torch.rand(batch, device=device) >= dropout
