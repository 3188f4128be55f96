"""Joining consecutive segments that overlap."""

from __future__ import annotations

import torch
from torch import Tensor


class CrossFade:
    """Joins segments that overlap: a linear fade from each to the next.

    Neighbours share 2 * margin + overlap frames. The fade is in the middle of these, and the margins, where a network
    sees little on one side, are left out. The start of the first segment and the end of the last are used.

    Args:
        overlap: Frames of the fade.
        margin: Frames that are left out at both ends of a segment.
    """

    def __init__(self, overlap: int, margin: int = 0):
        self._overlap = overlap
        self._margin = margin
        self._held: Tensor | None = None
        self._shared: Tensor | None = None

    def push(self, segment: Tensor) -> Tensor:
        """Take the next segment [frames, ...] and return the frames that no later segment changes."""
        usable = len(segment) - self._margin
        self._shared = segment[usable - self._overlap - self._margin : usable]
        if self._held is not None:
            segment = segment[self._margin :]
            rise = torch.arange(1, self._overlap + 1, device=segment.device)[:, None] / (self._overlap + 1)
            faded = torch.lerp(self._held[: self._overlap], segment[: self._overlap], rise)
            segment = torch.cat([faded, segment[self._overlap :]])
        final = len(segment) - self._overlap - self._margin
        self._held = segment[final:]
        return segment[:final]

    def finish(self) -> Tensor:
        """Return the frames that were held back."""
        assert self._held is not None
        return self._held

    @property
    def shared(self) -> Tensor:
        """What the last segment says of the first margin + overlap frames of the next one."""
        assert self._shared is not None
        return self._shared
