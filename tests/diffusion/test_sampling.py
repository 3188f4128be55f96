"""Samplers against solutions in closed form: for Gaussian data the best denoiser and the whole flow are known."""

import math

import pytest
import torch

from midisynth.diffusion.guidance import guide
from midisynth.diffusion.objectives import add_noise, target, to_x0
from midisynth.diffusion.sampling import LAST_TIME, sample, solver_times
from midisynth.diffusion.schedules import CosineSchedule, LinearSchedule

SCHEDULE = CosineSchedule()
MEAN, DEVIATION = 0.4, 0.3


def coefficients(t: float) -> tuple[float, float]:
    time = torch.tensor(t, dtype=torch.float64)
    return SCHEDULE.alpha(time).item(), SCHEDULE.sigma(time).item()


def gaussian_denoiser(z: torch.Tensor, t: float) -> torch.Tensor:
    """E[x0 | z] for x0 ~ N(MEAN, DEVIATION^2)."""
    alpha, sigma = coefficients(t)
    variance = DEVIATION**2
    return (alpha * variance * z + sigma**2 * MEAN) / (alpha**2 * variance + sigma**2)


def flow(z: torch.Tensor) -> torch.Tensor:
    """Where the probability-flow ODE takes z from LAST_TIME to the data: the standardised value stays the same."""
    alpha, sigma = coefficients(LAST_TIME)
    return MEAN + DEVIATION * (z - alpha * MEAN) / math.hypot(alpha * DEVIATION, sigma)


def test_schedule():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert SCHEDULE.log_snr(t)[[0, -1]].tolist() == pytest.approx([20, -20])
    torch.testing.assert_close(SCHEDULE.alpha(t) ** 2 + SCHEDULE.sigma(t) ** 2, torch.ones_like(t))
    assert (SCHEDULE.alpha(t).diff() < 0).all()
    assert SCHEDULE.alpha(t.float()).dtype == torch.float32


@pytest.mark.parametrize("objective", ["epsilon", "x0", "v"])
def test_targets_give_the_data_back(objective):
    x0, epsilon = torch.randn(2, 4, 5, dtype=torch.float64)
    alpha, sigma = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    z = add_noise(x0, epsilon, alpha, sigma)
    torch.testing.assert_close(to_x0(objective, target(objective, x0, epsilon, alpha, sigma), z, alpha, sigma), x0)


def test_velocity_is_the_derivative_of_z():
    """v = dz/dphi for alpha = cos(phi), sigma = sin(phi)."""
    x0, epsilon = torch.tensor(0.7), torch.tensor(-1.2)
    phi = torch.tensor(0.9, requires_grad=True)
    add_noise(x0, epsilon, phi.cos(), phi.sin()).backward()
    torch.testing.assert_close(target("v", x0, epsilon, phi.detach().cos(), phi.detach().sin()), phi.grad)


