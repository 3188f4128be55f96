"""From a reference to a model, and what is said about damaged, foreign and old checkpoints."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from midisynth_sines import Octaves, Sines
from safetensors.torch import load_file, save_file
from torch import nn

from midisynth import checkpoints, weights
from midisynth.errors import CheckpointError, UsageError
from midisynth.render import default_checkpoint, predict
from midisynth.tensor_files import file_sha256


def save(model: Sines, path: Path) -> Path:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path, weights_only=True)
    return path


def unusual() -> Sines:
    model = Sines(harmonics=5, block_sec=0.25)
    nn.init.uniform_(model.levels)
    model.tuning_hz.fill_(415.0)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(unusual(), tmp_path / "model.ckpt")


def edited(path: Path, change) -> Path:
    """The checkpoint with a change, beside it."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path.with_name("edited.ckpt"))
    return path.with_name("edited.ckpt")


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_gives_class_options_and_weights(saved: Path):
    model = checkpoints.load_model(saved)
    torch.manual_seed(0)
    assert type(model) is Sines and same_weights(model, unusual())
    assert model.hparams.harmonics == 5 and model.hparams.block_sec == 0.25
    assert checkpoints.load_model(saved, block_sec=1.0).hparams.block_sec == 1.0
    config = checkpoints.trained_config(saved)
    assert config["model"]["class_path"] == "midisynth_sines.Sines"
    assert checkpoints.read_hyper_parameters(saved) == config["model"]["init_args"]
    assert "optimizer" not in config["model"]["init_args"]


def test_weights_go_into_a_model_that_exists(saved: Path):
    model = Sines(harmonics=5)
    checkpoints.load_weights(model, saved)
    torch.manual_seed(0)
    assert same_weights(model, unusual())


@pytest.mark.parametrize("half", [False, True])
def test_a_folder_of_weights(half: bool, tmp_path: Path):
    model = unusual()
    checkpoints.save_weights(model, tmp_path / "weights", half=half)
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["config.yaml", "model.safetensors"]
    stored = load_file(tmp_path / "weights" / "model.safetensors")
    assert stored["levels"].dtype == (torch.float16 if half else torch.float32)
    assert stored["tuning_hz"].dtype == torch.float32  # a buffer
    loaded = checkpoints.load_model(tmp_path / "weights")
    assert loaded.levels.dtype == torch.float32
    torch.testing.assert_close(loaded.levels, model.levels, rtol=0, atol=5e-4 if half else 0)
    assert loaded.hparams == model.hparams


def test_weights_can_be_read_by_whom_the_umask_allows(tmp_path: Path):
    before = os.umask(0o027)
    try:
        checkpoints.save_weights(Sines(), tmp_path / "weights")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "weights").iterdir()} == {0o640}


def test_values_too_large_for_half_keep_their_precision(tmp_path: Path):
    model = Sines()
    nn.init.constant_(model.levels, 1e6)
    checkpoints.save_weights(model, tmp_path / "weights")
    assert torch.equal(checkpoints.load_model(tmp_path / "weights").levels, model.levels)


def test_averaged_weights_are_what_is_loaded(tmp_path: Path):
    model = Sines()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=4,
        callbacks=[EMAWeightAveraging(decay=0.5), ModelCheckpoint(tmp_path, "averaged", every_n_train_steps=3)],
    )
    start = model.levels.detach().clone()
    trainer.fit(model)
    content = torch.load(tmp_path / "averaged.ckpt", weights_only=True)
    loaded = checkpoints.load_model(tmp_path / "averaged.ckpt")
    assert torch.equal(loaded.levels, content["state_dict"]["levels"])
    moved, averaged = (start - levels for levels in (content["current_model_state"]["levels"], loaded.levels))
    assert (moved > averaged).all() and (averaged > 0).all()  # the average lags behind


