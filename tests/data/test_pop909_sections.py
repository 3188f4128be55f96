"""Corpus `pop909_sections`: a song of two sections in its layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from midisynth.datasets.corpus import split_by_hash
from midisynth.datasets.pop909_sections import Pop909Sections
from midisynth.errors import DataError, UsageError


def write_section(path: Path, bars: int, cells: dict[str, list[tuple[int, int, int]]]) -> None:
    """A section with cells (sixteenth, pitch, length) by track."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matrices = {name: np.zeros((bars * 16, 128)) for name in ("melody", "bridge", "piano")}
    for name, rows in cells.items():
        for onset, pitch, length in rows:
            matrices[name][onset, pitch] = length
    np.savez(path, chord=np.zeros((bars * 4, 36)), **matrices)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    # Ten sections: their numbers count, not their names.
    write_section(tmp_path / "001" / "10_A2.npz", 2, {"melody": [(17, 62, 2)], "piano": [(16, 40, 16)]})
    write_section(tmp_path / "001" / "9_i1.npz", 1, {"bridge": [(3, 60, 20)], "piano": [(0, 36, 16)]})
    (tmp_path / "001" / "phrase_sections.txt").write_text("i1A2")
    return tmp_path


def test_sections_are_a_song(root: Path):
    (record,) = Pop909Sections(str(root), tempo=60.0).records()
    assert (record.id, record.metadata, record.split) == ("001", {"sections": "i1 A2"}, split_by_hash("001"))
    performance = record.performance()
    notes = performance.notes
    found = zip(*(notes[n].tolist() for n in ("onset_tick", "duration_tick", "pitch", "program")), strict=True)
    assert sorted(found) == [(0, 1920, 36, 0), (360, 2400, 60, 25), (3840, 1920, 40, 0), (3960, 240, 62, 13)]
    assert set(notes["velocity"].tolist()) == {64}
    assert notes["onset_sec"].max() == pytest.approx(3960 / 480)


def test_what_is_wrong_is_named(root: Path):
    with pytest.raises(UsageError, match="0 is not 10 to 400"):
        Pop909Sections(str(root), tempo=0)
    with pytest.raises(DataError, match=r"no files such as .*1_i4\.npz"):
        Pop909Sections(str(root / "001")).records()
    (root / "001" / "9_i1.npz").rename(root / "001" / "9_i4.npz")
    (record,) = Pop909Sections(str(root)).records()
    with pytest.raises(DataError, match=r"melody has the shape \[16, 128\], its name says 4 bars"):
        record.performance()
    (root / "001" / "9_i4.npz").write_bytes(b"PK no")
    with pytest.raises(DataError, match=r"9_i4\.npz: cannot be read as a section with a matrix 'melody'"):
        record.performance()
