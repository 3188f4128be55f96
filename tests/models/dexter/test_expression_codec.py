"""Performances as five numbers a note: nothing is lost there and back, and what a model draws is playable."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midisynth.errors import DataError, RenderError, ScoreError, UsageError
from midisynth.models.dexter.codec import CHANNELS, DExterCodec, ExpressionCodec
from midisynth.models.dexter.expression import ARTICULATION, BEAT_PERIOD, PEDAL, TIMING, VELOCITY, Grid
from midisynth.models.dexter.playing import is_grace
from midisynth.music.alignment import AlignedPerformance
from midisynth.music.alignment_files import read_match
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.notes import CONTROL_DTYPE, NOTE_DTYPE, Performance
from midisynth.music.score import read_score_notes
from midisynth.music.score_notes import SCORE_NOTE_DTYPE, Score

EXAMPLES = Path(__file__).parents[3] / "examples" / "vienna4x22"
SCORES = Path(__file__).parents[2] / "music" / "data" / "score_zoo"
TICK_SEC = 1 / 960


def make_score(rows: list[tuple[float, float, int, int]]) -> Score:
    """Rows of onset (beats), duration (beats, 0 for a grace note), pitch, voice; 24 divisions, quarters, 4/4."""
    notes = np.zeros(len(rows), SCORE_NOTE_DTYPE)
    for name, column in zip(("onset_beat", "duration_beat", "pitch", "voice"), zip(*rows, strict=True), strict=True):
        notes[name] = column
    for unit in ("onset", "duration"):
        notes[f"{unit}_quarter"] = notes[f"{unit}_beat"]
        notes[f"{unit}_div"] = np.rint(24 * notes[f"{unit}_beat"])
    notes["grace"] = notes["duration_div"] == 0
    notes["bar"], notes["bar_beat"] = np.divmod(notes["onset_beat"], 4)
    notes["bar_beats"] = 4
    notes["tempo"] = notes["loudness"] = np.nan
    notes = notes[np.lexsort((notes["pitch"], notes["onset_div"]))]
    notes["id"] = [f"n{row}" for row in range(len(notes))]
    return Score(notes, 24)


def make_performance(onset: list[float], duration: list[float], pedal: list[tuple[float, int]] = ()) -> Performance:
    notes = np.zeros(len(onset), NOTE_DTYPE)
    notes["onset_sec"], notes["duration_sec"], notes["velocity"] = onset, duration, 64
    controls = np.zeros(len(pedal), CONTROL_DTYPE)
    controls["number"] = 64
    controls["time_sec"], controls["value"] = zip(*pedal, strict=True) if pedal else ((), ())
    return Performance(notes=notes, controls=controls)


def whole(score: Score, performance: Performance) -> AlignedPerformance:
    """Note i plays note i."""
    return AlignedPerformance(score, performance, np.tile(np.arange(len(score.notes))[:, None], 2))


# Round trip


def round_trip(aligned: AlignedPerformance, path: Path) -> dict[str, float]:
    """Largest errors over the matched notes: seconds before writing (graces apart), ticks after reading."""
    codec = ExpressionCodec()
    expression = codec.encode(aligned)
    rows = expression.matched
    score = aligned.score.with_notes(aligned.score.notes[rows])
    again = codec.decode(score, expression.values[rows], exact=True)
    human = aligned.performance.notes[aligned.pairs[np.argsort(aligned.pairs[:, 0]), 1]]
    main = ~is_grace(score.notes)
    shift = (human["onset_sec"] - again.notes["onset_sec"])[main]
    shift -= shift[0]
    written = read_back(again, path)
    assert len(written) == len(again.notes)
    order = np.lexsort((again.notes["pitch"], again.notes["onset_tick"]))
    sought = again.notes[order]
    assert np.array_equal(written["pitch"], sought["pitch"])
    assert np.array_equal(written["velocity"], sought["velocity"])
    ends = [table["onset_sec"] + table["duration_sec"] for table in (written, sought)]
    return {
        "onset": np.abs(shift).max(),
        "duration": np.abs(again.notes["duration_sec"] - human["duration_sec"])[main].max(),
        "velocity": np.abs(again.notes["velocity"] - human["velocity"]).max(),
        "written_onset": np.abs(written["onset_sec"] - sought["onset_sec"]).max() / TICK_SEC,
        "written_end": np.abs(ends[0] - ends[1]).max() / TICK_SEC,
    }


def read_back(performance: Performance, path: Path) -> np.ndarray:
    """Notes of the file, which every reader has to find complete."""
    write_midi(performance, path)
    instruments = pretty_midi.PrettyMIDI(str(path)).instruments
    assert sum(len(instrument.notes) for instrument in instruments) == len(performance.notes)
    return read_midi(path).notes


def check_round_trips(paths: list[Path], folder: Path) -> None:
    worst: dict[str, float] = {}
    for path in paths:
        for name, error in round_trip(read_match(path), folder / "written.mid").items():
            worst[name] = max(worst.get(name, 0.0), float(error))
    print(f"\ncodec round trip of {len(paths)} performances: " + ", ".join(f"{k} {v:.2g}" for k, v in worst.items()))
    assert worst["onset"] <= 1e-3 and worst["duration"] <= 1e-3
    assert worst["velocity"] == 0
    assert worst["written_onset"] <= 1 and worst["written_end"] <= 1


def test_human_performances_survive_the_round_trip(tmp_path):
    check_round_trips(sorted((EXAMPLES / "match").glob("*.match")), tmp_path)


@pytest.mark.slow
def test_all_of_vienna_survives_the_round_trip(data_root, tmp_path):
    paths = sorted((data_root / "vienna4x22" / "match").glob("*.match"))
    assert len(paths) == 88
    check_round_trips(paths, tmp_path)


def test_notes_that_were_not_played_leave_the_others_in_place():
    aligned = read_match(EXAMPLES / "match" / "Schubert_D783_no15_p01.match")
    codec = ExpressionCodec()
    dropped = AlignedPerformance(aligned.score, aligned.performance, np.delete(aligned.pairs, slice(40, 60), axis=0))
    expression = codec.encode(dropped)
    assert expression.matched.sum() == len(dropped.pairs)
    assert np.isfinite(expression.values).all()
    again = codec.decode(dropped.score, expression.values, exact=True).notes[expression.matched]
    human = dropped.performance.notes[dropped.pairs[:, 1]]
    rows = ~is_grace(dropped.score.notes[expression.matched])
    errors = (again["onset_sec"] - human["onset_sec"])[rows]
    assert np.ptp(errors) < 1e-3


# Channels


def test_the_worked_example():
    score = make_score(
        [(0, 1, 60, 1), (0, 2, 64, 1), (1, 0.5, 62, 1), (1.5, 0.5, 65, 1), (2, 1, 59, 1), (2, 2, 67, 1), (3, 1, 60, 1)]
    )
    onset = [1.00, 1.02, 1.55, 1.80, 2.06, 2.10, 2.70]
    duration = [0.45, 1.10, 0.20, 0.30, 0.50, 1.00, 0.90]
    published = ExpressionCodec("2024").encode(whole(score, make_performance(onset, duration))).values
    np.testing.assert_allclose(published[:, BEAT_PERIOD], [0.54, 0.54, 0.50, 0.56, 0.62, 0.62, 0.90], atol=1e-5)
    np.testing.assert_allclose(published[:, TIMING], [0.01, -0.01, 0, 0, 0.02, -0.02, 0], atol=1e-6)
    articulation = [-0.2630, 0.0265, -0.3219, 0.0995, -0.3103, -0.3103, 0.0]
    np.testing.assert_allclose(published[:, ARTICULATION], articulation, atol=1e-4)
    values = ExpressionCodec().encode(whole(score, make_performance(onset, duration))).values
    np.testing.assert_allclose(2 ** values[:-1, BEAT_PERIOD], published[:-1, BEAT_PERIOD], rtol=1e-5)
    np.testing.assert_allclose(values[:, TIMING], published[:, TIMING], atol=1e-6)
    # The second note is written for 2 beats, which took 0.54 + 0.25 + 0.28 s.
    np.testing.assert_allclose(values[1, ARTICULATION], np.log2(1.10 / 1.07), atol=1e-5)


def test_one_outlier_does_not_bend_the_tempo():
    score = make_score([(beat, 1, 60 + beat, 1) for beat in range(12)])
    onset = [0.5 * beat for beat in range(12)]
    onset[4] = 4.9
    expression = ExpressionCodec().encode(whole(score, make_performance(onset, [0.4] * 12)))
    np.testing.assert_allclose(expression.values[:, BEAT_PERIOD], -1.0, atol=1e-5)
    assert expression.warnings


def test_a_performance_without_matches_is_an_error():
    score = make_score([(0, 1, 60, 1)])
    with pytest.raises(DataError, match="matched"):
        ExpressionCodec().encode(AlignedPerformance(score, make_performance([0], [1]), np.zeros((0, 2), np.int64)))


@pytest.mark.parametrize("onset", [[0.3], [0.3, 0.8]])
def test_the_shortest_scores(onset):
    score = make_score([(beat, 1, 60, 1) for beat in range(len(onset))])
    codec = ExpressionCodec()
    values = codec.encode(whole(score, make_performance(onset, [0.25] * len(onset)))).values
    again = codec.decode(score, values).notes
    np.testing.assert_allclose(again["onset_sec"], np.array(onset) - onset[0], atol=1e-6)
    np.testing.assert_allclose(again["duration_sec"], 0.25, atol=1e-6)


# Pedal


def pedal_times(pedal: list[tuple[float, int]], beats: int = 8) -> tuple[np.ndarray, list[tuple[float, int]]]:
    """Values and decoded events for a chord every second."""
    score = make_score([(beat, 1, 60 + beat % 5, 1) for beat in range(beats)])
    performance = make_performance([float(beat) for beat in range(beats)], [0.9] * beats, pedal)
    codec = ExpressionCodec()
    values = codec.encode(whole(score, performance)).values
    controls = codec.decode(score, values).controls
    assert (controls["number"] == 64).all()
    return values[:, PEDAL], [(round(t, 2), v) for t, v in zip(controls["time_sec"], controls["value"], strict=True)]


def test_changes_of_pedal_come_back():
    """Lifted after every second chord has begun, and pressed again: at every onset it is down."""
    pedal = [(0.0, 100)]
    for beat in (2.0, 4.0, 6.0):
        pedal += [(beat + 0.1, 0), (beat + 0.3, 100)]
    values, events = pedal_times([*pedal, (7.9, 0)])
    np.testing.assert_allclose(values[[0, 1, 3, 5]], 1.0)
    np.testing.assert_allclose(values[[2, 4, 6]], 0.6, atol=1e-6)
    lifts = [event for event in events if event[1] == 0]
    assert lifts == [(2.0, 0), (4.0, 0), (6.0, 0), (7.9, 0)]
    assert [event for event in events if event[1]] == [(0.0, 127), (2.2, 127), (4.2, 127), (6.2, 127)]


def test_pedal_that_is_pressed_late_or_lifted_early():
    _, events = pedal_times([(1.6, 100), (3.4, 0), (5.0, 100), (5.5, 0)])
    assert events == [(1.6, 127), (3.4, 0), (5.0, 127), (5.5, 0)]


def test_other_controllers_are_no_pedal():
    score = make_score([(0, 1, 60, 1), (1, 1, 60, 1)])
    performance = make_performance([0.0, 1.0], [0.9, 0.9], [(0.0, 127), (1.5, 0)])
    performance.controls["number"] = 67
    assert (ExpressionCodec().encode(whole(score, performance)).values[:, PEDAL] == 0).all()


def test_human_pedalling_is_kept():
    aligned = read_match(EXAMPLES / "match" / "Chopin_op10_no3_p01.match")
    codec = ExpressionCodec()
    again = codec.decode(aligned.score, codec.encode(aligned).values, exact=True)
    first = aligned.performance.notes["onset_sec"][aligned.pairs[:, 1]].min()
    clock = np.arange(0, again.end_sec, 0.01)

    def down(controls: np.ndarray, shift: float) -> np.ndarray:
        controls = controls[controls["number"] == 64]
        state = np.append(False, controls["value"] >= 64)
        return state[np.searchsorted(controls["time_sec"] - shift, clock, side="right")]

    human, ours = down(aligned.performance.controls, first), down(again.controls, 0.0)
    assert (human == ours).mean() > 0.9
    presses = [(np.diff(state.astype(int)) > 0).sum() for state in (human, ours)]
    assert 0.7 < presses[1] / presses[0] < 1.4


# What a model draws

notes_of_scores = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from([0.0, 0.25, 1.0, 4.0]), st.integers(60, 63), st.integers(1, 3)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(notes_of_scores, st.integers(0, 2**32 - 1), st.sampled_from([None, "2024"]))
def test_whatever_is_drawn_can_be_played(tmp_path_factory, rows, seed, compat):
    """Unisons, graces, wild values: every note survives, in the order of its voice, with a length."""
    score = make_score([(onset / 4, duration, pitch, voice) for onset, duration, pitch, voice in rows])
    values = np.random.default_rng(seed).normal([-1, 0.5, 0, 0, 0.5], [2, 1, 0.5, 4, 1], (len(rows), 5))
    performance = ExpressionCodec(compat).decode(score, values)
    notes, written = performance.notes, score.notes
    assert notes["onset_sec"].min() == 0
    assert (notes["duration_sec"] > 0).all() and (notes["duration_tick"] >= 1).all()
    assert np.array_equal(notes["pitch"], written["pitch"])
    for voice in range(1, 4):
        own = written["voice"] == voice
        steps = np.split(notes["onset_sec"][own], np.flatnonzero(np.diff(written["onset_div"][own])) + 1)
        for earlier, later in itertools.pairwise(steps):
            assert later.min() >= earlier.max()
    for pitch in range(60, 64):
        own = np.sort(notes[written["pitch"] == pitch], order="onset_tick")
        assert (own["onset_tick"][:-1] + own["duration_tick"][:-1] <= own["onset_tick"][1:]).all()
    assert len(read_back(performance, tmp_path_factory.mktemp("drawn") / "x.mid")) == len(rows)


def test_values_beyond_the_limits_are_limited_and_told():
    score = make_score([(beat, 1, 60, 1) for beat in range(4)])
    codec = ExpressionCodec()
    values = codec.deadpan(score)
    values[0, BEAT_PERIOD], values[1, TIMING], values[2, ARTICULATION], values[3, VELOCITY] = 10, -9, -20, 3
    performance = codec.decode(score, values)
    np.testing.assert_allclose(performance.notes["onset_sec"], [0, 8.125, 8.5, 9.0])
    np.testing.assert_allclose(performance.notes["duration_sec"][2], 0.5 / 16)
    assert performance.notes["velocity"][3] == 127
    assert performance.warnings == [
        f"{name} of 1 note(s) limited" for name in ("beat period", "timing", "articulation")
    ]


def test_grace_notes_are_heard_before_their_main_note():
    score = make_score([(0, 1, 60, 1), (1, 0, 71, 1), (1, 0, 72, 1), (1, 1, 74, 1), (1, 1, 50, 2)])
    codec = ExpressionCodec()
    notes = codec.decode(score, codec.deadpan(score)).notes
    pitch = score.notes["pitch"].tolist()
    graces = notes[[pitch.index(71), pitch.index(72)]]
    np.testing.assert_allclose(graces["onset_sec"], [0.34, 0.42])
    np.testing.assert_allclose(graces["duration_sec"], 0.08)
    np.testing.assert_allclose(notes["onset_sec"][pitch.index(74)], 0.5)


def test_voices_that_share_a_note_strike_it_once():
    score = make_score([(0, 1, 60, 1), (0, 4, 60, 2), (1, 1, 62, 1)])
    codec = ExpressionCodec()
    notes = codec.decode(score, codec.deadpan(score)).notes
    short, long = notes[score.notes["voice"] == 1][0], notes[score.notes["voice"] == 2][0]
    assert long["onset_tick"] - short["onset_tick"] == 1 and short["duration_tick"] == 1
    np.testing.assert_allclose(long["duration_sec"], 2.0)


def test_what_is_not_a_number_is_refused():
    score = make_score([(0, 1, 60, 1)])
    values = ExpressionCodec().deadpan(score)
    values[0, TIMING] = np.nan
    with pytest.raises(RenderError, match="finite"):
        ExpressionCodec().decode(score, values)


def test_an_unknown_compat_is_refused():
    with pytest.raises(UsageError, match="2024"):
        ExpressionCodec("2023")


def test_a_long_piece_takes_no_time():
    generator = np.random.default_rng(0)
    score = make_score([(beat / 4, 1.0, 40 + int(generator.integers(40)), beat % 4) for beat in range(10_000)])
    codec = ExpressionCodec()
    values = codec.deadpan(score) + generator.normal(0, 0.02, (10_000, 5))
    start = time.process_time()
    performance = codec.decode(score, values)
    codec.encode(whole(score, performance))
    assert time.process_time() - start < 1.0


# Tempo and loudness to start from


@pytest.mark.parametrize("compat", [None, "2024"])
def test_a_tempo_is_a_mean_and_rubato_stays(compat):
    score = read_score_notes(EXAMPLES / "musicxml" / "Mozart_K331_1st-mov.musicxml")
    codec = ExpressionCodec(compat)
    generator = np.random.default_rng(0)
    grid = Grid.of(score.notes)
    values = codec.deadpan(score)
    values[:, BEAT_PERIOD] *= generator.uniform(0.8, 1.2, len(grid.beats))[grid.group]
    changed = codec.with_tempo(score, values, 90)
    ratio = codec.beat_periods(changed) / codec.beat_periods(values)
    np.testing.assert_allclose(ratio, ratio[0])
    beat_period = codec.beat_periods(changed)[np.unique(grid.group, return_index=True)[1]]
    seconds = grid.times(beat_period)[-1] + (grid.written_sec(score.notes, grid.times(beat_period), beat_period)[-1])
    quarters = score.notes["onset_quarter"][-1] + score.notes["duration_quarter"][-1] - score.notes["onset_quarter"][0]
    np.testing.assert_allclose(60 * quarters / seconds, 90, rtol=1e-6)
    with pytest.raises(UsageError, match="bpm"):
        codec.with_tempo(score, values, 0)


def test_dynamics_are_a_mean_and_contrast_stays():
    codec = ExpressionCodec()
    values = np.zeros((5, len(CHANNELS)))
    values[:, VELOCITY] = np.array([40, 50, 60, 70, 80]) / 127
    np.testing.assert_allclose(127 * codec.with_dynamics(values, 80)[:, VELOCITY], [60, 70, 80, 90, 100])
    loud = 127 * codec.with_dynamics(values, "fff")[:, VELOCITY]
    assert loud.max() <= 127 and (np.diff(loud) > 0).all()
    np.testing.assert_allclose(loud.mean(), 126)
    for wrong in ("loud", 0, 128):
        with pytest.raises(UsageError, match="velocit"):
            codec.with_dynamics(values, wrong)


# Files


def test_scores_are_read_for_the_network():
    encoded = DExterCodec().encode(SCORES / "fur-elise.mxl")
    notes = len(encoded["score"].notes)
    assert encoded["features"].shape[0] == notes and encoded["written"].shape == (notes, 7)
    assert "source" not in encoded


@pytest.mark.parametrize("path", sorted(SCORES.glob("*.m*")), ids=lambda path: path.name)
def test_no_note_of_a_score_is_missing(path, tmp_path):
    score = read_score_notes(path)
    codec = ExpressionCodec()
    performance = codec.decode(score, codec.deadpan(score))
    pitches = np.sort(read_back(performance, tmp_path / "x.mid")["pitch"])
    assert np.array_equal(pitches, np.sort(score.notes["pitch"]))


def test_a_source_is_read_beside_its_score():
    match = EXAMPLES / "match" / "Schubert_D783_no15_p01.match"
    encoded = DExterCodec(source=str(match)).encode(EXAMPLES / "musicxml" / "Schubert_D783_no15.musicxml")
    source, notes = encoded["source"], len(encoded["score"].notes)
    assert source["values"].shape == (notes, 5) and source["midlevel"].shape == (notes, 7)
    assert 0.9 < source["matched"].mean() <= 1


def test_a_score_that_is_too_long_is_refused():
    codec = DExterCodec()
    codec.max_duration_sec = 10
    with pytest.raises(ScoreError, match="max_duration_sec"):
        codec.encode(SCORES / "fur-elise.mxl")


def test_performances_of_one_score_are_known_to_be_so():
    codec = DExterCodec("published", compat="2024")
    one, other, foreign = (
        codec.encode_performance(read_match(EXAMPLES / "match" / f"{name}.match"))
        for name in ("Schubert_D783_no15_p01", "Schubert_D783_no15_p02", "Chopin_op10_no3_p01")
    )
    assert np.array_equal(one["score_hash"], other["score_hash"])
    assert not np.array_equal(one["score_hash"], foreign["score_hash"])
    assert one["score"].shape == (len(one["matched"]), 4)
    assert all(np.isfinite(array).all() for array in one.values())


def test_what_is_learned_can_be_played():
    aligned = read_match(EXAMPLES / "match" / "Chopin_op10_no3_p01.match")
    codec = DExterCodec()
    arrays = codec.encode_performance(aligned)
    assert codec.expression.limited(aligned.score, arrays["values"])[1] == []


def test_what_was_heard_takes_the_place_of_what_is_computed(tmp_path):
    aligned = read_match(EXAMPLES / "match" / "Schubert_D783_no15_p01.match")
    heard = tmp_path / "cep.csv"
    heard.write_text("frame_start_time,a,b,c,d,e,f,g\n0,1,2,3,4,5,6,7\n10,2,3,4,5,6,7,8\n")
    midlevel = DExterCodec().encode_performance(aligned, heard)["midlevel"]
    assert midlevel[0].tolist() == [1, 2, 3, 4, 5, 6, 7] and midlevel[-1].tolist() == [2, 3, 4, 5, 6, 7, 8]
