"""Choosing which stems of a song sound together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations
from math import comb
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def subsets(items: Sequence[T], smallest: int, largest: int, count: int, seed: str) -> list[tuple[T, ...]]:
    """Subsets of `smallest` to `largest` items: all if there are at most `count`, else so many of them, all alike.

    Args:
        items: What to choose from.
        smallest: Fewest items in a subset.
        largest: Most items in a subset.
        count: Most subsets.
        seed: Equal seeds give equal choices, on every machine.
    """
    sizes = range(smallest, min(largest, len(items)) + 1)
    if sum(comb(len(items), size) for size in sizes) <= count:
        return list(chain.from_iterable(combinations(items, size) for size in sizes))
    generator = np.random.default_rng(list(seed.encode()))
    # Their number grows as 2 ** items: subsets are drawn, not listed.
    chosen: set[tuple[int, ...]] = set()
    while len(chosen) < count:
        drawn = tuple(np.flatnonzero(generator.random(len(items)) < 0.5).tolist())
        if len(drawn) in sizes:
            chosen.add(drawn)
    return [tuple(items[index] for index in subset) for subset in sorted(chosen)]
