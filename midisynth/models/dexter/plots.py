"""Pictures of performances: tempo and velocity over the score, and how they come out of the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from midisynth.datasets.files import replacing
from midisynth.metrics.expression import clip_tempo, tempo_curve, velocity_curve
from midisynth.models.dexter.expression import VELOCITY, ExpressionCodec
from midisynth.music.score_notes import Score
from midisynth.pictures import draw_curves, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from midisynth.models.dexter.model import DExter
    from midisynth.models.dexter.rendering import Draw

_FRAME_MSEC, _LAST_FRAME_MSEC = 120, 2000


def curves(score: Score, values: np.ndarray, expression: ExpressionCodec) -> tuple[np.ndarray, np.ndarray]:
    """Tempo (beats a minute) and MIDI velocity at every onset of a score, [onsets] each.

    Args:
        score: What is played.
        values: [notes, 5], as the codec has them.
        expression: The codec.
    """
    onset = score.notes["onset_beat"]
    _, tempo = tempo_curve(onset, expression.beat_periods(values))
    _, velocity = velocity_curve(onset, 127 * np.asarray(values)[:, VELOCITY])
    return clip_tempo(tempo), velocity


def curves_figure(
    score: Score,
    values: np.ndarray,
    expression: ExpressionCodec,
    label: str = "prediction",
    others: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Tempo and velocity over the score.

    Args:
        score: What is played.
        values: [notes, 5], as the codec has them.
        expression: The codec.
        label: Of the values.
        others: Label -> values of other performances of the score.

    Raises:
        MidisynthError: matplotlib is not installed.
    """
    beats, _ = tempo_curve(score.notes["onset_beat"], np.ones(len(score.notes)))
    everything = {label: values, **(others or {})}
    return draw_curves(beats, {name: curves(score, one, expression) for name, one in everything.items()})


def denoising_steps(model: DExter, piece: Mapping[str, Any], draw: Draw) -> list[tuple[np.ndarray, np.ndarray]]:
    """What the sampler holds and what the network makes of it, at every step.

    Args:
        model: In evaluation mode.
        piece: From `DExterCodec.encode`.
        draw: Number of a draw and its shape -> standard normal numbers.

    Returns:
        For each step the noisy parameters and the estimate of the data, [notes, 5] each, in the units of the codec.
    """
    from midisynth.models.dexter.rendering import level_of_piece, midlevel_of, sample_piece

    level = level_of_piece(model, piece)
    steps: list[tuple[np.ndarray, np.ndarray]] = []

    def physical(z: Tensor) -> np.ndarray:
        return model.denormalised(z[0], level).cpu().double().numpy()

    def watch(z: Tensor, estimate: Tensor) -> None:
        steps.append((physical(z), physical(estimate)))

    sample_piece(model, piece, draw, midlevel_of(model, piece, None), watch=watch)
    return steps


def denoising_animation(
    score: Score, steps: Sequence[tuple[np.ndarray, np.ndarray]], expression: ExpressionCodec, path: Path
) -> None:
    """Write how a performance comes out of the noise, a frame for every step, as GIF.

    Args:
        score: What is played.
        steps: From `denoising_steps`.
        expression: The codec.
        path: Of the file.

    Raises:
        MidisynthError: matplotlib is not installed.
    """
    figure, axes = new_figure(2, 2.2, 8.0)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    beats, _ = tempo_curve(score.notes["onset_beat"], np.ones(len(score.notes)))
    frames = [[curves(score, values, expression) for values in step] for step in steps]
    lines = []
    for axis, index, unit in zip(axes, (0, 1), ("tempo (beats a minute)", "MIDI velocity"), strict=True):
        lines.append(axis.plot(beats, frames[0][0][index], "0.8", beats, frames[0][1][index], "C0", linewidth=1))
        final = frames[-1][1][index]
        margin = 0.5 * np.ptp(final) + 1
        axis.set_ylim(final.min() - margin, final.max() + margin)
        axis.set_ylabel(unit)
    axes[-1].set_xlabel("score (beats)")
    images = []
    for number, frame in enumerate(frames, start=1):
        for pair, index in zip(lines, (0, 1), strict=True):
            for line, one in zip(pair, frame, strict=True):
                line.set_ydata(one[index])
        axes[0].set_title(f"step {number} of {len(frames)}", loc="left", fontsize=10)
        canvas.draw()
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64))
    durations = [_FRAME_MSEC] * (len(images) - 1) + [_LAST_FRAME_MSEC]
    with replacing(path) as file:
        images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
