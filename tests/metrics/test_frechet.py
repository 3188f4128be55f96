"""Fréchet distances against closed forms and torchmetrics, what they refuse, and sums over processes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from midisynth.metrics.frechet import (
    Extrapolation,
    FrechetAudioDistance,
    Gaussian,
    frechet_distance,
    frechet_infinity,
)

DIM, CLIPS, FRAMES = 6, 40, 25


def clips(count=CLIPS, dim=DIM, seed=0):
    """Recordings and renderings [clips, frames, dim]: renderings have another mean, and noise besides."""
    random = torch.Generator().manual_seed(seed)
    # Frames of a clip resemble each other.
    real = torch.randn(count, 1, dim, generator=random) + torch.randn(count, FRAMES, dim, generator=random)
    return real, real + 0.2 + 0.5 * torch.randn(count, FRAMES, dim, generator=random)


def filled(real, fake, **options):
    metric = FrechetAudioDistance(real.shape[-1], **options)
    metric.update(real, real=True, clips=range(len(real)))
    metric.update(fake, real=False, clips=range(len(real)))
    return metric


def rotation(dim):
    return torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0]


def test_closed_form_of_gaussians_with_common_axes():
    """sum (m1 - m2)^2 + (s1 - s2)^2 over the axes; one of them has no spread at all."""
    axes = rotation(4)
    first, second = torch.tensor([1.0, 2.0, 0.5, 0.0]).double(), torch.tensor([2.0, 2.0, 0.1, 3.0]).double()
    means = torch.randn(2, 4, dtype=torch.float64)
    sides = [Gaussian(m, axes @ s.square().diag() @ axes.T) for m, s in zip(means, (first, second), strict=True)]
    wanted = (means[0] - means[1]).square().sum() + (first - second).square().sum()
    assert float(frechet_distance(*sides)) == pytest.approx(float(wanted), abs=1e-6)
    assert float(frechet_distance(*sides[::-1])) == pytest.approx(float(wanted), abs=1e-6)
    assert float(frechet_distance(sides[0], sides[0])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("frames", [30, 400])
def test_equals_the_fid_of_torchmetrics(frames):
    """With full rank and without: 30 frames of 40 dimensions."""
    real, fake = torch.randn(frames, 40, dtype=torch.float64), 3 + 2 * torch.randn(frames, 40, dtype=torch.float64)
    features = torch.nn.Identity()
    features.num_features = 40
    theirs = FrechetInceptionDistance(features)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = filled(real[None], fake[None], min_frames=2)
    assert float(ours.compute()["fad"]) == pytest.approx(float(theirs.compute()), rel=1e-5)
    assert float(frechet_distance(Gaussian.of(real), Gaussian.of(fake))) == pytest.approx(
        float(ours.compute()["fad"]), rel=1e-9
    )


def test_conventions():
    rows = torch.randn(10, 3)
    sample, population = Gaussian.of(rows), Gaussian.of(rows, "population")
    torch.testing.assert_close(sample.covariance, torch.cov(rows.double().T))
    torch.testing.assert_close(population.covariance * 10 / 9, sample.covariance)


def test_numbers_far_from_zero_keep_their_digits():
    rows = torch.randn(200, 3, dtype=torch.float64)
    torch.testing.assert_close(Gaussian.of(rows + 1e8).covariance, torch.cov(rows.T), rtol=1e-6, atol=1e-6)


def test_extrapolation_and_interval():
    """Both sides are the same distribution, and clips differ: the distance is all bias, its limit is 0."""
    real, fake = clips(dim=20, seed=1)[0], clips(dim=20, seed=2)[0]
    values = {name: float(value) for name, value in filled(real, fake).compute().items()}
    assert values["frames"] == CLIPS * FRAMES
    assert abs(values["fad_inf"]) < values["fad"] / 4
    assert values["fad_low"] < values["fad_inf"] < values["fad_high"] < values["fad"]


def test_the_limit_of_a_known_distance():
    real, fake = clips(count=160)
    values = filled(real, fake).compute()
    # Covariances are 2 and 2.25 times the identity.
    wanted = DIM * (0.2**2 + (2**0.5 - 2.25**0.5) ** 2)
    assert values["fad_low"] < wanted < values["fad_high"]
    assert float(values["fad_inf"]) == pytest.approx(wanted, rel=0.1)


def test_a_line_over_one_over_n():
    found = Extrapolation.through([(10, 3 + 5 / 10), (20, 3 + 5 / 20), (50, 3 + 5 / 50)])
    assert (found.infinity, found.slope, found.r2) == pytest.approx((3, 5, 1))
    random, same = np.random.RandomState(4), np.random.RandomState(4)
    rows, reference = torch.randn(300, 3), torch.randn(200, 3)
    found = [
        frechet_infinity(rows, reference, steps=5, min_frames=50, random=state).infinity for state in (random, same)
    ]
    assert found[0] == found[1]


def test_too_few_frames():
    real, fake = clips(count=1)
    metric = filled(real[:, : 2 * DIM - 1], fake[:, : 2 * DIM - 1])
    with pytest.warns(UserWarning, match="11 frames are too few .* of 6 dimensions, which needs 12"):
        values = metric.compute()
    assert float(values["frames"]) == 11
    assert all(math.isnan(value) for name, value in values.items() if name != "frames")


def test_few_clips_have_no_interval():
    values = filled(*clips(count=3)).compute()
    assert values["fad"].isfinite()
    assert all(values[name].isnan() for name in ("fad_inf", "fad_low", "fad_high"))


def test_wide_embeddings_have_fewer_groups():
    assert FrechetAudioDistance(64).groups == 32
    assert FrechetAudioDistance(2048).groups == 1


SHARES = {"uneven": (7, 4), "one has nothing": (9, 0)}


def _share(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name, counts in SHARES.items():
        real, fake = clips(count=sum(counts))
        metric = FrechetAudioDistance(DIM)
        for index in range(counts[0] * rank, counts[0] + counts[1] * rank):
            metric.update(real[index : index + 1], real=True, clips=[index])
            metric.update(fake[index : index + 1], real=False, clips=[index])
        found[name] = dict(metric.compute())
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(_share, args=(str(tmp_path),), nprocs=2)
    for name, counts in SHARES.items():
        alone = filled(*clips(count=sum(counts))).compute()
        for rank in range(2):
            together = torch.load(tmp_path / f"{rank}.pt")[name]
            assert together["fad"].isfinite() and together["fad_inf"].isfinite()
            torch.testing.assert_close(together, dict(alone), rtol=1e-9, atol=1e-9)