def test_shipped_checkpoints_and_defaults(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, model in (("sines_small", Sines()), ("octaves", Octaves())):
        checkpoints.save_weights(model, tmp_path / name)
    digests = [file_sha256(tmp_path / n / "model.safetensors") for n in ("sines_small", "octaves")]
    (tmp_path / "index.yaml").write_text(
        f"checkpoints:\n- {{name: octaves, reads: [.mid], writes: .mid, sha256: {digests[1]}}}\n"
        f"- {{name: sines_small, reads: [.mid, .kar], writes: .wav, sha256: {digests[0]}}}\n"
    )
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    weights.shipped.cache_clear()
    try:
        assert checkpoints.default_for(".mid") == "octaves" and checkpoints.default_for(".KAR") == "sines_small"
        assert checkpoints.default_for(".xyz") is None
        assert type(checkpoints.load_model("sines_small")) is Sines
        assert default_checkpoint(["song.mid"]) == "octaves"
        with pytest.raises(UsageError, match=r"song.xyz: no checkpoint ships that reads it"):
            default_checkpoint(["song.xyz"])
        with pytest.raises(CheckpointError, match="nonsense: no such checkpoint; these ship with the package: octaves"):
            checkpoints.load_model("nonsense")
    finally:
        weights.shipped.cache_clear()


def test_what_ships_is_what_the_index_says():
    """Every checkpoint of the package loads, and is the file whose hash the index has."""
    for entry in weights.shipped():
        assert file_sha256(entry.folder / "model.safetensors") == entry.sha256
        assert (entry.folder / "CARD.md").is_file()
        model = checkpoints.load_model(entry.name)
        if entry.writes is not None:
            assert model.writes == entry.writes and set(entry.reads) <= set(model.reads)
        assert all(path.stat().st_size <= 16e6 for path in entry.folder.iterdir())


def test_the_hub_is_asked_for_weights_alone_and_failure_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for reference in ("hf://owner", "hf://owner/name@", "hf://owner/name/../x", "hf://own er/name"):
        with pytest.raises(CheckpointError, match="expected hf://owner/name"):
            checkpoints.load_model(reference)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"^hf://owner/name@v1: cannot be downloaded: [^\n]+$"):
        checkpoints.load_model("hf://owner/name@v1")


