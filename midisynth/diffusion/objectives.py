"""What a denoiser predicts: the noise, the data, or the velocity between them (Salimans and Ho 2022, section 4)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Objective = Literal["epsilon", "x0", "v"]


def add_noise(x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """z = alpha x0 + sigma epsilon; `alpha` and `sigma` broadcast against the data."""
    return alpha * x0 + sigma * epsilon


def target(objective: Objective, x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the network ought to return, in the shape of `x0`."""
    if objective == "epsilon":
        return epsilon
    if objective == "x0":
        return x0
    return alpha * epsilon - sigma * x0


def to_x0(objective: Objective, output: Tensor, z: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """The data that the network's `output` at `z` stands for."""
    if objective == "epsilon":
        return (z - sigma * output) / alpha
    if objective == "x0":
        return output
    return alpha * z - sigma * output
