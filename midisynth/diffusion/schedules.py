"""Noise schedules: how much signal is left at a diffusion time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Schedule(ABC):
    """z_t = alpha(t) x0 + sigma(t) epsilon, alpha^2 + sigma^2 = 1, log_snr = ln(alpha^2 / sigma^2)."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """[...] in [0, 1] -> the same shape, float64."""

    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the signal, in the shape and the type of `t`."""
        return torch.sigmoid(self.log_snr(t)).sqrt().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """Scale of the noise, in the shape and the type of `t`."""
        return torch.sigmoid(-self.log_snr(t)).sqrt().to(t.dtype)


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Cosine schedule over the log signal-to-noise ratio (Salimans and Ho 2022, appendix B).

    Attributes:
        limit: log_snr runs from `limit` at t = 0 to `-limit` at t = 1.
    """

    limit: float = 20.0

    def log_snr(self, t: Tensor) -> Tensor:
        """[...] in [0, 1] -> the same shape, float64: close to t = 1 float32 is off by half a percent."""
        start = math.atan(math.exp(-self.limit / 2))
        span = math.atan(math.exp(self.limit / 2)) - start
        return -2 * torch.log(torch.tan(span * t.double() + start))


@dataclass(frozen=True)
class SquaredCosineSchedule(Schedule):
    """Discrete cosine schedule (Nichol and Dhariwal 2021, equation 17), as in diffusers ("squaredcos_cap_v2").

    Step i of them is at the time i / steps; times in between belong to the nearest.

    Attributes:
        steps: Number of steps.
        limit: Most noise that a step adds.
    """

    steps: int = 1000
    limit: float = 0.999

    def log_snr(self, t: Tensor) -> Tensor:
        """[...] in [0, 1) -> the same shape, float64."""
        at = torch.arange(self.steps + 1, dtype=torch.float64, device=t.device) / self.steps
        signal = torch.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2
        kept = (1 - (1 - signal[1:] / signal[:-1]).clamp(max=self.limit)).cumprod(0)
        return torch.logit(kept)[torch.round(t.double() * self.steps).long()]