# Damage


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>404</html>", "a web page, not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
        (b"MThd\x00\x00\x00\x06", "not a checkpoint: expected a file as torch.save writes it"),
        (b"PK\x03\x04 and no more", "damaged or cut off: expected a checkpoint"),
    ],
)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_other_files_are_named(content: bytes, message: str, suffix: str, tmp_path: Path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    if suffix == ".safetensors" and content[:2] in (b"MT", b"PK"):
        message = "damaged: expected a safetensors file"
    with pytest.raises(CheckpointError, match=message) as raised:
        checkpoints.read_tensors(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_checkpoint_that_is_cut_anywhere(saved: Path, tmp_path: Path):
    data = saved.read_bytes()
    for cut in np.linspace(0, len(data) - 1, 20).astype(int):
        path = tmp_path / "cut.ckpt"
        path.write_bytes(data[:cut])
        for read in (checkpoints.load_model, checkpoints.trained_config):
            with pytest.raises(CheckpointError, match=r"damaged or cut off|the file is empty|not a checkpoint"):
                read(path)


@pytest.mark.parametrize("kind", ["checkpoint", "folder"])
def test_flipped_bits_are_found_or_harmless(kind: str, saved: Path, tmp_path: Path):
    """Whatever bit flips, the result is an error for users or the very same model."""
    want = checkpoints.load_model(saved)
    folder = tmp_path / "weights"
    checkpoints.save_weights(want, folder, half=False)
    target = saved if kind == "checkpoint" else folder / "model.safetensors"
    data, choose = target.read_bytes(), random.Random(0)
    found = 0
    for _ in range(50):
        flipped = bytearray(data)
        flipped[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
        target.write_bytes(flipped)
        try:
            model = checkpoints.load_model(saved if kind == "checkpoint" else folder)
        except CheckpointError as error:
            assert "\n" not in str(error)
            found += 1
        else:
            assert same_weights(model, want) and model.hparams == want.hparams
    assert found >= (50 if kind == "folder" else 10)  # in the zip file much is padding


def test_every_flipped_bit_of_a_tensor_is_found(saved: Path):
    data = saved.read_bytes()
    tensor = torch.load(saved, weights_only=True)["state_dict"]["levels"].numpy().tobytes()
    start = data.index(tensor)
    for offset in range(len(tensor)):
        flipped = bytearray(data)
        flipped[start + offset] ^= 0x10
        saved.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoints.load_model(saved)


def test_missing_and_extra_tensors_are_counted_and_nothing_is_loaded(saved: Path):
    def change(content):
        state = content["state_dict"]
        del state["levels"]
        state.update({f"extra.{i}": torch.zeros(1) for i in range(7)})

    model = Sines(harmonics=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        checkpoints.load_weights(model, edited(saved, change))
    listed = ", ".join(f"extra.{i}" for i in range(5))
    assert f"do not fit Sines: 1 missing: levels; 7 unexpected: {listed} and 2 more" in str(raised.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_other_shapes_and_kinds_are_told(saved: Path):
    with pytest.raises(CheckpointError, match=r"1 of another shape: levels \[5\] instead of \[3\]"):
        checkpoints.load_weights(Sines(harmonics=3), saved)
    path = edited(saved, lambda content: content["state_dict"].update(tuning_hz=torch.tensor(1)))
    with pytest.raises(CheckpointError, match=r"1 of another kind: tuning_hz torch.int64 instead of torch.float32"):
        checkpoints.load_model(path)


def test_another_models_checkpoint_says_whose_it_is(saved: Path):
    class Other(Sines):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(2, 2)

    with pytest.raises(CheckpointError, match=r"\(of midisynth_sines.Sines\): its tensors do not fit Other: 2 missing"):
        checkpoints.load_weights(Other(), saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["hyper_parameters"].pop("_class_path"), "it does not name its model"),
        (lambda c: c.pop("hyper_parameters"), "it does not name its model"),
        (lambda c: c.update(state_dict=[1]), "it does not name its model"),
        (lambda c: c["hyper_parameters"].update(old_option=1), "Sines has no option 'old_option'"),
        (lambda c: c["hyper_parameters"].update(harmonics="many"), "Sines cannot be built with its options"),
        (lambda c: c["hyper_parameters"].update(_class_path="midisynth_sines.Gone"), "is not installed"),
    ],
)
def test_descriptions_that_do_not_fit(change, message: str, saved: Path):
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load_model(edited(saved, change))


def test_an_older_version_is_named_when_it_does_not_fit(saved: Path):
    def change(content):
        content["midisynth_version"] = "0.0.1"
        content["state_dict"]["gains"] = content["state_dict"].pop("levels")

    with pytest.raises(CheckpointError, match=r"written by midisynth 0\.0\.1, this is"):
        checkpoints.load_model(edited(saved, change))


def test_a_state_dict_alone_is_read_as_published_tensors(tmp_path: Path):
    tensors = {"a": torch.arange(3), "b": torch.rand(2)}
    torch.save(tensors, tmp_path / "bare.pt")
    torch.save({"state_dict": tensors, "epoch": 1}, tmp_path / "nested.pth")
    save_file(tensors, tmp_path / "file.safetensors")
    for name in ("bare.pt", "nested.pth", "file.safetensors"):
        assert all(torch.equal(t, tensors[n]) for n, t in checkpoints.read_tensors(tmp_path / name).items())
    torch.save({"state_dict": {"a": 1}}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="expected a state dict"):
        checkpoints.read_tensors(tmp_path / "odd.pt")


# Parts


@pytest.fixture
def square_wave(tmp_path: Path) -> Path:
    path = tmp_path / "square.f32"
    path.write_bytes(np.repeat(np.float32([1, -1]), 64).tobytes())
    return path


@pytest.mark.parametrize("kind", ["checkpoint", "folder"])
def test_a_checkpoint_carries_its_parts(kind: str, square_wave: Path, tmp_path: Path, write_notes):
    source = write_notes(tmp_path / "a.mid")
    model = Sines(wavetable=str(square_wave))
    assert list(model.state_dict()) == ["levels", "tuning_hz"]
    predict(model, source, tmp_path / "before.wav")
    stored = tmp_path / "stored"
    save(model, stored) if kind == "checkpoint" else checkpoints.save_weights(model, stored, half=False)
    square_wave.unlink()
    loaded = checkpoints.load_model(stored)
    predict(loaded, source, tmp_path / "after.wav")
    assert (tmp_path / "after.wav").read_bytes() == (tmp_path / "before.wav").read_bytes()
    # It goes on carrying them, and a part that the user names takes their place.
    again = checkpoints.load_model(save(loaded, tmp_path / "again.ckpt"))
    predict(again, source, tmp_path / "again.wav")
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "before.wav").read_bytes()
    predict(checkpoints.load_model(stored, wavetable="none"), source, tmp_path / "sine.wav")
    assert (tmp_path / "sine.wav").read_bytes() != (tmp_path / "before.wav").read_bytes()


def test_a_part_that_was_exchanged_is_refused(square_wave: Path, tmp_path: Path):
    path = save(Sines(wavetable=str(square_wave)), tmp_path / "model.ckpt")
    entry = torch.load(path, weights_only=True)["parts"]["wavetable"]
    assert entry["sha256"] == hashlib.sha256(square_wave.read_bytes()).hexdigest()
    assert entry["data"].dtype == torch.uint8
    path = edited(path, lambda content: content["parts"]["wavetable"]["data"].add_(1))
    with pytest.raises(CheckpointError, match="its part 'wavetable' is damaged: the SHA-256 differs"):
        checkpoints.load_model(path)
    path = edited(path, lambda content: content.update(parts={"wavetable": 3}))
    with pytest.raises(CheckpointError, match="its part 'wavetable' is malformed"):
        checkpoints.load_model(path)


def test_a_part_that_cannot_be_had_fails_when_it_is_needed(tmp_path: Path, write_notes):
    model = Sines(wavetable=str(tmp_path / "missing.f32"))
    (failed,) = predict(model, write_notes(tmp_path / "a.mid")).failed
    assert "missing.f32" in failed.reason


def test_a_part_is_shared_by_copies_and_stays_out_of_modules(square_wave: Path):
    import copy

    model = Sines(wavetable=str(square_wave))
    part = model.part("wavetable")
    assert copy.deepcopy(model).part("wavetable") is part
    assert not list(model.children())


def test_a_folder_whose_config_is_of_other_tensors(tmp_path: Path):
    for name, harmonics in (("one", 2), ("two", 2)):
        checkpoints.save_weights(Sines(harmonics=harmonics, block_sec=0.25 if name == "one" else 0.5), tmp_path / name)
        model = checkpoints.load_model(tmp_path / name)
        nn.init.constant_(model.levels, 0.5 if name == "one" else 0.25)
        checkpoints.save_weights(model, tmp_path / name)
    shutil.copy(tmp_path / "one" / "model.safetensors", tmp_path / "two")
    with pytest.raises(CheckpointError, match="damaged or exchanged"):
        checkpoints.load_model(tmp_path / "two")
    config = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    (tmp_path / "one" / "config.yaml").write_text(yaml.safe_dump({**config, "init_args": None}))
    with pytest.raises(CheckpointError, match="expected class_path, init_args and parts"):
        checkpoints.load_model(tmp_path / "one")
    (tmp_path / "one" / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"it has no config.yaml"):
        checkpoints.load_model(tmp_path / "one")
