"""Test stretches through the vocoder and, for comparison, through Griffin-Lim and whatever else there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from midisynth.audio.features import LogMel
from midisynth.audio.io import resample
from midisynth.audio.vocoder import Vocoder
from midisynth.evaluation import PREDICTION, Renditions
from midisynth.metrics.functional import log_spectral_distance, mel_error


def renditions(
    vocoder: Vocoder,
    rivals: Mapping[str, Vocoder],
    log_mel: LogMel,
    audio: Tensor,
    notes: Sequence[np.ndarray],
    names: Sequence[str] | None,
    log: Callable[[str, float], Any],
) -> Renditions:
    """Resynthesise recordings from their spectrograms.

    What is compared are the bands that the spectrogram shows; pictures show all that the recording has. Log spectral
    distance in the whole band of the recording, error of the spectrogram (nats) and speed (seconds of audio in a
    second) are logged.

    Args:
        vocoder: That is tested.
        rivals: Others by name, for spectrograms of the same kind.
        log_mel: Its spectrogram.
        audio: Recordings at the vocoder's rate, [batch, samples].
        notes: True notes of each.
        names: The recording that each is of, if known.
        log: Takes name and value.
    """
    audio = audio.cpu()
    reference = resample(audio, vocoder.sample_rate, log_mel.sample_rate)
    mels = log_mel.cpu()(reference)
    rows, full_rows = {}, {}
    for name, maker in {PREDICTION: vocoder, **rivals}.items():
        prefix = "test/" if maker is vocoder else f"test/{name}/"
        start = time.perf_counter()
        made = torch.stack([maker(mel).mean(dim=0) for mel in mels])
        log(f"{prefix}real_time", audio.numel() / vocoder.sample_rate / (time.perf_counter() - start))
        full_rows[name] = resample(made, maker.sample_rate, vocoder.sample_rate)[:, : audio.shape[1]]
        rows[name] = resample(made, maker.sample_rate, log_mel.sample_rate)[:, : reference.shape[1]]
        log(f"{prefix}full_band_distance", float(log_spectral_distance(full_rows[name], audio)))
        log(f"{prefix}mel_error", float(mel_error(log_mel(rows[name]), mels)))
    pictured = Renditions(full_rows, audio, vocoder.sample_rate)
    return Renditions(rows, reference, log_mel.sample_rate, notes, pictured, names=names)
