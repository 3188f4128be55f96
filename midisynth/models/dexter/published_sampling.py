"""The published samplers, step by step, with their mistakes; `midisynth.diffusion.sampling` is the right way.

Nothing but "cfdg_ddpm" runs in the published program; the others are in its source and are called there with the wrong
number of arguments. Runs start one step late, at T - 2, although their start is pure noise. The null condition is 0,
which the networks were never trained on: a condition made with `null=0.0` reproduces it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from midisynth.diffusion.guidance import guide
from midisynth.diffusion.schedules import LinearSchedule

#: Networks predict the noise, or the data where the name ends in x0. Those that begin with cfdg are guided: their
#: condition has unconditional rows.
Sampler = Literal[
    "cfdg_ddpm", "ddpm", "ddim", "ddim2ddpm", "ddpm_x0", "ddim_x0", "cfdg_ddpm_x0", "cfdg_ddim_x0"
]  # fmt: skip

#: (x [batch, notes, 5], step [1]) -> what the network says: [batch, notes, 5], guided samplers [2 * batch, notes, 5],
#: conditional rows first.
Predict = Callable[[Tensor, Tensor], Tensor]

#: Step -> standard normal numbers in the shape of the sample, which are added when that step is left.
StepNoise = Callable[[int], Tensor]


class PublishedDiffusion:
    """Constants of the published diffusion, in the precision in which the networks were trained with them.

    Args:
        schedule: Steps and their variances.

    Attributes:
        betas: [steps] variance that each step adds.
        alphas: 1 - betas.
        signal: Square root of the share of the data after each step.
        noise: Square root of the share of the noise.
        posterior_variance: Of a step back.
    """

    def __init__(self, schedule: LinearSchedule):
        self.betas = schedule.betas()
        self.alphas = 1 - self.betas
        kept = self.alphas.cumprod(0)
        self.signal = kept.sqrt()
        self.noise = (1 - kept).sqrt()
        self.posterior_variance = self.betas * (1 - F.pad(kept[:-1], (1, 0), value=1.0)) / (1 - kept)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.betas)

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What is left of `x0` [batch, notes, 5] at the steps `t` [batch], with `noise` in its shape."""
        signal, scale = (values.to(x0)[t][:, None, None] for values in (self.signal, self.noise))
        return signal * x0 + scale * noise

    def transfer_start(self, source: Tensor, fraction: float, noise: Tensor) -> tuple[Tensor, int]:
        """Where transfer without training for it starts: another performance, partly noised.

        Args:
            source: [batch, notes, 5] normalised parameters of a performance of the same notes. The published program
                takes those in physical units.
            fraction: Share of the steps that it is noised by, up to 1.
            noise: Standard normal, in its shape.

        Returns:
            The start, and the number of steps from there.
        """
        steps = int((self.steps - 1) * fraction)
        return self.add_noise(source, torch.full((len(source),), steps, device=source.device), noise), steps

    @torch.no_grad()
    def trajectory(
        self,
        predict: Predict,
        start: Tensor,
        noise: StepNoise,
        sampler: Sampler = "cfdg_ddpm",
        guidance: float = 1.2,
        steps: int | None = None,
        transfer: bool = False,
    ) -> Iterator[Tensor]:
        """Sample.

        Args:
            predict: The network with its condition: `lambda x, t: network.denoise(x, t, conditioned)`.
            start: [batch, notes, 5]: noise, or the source of a transfer.
            noise: Source of randomness.
            sampler: One of the published ones.
            guidance: Weight of the condition.
            steps: Number of steps, down to step 0; None: all but one, as published.
            transfer: Add no noise, as in transfer of networks that were trained for it.

        Yields:
            [batch, notes, 5] after every step.
        """
        x = start
        for t in reversed(range(self.steps - 1 if steps is None else steps)):
            output = predict(x, torch.full((1,), t, device=x.device))
            if sampler == "cfdg_ddim_x0":
                output = guide(output, 1 + guidance)
            elif sampler.startswith("cfdg"):
                output = guide(output, guidance)
            if sampler in ("ddpm", "cfdg_ddpm"):
                x = self._ddpm(x, output, t, None if transfer or t == 0 else noise(t))
            else:
                x = self._ddim(x, output, t, sampler, noise)
            yield x

    def _ddpm(self, x: Tensor, epsilon: Tensor, t: int, noise: Tensor | None) -> Tensor:
        """Ho et al. 2020, algorithm 2."""
        mean = (x - self.betas[t].item() * epsilon / self.noise[t].item()) / self.alphas[t].sqrt().item()
        return mean if noise is None else mean + self.posterior_variance[t].sqrt().item() * noise

    def _ddim(self, x: Tensor, output: Tensor, t: int, sampler: Sampler, noise: StepNoise) -> Tensor:
        """Song et al. 2021, equation 12, but where the published program is wrong."""
        signal, scale = self.signal[t].item(), self.noise[t].item()
        if sampler.endswith("x0"):
            # At the last step the published samplers divide once more than they should.
            x0, last = output, output / signal
            rest = x - signal * x0
            epsilon = rest * scale if sampler == "cfdg_ddpm_x0" else rest / scale
        else:
            x0 = last = (x - scale * output) / signal
            epsilon = output
        if t == 0:
            return last
        before = self.signal[t - 1].item()
        stochastic = sampler in ("ddim2ddpm", "ddpm_x0", "cfdg_ddpm_x0")
        deviation = (self.noise[t - 1] / self.noise[t] * self.betas[t].sqrt()).item() if stochastic else 0.0
        direction = (1 - before**2 - deviation**2) ** 0.5
        x = before * x0 + direction * epsilon
        return x + deviation * noise(t) if stochastic else x


def cut_windows(piece: Tensor, length: int, overlap: int) -> Tensor:
    """Published windows of a piece: evenly spaced, and filled up with zeros at the end.

    Args:
        piece: [notes, features].
        length: Notes in a window.
        overlap: Notes that neighbours share.

    Returns:
        [windows, length, features].
    """
    hop = length - overlap
    windows = max(1, -(-(len(piece) - overlap) // hop))
    padded = F.pad(piece, (0, 0, 0, (windows - 1) * hop + length - len(piece)))
    return padded.unfold(0, length, hop).transpose(1, 2)


def stitch_windows(windows: Tensor, notes: int, overlap: int) -> Tensor:
    """Mean of what windows that were sampled apart say of each note.

    Args:
        windows: [windows, length, features], of `cut_windows`.
        notes: Of the piece.
        overlap: Notes that neighbours share; less than half of the length.

    Returns:
        [notes, features].
    """
    count, length, features = windows.shape
    hop = length - overlap
    piece = windows.new_zeros((count - 1) * hop + length, features)
    for first, window in zip(range(0, count * hop, hop), windows, strict=True):
        piece[first : first + length] += window
        if first:
            piece[first : first + overlap] /= 2
    return piece[:notes]
