"""Test stretches through the vocoder and, for comparison, through Griffin-Lim."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from midisynth.audio.features import LogMel
from midisynth.audio.io import resample
from midisynth.audio.vocoder import GriffinLim, Vocoder
from midisynth.evaluation import PREDICTION, Renditions
from midisynth.metrics.functional import log_spectral_distance, mel_error

GRIFFIN_LIM = "griffin_lim"


def renditions(
    vocoder: Vocoder,
    log_mel: LogMel,
    audio: Tensor,
    notes: Sequence[np.ndarray],
    log: Callable[[str, float], Any],
) -> Renditions:
    """Resynthesise recordings from their spectrograms.

    What is compared are the bands that the spectrogram shows. Log spectral distance at the vocoder's own rate, error of
    the spectrogram (nats) and speed (seconds of audio in a second) are logged.

    Args:
        vocoder: That is tested.
        log_mel: Its spectrogram.
        audio: Recordings at the vocoder's rate, [batch, samples].
        notes: True notes of each.
        log: Takes name and value.
    """
    reference = resample(audio.cpu(), vocoder.sample_rate, log_mel.sample_rate)
    mels = log_mel.cpu()(reference)
    rows = {}
    for name, prefix, maker in ((PREDICTION, "test/", vocoder), (GRIFFIN_LIM, f"test/{GRIFFIN_LIM}/", GriffinLim())):
        start = time.perf_counter()
        made = torch.stack([maker(mel)[0, : audio.shape[1]] for mel in mels])
        log(f"{prefix}real_time", audio.numel() / vocoder.sample_rate / (time.perf_counter() - start))
        if maker is vocoder:
            log(f"{prefix}full_band_distance", float(log_spectral_distance(made, audio.cpu())))
        rows[name] = resample(made, maker.sample_rate, log_mel.sample_rate)[:, : reference.shape[1]]
        log(f"{prefix}mel_error", float(mel_error(log_mel(rows[name]), mels)))
    return Renditions(rows, reference, log_mel.sample_rate, notes)