def test_guidance():
    conditional, unconditional = torch.randn(2, 3, 4)
    both = torch.cat([conditional, unconditional])
    torch.testing.assert_close(guide(both, 1.0), conditional)
    torch.testing.assert_close(guide(both, 0.0), unconditional, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(guide(both, 2.0), 2 * conditional - unconditional)


def test_deterministic_solvers_converge_to_the_flow():
    z = torch.randn(64)

    def error(solver, steps: int) -> float:
        drawn = sample(gaussian_denoiser, lambda _: z, SCHEDULE, solver, steps)
        return (drawn - flow(z)).abs().max().item()

    assert error("ddim", 256) < error("ddim", 64) / 3 < 0.02
    assert error("dpm_solver", 256) < error("dpm_solver", 64) / 5 < 0.002
    assert error("dpm_solver", 16) < error("ddim", 16) / 2


def test_ddim_is_its_formula():
    """Song et al. 2021, equation 12 with eta = 0, on the same times, ending on the last x0."""
    z = noise = torch.randn(8, dtype=torch.float64)
    times = solver_times(7).flip(0).tolist()
    for i, t in enumerate(times):
        alpha, sigma = coefficients(t)
        x0 = gaussian_denoiser(z, t)
        if i + 1 < len(times):
            next_alpha, next_sigma = coefficients(times[i + 1])
            z = next_alpha * x0 + next_sigma * (z - alpha * x0) / sigma
    ours = sample(gaussian_denoiser, lambda _: noise, SCHEDULE, "ddim", 7)
    torch.testing.assert_close(ours.double(), x0, rtol=0, atol=1e-5)


def test_ancestral_sampling_draws_from_the_data():
    generator = torch.Generator().manual_seed(1)
    drawn = sample(gaussian_denoiser, lambda _: torch.randn(20000, generator=generator), SCHEDULE, "ddpm", 200)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert drawn.std().item() == pytest.approx(DEVIATION, rel=0.05)


def test_ancestral_sampling_is_its_formula_in_float64():
    """The published epsilon form, in float64, where it does not cancel."""
    noise = torch.randn(5, 16, dtype=torch.float64)
    times = torch.linspace(1, 0, 5, dtype=torch.float64)
    z = noise[0]
    for i, t in enumerate(times.tolist()):
        alpha, sigma = coefficients(t)
        x0 = gaussian_denoiser(z, t)
        if i == 4:
            break
        epsilon = (z - alpha * x0) / sigma
        next_alpha, next_sigma = coefficients(times[i + 1].item())
        c = -math.expm1((SCHEDULE.log_snr(times[i]) - SCHEDULE.log_snr(times[i + 1])).item())
        z = next_alpha / alpha * (z - c * sigma * epsilon) + math.sqrt(c) * next_sigma * noise[i + 1]
    ours = sample(gaussian_denoiser, lambda draw: noise[draw], SCHEDULE, "ddpm", 5)
    torch.testing.assert_close(ours.double(), x0, rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpm_solver"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_a_certain_denoiser_is_believed_and_asked_once_a_step(solver, steps):
    asked = []

    def denoise(z: torch.Tensor, t: float) -> torch.Tensor:
        assert z.dtype == torch.float32
        asked.append(t)
        return torch.full_like(z, 0.25)

    drawn = sample(denoise, lambda _: torch.randn(2, 3), SCHEDULE, solver, steps)
    torch.testing.assert_close(drawn, torch.full((2, 3), 0.25), rtol=0, atol=1e-5)
    assert len(asked) == steps and asked == sorted(asked, reverse=True)


# The linear schedule


LINEAR = LinearSchedule()


def linear_denoiser(z: torch.Tensor, t: float) -> torch.Tensor:
    """E[x0 | z] for x0 ~ N(MEAN, DEVIATION^2), as `gaussian_denoiser` on the linear schedule."""
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = LINEAR.alpha(time).item(), LINEAR.sigma(time).item()
    return (alpha * DEVIATION**2 * z + sigma**2 * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2)


def test_linear_schedule():
    steps = torch.arange(LINEAR.steps, dtype=torch.float64)
    kept = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    torch.testing.assert_close(LINEAR.alpha(steps / LINEAR.steps) ** 2, kept.double())
    log_snr = LINEAR.log_snr(torch.linspace(0, 0.999, 5000))
    assert log_snr.dtype == torch.float64
    assert (log_snr.diff() < 0).all()
    # After the last step nothing changes, and times are interpolated.
    assert LINEAR.log_snr(torch.tensor([0.9995, 1.0])).unique().numel() == 1
    low, mid, high = LINEAR.log_snr(torch.tensor([0.5, 0.50025, 0.501], dtype=torch.float64))
    assert mid == pytest.approx(low + (high - low) / 4)


@pytest.mark.parametrize(("solver", "steps"), [("dpm_solver", 25), ("ddim", 100), ("ddpm", 300)])
def test_linear_schedule_samples_the_data(solver, steps):
    """On a grid that is dense where the noise is little; evenly spread times lose up to a tenth of the deviation."""
    generator = torch.Generator().manual_seed(3)
    drawn = sample(
        linear_denoiser,
        lambda _: torch.randn(20000, generator=generator),
        LINEAR,
        solver,
        steps,
        grid="quadratic",
    )
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert drawn.std().item() == pytest.approx(DEVIATION, rel=0.03)


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpm_solver"])
def test_schedules_that_leave_nothing_of_the_signal(solver):
    """The published transfer has so much noise that float32 keeps no signal at all."""
    generator = torch.Generator().manual_seed(0)
    draws = lambda _: torch.randn(1, 50, 5, generator=generator)  # noqa: E731
    made = sample(lambda z, t: torch.full_like(z, 0.5), draws, LinearSchedule(beta_end=0.2), solver, 10)
    torch.testing.assert_close(made, torch.full_like(made, 0.5))
