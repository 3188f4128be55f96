"""Segments of audio with their notes, for training and evaluating `SpectrogramDiffusion`."""

from __future__ import annotations

from typing import Any, Literal

from torch.utils.data import Dataset

from midisynth.datasets.audio_pairs import Example, audio_pairs
from midisynth.datasets.corpus import Split
from midisynth.models.spectrogram_diffusion.codec import SpectrogramDiffusionCodec
from midisynth.models.spectrogram_diffusion.evaluation import CodecWithTruth
from midisynth.module import MidiDataModule, MidiModule


class SpectrogramDiffusionData(MidiDataModule):
    """Random segments of any corpora with audio and MIDI for training, consecutive ones for evaluation.

    The published models saw consecutive segments in training too; random ones show every frame at every position.

    Args:
        corpora: Name of a corpus to the folder of its files, or to a mapping of its options (`root`, `weight` and its
            own); null leaves the corpus out.
        batch_size: Examples in a batch of one process.
        workers: Processes that load examples; 0 loads them in the training process.
        seed: Of the order, the random choices and the random numbers of training.
        cache_dir: Folder for prepared data; the user's cache folder when null.
        on_broken: Leave out records that cannot be read and say so, or stop at the first.
        sampling_temperature: An example comes from a corpus with a probability in proportion to its weight times its
            size to this power: 0 heeds weights alone, 1 mixes corpora as large as they are, 0.3 is as published.
    """

    codec: SpectrogramDiffusionCodec

    def __init__(
        self,
        corpora: dict[str, Any],
        batch_size: int = 8,
        workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
        on_broken: Literal["skip", "stop"] = "skip",
        sampling_temperature: float = 0.3,
    ):
        super().__init__(corpora, batch_size, workers, seed, cache_dir, on_broken)
        self.sampling_temperature = sampling_temperature

    def connect(self, model: MidiModule) -> None:
        super().connect(model)
        # Examples are single segments, where the model's own takes whole pieces.
        self.collate = self.codec.collate

    def dataset(self, split: Split) -> Dataset[Example]:
        """Examples of `SpectrogramDiffusionCodec.encode_segment` with "audio" [samples] float32; tests have "truth"."""
        codec = self.codec
        return audio_pairs(
            self.parts(split),
            CodecWithTruth(codec) if split == "test" else codec,
            split,
            align=codec.hop_length,
            seed=self.seed,
            temperature=self.sampling_temperature,
            apply_pedal=codec.apply_pedal,
            context=codec.context_samples,
        )
