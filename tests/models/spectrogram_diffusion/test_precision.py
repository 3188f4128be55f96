"""Mixed precision at the published "small" size: what it may change, and what it must not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion

FRAMES = 64


@pytest.fixture(scope="module")
def small() -> SpectrogramDiffusion:
    torch.manual_seed(0)
    options = {
        "mel_min": -7.0,
        "note_roll": True,
        "template_prior": True,
        "objective": "x0",
        "dropout": 0.0,
        "sample_steps": 2,
    }
    return SpectrogramDiffusion(segment_frames=FRAMES, **options).eval()


@pytest.fixture(scope="module")
def batch(small) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    notes = torch.rand(1, 12, 4, generator=generator) * torch.tensor([1.2, 0.5, 87.0, 1.0])
    notes[..., 1] += notes[..., 0]
    return {
        "tokens": torch.randint(1, small.codec.table_rows, (1, 40), generator=generator),
        "notes": notes,
        "audio": 0.1 * torch.randn(1, small.codec.segment_samples, generator=generator),
    }


def autocast(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


@torch.no_grad()
def test_the_network_in_bfloat16_is_close(small, batch):
    z, t = torch.randn(1, FRAMES, 128), torch.tensor([0.6])
    outputs = []
    for mixed in (False, True):
        with autocast(mixed):
            outputs.append(small.network(z, t, small.condition(batch, FRAMES)).float())
    error = (outputs[1] - outputs[0]).square().mean().sqrt() / outputs[0].std()
    assert 0 < error < 0.02


@torch.no_grad()
def test_the_loss_in_bfloat16_is_close(small, batch):
    t, epsilon = torch.tensor([0.4]), torch.randn(1, FRAMES, 128)
    losses = []
    for mixed in (False, True):
        with autocast(mixed):
            losses.append(small.loss(batch, t, epsilon).item())
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


@torch.no_grad()
def test_spectrogram_and_sampler_stay_in_32_bits(small, batch):
    wanted = small.scaled_mel(batch["audio"])
    with autocast(True):
        torch.testing.assert_close(small.scaled_mel(batch["audio"]), wanted, rtol=0, atol=0)
        mels = small.sample_segments(batch, small.noise_source([torch.Generator().manual_seed(0)]))
    assert mels.dtype == torch.float32 and mels.isfinite().all()
