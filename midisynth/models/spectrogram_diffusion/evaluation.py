"""Test items as audio: predicted spectrograms and true ones through the vocoder, with the notes that were played."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from midisynth.audio.io import resample
from midisynth.diffusion.sampling import content_generators
from midisynth.evaluation import ENCODED, PREDICTION, Renditions
from midisynth.models.spectrogram_diffusion.codec import SpectrogramDiffusionCodec
from midisynth.models.spectrogram_diffusion.rendering import SpectrogramModule
from midisynth.music.notes import Performance, struck_notes


class CodecWithTruth:
    """Makes the examples of a codec and adds what no model is told: "truth", the notes that are struck.

    Args:
        codec: Of the model; not all of its conditionings can be turned back into notes.
    """

    def __init__(self, codec: SpectrogramDiffusionCodec):
        self.sample_rate = codec.sample_rate
        self.segment_samples = codec.segment_samples
        self._codec = codec

    def encode_segment(self, performance: Performance, start_sec: float) -> dict[str, Any]:
        """As `SpectrogramDiffusionCodec.encode_segment`, with "truth", [notes] of `NOTE_DTYPE` on the segment's clock.

        Notes that begin before the segment are heard in it, but nobody can hear when they were struck.
        """
        return {
            **self._codec.encode_segment(performance, start_sec),
            "truth": struck_notes(performance.notes, start_sec, self._codec.segment_sec),
        }


def evaluate_batch(model: SpectrogramModule, batch: Mapping[str, Any]) -> Renditions:
    """A step of testing: generate the items of a batch, update and log `model.test_metrics`.

    Args:
        model: That is tested.
        batch: From its codec, with "audio" and perhaps "truth" and "name".
    """
    conditioning = {name: values for name, values in batch.items() if isinstance(values, Tensor)}
    wanted = model.mel_range.inverse(model.scaled_mel(batch["audio"]))[:, : model.hparams.segment_frames]
    mels = model.sample_segments(conditioning, model.noise_source(content_generators(batch["audio"])))
    model.test_metrics.update(mels, wanted)
    model.log_dict(model.test_metrics, batch_size=len(mels))
    return replace(renditions(model, mels, wanted, batch["audio"], batch.get("truth")), names=batch.get("name"))


def renditions(
    model: SpectrogramModule, mels: Tensor, wanted: Tensor, audio: Tensor, truth: Sequence[np.ndarray] | None
) -> Renditions:
    """Vocode a batch of a test.

    Args:
        model: For its vocoder and framing.
        mels: Predicted log mel, [batch, frames, mels].
        wanted: True log mel as the model is trained on it, same shape.
        audio: The recording, [batch, samples].
        truth: Notes that are struck in each item, if known.
    """
    seeds = [generator.initial_seed() for generator in content_generators(audio)]
    rows = {PREDICTION: vocode(model, mels, seeds), ENCODED: vocode(model, wanted, seeds)}
    samples = min(audio.shape[1], *(row.shape[1] for row in rows.values()))
    return Renditions(
        rows={name: row[:, :samples] for name, row in rows.items()},
        reference=audio[:, :samples],
        sample_rate=model.codec.sample_rate,
        notes=truth,
    )


def vocode(model: SpectrogramModule, mels: Tensor, seeds: Sequence[int]) -> Tensor:
    """Sound of separate segments.

    Args:
        model: For its vocoder and framing.
        mels: Natural log of mel magnitude, [batch, frames, mels].
        seeds: For whatever is random in the vocoder, one for each segment.

    Returns:
        [batch, samples] on the clock and at the rate of the recording, mono.
    """
    vocoder = model.part("vocoder")
    # Centred frame i + 1 is what a vocoder knows as frame i: without this the audio would be one hop late.
    mels = mels[:, int(model.codec.framing == "centered") :]
    audio = torch.stack([vocoder(mel, seed).mean(dim=0) for mel, seed in zip(mels.cpu(), seeds, strict=True)])
    return resample(audio, vocoder.sample_rate, model.codec.sample_rate)
