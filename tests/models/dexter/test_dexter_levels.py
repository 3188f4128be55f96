"""Mean tempo and loudness, apart from what happens within a performance."""

from __future__ import annotations

import pytest
import torch

from midisynth.models.dexter import DExter
from midisynth.models.dexter.features import RICH
from midisynth.models.dexter.levels import COLUMNS, LEVELS, ExpectedLevels, as_channels, level_columns, level_of


def test_only_matched_notes_make_the_level():
    values = torch.tensor([[1.0, 0.2, 9, 9, 9], [3.0, 0.4, 9, 9, 9], [50.0, 50.0, 9, 9, 9]])
    assert level_of(values, torch.tensor([True, True, False])).tolist() == pytest.approx([2.0, 0.3])


def test_a_page_tells_what_it_told_in_training():
    """Loud marks mean loud performances; what the page never says keeps the average."""
    torch.manual_seed(0)
    columns = level_columns("rich")
    pages = torch.zeros(300, len(RICH))
    loudness = list(RICH).index("loudness")
    pages[:, loudness] = torch.randn(300)
    levels = torch.stack([0.1 * torch.randn(300), 0.5 + 0.2 * pages[:, loudness]], dim=1)
    expected = ExpectedLevels(columns)
    expected.fit(pages, levels)
    loud, soft = torch.zeros(7, len(RICH)), torch.zeros(7, len(RICH))
    loud[:, loudness], soft[:, loudness] = 1.0, -1.0
    assert (expected(loud) - expected(soft))[1].item() == pytest.approx(0.4, rel=0.1)
    assert (expected(loud) - expected(soft))[0].abs() < 0.05
    assert [list(RICH)[column] for column in columns] == list(COLUMNS)


def test_what_training_never_saw_does_not_run_away():
    """Every page of training names its tempo to within a hair; one that does not is played as others are."""
    torch.manual_seed(0)
    pages = torch.zeros(50, len(RICH))
    pages[:, list(RICH).index("has_tempo")] = 1 - 1e-4 * torch.rand(50)
    pages[:, list(RICH).index("piece_ioi")] = torch.randn(50)
    levels = 0.1 * torch.randn(50, 2)
    expected = ExpectedLevels(level_columns("rich"))
    expected.fit(pages, levels)
    for unseen in (torch.zeros(7, len(RICH)), torch.full((7, len(RICH)), 40.0)):
        assert (expected(unseen) >= levels.amin(dim=0)).all()
        assert (expected(unseen) <= levels.amax(dim=0)).all()
    assert (expected(torch.zeros(7, len(RICH))) - levels.mean(dim=0)).abs().max() < 0.1


def test_the_published_features_say_nothing_of_levels():
    expected = ExpectedLevels(level_columns("published"))
    expected.fit(torch.randn(5, 4), torch.tensor([[1.0, 2.0]] * 5))
    assert expected(torch.randn(9, 4)).tolist() == [1.0, 2.0]


def test_z_scores_do_not_know_the_level():
    model = DExter(channels=8, layers=2)
    values, level = torch.randn(2, 6, 5), torch.tensor([[1.0, 0.1], [-2.0, 0.3]])
    z = model.normalised(values, level)
    torch.testing.assert_close(model.normalised(values + as_channels(level), 2 * level), z)
    torch.testing.assert_close(model.denormalised(z, level), values)
    assert (as_channels(level)[..., [c for c in range(5) if c not in LEVELS]] == 0).all()


def test_compat_learns_tempo_and_loudness_as_they_are():
    model = DExter(channels=8, layers=2, features="published", midlevel=None, compat="2024")
    values = torch.randn(1, 6, 5)
    expected = (values - model.mean) / model.std
    torch.testing.assert_close(model.normalised(values, torch.ones(1, 2)), expected)
