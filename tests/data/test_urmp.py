"""Corpus `urmp`, on a miniature in its layout: played notes and clean scores, parts that are heard alone, splits."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus_files import Note, rows, write_notes, write_tones

from midisynth.datasets.corpus import mono_audio
from midisynth.datasets.urmp import Urmp
from midisynth.errors import DataError, UsageError
from midisynth.main import main
from midisynth.music.midi import read_midi

#: Every part plays two notes; in the score they come half a second earlier than they were played.
PITCHES = (57, 64, 69, 72, 76)
SECONDS = 2.0


def played(part: int) -> list[Note]:
    return [(0.5 + 0.1 * part, 1.0, PITCHES[part]), (1.2, 1.7, PITCHES[part] + 2)]


def write_piece(root: Path, name: str) -> None:
    number, title, *codes = name.split("_")
    folder = root / name
    parts = [played(part) for part in range(len(codes))]
    for index, (code, notes) in enumerate(zip(codes, parts, strict=True), start=1):
        end = f"{index}_{code}_{number}_{title}"
        write_tones(folder / f"AuSep_{end}.wav", notes, SECONDS)
        # Nobody plays exactly in tune.
        table = [f"{a}\t{440 * 2 ** ((pitch - 69) / 12) * 1.01:.3f}\t{b - a}\n" for a, b, pitch in notes]
        (folder / f"Notes_{end}.txt").write_text("".join(table))
        (folder / f"F0s_{end}.txt").write_text("0.0\t0.0\n")
    write_tones(folder / f"AuMix_{name}.wav", list(chain.from_iterable(parts)), SECONDS)
    score = [[(onset - 0.5, end - 0.5, pitch) for onset, end, pitch in notes] for notes in parts]
    # Scores call every instrument a piano.
    write_notes(folder / f"Sco_{name}.mid", [(0, False, notes) for notes in score])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "URMP"
    for name in (
        "01_Jupiter_vn_vc",
        "03_Dance_fl_cl",
        "08_Spring_fl_vn",
        "10_March_tpt_sax",
        "12_Spring_vn_vn_vc",
        "26_King_vn_vn_va_vc",
        "39_Jerusalem_vn_vn_va_sax_db",
    ):
        write_piece(root / "Dataset", name)
    (root / "Supplementary_Files").mkdir()
    return root


def test_notes_are_where_they_were_played(root: Path):
    records = {record.id: record for record in Urmp(str(root)).records()}
    quintet = records["39_Jerusalem_vn_vn_va_sax_db"]
    performance = quintet.performance()
    programs = (40, 40, 41, 64, 43)
    expected = [(*note, program, False) for part, program in enumerate(programs) for note in played(part)]
    assert rows(performance) == sorted((round(a, 3), round(b, 3), *rest) for a, b, *rest in expected)
    assert len(set(performance.notes["channel"].tolist())) == 5  # two violins may play one key at once
    audio = quintet.waveform(8000)
    assert audio[:3900].abs().max() == 0
    assert audio[4100:5000].abs().max() > 0.1


def test_scores_get_their_instruments(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["corpora", "urmp", "--root", str(root), "--notes", "score", "--midi", str(tmp_path / "clean")]
    assert main(words) == 0
    assert "6 MIDI files" in capsys.readouterr().out
    score = read_midi(tmp_path / "clean" / "10_March_tpt_sax.mid")
    expected = [
        (onset - 0.5, end - 0.5, pitch, p, False)
        for part, p in ((0, 56), (1, 64))
        for onset, end, pitch in played(part)
    ]
    assert rows(score) == sorted((round(a, 3), round(b, 3), *rest) for a, b, *rest in expected)
    # As in the original: the first track has no notes, every other one those of an instrument.
    assert [np.unique(score.notes["program"][score.notes["track"] == track]).tolist() for track in range(3)] == [
        [],
        [56],
        [64],
    ]
    alto = Urmp(str(root), notes="score", saxophone=65).records()
    assert 65 in next(r for r in alto if r.id == "10_March_tpt_sax").performance().notes["program"]


def test_splits(root: Path):
    published = Urmp(str(root), splits="published").records()
    by_split = {
        s: {r.audio.parent.name[:2] for r in published if r.split == s} for s in ("train", "validation", "test")
    }
    assert by_split == {
        "train": {"03", "08", "10", "26"},
        "validation": {"01", "12", "39"},
        "test": {"01", "12", "39"},
    }
    assert len({record.id for record in published}) == len(published) == 10
    separate = {record.id[:2]: record.split for record in Urmp(str(root)).records()}
    # The piece of 08 is held out as 12; the hash takes King for validation.
    assert separate == {"01": "test", "03": "train", "10": "train", "12": "test", "26": "validation", "39": "test"}


@pytest.mark.parametrize("notes", ["played", "score"])
def test_mixes_of_some_parts(root: Path, notes: str):
    write_piece(root / "Dataset", "44_K515_vn_vn_va_va_vc")
    records = Urmp(str(root), notes=notes, submixes=8).records()
    mixes = [record for record in records if record.stems]
    assert {record.split for record in mixes} == {"train"}
    # Duets have two parts to be heard alone; the quintet has 30 mixes.
    counts = {piece: sum(r.id.startswith(piece) for r in mixes) for piece in ("03", "10", "44")}
    assert counts == {"03": 2, "10": 2, "44": 8}
    assert mixes == [r for r in Urmp(str(root), notes=notes, submixes=8).records() if r.stems]
    other = [r.id for r in Urmp(str(root), notes=notes, submixes=8, seed=1).records() if r.stems]
    assert other != [r.id for r in mixes]
    late = 0.5 if notes == "score" else 0.0
    for record in mixes:
        parts = [int(number) - 1 for number in record.id.partition("-")[2].split("-")]
        assert record.parts == tuple(parts)
        sounding = [(round(a - late, 3), round(b - late, 3), pitch) for part in parts for a, b, pitch in played(part)]
        assert [row[:3] for row in rows(record.performance())] == sorted(sounding)
        alone = torch.stack([mono_audio(path, 8000) for path in record.stems])
        assert [path.name.split("_")[1] for path in record.stems] == [str(part + 1) for part in parts]
        assert torch.allclose(record.waveform(8000), alone.sum(0))


def test_it_names_what_is_wrong(root: Path, tmp_path: Path):
    folder = root / "Dataset" / "03_Dance_fl_cl"
    with pytest.raises(DataError, match="no folder such as 01_Jupiter_vn_vc in"):
        Urmp(str(tmp_path)).records()
    with pytest.raises(UsageError, match=r"urmp\.notes: 'midi' is none of played, score"):
        Urmp(str(root), notes="midi")
    (folder / "Notes_2_cl_03_Dance.txt").rename(folder / "Notes_2_ob_03_Dance.txt")
    with pytest.raises(DataError, match=r"03_Dance_fl_cl has no files Notes_2_cl_\*\.txt, where one belongs"):
        Urmp(str(root)).records()
    (folder / "Notes_2_ob_03_Dance.txt").rename(folder / "Notes_2_cl_03_Dance.txt")
    for text, message in (("1 2\n", "cannot be read as onset"), ("0.5 0 1\n", "has no notes, or one without")):
        (folder / "Notes_2_cl_03_Dance.txt").write_text(text)
        with pytest.raises(DataError, match=rf"Notes_2_cl_03_Dance\.txt: {message}"):
            next(r for r in Urmp(str(root)).records() if r.id.startswith("03")).performance()
    write_notes(folder / "Sco_03_Dance_fl_cl.mid", [(0, False, played(0))])
    with pytest.raises(DataError, match=r"Sco_03_Dance_fl_cl\.mid: has 1 tracks with notes for 2 instruments"):
        next(r for r in Urmp(str(root), notes="score").records() if r.id.startswith("03")).performance()
    folder.rename(folder.with_name("03_Dance_fl_kazoo"))
    with pytest.raises(DataError, match="unknown instrument 'kazoo'"):
        Urmp(str(root)).records()
