"""Corpora of performances with scores: layouts in miniature, real files where they are at hand, names of pieces."""

from __future__ import annotations

import csv
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from midisynth.datasets.aligned import AlignedRecord
from midisynth.datasets.asap import Asap
from midisynth.datasets.atepp import Atepp
from midisynth.datasets.pieces import piece_name
from midisynth.datasets.vienna4x22 import Vienna4x22
from midisynth.errors import AlignmentError, DataError
from midisynth.music.alignment import AlignedPerformance
from midisynth.music.alignment_files import read_match
from midisynth.music.midi import write_midi
from midisynth.music.score import read_score_notes

EXAMPLES = Path(__file__).parents[2] / "examples"
VIENNA = EXAMPLES / "vienna4x22"
MATCH = VIENNA / "match" / "Schubert_D783_no15_p01.match"
SCORE = VIENNA / "musicxml" / "Schubert_D783_no15.musicxml"


@pytest.mark.parametrize(
    "composer, title, name",
    [
        # The same composition in vienna4x22, asap and atepp.
        ("Chopin", "op10_no3", "chopin op 10 no 3"),
        ("Chopin", "Etudes_op_10_3", "chopin op 10 no 3"),
        ("Frédéric Chopin", '12 Études, Op.10: No. 3 in E Major "Tristesse"', "chopin op 10 no 3"),
        ("Chopin", "op38", "chopin op 38"),
        ("Chopin", "Ballades_2", "chopin op 38"),
        ("Frédéric Chopin", "Ballade No.2 in F, Op.38", "chopin op 38"),
        ("Mozart", "K331_1st-mov", "mozart k 331"),
        ("Mozart", "Piano_Sonatas_11-3", "mozart k 331"),
        ("Wolfgang Amadeus Mozart", "Piano Sonata No.11 in A, K.331 -Alla Turca: 3. Alla Turca", "mozart k 331"),
        ("Schubert", "D783_no15", "schubert d 783 no 15"),
        ("Schubert", "Impromptu_op.90_D.899_3", "schubert d 899 no 3"),
        ("Franz Schubert", "4 Impromptus, Op.90, D.899: No.3 in G Flat: Andante", "schubert d 899 no 3"),
        ("Schubert", "Moment_musical_no_3", "schubert d 780 no 3"),
        ("Franz Schubert", "6 Moments musicaux, Op.94 D.780: No. 3 in F minor", "schubert d 780 no 3"),
        ("Bach", "Fugue_bwv_846", "bach bwv 846"),
        ("Bach", "Prelude_bwv_846", "bach bwv 846"),
        ("Johann Sebastian Bach", "Prelude and Fugue in C (WTC, Book I, No.1), BWV 846", "bach bwv 846"),
        ("Beethoven", "Piano_Sonatas_17-2", "beethoven op 31 no 2"),
        ("Ludwig van Beethoven", "Piano Sonata No.17 in D minor, Op.31 No.2: 3. Allegretto", "beethoven op 31 no 2"),
        ("Beethoven", "Piano_Sonatas_21-2", "beethoven op 53"),
        ("Ludwig van Beethoven", 'Piano Sonata No.21 in C, Op.53 -"Waldstein": 2. Introduzione', "beethoven op 53"),
        ("Haydn", "Keyboard_Sonatas_31-1", "haydn hob 31"),
        ("Joseph Haydn", "Piano Sonata in E Major, Hob. XVI:31: 1. Moderato", "haydn hob 31"),
        ("Schumann", "Kreisleriana_4", "schumann op 16 no 4"),
        ("Robert Schumann", "Kreisleriana, Op.16: 4. Sehr langsam", "schumann op 16 no 4"),
        ("Alexander Scriabin", "Piano Sonata No.1 in F minor, Op.6: 2. (Adagio)", "scriabin op 6"),
        ("Rachmaninoff", "Preludes_op_23_4", "rachmaninoff op 23 no 4"),
        ("Prokofiev", "Toccata", "prokofiev toccata"),
        ("", "", "unknown"),
    ],
)
def test_a_composition_has_one_name(composer: str, title: str, name: str):
    assert piece_name(composer, title) == name


# Vienna 4x22


