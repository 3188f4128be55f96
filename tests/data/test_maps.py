"""Corpus `maps`: both layouts in miniature, and ten true recordings where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from corpus_files import rows, write_notes, write_tones

from midisynth.datasets.maps import Maps
from midisynth.errors import DataError

NOTES = [(0.5, 1.0, 60), (1.0, 1.25, 64)]
EXPECTED = [(0.5, 1.0, 60, 0, False), (1.0, 1.25, 64, 0, False)]
#: Piece and piano; the first piece is on a sampled and on the real piano.
RECORDINGS = (
    ("chpn-p19", "ENSTDkCl"),
    ("chpn-p19", "AkPnBcht"),
    ("alb_esp2", "SptkBGAm"),
    ("scn15_11", "ENSTDkAm"),
    ("mz_330_1", "StbgTGd2"),
)


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    root = tmp_path / "MAPS"
    for piece, piano in RECORDINGS:
        path = root / piano / "MUS" / f"MAPS_MUS-{piece}_{piano}.wav"
        write_tones(path, NOTES, 1.5)
        write_notes(path.with_suffix(".mid"), [(0, False, NOTES)])
        path.with_suffix(".txt").write_text("OnsetTime\tOffsetTime\tMidiPitch\n0.5\t1.0\t60\n1\t1.25\t64\n")
        # Chords and single notes lie beside the music.
        write_tones(root / piano / "ISOL" / "NO" / f"MAPS_ISOL_NO_F_S0_M23_{piano}.wav", NOTES, 0.1)
    return root


@pytest.fixture
def passed_around(tmp_path: Path) -> Path:
    root = tmp_path / "maps" / "MAPS"
    (root / "tsv" / "matched").mkdir(parents=True)
    for piece, piano in RECORDINGS:
        write_tones(root / "flac" / f"MAPS_MUS-{piece}_{piano}.flac", NOTES, 1.5)
        table = "# onset,offset,note,velocity\n0.5 1.0 60.0 68.0\n1.0 1.25 64.0 57.0\n"
        (root / "tsv" / "matched" / f"MAPS_MUS-{piece}_{piano}.tsv").write_text(table)
    return root.parent


def test_both_layouts(unpacked: Path, passed_around: Path):
    one, other = Maps(str(unpacked)).records(), Maps(str(passed_around)).records()
    assert [(r.id, r.piece, r.split) for r in one] == [(r.id, r.piece, r.split) for r in other]
    assert all(rows(record.performance()) == EXPECTED for record in (*one, *other))
    assert other[0].performance().notes["velocity"].tolist() == [68, 57]


def test_tables_where_there_is_no_midi_file(unpacked: Path):
    for path in unpacked.rglob("*.mid"):
        path.unlink()
    assert all(rows(record.performance()) == EXPECTED for record in Maps(str(unpacked)).records())


def test_splits(unpacked: Path):
    published = {record.id.removeprefix("MAPS_MUS-"): record for record in Maps(str(unpacked), "published").records()}
    assert {name for name, record in published.items() if record.split == "test"} == {
        "chpn-p19_ENSTDkCl",
        "scn15_11_ENSTDkAm",
    }
    assert {record.split for record in published.values()} == {"train", "test"}
    separate = Maps(str(unpacked)).records()
    assert {record.id for record in separate} == {
        record.id for name, record in published.items() if name != "chpn-p19_AkPnBcht"
    }
    assert published["alb_esp2_SptkBGAm"].metadata == {"piano": "SptkBGAm"}


def test_it_names_what_is_wrong(unpacked: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no PIANO/MUS/MAPS_MUS-\*\.wav"):
        Maps(str(tmp_path / "empty")).records()
    midi = next(unpacked.glob("SptkBGAm/MUS/*.mid"))
    midi.unlink()
    midi.with_suffix(".txt").write_text("OnsetTime\n1\n")
    broken = next(record for record in Maps(str(unpacked)).records() if record.piece == "alb_esp2")
    with pytest.raises(DataError, match=r"SptkBGAm\.txt: cannot be read as a table of onset, offset and key"):
        broken.performance()
    midi.with_suffix(".txt").unlink()
    with pytest.raises(DataError, match=r"SptkBGAm\.wav has no notes: .*SptkBGAm\.mid is not beside it"):
        Maps(str(unpacked)).records()
    (unpacked / "MAPS_MUS-x.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"MAPS_MUS-x\.wav is not named MAPS_MUS-PIECE_PIANO"):
        Maps(str(unpacked)).records()


def onset_lag_sec(audio: torch.Tensor, onsets_sec: np.ndarray) -> float:
    """By how much the rises of the spectrum (16 kHz, every 5 ms) come after the onsets, -0.2 to 0.2 s."""
    spectrum = torch.stft(audio, 512, 80, window=torch.hann_window(512), return_complex=True).abs().add(1e-3).log()
    rise = spectrum.diff(dim=1).clamp(min=0).sum(0).numpy()
    frames = np.unique((onsets_sec * 200).astype(int))
    frames = frames[(frames > 40) & (frames < len(rise) - 40)]
    lags = np.arange(-40, 41)
    return float(lags[np.argmax([rise[frames + lag].sum() for lag in lags])]) / 200


def test_recordings(data_root: Path):
    records = Maps(str(data_root / "maps")).records()
    assert len(records) == 10
    assert sum(record.split == "test" for record in records) == 9
    audio = [record.waveform(16000) for record in records]
    assert 12 * 60 < sum(map(len, audio)) / 16000 < 13 * 60
    lags = [
        onset_lag_sec(waveform[: 30 * 16000], record.performance().notes["onset_sec"])
        for waveform, record in zip(audio, records, strict=True)
    ]
    # In one, a fast unison, reverberation hides the onsets.
    assert sum(abs(lag) <= 0.03 for lag in lags) >= 9
