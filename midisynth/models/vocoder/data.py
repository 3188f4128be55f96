"""Stretches of audio for training and evaluating `NeuralVocoder`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch.utils.data import Dataset

from midisynth.datasets.audio_pairs import Example, audio_pairs
from midisynth.datasets.corpus import Split
from midisynth.datasets.sampled_piano import SampledPiano
from midisynth.errors import UsageError
from midisynth.evaluation import PREDICTION
from midisynth.models.vocoder.codec import VocoderCodec
from midisynth.models.vocoder.model import NeuralVocoder
from midisynth.models.vocoder.partials import measured_partials
from midisynth.module import MidiDataModule, MidiModule
from midisynth.vocoders import load_vocoder

#: Loud enough for the high partials to be there.
MEASURED_LAYER = 10
MEASURED_VELOCITY = 80


class VocoderData(MidiDataModule):
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
        piano: Folder of the samples of the Salamander Grand Piano. When training starts, the oscillators are tuned to
            the partials of its notes; null leaves them at those of a typical piano.
        compare: Name of a row to another vocoder that a test compares with: a checkpoint, or an .onnx file. Griffin-Lim
            is always there.

    Raises:
        UsageError: A vocoder to compare with has the name of the row of the one that is tested.
    """

    content: ClassVar[frozenset[str]] = frozenset({"audio"})
    codec: VocoderCodec

    def __init__(
        self,
        corpora: dict[str, Any],
        batch_size: int = 8,
        workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
        on_broken: Literal["skip", "stop"] = "skip",
        test_sec: float = 20.0,
        piano: str | None = None,
        compare: dict[str, str] | None = None,
    ):
        super().__init__(corpora, batch_size, workers, seed, cache_dir, on_broken)
        self.test_sec = test_sec
        self.piano = piano
        self.compare = compare or {}
        if PREDICTION in self.compare:
            raise UsageError(f"compare: {PREDICTION!r} is the row of the vocoder that is tested; choose another name")
        self._model: NeuralVocoder | None = None

    def connect(self, model: MidiModule) -> None:
        super().connect(model)
        assert isinstance(model, NeuralVocoder)
        self._model = model
        # Examples are stretches of audio, where the model's own takes whole files.
        self.collate = VocoderCodec.collate

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # Before weight averaging copies the model and before a resumed run loads what it had measured.
        if stage == "fit" and self.piano is not None and self._model is not None:
            rate = self.codec.sample_rate
            piano = SampledPiano(self.piano, (MEASURED_LAYER,), rate, release=False, resonance_db=None)
            self._model.tune(measured_partials(lambda key: piano.note(key, MEASURED_VELOCITY), rate))
        if stage == "test" and self._model is not None:
            self._model.compare_with({name: load_vocoder(reference) for name, reference in self.compare.items()})

    def dataset(self, split: Split) -> Dataset[Example]:
        """Examples with "audio", [samples] float32; those for testing are longer and have "notes" as well."""
        codec = self.codec
        if split == "test":
            codec = VocoderCodec(codec.sample_rate, codec.hop, round(50 * self.test_sec), notes=True)
        return audio_pairs(self.parts(split), codec, split, align=codec.hop, seed=self.seed)
