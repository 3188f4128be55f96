"""Stretches of audio for training and evaluating `PianoCodec`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch.utils.data import Dataset

from midisynth.datasets.audio_pairs import Example, audio_pairs
from midisynth.datasets.audio_stretches import AudioStretches
from midisynth.datasets.corpus import Split
from midisynth.models.midi_valle.neural_codec_model import PianoCodec
from midisynth.module import MidiDataModule, MidiModule


class PianoCodecData(MidiDataModule):
    """Random stretches of any corpora with audio for training, consecutive ones for evaluation.

    Args:
        corpora: Name of a corpus to the folder of its files, or to a mapping of its options (`root`, `weight` and its
            own); null leaves the corpus out.
        batch_size: Examples in a batch of one process.
        workers: Processes that load examples; 0 loads them in the training process.
        seed: Of the order, the random choices and the random numbers of training.
        cache_dir: Folder for prepared data; the user's cache folder when null.
        on_broken: Leave out records that cannot be read and say so, or stop at the first.
        test_sec: Length of the stretches that are tested (seconds).
    """

    content: ClassVar[frozenset[str]] = frozenset({"audio"})
    codec: AudioStretches

    def __init__(
        self,
        corpora: dict[str, Any],
        batch_size: int = 8,
        workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
        on_broken: Literal["skip", "stop"] = "skip",
        test_sec: float = 20.0,
    ):
        super().__init__(corpora, batch_size, workers, seed, cache_dir, on_broken)
        self.test_sec = test_sec
        self._model: PianoCodec | None = None

    def connect(self, model: MidiModule) -> None:
        super().connect(model)
        assert isinstance(model, PianoCodec)
        self._model = model
        # Examples are stretches of audio, where the model's own takes whole files.
        self.collate = AudioStretches.collate

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # Before weight averaging copies the model and before a resumed run loads its weights.
        if stage == "fit" and self._model is not None:
            self._model.initialise()

    def dataset(self, split: Split) -> Dataset[Example]:
        """Examples with "audio", [samples] float32; those for testing are longer and have "notes" as well."""
        codec = self.codec
        if split == "test":
            codec = AudioStretches(codec.sample_rate, round(self.test_sec * codec.sample_rate), notes=True)
        return audio_pairs(self.parts(split), codec, split, seed=self.seed)
