"""Generation of midi2wave by every engine: codes, and the parallel network's opinion of them (fixtures 10, 11)."""

from __future__ import annotations

import pytest
import torch
from midi2wave_files import Fixture, assert_close, autoencoder
from torch import Tensor

from midisynth.audio.companding import Companding
from midisynth.models.midi2wave.engines import ENGINES, choose
from midisynth.models.midi2wave.generation import Piece, generate
from midisynth.models.midi2wave.heads import Categorical, Head, LogisticMixture
from midisynth.models.midi2wave.network import WaveNetAutoencoder

#: A continuous value so close to a rounding border may become either code.
BORDER = 1e-3


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.gpu if name == "cuda" else ()) for name in ENGINES])
def engine(request) -> str:
    if request.param == "numba":
        pytest.importorskip("numba")
    return request.param


def generated(
    fixture: Fixture, head: Head, engine: str, noise: Tensor, teacher: Tensor | None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Codes [samples] under the noise [samples, draws], and what the parallel network says of them [steps, outputs]."""
    device = "cuda" if engine == "cuda" else "cpu"
    network: WaveNetAutoencoder = autoencoder(fixture).to(device)
    samples = fixture.manifest["n_total"]
    piece = Piece(fixture["midi"][0], samples, noise, teacher)
    made = generate(network, choose(network.decoder, head, temperature, name=engine), [piece])
    codes = torch.cat([block for _, block in made])
    assert len(codes) == samples
    past = codes.clone()
    if teacher is not None:
        past[: len(teacher)] = teacher
    with torch.no_grad():
        logits = network.decode(past[None].to(device), network.encode(fixture["midi"].to(device))).cpu()
    return codes, logits[0, :, 1:].T


@pytest.mark.parametrize("kind", ["greedy", "sampled", "no_teacher"])
def test_categorical(parity_root, engine, kind):
    fixture = Fixture(parity_root("midi2wave"), "10_generate_categorical")
    noise, tolerance = fixture["u"][:, None], fixture.tolerance("logits")
    teacher = None if kind == "no_teacher" else fixture["teacher"][0]
    head = Categorical(fixture.manifest["decoder"]["n_out_channels"])
    codes, logits = generated(fixture, head, engine, noise, teacher, 0.0 if kind == "greedy" else 1.0)
    assert codes[1:].equal(fixture[f"{kind}.codes"])
    if kind == "greedy":
        assert_close(logits[::4], fixture["greedy.logits_every4"], tolerance)
    else:
        assert_close(logits[-1], fixture[f"{kind}.logits_last"], tolerance)
    if kind != "no_teacher":
        # The original appends a sample that nothing drew.
        assert_close(Companding(head.levels).decode(codes), fixture[f"{kind}.audio"][:-1], 1e-6)


@torch.no_grad()
def test_every_sample_from_the_true_past(parity_root):
    fixture = Fixture(parity_root("midi2wave"), "10_generate_categorical")
    network, codes = autoencoder(fixture), fixture["teacher"]
    samples = codes.shape[1]
    logits = network.decode(codes, network.encode(fixture["midi"][..., : -(-samples // network.decoder.hop)]))
    drawn = Categorical(fixture.manifest["decoder"]["n_out_channels"]).sample(logits[0].T, fixture["u"][:samples, None])
    assert drawn.equal(fixture["trainmode.codes"])


@pytest.mark.parametrize("kind", ["sampled", "mode"])
def test_mixture(parity_root, engine, kind):
    fixture = Fixture(parity_root("midi2wave"), "11_generate_dml")
    noise = torch.stack([fixture["u_component"], fixture["u_logistic"]], dim=1)
    head = LogisticMixture(fixture.manifest["n_mixtures"])
    codes, parameters = generated(fixture, head, engine, noise, fixture["teacher"][0], 0.0 if kind == "mode" else 1.0)
    different = codes[1:] != fixture[f"{kind}.codes"]
    first = int(different.nonzero()[0]) if different.any() else len(different)
    if kind == "sampled":
        assert_close(parameters[: first + 1], fixture["sampled.params"][: first + 1], fixture.tolerance("params"))
    if first < len(different):
        assert abs(borders(head, parameters[first : first + 1], noise[first : first + 1], kind)) < BORDER


def borders(head: LogisticMixture, parameters: Tensor, uniforms: Tensor, kind: str) -> float:
    """Distance of a continuous value from the nearest rounding border (codes)."""
    fine = LogisticMixture(head.components, 2**24 + 1)
    value = fine.sample(parameters.double(), uniforms.double(), 0.0 if kind == "mode" else 1.0).item()
    exact = value / 2**24 * (head.levels - 1)
    return exact % 1 - 0.5
