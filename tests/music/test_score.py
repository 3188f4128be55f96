"""Scores through partitura, and the files that must not reach it."""

from __future__ import annotations

import builtins
import sys
import time
import tracemalloc
import urllib.error
import zipfile
from pathlib import Path

import pytest

from midisynth.errors import ScoreError
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.score import read_score

DATA = Path(__file__).parent / "data"
REFUSED = {
    "truncated.musicxml": "not well-formed XML",
    "empty.musicxml": "it is empty",
    "not_xml.musicxml": "not well-formed XML",
    "html.musicxml": "its root is <html>",
    "wrong_root.musicxml": "its root is <svg>",
    "zero_divisions.musicxml": "0 divisions",
    "negative_duration.musicxml": "a duration of -1 quarter",
    "huge_duration.musicxml": r"a duration of 1e\+09 quarter",
    "octave_99.musicxml": "there is no note 'H'",
    "entity_bomb.musicxml": "defines an entity",
    "external_entity.musicxml": "defines an entity",
    "no_container.mxl": r"no META-INF/container\.xml",
    "container_points_nowhere.mxl": "is not in the archive",
    "path_traversal.mxl": "outside the archive",
    "zip_bomb_20mb.mxl": "partitura cannot read it: XMLSyntaxError",
    "not_a_zip.mxl": "damaged archive",
}
READ = {
    "ok_reference.musicxml": [],
    "no_divisions.musicxml": ["no divisions; 1 a quarter note assumed"],
    "duplicate_ids.musicxml": ["several notes have the id 'n1'"],
    "utf16_without_bom.musicxml": [],
}
# Notes with and without repeats, and end (seconds) with repeats.
ZOO = {
    "24a-GraceNotes.xml": (28, 28, 6.0),
    "45b-RepeatWithAlternatives.xml": (5, 4, 10.0),
    "72a-TransposingInstruments.xml": (24, 24, 4.0),
    "90a-Compressed-MusicXML.mxl": (4, 4, 2.0),
    "Bach_Minuet_in_G_Major_BWV_Anh._114.mxl": (408, 204, 192 * 60 / 126),
    "fur-elise.mxl": (951, 815, 155.8333),
    "test_anacrusis.xml": (10, 6, 10.5),
    "test_multi_part_change_divs.xml": (13, 13, 6.0),
    "test_tuplets.mei": (10, 10, 4.0),
    "test_unfold_complex.xml": (19, 8, 29.0),
}


def xml(body: str) -> str:
    return (
        '<score-partwise version="4.0"><part-list><score-part id="P1"><part-name>Piano</part-name></score-part>'
        f'</part-list><part id="P1"><measure number="1"><attributes><divisions>1</divisions></attributes>{body}'
        "</measure></part></score-partwise>"
    )


def note(octave: object = 4, duration: object = 1, step: str = "C") -> str:
    return f"<note><pitch><step>{step}</step><octave>{octave}</octave></pitch><duration>{duration}</duration></note>"


def test_every_file_has_a_verdict():
    assert {path.name for path in (DATA / "score_bad").iterdir()} == set(REFUSED) | set(READ)
    assert {path.name for path in (DATA / "score_zoo").iterdir()} == set(ZOO)


@pytest.mark.parametrize("file", REFUSED)
def test_refused(file):
    path = DATA / "score_bad" / file
    start = time.process_time()
    with pytest.raises(ScoreError, match=REFUSED[file]) as caught:
        read_score(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and "root:" not in text
    if "partitura" not in text:  # whose import alone takes longer than two seconds on a slow machine
        assert time.process_time() - start < 2


@pytest.mark.parametrize("file", READ)
def test_read(file):
    performance = read_score(DATA / "score_bad" / file)
    assert len(performance.notes) == 4
    assert performance.warnings == READ[file]


@pytest.mark.parametrize("file", ZOO)
def test_zoo(file, tmp_path):
    performance = read_score(DATA / "score_zoo" / file)
    notes, once, end = ZOO[file]
    assert len(performance.notes) == notes
    assert performance.end_sec == pytest.approx(end, abs=1e-3)
    assert len(read_score(DATA / "score_zoo" / file, repeats=False).notes) == once
    write_midi(performance, tmp_path / "x.mid")
    again = read_midi(tmp_path / "x.mid")
    assert again.notes["onset_sec"].tolist() == performance.notes["onset_sec"].tolist()
    assert again.notes["pitch"].tolist() == performance.notes["pitch"].tolist()


def test_instruments_sound_at_concert_pitch():
    notes = read_score(DATA / "score_zoo" / "72a-TransposingInstruments.xml").notes
    assert {tuple(notes["pitch"][notes["track"] == track].tolist()) for track in range(3)} == {
        (60, 62, 64, 65, 67, 69, 71, 72)
    }


def test_a_pick_up_bar_begins_at_zero():
    assert read_score(DATA / "score_zoo" / "test_anacrusis.xml").notes["onset_tick"][:2].tolist() == [0, 480]


@pytest.mark.parametrize(
    "body, cause",
    [
        ("", "it has no notes"),
        (note(octave=99), "octave '99'; octaves are 0 to 9"),
        (note(octave="x"), "octave 'x'"),
        (note(duration="x"), "duration is 'x' instead of a number"),
        (note(duration="nan"), "duration is 'nan' instead of a number"),
        (note(octave=9, step="B"), "outside the range of MIDI"),
        ('<direction><sound tempo="0"/></direction>' + note(), "tempo|partitura cannot"),
        ('<direction><sound tempo="-5"/></direction>' + note(), "tempo"),
        (note(duration=4000) * 5, "it lasts 10,000 s, over the limit"),
    ],
)
def test_nonsense(body, cause, tmp_path):
    path = tmp_path / "x.musicxml"
    path.write_text(xml(body))
    with pytest.raises(ScoreError, match=cause):
        read_score(path)


def test_tempo_is_that_of_the_score(tmp_path):
    path = tmp_path / "x.musicxml"
    path.write_text(xml('<direction><sound tempo="60"/></direction>' + note() * 2))
    performance = read_score(path)
    assert performance.notes["onset_sec"].tolist() == [0, 1] and performance.end_sec == 2


@pytest.mark.parametrize("root, cause", [("score-timewise", "export it as partwise"), ("opus", "its root is <opus>")])
def test_other_roots(root, cause, tmp_path):
    path = tmp_path / "x.musicxml"
    path.write_text(f"<{root}></{root}>")
    with pytest.raises(ScoreError, match=cause):
        read_score(path)


def test_archive_bomb_takes_bounded_memory(tmp_path):
    path = tmp_path / "x.mxl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", '<container><rootfile full-path="x.xml"/></container>')
        archive.writestr("x.xml", bytes(200 * 2**20))
    tracemalloc.start()
    with pytest.raises(ScoreError, match="more than 64 MiB of XML"):
        read_score(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


def test_missing_file(tmp_path):
    with pytest.raises(ScoreError, match="No such file"):
        read_score(tmp_path / "missing.musicxml")


@pytest.mark.parametrize("error", [ImportError("no module named partitura"), urllib.error.URLError("no network")])
def test_partitura_that_cannot_be_imported(error, monkeypatch):
    """Some of its versions load a file from the network at import."""
    original = builtins.__import__

    def broken(name, *args, **kwargs):
        if name.startswith("partitura"):
            raise error
        return original(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.partition(".")[0] == "partitura"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ScoreError, match=r"partitura, which reads scores, cannot be imported: .*no (module|network)"):
        read_score(DATA / "score_bad" / "ok_reference.musicxml")
