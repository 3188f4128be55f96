"""What a training example is: half a second of audio, and the notes that sound in it."""

from __future__ import annotations

from torch import Tensor
from torch.utils.data import Dataset

from midisynth.datasets.audio_pairs import audio_pairs
from midisynth.datasets.corpus import Split
from midisynth.module import MidiDataModule


class PluckData(MidiDataModule):
    """Clips of any corpora with audio and MIDI: random ones for training, consecutive ones to validate and test."""

    def dataset(self, split: Split) -> Dataset[dict[str, Tensor]]:
        """Examples: `audio` [samples], and `notes` [notes, 4] of the codec."""
        return audio_pairs(self.parts(split), self.codec, split, seed=self.seed)
