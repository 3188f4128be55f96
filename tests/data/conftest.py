"""A small piano in the layout of Salamander's packages, whose notes are known exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 48000
NOTES = {"C": 0, "D#": 3, "F#": 6, "A": 9}
LEVELS = {4: 0.05, 8: 0.15, 12: 0.45}  # layer -> amplitude
DELAY_SEC = {4: 0.03, 8: 0.011, 12: 0.02}  # silence before the stroke


def write_samples(root: Path) -> Path:
    """Thirty keys from A0 to C8 in three layers: sines that fade with a time constant of 1 s."""
    time = np.arange(round(1.5 * RATE)) / RATE
    for layer, level in LEVELS.items():
        folder = root / "node_modules" / "@audio-samples" / f"piano-velocity{layer}" / "audio"
        folder.mkdir(parents=True)
        for octave in range(9):
            for name, pitch_class in NOTES.items():
                key = 12 * (octave + 1) + pitch_class
                if 21 <= key <= 108:
                    frequency = 440 * 2 ** ((key - 69) / 12)
                    attack = np.minimum(time / 0.002, 1)
                    note = level * attack * np.sin(2 * np.pi * frequency * time) * np.exp(-time)
                    audio = np.concatenate([np.zeros(round(DELAY_SEC[layer] * RATE)), note])
                    path = folder / f"{name}{octave}v{layer}.ogg"
                    # At lower quality the codec smears the stroke over the silence before it.
                    soundfile.write(path, np.stack([audio, audio], axis=1), RATE, compression_level=0.0)
    return root


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("samples"))
