"""DExter's published samplers, and its whole inference, against tensors of the original program."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dexter_network_files import NetworkFixture, assert_close, tolerance
from safetensors.torch import load_file
from torch import Tensor

from midisynth.models.dexter.codec import ExpressionCodec
from midisynth.models.dexter.features import score_features
from midisynth.models.dexter.published_sampling import PublishedDiffusion, Sampler, cut_windows, stitch_windows
from midisynth.music.score import read_score_notes


@pytest.fixture(scope="module")
def root(parity_root) -> Path:
    return parity_root("dexter")


@pytest.fixture(scope="module", params=["diffwave", "unet"])
def fixture(root, request) -> NetworkFixture:
    return NetworkFixture(root, request.param)


def trajectory(
    fixture: NetworkFixture, sampler: Sampler, start: Tensor, null: float = 0.0, **options
) -> Iterator[Tensor]:
    """States after every step, with the fixture's conditions and noise."""
    part, network = fixture["sampling"], fixture.network()
    with torch.no_grad():
        conditioned = network.condition(
            *fixture.conditions("sampling"), unconditional=sampler.startswith("cfdg"), null=null
        )
    return PublishedDiffusion(fixture.schedule).trajectory(
        lambda x, t: network.denoise(x, t, conditioned),
        start,
        lambda t: part["step_noise"][t].squeeze(1),
        sampler,
        fixture.config["w"],
        **options,
    )


def assert_rows(states: list[Tensor], expected: Tensor, allowed: dict[str, float]) -> None:
    assert_close(torch.stack(states), expected.squeeze(2), allowed)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cfdg_ddpm.gen_noise.T-1", {}),
        ("cfdg_ddpm.gen_noise.T", {"all_steps": True}),
        ("cfdg_ddpm.transfer.T-1", {"transfer": True}),
        ("FIXED.null_minus1.gen_noise.T-1", {"null": -1.0}),
    ],
)
def test_guided_ancestral_sampling(fixture, name, options):
    part = fixture["sampling"]
    options = dict(options)
    if options.pop("all_steps", False):
        options["steps"] = fixture.config["timesteps"]
    start = part["start"].squeeze(1)
    states = [start, *trajectory(fixture, "cfdg_ddpm", start, **options)]
    assert_rows(states, part[name], part.tolerance())
    if name == "cfdg_ddpm.gen_noise.T-1":
        mean, std = (torch.tensor(fixture.manifest[key]) for key in ("published_mean", "published_std"))
        assert_close(states[-1] * std + mean, part["inference_one.unscaled"].squeeze(1), part.tolerance())


def test_transfer(fixture):
    part = fixture["sampling"]
    diffusion = PublishedDiffusion(fixture.schedule)
    names = [name for name in part.tensors if name.startswith("transfer_start.frac")]
    assert names
    for name in names:
        fraction = name.removeprefix("transfer_start.frac")
        start, steps = diffusion.transfer_start(part["p_source"], float(fraction), part["start"].squeeze(1))
        assert_close(start, part[name].squeeze(1), part.tolerance())
        states = [start, *trajectory(fixture, "cfdg_ddpm", start, steps=steps)]
        assert_rows(states, part[f"cfdg_ddpm.frac{fraction}"], part.tolerance())


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "ddim2ddpm", "ddpm_x0", "ddim_x0", "cfdg_ddpm_x0", "cfdg_ddim_x0"])
def test_other_samplers(fixture, sampler):
    part = fixture["sampling"]
    states = list(trajectory(fixture, sampler, part["start"].squeeze(1)))
    saved = [states[steps - 1] for steps in part.manifest["shim_saved_after_n_steps"]]
    assert_rows(saved, part[f"SHIM.{sampler}"], part.tolerance())


class Inference:
    """The original's whole inference: score, windows, samples, and notes."""

    def __init__(self, root: Path):
        self.manifest = json.loads((root / "inference_e2e.manifest.json").read_text())
        self.config = self.manifest["config"]
        self.tensors = load_file(root / "inference_e2e.safetensors")
        self.diffwave = NetworkFixture(root, "diffwave")
        score = read_score_notes(root / "synth_score.musicxml", repeats=False)
        rows = {name: row for row, name in enumerate(score.notes["id"])}
        self.score = score.with_notes(score.notes[[rows[name] for name in self.config["note_ids"]]])

    def tolerance(self, what: str) -> dict[str, float]:
        return tolerance(self.manifest["tolerance"], what)


@pytest.fixture(scope="module")
def inference(root) -> Inference:
    return Inference(root)


def test_windows(inference):
    features = torch.from_numpy(score_features(inference.score, "published"))
    windows = cut_windows(features, inference.config["seg_len"], inference.config["overlap"])
    assert_close(windows, inference.tensors["s_codec_chunks"], {"atol": 0.0, "rtol": 0.0})


def test_inference_samples(inference):
    config, tensors = inference.config, inference.tensors
    network = inference.diffwave.network()
    steps = config["timesteps"]
    noise = tensors["step_noise_in_call_order"].squeeze(2)
    with torch.no_grad():
        conditioned = network.condition(tensors["s_codec_chunks"], unconditional=True, null=0.0)
    schedule = replace(inference.diffwave.schedule, steps=steps)
    states = PublishedDiffusion(schedule).trajectory(
        lambda x, t: network.denoise(x, t, conditioned),
        tensors["start_noise"].squeeze(1),
        lambda t: noise[config["steps_run"] - 1 - t],
        guidance=inference.diffwave.config["w"],
        steps=config["steps_run"],
    )
    *_, last = states
    mean, std = torch.tensor(config["dataset_means"]), torch.tensor(config["dataset_stds"])
    physical = last * std + mean
    assert_close(physical, tensors["chunk_pred_physical"].squeeze(1), inference.tolerance("chunks"))
    stitched = stitch_windows(physical, len(config["note_ids"]), config["overlap"])
    assert_close(stitched, tensors["stitched_p_codec"], inference.tolerance("stitched"))


def test_inference_notes(inference):
    """Times add up over the piece, and most of these random tempi are negative: nothing may be clamped."""
    tensors = inference.tensors
    performance = ExpressionCodec(compat="2024").decode(
        inference.score, tensors["stitched_p_codec"].numpy(), exact=True
    )
    notes = performance.notes
    allowed = inference.tolerance("decoded")
    assert notes["pitch"].tolist() == tensors["note_pitch"].tolist()
    assert_close(torch.from_numpy(notes["onset_sec"].copy()), tensors["note_onset"], allowed)
    assert_close(torch.from_numpy(notes["onset_sec"] + notes["duration_sec"]), tensors["note_offset"], allowed)
    velocity = torch.from_numpy(notes["velocity"].astype(np.int64))
    assert (velocity - tensors["note_velocity"]).abs().max() <= 1
    time_order = tensors["pedal_time"].argsort(stable=True)
    controls = performance.controls
    assert_close(torch.from_numpy(controls["time_sec"].copy()), tensors["pedal_time"][time_order], allowed)
    assert (torch.from_numpy(controls["value"].astype(np.int64)) - tensors["pedal_value"][time_order]).abs().max() <= 1
