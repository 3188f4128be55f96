"""From a reference to a model: checkpoints of Lightning, folders of weights, shipped names, repositories of the Hub.

A checkpoint names the class to build, and may come from anyone. So the class must belong to this package or to one
that registered plugins, which is decided before anything is imported, and must be a `MidiModule`. Options are plain
values.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

import midisynth
from midisynth import registry, weights
from midisynth.datasets.files import replacing
from midisynth.errors import CheckpointError, PluginError
from midisynth.module import MidiModule
from midisynth.tensor_files import check_state, load_state, read_checkpoint, read_safetensors, read_tensors

__all__ = [
    "check_resumable",
    "default_for",
    "load_model",
    "load_state",
    "load_weights",
    "packed",
    "read_hyper_parameters",
    "read_tensors",
    "save_weights",
    "shipped_for",
    "trained_config",
    "unpacked",
]

TENSORS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
HUB_PREFIX = "hf://"

# Written by LightningCLI; it names a function that would build the class. Only Lightning's own is known to be harmless,
# and not even that one is called.
_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
# Needed for training alone, and given as class paths.
_TRAINING_OPTIONS = {"optimizer", "lr_scheduler"}
# Entry of the header of a packed checkpoint.
_PACKED = "midisynth"
# Name of a part's bytes among the tensors of a folder.
_PART_PREFIX = "parts."


@dataclass
class _Stored:
    """A checkpoint as it was read.

    Attributes:
        class_path: Of the model.
        options: What its constructor gets.
        state: State dict; empty if only the description was asked for.
        version: Of midisynth, or None if nobody wrote it down.
        data: Class path and options of the data module it was trained with, if known.
        checkpoint: All of it, parts included, for the model's `on_load_checkpoint`.
    """

    class_path: str
    options: dict[str, Any]
    state: Mapping[str, Tensor] = field(default_factory=dict)
    version: str | None = None
    data: dict[str, Any] | None = None
    checkpoint: dict[str, Any] = field(default_factory=dict)


def load_model(reference: str | os.PathLike[str], **overrides: Any) -> MidiModule:
    """Build a model, in evaluation mode, and load its weights.

    Args:
        reference: A `.ckpt` file, a folder with `model.safetensors` and `config.yaml`, the name of a checkpoint that
            ships, or `hf://owner/name[@revision]`.
        overrides: Options that replace those of the checkpoint.

    Raises:
        CheckpointError: It is missing, damaged, foreign, or names a class that is not allowed.
    """
    stored = _read(reference)
    model = _build(stored, overrides, str(reference))
    _fill(model, stored, str(reference))
    return model.eval()


def load_weights(model: MidiModule, reference: str | os.PathLike[str]) -> None:
    """Load the weights of a checkpoint into a model that exists.

    Args:
        model: Of the same architecture.
        reference: As in `load_model`.

    Raises:
        CheckpointError: It cannot be read, or belongs to another model.
    """
    _fill(model, _read(reference), str(reference))


def check_resumable(model: MidiModule, path: str | os.PathLike[str]) -> None:
    """Make sure that training can go on from a checkpoint, before Lightning opens it.

    Args:
        model: That will be trained.
        path: A `.ckpt` file.

    Raises:
        CheckpointError: It cannot be read, is of another model, or has weights alone.
    """
    stored = _read_lightning(Path(path), tensors=True)
    name = stored.class_path.rpartition(".")[2]
    if name != type(model).__name__:
        raise CheckpointError(f"{path}: is of {stored.class_path}, not of {model.class_path()}")
    check_state(model, stored.state, str(path) + _written_by(stored))
    for key in ("optimizer_states", "loops"):
        if key not in stored.checkpoint:
            raise CheckpointError(f"{path}: has weights alone; training can go on only from a complete checkpoint")


def trained_config(reference: str | os.PathLike[str], trusted: Iterable[str] = ()) -> dict[str, Any]:
    """The configuration a checkpoint was trained with; reads no tensors.

    Args:
        reference: As in `load_model`.
        trusted: Packages whose classes are allowed besides ours and those of plugins.

    Returns:
        "model": class path and options; "data": the same of its data module, if the checkpoint knows.

    Raises:
        CheckpointError: It cannot be read, or names a class that is not allowed.
    """
    stored = _read(reference, tensors=False)
    _check_class_path(stored.class_path, str(reference), trusted)
    config = {"model": {"class_path": stored.class_path, "init_args": stored.options}}
    return config if stored.data is None else {**config, "data": stored.data}


def read_hyper_parameters(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Options of the model in a checkpoint, without its class; reads no tensors."""
    return _read(path, tensors=False).options


def shipped_for(class_path: str) -> str | None:
    """Name of the checkpoint that ships of the model with this class path."""
    found = weights.of_class(class_path)
    return None if found is None else found.name


