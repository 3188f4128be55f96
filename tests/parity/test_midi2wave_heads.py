"""The mixture head, the argmax bottleneck and companding of midi2wave (fixtures 01, 07, 08)."""

from __future__ import annotations

import pytest
import torch
from midi2wave_files import Fixture, assert_close, autoencoder

from midisynth.audio.companding import Companding
from midisynth.models.midi2wave.bottleneck import ArgmaxBottleneck, diversity
from midisynth.models.midi2wave.heads import Categorical, LogisticMixture


def test_mu_law(parity_root):
    fixture = Fixture(parity_root("midi2wave"), "01_mulaw")
    for law, encoded, codes, decoded in (
        (Companding(256), "encoded_np", fixture["codes"], "decoded"),
        (Companding(64), "encoded_q64", torch.arange(64), "decoded_q64"),
    ):
        off = (law.encode(fixture["x"]) - fixture[encoded]).abs()
        assert off.max() <= 1 and (off > 0).float().mean() <= 0.002
        assert_close(law.decode(codes), fixture[decoded], 1e-6)


@pytest.fixture(scope="module")
def pure(parity_root) -> Fixture:
    return Fixture(parity_root("midi2wave"), "07_dml_loss_sampling")


def test_mixture_losses(pure):
    right = LogisticMixture(pure.manifest["n_mixtures"])
    published = LogisticMixture(pure.manifest["n_mixtures"], compat="seed")
    params, target = pure["params"], pure["target"]
    assert_close(-right.nll(params.double(), target), pure["logprob_fixed"], pure.tolerance("fixed"))
    assert_close(-right.nll(params, target), pure["logprob_fixed"], 1e-3)
    assert_close(published.nll(params, target), pure["nll_original_per_position"], pure.tolerance("nll"))
    every = torch.arange(256)[None]
    first = params[:1, :, :1].expand(-1, -1, 256)
    probability = right.nll(first.double(), every).neg().exp()[0]
    assert_close(probability, pure["pmf_fixed_item0_t0"], pure.tolerance("fixed"))
    assert_close(published.nll(first, every).neg().exp()[0], pure["pmf_original_item0_t0"], 0, 1e-4)


def test_mixture_samples(pure):
    head = LogisticMixture(pure.manifest["n_mixtures"])
    uniforms = torch.stack([pure["u_component"], pure["u_logistic"]], dim=-1)
    codes = head.sample(pure["params"].transpose(1, 2).flatten(0, 1), uniforms.flatten(0, 1)).view_as(pure["sample"])
    tie = ((pure["sample_continuous"] % 1) - 0.5).abs() < 1e-3
    assert tie.float().mean() < 0.1
    assert torch.equal(codes[~tie], pure["sample"][~tie])
    assert (codes - pure["sample"]).abs().max() <= 1


def test_bottleneck(parity_root):
    fixture = Fixture(parity_root("midi2wave"), "08_argmax_vae")
    tolerance = float(fixture.manifest["tolerance"].split(";")[0])
    model = autoencoder(fixture)
    with torch.no_grad():
        z = model.encode(fixture["midi"])
        assert_close(z, fixture["encoder_out"], tolerance)
        gumbel = fixture["gumbel"].T[None]
        for chosen, name in (
            (ArgmaxBottleneck()(z), "argmax"),
            (ArgmaxBottleneck(compat="seed")(z, gumbel), "sampled"),
        ):
            assert torch.equal(chosen.codes, fixture[f"code_{name}"])
            assert_close(chosen.usage, fixture["q_bar"], tolerance)
            logits = model.decode(fixture["audio"], chosen.codes)
            assert_close(logits, fixture[f"logits_{name}"], tolerance)
    loss = Categorical(256).loss(logits, fixture["audio"])
    assert_close(loss[None], fixture["ce"], tolerance)
    spread = diversity(chosen.usage)
    assert_close(spread[None], fixture["diversity_loss"], tolerance, tolerance)
    assert_close((loss + 0.01 * spread)[None], fixture["total"], tolerance, tolerance)
