"""Choosing some of many: all where they are few, else so many, all alike, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from midisynth.datasets.stems import subsets


def test_all_where_they_are_few():
    assert subsets("abc", 2, 3, 10, "") == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    assert subsets("abc", 4, 9, 10, "") == []
    assert subsets("ab", 1, 1, 10, "seed") == [("a",), ("b",)]
    assert subsets("ab", 1, 0, 10, "") == []


def test_as_many_as_are_wanted_where_they_are_many():
    chosen = subsets(range(30), 4, 30, 10, "Track00001")
    assert len(set(chosen)) == 10
    assert all(len(subset) >= 4 and list(subset) == sorted(set(subset)) for subset in chosen)
    assert chosen == subsets(range(30), 4, 30, 10, "Track00001")
    assert chosen != subsets(range(30), 4, 30, 10, "Track00002")


def test_all_are_as_likely():
    counts = Counter(subset for seed in range(900) for subset in subsets(range(5), 2, 3, 4, f"{seed}"))
    possible = [subset for size in (2, 3) for subset in combinations(range(5), size)]
    assert set(counts) == set(possible)
    expected = 900 * 4 / len(possible)
    assert max(abs(counts[subset] - expected) for subset in possible) < 0.35 * expected
