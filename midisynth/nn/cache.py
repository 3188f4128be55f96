"""Projected keys and values of attention layers, and caches of those of the positions that are decoded already."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class KeyValue(NamedTuple):
    """Projected memory of one attention layer.

    Attributes:
        key: [batch, heads, length, head_dim].
        value: [batch, heads, length, head_dim].
    """

    key: Tensor
    value: Tensor


class Cache(Protocol):
    """What an attention layer needs of a cache."""

    def append(self, new: KeyValue) -> KeyValue:
        """Add positions [batch, heads, new length, head_dim] and return those to attend to, with them."""
        ...


class KeyValueCache:
    """Keys and values of the positions that one layer has decoded so far, in a buffer that is allocated once.

    With it every further position costs one position only.

    Args:
        capacity: Most positions.

    Attributes:
        length: Positions so far.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self._buffer: KeyValue | None = None

    def append(self, new: KeyValue) -> KeyValue:
        """Add positions [batch, heads, new length, head_dim] and return all [batch, heads, length, head_dim]."""
        if self._buffer is None:
            shape = (*new.key.shape[:2], self.capacity, new.key.shape[3])
            # Zeros: a weight of 0 hides what is finite, but not the NaN that memory may hold.
            self._buffer = KeyValue(new.key.new_zeros(shape), new.value.new_zeros(shape))
        added = new.key.shape[2]
        for buffer, entries in zip(self._buffer, new, strict=True):
            buffer.narrow(2, self.length, added).copy_(entries)
        self.length += added
        return KeyValue(*(buffer.narrow(2, 0, self.length) for buffer in self._buffer))

    def at(self, slot: Tensor) -> SlotCache:
        """Go on in static shapes: further positions go where `slot` says, see `SlotCache`."""
        return SlotCache(self._buffer, slot)


class SlotCache:
    """The same in shapes that never change, and without a number that the host would have to know.

    That is what a CUDA graph can be captured of. `append` returns all of the buffer: the caller masks what is not
    filled yet.

    Args:
        buffer: [batch, heads, capacity, head_dim] each; without NaN.
        slot: [1] int64, where the next position goes; changed in place by the owner of the caches.
    """

    def __init__(self, buffer: KeyValue, slot: Tensor):
        self._buffer = buffer
        self._slot = slot

    def append(self, new: KeyValue) -> KeyValue:
        """Put one position [batch, heads, 1, head_dim] and return all [batch, heads, capacity, head_dim]."""
        for buffer, entries in zip(self._buffer, new, strict=True):
            buffer.index_copy_(2, self._slot, entries.to(buffer.dtype))
        return self._buffer
