"""Which note of a performance plays which note of a score: files, ids, skipped passages, automatic alignment."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midisynth.errors import AlignmentError, DataError
from midisynth.music.alignment import AlignedPerformance, ScoreIds, align, unique_pairs, without_skipped_bars
from midisynth.music.alignment_files import read_alignment_table, read_match, read_parangonada
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.notes import NOTE_DTYPE, Performance
from midisynth.music.score import read_score_notes
from midisynth.music.score_notes import SCORE_NOTE_DTYPE, Score, deadpan

DATA = Path(__file__).parent / "data"
EXAMPLES = Path(__file__).parents[2] / "examples"
VIENNA = EXAMPLES / "vienna4x22"


def read(piece: str, player: str = "p01") -> AlignedPerformance:
    score = read_score_notes(VIENNA / "musicxml" / f"{piece}.musicxml")
    return read_match(VIENNA / "match" / f"{piece}_{player}.match", score)


@pytest.fixture(scope="module")
def mozart() -> AlignedPerformance:
    return read("Mozart_K331_1st-mov")


@pytest.fixture(scope="module")
def schubert() -> AlignedPerformance:
    return read("Schubert_D783_no15")


def names(aligned: AlignedPerformance) -> set[tuple]:
    """Matches in a form that does not depend on rows."""
    rows, notes = aligned.score.notes[aligned.pairs[:, 0]], aligned.performance.notes[aligned.pairs[:, 1]]
    return set(zip(rows["id"].tolist(), notes["onset_tick"].tolist(), notes["pitch"].tolist(), strict=True))


# Match files


def test_a_match_file_is_the_midi_file_of_the_performance(mozart: AlignedPerformance):
    midi = read_midi(EXAMPLES / "mozart_k331.mid")
    for column in ("onset_tick", "duration_tick", "pitch", "velocity", "onset_sec"):
        assert mozart.performance.notes[column].tolist() == midi.notes[column].tolist(), column
    assert mozart.performance.controls[["tick", "number", "value"]].tolist() == sorted(
        midi.controls[["tick", "number", "value"]].tolist(), key=lambda control: control[0]
    )
    assert set(mozart.performance.controls["number"].tolist()) == {64, 67}


def test_matches(mozart: AlignedPerformance, schubert: AlignedPerformance):
    assert [len(a.pairs) for a in (mozart, schubert)] == [478, 313]
    for aligned in (mozart, schubert):
        rows, notes = aligned.score.notes[aligned.pairs[:, 0]], aligned.performance.notes[aligned.pairs[:, 1]]
        assert (rows["pitch"] == notes["pitch"]).mean() > 0.99
        assert (np.diff(aligned.pairs[:, 0]) > 0).all() and len(set(aligned.pairs[:, 1])) == len(aligned.pairs)
        assert np.corrcoef(rows["onset_beat"], notes["onset_sec"])[0, 1] > 0.99
    # 15 notes of the score were left out, 3 were added.
    assert schubert.match_ratio == 313 / (313 + 15 + 3)


@pytest.mark.parametrize("piece", ["Chopin_op10_no3", "Mozart_K331_1st-mov", "Schubert_D783_no15"])
def test_a_match_file_alone_has_the_same_score(piece: str):
    """The page has more marks."""
    own = read_match(VIENNA / "match" / f"{piece}_p01.match")
    aligned = read(piece)
    assert names(own) == names(aligned)
    page = {row["id"]: row for row in aligned.score.notes}
    for row in own.score.notes:
        for column in ("onset_beat", "bar", "bar_beat", "pitch", "grace"):
            assert row[column] == pytest.approx(page[row["id"]][column]), (row["id"], column)


def test_the_key_of_a_match_file():
    notes = read_match(VIENNA / "match" / "Mozart_K331_1st-mov_p01.match").score.notes
    assert (notes["fifths"] == 3).all() and not notes["minor"].any()


def test_an_old_match_file():
    aligned = read_match(DATA / "match" / "mozart_k265_var1.match")
    assert len(aligned.score.notes) > 200 and aligned.match_ratio > 0.9
    notes = aligned.performance.notes
    assert (notes["duration_sec"] > 0).all() and set(notes["velocity"].tolist()) <= set(range(1, 128))
    rows = aligned.score.notes[aligned.pairs[:, 0]]
    assert (rows["pitch"] == notes["pitch"][aligned.pairs[:, 1]]).mean() > 0.99


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "it is empty"),
        (b"nonsense", "it matches no notes|partitura cannot read it"),
        (b"\xff\xfe\x00", "partitura cannot read it"),
        (b"info(matchFileVersion,1.0.0).\ninfo(midiClockUnits,480).\n", "it matches no notes|partitura cannot read it"),
    ],
)
def test_damaged_match_files(content, cause, tmp_path, capsys):
    path = tmp_path / "x.match"
    path.write_bytes(content)
    with pytest.raises(AlignmentError, match=cause) as caught:
        read_match(path)
    assert "\n" not in str(caught.value) and capsys.readouterr().out == ""


def test_a_missing_match_file(tmp_path):
    with pytest.raises(AlignmentError, match="No such file"):
        read_match(tmp_path / "x.match")


def test_a_match_file_of_another_score(mozart: AlignedPerformance):
    score = replace(mozart.score, notes=mozart.score.notes.copy())
    score.notes["id"] = [f"m{number}" for number in range(len(score.notes))]
    with pytest.raises(AlignmentError, match="478 of the 478 notes that it matches are not in the score"):
        read_match(VIENNA / "match" / "Mozart_K331_1st-mov_p01.match", score)


# Tables


def write_table(path: Path, aligned: AlignedPerformance, seconds: str = "{!r}") -> None:
    """As (n)ASAP has it: ids of played notes count something else than rows."""
    lines = ["xml_id\tmidi_id\ttrack\tchannel\tpitch\tonset"]
    played = set(aligned.pairs[:, 1].tolist())
    for row, note in aligned.pairs.tolist():
        lines.append(line(aligned.score.notes["id"][row], aligned.performance.notes[note], seconds))
    matched = set(aligned.pairs[:, 0].tolist())
    lines += [f"{row['id']}\tdeletion" for number, row in enumerate(aligned.score.notes) if number not in matched]
    insertions = [note for number, note in enumerate(aligned.performance.notes) if number not in played]
    lines += [line("insertion", note, seconds) for note in insertions]
    path.write_text("\n".join(lines) + "\n")


def line(name: str, note: np.void, seconds: str) -> str:
    return f"{name}\tn9999\t1\t0\t{note['pitch']}\t{seconds.format(float(note['onset_sec']))}"


def write_parangonada(folder: Path, aligned: AlignedPerformance, with_notes: bool) -> None:
    notes = aligned.performance.notes
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "m" if with_notes else "n"
    with open(folder / "align.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["idx", "matchtype", "partid", "ppartid"])
        for index, (row, note) in enumerate(aligned.pairs.tolist()):
            table.writerow([index, 0, aligned.score.notes["id"][row], f"{prefix}{note}"])
        table.writerow([-1, 1, "n1", "undefined"])
        table.writerow([-1, 2, "undefined", f"{prefix}0"])
    if with_notes:
        with open(folder / "ppart.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["onset_sec", "duration_sec", "pitch", "velocity", "track", "channel", "id"])
            for number, note in reversed(list(enumerate(notes))):
                onset = np.float32(note["onset_sec"])
                table.writerow([onset, note["duration_sec"], note["pitch"], note["velocity"], 0, 0, f"m{number}"])


@given(data=st.data(), seconds=st.sampled_from(["{!r}", "{:.4f}"]))
@settings(max_examples=15, deadline=None)
def test_tables_give_the_matches_that_were_written(mozart, tmp_path_factory, data, seconds):
    chosen = data.draw(st.lists(st.integers(0, len(mozart.pairs) - 1), min_size=1, unique=True))
    aligned = replace(mozart, pairs=mozart.pairs[sorted(chosen)])
    folder = tmp_path_factory.mktemp("tables")
    write_table(folder / "note_alignment.tsv", aligned, seconds)
    again = read_alignment_table(folder / "note_alignment.tsv", aligned.score, aligned.performance)
    assert again.pairs.tolist() == aligned.pairs.tolist()
    for with_notes in (True, False):
        write_parangonada(folder, aligned, with_notes)
        for path in (folder, folder / "align.csv"):
            again = read_parangonada(path, aligned.score, aligned.performance)
            assert again.pairs.tolist() == aligned.pairs.tolist()
        (folder / "ppart.csv").unlink(missing_ok=True)


def test_notes_of_one_pitch_and_moment_are_taken_in_turn(tmp_path):
    notes = np.zeros(3, NOTE_DTYPE)
    notes["pitch"], notes["duration_tick"], notes["channel"] = 60, 480, [0, 1, 2]
    rows = np.zeros(3, SCORE_NOTE_DTYPE)
    rows["id"] = ["n0", "n1", "n2"]
    aligned = AlignedPerformance(Score(rows), Performance(notes=notes), np.array([[0, 0], [1, 1], [2, 2]]))
    write_table(tmp_path / "x.tsv", aligned)
    assert read_alignment_table(tmp_path / "x.tsv", aligned.score, aligned.performance).pairs.tolist() == [
        [0, 0], [1, 1], [2, 2]
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content, cause",
    [
        ("", "it has no rows"),
        ("xml_id\tmidi_id\tpitch\nn1\tn1\t60\n", "it has no column 'onset'"),
        ("xml_id\tmidi_id\tpitch\tonset\nn1\tn1\t60\tsoon\n", "a time or pitch is not a number"),
        ("xml_id\tmidi_id\tpitch\tonset\nn1-1\tn1\t60\t9999\n", "1 of its 1 played notes are not in the MIDI file"),
        ("xml_id\tmidi_id\tpitch\tonset\nn1-1\tdeletion\n", "0 of the 0 notes"),
    ],
)
def test_damaged_tables(content, cause, tmp_path, schubert):
    path = tmp_path / "x.tsv"
    path.write_text(content)
    with pytest.raises(AlignmentError, match=cause):
        read_alignment_table(path, schubert.score, schubert.performance)
    path.write_bytes(b"\xff\xff\x00")
    with pytest.raises(AlignmentError, match="not a table"):
        read_alignment_table(path, schubert.score, schubert.performance)
    with pytest.raises(AlignmentError, match="No such file"):
        read_parangonada(tmp_path, schubert.score, schubert.performance)


def test_a_table_of_another_performance(tmp_path, mozart, schubert):
    write_table(tmp_path / "x.tsv", mozart)
    with pytest.raises(AlignmentError, match=r"of its 478 played notes are not in the MIDI file"):
        read_alignment_table(tmp_path / "x.tsv", schubert.score, schubert.performance)


# Ids


def with_ids(*ids: str) -> ScoreIds:
    rows = np.zeros(len(ids), SCORE_NOTE_DTYPE)
    rows["id"] = ids
    return ScoreIds(Score(rows))


@pytest.mark.parametrize(
    "of_score, of_alignment, row",
    [
        (["n1", "n2"], "n2", 1),
        (["n1", "n2"], "n2-1", 1),
        (["n1", "n2"], "n2-2", None),
        (["n1-1", "n1-2"], "n1", 0),
        (["n1-1", "n1-2"], "n1-2", 1),
        (["n1", "n2"], "P01_n2-1", 1),
        (["P00_n1", "P01_n2"], "n2", 1),
        (["P00_n1", "P01_n1"], "P01_n1-1", 1),
        (["P00_n1", "P01_n1"], "n1", None),
        (["n1"], "n3", None),
    ],
)
def test_ids_of_other_programs(of_score, of_alignment, row):
    assert with_ids(*of_score).row(of_alignment) == row


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_pairs_are_unique(pairs):
    unique = unique_pairs(pairs)
    assert unique.shape == (len(unique), 2)
    assert len(set(unique[:, 0])) == len(set(unique[:, 1])) == len(unique)
    first = {}
    for row, note in pairs:
        first.setdefault(row, note)
    assert all(tuple(pair) in pairs for pair in unique.tolist())
    assert not pairs or tuple(pairs[0]) in {tuple(pair) for pair in unique.tolist()}


# Skipped passages


def played(score: Score, bars: set[int], seconds_per_quarter: float = 0.5) -> AlignedPerformance:
    """The bars in one go, as if the others were not written."""
    rows = np.flatnonzero(np.isin(score.notes["bar"], sorted(bars)))
    lengths = {bar: 4.0 * (bar in bars) for bar in range(int(score.notes["bar"].max()) + 1)}
    starts = np.cumsum([0.0, *lengths.values()])
    notes = np.zeros(len(rows), NOTE_DTYPE)
    written = score.notes[rows]
    notes["onset_sec"] = (starts[written["bar"]] + written["bar_beat"]) * seconds_per_quarter
    notes["pitch"] = written["pitch"]
    return AlignedPerformance(score, Performance(notes=notes), np.stack([rows, np.arange(len(rows))], axis=1))


@pytest.fixture
def twelve_bars() -> Score:
    rows = np.zeros(48, SCORE_NOTE_DTYPE)
    rows["id"] = [f"n{number}" for number in range(48)]
    rows["onset_div"], rows["duration_div"], rows["pitch"] = np.arange(48) * 2, 2, 60
    rows["bar"], rows["bar_beat"], rows["bar_beats"] = np.arange(48) // 4, np.arange(48) % 4, 4
    for unit in ("beat", "quarter"):
        rows[f"onset_{unit}"], rows[f"duration_{unit}"] = np.arange(48), 1
    return Score(rows, 2)


def test_a_skipped_passage_is_taken_out(twelve_bars: Score):
    aligned = without_skipped_bars(played(twelve_bars, {0, 1, 2, 7, 8, 9, 10, 11}))
    rows = aligned.score.notes
    assert rows["id"].tolist() == [f"n{number}" for number in (*range(12), *range(28, 48))]
    assert rows["onset_beat"].tolist() == rows["onset_quarter"].tolist() == list(range(32))
    assert rows["onset_div"].tolist() == list(range(0, 64, 2))
    assert rows["bar"].tolist() == [number // 4 for number in range(32)]
    assert aligned.pairs.tolist() == [[number, number] for number in range(32)]


def test_what_was_not_skipped_stays(twelve_bars: Score):
    whole = played(twelve_bars, set(range(12)))
    assert without_skipped_bars(whole) is whole
    # Two bars whose notes were not recognised: time goes on meanwhile.
    unheard = replace(whole, pairs=whole.pairs[(whole.pairs[:, 0] < 16) | (whole.pairs[:, 0] >= 28)])
    assert without_skipped_bars(unheard) is unheard
    empty = replace(whole, pairs=whole.pairs[:0])
    assert without_skipped_bars(empty) is empty


def test_two_passages_are_skipped(twelve_bars: Score):
    rows = without_skipped_bars(played(twelve_bars, {0, 1, 4, 5, 6, 10, 11})).score.notes
    assert rows["bar"].tolist() == [number // 4 for number in range(28)]
    assert rows["onset_beat"].tolist() == list(range(28))


# Automatic alignment


@pytest.mark.parametrize("piece, least", [("Mozart_K331_1st-mov", 0.99), ("Schubert_D783_no15", 0.98)])
def test_automatic_alignment_finds_what_the_match_file_says(piece: str, least: float):
    pytest.importorskip("parangonar", reason="parangonar, which aligns, is not installed")
    truth = read(piece)
    found, true = names(align(truth.score, truth.performance)), names(truth)
    f_measure = 2 * len(found & true) / (len(found) + len(true))
    print(f"{piece}: F = {f_measure:.4f}")
    assert f_measure >= least


def test_a_deadpan_performance_is_aligned_with_itself():
    pytest.importorskip("parangonar", reason="parangonar, which aligns, is not installed")
    score = read_score_notes(EXAMPLES / "bach_minuet.musicxml")
    aligned = align(score, deadpan(score))
    assert (aligned.pairs[:, 0] == aligned.pairs[:, 1]).mean() > 0.99 and len(aligned.pairs) == len(score.notes)


def test_without_parangonar(monkeypatch, schubert: AlignedPerformance):
    monkeypatch.setitem(sys.modules, "parangonar", None)
    with pytest.raises(DataError, match=r"aligning needs parangonar: pip install \"midisynth-lightning\[align\]\""):
        align(schubert.score, schubert.performance)


def test_performances_can_be_written(tmp_path, schubert: AlignedPerformance):
    write_midi(schubert.performance, tmp_path / "x.mid")
    again = read_midi(tmp_path / "x.mid")
    assert again.notes["onset_tick"].tolist() == schubert.performance.notes["onset_tick"].tolist()
