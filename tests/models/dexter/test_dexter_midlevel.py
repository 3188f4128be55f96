"""Mid-level features: their signs, what a user may ask for, and the tables of the original."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from midisynth.errors import DataError, UsageError
from midisynth.models.dexter.midlevel import (
    MIDLEVEL,
    describe,
    describe_aligned,
    describe_score,
    find_heard_features,
    parse_steer,
    played_onsets,
    read_heard_features,
)
from midisynth.music.alignment_files import read_match
from midisynth.music.score import read_score_notes

EXAMPLES = Path(__file__).parents[3] / "examples" / "vienna4x22"
C_MAJOR, C_MINOR = (60, 62, 64, 65, 67, 69, 71, 72), (60, 62, 63, 65, 67, 68, 71, 72)


def described(pitch, onset=None, duration=0.4) -> dict[str, float]:
    """Features of notes every half second."""
    pitch = np.array(pitch)
    onset = np.arange(len(pitch)) / 2 if onset is None else np.array(onset, float)
    values = describe(onset, np.broadcast_to(duration, onset.shape), pitch)
    assert values.shape == (len(pitch), len(MIDLEVEL)) and values.dtype == np.float32
    return dict(zip(MIDLEVEL, values.mean(0), strict=True))


def test_signs():
    major, minor = described(C_MAJOR * 4), described(C_MINOR * 4)
    assert minor["minorness"] > 0 > major["minorness"]
    chromatic = described(list(range(60, 72)) * 3)
    assert major["tonal_stability"] > chromatic["tonal_stability"] + 0.3
    leaps = described([48, 72, 50, 79] * 8)
    assert major["melodiousness"] > leaps["melodiousness"] + 0.3
    legato, staccato = described(C_MAJOR * 4, duration=0.5), described(C_MAJOR * 4, duration=0.125)
    assert legato["articulation"] - staccato["articulation"] == pytest.approx(2, abs=0.01)
    generator = np.random.default_rng(0)
    free = described(C_MAJOR * 4, np.cumsum(generator.uniform(0.1, 0.9, 32)))
    assert major["rhythm_stability"] > free["rhythm_stability"] + 0.3
    assert major["rhythm_complexity"] < free["rhythm_complexity"] - 0.5
    onset = np.repeat(np.arange(16) / 2, 2)
    seconds, thirds = described([60, 61] * 16, onset), described([60, 64] * 16, onset)
    assert seconds["dissonance"] == pytest.approx(1.0) and thirds["dissonance"] == pytest.approx(0.08)


def test_real_scores_have_the_modes_they_are_in():
    """Mozart's sonata is in A major, Chopin's study in E major, Schubert's dance in F minor."""
    minorness = {
        path.stem.split("_")[0]: describe_score(read_score_notes(path))[:, MIDLEVEL.index("minorness")].mean()
        for path in (EXAMPLES / "musicxml").glob("*.musicxml")
    }
    assert minorness["Mozart"] < -0.1 and minorness["Chopin"] < -0.1 < minorness["Schubert"]


def test_performances_are_drier_and_freer_than_their_page():
    aligned = read_match(EXAMPLES / "match" / "Mozart_K331_1st-mov_p01.match")
    played, written = describe_aligned(aligned).mean(0), describe_score(aligned.score).mean(0)
    assert np.isfinite(played).all()
    differences = dict(zip(MIDLEVEL, played - written, strict=True))
    assert differences["articulation"] < -0.3 and differences["rhythm_stability"] < -0.1
    for name in ("dissonance", "tonal_stability", "minorness"):
        assert abs(differences[name]) < 0.1


def test_the_features_follow_the_music():
    values = describe(np.arange(200) / 4, np.full(200, 0.2), np.array((C_MAJOR * 13)[:100] + (C_MINOR * 13)[:100]))
    minorness = values[:, MIDLEVEL.index("minorness")]
    assert minorness[:60].max() < 0 < minorness[140:].min()
    assert np.abs(np.diff(minorness)).max() < 0.1


@pytest.mark.parametrize("notes", [1, 2, 3, 5])
def test_few_notes_are_enough(notes):
    values = describe(np.arange(notes) * 20.0, np.ones(notes), np.full(notes, 60))
    assert values.shape == (notes, 7) and np.isfinite(values).all()


def test_notes_that_were_not_played_are_where_they_would_have_been():
    aligned = read_match(EXAMPLES / "match" / "Schubert_D783_no15_p01.match")
    whole = played_onsets(aligned)
    aligned.pairs = np.delete(aligned.pairs, 100, axis=0)
    onsets = played_onsets(aligned)
    np.testing.assert_allclose(onsets, whole, atol=0.3)
    assert (onsets >= 0).all()


# Steering


@pytest.fixture(scope="module")
def score():
    return read_score_notes(EXAMPLES / "musicxml" / "Schubert_D783_no15.musicxml", repeats=False)


