"""Checkpoints made to attack whoever opens them: refused, quickly, and nothing of theirs runs."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from midisynth_sines import Sines

from midisynth import checkpoints
from midisynth.errors import CheckpointError
from midisynth.main import main

LONGEST_SEC = 1.0


class Gadget:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class State:
    """Calls `eval` through the state of an object."""

    def __init__(self, code: str):
        self.code = code

    def __reduce__(self):
        return eval, (self.code,)


def gadgets(marker: Path) -> dict[str, object]:
    touch = f"touch '{marker}'"
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Gadget(os.system, touch),
        "subprocess": Gadget(subprocess.Popen, ["touch", str(marker)]),
        "eval": State(code),
        "exec": Gadget(exec, code),
        "import": Gadget(__import__, "antigravity"),
        "write": Gadget(Path.touch, marker),
    }


@pytest.fixture
def marker(tmp_path: Path):
    """A file that appears when an attack succeeds."""
    path = tmp_path / "owned"
    yield path
    assert not path.exists(), "code of the file was run"
    assert "antigravity" not in sys.modules


@pytest.fixture
def honest(tmp_path: Path) -> dict:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(Sines())
    trainer.save_checkpoint(tmp_path / "honest.ckpt", weights_only=True)
    return torch.load(tmp_path / "honest.ckpt", weights_only=True)


def everywhere(path: Path, source: Path) -> list[list[str]]:
    """Every command that opens a checkpoint."""
    here = ["--trainer.accelerator=cpu", "--trainer.logger=false"]
    return [
        ["predict", str(source), f"--ckpt_path={path}", f"--output={source.parent}/out/", *here],
        ["test", "--model=sines", f"--ckpt_path={path}", *here],
        ["fit", "--model=sines", f"--ckpt_path={path}", "--trainer.max_steps=1", *here],
        ["import", "spectrogram_diffusion", str(path), f"--output={source.parent}/made.ckpt"],
    ]


@pytest.mark.parametrize("place", ["beside", "hyper_parameters", "state_dict", "bare"])
@pytest.mark.parametrize("name", ["os.system", "subprocess", "eval", "exec", "import", "write"])
def test_objects_in_a_checkpoint_are_refused(name: str, place: str, honest: dict, marker: Path, tmp_path: Path):
    gadget = gadgets(marker)[name]
    if place == "beside":
        honest["callbacks"] = gadget
    elif place != "bare":
        honest[place]["levels"] = gadget
    path = tmp_path / "hostile.ckpt"
    torch.save(gadget if place == "bare" else honest, path)
    for read in (checkpoints.load_model, checkpoints.trained_config, checkpoints.read_tensors):
        with pytest.raises(CheckpointError, match="refused: it contains objects other than tensors and plain values"):
            read(path)


@pytest.mark.parametrize("format", ["pickle", "legacy"])
def test_pickles_outside_a_zip_file_are_refused(format: str, marker: Path, tmp_path: Path):
    path = tmp_path / "hostile.ckpt"
    gadget = gadgets(marker)["os.system"]
    if format == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": gadget}))
    else:
        torch.save({"state_dict": gadget}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"not a checkpoint: expected a file as torch\.save writes it"):
        checkpoints.load_model(path)


@pytest.mark.parametrize("command", [0, 1, 2, 3], ids=["predict", "test", "fit", "import"])
@pytest.mark.parametrize("attack", ["gadget", "class_path", "instantiator"])
def test_no_command_runs_what_a_checkpoint_says(
    attack: str, command: int, honest: dict, marker: Path, tmp_path: Path, write_notes, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    options = honest["hyper_parameters"]
    if attack == "gadget":
        honest["loops"] = gadgets(marker)["os.system"]
    elif attack == "class_path":
        options.clear()
        options.update(_class_path="os.system", command=f"touch '{marker}'")
    else:
        options.update(_instantiator="os.system", command=f"touch '{marker}'")
    torch.save(honest, tmp_path / "hostile.ckpt")
    words = everywhere(tmp_path / "hostile.ckpt", write_notes(tmp_path / "a.mid"))[command]
    assert main(words) == 1
    complaint = [line for line in capfd.readouterr().err.splitlines() if line.startswith("midisynth: error: ")]
    assert len(complaint) == 1 and "hostile.ckpt" in complaint[0]
    assert not (tmp_path / "out").exists() and not (tmp_path / "made.ckpt").exists()


@pytest.mark.parametrize(
    "class_path",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "torch.hub.load",
        "lightning.pytorch.Trainer",
        "hostile_module.Model",
        "midisynth.main.main",
        "midisynth.datasets.folder.Folder",
        "midisynth.audio.io.os.system",
        "midisynth",
        "midisynth..main",
        "midisynth.main.__globals__",
        "/tmp/evil.Model",
        "",
    ],
)
def test_classes_that_are_no_models_are_refused(
    class_path: str, honest: dict, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Packages that no plugin belongs to are not even imported."""
    (tmp_path / "hostile_module.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    honest["hyper_parameters"]["_class_path"] = class_path
    torch.save(honest, tmp_path / "hostile.ckpt")
    with pytest.raises(CheckpointError):
        checkpoints.load_model(tmp_path / "hostile.ckpt")
    folder = tmp_path / "weights"
    checkpoints.save_weights(Sines(), folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "class_path": class_path}))
    with pytest.raises(CheckpointError):
        checkpoints.load_model(folder)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "!!python/object/new:subprocess.Popen [['touch', '{marker}']]",
        "!!python/name:os.system",
        "!!python/module:antigravity",
        "!!python/object:midisynth_sines.Sines {{}}",
    ],
)
def test_tags_in_a_config_are_refused(tag: str, marker: Path, tmp_path: Path):
    folder = tmp_path / "weights"
    checkpoints.save_weights(Sines(), folder)
    with (folder / "config.yaml").open("a") as file:
        file.write(f"extra: {tag.format(marker=marker)}\n")
    for read in (checkpoints.load_model, checkpoints.trained_config):
        with pytest.raises(CheckpointError, match="cannot be read as plain YAML"):
            read(folder)


