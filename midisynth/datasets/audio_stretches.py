"""Codec of models that learn from audio alone: stretches of it for training and testing, and files to work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from midisynth.audio.io import audio_seconds
from midisynth.errors import AudioError
from midisynth.music.notes import Performance, struck_notes


class AudioStretches:
    """What `midisynth.datasets.audio_pairs` needs to cut audio into stretches, and `predict` to read files.

    Args:
        sample_rate: Of the audio (Hz).
        segment_samples: Length of a stretch (samples).
        notes: Give the notes of a stretch as well, for testing.
    """

    def __init__(self, sample_rate: int, segment_samples: int, notes: bool = False):
        self.sample_rate = sample_rate
        self.segment_samples = segment_samples
        self.notes = notes
        self.max_duration_sec = 7200.0
        self.repair = False

    def encode(self, path: Path) -> dict[str, Any]:
        """Look at an audio file, without reading all of it.

        Returns:
            "path"; "samples": length of the output.

        Raises:
            AudioError: It cannot be read, or is too long.
        """
        seconds = audio_seconds(path)
        if seconds > self.max_duration_sec:
            raise AudioError(path, f"lasts {seconds:.0f} s; at most {self.max_duration_sec:g} s are accepted")
        return {"path": str(path), "samples": round(seconds * self.sample_rate)}

    def encode_segment(self, performance: Performance, start_sec: float) -> dict[str, Any]:
        """What an example has besides its audio: for testing "notes", those that start in it, [notes] of `NOTE_DTYPE`.

        Args:
            performance: Notes as they sound.
            start_sec: Start of the stretch (seconds).
        """
        if not self.notes:
            return {}
        return {"notes": struck_notes(performance.notes, start_sec, self.segment_samples / self.sample_rate)}

    @staticmethod
    def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Join stretches into "audio" [batch, samples] float32, and lists of "notes" and "name" where there are."""
        batch: dict[str, Any] = {"audio": torch.stack([example["audio"] for example in examples])}
        lists = (name for name in ("notes", "name") if name in examples[0])
        return batch | {name: [example[name] for example in examples] for name in lists}
