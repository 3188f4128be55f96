"""Training losses (Zhang et al. 2024): what the network predicts, and what that makes of each performance parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from midisynth.diffusion.objectives import Objective, target, to_x0

Norm = Literal["l1", "l2", "huber"]

#: What the published training minimises: "epsilon": the error of the noise; "x_0": of the data, which the network
#: predicts; "ex_0": of the data that follow from the noise, which it predicts.
PublishedMode = Literal["epsilon", "x_0", "ex_0"]

#: Published names of the channels' losses.
RECONSTRUCTIONS = ("recon_tempo", "recon_velocity", "recon_timing", "recon_duration", "recon_pedal")

_ERRORS = {"l1": F.l1_loss, "l2": F.mse_loss, "huber": F.smooth_l1_loss}


def denoising_losses(
    objective: Objective,
    output: Tensor,
    x0: Tensor,
    epsilon: Tensor,
    z: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    mask: Tensor | None = None,
    norm: Norm = "l1",
    channel_weights: Sequence[float] = (1.0,) * 5,
    recon_weight: float = 0.2,
) -> dict[str, Tensor]:
    """Error of the prediction, plus `recon_weight` times the weighted mean of the channels' squared errors.

    The estimate of x0 that follows from the noise has its error over alpha, which is up to 160 for the published
    schedule: there the squared error counts times alpha^2, which leaves that of the noise times sigma^2.

    Args:
        objective: What the network predicts.
        output: [batch, notes, 5] of the network.
        x0: [batch, notes, 5] normalised performance parameters.
        epsilon: Noise that was added, in the shape of `x0`.
        z: Their sum, of which `output` was made.
        alpha: [batch, 1, 1] scale of the signal.
        sigma: [batch, 1, 1] scale of the noise.
        mask: [batch, notes] or [batch, notes, 5] bool, True where the loss counts; None: everywhere.
        norm: Of the error of the prediction.
        channel_weights: Share of each channel in the reconstruction.
        recon_weight: Of the reconstruction; 0: none.

    Returns:
        Scalars: "diffusion", each of `RECONSTRUCTIONS` as it counts, and "total", their sum.
    """
    estimate = to_x0(objective, output, z, alpha, sigma)
    weight = alpha**2 if objective == "epsilon" else torch.ones_like(alpha)
    diffusion = _mean(_ERRORS[norm](output, target(objective, x0, epsilon, alpha, sigma), reduction="none"), mask)
    return _summed(diffusion, weight * (estimate - x0) ** 2, mask, channel_weights, recon_weight)


def published_losses(
    mode: PublishedMode,
    output: Tensor,
    x0: Tensor,
    epsilon: Tensor,
    z: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    norm: Norm = "l1",
    channel_weights: Sequence[float] = (1.0,) * 5,
    recon_weight: float = 0.2,
) -> dict[str, Tensor]:
    """The published losses, padding included; arguments as in `denoising_losses`."""
    estimate = output if mode == "x_0" else published_x0(z, output, alpha, sigma)
    predicted, wanted = (output, epsilon) if mode == "epsilon" else (estimate, x0)
    diffusion = _ERRORS[norm](predicted, wanted)
    return _summed(diffusion, (estimate - x0) ** 2, None, channel_weights, recon_weight)


def published_x0(z: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The published estimate of the data: a wrong formula, and cut off at one standard deviation."""
    return (z / alpha - epsilon / sigma).clamp(-1, 1)


def swap_pairs(values: Tensor) -> Tensor:
    """Partners in a batch of interleaved pairs, for transfer in training: rows 1, 0, 3, 2, ... of an even number."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _summed(
    diffusion: Tensor,
    squared_errors: Tensor,
    mask: Tensor | None,
    channel_weights: Sequence[float],
    recon_weight: float,
) -> dict[str, Tensor]:
    losses = {"diffusion": diffusion}
    for channel, name in enumerate(RECONSTRUCTIONS):
        share = recon_weight * channel_weights[channel] / sum(channel_weights)
        own = None if mask is None else mask if mask.ndim == 2 else mask[..., channel]
        losses[name] = share * _mean(squared_errors[..., channel], own)
    return losses | {"total": total(losses)}


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """Sum of all losses."""
    return torch.stack(list(losses.values())).sum()


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of [batch, notes] or [batch, notes, channels] where the mask of [batch, notes, ...] says so."""
    if mask is None:
        return values.mean()
    counted = (mask[..., None] if mask.ndim < values.ndim else mask).expand_as(values)
    return (values * counted).sum() / counted.sum()
