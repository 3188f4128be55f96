"""The one door to torchaudio: `from midisynth.audio.backend import functional, transforms`.

torchaudio's last wheels are built for one CUDA version. Beside a torch for another one `import torchaudio` raises
RuntimeError, beside a CPU-only torch OSError, because its compiled extension is loaded first. Nothing that is used
here (mel filters, resampling) needs that extension, so it is replaced and the import is tried again.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_EXTENSION = "torchaudio._extension"


class _NoExtension(ModuleType):
    """Stand-in for the package `torchaudio._extension` that says that no extension is available."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_IS_"):  # _IS_TORCHAUDIO_EXT_AVAILABLE, _IS_ALIGN_AVAILABLE
            return False
        if name.startswith("fail_if_no_"):  # decorators of functions that need a compiled part
            return lambda function: function
        raise AttributeError(f"module {_EXTENSION!r} has no attribute {name!r}")


def _import_torchaudio() -> ModuleType:
    try:
        return importlib.import_module("torchaudio")
    except (RuntimeError, OSError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        sys.modules[_EXTENSION] = _NoExtension(_EXTENSION)
        return importlib.import_module("torchaudio")


_torchaudio = _import_torchaudio()
functional = _torchaudio.functional
transforms = _torchaudio.transforms

__all__ = ["functional", "transforms"]
