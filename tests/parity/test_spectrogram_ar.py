"""The autoregressive model of the PyTorch re-implementation against its tensors, through the importer."""

from __future__ import annotations

import pytest
import torch
from fixture_files import Fixture, assert_close, build
from torch import Tensor

from midisynth.models.spectrogram_diffusion import SpectrogramAutoregressive
from midisynth.models.spectrogram_diffusion.checkpoint import convert


@pytest.fixture(scope="module")
def fixture(parity_root) -> Fixture:
    return Fixture(parity_root("spectrogram_diffusion"), "seed_ar")


@pytest.fixture(scope="module")
def shared(parity_root) -> Fixture:
    return Fixture(parity_root("spectrogram_diffusion"), "seed_diff_context")


@pytest.fixture(scope="module")
def model(fixture) -> SpectrogramAutoregressive:
    head_dim = fixture.config["head_dim"]
    published = convert(SpectrogramAutoregressive, fixture.weights, "fixture", autoregressive=True, head_dim=head_dim)
    return build(SpectrogramAutoregressive, published)


@torch.no_grad()
def test_frames_follow_from_the_true_ones(model, fixture, shared):
    tokens, network = shared["tokens_padded"].long(), model.network
    assert_close(network.encode_tokens(tokens, None), fixture["fwd.encoder_memory"], fixture.tolerance("fwd"))
    memory, _ = model.condition(tokens)
    assert_close(network(fixture["past_spec"], memory), fixture["fwd.out"], fixture.tolerance("fwd"))


@torch.no_grad()
def test_loss(model, fixture, shared):
    audio = shared["wav_int16"].float() / 32768
    loud = fixture["spec"] > fixture["spec"].min() + 0.05  # the floor is rounding alone
    assert (model.scaled_mel(audio) - fixture["spec"]).abs()[loud].max() < 1e-3
    loss = model.loss({"audio": audio, "tokens": shared["tokens_padded"].long()})
    assert loss.item() == pytest.approx(fixture["train.loss"].item(), rel=1e-5)


@torch.no_grad()
def test_generation(model, fixture):
    frames = fixture.config["ar_steps"]
    memory, mask = model.condition(fixture["infer.tokens"].long(), sampling=True)

    def generate(dither: Tensor | None = None, causal: bool = True) -> Tensor:
        return model.network.generate(memory, mask, frames, dither, causal)

    tolerance = fixture.tolerance("infer.causal")
    assert_close(generate(), fixture["infer.causal"], tolerance)
    assert_close(model.mel_range.inverse(generate()), fixture["infer.causal_log_mel"], 10 * tolerance)  # wider range
    tolerance = fixture.tolerance("infer.original_noncausal")
    assert_close(generate(causal=False), fixture["infer.original_noncausal"], tolerance)
    dithered = [name for name in fixture.tensors if name.startswith("infer.noncausal_dither_")]
    assert dithered
    for name in dithered:
        dither = float(name.rpartition("_")[2]) * fixture["infer.dither_noise"]
        assert_close(generate(dither, causal=False), fixture[name], tolerance)
