"""Checkpoints as the original pickled them, whole modules, in both containers of torch (fixture 15)."""

from __future__ import annotations

import os
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from midi2wave_files import Fixture, assert_close, network
from torch import nn

from midisynth.errors import CheckpointError
from midisynth.models.midi2wave import Midi2Wave
from midisynth.models.midi2wave.checkpoint import read_decoder, read_networks, read_published
from midisynth.tensor_files import Inert, load_state, read_checkpoint


@pytest.fixture(scope="module")
def fixture(parity_root) -> Fixture:
    return Fixture(parity_root("midi2wave"), "15_checkpoint")


@pytest.fixture(scope="module")
def published(parity_root, fixture) -> Path:
    return parity_root("midi2wave") / f"wavenet_{fixture.manifest['iteration']}"


def revived(content: Inert, kind: type[nn.Module]) -> nn.Module:
    """A real module in the place of one that was read as an inert object."""
    module = kind()
    module.__dict__.update({name: value for name, value in content.state.items() if not isinstance(value, dict)})
    for name, value in content.state["_parameters"].items():
        module.register_parameter(name, None if value is None else nn.Parameter(value.detach().clone()))
    for name, child in content.state["_modules"].items():
        module.add_module(name, revived(child, kind))
    return module


@pytest.fixture
def saved_long_ago(published, tmp_path, monkeypatch):
    """Saves the model of the fixture in the format before torch 1.6, after a change to it."""

    def save(change=lambda model: None) -> Path:
        stranger = types.ModuleType("nn.wavenet_autoencoder")
        stranger.WavenetAutoencoder = type("WavenetAutoencoder", (nn.Module,), {"__module__": stranger.__name__})
        monkeypatch.setitem(sys.modules, "nn", types.ModuleType("nn"))
        monkeypatch.setitem(sys.modules, stranger.__name__, stranger)
        model = revived(read_checkpoint(published, inert=True)["model"], stranger.WavenetAutoencoder)
        model = change(model) or model
        path = tmp_path / "wavenet_1"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the class has no source that could be stored
            torch.save({"model": model, "iteration": 1}, path, _use_new_zipfile_serialization=False)
        monkeypatch.delitem(sys.modules, stranger.__name__)
        return path

    return save


@torch.no_grad()
def test_an_autoencoder(fixture, published):
    model = Midi2Wave.load_published(published).eval()
    assert_close(model.logits(fixture["audio"], fixture["midi"]), fixture["logits"], fixture.tolerance("logits"))
    networks = read_networks(published)
    for found, wanted, prefix in (
        (networks.decoder, fixture.manifest["decoder"], "sd.wavenet."),
        (networks.encoder, fixture.manifest["encoder"], "sd.encoder_wavenet."),
    ):
        state = fixture.state(prefix)
        assert found.state.keys() == state.keys()
        assert all(found.state[name].equal(state[name]) for name in state)
        # The name is ours to choose, and a window means nothing where conditioning is repeated.
        ignored = {"name"} | ({"upsamp_conv_window"} if wanted["upsample_by_copy"] else set())
        assert {k: v for k, v in found.config.items() if k not in ignored} == {
            k: v for k, v in wanted.items() if k not in ignored
        }


@torch.no_grad()
def test_a_decoder_alone(parity_root, fixture):
    """It cannot play without its encoder, but whoever knows what conditions it, or exports it, can have the network."""
    path = parity_root("midi2wave") / fixture.manifest["second_file"].split(":")[0]
    found = read_networks(path)
    assert found.encoder is None
    channels = found.decoder.config["n_cond_channels"]
    codes, z = torch.randint(found.decoder.config["n_in_channels"], (1, 24)), torch.randn(1, channels, 24)
    assert torch.equal(read_decoder(path)(codes, z), network(found.decoder.config, found.decoder.state)(codes, z))
    with pytest.raises(CheckpointError, match=f"without the encoder that makes the {channels} channels"):
        read_published(path)


@torch.no_grad()
@pytest.mark.parametrize(("rows", "old"), [(88, False), (89, True)])
def test_a_decoder_that_is_conditioned_on_the_roll(fixture, saved_long_ago, rows, old):
    """As the original trained it without an encoder: every tick of the roll conditions its own samples."""

    def change(model: nn.Module) -> nn.Module:
        decoder = model.wavenet
        matrix = decoder.cond_layers.conv
        matrix.weight = nn.Parameter(torch.randn(len(matrix.weight), rows, 1))
        if old:
            del decoder.__dict__["res_block_gain"]
        return decoder

    path = saved_long_ago(change)
    model = Midi2Wave.load_published(path).eval()
    assert (model.hparams.roll, model.hparams.pedal) == (("onset", "row") if old else ("sustained", "none"))
    roll, found = torch.rand(1, rows, fixture["midi"].shape[-1]), read_networks(path).decoder
    expected = network(found.config, found.state)(fixture["audio"], roll)
    assert_close(model.logits(fixture["audio"], roll), expected, 1e-6)


def test_the_container_before_torch_1_6(fixture, saved_long_ago):
    found = read_networks(saved_long_ago()).decoder
    state = fixture.state("sd.wavenet.")
    assert all(found.state[name].equal(state[name]) for name in state)


@torch.no_grad()
def test_an_encoder_whose_conditioning_was_nothing_but_a_bias(fixture, saved_long_ago):
    """Old encoders had Softsign(bias) of a conditioning that was always zero."""
    bias = None

    def change(model: nn.Module) -> None:
        nonlocal bias
        encoder = model._modules.pop("encoder_wavenet")
        conditioning = encoder.cond_layers
        bias = torch.randn(len(conditioning.conv.weight))
        conditioning.conv.bias = nn.Parameter(bias)
        for module, name in ((conditioning, "use_act"), (encoder, "use_conditioning"), (encoder, "res_block_gain")):
            del module.__dict__[name]
        model.add_module("cond_wavenet", encoder)

    path = saved_long_ago(change)
    model = Midi2Wave(**read_published(path).options)
    load_state(model, read_published(path).state, "old")
    layers = fixture.manifest["encoder"]["n_layers"]
    assert_close(model.network.encoder.dilated.bias, F.softsign(bias).view(layers, -1), 0)
    assert model.network.encoder.gain == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("old", [False, True])
def test_nothing_is_executed(old, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / "wavenet_1"
    torch.save({"model": Hostile(), "weights": torch.ones(1)}, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError):
        read_networks(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("end", [100, 2000, -10])
def test_a_damaged_old_file(saved_long_ago, end):
    path = saved_long_ago()
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(CheckpointError):
        read_networks(path)
