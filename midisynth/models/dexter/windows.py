"""A piece of any length through a network that sees a window of notes."""

from __future__ import annotations

import torch
from torch import Tensor


class Windows:
    """Windows over the notes of a piece that overlap, evenly spaced, without padding.

    A piece is one sample: what windows share is one noise, and their estimates are faded into each other at every step,
    so that they agree long before they are done. Averages of windows that were sampled apart would be none of both.

    Args:
        notes: Of the piece.
        length: Notes in a window; fewer if the piece is shorter.
        overlap: Notes that neighbours share at least.

    Attributes:
        length: Notes in a window.
        rows: Notes of each window, [windows, length] int64.
    """

    def __init__(self, notes: int, length: int, overlap: int):
        self.length = min(length, notes)
        count = 1 + max(0, -(-(notes - length) // (length - overlap)))
        starts = torch.linspace(0, notes - self.length, count, dtype=torch.float64).round().long()
        self.rows = starts[:, None] + torch.arange(self.length)
        # The weight of a note rises from the edge of its window on until the next window begins to fade in.
        edge = torch.arange(1, self.length + 1, dtype=torch.float32)
        weight = torch.minimum(edge, edge.flip(0)).clamp(max=overlap + 1).expand_as(self.rows)
        total = torch.zeros(notes).index_add(0, self.rows.flatten(), weight.flatten())
        self._shares = weight / total[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def cut(self, piece: Tensor, chosen: slice = slice(None)) -> Tensor:
        """What belongs to each note, [notes, ...] -> windows, all or some of them, [windows, length, ...]."""
        return piece[self.rows[chosen].to(piece.device)]

    def joined(self, windows: Tensor, into: Tensor, chosen: slice = slice(None)) -> Tensor:
        """Add some windows, [windows, length, channels], to their shares of a piece, [notes, channels]."""
        shares = self._shares[chosen, :, None].to(windows)
        return into.index_add_(0, self.rows[chosen].flatten().to(into.device), (windows * shares).flatten(0, 1))
