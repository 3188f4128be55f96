"""Joining consecutive segments that overlap."""

from __future__ import annotations

import torch
from torch import Tensor


class CrossFade:
    """Joins segments that overlap: a linear fade from each to the next.

    Args:
        overlap: Frames that neighbours share.
    """

    def __init__(self, overlap: int):
        self._overlap = overlap
        self._held: Tensor | None = None

    def push(self, segment: Tensor) -> Tensor:
        """Take the next segment [frames, ...] and return the frames that no later segment changes."""
        if self._held is not None:
            rise = torch.arange(1, self._overlap + 1, device=segment.device)[:, None] / (self._overlap + 1)
            faded = torch.lerp(self._held, segment[: self._overlap], rise)
            segment = torch.cat([faded, segment[self._overlap :]])
        final = len(segment) - self._overlap
        self._held = segment[final:]
        return segment[:final]

    def finish(self) -> Tensor:
        """Return the frames that were held back."""
        assert self._held is not None
        return self._held
