"""Parts that are models themselves, as files: processes that prepare data with a part open it from there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from midisynth.checkpoints import packed, unpacked
from midisynth.datasets.files import replacing
from midisynth.module import MidiModule


@dataclass(frozen=True)
class StoredPart:
    """Where every process finds a part.

    Attributes:
        path: Its file, which is named after what is in it.
        digest: SHA-256 of that, which tells whether what was prepared is up to date.
    """

    path: Path
    digest: str

    def load(self) -> Any:
        """The part, in evaluation mode; a process builds it once."""
        return _loaded(self.path)


def store_part(model: MidiModule, name: str, folder: Path) -> StoredPart:
    """Write a part to a file, unless it is there already.

    Args:
        model: That has declared the part.
        name: Of the part, which is a `MidiModule`.
        folder: Of prepared data; created where it does not exist.

    Raises:
        CheckpointError: Nothing can be loaded under its reference.
    """
    content = model.part_content(name)
    content = packed(model.hparams[name]) if content is None else content
    digest = hashlib.sha256(content).hexdigest()
    path = folder / f"{name.replace('_', '-')}-{digest[:16]}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)
    return StoredPart(path, digest)


@lru_cache(maxsize=2)
def _loaded(path: Path) -> MidiModule:
    return unpacked(path.read_bytes(), str(path))