@pytest.fixture(scope="module")
def vienna(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some of the files in the examples."""
    root = tmp_path_factory.mktemp("vienna4x22")
    players = {"Chopin_op10_no3": ["p01"], "Mozart_K331_1st-mov": ["p01"], "Schubert_D783_no15": ["p01", "p02"]}
    for piece, names in players.items():
        for file in (f"musicxml/{piece}.musicxml", *(f"match/{piece}_{name}.match" for name in names)):
            (root / file).parent.mkdir(exist_ok=True)
            shutil.copy(VIENNA / file, root / file)
    return str(root)


def test_vienna(vienna: str):
    records = Vienna4x22(vienna).records()
    assert [(r.id, r.piece, r.split) for r in records] == [
        ("Chopin_op10_no3_p01", "chopin op 10 no 3", "test"),
        ("Mozart_K331_1st-mov_p01", "mozart k 331", "validation"),
        ("Schubert_D783_no15_p01", "schubert d 783 no 15", "train"),
        ("Schubert_D783_no15_p02", "schubert d 783 no 15", "train"),
    ]
    record = records[2]
    assert record.midi is None and [path.name for path in record.files] == [SCORE.name, MATCH.name]
    aligned = record.aligned()
    assert len(aligned.pairs) == 313 and (aligned.score.notes["loudness"] > 0).any(), "marks come from the page"
    assert len(record.performance().notes) == len(aligned.performance.notes)
    assert (aligned.performance.controls["number"] == 64).any()


@pytest.mark.parametrize(
    "options, splits",
    [
        ({"test_pieces": ["Schubert D783 no. 15"]}, ["train", "validation", "test", "test"]),
        ({"validation_pieces": []}, ["test", "train", "train", "train"]),
        (
            {"test_pieces": ["chopin op 10 no 3"], "validation_pieces": ["mozart K331"]},
            ["test", "validation", "train", "train"],
        ),
        ({"composers": ["W. A. Mozart", "Chopin"]}, ["test", "validation"]),
    ],
)
def test_pieces_can_be_chosen(vienna: str, options, splits):
    assert [record.split for record in Vienna4x22(vienna, **options).records()] == splits


def test_an_unknown_piece_is_named(vienna: str, caplog):
    with caplog.at_level(logging.WARNING):
        Vienna4x22(vienna, test_pieces=["schubert d 783"]).records()
    assert "vienna4x22 has no piece 'schubert d 783'; the nearest is 'schubert d 783 no 15'" in caplog.text


def test_vienna_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"vienna4x22: no match/\*_p01\.match"):
        Vienna4x22(str(tmp_path)).records()
    (tmp_path / "match").mkdir()
    shutil.copy(MATCH, tmp_path / "match")
    with pytest.raises(DataError, match=r"Schubert_D783_no15\.musicxml is missing, the score of"):
        Vienna4x22(str(tmp_path)).records()


@pytest.mark.slow
def test_all_performances_of_vienna(data_root: Path):
    records = Vienna4x22(str(data_root / "vienna4x22")).records()
    assert Counter(record.piece for record in records) == dict.fromkeys(
        ["chopin op 10 no 3", "chopin op 38", "mozart k 331", "schubert d 783 no 15"], 22
    )
    ratios = []
    for record in records:
        aligned = record.aligned()
        midi, notes = AlignedRecord.performance(record).notes, aligned.performance.notes
        for column in ("onset_tick", "duration_tick", "pitch", "velocity"):
            assert sorted(midi[column].tolist()) == sorted(notes[column].tolist()), (record.id, column)
        rows, played = aligned.score.notes[aligned.pairs[:, 0]], notes[aligned.pairs[:, 1]]
        assert (rows["pitch"] == played["pitch"]).mean() > 0.98, record.id
        ratios.append(aligned.match_ratio)
    print(f"match ratio: {np.mean(ratios):.3f}, at least {np.min(ratios):.3f}")
    assert np.min(ratios) > 0.85


# Miniatures in the layouts of the others, made of a performance of Vienna 4x22


@pytest.fixture(scope="module")
def aligned() -> AlignedPerformance:
    return read_match(MATCH, read_score_notes(SCORE))


def write_rows(path: Path, rows: Sequence[Sequence], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


@pytest.fixture
def asap(tmp_path: Path, aligned: AlignedPerformance) -> Path:
    folder = tmp_path / "asap" / "Schubert" / "German_Dances" / "15"
    folder.mkdir(parents=True)
    shutil.copy(SCORE, folder / "xml_score.musicxml")
    header = [
        "composer",
        "title",
        "folder",
        "xml_score",
        "midi_performance",
        "robust_note_alignment",
        "note_alignments",
        "match_file",
    ]
    rows, where = [header], "Schubert/German_Dances/15"
    for name, robust in (("Table01", "1.0"), ("Match02", "0.0"), ("Neither03", "")):
        write_midi(aligned.performance, folder / f"{name}.mid")
        rows.append(
            ["Schubert", "German_Dances_D783_15", where, f"{where}/xml_score.musicxml", f"{where}/{name}.mid", robust,
             f"{where}/{name}_note_alignments/note_alignment.tsv", f"{where}/{name}.match"]
        )  # fmt: skip
    write_rows(tmp_path / "asap" / "metadata.csv", rows)
    notes = aligned.performance.notes
    table = [["xml_id", "midi_id", "track", "channel", "pitch", "onset"]]
    table += [
        [aligned.score.notes["id"][row], f"n{note}", 1, 0, notes["pitch"][note], repr(float(notes["onset_sec"][note]))]
        for row, note in aligned.pairs.tolist()
    ]
    write_rows(folder / "Table01_note_alignments" / "note_alignment.tsv", table, "\t")
    shutil.copy(MATCH, folder / "Match02.match")
    return tmp_path / "asap"


def test_asap(asap: Path, aligned: AlignedPerformance):
    records = Asap(str(asap)).records()
    assert [r.id for r in records] == [f"Schubert_German_Dances_15_{name}" for name in ("Match02", "Table01")]
    assert {(r.piece, r.split) for r in records} == {("schubert d 783 no 15", "train")}
    assert all(record.aligned().pairs.tolist() == aligned.pairs.tolist() for record in records)
    assert [path.suffix for path in records[1].files] == [".mid", ".musicxml", ".tsv"]
    assert [r.id[-7:] for r in Asap(str(asap), robust_only=True).records()] == ["Table01"]
    assert Asap(str(asap), composers=["Bach"]).records() == []


def test_asap_is_not_as_it_should_be(asap: Path):
    (asap / "Schubert/German_Dances/15/Table01.mid").unlink()
    with pytest.raises(DataError, match=r"Table01\.mid is missing \(1 files of metadata\.csv are\)"):
        Asap(str(asap)).records()
    write_rows(asap / "metadata.csv", [["composer", "title"], ["Bach", "x"]])
    with pytest.raises(DataError, match="has no column 'xml_score'"):
        Asap(str(asap)).records()
    (asap / "metadata.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is damaged"):
        Asap(str(asap)).records()
    (asap / "metadata.csv").unlink()
    with pytest.raises(DataError, match=r"metadata\.csv: cannot be read \(No such file"):
        Asap(str(asap)).records()


def test_the_true_asap(data_root: Path):
    """Defects that were kept: no alignment, a match file alone, an empty match file, one piece in two folders."""
    records = {record.id: record for record in Asap(str(data_root / "asap")).records()}
    assert len(records) == 104 and not any("KaszoS10" in name for name in records)
    impromptu = records["Schubert_Impromptu_op.90_D.899_3_Sham06"]
    assert impromptu.alignment.suffix == ".match" and impromptu.aligned().match_ratio > 0.85
    debussy = records["Debussy_Pour_le_Piano_1_MunA12M"]
    assert debussy.alignment.suffix == ".tsv" and debussy.aligned().match_ratio > 0.75
    with pytest.raises(AlignmentError, match=r"no notes|cannot read it"):
        read_match(debussy.midi.with_suffix(".match"))
    once, repeated = (
        records[f"Beethoven_Piano_Sonatas_{name}"] for name in ("18-3_no_repeat_KOLESO06", "18-3_ChenGuang05")
    )
    assert once.piece == repeated.piece == "beethoven op 31 no 3" and once.split == repeated.split
    assert len(Asap(str(data_root / "asap"), robust_only=True).records()) == 85


@pytest.fixture
def atepp(tmp_path: Path, aligned: AlignedPerformance) -> Path:
    root, where = tmp_path / "ATEPP-1.1", "Franz_Schubert/16_German_Dances,_Op.33_D.783/No._15"
    rows = [["artist", "artist_id", "track", "composer", "score_path", "midi_path"]]
    folder = root / where
    folder.mkdir(parents=True)
    shutil.copy(SCORE, folder / "score.musicxml")
    notes = aligned.performance.notes
    for number, wrong, with_notes in ((1, 0, True), (2, 0, False), (3, 400, True)):
        write_midi(aligned.performance, folder / f"{number:05d}.mid")
        table = [["idx", "matchtype", "partid", "ppartid"]]
        table += [[0, 0, f"P01_{aligned.score.notes['id'][row]}", f"n{note}"] for row, note in aligned.pairs.tolist()]
        table += [[0, 2, "undefined", "n0"]] * wrong
        write_rows(folder / f"{number:05d}" / "align.csv", table)
        write_rows(folder / f"{number:05d}" / "zalign.csv", [["nothing of use"]])
        if with_notes:
            played = [["onset_sec", "duration_sec", "pitch", "velocity", "track", "channel", "id"]]
            played += [[float(n["onset_sec"]), 0, n["pitch"], 0, 0, 0, f"n{i}"] for i, n in enumerate(notes)]
            write_rows(folder / f"{number:05d}" / "ppart.csv", played)
    for number in (1, 2, 3, 4):
        title = "16 German Dances, Op.33 D.783: No. 15 (Ländler)"
        rows.append(["András Schiff", 4, title, "Franz Schubert", "", f"{where}/{number:05d}.mid"])
    write_rows(root / "ATEPP-metadata-1.1.csv", rows)
    return root


def test_atepp(atepp: Path, aligned: AlignedPerformance):
    records = Atepp(str(atepp)).records()
    assert [(r.id, r.piece) for r in records] == [(name, "schubert d 783 no 15") for name in ("00001", "00002")]
    assert [record.metadata["performer"] for record in records] == ["András Schiff"] * 2
    for record in records:
        assert record.aligned().pairs.tolist() == aligned.pairs.tolist()
    assert [r.id for r in Atepp(str(atepp), min_match_ratio=0.4).records()] == ["00001", "00002", "00003"]


def test_atepp_with_recordings(atepp: Path, tmp_path: Path):
    """Performance 1 has its recording where its MIDI is, 2 and 4 in one folder, 3 has none, and 4 has no MIDI."""
    (midi,) = atepp.rglob("00001.mid")
    nested = tmp_path / "audio" / midi.relative_to(atepp).with_suffix(".wav")
    nested.parent.mkdir(parents=True)
    for path in (nested, tmp_path / "audio" / "00002.flac", tmp_path / "audio" / "00004.flac"):
        path.touch()
    corpus = Atepp(str(atepp), audio=str(tmp_path / "audio"))
    assert corpus.content == {"midi", "audio"} and Atepp(str(atepp)).content == {"midi", "score", "alignment"}
    records = corpus.records()
    assert [(r.id, r.midi.name, r.audio.name) for r in records] == [
        ("00001", "00001.mid", "00001.wav"),
        ("00002", "00002.mid", "00002.flac"),
    ]
    assert len({record.split for record in records}) == 1, "two performances of a piece"
    with open(atepp / "ATEPP-metadata-1.1.csv", encoding="utf-8", newline="") as file:
        heading, *rows = csv.reader(file)
    splits = ("validation", "test", "train", "train")
    table = [[*heading, "split"], *([*row, split] for row, split in zip(rows, splits, strict=True))]
    write_rows(atepp / "clean.csv", table)
    chosen = Atepp(str(atepp), audio=str(tmp_path / "audio"), table="clean.csv")
    assert [record.split for record in chosen.records()] == ["validation", "test"]
    write_rows(atepp / "clean.csv", [[*row[:-1], "dev"] if row[-1] == "test" else row for row in table])
    with pytest.raises(DataError, match="split 'dev' is none of train, validation, test"):
        chosen.records()
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none of 4 performances has its MIDI in .* such as 00001\.flac"):
        Atepp(str(atepp), audio=str(tmp_path / "none")).records()
    with pytest.raises(DataError, match=r"atepp\.audio: no such folder"):
        Atepp(str(atepp), audio=str(tmp_path / "absent"))


def test_atepp_is_not_as_it_should_be(atepp: Path):
    with pytest.raises(DataError, match=r"of 4 performances .* 3 have MIDI, score and .* none a match ratio of 1.1"):
        Atepp(str(atepp), min_match_ratio=1.1).records()
    write_rows(atepp / "ATEPP-metadata-1.1.csv", [["artist"], ["x"]])
    with pytest.raises(DataError, match="has no column 'composer'"):
        Atepp(str(atepp)).records()
    (atepp / "ATEPP-metadata-1.1.csv").unlink()
    with pytest.raises(DataError, match=r"no ATEPP\*\.csv"):
        Atepp(str(atepp)).records()


def test_tables_of_the_true_atepp(data_root: Path):
    """Titles with commas, quotes and accents; every row names a piece."""
    table = data_root / "atepp" / "ATEPP-metadata-1.1.csv"
    with open(table, encoding="utf-8", newline="") as file:
        names = Counter(piece_name(row["composer"], row["track"]) for row in csv.DictReader(file))
    assert names.total() == 400 and len(names) > 50
    assert all(name.isascii() and len(name.split()) > 1 for name in names)


def test_a_record_without_alignment_or_score(tmp_path: Path, aligned: AlignedPerformance):
    write_midi(aligned.performance, tmp_path / "x.mid")
    with pytest.raises(DataError, match="x/y has no alignment"):
        AlignedRecord("x", "y", "z", "train", midi=tmp_path / "x.mid").aligned()
    (tmp_path / "x.tsv").touch()
    with pytest.raises(DataError, match="x/y has no score"):
        AlignedRecord("x", "y", "z", "train", midi=tmp_path / "x.mid", alignment=tmp_path / "x.tsv").aligned()
    assert len(AlignedRecord("x", "y", "z", "train", alignment=MATCH).aligned().score.notes) == 328