def test_constants_and_curves(score):
    offsets = parse_steer({"articulation": 1, "minorness": [[9, 0.5], [1, -1.0]]}, score)
    assert offsets.shape == (len(score.notes), 7) and offsets.dtype == np.float32
    assert (offsets[:, MIDLEVEL.index("articulation")] == 1).all()
    curve, bar = offsets[:, MIDLEVEL.index("minorness")], score.notes["bar"] + 1
    assert (curve[bar >= 9] == 0.5).all()
    downbeats = score.notes["bar_beat"] == 0
    np.testing.assert_allclose(curve[downbeats & (bar == 5)], -0.25)
    assert not offsets[:, MIDLEVEL.index("dissonance")].any()


def test_files_say_the_same_as_options(score, tmp_path):
    wanted = {"articulation": [[1, -1.0], [9, 0.5]], "minorness": [[2, 1.0]]}
    (tmp_path / "a.yaml").write_text("articulation: [[1, -1], [9, 0.5]]\nminorness: [[2, 1.0]]\n")
    (tmp_path / "a.json").write_text(json.dumps(wanted))
    (tmp_path / "a.csv").write_text("bar,articulation,minorness\n1,-1,\n2,,1.0\n9,0.5,\n")
    for suffix in ("yaml", "json", "csv"):
        assert np.array_equal(parse_steer(str(tmp_path / f"a.{suffix}"), score), parse_steer(wanted, score))


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"artikulation": 1}, "did you mean articulation"),
        ({"loudness": 1}, "features: melodiousness"),
        ({"minorness": "much"}, "not a number"),
        ({"minorness": True}, "not a number"),
        ({"minorness": float("nan")}, "not a number"),
        ({"minorness": []}, r"list of \[bar, offset\]"),
        ({"minorness": [1, 2]}, r"list of \[bar, offset\]"),
        ({"minorness": [[0, 1.0]]}, "names bar 0; the score has bars 1 to"),
        ({"minorness": [[900, 1.0]]}, "names bar 900"),
        ("minorness", "neither a mapping nor a file"),
        ("nowhere.yaml", "No such file"),
    ],
)
def test_mistakes_are_named(score, option, told):
    with pytest.raises(UsageError, match=told):
        parse_steer(option, score)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.yaml", "a: [", "not YAML"),
        ("a.yaml", "- 1", "no mapping"),
        ("a.json", "{", "cannot be read"),
        ("a.csv", "measure,minorness\n1,1\n", "no column 'bar'"),
        ("a.csv", "bar,minorness\n1,x\n", "line 2"),
        ("a.csv", "", "no column 'bar'"),
    ],
)
def test_mistakes_in_files_are_named(score, tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=told):
        parse_steer(str(tmp_path / name), score)


# Tables of the original


def test_notes_take_the_last_frame_that_has_begun(tmp_path):
    path = tmp_path / "cep.csv"
    rows = [f"{start},{','.join(str(start + column) for column in range(7))}" for start in (5.0, 0.5, 10.0)]
    path.write_text("\n".join(["frame_start_time," + ",".join(f"f{column}" for column in range(7)), *rows]))
    heard = read_heard_features(path)
    times = np.array([-1.0, 0.5, 7.0, 99.0])
    assert heard.at(times)[:, 0].tolist() == [0.5, 0.5, 5.0, 10.0]
    assert heard.at(times, "2024")[:, 0].tolist() == [10.0, 0.5, 5.0, 10.0]


def test_columns_go_by_name_where_there_are_names(tmp_path):
    path = tmp_path / "cep.csv"
    path.write_text(",frame_start_time," + ",".join(reversed(MIDLEVEL)) + "\n0,0.0,7,6,5,4,3,2,1\n")
    assert read_heard_features(path).values.tolist() == [[1, 2, 3, 4, 5, 6, 7]]


def test_tables_are_found_where_the_corpora_have_them(tmp_path):
    for name in ("match/a_p01.match", "piece/Li02.mid", "piece/Wu03.mid"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "cep_features").mkdir()
    for name in ("cep_features/a_p01.csv", "piece/Li02_cep_features.csv"):
        (tmp_path / name).touch()
    assert find_heard_features(tmp_path / "match/a_p01.match") == tmp_path / "cep_features/a_p01.csv"
    assert find_heard_features(tmp_path / "piece/Li02.mid") == tmp_path / "piece/Li02_cep_features.csv"
    assert find_heard_features(tmp_path / "piece/Wu03.mid") is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not a table"),
        ("frame_start_time,a\n0,1\n", "1 mid-level features"),
        ("a,b,c,d,e,f,g,h\n0,1,2,3,4,5,6,7\n", "frame_start_time"),
        ("frame_start_time,a,b,c,d,e,f,g\n0,1,2,3,4,5,6,nan\n", "finite"),
        ("frame_start_time,a,b,c,d,e,f,g\n0,1,2,3,4,5,6,x\n", "not a table"),
    ],
)
def test_other_tables_are_refused(tmp_path, text, told):
    path = tmp_path / "cep.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=told):
        read_heard_features(path)
    with pytest.raises(DataError, match="No such file"):
        read_heard_features(tmp_path / "none.csv")
