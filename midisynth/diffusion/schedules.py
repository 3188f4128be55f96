"""Noise schedules: how much signal is left at a diffusion time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CosineSchedule:
    """Cosine schedule over the log signal-to-noise ratio (Salimans and Ho 2022, appendix B).

    z_t = alpha(t) x0 + sigma(t) epsilon, alpha^2 + sigma^2 = 1, log_snr = ln(alpha^2 / sigma^2).

    Attributes:
        limit: log_snr runs from `limit` at t = 0 to `-limit` at t = 1.
    """

    limit: float = 20.0

    def log_snr(self, t: Tensor) -> Tensor:
        """[...] in [0, 1] -> the same shape, float64: close to t = 1 float32 is off by half a percent."""
        start = math.atan(math.exp(-self.limit / 2))
        span = math.atan(math.exp(self.limit / 2)) - start
        return -2 * torch.log(torch.tan(span * t.double() + start))

    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the signal, in the shape and the type of `t`."""
        return torch.sigmoid(self.log_snr(t)).sqrt().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """Scale of the noise, in the shape and the type of `t`."""
        return torch.sigmoid(-self.log_snr(t)).sqrt().to(t.dtype)
