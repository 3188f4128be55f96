"""What `NeuralVocoder` and its data module share: stretches of audio of whole frames, and how audio files are read."""

from __future__ import annotations

from midisynth.datasets.audio_stretches import AudioStretches


class VocoderCodec(AudioStretches):
    """Stretches of audio for training and testing, and audio files to resynthesise.

    Args:
        sample_rate: Of the audio (Hz).
        hop: Samples of a mel frame.
        segment_frames: Mel frames of an example.
        notes: Give the notes of a stretch as well, for testing.
    """

    def __init__(self, sample_rate: int, hop: int, segment_frames: int, notes: bool = False):
        super().__init__(sample_rate, segment_frames * hop, notes)
        self.hop = hop
