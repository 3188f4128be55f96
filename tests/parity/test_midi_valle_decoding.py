"""What the language models write against what the original wrote, with the random numbers that it had."""

from __future__ import annotations

import pytest
import torch
from midi_valle_files import Fixture, build, recorded, step_logits
from torch import Tensor

from midisynth.generation import SamplingRules
from midisynth.models.midi_valle.decoding import continued, generate
from midisynth.models.midi_valle.frames import FrameLimits
from midisynth.models.midi_valle.network import ValleNetwork


@pytest.fixture(scope="module")
def fixture(parity_root) -> Fixture:
    return Fixture(parity_root("midi_valle"), "valle_infer")


@pytest.fixture(scope="module")
def weights(parity_root) -> dict[str, Tensor]:
    return Fixture(parity_root("midi_valle"), "valle_forward").under("w.")


def network_of(fixture: Fixture, weights: dict[str, Tensor], prefix_mode: int, eos_scale: float) -> ValleNetwork:
    head = weights["ar_predict_layer.weight"].clone()
    head[fixture.manifest["config"]["num_audio_tokens"]] *= eos_scale
    return build(fixture.manifest["config"], {**weights, "ar_predict_layer.weight": head}, prefix_mode)


@torch.no_grad()
def test_every_case(fixture, weights):
    rows, prompt = fixture["in.x"], fixture["in.prompt"][0]
    stops = set()
    for case in fixture.manifest["cases"]:
        network = network_of(fixture, weights, case["prefix_mode"], case["eos_row_scale"])
        expected = fixture.under(f"{case['name']}.")
        codes = expected["codes"][0]
        assert len(codes) == case["n_generated_frames"]
        logits = step_logits(network, rows, prompt, codes[:, 0], case["n_steps"])
        fixture.assert_activations(logits, expected["ar_logits"])
        seen = recorded(network, [])
        written = generate(
            network,
            [rows[0]],
            [prompt],
            [FrameLimits.published(rows.shape[1])],
            SamplingRules(case["temperature"], case["top_k"]),
            [fixture["in.uniforms"]] if case["uniforms"] else None,
            None if case["enrolled_len"] is None else [case["enrolled_len"] - 2],
        )
        assert written[0].equal(codes), case["name"]
        assert len(seen) == network.codebooks - 1
        for head, name in enumerate(sorted(seen)):
            fixture.assert_activations(seen[name], expected[f"nar_logits.{head}"])
        stops.add(case["stop_reason"])
    assert stops


@pytest.mark.parametrize(("name", "prefix_mode"), [("continual", 1), ("continual_prefix0", 0)])
def test_continual(fixture, weights, name, prefix_mode):
    network = network_of(fixture, weights, prefix_mode, 1.0)
    (codes,) = continued(network, [fixture["in.x"][0]], [fixture["in.continual_y"][0]])
    assert codes.equal(fixture[f"{name}.codes"][0])
