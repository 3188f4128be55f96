"""The checkpoints that ship with the package, as `index.yaml` lists them.

Each is a folder beside this file with `model.safetensors`, `config.yaml` and `CARD.md`. The index is in order of
preference: the first that reads a file is the default of `predict` for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Shipped:
    """One checkpoint of the index.

    Attributes:
        name: Of its folder, and what users write.
        reads: Suffixes of the files it takes; empty for a composer, and for a part such as a vocoder.
        writes: Suffix of the files it makes; None for a part.
        sha256: Of its `model.safetensors`.
    """

    name: str
    reads: tuple[str, ...]
    writes: str | None
    sha256: str

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return FOLDER / self.name

    @property
    def class_path(self) -> str:
        """Of the model that it is a checkpoint of."""
        return yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))["class_path"]


@cache
def shipped() -> tuple[Shipped, ...]:
    """All of them, in order of preference."""
    entries = yaml.safe_load((FOLDER / "index.yaml").read_text(encoding="utf-8"))["checkpoints"]
    return tuple(
        Shipped(entry["name"], tuple(entry.get("reads", ())), entry.get("writes"), entry["sha256"]) for entry in entries
    )


def find(name: str) -> Shipped | None:
    """The checkpoint of that name."""
    return next((entry for entry in shipped() if entry.name == name), None)


def of_class(class_path: str) -> Shipped | None:
    """The preferred checkpoint of a model."""
    return next((entry for entry in shipped() if entry.class_path == class_path), None)


def default_for(suffix: str) -> Shipped | None:
    """The preferred checkpoint that reads files with this suffix (with its dot, in any case)."""
    return next((entry for entry in shipped() if suffix.lower() in entry.reads), None)
