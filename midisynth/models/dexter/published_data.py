"""The training data of the published models: mixes of performances, windows, scales and pairs for transfer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def mixes(performances: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Means of every two performances of a score but the first, which the original forgets.

    Args:
        performances: [notes, channels] each, in the order in which they are read.

    Returns:
        (K - 1)(K - 2) / 2 arrays [notes, channels] for K performances: the third with the second, the fourth with the
        second and the third, and so on.
    """
    return [(later + earlier) / 2 for number, later in enumerate(performances) for earlier in performances[1:number]]


def segments(rows: np.ndarray, length: int) -> np.ndarray:
    """Consecutive windows of the notes of a piece, [notes, channels] -> [windows, length, channels]; the last has
    zeros where the piece has no notes."""
    count = -(-len(rows) // length)
    padded = np.zeros((count * length, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return padded.reshape(count, length, *rows.shape[1:])


def channel_statistics(windows: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (of the population) of each channel.

    Args:
        windows: [windows, notes, channels].
        mask: [windows, notes] bool, notes that count; None: all, padding too, as in the original.

    Returns:
        [channels] and [channels], float64.
    """
    rows = windows.reshape(-1, windows.shape[-1]) if mask is None else windows[mask]
    return rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)


class TransferPairs(Sequence[tuple[int, int]]):
    """All ordered pairs of different performances of one window, without a list of them.

    Args:
        windows: What each window is a performance of, such as (score, segment), [windows].

    Attributes:
        unpaired: Windows that only one performance has, [windows].
    """

    def __init__(self, windows: Sequence[Hashable]):
        groups: dict[Hashable, list[int]] = {}
        for index, what in enumerate(windows):
            groups.setdefault(what, []).append(index)
        self.unpaired = [group[0] for group in groups.values() if len(group) == 1]
        self._groups = [group for group in groups.values() if len(group) > 1]
        self._ends = np.cumsum([len(group) * (len(group) - 1) for group in self._groups], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> tuple[int, int]:  # type: ignore[override]
        """Window to start from and window to go to."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        place = int(np.searchsorted(self._ends, number, side="right"))
        group = self._groups[place]
        source, target = divmod(number - int(self._ends[place - 1]) * (place > 0), len(group) - 1)
        return group[source], group[target + (target >= source)]


def swapped_pairs(size: int) -> np.ndarray:
    """The partner of each row of a batch in which pairs stand beside each other: 1, 0, 3, 2, ...

    Raises:
        ValueError: The batch is odd.
    """
    if size % 2:
        raise ValueError(f"a batch of {size} windows is not made of pairs")
    return np.arange(size) ^ 1
