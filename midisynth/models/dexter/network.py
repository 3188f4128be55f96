"""Denoisers of performance parameters: what both share, and the first of them, a DiffWave that runs over notes.

"DExter: Learning and Controlling Performance Expression with Diffusion Models" (Zhang et al. 2024, Applied Sciences
14(15) 6543). Parameters have the names of the published checkpoints. With `compat` the networks compute what the
published ones do. Without it,

- padding does not reach the notes: padded rows are zeroed before whatever mixes notes, and not counted in statistics;
- the mid-level rows are conditions of both networks; the published DiffWave ignores them;
- time enters through slow sinusoids, so that solvers may visit fractional steps. The published DiffWave has a table
  whose slowest sinusoid turns by a radian a step: a code of 1,000 numbers, whose neighbours have nothing in common.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.nn.positions import sinusoids_at

Compat = Literal["2024"]

#: Performance parameters of a note.
CHANNELS = 5

#: Width of the step sinusoids, and of what the network makes of them.
STEP_DIM, STEP_HIDDEN = 128, 512


@dataclass(frozen=True)
class Conditioned:
    """What a denoiser makes of the conditions; serves all steps of a sampling run.

    Attributes:
        maps: Feature maps [rows, ...] in the order in which the network uses them.
        mask: [rows, notes] bool, False for padding; None if every row is a note.
        rows: Number of rows: those of the batch, or twice as many: conditional, then unconditional.
    """

    maps: Iterable[Tensor]
    mask: Tensor | None
    rows: int


class Denoiser(nn.Module, ABC):
    """Noisy performance parameters of the notes of a score in, what the objective asks for out.

    Args:
        score_features: Rows of the score condition.
        midlevel_features: Rows of the mid-level condition; 0 ignores it.
        normalise_score: Bring every score row of every sample to 0..1 first, constant ones to 0.
        null: Value of all rows of a dropped condition, or "learned": a learned one for each.
        null_notes: Notes of the learned null; 1: the same for all notes. The published one has a column for every
            note of a window.
        compat: "2024": compute what the published network does.
    """

    def __init__(
        self,
        score_features: int,
        midlevel_features: int,
        normalise_score: bool,
        null: float | Literal["learned"],
        null_notes: int,
        compat: Compat | None,
    ):
        super().__init__()
        self.score_features = score_features
        self.midlevel_features = midlevel_features
        self.normalise_score = normalise_score
        self.null = null
        self.compat = compat
        if null == "learned":
            self.trainable_parameters = nn.Parameter(torch.full((self.conditions, null_notes), -1.0))

    @property
    def conditions(self) -> int:
        """Number of condition rows."""
        return self.score_features + self.midlevel_features

    def condition(
        self,
        score: Tensor,
        midlevel: Tensor | None = None,
        mask: Tensor | None = None,
        unconditional: bool = False,
        null: float | None = None,
    ) -> Conditioned:
        """Work out everything that does not depend on the diffusion step, once for a sampling run.

        Args:
            score: [batch, notes, score_features].
            midlevel: [batch, notes, midlevel_features]; None: unknown, which is its null.
            mask: [batch, notes] bool, False for padding; ignored by the published networks.
            unconditional: Append as many rows without condition, for guidance.
            null: Value of dropped conditions instead of the network's own.
        """
        rows = self._condition_rows(score, midlevel, mask, None, None, null)
        mask = None if self.compat else mask
        if unconditional:
            rows = torch.cat([rows, self._null_rows(null, rows).expand_as(rows)])
            mask = None if mask is None else torch.cat([mask, mask])
        return Conditioned(tuple(self._maps(rows, mask)), mask, len(rows))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        score: Tensor,
        midlevel: Tensor | None = None,
        mask: Tensor | None = None,
        keep_score: Tensor | None = None,
        keep_midlevel: Tensor | None = None,
    ) -> Tensor:
        """Condition and denoise, for training.

        Args:
            x: [batch, notes, 5] noisy normalised performance parameters.
            t: [batch] diffusion steps, 0 to steps - 1; may be fractional.
            score: As in `condition`, like the next two.
            midlevel: See there.
            mask: See there.
            keep_score: [batch] bool, False where the score condition is dropped; None keeps all. A learned null has a
                gradient only if it is given.
            keep_midlevel: The same of the mid-level condition.

        Returns:
            [batch, notes, 5]; rows of padding have no meaning.
        """
        rows = self._condition_rows(score, midlevel, mask, keep_score, keep_midlevel, None)
        mask = None if self.compat else mask
        # Each map is made when it is needed and lives no longer.
        return self.denoise(x, t, Conditioned(self._maps(rows, mask), mask, len(rows)))

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, conditioned: Conditioned) -> Tensor:
        """Estimate what the objective asks for.

        Args:
            x: [batch, notes, 5] noisy normalised performance parameters.
            t: [batch] diffusion steps, or [1] if all are at one.
            conditioned: From `condition`. If it has unconditional rows, each row of `x` is denoised with and without
                condition, in one batch.

        Returns:
            [rows of the condition, notes, 5].
        """

    @abstractmethod
    def _maps(self, rows: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
        """Feature maps of condition rows [rows, notes, conditions] in the order of their use."""

    def _condition_rows(
        self,
        score: Tensor,
        midlevel: Tensor | None,
        mask: Tensor | None,
        keep_score: Tensor | None,
        keep_midlevel: Tensor | None,
        null: float | None,
    ) -> Tensor:
        """Conditions with those that are dropped replaced, [batch, notes, conditions]."""
        score = score.float()
        if self.normalise_score:
            score = min_max(score, None if self.compat else mask)
        rows, keep = [score], [keep_score]
        if self.midlevel_features:
            rows.append(score.new_zeros(*score.shape[:2], self.midlevel_features) if midlevel is None else midlevel)
            keep.append(score.new_zeros(len(score), dtype=torch.bool) if midlevel is None else keep_midlevel)
        if all(kept is None for kept in keep):
            return torch.cat(rows, dim=-1)
        nulls = self._null_rows(null, score).split([part.shape[-1] for part in rows], dim=-1)
        return torch.cat(
            [
                part if kept is None else torch.where(kept[:, None, None], part, value)
                for part, kept, value in zip(rows, keep, nulls, strict=True)
            ],
            dim=-1,
        )

    def _null_rows(self, null: float | None, like: Tensor) -> Tensor:
        """[1, 1 or notes, conditions]."""
        value = self.null if null is None else null
        if value == "learned":
            return self.trainable_parameters.T[None]
        return like.new_full((1, 1, self.conditions), value)


class DiffWaveDenoiser(Denoiser):
    """Dilated convolutions over notes with gates, after DiffWave (Kong et al. 2021), without normalisation.

    Args:
        channels: Width.
        layers: Residual layers.
        kernel_size: Notes under each convolution; odd.
        dilation_cycle: Layer i has the dilation dilation_base^(i modulo dilation_cycle).
        dilation_base: See `dilation_cycle`.
        dropout: Probability that a gated activation is dropped in training; the published network has none.
        score_features: As in `Denoiser`, like the rest.
        midlevel_features: The published network has none.
        normalise_score: See there.
        null: See there.
        null_notes: See there.
        steps: Diffusion steps of the published table.
        compat: See there.
    """

    def __init__(
        self,
        channels: int = 768,
        layers: int = 12,
        kernel_size: int = 3,
        dilation_cycle: int = 4,
        dilation_base: int = 2,
        dropout: float = 0.0,
        score_features: int = 4,
        midlevel_features: int = 7,
        normalise_score: bool = False,
        null: float | Literal["learned"] = -1.0,
        null_notes: int = 1,
        steps: int = 1000,
        compat: Compat | None = None,
    ):
        super().__init__(score_features, midlevel_features, normalise_score, null, null_notes, compat)
        self.input_projection = _conv1d(CHANNELS, channels)
        self.diffusion_embedding = StepEmbedding(steps if compat else None)
        self.residual_layers = nn.ModuleList(
            ResidualLayer(channels, self.conditions, kernel_size, dilation_base ** (index % dilation_cycle), dropout)
            for index in range(layers)
        )
        self.skip_projection = _conv1d(channels, channels)
        self.output_projection = _conv1d(channels, CHANNELS)
        nn.init.zeros_(self.output_projection.weight)

    def denoise(self, x: Tensor, t: Tensor, conditioned: Conditioned) -> Tensor:
        """See `Denoiser.denoise`."""
        x, t = both_branches(x, t, conditioned.rows)
        h = F.relu(self.input_projection(x.transpose(1, 2)))
        step = self.diffusion_embedding(t)
        mask = None if conditioned.mask is None else conditioned.mask[:, None].to(h.dtype)
        skips = torch.zeros((), device=h.device, dtype=h.dtype)
        for layer, condition in zip(self.residual_layers, conditioned.maps, strict=True):
            h, skip = layer(h, condition, step, mask)
            skips = skips + skip
        h = F.relu(self.skip_projection(skips / math.sqrt(len(self.residual_layers))))
        return self.output_projection(h).transpose(1, 2)

    def _maps(self, rows: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
        rows = rows.transpose(1, 2)
        for layer in self.residual_layers:
            yield layer.conditioner_projection(rows)


class ResidualLayer(nn.Module):
    """One layer of DiffWave.

    Args:
        channels: Width.
        conditions: Condition rows.
        kernel_size: Notes under the convolution; odd.
        dilation: Distance of these notes.
        dropout: See `DiffWaveDenoiser`.
    """

    def __init__(self, channels: int, conditions: int, kernel_size: int, dilation: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dilated_conv = _conv1d(channels, 2 * channels, kernel_size, dilation)
        self.diffusion_projection = nn.Linear(STEP_HIDDEN, channels)
        self.conditioner_projection = _conv1d(conditions, 2 * channels)
        self.output_projection = _conv1d(channels, 2 * channels)

    def forward(self, h: Tensor, condition: Tensor, step: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """One step through the network.

        Args:
            h: [rows, channels, notes].
            condition: [rows, 2 * channels, notes] projected condition.
            step: [rows or 1, STEP_HIDDEN] step embedding.
            mask: [rows, 1, notes], 0 for padding; None if there is none.

        Returns:
            The next `h`, and what goes to the output, in the shape of `h`.
        """
        y = h + self.diffusion_projection(step)[:, :, None]
        if mask is not None:
            y = y * mask
        gate, value = (self.dilated_conv(y) + condition).chunk(2, dim=1)
        gated = self.dropout(torch.sigmoid(gate) * torch.tanh(value))
        residual, skip = self.output_projection(gated).chunk(2, dim=1)
        return (h + residual) / math.sqrt(2), skip


class StepEmbedding(nn.Module):
    """Diffusion step -> conditioning vector.

    Args:
        table_rows: Rows of the published table, whose sinusoids turn by 1 to 10^4 radians a step; None for sinusoids of
            1 to 10^-4 radians a step.
    """

    table: Tensor | None

    def __init__(self, table_rows: int | None):
        super().__init__()
        self.register_buffer("table", None if table_rows is None else step_table(table_rows), persistent=False)
        self.projection1 = nn.Linear(STEP_DIM, STEP_HIDDEN)
        self.projection2 = nn.Linear(STEP_HIDDEN, STEP_HIDDEN)

    def forward(self, t: Tensor) -> Tensor:
        """[batch] -> [batch, STEP_HIDDEN]."""
        signal = sinusoids_at(t.float(), STEP_DIM) if self.table is None else self._look_up(self.table, t)
        return F.silu(self.projection2(F.silu(self.projection1(signal))))

    @staticmethod
    def _look_up(table: Tensor, t: Tensor) -> Tensor:
        low = t.floor().long().clamp(0, len(table) - 1)
        high = t.ceil().long().clamp(0, len(table) - 1)
        return torch.lerp(table[low], table[high], (t - low).to(table)[:, None])


def step_table(rows: int) -> Tensor:
    """Published code of the diffusion steps [rows, STEP_DIM]: sines, then cosines, of t 10^(4j/63).

    Angles reach 10^7, where float32 rounds them by half a radian; the published weights know the rounded ones.
    """
    rates = 10.0 ** (torch.arange(STEP_DIM // 2)[None] * 4.0 / (STEP_DIM // 2 - 1))
    angles = torch.arange(rows)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def min_max(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Bring every feature of every sample to 0..1; constant ones become 0.

    Args:
        rows: [batch, notes, features].
        mask: [batch, notes] bool, False for rows that do not count; None: all do.
    """
    low, high = rows, rows
    if mask is not None:
        low = rows.masked_fill(~mask[..., None], math.inf)
        high = rows.masked_fill(~mask[..., None], -math.inf)
    low, high = low.amin(dim=1, keepdim=True), high.amax(dim=1, keepdim=True)
    return torch.where(high > low, (rows - low) / (high - low), 0)


def both_branches(x: Tensor, t: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Repeat a batch and its steps once if a condition has twice its rows: conditional, then unconditional."""
    if len(x) == rows:
        return x, t
    return torch.cat([x, x]), t if len(t) == 1 else torch.cat([t, t])


def _conv1d(inputs: int, outputs: int, kernel_size: int = 1, dilation: int = 1) -> nn.Conv1d:
    """A convolution over notes that keeps their number, with the published initialisation."""
    conv = nn.Conv1d(inputs, outputs, kernel_size, padding=(kernel_size - 1) * dilation // 2, dilation=dilation)
    nn.init.kaiming_normal_(conv.weight)
    return conv
