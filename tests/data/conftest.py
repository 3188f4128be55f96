"""A small piano in the layout of Salamander's packages, whose notes are known exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 48000
NOTES = {"C": 0, "D#": 3, "F#": 6, "A": 9}
LEVELS = {4: 0.05, 8: 0.15, 12: 0.45}  # layer -> amplitude
RELEASE_HZ = 100
DELAY_SEC = {4: 0.03, 8: 0.011, 12: 0.02}  # silence before the stroke


def write_samples(root: Path) -> Path:
    """Thirty keys from A0 to C8 in three layers, low keys to the left: sines that fade with a time constant of 1 s."""
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
                    # Low keys to the left, high ones to the right.
                    right = (key - 21) / 87
                    stereo = np.stack([audio * 2 * (1 - right), audio * 2 * right], axis=1)
                    soundfile.write(path, stereo, RATE, compression_level=0.0)
    return root


def write_releases(root: Path) -> Path:
    """A thump of 100 Hz for each key, 0.1 s after the recording begins."""
    folder = root / "node_modules" / "@audio-samples" / "piano-release" / "audio"
    folder.mkdir(parents=True)
    time = np.arange(round(0.3 * RATE)) / RATE
    thump = 0.5 * np.sin(2 * np.pi * RELEASE_HZ * time) * np.exp(-time / 0.05)
    audio = np.concatenate([np.zeros(round(0.1 * RATE)), thump])
    for number in range(1, 89):
        soundfile.write(folder / f"rel{number}.ogg", np.stack([audio, audio], axis=1), RATE, compression_level=0.0)
    return root


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_releases(write_samples(tmp_path_factory.mktemp("samples")))
