"""Songs to slots of phrases, rows of ids, and back."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midisynth.datasets.corpus import Record
from midisynth.datasets.folder import Folder
from midisynth.errors import DataError, MidiError, MidisynthError
from midisynth.models.phrase_ldm.codec import (
    PUBLISHED_PLAYBACK,
    PhraseCodec,
    Playback,
    phrases_of,
    song_arrays,
)
from midisynth.models.phrase_ldm.grid import Compat
from midisynth.models.phrase_ldm.operations import key_and_range
from midisynth.models.phrase_ldm.remiz import Bar, Note, Track, performance_from_bars
from midisynth.models.phrase_ldm.rows import BAR_ID, IGNORED, INST_ID, collate, fitted, labels, random_span_masked, row
from midisynth.models.phrase_ldm.sections import parse_sections
from midisynth.models.phrase_ldm.units import is_unit, units_of_bars
from midisynth.models.phrase_ldm.vocabulary import TOKENS, to_ids, to_text
from midisynth.music.keys import parse_key
from midisynth.music.midi import read_midi, write_midi

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "data"
ZOO = Path(__file__).resolve().parents[2] / "music" / "data" / "midi_zoo"


def scale(program: int, tonic: int, length: int = 12) -> Track:
    return Track(program, [Note(12 * i, tonic + step, length, 96) for i, step in enumerate((0, 4, 7, 12))])


def song(bars: int = 3, tonic: int = 62) -> list[Bar]:
    """Melody, bridge and piano in D major."""
    full = Bar([scale(13, tonic + 12), scale(25, tonic), scale(0, tonic - 12)])
    return [full, Bar([scale(0, tonic - 12)]), *[full] * (bars - 2)]


def test_slots():
    encoded = PhraseCodec().song(performance_from_bars(song()), parse_sections("i1A3"))
    assert [bar[0] for bar in encoded.layout] == ["i-13", "i-0", "i-13", "b-1"]
    assert encoded.slots[4:8] == [
        "i-0 o-0 p-48 d-12 o-12 p-52 d-12 o-24 p-55 d-12 o-36 p-60 d-12",
        "[INST]",
        "[INST]",
        "b-1",
    ]
    # The labels have a bar more than there are notes.
    assert encoded.slots[12:] == ["[INST]", "[INST]", "[INST]", "b-1"]
    assert (str(encoded.key), encoded.shift, encoded.tempo) == ("D major", -2, 120.0)
    assert encoded.prompt == "i-1 A-3"
    cut = PhraseCodec().song(performance_from_bars(song()), parse_sections("A2"))
    assert len(cut.slots) == 8


def test_positions_begin_with_an_onset_or_the_instrument_of_their_first():
    encoded = PhraseCodec().song(performance_from_bars([Bar([scale(13, 72), scale(0, 48)]), Bar()]))
    slots = [np.array(to_ids(text)) for text in encoded.slots]

    def texts(compat: Compat) -> list[str]:
        (bar,) = units_of_bars(slots, 4, "position", compat)
        return [to_text(ids) for ids in bar]

    ours, published = texts(None), texts("published")
    assert ours[0] == published[0] == "i-13 o-0 p-72 d-12"
    assert ours[3:5] == ["o-36 p-84 d-12", "i-0 o-0 p-48 d-12"]
    assert published[3:5] == ["o-36 p-84 d-12 i-0", "o-0 p-48 d-12"]
    assert ours[-1] == published[-1] == "b-1"


@pytest.mark.parametrize("compat", [None, "published"])
def test_songs_are_their_units_one_after_the_other(compat: Compat):
    codec = PhraseCodec(max_bars=None, drums=compat is None, compat=compat)
    songs = positions = 0
    for path in sorted([*ZOO.glob("*.mid"), *EXAMPLES.glob("*/*.midi")]):
        try:
            arrays = song_arrays(codec.encode(path)["song"])
        except MidisynthError:
            continue
        slots = phrases_of(arrays)
        tokens = [number for ids in slots if ids[0] != INST_ID for number in ids]
        songs += 1
        for unit in ("phrase", "bar", "position"):
            bars = units_of_bars(slots, 4, unit, compat)
            assert len(bars) == len(slots) // 4
            units = [ids for bar in bars for ids in bar]
            assert np.concatenate(units).tolist() == tokens
            assert all(is_unit(ids, unit) for ids in units)
            assert all(bar[-1][-1] == BAR_ID for bar in bars)
        positions += sum(len(bar) > 4 for bar in bars)
    assert songs > 20 and positions > 100


def test_what_is_decoded_is_what_was_encoded():
    codec = PhraseCodec(velocity=True, drums=True, slots=5)
    bars = song()
    bars[1] = Bar([scale(0, 50), Track(128, [Note(0, 36, 3, 96)])], (3, 4))
    bars[1].tracks[0].notes.pop()
    encoded = codec.song(performance_from_bars(bars))
    assert encoded.slots[9] == "s-8 b-1"
    decoded = codec.decode_texts(encoded.slots)
    assert not decoded.dropped
    assert not decoded.repaired
    assert [bar.time_signature for bar in decoded.bars] == [(4, 4), (3, 4), (4, 4)]
    heard = [[(t.program, [n[:3] for n in t.notes]) for t in bar.tracks] for bar in decoded.bars]
    assert heard == [[(t.program, [n[:3] for n in t.notes]) for t in bar.tracks] for bar in encoded.bars]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(TOKENS), max_size=12).map(" ".join), max_size=16), st.integers(2, 5))
def test_any_texts_are_a_song(texts: list[str], slots: int):
    for compat in (None, "published"):
        decoded = PhraseCodec(slots=slots, compat=compat).decode_texts(texts, PUBLISHED_PLAYBACK)
        assert len(decoded.performance.notes) <= sum(text.count("d-") for text in texts)
        if compat is None:
            assert len(decoded.bars) <= -(-len(texts) // slots)


def test_bars_are_mended():
    texts = [
        *("i-13 o-0 p-60 d-3", "b-1", "o-3 p-62 d-3", "i-0 o-0 p-48 d-3"),
        *("[INST]", "[INST]", "[INST]", "b-1"),
        *("i-13 o-0 p-64 d-3", "[SEP]", "i-0 o-0 p-48 d-3", "b-1"),
    ]
    decoded = PhraseCodec().decode_texts(texts)
    assert [[track.program for track in bar.tracks] for bar in decoded.bars] == [[13, 0], [], [13]]
    assert dict(decoded.repaired) == {
        "bar line in place of a phrase": 1,
        "phrase without instrument": 1,
        "bar line missing": 1,
        "phrase in place of a bar line": 1,
        "song ends within a bar": 1,
    }
    # As published, bars are where bar lines are.
    published = PhraseCodec(compat="published").decode_texts(texts)
    assert [[track.program for track in bar.tracks] for bar in published.bars] == [[13], [0]]
    assert dict(PhraseCodec().decode_texts(["i-0 o-0 p-60 d-3"]).repaired) == {"bar cut short": 1}


def test_crowded_bars():
    bars = [Bar([scale(p, 80 - p) for p in (1, 2, 3, 4)]), Bar([scale(p, 80 - p) for p in (2, 3, 4)])]
    performance = performance_from_bars(bars)
    encoded = PhraseCodec().song(performance)
    # Program 1 plays least.
    assert [bar[:-1] for bar in encoded.layout] == [["i-2", "i-3", "i-4"]] * 2
    assert encoded.warnings == ["1 phrases are left out: a bar has room for 3"]
    assert len(PhraseCodec(slots=5).song(performance).layout[0]) == 5
    with pytest.raises(DataError, match=r"a bar of 4 tracks, the model takes 3 \(slots\)"):
        PhraseCodec(crowded="reject").song(performance)


def test_songs_that_do_not_fit(tmp_path: Path):
    path = tmp_path / "long.mid"
    write_midi(performance_from_bars(song(bars=10)), path)
    assert len(PhraseCodec().encode(path)["phrases"]) == 40
    with pytest.raises(MidiError, match=r"long.mid: has 10 bars, the model takes 8 \(max_bars\)"):
        PhraseCodec(max_bars=8).encode(path)
    write_midi(performance_from_bars([Bar([Track(128, [Note(0, 36, 3, 96)])])]), path)
    with pytest.raises(MidiError, match="no pitched notes"):
        PhraseCodec().encode(path)
    assert PhraseCodec(drums=True).encode(path)["song"].slots[0] == "i-128 o-0 p-164 d-3"


def test_notes_that_are_lost_are_told():
    performance = performance_from_bars([Bar([scale(0, 60)])])
    twice = performance.with_notes(np.concatenate([performance.notes, performance.notes[:1]]))
    assert PhraseCodec().song(twice).warnings == [
        "1 notes begin with another one on their key and program and are left out"
    ]


def test_playback():
    codec = PhraseCodec()
    encoded = codec.song(performance_from_bars(song()))
    for name in ("D", "Bb minor", "F#", "c#m"):
        key = parse_key(name)
        bars = codec.decode_texts(encoded.slots, Playback(key=key)).performance
        heard = codec.song(bars).key
        # It was in a major key and stays in one, of the same signature.
        assert (heard.tonic, heard.minor) == ((key.tonic + 3) % 12 if key.minor else key.tonic, False)
    played = codec.decode_texts(encoded.slots, PUBLISHED_PLAYBACK).performance
    assert played.tempos["usec_per_quarter"].tolist() == [round(60e6 / 90)]
    assert sorted(set(zip(played.notes["program"].tolist(), played.notes["velocity"].tolist(), strict=True))) == [
        (0, 96),
        (25, 100),
        (87, 70),
    ]
    assert played.notes["pitch"][played.notes["program"] == 87].min() == 72 + 12


def test_prepared_songs(tmp_path: Path):
    """A codec is what a cache is made with, so it goes to other processes, and any folder of MIDI files is a corpus."""
    write_midi(performance_from_bars(song()), tmp_path / "song.mid")
    (record,) = Folder(str(tmp_path), audio=False).records()
    codec = pickle.loads(pickle.dumps(PhraseCodec()))
    arrays = codec(replace(record, metadata={"sections": "i1 A2"}))
    encoded = codec.song(read_midi(tmp_path / "song.mid"), parse_sections("i1 A2"))
    np.savez(tmp_path / "song.npz", **arrays)
    with np.load(tmp_path / "song.npz", allow_pickle=False) as stored:
        assert [to_text(ids) for ids in phrases_of(stored)] == encoded.slots
        assert str(stored["sections"]) == "i1 A2"
        assert stored["key"].tolist() == [2, 0]
        assert int(stored["shift"]) == -2
    assert str(song_arrays(codec.song(record.performance()))["sections"]) == ""
    assert PhraseCodec(drums=True).key != codec.key
    with pytest.raises(DataError, match="no MIDI"):
        codec(Record("folder", "a", "a", "train"))


@pytest.mark.parametrize("name", ["midly_Clementi", "noteseq_english1", "muspy_multitrack"])
def test_real_files(name: str):
    encoded = PhraseCodec(max_bars=None).song(read_midi(ZOO / f"{name}.mid"))
    decoded = PhraseCodec().decode_texts(encoded.slots)
    assert not decoded.dropped
    assert not decoded.repaired
    assert len(decoded.performance.notes) == sum(len(t.notes) for bar in encoded.bars for t in bar.tracks)
    key, _, _ = key_and_range(encoded.bars)
    assert str(key) in ("C major", "A minor")


def test_rows():
    phrase = to_ids("i-0 o-0 p-60 d-3")
    assert to_text(row(phrase)) == "[C0] [C1] [C2] [C3] [BOS] i-0 o-0 p-60 d-3 [EOS]"
    batch = collate([row(phrase), row([9])], [labels(phrase), labels([9])])
    assert batch["tokens"].shape == batch["mask"].shape == (2, 10)
    assert batch["tokens"][1].tolist() == [13, 14, 15, 16, 1, 9, 0, 5, 5, 5]
    assert batch["mask"].sum(dim=1).tolist() == [10, 7]
    assert batch["labels"].tolist() == [[*phrase, 0], [9, 0, *[IGNORED] * 3]]


@pytest.mark.parametrize("velocity", ["", " v-9"])
def test_long_phrases_end_with_a_whole_note(velocity: str):
    phrase = to_ids("i-0 " + " ".join(f"o-{n} p-60 d-3{velocity}" for n in range(48)))
    size = 4 if velocity else 3
    for limit in range(1, 60):
        kept = fitted(phrase, limit)
        assert len(kept) <= limit
        assert (len(kept) - 1) % size == 0 or not kept
        assert len(kept) > limit - size - 1 or not kept
    ids = row(phrase)
    assert len(ids) <= 128
    assert (ids[-1], labels(phrase)[-1]) == (0, 0)
    assert ids[5:] == labels(phrase)
    assert row(phrase, compat="published")[-1] != 0
    assert fitted(phrase[:10], 10) == phrase[:10]


def test_about_a_third_of_a_bar_is_masked():
    bar = to_ids("i-0 " + " ".join(f"o-{n} p-60 d-3" for n in range(30)) + " b-1")
    generator = np.random.default_rng(0)
    masked = [random_span_masked(bar, generator) for _ in range(200)]
    kept = np.mean([sum(number != 6 for number in ids) / len(bar) for ids in masked])
    # Spans that overlap or that the end cuts mask a little less than 30 %.
    assert 0.68 < kept < 0.78
    assert all(6 in ids for ids in masked)
