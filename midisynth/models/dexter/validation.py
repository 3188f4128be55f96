"""What validation makes of a batch of windows: the loss at fixed noise, and how a sample follows the performance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from midisynth.diffusion.sampling import NoiseSource, content_generators, sample
from midisynth.metrics.expression import correlation, tempo_curve, velocity_curve
from midisynth.models.dexter.expression import VELOCITY

if TYPE_CHECKING:
    from midisynth.models.dexter.model import DExter

#: Logged under `val/`; the last one is the mean of the other two.
CORRELATIONS = ("tempo_correlation", "velocity_correlation", "correlation")


class CurveCorrelations(nn.ModuleDict):
    """Means of the correlations over windows, by name; windows with nothing to follow do not count."""

    def __init__(self) -> None:
        super().__init__({name: MeanMetric(nan_strategy="ignore") for name in CORRELATIONS})

    def compare(self, model: DExter, batch: Mapping[str, Tensor], sampled: Tensor) -> None:
        """Compare the matched notes of sampled windows with those of the performances.

        Args:
            model: For its scales and codec.
            batch: From `DExterData`.
            sampled: [batch, notes, 5] z-scores.
        """
        values = model.denormalised(sampled, batch["level"]).cpu().numpy()
        human, onset, matched = (batch[name].cpu().numpy() for name in ("values", "onset", "matched"))
        for row, rows in enumerate(matched):
            if not rows.any():
                continue
            beats, both = onset[row, rows], (values[row, rows], human[row, rows])
            tempi = [tempo_curve(beats, model.codec.expression.beat_periods(one))[1] for one in both]
            velocities = [velocity_curve(beats, one[:, VELOCITY])[1] for one in both]
            scores = {"tempo_correlation": correlation(*tempi), "velocity_correlation": correlation(*velocities)}
            for name, score in scores.items():
                self[name].update(score)
                self["correlation"].update(score)


def fixed_noise(model: DExter, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Steps [batch] and noise [batch, notes, 5] that belong to the windows, whatever epoch or process it is."""
    values = batch["values"]
    generators = content_generators(values)
    steps = torch.cat([torch.randint(model.hparams.diffusion_steps, (1,), generator=g) for g in generators])
    return steps.float().to(model.device), noise_of(values)(0)


def noise_of(values: Tensor) -> NoiseSource:
    """Successive draws in the shape of [batch, ...], each row from a generator that is seeded from what is in it."""
    generators = content_generators(values)
    return lambda _: torch.stack([torch.randn(values.shape[1:], generator=g) for g in generators]).to(values.device)


@torch.no_grad()
def sample_windows(
    model: DExter, batch: Mapping[str, Tensor], midlevel: Tensor | None, start: Tensor | None = None
) -> Tensor:
    """Sample windows by themselves: z-scores [batch, notes, 5].

    Args:
        model: With its network.
        batch: From `DExterData`.
        midlevel: [batch, notes, 7] z-scores.
        start: [batch, notes, 5] z-scores of the performances to start from; None starts from noise.
    """
    options = model.hparams
    guided = options.guidance != 1
    conditioned = model.network.condition(batch["score"], midlevel, batch["mask"], unconditional=guided)
    noise = noise_of(batch["values"])

    def draw(number: int) -> Tensor:
        drawn = noise(number)
        if number > 0:
            return drawn
        return options.temperature * drawn if start is None else start

    return sample(
        lambda z, t: model.estimate(z, t, conditioned),
        draw,
        model.schedule,
        options.solver,
        options.sample_steps,
        grid=model.grid,
    )
