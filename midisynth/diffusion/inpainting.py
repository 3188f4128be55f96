"""Sampling of which a part is given: continuations, gaps, single bars that are done again.

RePaint (Lugmayr et al. 2022, arXiv 2201.09865) needs no training: before every step the known region is overwritten
with alpha x0 + sigma epsilon, and the denoiser makes the rest fit. Here the known region is put into the denoiser's
answers instead, which is the same: every solver steps from z to s by mixing z and its estimate of x0, and with the true
x0 there the known region is alpha x0 + sigma epsilon at all times, of one epsilon under the deterministic solvers, of
its successive draws under ancestral sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from midisynth.diffusion.schedules import CosineSchedule


@dataclass(frozen=True)
class Known:
    """What is known of the data before sampling.

    Attributes:
        x0: [batch, ...] data, of any value where it is unknown.
        mask: Bool, True where `x0` is known; broadcasts against `x0`.
        repeats: How often each step is made. After all but the last time noise takes the sample back to where the
            step began, so that what was generated learns of what is known (RePaint, section 4.2, jumps of one step).
    """

    x0: Tensor
    mask: Tensor
    repeats: int = 1

    def fill(self, x0: Tensor) -> Tensor:
        """Put what is known into an estimate of the data."""
        return torch.where(self.mask, self.x0.to(x0), x0)

    def guard(self, denoise: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
        """A denoiser that knows what is known."""
        return lambda z, t: self.fill(denoise(z, t))


def noise_again(z: Tensor, s: float, t: float, schedule: CosineSchedule, noise: Tensor) -> Tensor:
    """Take a sample at time s back to a later time t (RePaint, equation 1): q(z_t | z_s).

    Args:
        z: [batch, ...] at time s.
        s: Where it is.
        t: Where it goes; s < t.
        schedule: Noise schedule.
        noise: Standard normal, in the shape of `z`.
    """
    times = torch.tensor([s, t], dtype=torch.float64)
    (alpha_s, alpha_t), (sigma_s, sigma_t) = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    scale = alpha_t / alpha_s
    return scale * z + math.sqrt(sigma_t**2 - (scale * sigma_s) ** 2) * noise
