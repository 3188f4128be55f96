"""What `NeuralVocoder` and its data module share: stretches of audio, and how audio files are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from midisynth.audio.io import audio_seconds
from midisynth.errors import AudioError
from midisynth.music.notes import Performance


class VocoderCodec:
    """Stretches of audio for training and testing, and audio files to resynthesise.

    Args:
        sample_rate: Of the audio (Hz).
        hop: Samples of a mel frame.
        segment_frames: Mel frames of an example.
        notes: Give the notes of a stretch as well, for testing.
    """

    def __init__(self, sample_rate: int, hop: int, segment_frames: int, notes: bool = False):
        self.sample_rate = sample_rate
        self.hop = hop
        self.segment_samples = segment_frames * hop
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
        notes = performance.notes[performance.notes["onset_sec"] >= start_sec].copy()
        notes["onset_sec"] -= start_sec
        return {"notes": notes[notes["onset_sec"] < self.segment_samples / self.sample_rate]}

    @staticmethod
    def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Join stretches into "audio" [batch, samples] float32, and a list of "notes" where there are some."""
        batch: dict[str, Any] = {"audio": torch.stack([example["audio"] for example in examples])}
        if "notes" in examples[0]:
            batch["notes"] = [example["notes"] for example in examples]
        return batch
