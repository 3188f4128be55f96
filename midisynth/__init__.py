"""Neural MIDI models, trained, tested and used in one way.

Importing this package imports nothing heavy. The names below load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "Item": "midisynth.module",
    "MidiDataModule": "midisynth.module",
    "MidiModule": "midisynth.module",
    "Noise": "midisynth.module",
    "Performance": "midisynth.music.notes",
    "Rendering": "midisynth.module",
    "load_model": "midisynth.checkpoints",
    "predict": "midisynth.render",
    "read_midi": "midisynth.music.midi",
    "synthesize": "midisynth.render",
    "write_midi": "midisynth.music.midi",
}

__all__ = ["__version__", *sorted(_LAZY)]

if TYPE_CHECKING:
    from midisynth.checkpoints import load_model  # noqa: F401
    from midisynth.module import Item, MidiDataModule, MidiModule, Noise, Rendering  # noqa: F401
    from midisynth.music.midi import read_midi, write_midi  # noqa: F401
    from midisynth.music.notes import Performance  # noqa: F401
    from midisynth.render import predict, synthesize  # noqa: F401


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'midisynth' has no attribute '{name}'")
