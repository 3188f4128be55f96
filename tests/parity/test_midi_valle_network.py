"""Losses, activations and gradients of the language models against those of the original."""

from __future__ import annotations

import pytest
import torch
from midi_valle_files import Fixture, build, nar_draw, recorded
from torch import Tensor

from midisynth.models.midi_valle.checkpoint import own_name
from midisynth.models.midi_valle.losses import draw_nar


@pytest.fixture(scope="module")
def fixture(parity_root) -> Fixture:
    return Fixture(parity_root("midi_valle"), "valle_forward")


def valid_rows(fixture: Fixture, name: str, activation: Tensor) -> Tensor:
    """[batch, positions] bool: where an activation is specified."""
    rows, frames = (
        torch.arange(fixture[f"in.{what}"].shape[1]) < fixture[f"in.{what}_lens"][:, None] for what in ("x", "y")
    )
    if "decoder" in name:
        return torch.cat([rows, frames], dim=1)
    if "text" in name:
        return rows
    # Logits of padded frames count in the autoregressive loss; the others start after the prefix.
    return torch.ones_like(frames) if name.startswith("ar") else frames[:, -activation.shape[1] :]


def test_every_case(fixture):
    stages = set()
    for case in fixture.manifest["cases"]:
        expected = fixture.under(f"{case['name']}.")
        activations = {name.removeprefix("act."): value for name, value in expected.items() if name.startswith("act.")}
        network = build(fixture.manifest["config"], fixture.under("w."), case["prefix_mode"])
        seen = recorded(network, activations)
        inputs = (fixture[f"in.{name}"] for name in ("x", "x_lens", "y", "y_lens"))
        losses = network(*inputs, nar_draw(case, fixture.tensors.get("in.prompts")), case["train_stage"])
        fixture.assert_loss(losses.total, expected["loss"])
        for which, loss, share in (("ar", losses.ar, losses.ar_top10), ("nar", losses.nar, losses.nar_top10)):
            if f"{which}.ce_sum" not in expected:
                assert loss is None and share is None
                continue
            scale = 1.0
            if which == "nar" and case["prefix_len"]:
                frames = fixture["in.y_lens"].sum()
                scale = 1 - case["prefix_len"] * len(fixture["in.y"]) / frames
            fixture.assert_loss(loss * scale, expected[f"{which}.ce_sum"])
            (tolerance,) = fixture.tolerances("metrics")
            accuracy = expected[f"metric.{which.title()}Top10Accuracy"]
            torch.testing.assert_close(share[None] * losses.frames, accuracy, rtol=0, atol=tolerance)
        for name, activation in activations.items():
            rows = valid_rows(fixture, name, activation)
            fixture.assert_activations(seen[name][rows], activation[rows])
        gradients = {name.removeprefix("grad."): value for name, value in expected.items() if name.startswith("grad.")}
        if gradients:
            losses.total.backward()
            parameters = dict(network.named_parameters())
            for name, gradient in gradients.items():
                fixture.assert_activations(parameters[own_name(name)].grad, gradient)
        stages.add((case["train_stage"], case["prefix_mode"], bool(activations), bool(gradients)))
    assert stages


def test_targets(fixture):
    for case in fixture.manifest["cases"]:
        network = build(fixture.manifest["config"], fixture.under("w."), case["prefix_mode"])
        codes, lengths = fixture["in.y"], fixture["in.y_lens"]
        mask = torch.arange(codes.shape[1]) < lengths[:, None]
        if f"{case['name']}.ar.targets" in fixture.tensors:
            assert network.ar.targets(codes[..., 0], mask).targets.equal(fixture[f"{case['name']}.ar.targets"])
        if f"{case['name']}.nar.targets" in fixture.tensors:
            rows = fixture["in.x"]
            text_mask = torch.arange(rows.shape[1]) < fixture["in.x_lens"][:, None]
            text = network.nar.embed_text(network.embed_notes(rows), None)
            draw = nar_draw(case, fixture.tensors.get("in.prompts"))
            _, targets = network.nar(text, text_mask, codes, mask, draw)
            assert targets.equal(fixture[f"{case['name']}.nar.targets"])


def test_drawn_prefixes_are_legal(fixture):
    lengths = fixture["in.y_lens"].tolist()
    codebooks = fixture.manifest["config"]["num_quantizers"]
    generator = torch.Generator().manual_seed(0)
    for case in fixture.manifest["cases"]:
        draws = [draw_nar(case["prefix_mode"], codebooks, lengths, generator) for _ in range(300)]
        assert {draw.stage for draw in draws} == set(range(1, codebooks))
        legal = case["legal_prefix_len_range_half_open"]
        if legal is not None:
            assert {draw.prefix_frames for draw in draws} == set(range(*legal))
        if case["prefix_starts"] is not None:
            assert {draw.prefix_frames for draw in draws} == {case["prefix_len"]}
            starts = torch.stack([draw.starts for draw in draws])
            last = torch.tensor(lengths) - case["prefix_len"]
            assert (starts.amin(dim=0) == 0).all() and starts.amax(dim=0).equal(last)
