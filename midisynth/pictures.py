"""Pictures that go with results, drawn without a window. They need matplotlib, of the extra `plots`."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from midisynth.audio.spectrum import log_spectrum
from midisynth.datasets.files import replacing
from midisynth.errors import MidisynthError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Width of a picture (inches), and its resolution (dots per inch).
WIDTH, DPI = 11.0, 110
#: Height of a spectrogram (inches).
SPECTROGRAM_HEIGHT = 2.6
#: Width and height of a matrix of similarities (inches).
SIMILARITY_SIZE = 6.0
#: Height of a curve over the score (inches).
CURVE_HEIGHT = 2.6
#: About the length of the window of a spectrogram (seconds): long enough to see partials, short enough to see onsets.
WINDOW_SEC = 0.1
#: Most rows of pixels of a spectrogram.
SPECTROGRAM_ROWS = 220
#: What is darker than this below the loudest point is black (dB).
RANGE_DB = 60.0


def available() -> bool:
    """Whether pictures can be drawn: whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check_available() -> None:
    """Make sure that pictures can be drawn.

    Raises:
        MidisynthError: matplotlib is not installed.
    """
    if not available():
        raise MidisynthError("pictures need matplotlib; install it with: pip install matplotlib")


def new_figure(rows: int, height: float, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """A figure of plots one above the other, on one time axis.

    It belongs to no window and no list of figures, and vanishes when nobody holds it.

    Args:
        rows: Number of plots.
        height: Of each (inches).
        width: Of the figure (inches).

    Raises:
        MidisynthError: matplotlib is not installed.
    """
    check_available()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, rows * height), dpi=DPI, layout="tight")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)
    return figure, list(axes[:, 0])


def draw_spectrograms(
    sounds: Mapping[str, Tensor], sample_rate: int, start_sec: float = 0.0, seconds: float = math.inf
) -> Figure:
    """Spectrograms one above the other, on a linear scale of frequency, in decibels below the loudest of the first.

    Args:
        sounds: Title to audio, [samples].
        sample_rate: Of all of them (Hz); the picture reaches up to half of it.
        start_sec: Where the excerpt begins (seconds); the rest is analysed, so that its ends show no cut.
        seconds: Its longest length (seconds).

    Raises:
        MidisynthError: matplotlib is not installed.
    """
    figure, axes = new_figure(len(sounds), SPECTROGRAM_HEIGHT)
    n_fft = 2 ** round(math.log2(WINDOW_SEC * sample_rate))
    frames_per_sec = sample_rate / (n_fft / 4)
    # A row shows the loudest of its bins: their mean would drown a partial, which is one bin wide.
    pooled = math.ceil(n_fft / 2 / SPECTROGRAM_ROWS)
    loudest = -math.inf
    for axis, (title, audio) in zip(axes, sounds.items(), strict=True):
        decibels = log_spectrum(audio.detach().float().cpu(), n_fft) * (20 / math.log(10))
        first, last = start_sec * frames_per_sec, (start_sec + seconds) * frames_per_sec
        decibels = decibels[:, round(first) : round(min(last, decibels.shape[1]))]
        if axis is axes[0]:
            loudest = float(decibels.max())
        rows = F.max_pool1d(decibels.T, pooled, ceil_mode=True).T
        top_khz = len(rows) * pooled * sample_rate / n_fft / 1000
        axis.imshow(
            rows.numpy(),
            origin="lower",
            aspect="auto",
            extent=(start_sec, start_sec + rows.shape[1] / frames_per_sec, 0, top_khz),
            cmap="magma",
            interpolation="nearest",
            vmin=loudest - RANGE_DB,
            vmax=loudest,
        )
        axis.set_ylim(0, sample_rate / 2000)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylabel("kHz")
    axes[-1].set_xlabel("seconds")
    return figure


def draw_curves(beats: np.ndarray, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Tempo and velocity over the score, of one or several performances.

    Args:
        beats: Onsets of the score, [onsets] in beats.
        curves: Label -> tempo (beats a minute) and MIDI velocity, [onsets] each.

    Raises:
        MidisynthError: matplotlib is not installed.
    """
    figure, axes = new_figure(2, CURVE_HEIGHT)
    for axis, index, unit in zip(axes, (0, 1), ("tempo (beats a minute)", "MIDI velocity"), strict=True):
        for label, pair in curves.items():
            axis.plot(beats, pair[index], label=label, linewidth=1)
        axis.set_ylabel(unit)
        axis.grid(alpha=0.3)
    axes[0].legend(loc="upper right", fontsize=8)
    axes[-1].set_xlabel("score (beats)")
    return figure


def draw_similarity(similarity: Tensor, sections: Sequence[tuple[str, int]] = ()) -> Figure:
    """How similar the bars of a song are: stripes beside the diagonal are passages that come again.

    Args:
        similarity: [bars, bars], up to 1.
        sections: Name and length (bars) of each, to be marked at the edges.

    Raises:
        MidisynthError: matplotlib is not installed.
    """
    figure, (axis,) = new_figure(1, SIMILARITY_SIZE, SIMILARITY_SIZE)
    bars = len(similarity)
    image = axis.imshow(
        similarity.numpy(), origin="lower", extent=(0, bars, 0, bars), cmap="magma", vmin=0, vmax=1, aspect="equal"
    )
    figure.colorbar(image, ax=axis, fraction=0.045, label="cosine")
    start = 0
    for name, length in sections:
        axis.axvline(start, color="white", linewidth=0.5)
        axis.axhline(start, color="white", linewidth=0.5)
        axis.text(start + length / 2, bars, name, ha="center", va="bottom", fontsize=8)
        start += length
    axis.set_xlabel("bar")
    axis.set_ylabel("bar")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a .png file, whole or not at all."""
    with replacing(path) as file:
        figure.savefig(file, format="png")
