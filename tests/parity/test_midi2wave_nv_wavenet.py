"""Weights in the layout of nv-wavenet: what was exported from the original, and the samples of NVIDIA's own program."""

from __future__ import annotations

import pytest
import torch
from midi2wave_files import Fixture, assert_close, network
from safetensors.torch import save_file

from midisynth.models.midi2wave import nv_wavenet
from midisynth.models.midi2wave.engines import TorchEngine
from midisynth.models.midi2wave.engines.base import Packed
from midisynth.models.midi2wave.heads import Categorical
from midisynth.models.midi2wave.network import WaveNet


@pytest.fixture(scope="module")
def fixture(parity_root) -> Fixture:
    return Fixture(parity_root("midi2wave"), "14_nv_wavenet")


def drawn(fixture: Fixture, decoder: WaveNet, added: torch.Tensor, hop: int) -> torch.Tensor:
    """Samples [batch, samples] from what the layers add [batch, layers, 2R, columns]."""
    batch, samples = fixture["samples"].shape
    noise = fixture["selectors_TB"].view(samples, batch).T[..., None]
    engine = TorchEngine(Packed.of(decoder), Categorical(fixture.manifest["A"]))
    return engine.run(engine.start(batch), added.permute(0, 3, 1, 2), hop, noise)


@torch.no_grad()
def test_export_and_samples(fixture):
    decoder = network(fixture.manifest["config"], fixture.state("sd."))
    exported = nv_wavenet.arrays(decoder)
    names = [name for name in fixture.manifest["order"] if name not in ("cond_TLB2R", "selectors_TB")]
    assert set(exported) == set(names)
    for name in names:
        assert exported[name].equal(fixture[name]), name
    added = nv_wavenet.conditioning_array(decoder, fixture["cond"], fixture.manifest["samples_per_item"])
    assert_close(added.flatten(), fixture["cond_TLB2R"], 1e-6)
    codes = drawn(fixture, decoder, decoder.layer_conditioning(fixture["cond"]), decoder.hop)
    assert codes.equal(fixture["samples"].long())
    # The step that draws the last sample: its logits are in the column after it.
    past = torch.nn.functional.pad(codes[:, :-1], (1, 1), value=128)
    logits = decoder(past, torch.nn.functional.pad(fixture["cond"], (0, 1)))[..., -1]
    assert_close(logits, fixture["logits_last"], fixture.tolerance("logits"))
    assert_close(logits.softmax(1), fixture["prob_last"], fixture.tolerance("logits"))


def test_import_of_a_foreign_file(fixture, tmp_path):
    path = tmp_path / "nv.safetensors"
    save_file({name: fixture[name] for name in fixture.manifest["order"]}, path)
    decoder = nv_wavenet.load(path, fixture.manifest["max_dilation"])
    batch, samples = fixture["samples"].shape
    added = fixture["cond_TLB2R"].view(samples, len(decoder.dilations), batch, -1).permute(2, 1, 3, 0)
    assert drawn(fixture, decoder, added, 1).equal(fixture["samples"].long())