def default_for(suffix: str) -> str | None:
    """Name of the checkpoint that ships for files with this suffix."""
    found = weights.default_for(suffix)
    return None if found is None else found.name


def save_weights(model: MidiModule, folder: str | os.PathLike[str], half: bool = True) -> None:
    """Write the weights as a folder that `load_model` takes: `model.safetensors` and `config.yaml`.

    Args:
        model: With the weights to keep.
        folder: Created where it does not exist.
        half: Store parameters as float16, unless one is too large for it. Buffers, and what is not trained, keep their
            precision: rates of time features are no weights that may be rounded.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        if half and name in trained and tensor.half().isfinite().all():
            tensor = tensor.half()
        tensors[name] = tensor.clone().contiguous()
    parts = model.parts_state()
    for name, part in parts.items():
        if (data := part.pop("data", None)) is not None:
            tensors[_PART_PREFIX + name] = data
    # Not `save_file`, which makes files that nobody but their owner can read.
    content = save(tensors)
    config = {
        "class_path": model.class_path(),
        "init_args": _plain(dict(model.hparams)),
        "parts": parts,
        "sha256": hashlib.sha256(content).hexdigest(),
        "midisynth_version": midisynth.__version__,
    }
    with replacing(folder / TENSORS_FILE) as file:
        file.write(content)
    with replacing(folder / CONFIG_FILE) as file:
        file.write(yaml.safe_dump(config, sort_keys=False).encode())


def packed(reference: str | os.PathLike[str]) -> bytes:
    """A checkpoint without its training, as one safetensors file that describes the model in its header.

    Args:
        reference: As in `load_model`.

    Raises:
        CheckpointError: It cannot be read.
    """
    stored = _read(reference)
    config = {"class_path": stored.class_path, "init_args": stored.options, "midisynth_version": stored.version}
    tensors = {name: tensor.contiguous() for name, tensor in stored.state.items()}
    return save(tensors, metadata={_PACKED: json.dumps(config)})


def unpacked(content: bytes, context: str) -> MidiModule:
    """Build the model, in evaluation mode, that `packed` has made bytes of.

    Args:
        content: The bytes.
        context: Names the model in errors.

    Raises:
        CheckpointError: The bytes are damaged, or name a class that is not allowed.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder, TENSORS_FILE)
        path.write_bytes(content)
        try:
            state = read_safetensors(path)
            with safe_open(path, framework="pt") as file:
                config = json.loads((file.metadata() or {})[_PACKED])
            stored = _Stored(
                config["class_path"], _options(config["init_args"], context), state, config["midisynth_version"]
            )
        except (CheckpointError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{context}: what the checkpoint carries of it is damaged") from error
    model = _build(stored, {}, context)
    _fill(model, stored, context)
    return model.eval()


def _read(reference: str | os.PathLike[str], tensors: bool = True) -> _Stored:
    path = _locate(os.fspath(reference))
    if not path.is_dir():
        return _read_lightning(path, tensors)
    if not (path / CONFIG_FILE).is_file():
        for model in _models():
            if model.is_published(path):
                published = model.read_published(path)
                return _Stored(model.class_path(), published.options, published.state)
    return _read_folder(path, tensors)


def _models() -> Iterator[type[MidiModule]]:
    """The installed models; those that cannot be imported are left out."""
    for entry in registry.entries("models"):
        with suppress(PluginError):
            yield entry.load()


def _locate(reference: str) -> Path:
    if reference.startswith(HUB_PREFIX):
        return _download(reference)
    path = Path(reference).expanduser()
    shipped = weights.find(reference)
    if shipped is not None and not path.exists():
        return shipped.folder
    if not path.exists():
        names = ", ".join(entry.name for entry in weights.shipped())
        raise CheckpointError(
            f"{reference}: no such checkpoint" + (f"; these ship with the package: {names}" if names else "")
        )
    return path


def _download(reference: str) -> Path:
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", reference)
    if match is None:
        raise CheckpointError(f"{reference}: expected hf://owner/name or hf://owner/name@revision")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(f"{reference}: needs the package huggingface_hub: pip install huggingface_hub") from error
    try:
        # Of our own repositories, nothing that could hold code is even downloaded.
        folder = snapshot_download(match[1], revision=match[2], allow_patterns=["*.safetensors", "*.yaml"])
        if not Path(folder, CONFIG_FILE).is_file():
            # Those of others may have pickles: they are read without running what is in them.
            patterns = sorted({pattern for model in _models() for pattern in model.published_files})
            folder = snapshot_download(match[1], revision=match[2], allow_patterns=patterns)
    # It raises errors of its own, of its HTTP client and of the system, without a common base.
    except Exception as error:
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{reference}: cannot be downloaded: {type(error).__name__}: {cause}") from error
    return Path(folder)


def _read_lightning(path: Path, tensors: bool) -> _Stored:
    checkpoint = read_checkpoint(path, check_tensors=tensors)
    options, state = checkpoint.get("hyper_parameters"), checkpoint.get("state_dict")
    class_path = options.get("_class_path") if isinstance(options, Mapping) else None
    if not isinstance(class_path, str) or not isinstance(state, Mapping):
        raise CheckpointError(
            f"{path}: not a checkpoint of midisynth: it does not name its model; published weights of others are read "
            "by `midisynth import`"
        )
    return _Stored(
        class_path,
        _options(options, str(path)),
        state,
        checkpoint.get("midisynth_version"),
        _data_config(checkpoint.get("datamodule_hyper_parameters"), str(path)),
        checkpoint,
    )


def _read_folder(folder: Path, tensors: bool) -> _Stored:
    for name in (CONFIG_FILE, TENSORS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: not a folder of weights: it has no {name}")
    path = folder / CONFIG_FILE
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        cause = " ".join(str(error).split())
        raise CheckpointError(f"{path}: cannot be read as plain YAML: {cause}") from error
    if (
        not isinstance(config, Mapping)
        or not isinstance(config.get("class_path"), str)
        or not isinstance(config.get("init_args"), Mapping)
        or not isinstance(config.get("parts", {}), Mapping)
    ):
        raise CheckpointError(f"{path}: expected class_path, init_args and parts")
    stored = _Stored(
        config["class_path"], _options(config["init_args"], str(path)), version=config.get("midisynth_version")
    )
    if not tensors:
        return stored
    content = read_safetensors(folder / TENSORS_FILE, config.get("sha256"))
    stored.state = {name: tensor for name, tensor in content.items() if not name.startswith(_PART_PREFIX)}
    parts = {
        name: {**entry, **({"data": content[_PART_PREFIX + name]} if _PART_PREFIX + name in content else {})}
        for name, entry in config.get("parts", {}).items()
        if isinstance(entry, Mapping)
    }
    stored.checkpoint = {"state_dict": stored.state, "parts": parts}
    return stored


def _options(stored: Mapping[str, Any], context: str) -> dict[str, Any]:
    """Constructor arguments in what a checkpoint stores of them."""
    instantiator = stored.get("_instantiator", _INSTANTIATOR)
    if instantiator != _INSTANTIATOR:
        raise CheckpointError(f"{context}: refused: it asks to be built by {instantiator!r}")
    return _plain(
        {
            key: value
            for key, value in stored.items()
            if isinstance(key, str) and not key.startswith("_") and key not in _TRAINING_OPTIONS
        }
    )


def _data_config(stored: Any, context: str) -> dict[str, Any] | None:
    if not isinstance(stored, Mapping) or not isinstance(stored.get("_class_path"), str):
        return None
    return {"class_path": stored["_class_path"], "init_args": _options(stored, context)}


def _plain(value: Any) -> Any:
    """The value with mappings and sequences as dicts and lists, which YAML and JSON know."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _check_class_path(class_path: str, context: str, trusted: Iterable[str] = ()) -> None:
    package = class_path.partition(".")[0]
    allowed = {"midisynth", *registry.plugin_packages(), *trusted}
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", class_path) or package not in allowed:
        raise CheckpointError(
            f"{context}: refused: its model is {class_path!r}, which is of no installed plugin "
            f"(known packages: {', '.join(sorted(allowed))})"
        )


def _build(stored: _Stored, overrides: Mapping[str, Any], context: str) -> MidiModule:
    _check_class_path(stored.class_path, context)
    module, _, name = stored.class_path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"{context}: its model {stored.class_path} is not installed ({error})") from error
    if not (isinstance(cls, type) and issubclass(cls, MidiModule)):
        raise CheckpointError(f"{context}: refused: {stored.class_path} is no model")
    options = {**stored.options, **overrides}
    known = inspect.signature(cls).parameters
    unknown = sorted(options.keys() - known.keys())
    if unknown and not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        raise CheckpointError(f"{context}: {name} has no option {unknown[0]!r}{_written_by(stored)}")
    try:
        return cls(**options)
    # Options out of a file can be of any type and size, and fail in any line of the constructor.
    except Exception as error:
        cause = " ".join(str(error).split())
        raise CheckpointError(f"{context}: {name} cannot be built with its options: {cause}") from error


def _fill(model: MidiModule, stored: _Stored, context: str) -> None:
    if stored.class_path != model.class_path() and stored.class_path.rpartition(".")[2] != type(model).__name__:
        context = f"{context} (of {stored.class_path})"
    state = {name: tensor for name, tensor in stored.state.items() if isinstance(tensor, Tensor)}
    load_state(model, state, context + _written_by(stored))
    with torch.no_grad():
        model.on_load_checkpoint(stored.checkpoint)


def _written_by(stored: _Stored) -> str:
    if stored.version in (None, midisynth.__version__):
        return ""
    return f" (written by midisynth {stored.version}, this is {midisynth.__version__})"
