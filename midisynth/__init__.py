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
    "read_midi": "midisynth.music.midi",
    "write_midi": "midisynth.music.midi",
}

__all__ = ["__version__", *sorted(_LAZY)]

if TYPE_CHECKING:
    from midisynth.module import Item, MidiDataModule, MidiModule, Noise, Rendering
    from midisynth.music.midi import read_midi, write_midi
    from midisynth.music.notes import Performance


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'midisynth' has no attribute '{name}'")
