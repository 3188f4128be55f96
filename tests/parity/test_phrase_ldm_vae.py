"""PhraseVAE and its two earlier stages: states, losses and texts of the original, by the importer."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from phrase_ldm_files import Folder, autoencoder
from torch import Tensor

from midisynth.models.phrase_ldm.codec import published_text
from midisynth.models.phrase_ldm.decoding import decode
from midisynth.models.phrase_ldm.network import PhraseAutoencoder, Reconstruction
from midisynth.models.phrase_ldm.rows import IGNORED, labels, row
from midisynth.models.phrase_ldm.vocabulary import BOS, EOS, PAD, to_ids, to_text


@pytest.fixture(scope="module")
def vae(parity_root) -> Folder:
    return Folder(parity_root("phrase_ldm") / "vae")


@pytest.fixture(scope="module")
def network(vae) -> PhraseAutoencoder:
    return autoencoder(vae.path)


@pytest.fixture(scope="module")
def passed(vae, network) -> Reconstruction:
    with torch.no_grad():
        return network(vae["input_ids"], vae["attention_mask"].bool(), vae["labels"], vae["eps"])


def assert_logits(folder: Folder, logits: Tensor) -> None:
    """Log-probabilities of all labels, and raw logits at some of them."""
    wanted = folder["labels"]
    chosen = logits.log_softmax(-1).gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    folder.assert_close(chosen.masked_fill(wanted == IGNORED, 0), "label_logprob")
    at = folder["logit_positions"]
    real = wanted.gather(1, at) != IGNORED
    picked = logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1]))
    folder.tensors["logits_at_labels"] = folder["logits_at"][real]
    folder.assert_close(picked[real], "logits_at_labels")


def test_sizes_come_from_the_tensors(vae, network):
    config = vae.manifest["config"]
    t5 = network.t5.config
    assert {key: getattr(t5, key) for key in config["t5_config"]} == config["t5_config"]
    assert (network.queries, network.latent) == (config["n_compress_tokens"], config["bottleneck_dim"])


def test_rows_of_ids(vae):
    config = vae.manifest["config"]
    for text, ids, wanted in zip(vae.manifest["phrases"], vae["input_ids"], vae["labels"], strict=True):
        options: dict[str, Any] = {"max_tokens": config["max_length"], "compat": "published"}
        given = row(to_ids(text), config["n_compress_tokens"], **options)
        assert ids.tolist()[: len(given)] == given
        assert [i for i in wanted.tolist() if i != IGNORED] == labels(to_ids(text), **options)


@torch.no_grad()
def test_states(vae, network, passed):
    mask = vae["attention_mask"].bool()
    states = network.encode_tokens(vae["input_ids"], mask)
    stored = vae["encoder_hidden_states"]
    real = mask[:, : stored.shape[1]]
    vae.tensors["real_states"] = stored[real]
    vae.assert_close(states[:, : stored.shape[1]][real], "real_states")
    vae.assert_close(network.layer_norm(states[:, : network.queries].flatten(1)), "bottleneck_in")
    vae.assert_close(passed.mean, "mean")
    vae.assert_close(passed.log_variance, "logvar")
    vae.assert_close(network.encode(vae["input_ids"], mask), "mean")
    vae.assert_close(network.memory(vae["sampled"]), "decoder_memory")


def test_logits(vae, passed):
    assert_logits(vae, passed.logits)


def test_losses(vae, passed):
    config = vae.manifest["config"]
    losses = passed.losses(vae["labels"], config["kld_weight"], config["l2_reg_weight"])
    vae.assert_close(config["recon_weight"] * losses["reconstruction"][None], "recon_loss")
    vae.assert_close(losses["kl"][None], "kld_loss")
    vae.assert_close(losses["l2"][None], "l2_reg")
    vae.assert_close(losses["loss"][None], "total_loss")


def test_greedy_texts(vae, network):
    ids = decode(network, vae["mean"], vae.manifest["config"]["max_length"])
    assert torch.equal(ids, vae["greedy_ids"])
    assert [to_text(line) for line in ids.tolist()] == vae.manifest["greedy_text"]
    texts = [to_text(line, without=(BOS, EOS, PAD)) for line in ids.tolist()]
    exact = [text == phrase for text, phrase in zip(texts, vae.manifest["phrases"], strict=True)]
    assert exact == vae.manifest["exact_reconstruction"]


def test_song_text(vae, network):
    texts = [to_text(line) for line in decode(network, vae["song_latents"]).tolist()]
    assert published_text(texts) == vae.manifest["song_text_early_stop"]
    joined = (word for text in texts for word in text.split() if word not in (BOS, EOS, PAD))
    assert " ".join(joined) == vae.manifest["song_text_no_stop"]


def test_special_latents(vae, network):
    for token, name in (("[INST]", "inst_latent"), ("[SEP]", "sep_latent")):
        ids = torch.tensor([row(to_ids(token), network.queries)])
        vae.assert_close(network.encode(ids, torch.ones_like(ids, dtype=torch.bool))[0], name)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@torch.no_grad()
def test_earlier_stages(parity_root, tmp_path, stage):
    folder = Folder(parity_root("phrase_ldm") / "ae", f"{stage}_io")
    config = folder.manifest["stages"][stage]
    shutil.copy(folder.path / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    network = autoencoder(tmp_path)
    assert network.t5.config.d_ff == folder.manifest["t5_config"]["d_ff"]
    mask = folder["attention_mask"].bool()
    states = network.encode_tokens(folder["input_ids"], mask)
    kept = folder["memory_mask"].bool()
    folder.tensors["real_memory"] = folder["memory"][kept]
    folder.assert_close(states[:, : kept.shape[1]][kept], "real_memory")
    passed = network(folder["input_ids"], mask, folder["labels"])
    assert_logits(folder, passed.logits)
    folder.assert_close(passed.losses(folder["labels"], 0.0)["loss"][None], "loss")
