"""The linear baseline of benchmarks/: it solves what it says, and finds what is linear."""

from __future__ import annotations

import numpy as np
import pytest
from dexter_ridge import CONTEXTS, Piece, Played, Ridge, with_context

from midisynth.models.dexter.expression import CHANNELS, VELOCITY


def piece_of(generator: np.random.Generator, weights: np.ndarray, performances: int = 2) -> Piece:
    """A piece whose parameters are a linear function of the features of each note, and noise; a fifth is not played."""
    notes = int(generator.integers(60, 90))
    features, onset = generator.normal(size=(notes, len(weights))), np.arange(notes) // 2 * 0.5
    played = Played.of(features, onset)
    piece = Piece({b"score": played})
    for _ in range(performances):
        values = features @ weights + 3 + 0.1 * generator.normal(size=(notes, len(CHANNELS)))
        matched = generator.random(notes) < 0.8
        piece.levels.append(played.add(np.where(matched[:, None], values, 99), matched))
    return piece


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(6, len(CHANNELS)))


@pytest.fixture(scope="module")
def pieces(weights: np.ndarray) -> list[Piece]:
    generator = np.random.default_rng(0)
    return [piece_of(generator, weights) for _ in range(6)]


def test_context():
    features, onset = np.arange(8.0)[:, None], np.array([0, 0, 1, 2, 3, 4, 5, 6.0])
    near = with_context(features, onset, "near")
    lags, stretches = CONTEXTS["near"]
    assert near.shape == (8, 1 + 2 * len(lags) + 2 * len(stretches) + 1)
    # The chord has the mean 0.5; beyond the end there is the edge.
    assert near[2, :3].tolist() == [2, 0.5, 3] and near[0, 1:3].tolist() == [0.5, 2]
    before, after = near[4, 1 + 2 * len(lags) : 3 + 2 * len(lags)]
    assert before == pytest.approx((0.5 + 2 + 3) / 3) and after == pytest.approx((5 + 6 + 7) / 3)
    assert (near[:, -1] == 1).all()
    assert with_context(features, onset, "note").shape == (8, 2)


def test_what_is_linear_is_found(pieces: list[Piece], weights: np.ndarray):
    ridge = Ridge(pieces)
    assert all(choice.agreement > 0.99 for choice in ridge.choices)
    features, onset = np.random.default_rng(2).normal(size=(50, 6)), np.arange(50.0)
    found = ridge.values(features, onset)
    wanted = features @ weights + 3
    assert found[:, VELOCITY] == pytest.approx(wanted[:, VELOCITY], abs=0.1)
    # The level of each performance was taken off, and their mean put back.
    assert ridge.level == pytest.approx(np.mean([level for piece in pieces for level in piece.levels]))
    assert np.corrcoef(found[:, 0], wanted[:, 0])[0, 1] > 0.99


@pytest.mark.parametrize("weight", ["notes", "pieces"])
def test_the_solution_is_that_of_the_normal_equations(pieces: list[Piece], weight: str):
    """On columns of mean 0 and variance 1, with the mean of the targets left alone."""
    ridge, strength = Ridge(pieces), 30.0
    (found,) = ridge._solve("note", weight, range(len(pieces)), [strength], VELOCITY)
    parts = [
        (played.rows["note"][known][:, :-1].astype(float), targets[known, VELOCITY])
        for piece in pieces
        for played in piece.scores.values()
        for known, targets in zip(played.matched, played.targets, strict=True)
    ]
    rows, targets = (np.concatenate(side) for side in zip(*parts, strict=True))
    sizes = [sum(known.sum() for known in piece.scores[b"score"].matched) for piece in pieces]
    shares = np.repeat([1.0 if weight == "notes" else sum(sizes) / len(sizes) / size for size in sizes], sizes)
    mean = shares @ rows / shares.sum()
    scale = np.sqrt(shares @ np.square(rows - mean) / shares.sum())
    scaled = (rows - mean) / scale
    left = scaled.T @ (shares[:, None] * scaled) + strength * np.eye(len(mean))
    slopes = np.linalg.solve(left, scaled.T @ (shares * targets)) / scale
    assert found[:-1] == pytest.approx(slopes, abs=1e-6)
    assert found[-1] == pytest.approx(shares @ targets / shares.sum() - slopes @ mean, abs=1e-6)
