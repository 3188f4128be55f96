"""Noise schedules: how much signal is left at a diffusion time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Schedule(ABC):
    """z_t = alpha(t) x0 + sigma(t) epsilon, alpha^2 + sigma^2 = 1, log_snr = ln(alpha^2 / sigma^2).

    Attributes:
        steps: Number of steps of a discrete schedule, of which step i is at the time i / steps; None: it is continuous.
    """

    steps: int | None = None

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

    Step i of them is at the time i / steps; times in between belong to the nearest, and those after the last to it.

    Attributes:
        steps: Number of steps.
        limit: Most noise that a step adds.
    """

    steps: int = 1000
    limit: float = 0.999

    def betas(self) -> Tensor:
        """Variance of the noise that every step adds, [steps] float32, in which precision networks were trained."""
        at = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        signal = torch.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - signal[1:] / signal[:-1]).clamp(max=self.limit).float()

    def log_snr(self, t: Tensor) -> Tensor:
        """[...] in [0, 1] -> the same shape, float64."""
        # Rounded as in training: what float32 makes of the last step's signal differs by 1e-5 of it.
        kept = (1 - self.betas()).cumprod(0)
        # Of many steps with much noise nothing is left in float32; a finite log-SNR keeps ancestral sampling defined.
        table = torch.logit(kept.clamp(min=torch.finfo(torch.float32).tiny).double()).to(t.device)
        return table[torch.round(t.double() * self.steps).long().clamp(max=self.steps - 1)]


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """Variance of the noise that a step adds, rising linearly (Ho et al. 2020, section 4).

    Step i of them is at the time i / steps; the log-SNR of times in between is interpolated, and after the last step
    there is no more noise.

    Attributes:
        steps: Number of steps.
        beta_start: Variance that the first step adds.
        beta_end: Variance that the last step adds.
    """

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def betas(self) -> Tensor:
        """Variance that every step adds, [steps] float32."""
        return torch.linspace(self.beta_start, self.beta_end, self.steps)

    def log_snr(self, t: Tensor) -> Tensor:
        """[...] in [0, 1] -> the same shape, float64."""
        # Rounded as in training: what float32 makes of the first steps' noise differs by some 1e-4 of it.
        kept = (1 - self.betas()).cumprod(0)
        # Of many steps with much noise nothing is left in float32; a finite log-SNR keeps ancestral sampling defined.
        table = torch.logit(kept.clamp(min=torch.finfo(torch.float32).tiny).double()).to(t.device)
        at = (t.double() * self.steps).clamp(max=self.steps - 1)
        low = at.long()
        return torch.lerp(table[low], table[(low + 1).clamp(max=self.steps - 1)], at - low)
