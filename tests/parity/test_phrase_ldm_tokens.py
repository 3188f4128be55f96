"""REMI-z, key normalisation, corpora and augmentation of PhraseVAE and PhraseLDM, against the original programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midisynth.datasets.pop909 import Pop909
from midisynth.models.phrase_ldm import operations, rows
from midisynth.models.phrase_ldm.arrangements import Arrangement, permuted_bars, permuted_sections, section_subset
from midisynth.models.phrase_ldm.codec import PhraseCodec
from midisynth.models.phrase_ldm.remiz import Bar, bars_from_performance, performance_from_bars
from midisynth.models.phrase_ldm.sections import Section, parse_sections, plan_text, prompt, spans
from midisynth.models.phrase_ldm.texts import bar_text, parse, phrases
from midisynth.models.phrase_ldm.units import Unit, units_of_bars
from midisynth.models.phrase_ldm.vocabulary import BAR, INST, SEP, TOKENS, to_ids, to_text
from midisynth.music.keys import KEY_PROFILES, pitch_class_histogram
from midisynth.music.midi import read_midi
from midisynth.music.notes import Performance


@pytest.fixture(scope="module")
def root(parity_root) -> Path:
    return parity_root("phrase_ldm")


@pytest.fixture(scope="module")
def fixture(root) -> dict[str, Any]:
    return json.loads((root / "tokenization" / "tokenization.json").read_text())


@pytest.fixture(scope="module")
def general(fixture) -> dict[str, Any]:
    return fixture["general"]


@pytest.fixture(scope="module")
def pop909(fixture) -> dict[str, Any]:
    return fixture["pop909"]


def read_bars(path: Path, **options: Any) -> list[Bar]:
    return bars_from_performance(read_midi(path, overlap="fifo"), compat="published", **options)


@pytest.fixture(scope="module")
def bars(root) -> list[Bar]:
    return read_bars(root / "tokenization" / "general.mid")


@pytest.fixture(scope="module")
def raw(root, pop909) -> list[Bar]:
    return read_bars(root / "tokenization" / pop909["raw_midi"])


@pytest.fixture(scope="module")
def normalized(raw) -> list[Bar]:
    return operations.transposed(raw, operations.key_shift(raw))


def plain(bars: list[Bar], names: bool = False) -> list[dict[str, Any]]:
    """Bars in the form of the fixture."""
    return [
        {
            "ts": list(bar.time_signature),
            "tempo": bar.tempo,
            "tracks": [
                {
                    "id": track.name if names else str(track.program),
                    "inst": track.program,
                    "drum": track.program == 128,
                    "avg_pitch": pytest.approx(track.mean_pitch, abs=1e-9),
                    "notes": [list(note) for note in track.notes],
                }
                for track in bar.tracks
            ],
        }
        for bar in bars
    ]


def events(performance: Performance) -> dict[str, Any]:
    """A performance in the form of the fixture; notes of a track sorted."""
    tracks = []
    for index, name in enumerate(performance.track_names):
        notes = performance.notes[performance.notes["track"] == index]
        if len(notes):
            onset, end = notes["onset_tick"], notes["onset_tick"] + notes["duration_tick"]
            columns = np.stack([onset, end, notes["pitch"], notes["velocity"]], axis=1)
            drum = bool(notes["channel"][0] == 9)
            row = {
                "name": name,
                "program": int(notes["program"][0]),
                "is_drum": drum,
                "notes": sorted(columns.tolist()),
            }
            tracks.append(row)
    return {
        "ticks_per_beat": performance.ticks_per_quarter,
        "tempo": [
            [int(row["tick"]), pytest.approx(60e6 / int(row["usec_per_quarter"]), abs=1e-4)]
            for row in performance.tempos
        ],
        "ts": [
            [int(row[name]) for name in ("tick", "numerator", "denominator")] for row in performance.time_signatures
        ],
        "tracks": tracks,
    }


def with_sorted_notes(expected: dict[str, Any]) -> dict[str, Any]:
    tracks = [track | {"notes": sorted(track["notes"])} for track in expected["tracks"]]
    return expected | {"tracks": tracks}


def test_vocabulary(root):
    assert list(TOKENS) == json.loads((root / "tokenization" / "vocab.json").read_text())
    assert to_ids(" ".join(TOKENS)) == list(range(len(TOKENS)))


def test_bars_of_a_midi_file(root, general, bars):
    assert general["bars"] == plain(bars)
    apart = read_bars(root / "tokenization" / "general.mid", multi_instance=True)
    assert general["bars_multi_instance"] == plain(apart, names=True)


def test_texts(general, bars):
    full = [bar_text(bar, time_signature=True, tempo=True, velocity=True, compat="published") for bar in bars]
    assert " ".join(full) == general["remiz_full"]
    assert " ".join(bar_text(bar) for bar in bars) == general["remiz_plain"]
    assert [bar_text(bar, time_signature=True, tempo=True, drums=True) for bar in bars] == general["remiz_drum"]
    assert [[*phrases(bar, drums=True), BAR] for bar in bars] == general["phrases"]
    assert [operations.remi_plus_text(bar, drums=True) for bar in bars] == general["remiplus"]
    assert " ".join(operations.flat_text(bar) for bar in bars) == general["content"]
    with_drums = [bar for bar in bars if any(track.program == 128 for track in bar.tracks)]
    assert [operations.drum_text(bar) for bar in with_drums] == [
        text for text in general["drum_content"] if text != BAR
    ]
    assert " ".join(bar_text(operations.flattened(bar)) for bar in bars) == general["flat"]


def test_what_is_read_off_bars(general, bars):
    for kind, name in (("note", "melody_hi_note"), ("line", "melody_hi_note_dur")):
        melody = [[[n.onset, n.pitch, n.duration] for n in operations.melody(bar, kind)] for bar in bars]
        assert melody == general[name]
    assert [[str(chord) for chord in operations.half_bar_chords(bar)] for bar in bars] == general["chords"]
    assert operations.pitch_range(bars) == general["pitch_range"]
    for steps in (16, 48):
        rolls = [operations.piano_roll(bar, steps) for bar in bars]
        cells = [np.column_stack([*np.nonzero(roll), roll[np.nonzero(roll)]]).tolist() for roll in rolls]
        assert cells == general[f"piano_roll{steps}"]


def test_operations(general, bars):
    assert " ".join(bar_text(bar) for bar in operations.quantized(bars)) == general["quantized16"]
    key, _, _ = operations.key_and_range(bars)
    assert [not key.minor, operations.key_shift(bars)] == general["key"]
    assert operations.key_shift(bars) == general["norm_shift"]
    moved = operations.transposed(bars, general["norm_shift"])
    assert " ".join(bar_text(bar) for bar in moved) == general["normed"]


def test_midi_of_bars(general, bars):
    assert with_sorted_notes(general["roundtrip_events"]) == events(performance_from_bars(bars, compat="published"))


def test_any_text_is_read(fixture):
    for case in fixture["parse"]:
        parsed = parse(case["text"], compat="published").bars
        assert case["bars"] == plain(parsed), case["text"]
        assert " ".join(bar_text(bar) for bar in parsed) == case["back"]
        merged = parse(case["text"], merge_bars=True, compat="published")
        assert len(merged.bars) == case["n_bars_merged"]


def test_key_normalization(root, fixture, pop909, raw, normalized):
    assert KEY_PROFILES.tolist() == fixture["key_profile"]
    notes = np.array([note for bar in raw for note in operations.pitched_notes(bar)])
    histogram = pitch_class_histogram(notes[:, 1], notes[:, 2] * notes[:, 3])
    np.testing.assert_allclose(histogram, pop909["pitch_class_histogram"], atol=1e-9)
    key, _, _ = operations.key_and_range(raw)
    assert {"is_major": not key.minor, "shift": operations.key_shift(raw)} == pop909["key"]
    assert pop909["first_bars_before_norm"] == plain(raw[: len(pop909["first_bars_before_norm"])])
    assert pop909["bars"] == plain(normalized)
    assert pop909["bars"] == plain(read_bars(root / "tokenization" / pop909["norm_midi"]))
    assert with_sorted_notes(pop909["norm_events"]) == events(performance_from_bars(normalized, compat="published"))


def test_corpora(pop909, normalized):
    corpus = pop909["corpus"]
    slots = [to_ids(text) for bar in normalized for text in (*phrases(bar), *[INST] * (3 - len(bar.tracks)), BAR)]

    def lines(unit: Unit) -> list[list[str]]:
        bars = units_of_bars([np.array(ids) for ids in slots], 4, unit, "published")
        return [[to_text(ids) for ids in bar] for bar in bars]

    # The corpora have one empty slot a bar, however many there are.
    assert [line for *bar, end in lines("phrase") for line in (*bar, INST, end)] + [SEP] == corpus["phrase"]
    assert [line for (line,) in lines("bar")] + [SEP] == corpus["bar_multitrack"]
    assert [operations.flat_text(bar) for bar in normalized] == corpus["bar_flat"]
    # There the end of the song is one more bar line.
    assert [line for bar in lines("position") for line in bar] + [BAR] == corpus["position"]
    assert [to_ids(line) for line in corpus["phrase"]] == pop909["phrase_ids"]
    assert [to_text(ids) for ids in pop909["phrase_ids"]] == corpus["phrase"]


def test_slots(root, pop909):
    path = root / "tokenization" / pop909["norm_midi"]
    song = PhraseCodec(compat="published").encode(path)["song"]
    assert song.slots == [text for bar in pop909["ldm_phrases"] for text in bar]
    assert song.layout == pop909["inst_layout"]
    assert song.shift == 0


def test_sections(fixture):
    expected = fixture["sections"]
    for text in (expected["raw"], expected["cleaned"], expected["prompt"]):
        sections = parse_sections(text)
        assert [list(section) for section in sections] == expected["pairs"]
        assert [list(span) for span in spans(sections)] == expected["spans"]
        assert (plan_text(sections), prompt(sections)) == (expected["cleaned"], expected["prompt"])


def test_span_masking_with_the_recorded_draws(root):
    manifest = json.loads((root / "ae" / "manifest.json").read_text())
    for case in manifest["span_masking"]:
        lengths = iter([value for kind, value in case["draws"] if kind == "len"])
        starts = iter([value for kind, value in case["draws"] if kind == "start"])
        bar = to_ids(case["text"])
        masked = rows.span_masked(bar, lengths.__next__, lambda below, starts=starts: next(starts))
        assert to_text(rows.row(masked, queries=0, max_tokens=1000)) == case["masked"]
        assert to_text(rows.labels(bar, queries=0, max_tokens=1000)) == case["target"]
        assert next(lengths, None) is None, "a span was not masked"
        assert next(starts, None) is None


def test_rows_of_both_stages(root):
    for stage in json.loads((root / "ae" / "manifest.json").read_text())["stages"].values():
        queries = stage["n_compress_tokens"]
        for text, target in zip(stage["inputs"], stage["targets"], strict=True):
            phrase = to_ids(target)[:-1]
            assert to_text(rows.labels(phrase, queries)) == target
            if queries:
                assert to_text(rows.row(phrase, queries)) == text


def test_arrangements(root):
    """What the original drew is an arrangement that ours can draw, too: the same parts under the same limits."""
    manifest = json.loads((root / "latent_dataset" / "manifest.json").read_text())
    max_bars, slots = manifest["max_len"] // 4, 4
    for index, song in enumerate(manifest["songs"].values()):
        sections = [Section(*pair) for pair in song["sections"]]
        assert prompt(sections) == manifest["prompts"][index]
        generator = np.random.default_rng(index)
        for name, published in manifest["augmentations"].items():
            if str(index) not in published:
                continue
            expected = published[str(index)]
            for _ in range(20):
                if name == "phrase_permute":
                    ours = permuted_sections(sections, max_bars, generator)
                elif name == "phrase_subset":
                    ours = section_subset(sections, generator)
                else:
                    ours = permuted_bars(song["n_bars"], max_bars, generator)
                _check_arrangement(name, ours, sections, song["n_bars"], max_bars)
                assert len(ours.rows(slots)) <= manifest["max_len"]
            theirs = tuple(row // slots for row in expected["source_rows"][::slots])
            assert Arrangement(theirs).rows(slots).tolist() == expected["source_rows"]
            _check_bars(name, theirs, sections, song["n_bars"], max_bars)


def _check_arrangement(name: str, ours: Arrangement, sections: list[Section], bars: int, max_bars: int) -> None:
    _check_bars(name, ours.bars, sections, bars, max_bars)
    if name == "bar_permute":
        assert not ours.sections
    else:
        assert sum(section.bars for section in ours.sections) == len(ours.bars)


def _check_bars(name: str, order: tuple[int, ...], sections: list[Section], bars: int, max_bars: int) -> None:
    """Whole sections or bars, and no more of them than there is room for."""
    places = [tuple(range(start, end)) for _, start, end in spans(sections)]
    if name == "bar_permute":
        assert len(order) == max(bars, max_bars)
        assert set(np.bincount(order, minlength=bars)) <= {max_bars // bars, -(-max_bars // bars)}
        return
    starts = {place[0]: place for place in places}
    parts, rest = [], order
    while rest:
        place = starts[rest[0]]
        assert rest[: len(place)] == place
        parts.append(place)
        rest = rest[len(place) :]
    if name == "phrase_subset":
        assert (parts[0], parts[-1]) == (places[0], places[-1])
        assert parts == [place for place in places if place in parts]
    else:
        assert set(parts) == set(places)
        assert bars <= len(order) <= max_bars


@pytest.fixture
def song083(root, tmp_path) -> Pop909:
    """Song 083 in the layout of POP909 and of its structure labels."""
    sources = root / "sources"
    if not sources.is_dir():
        pytest.skip(
            "the sources of the fixtures may not be given away; MIDISYNTH_PARITY names the folder that has them"
        )
    folder = tmp_path / "POP909" / "083"
    folder.mkdir(parents=True)
    for source, name in (
        ("pop909_083.mid", "083.mid"),
        ("pop909_083_beat_midi.txt", "beat_midi.txt"),
        ("dai_083_melody.txt", "melody.txt"),
        ("dai_083_human_label1.txt", "human_label1.txt"),
    ):
        shutil.copy(sources / source, folder / name)
    (folder / "chord_midi.txt").write_text("")
    return Pop909(str(tmp_path), structure=str(tmp_path))


def test_pop909_from_public_files_is_what_the_authors_made_of_it(root, fixture, song083):
    (record,) = song083.records()
    sections = parse_sections(record.metadata["sections"])
    assert [f"{kind}-{bars}" for kind, bars in sections] == json.loads(
        (root / "sources/song083_sections.json").read_text()
    )
    song = PhraseCodec(crowded="reject").song(record.performance(), sections)
    published = read_bars(root / "sources" / "song083_published_normalised.mid")

    def notes(bars: list[Bar]) -> set[tuple[int, ...]]:
        return {
            (number, track.program, note.onset, note.pitch, note.duration)
            for number, bar in enumerate(bars)
            for track in bar.tracks
            for note in track.notes
        }

    assert len(notes(published)) == 1828
    assert not notes(published) - notes(song.bars)
    # Eight notes that the authors lost.
    assert sorted(program for _, program, *_ in notes(song.bars) - notes(published)) == [0] * 4 + [25] * 4
    expected = fixture["song083"]
    assert (len(song.bars), song.tempo, song.shift) == (expected["n_bars"], expected["tempos"][0], 4)
    theirs = PhraseCodec(compat="published").encode(root / "sources" / "song083_published_normalised.mid")["song"]
    assert [text for text in theirs.slots if text != INST] == [text for bar in expected["phrases"] for text in bar]
    assert song.layout == theirs.layout == expected["inst_layout"]
