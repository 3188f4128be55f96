"""Vocoders as parts of models: those of `midisynth.audio.vocoder`, and trained models that are vocoders."""

from __future__ import annotations

from typing import Any

from midisynth import weights
from midisynth.audio import vocoder as plain
from midisynth.audio.vocoder import Vocoder
from midisynth.checkpoints import load_model, packed, unpacked
from midisynth.errors import CheckpointError
from midisynth.parts import read_file


def load_vocoder(
    reference: str,
    *,
    sample_rate: int = 16000,
    hop_length: int = 320,
    mels: int = 128,
    content: bytes | None = None,
    **spectrogram: Any,
) -> Vocoder:
    """Build the vocoder that a model names.

    Args:
        reference: "griffin_lim", the path of an .onnx file, or a checkpoint as `midisynth.checkpoints.load_model` takes
            it, of a model that is a vocoder.
        sample_rate: Of the audio behind the spectrogram (Hz).
        hop_length: Distance of its frames (samples).
        mels: Number of its filters.
        content: What `read_vocoder` returned, for a checkpoint that carries its vocoder; files are then not read.
        spectrogram: Further options of `midisynth.audio.vocoder.load_vocoder`.

    Raises:
        CheckpointError: There is no such vocoder, it cannot be loaded, or it is for other spectrograms.
    """
    if _is_plain(reference):
        return plain.load_vocoder(
            reference, sample_rate=sample_rate, hop_length=hop_length, mels=mels, content=content, **spectrogram
        )
    model = load_model(reference) if content is None else unpacked(content, f"vocoder {reference}")
    if not isinstance(model, Vocoder):
        raise CheckpointError(f"vocoder: {reference} is of {type(model).__name__}, which is no vocoder")
    if (model.mels, model.hop_samples * sample_rate) != (mels, hop_length * model.sample_rate):
        raise CheckpointError(
            f"vocoder: {reference} takes {model.mels} mel bins every {1000 * model.hop_samples / model.sample_rate:g} "
            f"ms, but this model makes {mels} bins every {1000 * hop_length / sample_rate:g} ms"
        )
    return model


def read_vocoder(reference: str) -> bytes | None:
    """What a checkpoint has to carry of the vocoder it was trained with: None for one that comes with the package."""
    if _is_plain(reference):
        return read_file(reference)
    return None if weights.find(reference) is not None else packed(reference)


def _is_plain(reference: str) -> bool:
    return reference == "griffin_lim" or reference.endswith(".onnx")
