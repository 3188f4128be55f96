"""Notes on a grid, melodies, and structure from latents, on cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import word_error_rate

from midisynth.metrics.phrases import (
    GridScore,
    duration_roll,
    grid_score,
    length_accuracy,
    memorisation,
    word_error_rates,
)
from midisynth.metrics.structure import (
    bar_vectors,
    latent_distance,
    mean_distance,
    ngrams,
    section_recurrence,
    self_similarity,
    song_bars,
)

NOTES = np.array([[0, 60, 12], [12, 62, 6], [12, 65, 6]])


def test_a_grid_keeps_the_longest_note_and_the_last_position():
    roll = duration_roll(np.array([[0, 60, 3], [0, 60, 9], [50, 61, 2]]))
    assert roll.shape == (48, 128)
    assert (roll[0, 60], roll[47, 61], roll.sum()) == (9, 2, 11)
    assert not duration_roll(np.empty((0, 3))).any()


def test_every_score_asks_for_more():
    longer = NOTES + [[0, 0, 1]] * 3
    assert grid_score({0: NOTES}, {0: NOTES}) == GridScore(1, 1, 1)
    assert grid_score({0: NOTES}, {0: longer}) == GridScore(1, 0, 0)
    assert grid_score({0: NOTES}, {25: NOTES}) == GridScore(1, 1, 0)
    assert grid_score({0: NOTES}, {0: NOTES[:2]}).opd == pytest.approx(2 * 2 / 5)


def test_notes_where_there_should_be_none():
    assert grid_score({}, {}) == GridScore(1, 1, 1)
    assert grid_score({}, {0: NOTES}) == GridScore(0, 0, 0)
    assert grid_score({}, {0: NOTES}, published=True) == GridScore(1, 1, 1)
    assert grid_score({0: NOTES}, {}) == GridScore(0, 0, 0)


def test_instruments_that_the_reference_lacks():
    extra = {0: NOTES, 25: NOTES}
    assert grid_score({0: NOTES}, extra).iopd == 0.5
    assert grid_score({0: NOTES}, extra, published=True).iopd == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abcd"), max_size=9), st.lists(st.lists(st.sampled_from("abcd"), max_size=9), max_size=4)
)
def test_word_errors_are_those_of_torchmetrics(hypothesis: list[str], references: list[list[str]]):
    rates = word_error_rates(hypothesis, references)
    for reference, rate in zip(references, rates, strict=True):
        if reference:
            assert rate == pytest.approx(float(word_error_rate(" ".join(hypothesis), " ".join(reference))))
        else:
            assert np.isnan(rate)


def test_a_copy_is_told_from_a_song_that_resembles_many():
    training = [list("abcdefgh"), list("qrstuvwx"), list("ijklmnop")]
    copy = memorisation(list("abcdefgx"), training)
    assert (copy.nearest, copy.rate, copy.memorised) == (0, 7 / 8, True)
    assert not memorisation(list("ABCDEFGH"), training).memorised
    assert memorisation(list("abcdefgh"), [*training, list("abcdefgh")]).memorised
    assert memorisation(list("x" * 40), training).rate < 0


def test_lengths():
    assert length_accuracy([60, 69, 70, 59], [64] * 4) == 0.5


def test_ngrams_stay_within_their_song():
    songs = [torch.arange(6.0).view(3, 2), torch.arange(10.0, 14).view(2, 2), torch.zeros(1, 2)]
    assert ngrams(songs, 2).tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [10, 11, 12, 13]]
    assert ngrams(songs[2:], 2).shape == (0, 4)


def test_the_distance_of_a_set_to_itself_is_zero_and_grows_with_a_shift():
    torch.manual_seed(0)
    songs = list(torch.randn(4, 50, 3))
    assert latent_distance(songs, songs) == pytest.approx(0, abs=1e-9)
    assert latent_distance(songs, [song + 2 for song in songs]) == pytest.approx(12)


def song(plan: str) -> torch.Tensor:
    """Bars of a plan, each letter a section of four bars of its own."""
    torch.manual_seed(0)
    sections = {letter: torch.randn(4, 64) for letter in sorted(set(plan))}
    return torch.cat([sections[letter] for letter in plan])


@pytest.mark.parametrize(("plan", "score"), [("ABCD", 0), ("ABCA", 4 / 16), ("ABAB", 8 / 16)])
def test_what_returns_is_counted(plan: str, score: float):
    assert section_recurrence(self_similarity(song(plan))) == pytest.approx(score)


def test_bars_that_are_all_alike_are_no_sections():
    assert section_recurrence(torch.ones(16, 16)) == 0


def test_where_a_song_ends():
    torch.manual_seed(0)
    music, silence = torch.randn(10, 4, 8), torch.randn(8).expand(6, 4, 8)
    padded = torch.cat([music, silence]).flatten(0, 1)
    assert bar_vectors(padded).shape == (16, 8)
    assert song_bars(padded) == 10
    assert song_bars(music.flatten(0, 1)) == 10
    assert song_bars(padded, end=silence[0, 0]) == 10
    assert song_bars(music.flatten(0, 1), end=silence[0, 0]) == 10
    assert song_bars(silence.flatten(0, 1)) == 4


def test_diversity():
    assert mean_distance(torch.tensor([[0.0, 0], [3, 4]])) == 5
