"""Discriminators: what they can tell apart, shapes, and the losses of both sides against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from midisynth.nn.discriminators import (
    AudioDiscriminator,
    Judgement,
    MultiPeriodDiscriminator,
    MultiResolutionDiscriminator,
)


def periods() -> MultiPeriodDiscriminator:
    return MultiPeriodDiscriminator((2, 3, 5), (4, 8, 8))


def resolutions() -> MultiResolutionDiscriminator:
    return MultiResolutionDiscriminator((64, 256), (4, 4, 4, 4))


def test_published_sizes():
    """HiFi-GAN's has 41.1 million weights for five periods; weight normalisation adds one for every output."""
    whole = MultiPeriodDiscriminator()
    kernels = [5 * 1 * 32, 5 * 32 * 128, 5 * 128 * 512, 5 * 512 * 1024, 5 * 1024 * 1024, 3 * 1024]
    outputs = [32, 128, 512, 1024, 1024, 1]
    assert sum(p.numel() for p in whole.parameters()) == 5 * (sum(kernels) + 2 * sum(outputs))
    assert 41.0e6 < sum(p.numel() for p in whole.parameters()) < 41.2e6
    assert len(MultiResolutionDiscriminator().stacks) == 3


@pytest.mark.parametrize("make", [periods, resolutions])
@pytest.mark.parametrize("samples", [256, 1000, 1001])
def test_shapes(make, samples: int):
    network = make()
    judged = network(torch.randn(3, 1, samples))
    parts = len(network.stacks)
    layers = len(network.stacks[0].layers)
    assert len(judged.logits) == len(judged.features) == parts
    assert all(logits.shape[:2] == (3, 1) for logits in judged.logits)
    assert all(len(features) == layers for features in judged.features)
    if make is periods:
        assert [logits.shape[-1] for logits in judged.logits] == [2, 3, 5]
    else:
        frames = [samples // hop + 1 for hop in (16, 64)]
        assert [logits.shape[-1] for logits in judged.logits] == frames
        # Two layers of four halve the frequencies.
        assert [logits.shape[-2] for logits in judged.logits] == [math.ceil(33 / 4), math.ceil(129 / 4)]


@pytest.mark.parametrize("channels", [(4,), (4, 6), (4, 6, 8, 8)])
def test_any_number_of_layers(channels: tuple[int, ...]):
    for network in (MultiPeriodDiscriminator((2,), channels), MultiResolutionDiscriminator((64,), channels)):
        judged = network(torch.randn(1, 1, 500))
        assert [features.shape[1] for features in judged.features[0]] == list(channels)


def test_a_period_sees_only_its_own_columns():
    """With kernels of width 1 across the fold, sample i influences scores of column i mod p alone."""
    network = MultiPeriodDiscriminator((5,), (4, 4))
    audio = torch.randn(1, 1, 500, requires_grad=True)
    network(audio).logits[0][..., 2].sum().backward()
    touched = audio.grad[0, 0].nonzero()[:, 0] % 5
    assert touched.unique().tolist() == [2]


@pytest.mark.parametrize("make", [periods, resolutions])
def test_channels_are_judged_one_by_one(make):
    network = make()
    audio = torch.randn(2, 2, 600)
    stereo, mono = network(audio), network(audio.flatten(0, 1)[:, None])
    assert all(map(torch.equal, stereo.logits, mono.logits))


@pytest.mark.parametrize("make", [periods, resolutions])
def test_weights_are_normalised_and_survive_a_checkpoint(make, tmp_path):
    network, other = make(), make()
    assert all(nn.utils.parametrize.is_parametrized(m) for m in network.modules() if isinstance(m, nn.Conv2d))
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    audio = torch.randn(1, 1, 600)
    assert all(map(torch.equal, network(audio).logits, other(audio).logits))


@pytest.mark.parametrize("make", [periods, resolutions])
def test_autocast_and_silence(make):
    network = make()
    audio = torch.zeros(2, 1, 600, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        judged = network(audio)
    assert all(logits.dtype == torch.bfloat16 for logits in judged.logits)
    sum(logits.float().sum() for logits in judged.logits).backward()
    assert audio.grad.isfinite().all()


def constant(*values: float) -> Judgement:
    """Scores of two sub-discriminators, with two layers of features each."""
    logits = [torch.full((2, 1, 3, 4), value) for value in values]
    return Judgement(logits, [[torch.full((2, 5, 3), value), torch.full((2, 7), 2 * value)] for value in values])


def test_the_losses_of_least_squares():
    network = AudioDiscriminator([], "least_squares")
    real, fake = constant(0.5, 2.0), constant(0.25, -1.0)
    assert network.discriminator_loss(real, fake).item() == pytest.approx((0.25 + 1 + 0.0625 + 1) / 2)
    assert network.generator_loss(fake).item() == pytest.approx((0.75**2 + 4) / 2)


def test_the_losses_of_hinge():
    network = AudioDiscriminator([], "hinge")
    real, fake = constant(0.5, 2.0), constant(0.25, -2.0)
    assert network.discriminator_loss(real, fake).item() == pytest.approx((0.5 + 0 + 1.25 + 0) / 2)
    assert network.generator_loss(fake).item() == pytest.approx((-0.25 + 2.0) / 2)


def test_feature_matching_sums_layers_and_averages_discriminators():
    network = AudioDiscriminator([])
    loss = network.feature_loss(constant(0.5, 2.0), constant(0.25, -1.0))
    assert loss.item() == pytest.approx((0.25 + 0.5 + 3 + 6) / 2)


def test_feature_matching_pulls_the_generated_side_alone():
    network = AudioDiscriminator([periods(), resolutions()])
    reference, audio = (torch.randn(1, 1, 600, requires_grad=True) for _ in range(2))
    network.feature_loss(network(reference), network(audio)).backward()
    assert reference.grad is None
    assert audio.grad.abs().max() > 0


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="choose"):
        AudioDiscriminator([], "wasserstein")


def test_all_parts_have_a_say():
    network = AudioDiscriminator([periods(), resolutions()])
    judged = network(torch.randn(1, 1, 600))
    assert len(judged.logits) == len(judged.features) == 5


def click(batch: int) -> Tensor:
    """One sample in eight, at random phase."""
    audio = torch.zeros(batch, 1, 256)
    for one in audio:
        one[:, int(torch.randint(8, ())) :: 8] = 1.0
    return audio


def tone(batch: int) -> Tensor:
    phase = 2 * math.pi * torch.rand(batch, 1, 1)
    return torch.sin(2 * math.pi * 0.11 * torch.arange(256) + phase)


def noise(batch: int) -> Tensor:
    return torch.randn(batch, 1, 256)


@pytest.mark.parametrize("objective", ["least_squares", "hinge"])
@pytest.mark.parametrize("make", [lambda: MultiPeriodDiscriminator((2, 3), (8, 8)), lambda: resolutions()])
@pytest.mark.parametrize("real", [click, tone])
def test_it_learns_to_tell_sounds_from_noise_of_equal_power(objective, make, real):
    torch.manual_seed(0)
    network = AudioDiscriminator([make()], objective)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)

    def scores(audio: Tensor) -> Tensor:
        return torch.stack([logits.mean(dim=(1, 2, 3)) for logits in network(audio).logits]).mean(dim=0)

    def fake() -> Tensor:
        return noise(8) * real(8).std()

    for _ in range(40):
        optimizer.zero_grad()
        network.discriminator_loss(network(real(8)), network(fake())).backward()
        optimizer.step()
    with torch.no_grad():
        assert scores(real(8)).min() > scores(fake()).max()
