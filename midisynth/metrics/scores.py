"""The comparisons of `functional` as torchmetrics: they hold sums, so any number of processes may share the items."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from midisynth.audio.spectrum import FFT_SIZES, FLOOR_DB
from midisynth.metrics import functional
from midisynth.metrics.functional import NoteScore


class _Mean(Metric):
    """Mean over items, every item counting the same."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, value: Tensor | float) -> None:
        """Count one item."""
        self.total += float(value)
        self.count += 1

    def compute(self) -> Tensor:
        """The mean so far; NaN before the first item."""
        return self.total / self.count


class Spread(Metric):
    """Mean of items, and their standard deviation: how far the next item is from it as a rule."""

    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "squares", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Args: values: [items]."""
        self.total += values.double().sum()
        self.squares += values.double().square().sum()
        self.count += len(values)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Both; NaN for the deviation of fewer than two."""
        mean = self.total / self.count
        variance = (self.squares - self.count * mean.square()).clamp(min=0) / (self.count - 1)
        return mean, variance.sqrt() if self.count > 1 else torch.full_like(mean, torch.nan)


class LogSpectralDistance(_Mean):
    """Mean over items of `functional.log_spectral_distance` (nats).

    Args:
        fft_sizes: FFT sizes (samples).
        floor_db: Magnitudes below are raised to it (dB relative to a full-scale sine).
    """

    higher_is_better = False

    def __init__(self, fft_sizes: Sequence[int] = FFT_SIZES, floor_db: float = FLOOR_DB):
        super().__init__()
        self.fft_sizes = tuple(fft_sizes)
        self.floor_db = floor_db

    def update(self, audio: Iterable[Tensor] | Tensor, reference: Iterable[Tensor] | Tensor) -> None:
        """Args: audio, reference: [batch, samples], or a sequence of [samples]."""
        for one, wanted in zip(audio, reference, strict=True):
            self.add(functional.log_spectral_distance(one, wanted, self.fft_sizes, self.floor_db))


class SpectralConvergence(_Mean):
    """Mean over items of `functional.spectral_convergence`.

    Args:
        n_fft: FFT size (samples).
    """

    higher_is_better = False

    def __init__(self, n_fft: int = 2048):
        super().__init__()
        self.n_fft = n_fft

    def update(self, audio: Iterable[Tensor] | Tensor, reference: Iterable[Tensor] | Tensor) -> None:
        """Args: audio, reference: [batch, samples], or a sequence of [samples]."""
        for one, wanted in zip(audio, reference, strict=True):
            self.add(functional.spectral_convergence(one, wanted, self.n_fft))


class MelError(_Mean):
    """Mean over items of `functional.mel_error` (nats)."""

    higher_is_better = False

    def update(self, mel: Iterable[Tensor] | Tensor, reference: Iterable[Tensor] | Tensor) -> None:
        """Args: mel, reference: [batch, frames, mels], or a sequence of [frames, mels]."""
        for one, wanted in zip(mel, reference, strict=True):
            self.add(functional.mel_error(one, wanted))


class MelConvergence(_Mean):
    """Mean over items of `functional.mel_convergence`."""

    higher_is_better = False

    def update(self, mel: Iterable[Tensor] | Tensor, reference: Iterable[Tensor] | Tensor) -> None:
        """Args: mel, reference: [batch, frames, mels], or a sequence of [frames, mels]."""
        for one, wanted in zip(mel, reference, strict=True):
            self.add(functional.mel_convergence(one, wanted))


class ChromaError(_Mean):
    """Mean over items of `functional.chroma_error`.

    Args:
        sample_rate: Of the audio (Hz).
    """

    higher_is_better = False

    def __init__(self, sample_rate: int = 16000):
        super().__init__()
        self.sample_rate = sample_rate

    def update(self, audio: Iterable[Tensor] | Tensor, reference: Iterable[Tensor] | Tensor) -> None:
        """Args: audio, reference: [batch, samples], or a sequence of [samples]."""
        for one, wanted in zip(audio, reference, strict=True):
            self.add(functional.chroma_error(one, wanted, self.sample_rate))


class ReconstructionDistance(_Mean):
    """Mean over items of `functional.reconstruction_distance`."""

    higher_is_better = False

    def update(self, embeddings: Iterable[Tensor] | Tensor, reference: Iterable[Tensor] | Tensor) -> None:
        """Args: embeddings, reference: [batch, frames, dim], or a sequence of [frames, dim]."""
        for one, wanted in zip(embeddings, reference, strict=True):
            self.add(functional.reconstruction_distance(one, wanted))


class LoudnessCorrelation(_Mean):
    """Mean over items of `functional.loudness_correlation`; items of constant loudness are left out.

    Args:
        sample_rate: Of the audio (Hz).
    """

    higher_is_better = True

    def __init__(self, sample_rate: int = 16000):
        super().__init__()
        self.sample_rate = sample_rate

    def update(self, audio: Iterable[Tensor] | Tensor, reference: Iterable[Tensor] | Tensor) -> None:
        """Args: audio, reference: [batch, samples], or a sequence of [samples]."""
        for one, wanted in zip(audio, reference, strict=True):
            value = functional.loudness_correlation(one, wanted, self.sample_rate)
            if not math.isnan(value):
                self.add(value)


class NoteScores(Metric):
    """Mean over pieces of every value of `functional.note_score`.

    Pieces whose velocity correlation is not defined are left out of that mean alone.

    Args:
        onset_tolerance: How far onsets may be apart (seconds).
    """

    full_state_update = False
    higher_is_better = True
    totals: Tensor
    counts: Tensor

    names = tuple(NoteScore.__dataclass_fields__)

    def __init__(self, onset_tolerance: float = 0.05):
        super().__init__()
        self.onset_tolerance = onset_tolerance
        self.add_state("totals", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, estimates: Iterable[np.ndarray], references: Iterable[np.ndarray]) -> None:
        """Args: estimates, references: for every piece [notes] of `NOTE_DTYPE`."""
        for estimate, reference in zip(estimates, references, strict=True):
            score = functional.note_score(reference, estimate, self.onset_tolerance).as_dict()
            values = torch.tensor([score[name] for name in self.names], dtype=torch.float64, device=self.totals.device)
            self.totals += values.nan_to_num()
            self.counts += values.isfinite()

    def compute(self) -> Mapping[str, Tensor]:
        """Attribute of `NoteScore` -> mean; NaN where no piece has a value."""
        return dict(zip(self.names, self.totals / self.counts, strict=True))
