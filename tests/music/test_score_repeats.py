"""The order in which the bars of a page are played."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midisynth.music.score import read_score_notes

STEPS = "CDEFGAB"
SIGNS = {
    "fine": '<sound fine="yes"/>',
    "capo": '<sound dacapo="yes"/>',
    "segno": '<sound segno="segno"/>',
    "dal": '<sound dalsegno="segno"/>',
    "to": '<sound tocoda="coda"/>',
    "coda": '<sound coda="coda"/>',
}


def bar(number: int, signs: str) -> str:
    """A bar with a note that tells its number; signs: |: and :| and [1 to ]1, words of `SIGNS`.

    What opens (|: [ segno coda) stands before the note.
    """
    before = after = ""
    words = signs.split()
    left = "".join(
        '<repeat direction="forward"/>' if word == "|:" else f'<ending number="{word[1:]}" type="start"/>'
        for word in words
        if word == "|:" or word[0] == "["
    )
    right = "".join(f'<ending number="{word[1:]}" type="stop"/>' for word in words if word[0] == "]")
    right += '<repeat direction="backward"/>' * (":|" in words)
    for word in words:
        if word in ("segno", "coda"):
            before += f"<direction><direction-type><words>{word}</words></direction-type>{SIGNS[word]}</direction>"
        elif word in SIGNS:
            after += f"<direction><direction-type><words>{word}</words></direction-type>{SIGNS[word]}</direction>"
    octave, step = divmod(number, 7)
    pitch = f"<pitch><step>{STEPS[step]}</step><octave>{octave}</octave></pitch>"
    metre = "<attributes><divisions>1</divisions><time><beats>1</beats><beat-type>4</beat-type></time></attributes>"
    return (
        f'<measure number="{number + 1}">'
        + (f'<barline location="left">{left}</barline>' if left else "")
        + (metre if number == 0 else "")
        + f'{before}<note id="n{number}">{pitch}<duration>1</duration></note>{after}'
        + (f'<barline location="right">{right}</barline>' if right else "")
        + "</measure>"
    )


def played(path: Path, *bars: str) -> str:
    """Letters of the bars in the order in which they are played."""
    body = "".join(bar(number, signs) for number, signs in enumerate(bars))
    path.write_text(
        '<score-partwise version="4.0"><part-list><score-part id="P1"><part-name>x</part-name></score-part></part-list>'
        f'<part id="P1">{body}</part></score-partwise>'
    )
    notes = read_score_notes(path).notes
    assert notes["onset_div"].tolist() == list(range(len(notes)))
    assert notes["bar"].tolist() == list(range(len(notes)))
    numbers = [int(name.removeprefix("n").partition("-")[0]) for name in notes["id"].tolist()]
    times = [name.partition("-")[2] for name in notes["id"].tolist()]
    assert times == [
        str(numbers[: i + 1].count(n)) if len(set(numbers)) < len(numbers) else "" for i, n in enumerate(numbers)
    ]
    return "".join(chr(ord("a") + number) for number in numbers)


@pytest.mark.parametrize(
    "bars, order",
    [
        (["", "", ""], "abc"),
        (["", ":|", ""], "ababc"),
        (["", "|:", ":|", ""], "abcbcd"),
        (["|: :|", "|: :|", ""], "aabbc"),
        (["|:", "[1 ]1 :|", "[2 ]2", ""], "abacd"),
        (["|:", "[1 ]1 :|", "[2 ]2 :|", "[3 ]3", ""], "abacade"),
        (["|:", "[1,2 ]1,2 :|", "[3 ]3", ""], "ababacd"),
        (["|:", "[1", "]1 :|", "[2 ]2"], "abcad"),
        (["", "fine", "", "capo"], "abcdab"),
        (["", "segno", "fine", "dal"], "abcdbc"),
        (["", "segno to", "dal", "coda"], "abcbd"),
        (["", "segno to", "dal", "", "coda"], "abcbe"),
        (["", "to", "capo", "coda", ""], "abcabde"),
        (["|: :|", "fine", "capo"], "aabcaab"),
    ],
)
def test_bars_are_played_in_order(bars, order, tmp_path):
    assert played(tmp_path / "x.musicxml", *bars) == order


def test_many_repeats(tmp_path):
    """More than partitura can name."""
    bars = ["|: :|"] * 60
    body = "".join(
        bar(number % 30, signs).replace(f'id="n{number % 30}"', f'id="n{number}"') for number, signs in enumerate(bars)
    )
    path = tmp_path / "x.musicxml"
    path.write_text(
        '<score-partwise version="4.0"><part-list><score-part id="P1"><part-name>x</part-name></score-part></part-list>'
        f'<part id="P1">{body}</part></score-partwise>'
    )
    assert len(read_score_notes(path).notes) == 120
    assert len(read_score_notes(path, repeats=False).notes) == 60


@given(
    st.lists(
        st.sampled_from(["", "|:", ":|", "|: :|", "fine", "capo", "segno", "dal", "to", "coda"]),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=30, deadline=None)
def test_the_music_comes_to_an_end(tmp_path_factory, bars):
    """Whatever stands on the page; what is before the first jump is played first."""
    order = played(tmp_path_factory.mktemp("repeats") / "x.musicxml", *bars)
    assert order[0] == "a"
    if not {"fine", "capo", "dal", "to"} & set(bars):
        assert set(order) == {chr(ord("a") + number) for number in range(len(bars))}
