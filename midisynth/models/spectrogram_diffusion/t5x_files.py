"""Reads the arrays of a T5X checkpoint without T5X: from a folder with one zarr array for each, or an .npz file."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from midisynth.errors import CheckpointError

#: zarr's name of a compressor -> how to undo it. T5X writes gzip.
_DECOMPRESS: dict[str | None, Callable[[bytes], bytes]] = {
    None: bytes,
    "gzip": gzip.decompress,
    "zlib": zlib.decompress,
}


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Read named arrays; those of an optimizer, whose names start with "state", are left out.

    Args:
        path: An .npz file, or a folder of zarr arrays (format 2).

    Raises:
        CheckpointError: It cannot be read.
    """
    if path.is_dir():
        folders = sorted(file.parent for file in path.glob("target.*/.zarray"))
        if not folders:
            raise CheckpointError(f"{path}: expected folders named target.*, with a zarr array (format 2) in each")
        return {folder.name: _tensor(_read_zarr(folder), folder) for folder in folders}
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: _tensor(archive[name], path) for name in archive.files if not name.startswith("state")}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read as an .npz file of plain arrays: {error}") from error


def _tensor(array: np.ndarray, path: Path) -> Tensor:
    if array.dtype.kind != "f":
        raise CheckpointError(f"{path}: expected floating point numbers, found {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def _read_zarr(folder: Path) -> np.ndarray:
    """One array, put together from its chunks."""
    try:
        head: dict[str, Any] = json.loads((folder / ".zarray").read_text(encoding="utf-8"))
        shape, chunks = tuple(head["shape"]), tuple(head["chunks"])
        compressor = head.get("compressor") and head["compressor"]["id"]
        separator = head.get("dimension_separator", ".")
        if head["zarr_format"] != 2 or head.get("filters") or head["order"] != "C" or len(shape) != len(chunks):
            raise CheckpointError(f"{folder}: only plain zarr arrays of format 2 in C order can be read")
        if compressor not in _DECOMPRESS or not str(head["dtype"]).startswith("<f"):
            raise CheckpointError(
                f"{folder}: is {head['dtype']} compressed with {compressor}; floats without compression, or with gzip "
                "or zlib can be read: save it as an .npz file"
            )
        dtype = np.dtype(head["dtype"])
        array = np.empty(shape, dtype)
        for index in itertools.product(*(range(math.ceil(n / c)) for n, c in zip(shape, chunks, strict=True))):
            data = _DECOMPRESS[compressor]((folder / (separator.join(map(str, index)) or "0")).read_bytes())
            # Chunks at the border are as large as the others.
            chunk = np.frombuffer(data, dtype).reshape(chunks)
            place = tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, chunks, shape, strict=True))
            array[place] = chunk[tuple(slice(p.stop - p.start) for p in place)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zlib.error) as error:
        raise CheckpointError(f"{folder}: damaged: expected a zarr array ({error})") from error
    return array
