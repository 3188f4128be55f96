"""Samplers: from noise to data in a number of calls of a denoiser.

A denoiser maps (z, t) to its estimate of x0, guided and clipped as its owner likes. All state is float32: in bfloat16
the differences that the last steps add are below the resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from midisynth.diffusion.schedules import CosineSchedule

Solver = Literal["ddpm", "ddim", "dpm_solver"]

#: (z [batch, ...], t in [0, 1]) -> x0 [batch, ...].
Denoiser = Callable[[Tensor, float], Tensor]

#: Draw number -> standard normal numbers [batch, ...]: 0 is where sampling starts, k is for the k-th step.
NoiseSource = Callable[[int], Tensor]

#: The deterministic solvers start here, where the signal is 36 dB below the noise. Closer to t = 1 an estimate of the
#: noise says nothing about x0 = (z - sigma epsilon) / alpha: mere rounding, divided by alpha, would show.
LAST_TIME = 0.99


def sample(denoise: Denoiser, noise: NoiseSource, schedule: CosineSchedule, solver: Solver, steps: int) -> Tensor:
    """Draw one batch.

    Args:
        denoise: Called `steps` times.
        noise: Source of the only randomness; "ddim" and "dpm_solver" take draw 0 alone.
        schedule: The schedule that the denoiser was trained with.
        solver: "ddpm": ancestral sampling as published; "ddim": its deterministic limit (Song et al. 2021);
            "dpm_solver": DPM-Solver++ 2M (Lu et al. 2022).
        steps: Number of calls of the denoiser.

    Returns:
        x0 [batch, ...], the last answer of the denoiser.
    """
    if solver == "ddpm":
        return _ancestral(denoise, noise, schedule, steps)
    return _deterministic(denoise, noise(0).float(), schedule, _scheduler(solver, schedule, steps))


def _ancestral(denoise: Denoiser, noise: NoiseSource, schedule: CosineSchedule, steps: int) -> Tensor:
    """Ancestral sampling over t = 1 .. 0, both included, with the small variance c * sigma_s^2.

    The mean is written in x0: the published form in epsilon cancels close to t = 1 and loses 6e-3 in float32.
    """
    times = torch.linspace(1, 0, steps, dtype=torch.float64) if steps > 1 else torch.ones(1, dtype=torch.float64)
    log_snr, alpha, sigma = schedule.log_snr(times).tolist(), schedule.alpha(times).tolist(), schedule.sigma(times)
    z = noise(0).float()
    for i, t in enumerate(times.tolist()):
        x0 = denoise(z, t).float()
        if i + 1 == steps:
            break
        keep = math.exp(log_snr[i] - log_snr[i + 1])
        mean = keep * alpha[i + 1] / alpha[i] * z + (1 - keep) * alpha[i + 1] * x0
        z = mean + math.sqrt(1 - keep) * sigma[i + 1].item() * noise(i + 1).float()
    return x0


def _scheduler(solver: Solver, schedule: CosineSchedule, steps: int) -> Any:
    """diffusers' scheduler whose training times are the very times that are visited, so that no step is rounded."""
    alpha_squared = schedule.alpha(solver_times(steps)) ** 2
    betas = 1 - alpha_squared / torch.cat([torch.ones(1, dtype=torch.float64), alpha_squared[:-1]])
    options = {
        "num_train_timesteps": steps,
        "trained_betas": betas.tolist(),
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
    }
    # Importing diffusers takes seconds; only sampling pays for it.
    if solver == "ddim":
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        scheduler = DDIMScheduler(clip_sample=False, **options)
    else:
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        scheduler = DPMSolverMultistepScheduler(**options)
    scheduler.set_timesteps(steps)
    return scheduler


def solver_times(steps: int) -> Tensor:
    """Times that the deterministic solvers visit, ascending, [steps] float64."""
    return LAST_TIME * torch.arange(1, steps + 1, dtype=torch.float64) / steps


def _deterministic(denoise: Denoiser, z: Tensor, schedule: CosineSchedule, scheduler: Any) -> Tensor:
    times = solver_times(len(scheduler.timesteps))
    for step in scheduler.timesteps:
        x0 = denoise(z, times[step].item()).float()
        z = scheduler.step(x0, step, z).prev_sample
    return z
