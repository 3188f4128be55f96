"""From a score to its performance: conditions, sampling of all windows together, and what the user asked for on top."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from midisynth.diffusion.inpainting import Known
from midisynth.diffusion.objectives import add_noise
from midisynth.diffusion.sampling import sample, start_time
from midisynth.errors import UsageError
from midisynth.models.dexter.expression import BEAT_PERIOD, CHANNELS, PEDAL
from midisynth.models.dexter.levels import LEVELS, level_of
from midisynth.models.dexter.midlevel import MIDLEVEL, describe, parse_steer
from midisynth.models.dexter.network import Conditioned
from midisynth.models.dexter.plots import curves_figure
from midisynth.models.dexter.predictor import FEATURES, SymbolicPrior
from midisynth.models.dexter.windows import Windows
from midisynth.module import Rendering
from midisynth.music.notes import Performance
from midisynth.music.score_notes import Score

if TYPE_CHECKING:
    from midisynth.models.dexter.model import DExter

#: Number of a draw and its shape -> standard normal numbers.
Draw = Callable[[int, Sequence[int]], Tensor]


class PieceDenoiser:
    """Estimates the parameters of a whole piece, window by window.

    What it holds besides the conditions of the piece belongs to one batch of windows, however many there are.

    Args:
        model: With its network.
        score: [notes, features].
        midlevel: [notes, 7] z-scores; None: not known.
    """

    def __init__(self, model: DExter, score: Tensor, midlevel: Tensor | None):
        options = model.hparams
        self._model = model
        self._score = score
        self._midlevel = midlevel
        self._windows = Windows(len(score), options.window, options.overlap)
        # The published networks know windows of one length, with zeros behind a piece that is shorter.
        self._padding = options.window - self._windows.length if options.compat else 0
        size = options.windows_per_batch
        self._batches = [slice(first, first + size) for first in range(0, len(self._windows), size)]
        self._conditioned = self._condition(self._batches[0]) if len(self._batches) == 1 else None

    def _cut(self, rows: Tensor, chosen: slice) -> Tensor:
        return F.pad(self._windows.cut(rows, chosen), (0, 0, 0, self._padding))

    def _condition(self, chosen: slice) -> Conditioned:
        midlevel = None if self._midlevel is None else self._cut(self._midlevel, chosen)
        guided = self._model.hparams.guidance != 1
        return self._model.network.condition(self._cut(self._score, chosen), midlevel, unconditional=guided)

    def __call__(self, z: Tensor, t: float) -> Tensor:
        """Noisy parameters [1, notes, 5] at a time in [0, 1] -> x0 [1, notes, 5]."""
        piece = torch.zeros_like(z[0])
        for chosen in self._batches:
            # Cheaper than to hold the feature maps of a long piece.
            conditioned = self._condition(chosen) if self._conditioned is None else self._conditioned
            estimate = self._model.estimate(self._cut(z[0], chosen), t, conditioned)
            self._windows.joined(estimate[:, : self._windows.length], piece, chosen)
        return piece[None]


def perform(model: DExter, piece: Mapping[str, Any], draw: Draw) -> Rendering:
    """Play one score.

    Args:
        model: In evaluation mode.
        piece: From `DExterCodec.encode`.
        draw: Number of a draw and its shape -> standard normal numbers.
    """
    options, expression, score = model.hparams, model.codec.expression, piece["score"]
    source = Source.of(model, piece) if "source" in piece else None
    midlevel = midlevel_of(model, piece, source)
    values = sample_piece(model, piece, draw, midlevel, source)
    if options.tempo is not None:
        values = expression.with_tempo(score, values, options.tempo)
    if options.dynamics is not None:
        values = expression.with_dynamics(values, options.dynamics)
    performance = expression.decode(score, values)
    report = _report(score, performance)
    if options.steer is not None and midlevel is not None:
        report["midlevel"] = _midlevel_report(model, midlevel, performance)
    figure = curves_figure(score, values, expression) if model.plot else None
    return Rendering(performance=performance, figure=figure, report=report)


@torch.no_grad()
def sample_piece(
    model: DExter,
    piece: Mapping[str, Any],
    draw: Draw,
    midlevel: Tensor | None,
    source: Source | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> np.ndarray:
    """Sample a whole score, all windows at once.

    Args:
        model: In evaluation mode.
        piece: From `DExterCodec.encode`.
        draw: Number of a draw and its shape -> standard normal numbers.
        midlevel: From `midlevel_of`.
        source: Performance to start from.
        watch: Called at every step with the noisy z-scores and the estimate of the data, [1, notes, 5] each.

    Returns:
        [notes, 5], in the units of the codec.
    """
    options = model.hparams
    score = torch.from_numpy(piece["features"]).to(model.device)
    shape = (1, len(score), len(CHANNELS))
    start, steps = 1.0, options.sample_steps
    if source is not None and source.is_partly_noised:
        start = options.sample_steps_frac
        steps = math.ceil(start * steps)
    denoise = PieceDenoiser(model, score, midlevel)
    level = level_of_piece(model, piece, source)

    def watched(z: Tensor, t: float) -> Tensor:
        estimate = denoise(z, t)
        if watch is not None:
            watch(z, estimate)
        return estimate

    def noise(number: int) -> Tensor:
        drawn = draw(number, shape).to(model.device)
        if number > 0:
            return drawn
        if options.target == "transfer" and source is not None:
            return source.values
        drawn = options.temperature * drawn
        if start == 1:
            return drawn
        first = start_time(options.solver, steps, model.grid, start, model.schedule)
        time = torch.tensor(first, dtype=torch.float64)
        return add_noise(source.values, drawn, model.schedule.alpha(time).item(), model.schedule.sigma(time).item())

    if steps == 0:
        z = source.values
    else:
        known = None if source is None else source.known
        z = sample(watched, noise, model.schedule, options.solver, steps, known, model.grid, start=start)
    return model.denormalised(z[0], level).cpu().double().numpy()


def level_of_piece(model: DExter, piece: Mapping[str, Any], source: Source | None = None) -> Tensor:
    """Mean tempo and loudness of a rendering, [2]: those of its source, or what the page lets expect."""
    if source is not None:
        return source.level
    if model.levels is None:
        return model.mean.new_zeros(len(LEVELS))
    return model.levels(torch.from_numpy(piece["features"]).to(model.device))


@dataclass(frozen=True)
class Source:
    """The performance that a rendering starts from.

    Attributes:
        values: [1, notes, 5] z-scores.
        level: Mean tempo and loudness, [2], see `levels.py`.
        midlevel: [notes, 7] z-scores; None for a model without them.
        known: What is to stay as it is; the rest is then made from noise alone. None: nothing.
        is_partly_noised: Whether sampling begins with it and some noise.
    """

    values: Tensor
    level: Tensor
    midlevel: Tensor | None
    known: Known | None
    is_partly_noised: bool

    @classmethod
    def of(cls, model: DExter, piece: Mapping[str, Any]) -> Source:
        """Read it from what `DExterCodec.encode` returned."""
        options, given = model.hparams, piece["source"]
        played = torch.from_numpy(given["values"]).float().to(model.device)
        level = level_of(played, torch.from_numpy(given["matched"]).to(model.device))
        values = model.normalised(played, level)
        midlevel = None
        if model.prior is not None:
            midlevel = model.standardised(torch.from_numpy(given["midlevel"]).float().to(model.device))
        known = None
        if options.keep or options.bars:
            mask = kept(piece["score"], given["matched"], options.keep, options.bars)
            known = Known(values[None], torch.from_numpy(mask)[None].to(model.device))
        return cls(values[None], level, midlevel, known, known is None and options.target == "gen_noise")


def kept(score: Score, matched: np.ndarray, channels: Sequence[str] | None, bars: str | None) -> np.ndarray:
    """Which parameters are taken from a source as they are, [notes, 5] bool.

    Args:
        score: Its notes know their bars.
        matched: [notes] bool, notes that the source plays.
        channels: Channels that are taken everywhere; None: none.
        bars: Bars that are played anew, such as "1-8,17", counted from 1; all others are taken. None: all bars.

    Raises:
        UsageError: `bars` is no list of bars.
    """
    mask = np.zeros((len(matched), len(CHANNELS)), bool)
    if bars is not None:
        anew = np.zeros(len(matched), bool)
        for span in str(bars).split(","):
            found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", span)
            if found is None:
                raise UsageError(f"bars: {span!r} is no span of bars; write them as 1-8,17")
            first, last = int(found[1]), int(found[2] or found[1])
            anew |= (score.notes["bar"] + 1 >= first) & (score.notes["bar"] + 1 <= last)
        mask[~anew] = True
    mask[:, [CHANNELS.index(name) for name in channels or ()]] = True
    # Tempo and pedal belong to all notes of an onset, also to those that the source left out.
    _, group = np.unique(score.notes["onset_div"], return_inverse=True)
    played = np.repeat(matched[:, None], len(CHANNELS), axis=1)
    played[:, [BEAT_PERIOD, PEDAL]] = (np.bincount(group, matched) > 0)[group, None]
    return mask & played


def midlevel_of(model: DExter, piece: Mapping[str, Any], source: Source | None) -> Tensor | None:
    """Mid-level features that a rendering is asked for, [notes, 7] z-scores: expected or given ones, and an offset."""
    options, score = model.hparams, piece["score"]
    if options.target == "transfer" and source is None:
        raise UsageError("this model changes performances: name one of the same score with --model.source")
    if model.prior is None:
        if options.steer is not None:
            raise UsageError("steer: this model was trained without mid-level features (midlevel)")
        return None
    offset = torch.zeros(len(piece["features"]), FEATURES)
    if options.steer is not None:
        offset += torch.from_numpy(parse_steer(options.steer, score)).float()
    offset = offset.to(model.device)
    if options.target == "transfer":
        return offset
    if source is not None and source.is_partly_noised:
        return source.midlevel + offset
    if isinstance(model.prior, SymbolicPrior):
        written = torch.from_numpy(piece["written"]).float().to(model.device)
        return model.prior(model.standardised(written))[0] + offset
    features = torch.from_numpy(piece["features"]).to(model.device)
    windows = Windows(len(features), options.window, options.overlap)
    expected = torch.zeros_like(offset)
    for index in range(len(windows)):
        chosen = slice(index, index + 1)
        rows = windows.cut(features, chosen)
        unseen = torch.zeros(1, dtype=torch.bool, device=model.device)
        mask = torch.ones(rows.shape[:2], dtype=torch.bool, device=model.device)
        mean, _ = model.prior(rows, rows.new_zeros(*rows.shape[:2], len(CHANNELS)), unseen, mask)
        windows.joined(mean, expected, chosen)
    return expected + offset


def _report(score: Score, performance: Performance) -> dict[str, Any]:
    """Plain values about a rendering."""
    quarters = (score.notes["onset_quarter"] + score.notes["duration_quarter"]).max() - score.notes["onset_quarter"][0]
    return {
        "notes": len(score.notes),
        "duration_sec": round(performance.end_sec, 3),
        "mean_tempo_bpm": round(float(60 * quarters / performance.end_sec), 1),
        "mean_velocity": round(float(performance.notes["velocity"].mean()), 1),
        "warnings": [*score.warnings, *performance.warnings],
    }


def _midlevel_report(model: DExter, asked: Tensor, performance: Performance) -> dict[str, dict[str, float]]:
    """What a steered rendering was asked for, [notes, 7], and what can be heard: means in standard deviations."""
    notes = performance.notes
    heard = torch.from_numpy(describe(notes["onset_sec"], notes["duration_sec"], notes["pitch"])).to(model.device)
    means = {"asked": asked.mean(dim=0).tolist(), "heard": model.standardised(heard).mean(dim=0).tolist()}
    return {
        feature: {name: round(mean[index], 2) for name, mean in means.items()} for index, feature in enumerate(MIDLEVEL)
    }
