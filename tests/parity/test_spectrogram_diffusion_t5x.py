"""The official weights: network, loss and samplers against tensors of the official code and of diffusers' pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixture_files import Fixture, assert_close, build, rendered
from torch import Tensor

from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion
from midisynth.models.spectrogram_diffusion.checkpoint import gather
from midisynth.models.spectrogram_diffusion.t5_checkpoint import names, official_options, official_sources
from midisynth.module import Published
from midisynth.nn.conditioning import time_signal


@pytest.fixture(scope="module")
def fixture(parity_root) -> Fixture:
    return Fixture(parity_root("spectrogram_diffusion"), "hf_diffusers")


@pytest.fixture(scope="module")
def official(parity_root) -> Fixture:
    return Fixture(parity_root("spectrogram_diffusion"), "official_t5x")


@pytest.fixture(scope="module")
def model(fixture) -> SpectrogramDiffusion:
    options = official_options(fixture.weights, "fixture", fixture.config["notes_encoder"]["d_kv"])
    state = gather(official_sources(options), fixture.weights, "fixture")
    return build(SpectrogramDiffusion, Published(options, state))


@pytest.fixture(scope="module")
def context(fixture) -> Tensor:
    return fixture["fwd.context"].expand(len(fixture["fwd.tokens"]), -1, -1)


@pytest.fixture(scope="module")
def call(model, fixture, context):
    """The denoiser on the rows of the fixture, with the given context mask and arguments of `condition`."""

    def call(mask: Tensor, context: Tensor = context, **options: Any) -> Tensor:
        tokens, z = fixture["fwd.tokens"].long(), fixture["fwd.z"]
        conditioning = model.network.condition(
            z.shape[1], tokens, tokens > 0, context=context, context_mask=mask, **options
        )
        return model.network(z, fixture["fwd.t"], conditioning)

    return call


def test_sizes_come_from_the_tensors(model, fixture):
    config, options = fixture.config, model.hparams
    notes = config["notes_encoder"]
    assert (options.dim, options.hidden_dim, options.layers) == (notes["d_model"], notes["d_ff"], notes["num_layers"])
    assert (options.heads, options.head_dim) == (notes["num_heads"], notes["d_kv"])
    assert (options.max_tokens, model.codec.table_rows) == (notes["max_length"], notes["vocab_size"])
    assert (options.mels, options.segment_frames) == tuple(
        config["decoder"][k] for k in ("input_dims", "targets_length")
    )


def test_names_of_t5x(model, official):
    expected = official.config["parameter_names_and_shapes"]
    table = {name.t5x.replace(".", "/"): name for name in names(model.hparams.layers, context=True)}
    assert set(table) == set(expected)


@torch.no_grad()
def test_encoders(model, fixture):
    tolerance = fixture.tolerance("fwd")
    network, t = model.network, fixture["fwd.t"]
    assert_close(time_signal(t, network.time.dim, interleaved=False), fixture["fwd.time_signal"], tolerance)
    assert_close(network.time(t).squeeze(1), fixture["fwd.cond"], tolerance)
    tokens = fixture["fwd.tokens"].long()
    real = tokens > 0
    assert_close(
        network.encode_tokens(tokens, real[:, None, None])[real], fixture["fwd.notes_encoded"][real], tolerance
    )
    assert_close(network.encode_context(fixture["fwd.context"], None), fixture["fwd.context_encoded"], tolerance)


@torch.no_grad()
def test_padding_may_be_trimmed(model, fixture):
    tokens = fixture["fwd.tokens"].long()
    for row, expected in zip(tokens, fixture["fwd.notes_encoded"], strict=True):
        length = int((row > 0).sum())
        assert_close(
            model.network.encode_tokens(row[None, :length], None)[0], expected[:length], fixture.tolerance("fwd")
        )


@torch.no_grad()
def test_outputs(model, fixture, context, call):
    tolerance = fixture.tolerance("fwd")
    known = torch.ones(context.shape[:2], dtype=torch.bool)
    assert_close(call(known), fixture["fwd.out_with_context"], tolerance)
    assert_close(call(~known), fixture["fwd.out_context_masked"], tolerance)
    dropped = torch.zeros(len(context), dtype=torch.bool)
    assert_close(call(known, keep=dropped), fixture["fwd.out_uncond"], tolerance)


@torch.no_grad()
def test_short_context(model, official, context, call):
    """The original has it at the start, and rolls positions so that its last frame has the last; ours is at the end."""
    mask = official["partial.mask"] > 0
    lengths = mask.sum(dim=1).tolist()

    def roll(x: Tensor, forward: int) -> Tensor:
        return torch.stack([row.roll(forward * length, 0) for row, length in zip(x, lengths, strict=True)])

    moved, moved_mask = roll(context, -1), roll(mask, -1)
    tolerance = official.tolerance("fwd")
    encoded = roll(model.network.encode_context(moved, moved_mask[:, None, None]), 1)
    assert_close(encoded[mask], official["partial.context_encoded"][mask], tolerance)
    assert_close(call(moved_mask, moved), official["partial.out"], tolerance)


# Training


def test_schedule(model, official):
    """The original works in float32, where the log-SNR is off by 1e-3 at t = 1."""
    assert_close(model.schedule.log_snr(official["schedule.t"]).float(), official["schedule.logsnr"], 2e-3)
    assert_close(model.schedule.log_snr(official["loss.t"]).float(), official["loss.logsnr"], 1e-4)


@torch.no_grad()
def test_loss(model, fixture, official, context):
    """The official loss is a sum, ours the mean: for Adafactor it is the same."""
    x0 = model.mel_range(official["loss.log_mel"])
    assert_close(x0, official["loss.x0"], official.tolerance("fwd"))
    rows = len(x0)
    batch = {
        "tokens": fixture["fwd.tokens"][:rows].long(),
        "context": context[:rows],
        "context_mask": torch.ones(rows, context.shape[1], dtype=torch.bool),
    }
    kept = official["loss.include_conditioning"] > 0
    loss = model.denoising_loss(x0, batch, official["loss.t"], official["loss.eps"], kept)
    relative = official.tolerance("loss.sum")
    assert loss.item() == pytest.approx(official["loss.mean"].item(), rel=relative)
    assert loss.item() * x0.numel() == pytest.approx(official["loss.sum"].item(), rel=relative)


# Sampling


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddpm_large", {"solver": "ddpm", "variance": None}),  # as published
        ("ddpm_small", {"solver": "ddpm", "variance": 0.0}),
        ("ddim", {"solver": "ddim", "variance": None}),
    ],
)
def test_official_samplers(model, fixture, official, monkeypatch, name, options):
    steps, guidance = official.config["sampler_steps"], official.config["guidance_weight"]
    options = {"sample_steps": steps, "guidance_scale": guidance, "grid": None, **options}
    mel = rendered(model, fixture["tokens"].long(), official["sample.noise"], monkeypatch, **options)
    assert_close(mel, official[f"sample.{name}.log_mel"], official.tolerance("sample"))


def test_diffusers_pipeline(model, fixture, monkeypatch):
    steps = fixture.config["scheduler"]["num_inference_steps"]
    options = {"solver": "ddpm", "sample_steps": steps, "guidance_scale": 1.0, "grid": "leading", "variance": 1.0}
    mel = rendered(model, fixture["tokens"].long(), fixture["sample.noise"], monkeypatch, **options)
    assert_close(mel, fixture["sample.log_mel"], fixture.tolerance("sample.log_mel"))
