"""Corpus `slakh`: mixes of stems and their notes, in miniature, and two true tracks where they are at hand."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from corpus_files import Note, rows, write_notes, write_tones

from midisynth.datasets.cache import prepare, prepared
from midisynth.datasets.corpus import mono_audio
from midisynth.datasets.slakh import DRUMS, Slakh
from midisynth.errors import DataError
from midisynth.music.midi import read_midi

RATE = 8000
#: Program, whether there is audio; the second guitar is of the first one's program, the choir never sounds.
STEMS = {
    "S00": (30, True),
    "S01": (DRUMS, True),
    "S02": (1, True),
    "S03": (33, True),
    "S04": (52, False),
    "S05": (30, True),
    "S06": (48, True),
}


def notes_of(stem: str) -> list[Note]:
    index = int(stem[1:])
    return [(0.25 + 0.05 * index, 0.6, 50 + index), (0.8, 1.0, 40 + index)]


def write_track(folder: Path, uuid: str, stems: Mapping[str, tuple[int, bool]] = STEMS, suffix: str = ".flac") -> None:
    """A track; its second stem ends early, as some do."""
    parts, rows = [], {}
    for number, (name, (program, heard)) in enumerate(stems.items()):
        drums = program == DRUMS
        notes = notes_of(name)
        parts.append((0 if drums else program, drums, notes))
        rows[name] = {"program_num": program, "is_drum": drums, "inst_class": "x", "audio_rendered": heard}
        if heard:
            write_tones(folder / "stems" / f"{name}{suffix}", notes, 1.1 if number == 1 else 1.5, RATE)
            write_notes(folder / "MIDI" / f"{name}.mid", [parts[-1]])
    write_tones(
        folder / f"mix{suffix}", [n for name, (_, on) in stems.items() if on for n in notes_of(name)], 1.5, RATE
    )
    write_notes(folder / "all_src.mid", parts)
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"UUID": uuid, "stems": rows, "audio_dir": "stems"}))


def expected_rows(stems: list[str]) -> list[tuple]:
    programs = {stem: STEMS[stem][0] for stem in stems}
    return sorted(
        (round(a, 3), round(b, 3), pitch, program % DRUMS, program == DRUMS)
        for stem, program in programs.items()
        for a, b, pitch in notes_of(stem)
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "slakh"
    write_track(root / "train" / "Track00001", "a")
    write_track(root / "train" / "Track00002", "b", {name: STEMS[name] for name in ("S00", "S02", "S03")})
    write_track(root / "validation" / "Track01501", "c")
    write_track(root / "test" / "Track01876", "d")
    write_track(root / "omitted" / "Track00003", "a")
    return root


def sounding(record) -> list[str]:
    return sorted(path.stem for path in record.stems)


def test_what_sounds_is_what_is_written(root: Path):
    for record in Slakh(str(root)).records():
        if record.stems:
            assert rows(record.performance()) == expected_rows(sounding(record)), record.id
            parts = [mono_audio(path, RATE) for path in record.stems]
            total = torch.zeros(max(map(len, parts)))
            for part in parts:
                total[: len(part)] += part
            assert torch.allclose(record.waveform(RATE), total, atol=1e-6)


def test_mixes(root: Path):
    records = Slakh(str(root)).records()
    train = [record for record in records if record.split == "train"]
    # Five programs sound: 6 mixes of at least four of them, and 15 of the four of Cerberus. Three programs: none.
    assert len(train) == 6 + 15
    assert {record.piece for record in train} == {"a"}
    by_id = {record.id: sounding(record) for record in train}
    assert by_id["Track00001-guitar"] == ["S00", "S05"]
    assert by_id["Track00001-piano-bass-drums"] == ["S01", "S02", "S03"]
    assert by_id["Track00001-piano-guitar-bass-drums"] == ["S00", "S01", "S02", "S03", "S05"]
    assert sorted(map(len, (by_id[f"Track00001-mix{n:02}"] for n in range(6)))) == [4, 5, 5, 5, 5, 6]
    few = Slakh(str(root), submixes=2, cerberus=False).records()
    assert [record.id for record in few if record.split == "train"] == ["Track00001-mix00", "Track00001-mix01"]
    pairs = Slakh(str(root), submixes=99, smallest=3, cerberus=False).records()
    assert sum(record.id.startswith("Track00001") for record in pairs) == 16
    assert sum(record.id.startswith("Track00002") for record in pairs) == 1
    one, same, other = (
        [sounding(record) for record in Slakh(str(root), submixes=3, seed=seed).records() if "-mix" in record.id]
        for seed in (0, 0, 1)
    )
    assert one == same != other


def test_tests_are_heard_whole(root: Path):
    mix, cerberus = sorted(
        (r for r in Slakh(str(root)).records() if r.split == "test"), key=lambda r: r.id, reverse=True
    )
    assert (mix.id, mix.audio.name, mix.stems) == ("Track01876-mix", "mix.flac", ())
    # Not the choir: it is in the MIDI file of the song, but nobody hears it.
    assert rows(mix.performance()) == expected_rows([name for name, (_, heard) in STEMS.items() if heard])
    assert sounding(cerberus) == ["S00", "S01", "S02", "S03", "S05"]


def test_without_midi_files_of_stems(root: Path):
    for folder in root.rglob("MIDI"):
        shutil.rmtree(folder)
    records = {record.id: record for record in Slakh(str(root)).records()}
    assert rows(records["Track00001-piano-bass"].performance()) == expected_rows(["S02", "S03"])
    assert rows(records["Track01876-mix"].performance()) == expected_rows(list(STEMS))


def test_songs_are_read_once(root: Path):
    # As the original lays them out: a MIDI file is in several tracks, some of them in other splits.
    write_track(root / "test" / "Track01877", "a")
    write_track(root / "validation" / "Track01502", "b")
    write_track(root / "train" / "Track00004", "e")
    tracks = {record.id.partition("-")[0] for record in Slakh(str(root)).records()}
    assert tracks == {"Track00001", "Track00004", "Track01501", "Track01876"}


def test_babyslakh(tmp_path: Path):
    for number in range(8):
        write_track(tmp_path / f"Track{number:05}", f"song {number}", suffix=".wav")
    records = Slakh(str(tmp_path)).records()
    split_of: dict[str, str] = {}
    assert all(split_of.setdefault(record.piece, record.split) == record.split for record in records)
    assert len(split_of) == 8
    assert len(set(split_of.values())) > 1


def test_mixes_share_prepared_stems(root: Path, tmp_path: Path):
    records = [record for record in Slakh(str(root)).records() if record.split == "train"]
    cache = tmp_path / "cache"
    seen: list[tuple[int, int]] = []
    assert prepare(records, cache, RATE, workers=1, report=lambda done, total, _: seen.append((done, total))).made == 21
    assert seen == [(number, 6 + 21) for number in range(1, 28)]
    assert len(list(cache.glob("stem-*.npy"))) == len(list(cache.glob("*.npy"))) == 6
    for entry in prepared(records, cache):
        audio, expected = entry.audio(), entry.record.waveform(RATE)
        assert len(audio) == len(expected)
        assert torch.allclose(torch.from_numpy(audio[:]) / 32767, expected, atol=1e-3)
        assert (torch.from_numpy(audio[8000:9999]) / 32767 - expected[8000:9999]).abs().max() < 1e-3
        assert rows(entry.performance()) == rows(entry.record.performance())
    # Stopped after the stems: the second run makes what is missing and nothing else.
    made = {path: path.stat().st_mtime_ns for path in cache.glob("stem-*.npy")}
    lost = sorted(made)[0]
    lost.unlink()
    notes = sorted(cache.glob("*.npz"))
    for path in notes[:5]:
        path.unlink()
    assert prepare(records, cache, RATE, workers=1).made == 5
    assert {path: path.stat().st_mtime_ns for path in cache.glob("stem-*.npy") if path != lost} == {
        path: time for path, time in made.items() if path != lost
    }
    assert not list(cache.glob(".*"))


def test_a_broken_stem_breaks_its_mixes(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (root / "train" / "Track00001" / "stems" / "S06.flac").write_bytes(b"no audio")
    records = [record for record in Slakh(str(root)).records() if record.split == "train"]
    outcome = prepare(records, tmp_path / "cache", RATE, workers=1)
    broken = {record.id for record in records if "S06" in sounding(record)}
    assert {name for name, _ in outcome.failures} == broken
    assert outcome.made == 21 - len(broken) > 0
    assert "S06.flac: cannot be read as audio" in caplog.text
    with pytest.raises(DataError, match=r"slakh/Track00001-mix.*S06\.flac: cannot be read"):
        prepare(records, tmp_path / "other", RATE, workers=1, on_error="stop")


def test_it_names_what_is_wrong(root: Path, tmp_path: Path):
    folder = root / "train" / "Track00001"
    with pytest.raises(DataError, match="no train, validation, test or Track00001 in"):
        Slakh(str(tmp_path)).records()
    (root / "test" / "Track01876" / "mix.flac").unlink()
    with pytest.raises(DataError, match=r"Track01876 has no mix\.flac or mix\.wav"):
        Slakh(str(root)).records()
    shutil.rmtree(folder / "MIDI")
    (folder / "all_src.mid").unlink()
    with pytest.raises(DataError, match=r"Track00001/all_src\.mid is missing, and so is a file in .*MIDI"):
        Slakh(str(root)).records()
    shutil.rmtree(folder / "stems")
    with pytest.raises(DataError, match="stems has none of the stems S00, S01"):
        Slakh(str(root)).records()
    for text in ("stems: {S00: {}}\nUUID: x", "- a list", "a: [", "UUID: x"):
        (folder / "metadata.yaml").write_text(text)
        with pytest.raises(DataError, match=r"Track00001/metadata\.yaml is damaged"):
            Slakh(str(root)).records()
    (folder / "metadata.yaml").unlink()
    with pytest.raises(DataError, match=r"Track00001/metadata\.yaml is missing: a track has"):
        Slakh(str(root)).records()


def test_true_tracks(data_root: Path, tmp_path: Path):
    redux = data_root / "slakh" / "slakh2100_flac_redux"
    records = Slakh(str(redux)).records()
    # Nine programs sound, of more than ten mixes ten are drawn.
    assert len(records) == 10 + 15
    song = read_midi(redux / "train" / "Track00001" / "all_src.mid")
    for record in records:
        notes = record.performance().notes
        assert len(record.waveform(44100)) == 2 * 44100
        programs = {program % DRUMS for program in record.programs}
        assert set(notes["program"].tolist()) == programs
        drums = notes["channel"] == 9
        for program in programs - {0}:
            ours = (notes["program"] == program) & ~drums
            theirs = (song.notes["program"] == program) & (song.notes["channel"] != 9)
            # Strokes of one key at one moment are one note.
            assert ours.sum() == pytest.approx(theirs.sum(), rel=0.01)
        assert 103 not in programs  # its stem, S06, was never rendered
    baby = tmp_path / "babyslakh_16k"
    shutil.copytree(data_root / "slakh" / "babyslakh_16k" / "Track00001", baby / "Track00001")
    assert all(len(record.waveform(16000)) == 2 * 16000 for record in Slakh(str(baby)).records())
