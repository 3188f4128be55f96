"""Training regimes of midi2wave against traces of the original: scheduled sampling and aggressive training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from midisynth.models.midi2wave.aggressive import AggressiveTraining
from midisynth.models.midi2wave.scheduled import ScheduledSampling, mixed

LETTERS = {"encoder": "E", "decoder": "D", "both": "B"}


@pytest.fixture(scope="module")
def root(parity_root) -> Path:
    return parity_root("midi2wave")


def manifest(root: Path, name: str) -> Any:
    path = root / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return json.loads(path.read_text())


def test_scheduled_sampling_follows_the_traces(root: Path):
    for trace in manifest(root, "12_scheduled_sampling_traces"):
        config = dict(trace["config"])
        assert config.pop("start_decaying")
        schedule = ScheduledSampling(
            start_kept=config.pop("start_epsilon"),
            end_kept=config.pop("end_epsilon"),
            decay_steps=config.pop("decay_iters"),
            improvement=-config.pop("threshold"),
            underloop=config.pop("underloop_prob"),
            published=True,
            **config,
        )
        for loss, wanted in zip(trace["losses"], trace["state_before_each_update"], strict=True):
            assert (schedule.loops, schedule.phase) == (wanted["loops"], wanted["phase"])
            assert schedule.kept == pytest.approx(wanted["epsilon"], abs=1e-6)
            # Through a checkpoint between any two steps.
            state = json.loads(json.dumps(schedule.state_dict()))
            schedule.load_state_dict(state)
            schedule.update(loss)


def test_mixing(root: Path):
    fixture = manifest(root, "12_scheduled_sampling")
    tensors = load_file(root / "12_scheduled_sampling.safetensors")
    got = mixed(tensors["y"], tensors["model_samples"], tensors["u"], fixture["epsilon"])
    assert torch.equal(got, tensors["mixed"])


@pytest.mark.parametrize(("criterion", "wanted"), [("published", "original"), ("loss", "fixed")])
def test_aggressive_training_steps_the_same_half(root: Path, criterion: str, wanted: str):
    fixture = manifest(root, "13_aggressive")
    for run in fixture["runs"]:
        training = AggressiveTraining(criterion, threshold=run["threshold"], tolerance=run["encoder_error_thresh"])
        halves = []
        for loss in fixture["losses"]:
            restored = AggressiveTraining(criterion, threshold=run["threshold"], tolerance=run["encoder_error_thresh"])
            restored.load_state_dict(training.state_dict())
            training = restored
            halves.append(LETTERS[training.half])
            training.update(loss)
        assert "".join(halves) == run[wanted]
