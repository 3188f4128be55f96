"""Parts: what a model uses but does not train, such as a vocoder; a hyper-parameter names it.

Parts stand outside the state dict, the optimizer, weight averaging and DDP. A checkpoint carries those that came from
a file, so that it alone is enough to predict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from midisynth import weights
from midisynth.errors import CheckpointError

#: Called with the reference, and with `content`: what a checkpoint carried of it, or None.
PartLoader = Callable[..., Any]
#: Called with the reference; returns the bytes that a checkpoint has to carry, or None for what comes with the package.
PartReader = Callable[[str], bytes | None]


def read_file(reference: str) -> bytes | None:
    """The bytes of the file that a reference names; None if it names none."""
    return Path(reference).read_bytes() if Path(reference).is_file() else None


@dataclass(frozen=True)
class _Carried:
    """What a checkpoint says about a part.

    Attributes:
        reference: The hyper-parameter it belongs to.
        content: What the reader of the part returned.
    """

    reference: str
    content: bytes | None


class Parts:
    """The parts of one model.

    Args:
        reference: Gives the present reference of a part, from its name.
    """

    def __init__(self, reference: Callable[[str], str]):
        self._reference = reference
        self._loaders: dict[str, PartLoader] = {}
        self._readers: dict[str, PartReader] = {}
        self._carried: dict[str, _Carried] = {}
        self._resolved: dict[str, tuple[str, Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Parts:
        # Weight averaging copies the model. Parts are constants, and some, like ONNX sessions, cannot be copied.
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_resolved": {}}

    def declare(self, name: str, load: PartLoader, read: PartReader = read_file) -> None:
        """Add a part that is loaded when it is first used, and read when the model is saved."""
        self._loaders[name] = load
        self._readers[name] = read

    def get(self, name: str) -> Any:
        """The part, loaded.

        Raises:
            CheckpointError: There is none under its reference.
        """
        reference = self._reference(name)
        if self._resolved.get(name, (None,))[0] != reference:
            self._resolved[name] = reference, self._loaders[name](reference, content=self.content(name))
        return self._resolved[name][1]

    def content(self, name: str) -> bytes | None:
        """What a checkpoint carried of the part; None if it carried none, or one of another reference."""
        carried = self._carried.get(name)
        return carried.content if carried is not None and carried.reference == self._reference(name) else None

    def stored(self, name: str) -> bytes | None:
        """What a checkpoint has to carry of the part: what one carried, or its reader reads; None if it ships."""
        content = self.content(name)
        return self._readers[name](self._reference(name)) if content is None else content

    def state(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint stores: for each part its reference, a SHA-256, and the bytes [bytes] uint8 it carries."""
        return {name: self._describe(name) for name in self._loaders}

    def _describe(self, name: str) -> dict[str, Any]:
        reference = self._reference(name)
        content = self.stored(name)
        if content is None:
            shipped = weights.find(reference)
            return {"reference": reference, "sha256": None if shipped is None else shipped.sha256}
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return {"reference": reference, "sha256": hashlib.sha256(content).hexdigest(), "data": data}

    def restore(self, state: Mapping[str, Mapping[str, Any]], context: str) -> None:
        """Take what `state` returned.

        Args:
            state: Of the model that was saved.
            context: Names the checkpoint in errors.

        Raises:
            CheckpointError: A part is not the one that the model was trained with.
        """
        carried = {}
        for name, entry in state.items():
            try:
                reference, sha256, data = str(entry["reference"]), entry["sha256"], entry.get("data")
                content = None if data is None else data.numpy().tobytes()
            except (KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{context}: its part {name!r} is malformed") from error
            if content is not None and hashlib.sha256(content).hexdigest() != sha256:
                raise CheckpointError(f"{context}: its part {name!r} is damaged: the SHA-256 differs")
            shipped = weights.find(reference)
            if content is None and shipped is not None and sha256 is not None and shipped.sha256 != sha256:
                raise CheckpointError(
                    f"{context}: was trained with another version of {reference!r} ({name}) than the one installed"
                )
            carried[name] = _Carried(reference, content)
        self._carried = carried
        self._resolved = {}