def test_code_in_a_folder_is_not_looked_at(marker: Path, tmp_path: Path):
    folder = tmp_path / "weights"
    checkpoints.save_weights(Sines(), folder)
    for name in ("modeling.py", "midisynth_sines.py", "__init__.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w').close()\n")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(gadgets(marker)["os.system"]))
    assert type(checkpoints.load_model(folder)) is Sines


def test_a_compressed_record_is_refused(tmp_path: Path, honest: dict):
    """A zip bomb: torch would unpack it into memory."""
    torch.save(honest, tmp_path / "plain.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "plain.ckpt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for info in plain.infolist():
            bomb.writestr(info.filename, plain.read(info))
        bomb.writestr("archive/data/99", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="its records are compressed"):
        checkpoints.load_model(tmp_path / "bomb.ckpt")


def file(header: object, body: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(start: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def many_tensors(count: int) -> bytes:
    entry = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return ("{" + ",".join(entry % number for number in range(count)) + "}").encode()


ATTACKS: dict[str, Callable[[], bytes]] = {
    "header larger than the file": lambda: file({"a": tensor(0, 8)}, length=1 << 20),
    "header of 2^63 bytes": lambda: file({"a": tensor(0, 8)}, length=1 << 63),
    "100 MB header": lambda: file(b"{" + b" " * 100_000_000 + b"}"),
    "a million tensors": lambda: file(many_tensors(1_000_000), b""),
    "overlapping": lambda: file({"a": tensor(0, 8), "b": tensor(4, 12)}),
    "short": lambda: file({"a": tensor(0, 4)}),
    "past the end": lambda: file({"a": tensor(0, 800, (200,))}),
    "backwards": lambda: file({"a": tensor(8, 0)}),
    "hole": lambda: file({"a": tensor(0, 4, (1,)), "b": tensor(8, 16)}),
    "huge shape": lambda: file({"a": tensor(0, 8, (1 << 40, 1 << 40))}),
    "negative shape": lambda: file({"a": tensor(0, 8, (-2,))}),
    "unknown type": lambda: file({"a": tensor(0, 8, dtype="Q99")}),
    "not JSON": lambda: file(b"{{{{"),
    "a list": lambda: file([1, 2]),
    "deep": lambda: file(b"[" * 100_000),
    "only a length": lambda: struct.pack("<Q", 8),
    "three bytes": lambda: b"abc",
}


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_malformed_safetensors_are_refused_at_once(name: str, tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(ATTACKS[name]())
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged: expected a safetensors file"):
        checkpoints.read_tensors(path)
    assert time.monotonic() - started < LONGEST_SEC
