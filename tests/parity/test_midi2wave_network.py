"""The networks of midi2wave: outputs, the inside, losses, gradients and steps of Adam (fixtures 05, 06, 09)."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from midi2wave_files import Fixture, assert_close, autoencoder, network
from torch import Tensor

from midisynth.models.midi2wave.heads import Categorical, Head, LogisticMixture
from midisynth.models.midi2wave.network import WaveNet
from midisynth.models.midi2wave.published import network_state


@pytest.fixture(scope="module")
def categorical(parity_root) -> Fixture:
    return Fixture(parity_root("midi2wave"), "05_autoencoder_categorical")


@pytest.fixture(scope="module")
def mixture(parity_root) -> Fixture:
    return Fixture(parity_root("midi2wave"), "06_autoencoder_dml")


def spied(module: WaveNet, monkeypatch) -> dict[str, list[Tensor]]:
    """What goes through the dilated convolutions, the skip product and the output layers."""
    seen: dict[str, list[Tensor]] = {"input": [], "dilate_out": [], "head": []}
    convolve = F.conv1d

    def recorded(x, weight, *args, dilation=1, **kwargs):
        y = convolve(x, weight, *args, dilation=dilation, **kwargs)
        if weight.shape[-1] == 2:
            seen["input"].append(x[..., dilation:])
            seen["dilate_out"].append(y.clone())
        return y

    monkeypatch.setattr(F, "conv1d", recorded)
    module.hidden.register_forward_hook(lambda _, given, out: seen["head"].extend([given[0], F.relu(out)]))
    module.output.register_forward_hook(lambda _, given, out: seen["head"].append(out))
    return seen


@torch.no_grad()
def test_everything_inside(categorical, monkeypatch):
    model, tolerance = autoencoder(categorical), categorical.tolerance("forward")
    z = model.encode(categorical["midi"])
    assert_close(z, categorical["z"], tolerance)
    added = model.decoder.layer_conditioning(z)
    repeated = added.flatten(1, 2).repeat_interleave(model.decoder.hop, dim=-1)
    assert_close(repeated, categorical["dec.cond_layers_out"], tolerance)
    for short, net, given in (
        ("enc", model.encoder, (categorical["midi"],)),
        ("dec", model.decoder, (categorical["audio"], z)),
    ):
        seen = spied(net, monkeypatch)
        net(*given)
        monkeypatch.undo()
        assert_close(seen["input"][0], categorical[f"{short}.in_layer_out"], tolerance)
        for what in ("input", "dilate_out"):
            assert len(seen[what]) == len(net.dilations)
            for layer, actual in enumerate(seen[what]):
                assert_close(actual, categorical[f"{short}.block{layer}.{what}"], tolerance)
        for actual, what in zip(seen["head"], ("relu_skip_sum", "relu_conv_out", "conv_end_unshifted"), strict=True):
            assert_close(actual, categorical[f"{short}.{what}"], tolerance)


def translated(fixture: Fixture, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that are named as the original's parameters, named as ours, of both networks."""
    result = {}
    for theirs, ours, section in (("wavenet.", "decoder.", "decoder"), ("encoder_wavenet.", "encoder.", "encoder")):
        start = prefix + theirs
        named = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        state = network_state(named, fixture.manifest[section]["use_conditioning"])
        result |= {ours + name: tensor for name, tensor in state.items()}
    return result


def check_steps(fixture: Fixture, head: Head, relative: float) -> None:
    """Gradients, losses and parameters of steps of Adam, without dropout."""
    model = autoencoder(fixture)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for step in range(len(fixture["adam_losses"])):
        optimizer.zero_grad()
        loss = head.loss(model(fixture["midi"], fixture["audio"]).logits, fixture["audio"])
        loss.backward()
        if step == 0:
            norms = {
                name: torch.full_like(fixture[f"sd.{name}"], norm)
                for name, norm in fixture.manifest["grad_norms_step0"].items()
                if norm is not None
            }
            expected = translated(fixture, "", norms)
            assert expected.keys() == parameters.keys()
            for name, norm in expected.items():
                layers = len(norm) if re.search(r"dilated|residual|skip", name) else 1
                grad = parameters[name].grad.reshape(layers, -1)
                assert_close(grad.norm(dim=1), norm.reshape(layers, -1)[:, 0], 0, relative)
            for name, grad in translated(fixture, "grad0.", fixture.tensors).items():
                scale = grad.abs().max().item()
                assert_close(parameters[name].grad[: len(grad)], grad, relative * scale)
        optimizer.step()
        losses.append(loss.detach())
    assert_close(torch.stack(losses), fixture["adam_losses"], 0, relative)
    for name, value in translated(fixture, "after3.", fixture.tensors).items():
        assert_close(parameters[name][: len(value)].detach(), value, fixture.tolerance("after3"))


def test_categorical_training(categorical):
    model, tolerance = autoencoder(categorical), categorical.tolerance("forward")
    out = model(categorical["midi"], categorical["audio"])
    assert_close(out.logits.detach(), categorical["logits"], tolerance)
    loss = Categorical(256).loss(out.logits, categorical["audio"])
    assert_close(loss.detach()[None], categorical["loss"], categorical.tolerance("loss"))
    check_steps(categorical, Categorical(256), categorical.tolerance("grads"))


def test_mixture_training(mixture):
    components, relative = mixture.manifest["n_mixtures"], mixture.tolerance("losses")
    model = autoencoder(mixture)
    with torch.no_grad():
        logits = model(mixture["midi"], mixture["audio"]).logits
    assert_close(logits, mixture["mix_params"], mixture.tolerance("mix_params"))
    right, published = LogisticMixture(components), LogisticMixture(components, compat="seed")
    assert_close(right.loss(logits, mixture["audio"])[None], mixture["loss_fixed_mean"], 0, relative)
    assert_close(-right.nll(mixture["mix_params"].double(), mixture["audio"]), mixture["logprob_fixed"], 1e-6)
    assert_close(published.loss(logits, mixture["audio"])[None], mixture["loss_original"], 0, relative)
    check_steps(mixture, published, relative)


@torch.no_grad()
def test_every_structure(parity_root):
    variants = Fixture(parity_root("midi2wave"), "09_variants")
    tolerance = float(variants.manifest["tolerance"])
    for name, config in variants.manifest["configs"].items():
        net = network(config, variants.state(f"sd.{name}."))
        given = variants[f"{name}.audio" if config["onehot_input"] else f"{name}.midi"]
        out = net(given, variants.tensors.get(f"{name}.cond"))
        assert_close(out, variants[f"{name}.out"], tolerance)
        if net.conditioning_channels:
            with pytest.raises(ValueError, match="ticks of conditioning"):
                net(given, variants[f"{name}.cond"][..., : (given.shape[-1] - 1) // net.hop])
