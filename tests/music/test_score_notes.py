"""Scores with all their marks: MusicXML, MEI, Humdrum and quantised MIDI as rows of notes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midisynth.errors import ScoreError
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.notes import NOTE_DTYPE, Performance
from midisynth.music.score import read_score, read_score_notes
from midisynth.music.score_files import open_score
from midisynth.music.score_notes import SCORE_NOTE_DTYPE, Score, deadpan
from midisynth.music.score_rows import bar_offsets, score_rows, unique_ids

DATA = Path(__file__).parent / "data"
ZOO = DATA / "score_zoo"
EXAMPLES = Path(__file__).parents[2] / "examples"
SCORES = sorted([*ZOO.iterdir(), *EXAMPLES.glob("**/*.musicxml")])
REST = "<note><rest/><duration>2</duration></note>"


def xml(*bars: str, attributes: str = "", divisions: int = 2, metre: str = "4/4") -> str:
    """A part of the bars, in 4/4 and eighths."""
    beats, unit = metre.split("/")
    first = (
        f"<attributes><divisions>{divisions}</divisions>{attributes}"
        f"<time><beats>{beats}</beats><beat-type>{unit}</beat-type></time></attributes>"
    )
    body = "".join(f'<measure number="{n}">{first if n == 1 else ""}{bar}</measure>' for n, bar in enumerate(bars, 1))
    return f'<part id="P1">{body}</part>'


def document(*parts: str) -> str:
    names = "".join(
        f'<score-part id="P{n}"><part-name>Part {n}</part-name></score-part>' for n in range(1, len(parts) + 1)
    )
    numbered = "".join(part.replace('id="P1"', f'id="P{n}"', 1) for n, part in enumerate(parts, 1))
    return f'<score-partwise version="4.0"><part-list>{names}</part-list>{numbered}</score-partwise>'


def note(step="C", duration=2, octave=4, voice=1, extra="", notations="", before="", name="") -> str:
    identity = f' id="{name}"' if name else ""
    return (
        f"<note{identity}>{before}<pitch><step>{step}</step><octave>{octave}</octave></pitch>"
        f"<duration>{duration}</duration>{extra}<voice>{voice}</voice>"
        f"<notations>{notations}</notations></note>"
    )


def words(text: str, extra: str = "") -> str:
    return f"<direction><direction-type><words>{text}</words></direction-type>{extra}</direction>"


def dynamics(mark: str, staff: int | None = None) -> str:
    where = "" if staff is None else f"<staff>{staff}</staff>"
    return f"<direction><direction-type><dynamics><{mark}/></dynamics></direction-type>{where}</direction>"


def wedge(kind: str) -> str:
    return f'<direction><direction-type><wedge type="{kind}"/></direction-type></direction>'


@pytest.fixture
def read(tmp_path: Path):
    def read(*bars: str, **options) -> np.ndarray:
        path = tmp_path / "x.musicxml"
        path.write_text(document(xml(*bars, **options)))
        return read_score_notes(path).notes

    return read


@pytest.mark.parametrize("path", SCORES, ids=lambda path: path.name)
@pytest.mark.parametrize("repeats", [True, False])
def test_every_note_of_the_page_is_a_row(path: Path, repeats: bool):
    """`read_score` asks partitura for its own note array."""
    score, played = read_score_notes(path, repeats=repeats), read_score(path, repeats=repeats)
    notes = score.notes
    assert notes.dtype == SCORE_NOTE_DTYPE
    assert sorted(notes["pitch"].tolist()) == sorted(played.notes["pitch"].tolist())
    assert len(set(notes["id"].tolist())) == len(notes)
    order = np.lexsort((notes["pitch"], notes["onset_div"]))
    assert (order == np.arange(len(notes))).all()
    assert (notes["onset_div"] >= 0).all() and (notes["duration_div"] >= 0).all()
    assert ((notes["duration_div"] == 0) == notes["grace"]).all()
    seconds = np.sort(played.notes["onset_sec"])
    assert deadpan(score).notes["onset_sec"] == pytest.approx(seconds, abs=2e-3)


@pytest.mark.parametrize("path", SCORES, ids=lambda path: path.name)
def test_clocks_and_bars_agree(path: Path):
    score = read_score_notes(path)
    notes = score.notes
    quarters = notes["onset_quarter"] - notes["onset_quarter"][0]
    divisions = notes["onset_div"] - notes["onset_div"][0]
    assert quarters == pytest.approx(divisions / score.divisions, abs=1e-6)
    assert score.quarters(notes["onset_beat"]) == pytest.approx(notes["onset_quarter"], abs=1e-6)
    assert score.beats(notes["onset_quarter"]) == pytest.approx(notes["onset_beat"], abs=1e-6)
    for part in np.unique(notes["part"]):
        own = notes[notes["part"] == part]
        assert (np.diff(own["bar"]) >= 0).all()
        lines = {
            int(bar): set(np.round((own["onset_beat"] - own["bar_beat"])[own["bar"] == bar], 6)) for bar in own["bar"]
        }
        assert all(len(line) == 1 for line in lines.values()), "one bar line for all notes of a bar"
    assert (notes["bar_beat"] >= -1e-9).all()


def test_a_real_page():
    """Chopin, op. 10 no. 3: the pick-up, the key of E major, the first marks as they are printed."""
    score = read_score_notes(EXAMPLES / "vienna4x22" / "musicxml" / "Chopin_op10_no3.musicxml")
    notes = score.notes
    assert (len(notes), score.divisions) == (486, 16)
    first = notes[0]
    assert (first["onset_beat"], first["bar"], first["bar_beat"], first["bar_beats"]) == (-0.5, 0, 1.5, 2)
    assert set(notes["fifths"].tolist()) == {4} and not notes["minor"].any()
    assert first["loudness"] == 49 and int(notes["grace"].sum()) == 4
    assert (notes["tempo_change"] == -1).any()


def test_titles():
    assert read_score_notes(ZOO / "fur-elise.mxl").title == "Für Elise"
    assert read_score_notes(EXAMPLES / "bach_minuet.musicxml").title == ""


def test_grace_notes_are_rows_before_their_main_note(read):
    notes = read(note("E", 0, before="<grace/>").replace("<duration>0</duration>", "") + note("D") + note("C", 6))
    assert notes[["pitch", "grace", "duration_div"]].tolist() == [(62, False, 2), (64, True, 0), (60, False, 6)]
    assert notes["onset_div"].tolist() == [0, 0, 2]


def test_ornaments_mark_their_main_note(read):
    notes = read(note(notations="<ornaments><trill-mark/></ornaments>") + note("D"))
    assert notes["ornament"].tolist() == [True, False]


def test_ties_are_one_note_and_voices_in_unison_are_two(read):
    tie = ('<tie type="start"/>', '<tie type="stop"/>')
    upper = note("C", 8, extra=tie[0]) + "<backup><duration>8</duration></backup>" + note("C", 2, voice=2)
    notes = read(upper, note("C", 4, extra=tie[1]) + REST * 2)
    assert notes[["pitch", "duration_div", "voice"]].tolist() == [(60, 12, 1), (60, 2, 2)]


def test_articulation_counts_for_the_chord_of_a_voice(read):
    mark = "<articulations><staccato/><accent/></articulations>"
    chord = note("C", notations=mark) + note("E").replace("<note>", "<note><chord/>")
    other = "<backup><duration>2</duration></backup>" + note("C", octave=3, voice=2)
    notes = read(chord + other + note("D", notations="<articulations><tenuto/></articulations>"))
    assert notes["pitch"].tolist() == [48, 60, 64, 62]
    assert notes["staccato"].tolist() == notes["accent"].tolist() == [False, True, True, False]
    assert notes["tenuto"].tolist() == [False, False, False, True]


def test_a_fermata_holds_all_voices(read):
    held = note("C", notations="<fermata/>") + "<backup><duration>2</duration></backup>" + note("E", voice=2)
    assert read(held + note("D"))["fermata"].tolist() == [True, True, False]


def test_slurs_reach_from_their_first_note_to_their_last(read):
    start, stop = '<slur type="start" number="1"/>', '<slur type="stop" number="1"/>'
    other = "<backup><duration>8</duration></backup>" + note("C", 8, 3, voice=2)
    notes = read(note("C") + note("D", notations=start) + note("E") + note("F", notations=stop) + other, note("G"))
    assert notes["slur"][notes["voice"] == 1].tolist() == [False, True, True, True, False]
    assert not notes["slur"][notes["voice"] == 2].any()


def test_tuplets():
    notes = read_score_notes(ZOO / "test_tuplets.mei").notes
    assert notes["tuplet"].sum() == 8


def test_dynamics_hold_until_the_next(read):
    notes = read(note() + dynamics("p") + note() + dynamics("sfz") + note() + dynamics("fp") + note(), note() + note())
    loudness = notes["loudness"]
    assert np.isnan(loudness[0]) and loudness[1:].tolist() == [49, 49, 49, 49, 49]
    assert notes["accent"].tolist() == [False, False, True, True, False, False]


def test_dynamics_in_words_and_wedges(read):
    bar = wedge("crescendo") + note() * 4 + wedge("stop")
    notes = read(
        words("sempre pp") + bar, words("mezzo forte") + note() + words("dim.") + note() * 3, dynamics("f") + note()
    )
    assert notes["loudness"].tolist() == [33] * 4 + [80] * 4 + [96]
    assert notes["loudness_change"].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 0, 0, -1 / 3, -2 / 3, 0])


def test_of_two_dynamics_at_a_time_the_own_staff_counts(read):
    def at(staff):
        return note("C" if staff == 1 else "E").replace("<notations>", f"<staff>{staff}</staff><notations>")

    notes = read(
        dynamics("f", 1) + dynamics("p", 2) + at(1) + "<backup><duration>2</duration></backup>" + at(2)
        + dynamics("mf", 1) + at(1) + "<backup><duration>2</duration></backup>" + at(2),
    )  # fmt: skip
    assert notes[["staff", "loudness"]].tolist() == [(1, 96), (2, 49), (1, 80), (2, 80)]


METRONOME = (
    "<direction><direction-type><metronome><beat-unit>{}</beat-unit>{}<per-minute>{}</per-minute></metronome>"
    "</direction-type></direction>"
)


@pytest.mark.parametrize(
    "mark, tempo",
    [
        ("", np.nan),
        ('<direction><sound tempo="90"/></direction>', 90),
        (METRONOME.format("quarter", "", "100"), 100),
        (METRONOME.format("eighth", "", "ca. 60"), 30),
        (METRONOME.format("half", "<beat-unit-dot/>", "40"), 120),
        (METRONOME.format("quarter", "", "as you like"), np.nan),
        (words("Allegro ma non troppo"), 126),
        (words("Adagio"), 66),
        (words("Sehr langsam"), 66),
        (words("Allegro", '<sound tempo="160"/>'), 160),
        (words("dolce"), np.nan),
    ],
)
def test_tempo(read, mark, tempo):
    assert read(mark + note())["tempo"].tolist() == pytest.approx([tempo], nan_ok=True)


def test_metronome_marks_are_played(tmp_path):
    path = tmp_path / "x.musicxml"
    path.write_text(document(xml(METRONOME.format("quarter", "", "60") + note() + note())))
    assert read_score(path).notes["onset_sec"].tolist() == [0, 1]


def test_changes_of_tempo_last_until_the_next_mark(read):
    bar = (
        '<direction><sound tempo="100"/></direction>'
        + note()
        + words("rit.")
        + note()
        + note()
        + words("a tempo")
        + note()
    )
    more = (
        words("Più mosso")
        + note()
        + words("accel.")
        + note()
        + words("Tempo I")
        + note()
        + words("meno mosso")
        + note()
    )
    notes = read(bar, more)
    assert notes["tempo_change"].tolist() == [0, -1, -1, 0, 0, 1, 0, 0]
    assert notes["tempo"].tolist() == pytest.approx([100] * 4 + [115, 115, 100, 100 / 1.15], rel=1e-5)


def test_a_ritardando_that_is_played_by_numbers_ends_with_them(read):
    numbers = [note() + f'<direction><sound tempo="{tempo}"/></direction>' for tempo in (90, 80, 100)]
    notes = read('<direction><sound tempo="100"/></direction>' + note() + words("rit.") + "".join(numbers), note())
    assert notes["tempo"].tolist() == [100, 100, 90, 80, 100]
    assert notes["tempo_change"].tolist() == [0, -1, -1, -1, 0]


def test_a_ritardando_without_end_ends_after_four_bars(read):
    notes = read(words("Andante") + note() * 4, words("rall.") + note() * 4, *[note() * 4] * 6)
    assert notes["tempo_change"].tolist() == [0] * 4 + [-1] * 16 + [0] * 12


def test_several_parts_share_tempo_and_ids_are_unique(tmp_path):
    path = tmp_path / "x.musicxml"
    upper = xml(words("Largo") + note(name="n1") + note(name="n2"))
    lower = xml(note(name="n1", octave=3, duration=3) + note(name="n2", octave=3, duration=3), divisions=3)
    path.write_text(document(upper, lower))
    score = read_score_notes(path)
    assert score.divisions == 6
    assert score.notes[["id", "part", "onset_div", "tempo"]].tolist() == [
        ("P01_n1", 1, 0, 50), ("P00_n1", 0, 0, 50), ("P01_n2", 1, 6, 50), ("P00_n2", 0, 6, 50)
    ]  # fmt: skip


def test_jumps_above_the_top_part_count_for_all(tmp_path):
    path = tmp_path / "x.musicxml"
    capo = words("D.C. al Fine", '<sound dacapo="yes"/>')
    fine = words("Fine", '<sound fine="yes"/>')
    path.write_text(document(xml(note(duration=8) + fine, note("D", 8) + capo), xml(note("E", 8), note("F", 8))))
    notes = read_score_notes(path).notes
    assert [notes["pitch"][notes["part"] == part].tolist() for part in (0, 1)] == [[60, 62, 60], [64, 65, 64]]


def test_ids_tell_repeats_apart_where_there_are_any():
    notes = read_score_notes(ZOO / "test_anacrusis.xml").notes
    assert notes["id"].tolist()[:2] == ["p0n0-1", "p0n1-1"] and "p0n0-2" in notes["id"]
    assert read_score_notes(ZOO / "test_anacrusis.xml", repeats=False).notes["id"][0] == "p0n0"
    # A pick-up before each time: it begins where the bar that it fills would.
    assert notes["bar_beat"][[0, 1, 4, 5]].tolist() == [3, 0, 3, 0]


@given(st.lists(st.tuples(st.sampled_from(["n1", "n1_2", "n2", "P01_n1"]), st.integers(0, 2)), max_size=12))
@settings(max_examples=200, deadline=None)
def test_ids_become_unique(pairs):
    ids = unique_ids([name for name, _ in pairs], [part for _, part in pairs])
    assert len(set(ids)) == len(pairs)


def test_split_bars():
    full = np.full(6, 4.0)
    assert bar_offsets(np.array([1.0, 4, 3, 1, 4, 2]), full).tolist() == [3, 0, 0, 3, 0, 0]
    assert bar_offsets(np.array([4.0, 4, 4, 4, 4, 4]), full).tolist() == [0] * 6


# Deadpan


def test_deadpan_follows_the_tempo_of_the_page(read):
    slow = '<direction><sound tempo="60"/></direction>' + note() * 2 + '<direction><sound tempo="30"/></direction>'
    notes = read(slow + note() * 2)
    score = Score(notes, 2)
    assert deadpan(score).notes["onset_sec"].tolist() == [0, 1, 2, 4]
    assert deadpan(score, bpm=120).notes["onset_sec"].tolist() == [0, 0.5, 1, 2]
    assert deadpan(score).notes["duration_sec"].tolist() == [1, 1, 2, 2]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8), st.integers(21, 108)), min_size=1, max_size=30),
    st.sampled_from([1, 4, 6, 12, 48]),
    st.floats(20, 300),
)
@settings(max_examples=20, deadline=None)
def test_deadpan_can_be_written_and_read_as_the_same_score(tmp_path_factory, spots, divisions, bpm):
    rows = np.zeros(len(spots), SCORE_NOTE_DTYPE)
    rows["onset_div"], rows["duration_div"], rows["pitch"] = np.array(spots).T
    rows = rows[np.lexsort((rows["pitch"], rows["onset_div"]))]
    # A key that sounds is not struck again: MIDI cannot say so.
    for key in np.unique(rows["pitch"]):
        own = np.flatnonzero(rows["pitch"] == key)
        gap = np.diff(rows["onset_div"][own], append=100)
        rows["duration_div"][own] = np.minimum(rows["duration_div"][own], gap)
    rows = rows[rows["duration_div"] > 0]
    rows["tempo"] = np.nan
    performance = deadpan(Score(rows, divisions), bpm)
    path = tmp_path_factory.mktemp("deadpan") / "x.mid"
    write_midi(performance, path)
    again = read_score_notes(path)
    scale = again.divisions // divisions
    assert again.notes["onset_div"].tolist() == (rows["onset_div"] * scale).tolist()
    assert again.notes["pitch"].tolist() == rows["pitch"].tolist()
    assert again.notes["tempo"] == pytest.approx(bpm, rel=1e-4)


# Quantised MIDI


def performance(spots, ticks_per_quarter=480, track=0, velocity=64) -> Performance:
    notes = np.zeros(len(spots), NOTE_DTYPE)
    notes["onset_tick"], notes["duration_tick"], notes["pitch"] = np.array(spots).T
    seconds = 0.5 / ticks_per_quarter
    notes["onset_sec"], notes["duration_sec"] = notes["onset_tick"] * seconds, notes["duration_tick"] * seconds
    notes["velocity"], notes["track"] = velocity, track
    return Performance(notes=notes, ticks_per_quarter=ticks_per_quarter)


def test_a_score_as_midi():
    score = read_score_notes(EXAMPLES / "bach.mid")
    notes = score.notes
    assert len(notes) == len(read_midi(EXAMPLES / "bach.mid").notes)
    assert set(notes["staff"].tolist()) == set(notes["voice"].tolist()) == {1, 2}
    assert set(notes["part"].tolist()) == {0} and (notes["bar_beats"] == 3).all()
    assert notes["bar"].max() == 103 and (notes["duration_div"] % (score.divisions // 12) == 0).all()


def test_metre_and_lengths_of_midi(tmp_path):
    """A pick-up as a bar of 1/4, then 6/8; ends a little early."""
    midi = performance([(0, 455, 60), (480, 239, 62), (1920, 700, 64), (2400, 120, 65)])
    midi.time_signatures = np.array([(0, 0, 1, 4), (0.5, 480, 6, 8)], midi.time_signatures.dtype)
    midi.key_signatures = np.array([(0, 0, -3, True)], midi.key_signatures.dtype)
    write_midi(midi, tmp_path / "x.mid")
    notes = read_score_notes(tmp_path / "x.mid").notes
    assert notes["duration_div"].tolist() == [480, 240, 720, 120]
    assert notes["onset_beat"].tolist() == [-1, 0, 6, 8]
    assert notes[["bar", "bar_beat", "bar_beats"]].tolist() == [(0, 2, 3), (1, 0, 6), (2, 0, 6), (2, 2, 6)]
    assert notes["onset_quarter"].tolist() == [-1, 0, 3, 4]
    assert (notes["fifths"] == -3).all() and notes["minor"].all()


def test_a_performance_is_no_score():
    with pytest.raises(ScoreError, match=r"it is a performance, no score: \d+% of its notes"):
        read_score_notes(EXAMPLES / "mozart_k331.mid")


def test_midi_without_notes(tmp_path):
    write_midi(Performance(), tmp_path / "x.mid")
    with pytest.raises(ScoreError, match="it has no notes"):
        read_score_notes(tmp_path / "x.mid")


def test_absurdly_long_midi(tmp_path):
    midi = performance([(0, 1, 60), (300_000, 1, 60)], ticks_per_quarter=1)
    midi.tempos = np.array([(0, 0, 100)], midi.tempos.dtype)
    for name in ("onset_sec", "duration_sec"):
        midi.notes[name] = midi.notes[name.replace("sec", "tick")] * 1e-4
    write_midi(midi, tmp_path / "x.mid")
    with pytest.raises(ScoreError, match="longer than 200,000 quarter notes"):
        read_score_notes(tmp_path / "x.mid")


# Robustness

BAD = sorted((DATA / "score_bad").iterdir())


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.name)
def test_bad_files_are_read_or_refused_in_one_line(path: Path):
    try:
        assert len(read_score_notes(path).notes) == 4
    except ScoreError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert path.name in (
            "ok_reference.musicxml",
            "no_divisions.musicxml",
            "duplicate_ids.musicxml",
            "utf16_without_bom.musicxml",
        )


def test_a_score_of_rests(tmp_path):
    path = tmp_path / "x.musicxml"
    path.write_text(document(xml(REST * 4)))
    with pytest.raises(ScoreError, match="it has no notes"):
        read_score_notes(path)


def test_humdrum(tmp_path):
    path = tmp_path / "x.krn"
    path.write_text("**kern\t**kern\n*M4/4\t*M4/4\n=1\t=1\n4C\t4c\n2D\t2d\n4E\t4e\n==\t==\n*-\t*-\n")
    notes = read_score_notes(path).notes
    assert sorted(notes[["pitch", "onset_beat"]].tolist()) == [(48, 0), (50, 1), (52, 3), (60, 0), (62, 1), (64, 3)]
    path.write_bytes(bytes(100))
    with pytest.raises(ScoreError, match=r"partitura cannot read it|no notes"):
        read_score_notes(path)


def test_rows_of_a_long_score_take_time_in_proportion(tmp_path):
    """Marks, slurs and bars of 1,600 notes: nothing grows with the square of their number."""
    begin, end = '<slur type="start"/>', '<slur type="stop"/>'
    slurred = note(notations=begin) + note("D") + note("E") + note("F", notations=end)
    bar = dynamics("p") + wedge("crescendo") + slurred + wedge("stop") + '<direction><sound tempo="90"/></direction>'
    seconds = []
    for bars in (50, 400):
        path = tmp_path / f"{bars}.musicxml"
        path.write_text(document(xml(*[bar] * bars)))
        parts = open_score(path).parts
        start = time.process_time()
        assert len(score_rows(str(path), parts)[0]) == 4 * bars
        seconds.append(time.process_time() - start)
    assert seconds[1] < 24 * seconds[0]


def test_all_scores_of_the_shared_zoo(data_root: Path):
    """Three files have rests alone; the match file is no score."""
    refused = {}
    files = [path for path in (data_root / "musicxml_zoo").glob("*/*") if path.suffix != ".match"]
    for path in files:
        try:
            assert len(read_score_notes(path).notes)
        except ScoreError as error:
            refused[path.name] = str(error)
    assert len(files) == 53
    assert set(refused) == {"41g-PartNoId.xml", "41h-TooManyParts.xml", "51b-Header-Quotes.xml"}
    assert all(text.endswith("it has no notes") for text in refused.values())
