"""Samplers: from noise to data in a number of calls of a denoiser.

A denoiser maps (z, t) to its estimate of x0, guided and clipped as its owner likes. All state is float32: in bfloat16
the differences that the last steps add are below the resolution.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from midisynth.diffusion.inpainting import Known, noise_again
from midisynth.diffusion.schedules import Schedule
from midisynth.errors import UsageError

Solver = Literal["ddpm", "ddim", "dpm_solver"]

#: Times that a sampler visits. "closed": ancestral sampling from t = 1 to t = 0, both included, deterministic solvers
#: from `LAST_TIME`; "intervals": the upper ends of equal intervals from 1 to 0, but "dpm_solver" as before; "leading":
#: every so many of 1,000 steps from the first one on, as diffusers' schedulers do, for ancestral sampling alone;
#: "quadratic": as "closed", with times that fall to 0 quadratically, which leaves more of them where there is little
#: noise; "steps": as "closed", at the nearest steps of a schedule that has steps, for networks that know no time in
#: between.
Grid = Literal["closed", "intervals", "leading", "quadratic", "steps"]

#: (z [batch, ...], t in [0, 1]) -> x0 [batch, ...].
Denoiser = Callable[[Tensor, float], Tensor]

#: Draw number -> standard normal numbers [batch, ...]: 0 is where sampling starts, the others follow in their order,
#: one for each step of ancestral sampling and one for each time that a step is repeated.
NoiseSource = Callable[[int], Tensor]

#: The deterministic solvers start here, where the signal is 36 dB below the noise. Closer to t = 1 an estimate of the
#: noise says nothing about x0 = (z - sigma epsilon) / alpha: mere rounding, divided by alpha, would show.
LAST_TIME = 0.99

#: Or here, if a schedule has less signal left by then: 61 dB below the noise. Schedulers compute in 32 bits.
LEAST_LOG_SNR = -14.0


def sample(
    denoise: Denoiser,
    noise: NoiseSource,
    schedule: Schedule,
    solver: Solver,
    steps: int,
    known: Known | None = None,
    grid: Grid = "closed",
    variance: float = 0.0,
    start: float = 1.0,
) -> Tensor:
    """Draw one batch.

    Args:
        denoise: Called `steps` times, or as often as `known` repeats them.
        noise: Source of the only randomness; "ddim" and "dpm_solver" take draw 0 alone unless steps are repeated.
        schedule: The schedule that the denoiser was trained with.
        solver: "ddpm": ancestral sampling as published; "ddim": its deterministic limit (Song et al. 2021);
            "dpm_solver": DPM-Solver++ 2M (Lu et al. 2022).
        steps: Number of steps.
        known: Part of the data that is given; None: nothing is.
        grid: Times that are visited.
        variance: Of the noise that ancestral sampling adds: 0 is the least that it can be, (1 - e^(l_t - l_s))
            sigma_s^2 with the log-SNR l, 1 the most, with sigma_t; in between the exponent of a geometric mean.
        start: Share of the schedule that is gone through, up to 1: sampling starts at this share of the first time,
            where draw 0 of `noise` has to be the data with their noise, see `start_time`.

    Returns:
        x0 [batch, ...], the last answer of the denoiser, with what is known in its place.

    Raises:
        UsageError: Steps are to be repeated, and the solver cannot; or the schedule has too few steps.
    """
    repeats = 1 if known is None else known.repeats
    if solver == "dpm_solver" and repeats > 1:
        raise UsageError("solver dpm_solver builds on its last step and cannot repeat one: take ddim or ddpm")
    denoise = denoise if known is None else known.guard(denoise)
    # Numbers the draws after the first in the order of their use.
    draws = map(noise, itertools.count(1))
    times = _visited(schedule, solver, steps, grid, start)
    if solver == "ddpm":
        return _ancestral(denoise, noise(0).float(), draws, schedule, times, variance, repeats)
    return _deterministic(denoise, noise(0).float(), draws, schedule, solver, times.flip(0), repeats)


def _visited(schedule: Schedule | None, solver: Solver, steps: int, grid: Grid, start: float) -> Tensor:
    """Times that `sample` visits with these arguments, descending, [steps] float64."""
    if solver == "ddpm":
        times = start * ancestral_times(grid, steps)
    else:
        # DPM-Solver++ counts in log-SNR, which has no use for t = 1.
        last = 1.0 if grid == "intervals" and solver == "ddim" else _last_time(schedule)
        times = start * solver_times(steps, last, 2.0 if grid == "quadratic" else 1.0).flip(0)
    return on_steps(times, schedule) if grid == "steps" else times


def _last_time(schedule: Schedule | None) -> float:
    """`LAST_TIME`, or the time before it at which a schedule reaches `LEAST_LOG_SNR`."""
    times = torch.linspace(0, LAST_TIME, 991, dtype=torch.float64)
    if schedule is None or schedule.log_snr(times[-1]) >= LEAST_LOG_SNR:
        return LAST_TIME
    return float(times[schedule.log_snr(times) >= LEAST_LOG_SNR][-1])


def on_steps(times: Tensor, schedule: Schedule | None) -> Tensor:
    """Times moved to the steps of a schedule, 0 to the first and 1 to the last of them.

    Args:
        times: [steps] in [0, 1], all different.
        schedule: The schedule.

    Raises:
        UsageError: It has no steps, or too few for all to be different still.
    """
    if schedule is None or schedule.steps is None:
        raise UsageError("grid steps needs a schedule that has steps")
    indices = (times * (schedule.steps - 1)).round()
    if len(indices.unique()) < len(indices):
        raise UsageError(f"{len(times)} steps: the schedule has {schedule.steps}, of which this part is shorter")
    return indices / schedule.steps


def content_generators(rows: Tensor) -> list[torch.Generator]:
    """One CPU generator for each row of [batch, ...], seeded from what is in it.

    So validation and test draw the same numbers for an item in every epoch and on whichever process it is.
    """
    digests = [hashlib.sha256(row.float().numpy().tobytes()).digest() for row in rows.detach().cpu()]
    return [torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")) for digest in digests]


def start_time(
    solver: Solver, steps: int, grid: Grid = "closed", start: float = 1.0, schedule: Schedule | None = None
) -> float:
    """The first time that `sample` visits with these arguments.

    The schedule matters for the grid "steps", and for deterministic solvers if it has next to no signal at its end.
    """
    return float(_visited(schedule, solver, steps, grid, start)[0])


def ancestral_times(grid: Grid, steps: int) -> Tensor:
    """Times that ancestral sampling visits, descending, [steps] float64."""
    if grid == "leading":
        return torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (1000 // steps) / 1000
    if grid in ("closed", "steps") and steps > 1:
        return torch.linspace(1, 0, steps, dtype=torch.float64)
    if grid == "quadratic" and steps > 1:
        return torch.linspace(1, 0, steps, dtype=torch.float64) ** 2
    return torch.arange(steps, 0, -1, dtype=torch.float64) / steps


def _ancestral(
    denoise: Denoiser,
    z: Tensor,
    draws: Iterator[Tensor],
    schedule: Schedule,
    times: Tensor,
    variance: float,
    repeats: int,
) -> Tensor:
    """Ancestral sampling; from the last of the times the answer is x0 itself.

    The mean is written in x0: the published form in epsilon cancels close to t = 1 and loses 6e-3 in float32.
    """
    log_snr, alpha, sigma = (
        schedule.log_snr(times).tolist(),
        schedule.alpha(times).tolist(),
        schedule.sigma(times).tolist(),
    )
    times = times.tolist()
    for i in range(len(times) - 1):
        for repeat in range(repeats):
            if repeat:
                z = noise_again(z, times[i + 1], times[i], schedule, next(draws).float())
            x0 = denoise(z, times[i]).float()
            keep = math.exp(log_snr[i] - log_snr[i + 1])
            mean = keep * alpha[i + 1] / alpha[i] * z + (1 - keep) * alpha[i + 1] * x0
            deviation = math.sqrt(1 - keep) * sigma[i + 1] ** (1 - variance) * sigma[i] ** variance
            z = mean + deviation * next(draws).float()
    return denoise(z, times[-1]).float()


def _scheduler(solver: Solver, schedule: Schedule, times: Tensor) -> Any:
    """diffusers' scheduler whose training times are the very times that are visited, so that no step is rounded."""
    steps = len(times)
    alpha_squared = schedule.alpha(times) ** 2
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
        if times[-1] == 1:
            # Made from betas of 32 bits, what is left of the signal at t = 1 would be nothing at all.
            scheduler.alphas_cumprod = alpha_squared
    else:
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        scheduler = DPMSolverMultistepScheduler(**options)
    scheduler.set_timesteps(steps)
    return scheduler


def solver_times(steps: int, last: float = LAST_TIME, power: float = 1.0) -> Tensor:
    """Times that the deterministic solvers visit, ascending to the last, [steps] float64.

    Args:
        steps: Number of times.
        last: The highest.
        power: Of the step number that times are proportional to.
    """
    return last * (torch.arange(1, steps + 1, dtype=torch.float64) / steps) ** power


def _deterministic(
    denoise: Denoiser,
    z: Tensor,
    draws: Iterator[Tensor],
    schedule: Schedule,
    solver: Solver,
    ascending: Tensor,
    repeats: int,
) -> Tensor:
    scheduler = _scheduler(solver, schedule, ascending)
    times = ascending.flip(0).tolist()
    for i, step in enumerate(scheduler.timesteps):
        # The last step ends on x0 itself: from there is no way back.
        for repeat in range(repeats if i + 1 < len(times) else 1):
            if repeat:
                z = noise_again(z, times[i + 1], times[i], schedule, next(draws).float())
            z = scheduler.step(denoise(z, times[i]).float(), step, z).prev_sample
    return z
