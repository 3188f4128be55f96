"""Segments of audio with their notes, for training and evaluating `SpectrogramDiffusion`."""

from __future__ import annotations

from torch.utils.data import Dataset

from midisynth.datasets.audio_pairs import Example, audio_pairs
from midisynth.datasets.corpus import Split
from midisynth.models.spectrogram_diffusion.codec import SpectrogramDiffusionCodec
from midisynth.module import MidiDataModule, MidiModule


class SpectrogramDiffusionData(MidiDataModule):
    """Random segments of any corpora with audio and MIDI for training, consecutive ones for evaluation.

    The published models saw consecutive segments in training too; random ones show every frame at every position.
    """

    codec: SpectrogramDiffusionCodec

    def connect(self, model: MidiModule) -> None:
        super().connect(model)
        # Examples are single segments, where the model's own takes whole pieces.
        self.collate = self.codec.collate

    def dataset(self, split: Split) -> Dataset[Example]:
        """Examples of `SpectrogramDiffusionCodec.encode_segment` with "audio", [samples] float32."""
        codec = self.codec
        return audio_pairs(
            self.parts(split),
            codec,
            split,
            align=codec.hop_length,
            seed=self.seed,
            apply_pedal=codec.apply_pedal,
        )
