"""Corpus `musicnet`, on a miniature in its layout: tables of notes, two kinds of splits, a MIDI file for each table."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpus_files import rows, write_notes, write_tones

from midisynth.datasets.musicnet import MusicNet
from midisynth.errors import DataError, UsageError
from midisynth.main import main
from midisynth.music.midi import read_midi

# True rows of the table: 2472 and 2477 are one movement by two pianists, 2466 and 2463 one by two violinists.
METADATA = """\
id,composer,composition,movement,ensemble,source,transcriber,catalog_name,seconds
1727,Schubert,Piano Quintet in A major,2. Andante,Piano Quintet,European Archive,http://tirolmusic.blogspot.com/,OP114,447
1759,Schubert,Piano Sonata in C minor,3. Menuetto and Trio,Solo Piano,Museopen,Martin Charles Bucknall,D958,194
2186,Bach,Violin Partita No 3 in E major,1. Preludio,Solo Violin,Oliver Colbentston,suzumidi,BWV1006,214
2463,Beethoven,Violin Sonata No 4 in A minor,3. Allegro molto,Accompanied Violin,European Archive,Darren L. Slider,OP23,309
2466,Beethoven,Violin Sonata No 4 in A minor,3. Allegro molto,Accompanied Violin,European Archive,Darren L. Slider,OP23,305
2472,Beethoven,Piano Sonata No 3 in C major,3. Scherzo: Allegro,Solo Piano,Paul Pitman,piano-midi.de,OP2NO3,215
2477,Beethoven,Piano Sonata No 3 in C major,3. Scherzo: Allegro,Solo Piano,Glen W. Prillaman,piano-midi.de,OP2NO3,220
"""  # noqa: E501
LABELS = """\
start_time,end_time,instrument,note,start_beat,end_beat,note_value
22050,44100,1,60,0.0,1.0,Quarter
22050,66150,41,76,0.0,2.0,Half
44100,66150,1,64,1.0,1.0,Quarter
"""
#: 0.5 to 1.5 s: a piano and, numbered from 1 in the table, a violin.
NOTES = [(0.5, 1.0, 60, 0, False), (0.5, 1.5, 76, 40, False), (1.0, 1.5, 64, 0, False)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "musicnet"
    for number in ("1727", "2186", "2463", "2466", "2472", "2477", "1759"):
        part = "test" if number == "1759" else "train"
        write_tones(root / f"{part}_data" / f"{number}.wav", [(0.5, 1.0, 60), (0.5, 1.5, 76), (1.0, 1.5, 64)], 2.0)
        (root / f"{part}_labels").mkdir(exist_ok=True)
        (root / f"{part}_labels" / f"{number}.csv").write_text(LABELS)
    (root / "musicnet_metadata.csv").write_text(METADATA)
    return root


def test_tables_are_notes(root: Path):
    for record in MusicNet(str(root)).records():
        performance = record.performance()
        assert rows(performance) == NOTES
        assert len(set(performance.notes["channel"].tolist())) == 2
        audio = record.waveform(8000)
        assert audio[: 8000 // 2].abs().max() == 0
        assert audio[8000 // 2 : 3 * 8000 // 2].abs().max() > 0.1


def test_splits(root: Path):
    published = {record.id: record for record in MusicNet(str(root), splits="published").records()}
    assert {id: record.split for id, record in published.items()} == {
        "1727": "train",
        "1759": "train",  # in the folder of tests, which counts for nothing
        "2186": "test",
        "2463": "train",
        "2466": "validation",
        "2472": "train",
        "2477": "validation",
    }
    assert published["2472"].piece == published["2477"].piece == "Beethoven - OP2NO3 - 3. Scherzo: Allegro"
    assert published["2186"].metadata["ensemble"] == "Solo Violin"
    separate = MusicNet(str(root)).records()
    assert [record.id for record in separate] == ["1727", "1759", "2186", "2466", "2477"]
    assert all(record.split == published[record.id].split for record in separate)


def test_the_command_turns_tables_into_midi_files(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (root / "train_labels" / "1727.csv").write_text("start_time,end_time\n1,2\n")
    words = ["corpora", "musicnet", "--root", str(root), "--splits", "published", "--midi", str(tmp_path / "midi")]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "train            4 records of 4 pieces",
        "validation       2 records of 2 pieces",
        "test             1 records of 1 pieces",
        f"{tmp_path / 'midi'}: 6 MIDI files",
    ]
    assert "musicnet/1727 is left out: " in err
    assert "no column 'instrument'" in err
    for path in (tmp_path / "midi").iterdir():
        assert rows(read_midi(path)) == NOTES


def test_midi_files_in_place_of_tables(root: Path):
    (root / "train_labels" / "2186.csv").unlink()
    with pytest.raises(
        DataError, match=r"2186\.wav has no notes: neither .*2186\.csv nor .*train_labels_midi/2186\.mid"
    ):
        MusicNet(str(root)).records()
    write_notes(root / "train_labels_midi" / "2186.mid", [(40, False, [(0.5, 1.0, 69)])])
    (record,) = (record for record in MusicNet(str(root)).records() if record.id == "2186")
    assert rows(record.performance()) == [(0.5, 1.0, 69, 40, False)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("start_time,end_time,instrument,note\n", "has no notes"),
        ("start_time,end_time,instrument,note\n1,2,x,60\n", "cannot be read as a table of notes"),
        ("start_time,end_time,instrument,note\n1,2,0,60\n", "instruments are 1 to 128 and notes 0 to 127"),
        ("start_time,end_time,instrument,note\n1,2\n", "cannot be read as a table of notes"),
    ],
)
def test_damaged_tables(root: Path, labels: str, message: str):
    (root / "train_labels" / "1727.csv").write_text(labels)
    with pytest.raises(DataError, match=rf"1727\.csv: {message}"):
        MusicNet(str(root)).records()[0].performance()


def test_it_names_what_is_missing(root: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"no train_data/\*\.wav or test_data/\*\.wav in"):
        MusicNet(str(tmp_path)).records()
    with pytest.raises(UsageError, match=r"musicnet\.splits: 'official' is none of separate, published"):
        MusicNet(str(root), splits="official")
    write_tones(root / "train_data" / "9999.wav", [], 0.1)
    (root / "train_labels" / "9999.csv").write_text(LABELS)
    with pytest.raises(DataError, match=r"musicnet_metadata\.csv has no recording 9999"):
        MusicNet(str(root)).records()
    (root / "musicnet_metadata.csv").unlink()
    assert len(MusicNet(str(root), splits="published").records()) == 8
    with pytest.raises(DataError, match=r"musicnet_metadata\.csv is missing: .* or set splits to published"):
        MusicNet(str(root)).records()
