"""REMI-z texts: whatever a decoder writes is read, and what says nothing is counted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midisynth.errors import DataError, UsageError
from midisynth.models.phrase_ldm.operations import transposed
from midisynth.models.phrase_ldm.remiz import Bar, Note, Track, performance_from_bars
from midisynth.models.phrase_ldm.rows import transposed_ids
from midisynth.models.phrase_ldm.sections import check_sections, parse_sections, plan_text
from midisynth.models.phrase_ldm.texts import bar_text, parse, phrase_text
from midisynth.models.phrase_ldm.vocabulary import TOKENS, UNKNOWN_ID, to_ids, to_text

# Like what decoders write: mostly the right kinds of tokens, sometimes anything.
WORDS = st.one_of(
    st.sampled_from(["o-0", "o-3", "o-47", "p-60", "p-64", "p-164", "d-3", "d-12", "i-0", "i-128", "b-1", "[INST]"]),
    st.sampled_from(TOKENS),
    st.sampled_from(["o-999", "p-", "-", "i-x", "d--1", "[", "ü", "v-32"]),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(WORDS, max_size=60), st.sampled_from([None, "published"]))
def test_any_text_is_music(words: list[str], compat):
    parsed = parse(words, compat=compat)
    notes = [note for bar in parsed.bars for track in bar.tracks for note in track.notes]
    assert all(count > 0 for count in parsed.dropped.values())
    assert parsed.dropped.total() <= len(words)
    if compat is None:
        assert all(note.onset < bar.length for bar in parsed.bars for track in bar.tracks for note in track.notes)
        # Every duration is that of a note, or counted, and likewise pitches.
        for letter in "pd":
            written = sum(word in TOKENS and word.startswith(f"{letter}-") for word in words)
            assert len(notes) + parsed.dropped[letter] == written
        assert len(performance_from_bars(parsed.bars).notes) <= len(notes)
        text = " ".join(bar_text(bar, time_signature=True, drums=True, velocity=True) for bar in parsed.bars)
        again = parse(text)
        assert not again.dropped
        assert sum(len(track.notes) for bar in again.bars for track in bar.tracks) == len(notes)


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        ("i-0 o-0 p-60 d-3 b-1", {}),
        ("i-0 d-3 b-1", {"d": 1}),
        ("i-0 p-60 d-3 b-1", {"p": 1, "d": 1}),
        ("i-0 o-0 o-3 p-60 d-3 b-1", {"o": 1}),
        ("i-0 o-0 p-60 p-61 d-3 d-3 b-1", {"p": 1, "d": 1}),
        ("i-0 o-0 p-60 b-1", {"o": 1, "p": 1}),
        ("s-8 i-0 o-36 p-60 d-3 b-1", {"o": 1, "p": 1, "d": 1}),  # three quarters have 36 positions
        ("i-0 o-0 p-60 d-3 hello o-128 b-1", {"unknown": 2}),
        ("i-0 o-0 p-60 d-3 v-3 p-62 d-3 b-1", {"p": 1, "d": 1}),  # in a text with velocities a note needs one
        ("[BOS] i-0 o-0 p-60 d-3 [INST] b-1 [SEP] [EOS] [PAD]", {}),
    ],
)
def test_what_says_nothing_is_counted(text: str, dropped: dict[str, int]):
    assert dict(parse(text).dropped) == dropped


def test_text_after_the_last_bar_line_is_music_too():
    text = "i-0 o-0 p-60 d-3 b-1 i-0 o-0 p-62 d-3"
    assert len(parse(text).bars) == 2
    assert len(parse(text, compat="published").bars) == 1
    assert parse("").bars == []


def test_velocities_have_tokens():
    track = Track(0, [Note(0, 60, 3, 127)])
    assert phrase_text(track, velocity=True) == "i-0 o-0 p-60 d-3 v-31"
    assert phrase_text(track, velocity=True, compat="published") == "i-0 o-0 p-60 d-3 v-127"
    (bar,) = parse("i-0 o-0 p-60 d-3 v-31 b-1").bars
    assert bar.tracks[0].notes == [Note(0, 60, 3, 126)]


def test_words_that_are_no_tokens():
    with pytest.raises(DataError, match="'o-128' is no token"):
        to_ids("i-0 o-128")
    assert to_ids("i-0 o-128", unknown=True) == [152, UNKNOWN_ID]
    assert to_text([1, 152, 0, 5], without=("[BOS]", "[EOS]", "[PAD]")) == "i-0"


def test_ids_in_other_keys_are_those_of_bars_in_other_keys():
    bar = Bar([Track(0, [Note(0, 120, 3, 96), Note(0, 60, 3, 96)]), Track(128, [Note(0, 36, 3, 96)])])
    for semitones in (-7, 0, 11):
        for track in bar.tracks:
            (moved,) = transposed([Bar([track])], semitones)
            assert sorted(transposed_ids(to_ids(phrase_text(track)), semitones)) == sorted(
                to_ids(phrase_text(moved.tracks[0]))
            )


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("", "is empty"),
        ("i4 A", "cannot read 'A'"),
        ("i4 A0 B8", "cannot read 'A0 B8'"),
        ("4i", "cannot read '4i'"),
        ("i4 Q8", "'Q' is none of A B"),
        ("i4 A33", "A33 is not 1 to 32 bars long"),
        ("A32 A32 A32 A32 o1", "129 bars, the model takes 128"),
        ("A1 " * 31, "31 sections, the model takes 30"),
    ],
)
def test_plans_that_cannot_be_followed(plan: str, message: str):
    with pytest.raises(UsageError, match=message):
        check_sections(parse_sections(plan), 128)


@pytest.mark.parametrize("plan", ["i4A8b4o2", "i4 A8 b4 o2", "i-4 A-8 b-4 o-2", " i4, A8, b4, o2 "])
def test_plans_in_any_writing(plan: str):
    sections = parse_sections(plan)
    check_sections(sections, 128)
    assert plan_text(sections) == "i4 A8 b4 o2"
