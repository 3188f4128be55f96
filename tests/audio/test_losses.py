"""Spectral losses: their values, what they hear, and that nothing makes them or their gradients infinite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from midisynth.audio.losses import MelLoss, MultiResolutionStftLoss
from midisynth.metrics.functional import log_spectral_distance, spectral_convergence

RATE = 16000


def tone(hertz: float, level: float = 0.5, samples: int = 8192) -> Tensor:
    # Ends that click would sound in every bin.
    return (level * torch.hann_window(samples) * torch.sin(2 * math.pi * hertz / RATE * torch.arange(samples)))[None]


def losses() -> list[nn.Module]:
    return [MultiResolutionStftLoss((256, 1024)), MelLoss(RATE, (512, 1024), (20, 80))]


def test_the_terms_are_those_of_the_metrics():
    torch.manual_seed(0)
    audio, reference = torch.randn(2, 1, 9000) * 0.1
    sizes = (256, 1024)
    logs = log_spectral_distance(audio, reference, sizes)
    ratios = torch.stack([spectral_convergence(audio, reference, size) for size in sizes]).mean()
    assert MultiResolutionStftLoss(sizes)(audio, reference).item() == pytest.approx((logs + ratios).item(), rel=1e-5)
    weighted = MultiResolutionStftLoss(sizes, log_weight=0.5, convergence_weight=3.0)(audio, reference)
    assert weighted.item() == pytest.approx((0.5 * logs + 3 * ratios).item(), rel=1e-5)


@pytest.mark.parametrize("fft_sizes", [(256,), (1024,), (64, 2048)])
def test_the_level_of_a_tone_in_nats(fft_sizes: tuple[int, ...]):
    """Half the level is ln 2 in every bin that is above the floor; white noise is, everywhere."""
    torch.manual_seed(0)
    noise = torch.randn(2, 16384) * 0.3
    assert MultiResolutionStftLoss(fft_sizes)(noise / 2, noise).item() == pytest.approx(math.log(2) + 0.5, rel=1e-3)
    mels = [max(2, size // 16) for size in fft_sizes]
    assert MelLoss(RATE, fft_sizes, mels)(noise / 2, noise).item() == pytest.approx(math.log(2), rel=0.03)


@pytest.mark.parametrize("loss", losses(), ids=lambda loss: type(loss).__name__)
def test_what_is_nearer_costs_less(loss: nn.Module):
    reference = tone(440)
    assert loss(reference, reference) == 0
    order = [loss(other, reference) for other in (tone(441), tone(470), tone(880), torch.zeros_like(reference))]
    assert 0 < order[0] < order[1] < order[2]
    assert loss(-reference, reference) < 1e-6


@pytest.mark.parametrize("loss", losses(), ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("level", [0.0, 1e-30, 1e-6, 1.0, 1e4])
def test_silence_and_noise_have_finite_gradients(loss: nn.Module, level: float):
    torch.manual_seed(0)
    for wanted in (0.0, 1e-6, 1.0):
        audio = (level * torch.randn(2, 5000)).requires_grad_()
        value = loss(audio, wanted * torch.randn(2, 5000))
        value.backward()
        assert value.isfinite()
        assert audio.grad.isfinite().all()


@pytest.mark.parametrize("loss", losses(), ids=lambda loss: type(loss).__name__)
def test_below_the_floor_all_is_silent(loss: nn.Module):
    quiet = 1e-7 * torch.randn(1, 5000)
    # Silence is the reference: nothing is heard in either, but the ratio has the floor in its divisor.
    assert loss(quiet, torch.zeros_like(quiet)) < 0.01


@pytest.mark.parametrize("loss", losses(), ids=lambda loss: type(loss).__name__)
def test_channels_are_more_of_the_batch(loss: nn.Module):
    torch.manual_seed(0)
    audio, reference = torch.randn(2, 3, 2, 5000)
    assert loss(audio, reference).item() == pytest.approx(loss(audio.flatten(0, 1), reference.flatten(0, 1)).item())


@pytest.mark.parametrize("loss", losses(), ids=lambda loss: type(loss).__name__)
def test_autocast_changes_nothing(loss: nn.Module):
    torch.manual_seed(0)
    audio, reference = torch.randn(2, 2, 5000)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(audio, reference)
        halved = loss(audio.bfloat16(), reference)
    assert inside.dtype == halved.dtype == torch.float32
    assert inside == loss(audio, reference)
    assert halved.item() == pytest.approx(inside.item(), rel=0.02)


@pytest.mark.parametrize("samples", [100, 4095])
def test_signals_shorter_than_the_window(samples: int):
    torch.manual_seed(0)
    for loss in (MultiResolutionStftLoss(), MelLoss(RATE, (4096,))):
        audio, reference = torch.randn(2, 1, samples)
        assert loss(audio, reference) > 0


def test_the_gradient_leads_to_the_reference():
    """Descent from noise finds the spectrum of a tone."""
    torch.manual_seed(0)
    reference = tone(440, samples=2048)
    audio = (0.01 * torch.randn_like(reference)).requires_grad_()
    loss = MultiResolutionStftLoss((256, 1024))
    first = loss(audio, reference).item()
    optimizer = torch.optim.Adam([audio], lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        loss(audio, reference).backward()
        optimizer.step()
    assert loss(audio, reference).item() < 0.8 * first
    peaks = [torch.fft.rfft(signal).abs().argmax() for signal in (audio.detach(), reference)]
    assert abs(peaks[0] - peaks[1]) <= 1


def test_mels_follow_the_sample_rate():
    """The same samples are other frequencies at another rate, and filters end where they are told to."""
    low, high = tone(440), tone(7000)
    assert MelLoss(RATE, f_max=4000.0)(low + high, low) < 0.2 * MelLoss(RATE)(low + high, low)
    assert MelLoss(2 * RATE).resolutions[0].filters.shape == MelLoss(RATE).resolutions[0].filters.shape
    assert MelLoss(2 * RATE)(low, high) != MelLoss(RATE)(low, high)


def test_a_wrong_number_of_mels_is_refused():
    with pytest.raises(ValueError, match="one for each"):
        MelLoss(RATE, (512, 1024), (80,))


def test_constants_stay_out_of_the_state():
    assert all(not loss.state_dict() and not list(loss.parameters()) for loss in losses())
