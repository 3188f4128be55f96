"""Trained vocoders as parts of other models: found by reference, carried by checkpoints, at rates of their own."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from midisynth import registry, weights
from midisynth.audio.vocoder import GriffinLim
from midisynth.checkpoints import load_model, save_weights
from midisynth.errors import CheckpointError
from midisynth.module import Item, MidiModule, Noise
from midisynth.stored_parts import store_part
from midisynth.testing_inputs import example_inputs
from midisynth.vocoders import load_vocoder, read_vocoder

SPECTROGRAM = {"sample_rate": 16000, "n_fft": 1024, "win_length": 640, "hop_length": 320, "mels": 128}


@pytest.fixture(scope="module")
def vocoder() -> MidiModule:
    torch.manual_seed(0)
    return registry.load("models", "vocoder")(dim=16, hidden_dim=16, layers=1, sample_rate=32000).eval()


@pytest.fixture
def saved(vocoder, tmp_path) -> Path:
    """The vocoder as a folder of weights."""
    save_weights(vocoder, tmp_path / "piano", half=False)
    return tmp_path / "piano"


def checkpoint_of(model: MidiModule, path: Path) -> Path:
    """Save as a fit does."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)
    return path


def synthesizer(reference: object, **options) -> MidiModule:
    torch.manual_seed(0)
    sizes = {
        "segment_frames": 64,
        "overlap_frames": 8,
        "dim": 16,
        "hidden_dim": 24,
        "heads": 2,
        "head_dim": 8,
        "layers": 1,
    }
    options = {**sizes, "tokens": False, "note_roll": True, "sample_steps": 2, "guidance_scale": 1.0, **options}
    return registry.load("models", "spectrogram_diffusion")(**options, vocoder=str(reference)).eval()


def rendered(model: MidiModule, path: Path) -> torch.Tensor:
    """What `predict` writes, [channels, samples]."""
    with torch.inference_mode():
        chunks = list(model.render([model.codec.encode(path)], Noise([Item(path, path, "key")])))
    assert {chunk.sample_rate for _, chunk in chunks} == {model.part("vocoder").sample_rate}
    return torch.cat([chunk.audio for _, chunk in chunks], dim=1)


def test_by_every_kind_of_reference(vocoder, saved, tmp_path, monkeypatch):
    mel = torch.randn(30, 128)
    assert isinstance(load_vocoder("griffin_lim", **SPECTROGRAM), GriffinLim)
    by_folder = load_vocoder(str(saved), **SPECTROGRAM)
    assert torch.equal(by_folder(mel), vocoder(mel))
    by_checkpoint = load_vocoder(str(checkpoint_of(vocoder, tmp_path / "piano.ckpt")), **SPECTROGRAM)
    assert torch.equal(by_checkpoint(mel), vocoder(mel))
    shipped = weights.Shipped("grand", (), None, "0" * 64)
    monkeypatch.setattr(weights, "shipped", lambda: (shipped,))
    monkeypatch.setattr(weights, "FOLDER", saved.parent)
    shutil.copytree(saved, saved.parent / "grand")
    assert torch.equal(load_vocoder("grand", **SPECTROGRAM)(mel), vocoder(mel))
    assert read_vocoder("grand") is None and read_vocoder("griffin_lim") is None


def test_its_rate_is_the_rate_of_the_piece(saved, tmp_path):
    (path, *_) = example_inputs([".mid"], tmp_path)
    low, high = (synthesizer(reference) for reference in ("griffin_lim", saved))
    samples = low.codec.encode(path)["samples"]
    assert rendered(low, path).shape == (1, samples)
    audio = rendered(high, path)
    assert audio.shape == (1, 2 * samples)
    assert audio.abs().max() > 0
    assert low.duration_sec(low.codec.encode(path)) == pytest.approx(samples / 16000)


@pytest.mark.parametrize("kind", ["ckpt", "folder"])
def test_a_checkpoint_carries_it(saved, tmp_path, kind):
    """What was trained with a vocoder sounds the same where that file does not exist."""
    (path, *_) = example_inputs([".mid"], tmp_path)
    model = synthesizer(saved)
    wanted = rendered(model, path)
    if kind == "ckpt":
        reference = checkpoint_of(model, tmp_path / "whole.ckpt")
    else:
        reference = tmp_path / "whole"
        save_weights(model, reference, half=False)
    shutil.rmtree(saved)
    loaded = load_model(reference)
    assert torch.equal(rendered(loaded, path), wanted)
    # Saved again, it is still there.
    save_weights(loaded, tmp_path / "again", half=False)
    assert torch.equal(rendered(load_model(tmp_path / "again"), path), wanted)


def test_what_is_no_vocoder_for_this_model(saved, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint"):
        load_vocoder("nowhere", **SPECTROGRAM)
    with pytest.raises(
        CheckpointError, match=r"takes 128 mel bins every 20 ms, but this model makes 80 bins every 16 ms"
    ):
        load_vocoder(str(saved), **{**SPECTROGRAM, "mels": 80, "hop_length": 256})
    save_weights(synthesizer("griffin_lim"), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"of SpectrogramDiffusion, which is no vocoder"):
        load_vocoder(str(tmp_path / "other"), **SPECTROGRAM)
    content = read_vocoder(str(saved))
    with pytest.raises(CheckpointError, match="what the checkpoint carries of it is damaged"):
        load_vocoder("gone", content=content[: len(content) // 2], **SPECTROGRAM)
    stranger = content.replace(b"midisynth.models.vocoder.NeuralVocoder", b"strangers.models.vocoder.NeuralVocoder")
    with pytest.raises(CheckpointError, match=r"refused: its model is 'strangers"):
        load_vocoder("gone", content=stranger, **SPECTROGRAM)


def test_a_part_lies_in_one_file_for_all_processes(vocoder, saved, tmp_path):
    """Named after what is in it, whether a checkpoint carried it, a folder has it, or the package."""
    folder = tmp_path / "cache" / "data"
    found = store_part(synthesizer(saved), "vocoder", folder)
    assert [found.path] == list(folder.iterdir())
    assert found.path.name == f"vocoder-{found.digest[:16]}.safetensors"
    written = found.path.stat().st_mtime_ns
    path = checkpoint_of(synthesizer(saved), tmp_path / "model.ckpt")
    shutil.rmtree(saved)
    assert store_part(load_model(path), "vocoder", folder) == found
    assert found.path.stat().st_mtime_ns == written
    part = pickle.loads(pickle.dumps(found)).load()
    assert part is found.load()
    assert not part.training
    mel = torch.rand(20, 128)
    torch.testing.assert_close(part(mel), vocoder(mel), rtol=0, atol=0)
    shipped = store_part(synthesizer("vocoder_piano"), "vocoder", folder)
    assert shipped.digest != found.digest
    assert shipped.load().hparams == load_model("vocoder_piano").hparams
