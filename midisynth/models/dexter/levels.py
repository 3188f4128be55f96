"""How fast and how loud a performance is as a whole, apart from what happens within it.

Mean tempo and mean velocity differ between performances far more than the tempo within one does, and a page says
little about them. What the diffusion learns are deviations from these levels; the levels of a score that nobody has
played are expected by ridge regression from what the page says of the whole piece.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from midisynth.models.dexter.expression import BEAT_PERIOD, CHANNELS, VELOCITY
from midisynth.models.dexter.features import RICH, Kind

#: Channels that have a level.
LEVELS = (BEAT_PERIOD, VELOCITY)

#: Rich features whose means over a piece the levels are expected from.
COLUMNS = (
    "tempo",
    "has_tempo",
    "loudness",
    "has_loudness",
    "piece_ioi",
    "piece_density",
    "beat_unit",
    "bar_length",
    "chord_size",
    "minor",
)

#: Strength of the regression: performances are many, pieces few.
RIDGE = 10.0


def level_columns(kind: Kind) -> list[int]:
    """Columns of the score features that levels are expected from; the published ones say nothing of them."""
    return [list(RICH).index(name) for name in COLUMNS] if kind == "rich" else []


def level_of(values: Tensor, matched: Tensor) -> Tensor:
    """Levels of a performance, [2]: means of the channels `LEVELS` over its matched notes.

    Args:
        values: [notes, 5] parameters of the codec.
        matched: [notes] bool.
    """
    return values[matched][:, LEVELS].mean(dim=0)


def as_channels(level: Tensor) -> Tensor:
    """Levels [..., 2] as something to add to parameters: [..., 1, 5], 0 where a channel has no level."""
    channels = level.new_zeros(*level.shape[:-1], 1, len(CHANNELS))
    channels[..., LEVELS] = level[..., None, :]
    return channels


class ExpectedLevels(nn.Module):
    """Levels that a page lets expect, a line in means of its features.

    Args:
        columns: Of the score features that are read; none expects what performances have on average.
    """

    mean: Tensor
    weight: Tensor
    offset: Tensor
    range: Tensor

    def __init__(self, columns: list[int]):
        super().__init__()
        self.columns = columns
        self.register_buffer("mean", torch.zeros(len(columns)))
        self.register_buffer("weight", torch.zeros(len(columns), len(LEVELS)))
        self.register_buffer("offset", torch.zeros(len(LEVELS)))
        self.register_buffer("range", torch.zeros(2, len(LEVELS)))

    def fit(self, summaries: Tensor, levels: Tensor) -> None:
        """Ridge regression. Features are not scaled: what hardly varies in training must not count much elsewhere.

        Args:
            summaries: [performances, features] means over the notes of each score.
            levels: [performances, 2] from `level_of`.
        """
        x, y = summaries[:, self.columns].double(), levels.double()
        self.mean.copy_(x.mean(dim=0))
        self.offset.copy_(y.mean(dim=0))
        self.range.copy_(torch.stack([y.amin(dim=0), y.amax(dim=0)]))
        x, y = x - x.mean(dim=0), y - y.mean(dim=0)
        ridge = RIDGE * torch.eye(x.shape[1], dtype=torch.float64)
        self.weight.copy_(torch.linalg.solve(x.T @ x + ridge, x.T @ y))

    def forward(self, features: Tensor) -> Tensor:
        """[notes, features] of a whole score -> [2], no further than performances of training went."""
        level = (features[:, self.columns].mean(dim=0) - self.mean) @ self.weight + self.offset
        return level.clamp(self.range[0], self.range[1])
