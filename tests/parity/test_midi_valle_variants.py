"""Variants of the language models, and the published vocabulary, against the original."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from midi_valle_files import Fixture, build, nar_draw, recorded, step_logits
from torch import Tensor

from midisynth.generation import SamplingRules
from midisynth.models.midi_valle.checkpoint import own_name
from midisynth.models.midi_valle.decoding import decode_first, generate
from midisynth.models.midi_valle.frames import FrameLimits
from midisynth.models.midi_valle.network import ValleNetwork

GREEDY = SamplingRules(top_k=1)


@pytest.fixture(scope="module")
def fixture(parity_root) -> Fixture:
    return Fixture(parity_root("midi_valle"), "valle_variants")


@pytest.fixture(scope="module")
def inputs(parity_root) -> dict[str, Tensor]:
    forward = Fixture(parity_root("midi_valle"), "valle_forward").under("in.")
    infer = Fixture(parity_root("midi_valle"), "valle_infer").under("in.")
    return {**forward, "infer_x": infer["x"], "prompt": infer["prompt"]}


@torch.no_grad()
def test_training(fixture, inputs):
    for case in fixture.manifest["cases"]:
        config, expected = case["config"], fixture.under(f"{case['name']}.out.")
        network = build(config, fixture.under(f"{case['name']}.w."))
        activations = {name.removeprefix("act."): value for name, value in expected.items() if name.startswith("act.")}
        seen = recorded(network, list(activations))
        codes = inputs["y"][..., : config["num_quantizers"]]
        draw = nar_draw({**case, "prefix_mode": config["prefix_mode"]}, None)
        losses = network(inputs["x"], inputs["x_lens"], codes, inputs["y_lens"], draw)
        fixture.assert_loss(losses.total, expected["loss"])
        fixture.assert_loss(losses.ar, expected["ar.ce_sum"])
        (tolerance,) = fixture.tolerances("metrics")
        for which, share in (("Ar", losses.ar_top10), ("Nar", losses.nar_top10)):
            if share is not None:
                accuracy = expected[f"metric.{which}Top10Accuracy"]
                torch.testing.assert_close(share[None] * losses.frames, accuracy, rtol=0, atol=tolerance)
        for name, activation in activations.items():
            lengths = inputs["x_lens" if "text" in name else "y_lens"]
            if name.startswith("nar_predict"):
                lengths = lengths - draw.prefix_frames
            # Logits of padded frames count in the autoregressive loss.
            everywhere = torch.full_like(lengths, activation.shape[1])
            lengths = everywhere if name == "ar_predict_layer" else lengths
            valid = torch.arange(activation.shape[1]) < lengths[:, None]
            fixture.assert_activations(seen[name][valid], activation[valid])


@torch.no_grad()
def test_greedy_decoding(fixture, inputs):
    decoded = 0
    for case in fixture.manifest["cases"]:
        if "greedy_frames" not in case:
            continue
        config, expected = case["config"], fixture.under(f"{case['name']}.greedy.")
        network = build(config, fixture.under(f"{case['name']}.w."))
        rows, prompt = inputs["infer_x"], inputs["prompt"][0, :, : config["num_quantizers"]]
        limits = [FrameLimits.published(rows.shape[1], config["prepend_bos"])]
        (codes,) = generate(network, [rows[0]], [prompt], limits, GREEDY)
        assert codes.equal(expected["codes"][0]) and len(codes) == case["greedy_frames"]
        logits = expected["ar_logits_first5"]
        fixture.assert_activations(step_logits(network, rows, prompt, codes[:, 0], len(logits)), logits)
        decoded += 1
    assert decoded


@torch.no_grad()
def test_vall_f_writes_what_its_training_forward_predicts(fixture, inputs):
    """The original cannot write with cross-attention; its training forward can be asked frame by frame."""
    (case,) = (case for case in fixture.manifest["cases"] if case["name"] == "vallf")
    network = build(case["config"], fixture.under("vallf.w.")).double()
    rows, prompt = inputs["infer_x"], inputs["prompt"][0, :, : network.codebooks]
    (first,) = decode_first(network, [rows[0]], [prompt[:, 0]], [FrameLimits.exactly(12)], GREEDY)
    known = torch.cat([prompt[:, 0], first])[None]
    text_mask = torch.ones(rows.shape[:2], dtype=torch.bool)
    text = network.ar.embed_text(network.embed_notes(rows), None)
    logits = network.ar(text, text_mask, known, torch.ones_like(known, dtype=torch.bool))[0, :, : network.ar.end]
    assert logits[len(prompt) - 1 : -1].argmax(dim=-1).equal(first)


def hashed_weights(manifest: dict) -> dict[str, Tensor]:
    """Weights of the published vocabulary, which the manifest has as a formula."""
    config, rule = manifest["config"], manifest["weights"]
    shapes = {own_name(name): name for name in rule["names"]}
    network = ValleNetwork(
        config["decoder_dim"], config["nhead"], config["num_decoder_layers"], config["num_quantizers"]
    )
    weights = {}
    for index, name in enumerate(rule["names"]):
        shape = network.get_parameter(own_name(name)).shape
        assert shapes[own_name(name)] == name
        mask = np.uint64(0xFFFFFFFF)
        h = (np.arange(shape.numel(), dtype=np.uint64) * np.uint64(2654435761)) & mask
        h = (h + np.uint64(index * 40503 + rule["SALT"])) & mask
        for _ in range(2):
            h = ((h ^ (h >> np.uint64(16))) * np.uint64(0x45D9F3B)) & mask
        h ^= h >> np.uint64(16)
        s = h.astype(np.float64) / 2**31 - 1
        if name.endswith("word_embeddings.weight"):
            value = 0.5 * s
        elif name.endswith("alpha"):
            value = 1 + 0.2 * s
        elif len(shape) == 1:
            value = 1 + 0.1 * s if "norm" in name and name.endswith("weight") else 0.05 * s
        else:
            value = s / np.sqrt(shape[1])
        weights[name] = torch.from_numpy(value.astype(np.float32)).reshape(shape)
    return weights


@torch.no_grad()
def test_published_vocabulary(parity_root):
    fixture = Fixture(parity_root("midi_valle"), "valle_realvocab")
    manifest = fixture.manifest
    weights = hashed_weights(manifest)
    first = weights[manifest["weights"]["names"][0]].flatten()[:4].tolist()
    assert first == pytest.approx(manifest["weights"]["first_values_of_tensor_0"])
    network = build(manifest["config"], weights)
    rows, codes = fixture["in.x"], fixture["in.y"]
    lengths = (torch.tensor([part.shape[1]]) for part in (rows, codes))
    seen = recorded(network, ["ar_text_position", "ar_predict_layer"])
    losses = network(rows, next(lengths), codes, next(lengths), nar_draw(manifest["case"], None))
    logits_tolerance, loss_tolerance = (float(text) for text in re.findall(r"\d+e-\d+", manifest["tolerance"]))
    for loss, name in ((losses.total, "loss"), (losses.ar, "ar.ce_sum")):
        torch.testing.assert_close(loss[None], fixture[f"out.{name}"], rtol=loss_tolerance, atol=0)
    stage = manifest["case"]["nar_stage"]
    for actual, name in (
        (seen["ar_text_position"], "ar_text_position"),
        (seen["ar_predict_layer"][:, -4:], "ar_logits_last4"),
        (seen[f"nar_predict_layers.{stage - 1}"][:, -4:], "nar_logits_last4"),
    ):
        torch.testing.assert_close(actual, fixture[f"out.{name}"], rtol=0, atol=logits_tolerance)

    weights["ar_predict_layer.weight"][manifest["config"]["num_audio_tokens"]] = 0
    network = build(manifest["config"], weights)
    expected = fixture["out.greedy30_codes"][0]
    prompt = codes[0, : int(re.search(r"first (\d+) frames", manifest["greedy30"])[1])]
    (written,) = generate(network, [rows[0]], [prompt], [FrameLimits.exactly(len(expected))], GREEDY)
    assert written.equal(expected)
