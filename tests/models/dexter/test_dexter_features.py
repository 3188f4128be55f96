"""What a network reads of a score: finite, of unit scale, and true to the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from midisynth.models.dexter.features import PUBLISHED, RICH, feature_count, score_features
from midisynth.models.dexter.sounding import Sounding
from midisynth.music.score import read_score_notes
from midisynth.music.score_notes import SCORE_NOTE_DTYPE, Score

ROOT = Path(__file__).parents[3]
FILES = [
    *sorted((ROOT / "examples" / "vienna4x22" / "musicxml").glob("*.musicxml")),
    *sorted((ROOT / "tests" / "music" / "data" / "score_zoo").glob("*.m*")),
]


def column(score: Score, name: str) -> np.ndarray:
    return score_features(score, "rich")[:, list(RICH).index(name)]


def make_notes(rows: list[tuple[float, float, int, int]], **marks) -> Score:
    """Rows of onset and duration (quarters), pitch, voice in 4/4 and C major."""
    notes = np.zeros(len(rows), SCORE_NOTE_DTYPE)
    for name, values in zip(
        ("onset_quarter", "duration_quarter", "pitch", "voice"), zip(*rows, strict=True), strict=True
    ):
        notes[name] = values
    for unit in ("onset", "duration"):
        notes[f"{unit}_beat"] = notes[f"{unit}_quarter"]
        notes[f"{unit}_div"] = 24 * notes[f"{unit}_quarter"]
    notes["bar"], notes["bar_beat"] = np.divmod(notes["onset_beat"], 4)
    notes["bar_beats"] = 4
    notes["tempo"] = notes["loudness"] = np.nan
    for name, values in marks.items():
        notes[name] = values
    return Score(notes, 24)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_real_scores_give_finite_numbers_of_unit_scale(path):
    score = read_score_notes(path)
    table = score_features(score, "rich")
    assert table.shape == (len(score.notes), feature_count("rich")) and table.dtype == np.float32
    assert np.isfinite(table).all()
    assert np.abs(table).max() <= 8


def test_published_features_are_raw():
    score = read_score_notes(FILES[0])
    table = score_features(score, "published")
    assert table.shape[1] == feature_count("published") == len(PUBLISHED)
    assert np.array_equal(table[:, 0], score.notes["onset_div"])


def test_a_single_note_has_features():
    assert np.isfinite(score_features(make_notes([(0, 0, 60, 1)], grace=True), "rich")).all()


def test_outer_voices_hear_held_notes():
    """A long high note makes the moving notes below it inner voices."""
    score = make_notes([(0, 1, 48, 2), (0, 4, 72, 1), (1, 1, 60, 2), (2, 1, 76, 2), (4, 1, 60, 1)])
    assert column(score, "highest").tolist() == [0, 1, 0, 1, 1]
    assert column(score, "lowest").tolist() == [1, 0, 1, 0, 1]
    np.testing.assert_allclose(column(score, "below_top"), [2, 0, 1, 0, 0])


def test_dissonance_knows_seconds_from_thirds():
    notes = make_notes([(0, 1, 60, 1), (0, 1, 61, 2), (1, 1, 60, 1), (1, 1, 64, 2), (2, 1, 60, 1), (2, 1, 66, 1)]).notes
    np.testing.assert_allclose(Sounding.of(notes).dissonance, [1.0, 0.08, 0.75])


def test_metre_has_strong_and_weak_places():
    score = make_notes([(place, 0.25, 60, 1) for place in (0, 0.25, 0.5, 1, 2, 3, 4)])
    np.testing.assert_allclose(column(score, "strength"), [1, 0.1, 0.25, 0.5, 0.75, 0.5, 1])


def test_rests_slurs_and_fermatas_mark_phrases():
    rows = [(0, 1, 60, 1), (1, 1, 62, 1), (2, 1, 64, 1), (6, 1, 65, 1)]
    score = make_notes(rows, slur=[True, True, False, False], fermata=[False, False, True, False])
    np.testing.assert_allclose(column(score, "rest_after"), [0, 0, 2, 0])
    np.testing.assert_allclose(column(score, "silence_before"), [0, 0, 0, 2])
    assert column(score, "slur_start").tolist() == [1, 0, 0, 0]
    assert column(score, "slur_end").tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(column(score, "before_fermata"), [0.25, 0.5, 1, 0])


def test_neighbours_are_those_of_the_voice():
    score = make_notes([(0, 1, 60, 1), (0, 4, 72, 2), (1, 1, 64, 1), (4, 1, 60, 1), (4, 1, 74, 2)])
    np.testing.assert_allclose(12 * column(score, "interval_after"), [4, 2, -4, 0, 0], atol=1e-5)
    np.testing.assert_allclose(12 * column(score, "interval_before"), [0, 0, 4, -4, 2], atol=1e-5)
    np.testing.assert_allclose(2.0 ** (2 * column(score, "voice_ioi_after")), [1, 4, 3, 1, 1], rtol=1e-5)


def test_pitches_are_heard_in_their_key():
    score = make_notes([(0, 1, 67, 1), (1, 1, 61, 1)], fifths=1)
    np.testing.assert_allclose(column(score, "fifths_cos"), [1, -1], atol=1e-6)
    assert column(score, "chromatic").tolist() == [0, 1]
    minor = make_notes([(0, 1, 64, 1)], fifths=1, minor=True)
    np.testing.assert_allclose(column(minor, "fifths_cos"), 1, atol=1e-6)


def test_what_the_page_does_not_say_has_a_flag():
    silent = make_notes([(0, 1, 60, 1)])
    marked = make_notes([(0, 1, 60, 1)], tempo=60.0, loudness=96.0)
    for name, value in (("tempo", -1.0), ("loudness", 1.0)):
        assert column(silent, name) == 0 and column(silent, f"has_{name}") == 0
        assert column(marked, name) == value and column(marked, f"has_{name}") == 1
