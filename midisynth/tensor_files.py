"""Reading files of tensors that may be damaged, foreign or hostile, and putting tensors into modules.

Nothing in such a file is ever executed: pickles are read with torch's restricted unpickler, and safetensors have no
code. Damage is looked for before tensors are used, because neither format's reader does: torch is built without the
checksum test of its zip files, and safetensors has no checksums.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn, serialization

from midisynth.errors import CheckpointError, TensorMismatch

#: Real headers take some hundred bytes a tensor. Parsing what the format allows (100 MB) takes seconds.
MAX_HEADER_BYTES = 10_000_000

#: What files of torch.save from before 1.6 start with: a pickled number. They have no checksums.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

#: Kinds of storages in them.
_OLD_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

#: How many names an error lists.
LISTED = 5


class Inert:
    """What is left of an object of a class that is not loaded: what it was made of, and its state, both as they are.

    Attributes:
        args: What its class was called with.
        state: What its attributes were set from; None if that did not happen.
    """

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Inert:
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_checkpoint(
    path: str | os.PathLike[str], check_tensors: bool = True, legacy: bool = False, inert: bool = False
) -> dict[str, Any]:
    """Read a checkpoint in torch's zip format; its tensors stay on disk until they are used.

    Args:
        path: The file.
        check_tensors: Compare the checksums of the tensors, which reads all of them, and not only of what describes
            them.
        legacy: Take files in the format before torch 1.6 as well, whose damage can stay unnoticed.
        inert: Put `Inert` in the place of objects that are neither tensors nor plain values, instead of refusing them.
            Their classes are not looked for, let alone called.

    Raises:
        CheckpointError: The file is missing, damaged, not a checkpoint, or contains more than tensors and plain values.
    """
    path = Path(path)
    old = legacy and _is_legacy(path)
    if not old:
        _refuse_other_files(path)
    try:
        if not old:
            _check_records(path, check_tensors)
        if old and inert:
            content = _read_old_format(path)
        else:
            with _stand_ins(path) if inert else nullcontext():
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=not old)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_unpickling_cause(error)}") from error
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"{path}: damaged or cut off: expected a checkpoint as Lightning writes it; copy or download it again"
        ) from error
    except (TypeError, AttributeError, AssertionError, MemoryError, NotImplementedError) as error:
        # What the unpickler makes of a stream that was altered; the checksums agree, so somebody altered it on purpose.
        raise CheckpointError(f"{path}: not a checkpoint: its description of the tensors is malformed") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a checkpoint: expected a mapping, found a {type(content).__name__}")
    return content


def read_tensors(path: str | os.PathLike[str], legacy: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a published file: safetensors, a state dict, or a checkpoint with a state dict in it.

    Args:
        path: The file.
        legacy: As in `read_checkpoint`.

    Raises:
        CheckpointError: The file is missing, damaged, or contains something else.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = read_checkpoint(path, legacy=legacy)
    tensors = content.get("state_dict", content)
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path}: expected a state dict: names of tensors to tensors")
    return dict(tensors)


def read_safetensors(path: str | os.PathLike[str], sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: The file.
        sha256: What its hash must be; None if nobody wrote it down.

    Raises:
        CheckpointError: The file is missing, damaged, or not of this format.
    """
    path = Path(path)
    _refuse_other_files(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if not 2 <= header_bytes <= min(size - 8, MAX_HEADER_BYTES):
        raise CheckpointError(f"{path}: damaged: expected a safetensors file, but its header does not fit the file")
    if sha256 is not None and file_sha256(path) != sha256:
        raise CheckpointError(f"{path}: damaged or exchanged: its SHA-256 is not the {sha256[:12]}... of its config")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged: expected a safetensors file ({error})") from error


def load_state(module: nn.Module, state: Mapping[str, Tensor], context: str) -> None:
    """Put tensors into a module, all of them or none; half precision becomes the precision of the module.

    Arguments and errors as in `check_state`.
    """
    check_state(module, state, context)
    module.load_state_dict(state)


def check_state(module: nn.Module, state: Mapping[str, Tensor], context: str) -> None:
    """Compare tensors with what a module has.

    Args:
        module: Where they would go.
        state: What its state dict would become.
        context: Names the file in errors.

    Raises:
        TensorMismatch: A tensor is missing, has no place, or has another shape; tells the first five and how many.
    """
    own = module.state_dict()
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in own.items()
            if isinstance(tensor, Tensor) and name in state and state[name].shape != tensor.shape
        ],
        "of another kind": [
            f"{name} {state[name].dtype} instead of {tensor.dtype}"
            for name, tensor in own.items()
            if isinstance(tensor, Tensor)
            and name in state
            and state[name].is_floating_point() != tensor.is_floating_point()
        ],
    }
    found = [f"{len(names)} {what}: {_first(names)}" for what, names in problems.items() if names]
    if found:
        message = f"{context}: its tensors do not fit {type(module).__name__}: {'; '.join(found)}"
        raise TensorMismatch(message, problems["missing"], problems["unexpected"])


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _first(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _stand_ins(path: Path) -> AbstractContextManager[None]:
    """Let torch's restricted unpickler take `Inert` for every class of a file that it does not know itself."""
    if not hasattr(serialization, "get_unsafe_globals_in_checkpoint"):
        raise CheckpointError(f"{path}: reading it needs torch 2.6 or newer, this is {torch.__version__}")
    names = serialization.get_unsafe_globals_in_checkpoint(path)
    return serialization.safe_globals([(Inert, name) for name in names])


class _OldUnpickler(pickle.Unpickler):
    """Reads the pickles of the format before torch 1.6, which torch itself refuses if they name classes of modules.

    The only functions that a pickle can have called are those of `find_class`, made anew for every file, so that it
    cannot change them for others either.

    Args:
        file: Where a pickle begins.
        size: Of the file (bytes); no storage is larger.
    """

    def __init__(self, file: BinaryIO, size: int):
        super().__init__(file)
        self._size = size
        #: Contents of storages, which come after the pickles, by key.
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        def tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
            return storage.as_strided(size, stride, offset)

        def parameter(data: Tensor, *_: Any) -> Tensor:
            return data

        functions = {
            "torch._utils._rebuild_tensor": tensor,
            "torch._utils._rebuild_tensor_v2": tensor,
            "torch._utils._rebuild_parameter": parameter,
            "collections.OrderedDict": OrderedDict,
        }
        if module == "torch" and name in _OLD_STORAGES:
            return _OLD_STORAGES[name]
        return functions.get(f"{module}.{name}", Inert)

    def persistent_load(self, pid: Any) -> Any:
        kind, content, *rest = pid
        if kind == "module":  # a class, and its source, which nobody needs
            return content
        key, _, count, view = rest
        if kind != "storage" or view is not None or not 0 <= count * content.itemsize <= self._size:
            raise pickle.UnpicklingError("an object of an unknown kind")
        return self.storages.setdefault(key, torch.zeros(count, dtype=content))


def _read_old_format(path: Path) -> Any:
    """The content of a file of torch.save before 1.6, with `Inert` in the place of objects."""
    with path.open("rb") as file:
        size = path.stat().st_size
        for _ in ("magic number", "protocol", "system"):
            _OldUnpickler(file, size).load()
        unpickler = _OldUnpickler(file, size)
        content = unpickler.load()
        for key in _OldUnpickler(file, size).load():
            storage = unpickler.storages[key]
            if int.from_bytes(file.read(8), "little") != len(storage):
                raise ValueError("a storage of another length")
            if len(storage):
                data = bytearray(file.read(len(storage) * storage.itemsize))
                storage.copy_(torch.frombuffer(data, dtype=storage.dtype))
    return content


def _is_legacy(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC


def _check_records(path: Path, tensors: bool) -> None:
    """Read records so that their checksums are compared: those that describe the content, or with all `tensors`."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path}: not a checkpoint: its records are compressed")
            if tensors or info.filename.endswith(".pkl"):
                _read_all(archive, info)


def _read_all(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Read one record to its end, where zipfile compares the checksum."""
    with archive.open(info) as record:
        while record.read(1 << 20):
            pass


def _refuse_other_files(path: Path) -> None:
    """Name the usual things that lie where a checkpoint was expected."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    if not path.is_file():
        raise CheckpointError(f"{path}: not a file")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if not start:
        raise CheckpointError(f"{path}: the file is empty; expected a checkpoint: copy or download it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the checkpoint itself; run `git lfs pull`")
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path}: a web page, not a checkpoint; the download went wrong")
    if path.suffix != ".safetensors" and not start.startswith(b"PK"):
        raise CheckpointError(f"{path}: not a checkpoint: expected a file as torch.save writes it since torch 1.6")


def _unpickling_cause(error: pickle.UnpicklingError) -> str:
    text = str(error)
    if "Unsupported global" in text or "GLOBAL" in text or "Unsupported" in text:
        return "refused: it contains objects other than tensors and plain values, which could run code when loaded"
    return "damaged, or not a checkpoint as Lightning writes it"
