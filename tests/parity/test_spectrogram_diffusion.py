"""The PyTorch re-implementation: tokens, network, loss and sampler against its tensors, through the importer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fixture_files import Fixture, assert_close, build, rendered
from torch import Tensor

from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion
from midisynth.models.spectrogram_diffusion.checkpoint import convert, published_name
from midisynth.models.spectrogram_diffusion.codec import SpectrogramDiffusionCodec
from midisynth.music.notes import DRUM_CHANNEL, NOTE_DTYPE
from midisynth.nn.conditioning import time_signal


@pytest.fixture(scope="module")
def root(parity_root) -> Path:
    return parity_root("spectrogram_diffusion")


# Tokens


def published_codec(vocab_size: int, segment_sec: float) -> SpectrogramDiffusionCodec:
    codec = SpectrogramDiffusionCodec(
        sample_rate=16000,
        hop_length=320,
        win_length=640,
        segment_frames=round(segment_sec * 50),
        overlap_frames=0,
        margin_frames=0,
        tail_sec=0.0,
        tokens=True,
        tables=False,
        velocity_bins=1,
        shift_ids=None,
        max_tokens=3000,
        framing="centered",
        note_seq=True,
    )
    assert len(codec.vocabulary) == vocab_size
    return codec


@pytest.fixture(scope="module")
def codec(root) -> SpectrogramDiffusionCodec:
    text = json.loads((root / "tokens.manifest.json").read_text())["config"]["seed_codec"]
    vocab_size, segment_sec = re.search(r"vocabulary (\d+).*segment ([\d.]+) s", text).groups()
    return published_codec(int(vocab_size), float(segment_sec))


def note_array(rows: list[tuple[float, float, int, int, int]]) -> np.ndarray:
    """Rows of start (s), end (s), pitch, program, is_drum."""
    notes = np.zeros(len(rows), NOTE_DTYPE)
    if rows:
        start, end, pitch, program, drum = np.array(rows, dtype=object).T
        notes["onset_sec"], notes["duration_sec"] = start, end - start
        notes["pitch"], notes["program"], notes["velocity"] = pitch, program, 100
        notes["channel"] = np.where(drum.astype(bool), DRUM_CHANNEL, 0)
    return notes


def token_files(root: Path) -> list[Path]:
    files = json.loads((root / "tokens.manifest.json").read_text())["files"]
    return [root / name for name in files if name.startswith("tokens_")]


def test_hand_made_cases_give_the_same_tokens(root, codec):
    cases = json.loads((root / "token_cases.json").read_text())
    for name, case in cases.items():
        assert codec.tokenize(note_array(case["notes"])) == case["seed_tokens"], name


def test_notes_give_the_same_tokens(root, codec):
    for path in token_files(root):
        case = json.loads(path.read_text())
        columns = [case["note_columns"].index(name) for name in ("start_s", "end_s", "pitch", "program", "is_drum")]
        rows = [tuple(row[column] for column in columns) for row in case["notes_after_sustain"]]
        assert codec.tokenize(note_array(rows)) == case["seed_tokens"], path.name


def test_files_give_the_same_tokens(root, codec):
    for path in token_files(root):
        midi = path.with_name(path.stem.removeprefix("tokens_") + ".mid")
        case = json.loads(path.read_text())
        assert codec.tokenize(codec.read(midi).notes) == case["seed_tokens"], midi.name
        segments = codec.encode(midi)["segments"]
        for segment, expected in zip(segments, case["seed_tokens"], strict=False):
            assert segment["tokens"].tolist() == expected


# Official tokens


def official_codec(programs: str) -> SpectrogramDiffusionCodec:
    model = SpectrogramDiffusion(compat="t5x", programs=programs, faulty_ties=True, dim=8, layers=1, overlap_frames=0)
    return model.codec


def test_hand_made_cases_give_the_same_official_tokens(root):
    codec = official_codec("full")
    cases = json.loads((root / "token_cases.json").read_text())
    for name, case in cases.items():
        assert codec.tokenize(note_array(case["notes"]), case["audio_end"]) == case["official_tokens"], name


def test_files_give_the_same_official_tokens(root):
    for path in token_files(root):
        midi = path.with_name(path.stem.removeprefix("tokens_") + ".mid")
        case = json.loads(path.read_text())
        end_sec = case["total_time_after_sustain"]
        for programs, key in (("slakh", "diffusers_tokens"), ("full", "official_tokens_without_slakh_mapping")):
            codec = official_codec(programs)
            assert codec.tokenize(codec.read(midi).notes, end_sec) == case[key], midi.name


# Network


@pytest.fixture(scope="module")
def shared(root) -> Fixture:
    """Inputs that both fixtures use are stored once."""
    return Fixture(root, "seed_diff_context")


@pytest.fixture(scope="module", params=["seed_diff_nocontext", "seed_diff_context"])
def fixture(request, root) -> Fixture:
    return Fixture(root, request.param)


@pytest.fixture(scope="module")
def model(fixture) -> SpectrogramDiffusion:
    published = convert(SpectrogramDiffusion, fixture.weights, "fixture", head_dim=fixture.config["head_dim"])
    return build(SpectrogramDiffusion, published)


@pytest.fixture(scope="module")
def tokens(shared) -> Tensor:
    return shared["tokens_padded"].long()


@pytest.fixture(scope="module")
def batch(shared, tokens) -> dict[str, Tensor]:
    """Three consecutive segments, each with the one before; before the first is silence."""
    audio = shared["wav_int16"].float() / 32768
    before = torch.cat([torch.zeros_like(audio[:1]), audio[:-1]])
    samples = torch.full((len(audio),), audio.shape[1])
    return {"audio": audio, "tokens": tokens, "context_audio": before, "context_samples": samples}


@pytest.fixture(scope="module")
def context(fixture, shared) -> dict[str, Tensor]:
    return {"context": shared["fwd.context"]} if fixture.config["with_context"] else {}


def test_sizes_come_from_the_tensors(model, fixture):
    config, options = fixture.config, model.hparams
    assert len(model.codec.vocabulary) == config["num_emb"]
    assert options.mels == config["output_dim"]
    assert options.max_tokens == config["max_input_length"]
    assert len(model.network.frame_positions) == config["max_output_length"]
    assert (options.dim, options.hidden_dim) == (config["emb_dim"], config["dim_feedforward"])
    assert (options.heads, options.layers) == (config["nhead"], config["num_layers"])
    assert options.context == config["with_context"]


@torch.no_grad()
def test_layers(model, fixture, tokens, context):
    tolerance = fixture.tolerance("network forward")
    network, t = model.network, fixture["fwd.t"]
    assert_close(time_signal(t, network.time.dim), fixture["fwd.time_signal"], tolerance)
    assert_close(network.time(t).squeeze(1), fixture["fwd.cond"], tolerance)
    assert_close(network.encode_tokens(tokens, None), fixture["fwd.encoder_memory"], tolerance)
    if context:
        assert_close(network.encode_context(context["context"], None), fixture["fwd.context_memory"], tolerance)
    conditioning = network.condition(fixture["fwd.z"].shape[1], tokens, **context)
    states = network.decode_frames(fixture["fwd.z"], t, conditioning)
    assert_close(states, fixture["fwd.decoder_normed"], tolerance)


@torch.no_grad()
def test_outputs(model, fixture, tokens, context):
    tolerance = fixture.tolerance("network forward")
    z, t, frames = fixture["fwd.z"], fixture["fwd.t"], fixture["fwd.z"].shape[1]
    network = model.network
    assert_close(network(z, t, network.condition(frames, tokens, **context)), fixture["fwd.out"], tolerance)
    kept = ~fixture["fwd.dropout_mask"]
    dropped = network(z, t, network.condition(frames, tokens, keep=kept, **context))
    assert_close(dropped, fixture["fwd.out_dropout_mask"], tolerance)
    none = network(z, t, network.condition(frames, tokens, keep=torch.zeros_like(kept), **context))
    assert_close(none, fixture["fwd.out_all_dropped"], tolerance)


@torch.no_grad()
def test_masked_padding_equals_the_unpadded_row(model, fixture, tokens, context):
    """The original never pads when it renders; batches of ours do, and mask."""
    row = fixture["fwd.unpadded_row_index"].item()
    model.hparams["guidance_scale"] = 2.0
    conditioning = model.condition({"tokens": tokens, **context}, fixture["fwd.z"].shape[1], sampling=True)
    z = torch.cat([fixture["fwd.z"]] * 2)
    output = model.network(z, fixture["fwd.t"].repeat(2), conditioning)
    assert_close(output[row : row + 1], fixture["fwd.out_unpadded_row"], fixture.tolerance("network forward"))
    # The second half is unconditional because it skips cross-attention.
    unconditional = output[len(tokens) :]
    assert_close(unconditional, fixture["fwd.out_all_dropped"], fixture.tolerance("network forward"))


# Training


def test_schedule(model, shared):
    """The original works in float32, where the log-SNR is off by 1e-3 at t = 1 and 1 - sigma^2 is 0."""
    t = shared["schedule.t"]
    assert_close(model.schedule.log_snr(t).float(), shared["schedule.log_snr"], 2e-3)
    assert_close(model.schedule.alpha(t), shared["schedule.log_alpha"].exp(), 1e-6)
    assert_close(model.schedule.sigma(t), (0.5 * shared["schedule.log_var"]).exp(), 1e-6)


@torch.no_grad()
def test_scaled_spectrogram(model, shared, batch):
    loud = shared["mel.log_mel"] > -11  # the floor is rounding alone
    scaled, context = model.spectrograms(batch)
    assert (scaled - shared["mel.scaled"]).abs()[loud].max() < 1e-3
    if context:
        assert (context["context"][1:] - shared["mel.scaled"][:-1]).abs()[loud[:-1]].max() < 1e-3
        assert_close(context["context"][:1], shared["fwd.context"][:1], 1e-5)  # silence


def test_loss_and_gradients(model, fixture, batch):
    model.zero_grad()
    loss = model.loss(batch, fixture["train.t"], fixture["train.noise"], ~fixture["train.dropout_mask"])
    assert loss.item() == pytest.approx(fixture["train.loss"].item(), rel=fixture.tolerance("loss"))
    loss.backward()
    gradients = {published_name(name): p.grad for name, p in model.named_parameters()}
    names = [name for name in fixture.tensors if name.startswith("train.grad.")]
    assert names
    for name in names:
        expected, gradient = fixture[name], gradients[name.removeprefix("train.grad.")]
        if gradient.shape != expected.shape:
            gradient = gradient.abs().sum(dim=1)  # the embedding is stored as its row-wise L1 norm
        assert_close(gradient, expected, fixture.tolerance("gradients") * expected.abs().max().item())


@torch.no_grad()
def test_validation_loss(model, fixture, batch):
    if "val.loss" not in fixture.tensors:
        pytest.skip("this fixture has none")
    loss = model.loss(batch, torch.linspace(0, 1, len(batch["audio"])), fixture["val.noise"])
    assert loss.item() == pytest.approx(fixture["val.loss"].item(), rel=fixture.tolerance("loss"))


# Sampling


def test_a_piece(model, fixture, shared, monkeypatch):
    """Segment after segment, with context each from the one that was generated before."""
    noise, steps = fixture["sample.noise"], fixture.config["sampling_steps_T"]
    lengths = shared["token_lengths"][: len(noise)].tolist()
    rows = [row[:length] for row, length in zip(shared["tokens_padded"].long(), lengths, strict=False)]
    tolerance = fixture.tolerance("sample.w2.log_mel")

    def sample(guidance_scale: float) -> Tensor:
        options = {"solver": "ddpm", "sample_steps": steps, "guidance_scale": guidance_scale}
        return rendered(model, rows, noise, monkeypatch, **options)

    # The first of the centred frames is left out for the sake of the vocoder.
    guided = sample(fixture.config["cfg_weighting"])
    assert_close(guided, fixture["sample.w2.log_mel"][:, 1:], tolerance)
    expected = fixture["sample.w2.log_mel_float64"][:, 1:].float()
    assert_close(guided, expected, fixture.tolerance("sample.w2.log_mel_float64"))
    traced = torch.cat([fixture[f"sample.w2.x0_scaled_seg{segment}"] for segment in range(2)], dim=1)[:, 1:]
    assert_close(model.mel_range(guided[:, : traced.shape[1]]), traced, tolerance)
    assert_close(sample(1.0), fixture["sample.w1.log_mel"][:, 1:], tolerance)
