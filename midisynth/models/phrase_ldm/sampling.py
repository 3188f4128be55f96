"""Diffusion of the latents of whole songs: loss, sampling, parts that are given.

Latents have two scales: that of the autoencoder, in which they are encoded and decoded, and that of the denoiser, in
which their standard deviation is 1. Everything here is of the denoiser's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from midisynth.diffusion.guidance import guide
from midisynth.diffusion.inpainting import Known
from midisynth.diffusion.objectives import Objective, add_noise, target, to_x0
from midisynth.diffusion.sampling import Denoiser, NoiseSource, Solver, sample, start_time
from midisynth.diffusion.schedules import SquaredCosineSchedule
from midisynth.models.phrase_ldm.ldm import Conditioning, PhraseDenoiser

#: Standard deviation of the published latents, and what 99.9 % of their components stay below.
PUBLISHED_SCALE = 0.7590118646621704
PUBLISHED_QUANTILE = 3.064450740814209


@dataclass(frozen=True)
class LatentDiffusion:
    """Between latents and noise.

    Attributes:
        steps: Of the noise schedule. The denoiser knows nothing between them.
        clip: Estimates of the latents are kept within this. The published model takes `PUBLISHED_QUANTILE`, which is
            of the autoencoder's scale; divided by `PUBLISHED_SCALE` it is 4.0374.
        objective: What the denoiser predicts; the published one, the noise.
    """

    steps: int = 1000
    clip: float = PUBLISHED_QUANTILE / PUBLISHED_SCALE
    objective: Objective = "epsilon"

    @property
    def schedule(self) -> SquaredCosineSchedule:
        """The noise schedule."""
        return SquaredCosineSchedule(self.steps)

    def noisy(self, x0: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        """Latents [batch, rows, latent] at steps `t` [batch] of the schedule, with the noise `epsilon`."""
        return add_noise(x0, epsilon, *self._levels(t))

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of signal and noise, [batch, 1, 1] float32. The least signal, 5e-5, is below half precision."""
        times = t.double() / self.steps
        alpha, sigma = self.schedule.alpha(times), self.schedule.sigma(times)
        return alpha.float()[:, None, None], sigma.float()[:, None, None]

    def loss(
        self, denoiser: PhraseDenoiser, x0: Tensor, conditioning: Conditioning, t: Tensor, epsilon: Tensor
    ) -> Tensor:
        """Mean square error of the prediction over all rows, those after the end of the song included.

        Args:
            denoiser: The network.
            x0: [batch, rows, latent].
            conditioning: From the denoiser.
            t: [batch] steps, integers from 0.
            epsilon: [batch, rows, latent] standard normal noise.
        """
        levels = self._levels(t)
        output = denoiser(add_noise(x0, epsilon, *levels), t, conditioning)
        return F.mse_loss(output, target(self.objective, x0, epsilon, *levels))

    def _denoiser(self, denoiser: PhraseDenoiser, conditioning: Conditioning, guidance_scale: float) -> Denoiser:
        """(latents, time) -> estimate of the latents without noise, guided and clipped."""
        guided = guidance_scale != 1

        def denoise(z: Tensor, time: float) -> Tensor:
            step = torch.tensor([round(time * self.steps)], device=z.device)
            output = denoiser(torch.cat([z, z]) if guided else z, step, conditioning)
            if guided:
                output = guide(output, guidance_scale)
            at = torch.tensor(time, dtype=torch.float64)
            levels = self.schedule.alpha(at).item(), self.schedule.sigma(at).item()
            return to_x0(self.objective, output, z, *levels).clamp(-self.clip, self.clip)

        return denoise

    @torch.no_grad()
    def sample(
        self,
        denoiser: PhraseDenoiser,
        conditioning: Conditioning,
        noise: NoiseSource,
        solver: Solver = "dpm_solver",
        steps: int = 30,
        guidance_scale: float = 1.0,
        known: Known | None = None,
        start: float = 1.0,
    ) -> Tensor:
        """Generate songs.

        Args:
            denoiser: In evaluation mode.
            conditioning: From the denoiser; with guidance it has the unconditional rows, too.
            noise: Source of noise [songs, rows, latent], see `midisynth.diffusion.sampling`.
            solver: How; "ddpm" with all steps does what `sample_published` does.
            steps: Calls of the denoiser.
            guidance_scale: Of the condition; 1 is none, and halves the cost.
            known: Latents that are given, such as those of a song that goes on, or of a melody.
            start: Share of the schedule that is gone through; less than 1 varies a song, see `start_from`.

        Returns:
            [songs, rows, latent].

        Raises:
            UsageError: The solver cannot repeat steps, or there are more steps than the schedule has.
        """
        denoise = self._denoiser(denoiser, conditioning, guidance_scale)
        return sample(denoise, noise, self.schedule, solver, steps, known, grid="steps", start=start)

    @torch.no_grad()
    def sample_published(self, denoiser: PhraseDenoiser, conditioning: Conditioning, noise: NoiseSource) -> Tensor:
        """Generate songs with every step of the schedule, in the arithmetic of the original; see `sample`."""
        denoise = self._denoiser(denoiser, conditioning, guidance_scale=1.0)
        z = noise(0)
        for draw, step in enumerate(range(self.steps - 1, 0, -1), 1):
            z = self.published_step(z, denoise(z, step / self.steps), step, noise(draw))
        return denoise(z, 0.0)

    def published_step(self, z: Tensor, x0: Tensor, step: int, noise: Tensor) -> Tensor:
        """From a step of the schedule to the one before, as diffusers' DDPMScheduler goes.

        Its coefficients are differences of float32 numbers close to 1. In the last steps they are off by some 1e-3,
        which more precise ones would not be.

        Args:
            z: Latents with the noise of `step`.
            x0: The estimate of the latents without noise.
            step: From 1 on.
            noise: Standard normal, in the shape of `z`.
        """
        kept = (1 - self.schedule.betas()).cumprod(0)
        here, before = kept[step], kept[step - 1]
        beta = 1 - here / before
        from_x0, from_z = before.sqrt() * beta / (1 - here), (here / before).sqrt() * (1 - before) / (1 - here)
        deviation = (beta * (1 - before) / (1 - here)).sqrt()
        return from_x0.item() * x0 + from_z.item() * z + deviation.item() * noise

    def start_from(
        self, x0: Tensor, epsilon: Tensor, solver: Solver = "dpm_solver", steps: int = 30, start: float = 1.0
    ) -> Tensor:
        """Draw 0 of the noise for `sample` with the same arguments, so that it varies songs `x0`.

        Args:
            x0: [songs, rows, latent].
            epsilon: [songs, rows, latent] standard normal noise.
            solver: As for `sample`, like the others.
            steps: Calls of the denoiser.
            start: Share of the schedule; the smaller, the closer to `x0`.
        """
        time = start_time(solver, steps, "steps", start, self.schedule)
        return self.noisy(x0, torch.tensor([round(time * self.steps)], device=x0.device), epsilon)
