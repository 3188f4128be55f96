"""The Metric classes equal the plain functions, in one process and in two."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from midisynth.metrics import functional
from midisynth.metrics.scores import (
    LogSpectralDistance,
    LoudnessCorrelation,
    MelError,
    NoteScores,
    SpectralConvergence,
    Spread,
)
from midisynth.music.notes import NOTE_DTYPE

ITEMS = 5


def metrics():
    return [LogSpectralDistance((256, 512)), SpectralConvergence(512), MelError(), LoudnessCorrelation(), NoteScores()]


def item(index):
    """Arguments for each of the metrics: audio, audio, mel, audio, notes; estimate and reference."""
    random = torch.Generator().manual_seed(index)
    reference = torch.randn(8000, generator=random) * torch.linspace(0.1, 1, 8000)
    audio = (reference + 0.1 * index * torch.randn(8000, generator=random), reference)
    mel = tuple(torch.randn(2, 10, 4, generator=random))
    notes = np.zeros(8, NOTE_DTYPE)
    notes["onset_sec"], notes["duration_sec"] = np.arange(8), 0.5
    notes["pitch"], notes["velocity"] = 60, 40 + 10 * np.arange(8)
    # The last item has no velocity correlation, as a single note was found.
    found = notes[:1] if index == ITEMS - 1 else notes[: 8 - index]
    return [audio, audio, mel, audio, (found, notes)]


def update(all_metrics, indices):
    for index in indices:
        for metric, (estimate, reference) in zip(all_metrics, item(index), strict=True):
            metric.update([estimate], [reference])


def flat(all_metrics):
    values = []
    for metric in all_metrics:
        value = metric.compute()
        values += [float(part) for part in (value.values() if isinstance(value, dict) else [value])]
    return values


def test_one_process():
    all_metrics = metrics()
    update(all_metrics, range(ITEMS))
    distance, convergence, mel, loudness, notes = (metric.compute() for metric in all_metrics)
    pairs = [item(index) for index in range(ITEMS)]
    mean = lambda function, which: np.mean([float(function(*pair[which])) for pair in pairs])  # noqa: E731
    assert float(distance) == pytest.approx(mean(lambda a, b: functional.log_spectral_distance(a, b, (256, 512)), 0))
    assert float(convergence) == pytest.approx(mean(lambda a, b: functional.spectral_convergence(a, b, 512), 1))
    assert float(mel) == pytest.approx(mean(functional.mel_error, 2))
    assert float(loudness) == pytest.approx(mean(lambda a, b: functional.loudness_correlation(a, b, 16000), 3))
    assert float(notes["precision"]) == 1
    assert float(notes["recall"]) == pytest.approx(np.mean([8, 7, 6, 5, 1]) / 8)
    assert float(notes["velocity_correlation"]) == pytest.approx(1)  # over the four pieces that have one
    all_metrics[0].reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert math.isnan(all_metrics[0].compute())


def test_spread():
    values = 100 + torch.randn(7, generator=torch.Generator().manual_seed(0))
    spread = Spread()
    for part in values.split(3):
        spread.update(part)
    mean, deviation = spread.compute()
    assert float(mean) == pytest.approx(float(values.mean()), rel=1e-6)
    assert float(deviation) == pytest.approx(float(values.std()), rel=1e-4)
    spread.reset()
    spread.update(values[:1])
    assert math.isnan(spread.compute()[1])


def test_batches_are_items():
    audio, reference = torch.randn(3, 2000), torch.randn(3, 2000)
    together, alone = SpectralConvergence(256), SpectralConvergence(256)
    together.update(audio, reference)
    for one, wanted in zip(audio, reference, strict=True):
        alone.update(one[None], wanted[None])
    assert together.compute() == alone.compute()


def _two(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    all_metrics = metrics()
    update(all_metrics, [range(ITEMS - 1), [ITEMS - 1]][rank])
    torch.save(flat(all_metrics), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(_two, args=(str(tmp_path),), nprocs=2)
    all_metrics = metrics()
    update(all_metrics, range(ITEMS))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(flat(all_metrics), abs=1e-6, nan_ok=True)
