"""Inpainting against data for which the right answer is known: correlated Gaussians."""

import math

import pytest
import torch

from midisynth.diffusion.inpainting import Known, noise_again
from midisynth.diffusion.sampling import sample, solver_times
from midisynth.diffusion.schedules import CosineSchedule
from midisynth.errors import UsageError

SCHEDULE = CosineSchedule()
CORRELATION = 0.8
COVARIANCE = torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]], dtype=torch.float64)
MASK = torch.tensor([True, False])
KNOWN = torch.tensor([1.5, math.nan])


def coefficients(t: float) -> tuple[float, float]:
    time = torch.tensor(t, dtype=torch.float64)
    return SCHEDULE.alpha(time).item(), SCHEDULE.sigma(time).item()


def pair_denoiser(z: torch.Tensor, t: float) -> torch.Tensor:
    """E[x0 | z] for pairs [..., 2] from N(0, COVARIANCE)."""
    alpha, sigma = coefficients(t)
    gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(2).double())
    return (z.double() @ gain.T).to(z)


def draws(rows: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return lambda _: torch.randn(rows, 2, generator=generator)


@pytest.mark.parametrize(("solver", "repeats"), [("ddpm", 1), ("ddpm", 3), ("ddim", 1), ("ddim", 3), ("dpm_solver", 1)])
def test_what_is_known_comes_out_as_it_is(solver: str, repeats: int):
    known = Known(KNOWN.expand(4, 2), MASK, repeats)
    drawn = sample(pair_denoiser, draws(4), SCHEDULE, solver, 20, known)
    torch.testing.assert_close(drawn[:, 0], torch.full((4,), 1.5), rtol=0, atol=1e-5)
    assert drawn.isfinite().all()


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpm_solver"])
def test_the_known_region_is_the_known_data_with_noise_at_every_step(solver: str):
    """RePaint's overwriting, z = alpha x0 + sigma epsilon, with the one epsilon of a deterministic solver."""
    first = torch.randn(3, 2)
    seen = []

    def denoise(z: torch.Tensor, t: float) -> torch.Tensor:
        seen.append((t, z[:, 0]))
        return pair_denoiser(z, t)

    later = draws(3, seed=1)
    known = Known(KNOWN.expand(3, 2), MASK)
    sample(denoise, lambda n: later(n) if n else first, SCHEDULE, solver, 10, known)
    start, _ = seen[0]
    alpha, sigma = coefficients(start)
    epsilon = (first[:, 0] - alpha * 1.5) / sigma
    for t, z in seen if solver != "ddpm" else ():
        alpha, sigma = coefficients(t)
        torch.testing.assert_close(z, alpha * 1.5 + sigma * epsilon, rtol=0, atol=1e-4)
    if solver == "ddpm":
        alpha, _ = coefficients(seen[-1][0])
        torch.testing.assert_close(seen[-1][1], torch.full((3,), alpha * 1.5), rtol=0, atol=1e-3)


def test_repeated_steps_let_the_rest_follow_what_is_known():
    """The other value of a pair is N(correlation * known, 1 - correlation^2) given the first."""

    def moments(repeats: int) -> tuple[float, float]:
        known = Known(KNOWN.expand(4000, 2), MASK, repeats)
        other = sample(pair_denoiser, draws(4000), SCHEDULE, "ddpm", 40, known)[:, 1]
        return other.mean().item(), other.std().item()

    wanted = CORRELATION * 1.5
    assert abs(moments(1)[0] - wanted) > 3 * abs(moments(8)[0] - wanted)
    assert moments(8)[0] == pytest.approx(wanted, abs=0.06)
    assert moments(8)[1] == pytest.approx(math.sqrt(1 - CORRELATION**2), rel=0.15)  # the small variance of few steps


def test_noise_again_is_the_forward_process():
    s, t = 0.3, 0.6
    (alpha_s, sigma_s), (alpha_t, sigma_t) = coefficients(s), coefficients(t)
    x0 = torch.tensor(0.7)
    z_s = alpha_s * x0 + sigma_s * torch.randn(100_000)
    z_t = noise_again(z_s, s, t, SCHEDULE, torch.randn(100_000))
    assert z_t.mean().item() == pytest.approx(alpha_t * 0.7, abs=0.01)
    assert z_t.std().item() == pytest.approx(sigma_t, rel=0.01)


def test_nothing_known_is_plain_sampling():
    nothing = Known(torch.zeros(5, 2), torch.tensor(False))
    for solver in ("ddpm", "ddim", "dpm_solver"):
        plain, guarded = (sample(pair_denoiser, draws(5), SCHEDULE, solver, 6, known) for known in (None, nothing))
        torch.testing.assert_close(plain, guarded, rtol=0, atol=0)


def test_repeats_need_a_solver_without_memory():
    with pytest.raises(UsageError, match="dpm_solver"):
        sample(pair_denoiser, draws(1), SCHEDULE, "dpm_solver", 4, Known(torch.zeros(1, 2), MASK, 2))


@pytest.mark.parametrize(("solver", "calls"), [("ddim", 7), ("ddpm", 7)])
def test_repeats_cost_what_they_say(solver: str, calls: int):
    asked = []
    known = Known(torch.zeros(1, 2), MASK, 2)
    sample(lambda z, t: (asked.append(t), z)[1], draws(1), SCHEDULE, solver, 4, known)
    assert len(asked) == calls and sorted(asked, reverse=True) == asked
    assert solver != "ddim" or set(asked) == set(solver_times(4).tolist())
