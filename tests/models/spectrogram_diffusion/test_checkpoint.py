"""The importer's errors and leniency; that what it reads computes the same is shown in tests/parity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from midisynth.errors import CheckpointError
from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion
from midisynth.models.spectrogram_diffusion.checkpoint import published_name


@pytest.fixture
def published(build) -> dict[str, Tensor]:
    """State dict of a tiny model under its published names, with the constants that the file carries."""
    model = build(compat="seed", heads=1, head_dim=64)
    tensors = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    tensors["mel.0.spectrogram.window"] = torch.hann_window(640)
    tensors["mel.0.mel_scale.fb"] = torch.zeros(513, 128)
    tensors["mel.1.min"], tensors["mel.1.max"] = torch.tensor(-11.5), torch.tensor(3.2)
    return tensors


def write(tensors: dict[str, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "published.ckpt"
    torch.save({"state_dict": tensors, "epoch": 3, "optimizer_states": [{"state": {}, "param_groups": []}]}, path)
    return path


def test_reads_what_a_lightning_checkpoint_holds(published, tmp_path):
    model = SpectrogramDiffusion.load_published(write(published, tmp_path))
    assert model.hparams.compat == "seed"
    assert (model.hparams.heads, model.hparams.head_dim, model.hparams.layers) == (1, 64, 2)
    assert model.mel_range.max == pytest.approx(3.2)
    for name, tensor in model.state_dict().items():
        assert tensor.equal(published[published_name(name)]), name


def test_constants_of_the_features_may_be_absent(published, tmp_path):
    tensors = {name: tensor for name, tensor in published.items() if not name.startswith("mel.0.")}
    SpectrogramDiffusion.load_published(write(tensors, tmp_path))


def test_names_are_unique(published, build):
    for model in (build(compat="seed"), build(note_roll=True)):
        names = list(model.state_dict())
        assert len({published_name(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop("mel.1.min"), r"1 tensors are missing: mel\.1\.min"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 tensors are unknown: extra"),
        (lambda t: t.pop("model.emb.weight"), r"has no tensor model\.emb\.weight"),
        (
            lambda t: t.update({"model.transformer.context_encoder.norm.weight": torch.ones(16)}),
            r"\d+ tensors are missing: model\.transformer\.context_encoder\.layers\.0",
        ),
        (lambda t: t.update({"model.linear_out.bias": torch.zeros(5)}), "of another shape"),
        (
            lambda t: t.update({"model.transformer.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(30, 16)}),
            "not a multiple of 64",
        ),
    ],
)
def test_other_checkpoints_are_refused_in_one_line(published, tmp_path, change, text):
    change(published)
    with pytest.raises(CheckpointError, match=rf"published\.ckpt: .*{text}") as caught:
        SpectrogramDiffusion.load_published(write(published, tmp_path))
    assert "\n" not in str(caught.value)
