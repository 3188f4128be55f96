"""Corpus `guitarset`: one true excerpt, and a miniature of its layout for splits and messages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from corpus_files import rows, write_tones

from midisynth.datasets.guitarset import GuitarSet
from midisynth.errors import DataError, UsageError

REAL = Path(__file__).with_name("guitarset")
TITLES = ("BN1-129-Eb", "Funk3-98-A", "Jazz1-130-D", "Rock2-85-F", "SS3-84-Bb")


def test_an_excerpt():
    (record,) = GuitarSet(str(REAL)).records()
    assert (record.id, record.piece, record.split) == ("03_BN3-119-G_solo", "BN3-119-G", "test")
    assert record.metadata == {"player": "03", "style": "BN", "manner": "solo"}
    assert len(record.waveform(16000)) == 2 * 16000
    annotated = [
        (round(row["time"], 3), round(row["time"] + row["duration"], 3), round(row["value"]), 24, False)
        for annotation in json.loads((REAL / "annotation" / f"{record.id}.jams").read_text())["annotations"]
        if annotation["namespace"] == "note_midi"
        for row in annotation["data"]
    ]
    performance = record.performance()
    assert rows(performance) == sorted(annotated)
    assert len(annotated) == 6
    assert set(performance.notes["velocity"].tolist()) == {120}
    # Its two strings that sound are the last ones.
    assert sorted(np.unique(performance.notes["track"]).tolist()) == [4, 5]
    (steel,) = GuitarSet(str(REAL), program=25).records()
    assert set(steel.performance().notes["program"].tolist()) == {25}


def jams(columns: bool) -> str:
    """A file with the same key on two strings at once, in either form that JAMS knows."""
    strings = [
        {"time": [0.1], "duration": [0.5], "value": [64.3], "confidence": [None]},
        {"time": [0.2], "duration": [0.5], "value": [63.8], "confidence": [None]},
    ]
    if not columns:
        strings = [
            [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)] for data in strings
        ]
    annotations = [{"namespace": "note_midi", "data": data} for data in strings]
    return json.dumps({"annotations": [*annotations, {"namespace": "tempo", "data": []}]})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "GuitarSet"
    (root / "annotation").mkdir(parents=True)
    for player in ("00", "05"):
        for title in TITLES:
            for manner in ("comp", "solo"):
                name = f"{player}_{title}_{manner}"
                write_tones(root / "audio_mono-mic" / f"{name}_mic.wav", [(0.1, 0.7, 64)], 1.0, rate=1000)
                write_tones(root / "audio_mono-pickup_mix" / f"{name}_mix.wav", [(0.1, 0.7, 64)], 1.0, 1000, level=0.2)
                (root / "annotation" / f"{name}.jams").write_text(jams(columns=player == "00"))
    return root


def test_strings_do_not_cut_each_other_short(root: Path):
    from midisynth.music.pedal import extend_by_pedal

    for record in GuitarSet(str(root)).records():
        assert rows(extend_by_pedal(record.performance())) == [(0.1, 0.6, 64, 24, False), (0.2, 0.7, 64, 24, False)]


def test_splits(root: Path):
    separate = GuitarSet(str(root)).records()
    assert len(separate) == 20
    assert {r.piece for r in separate if r.split == "test"} == {"Funk3-98-A", "SS3-84-Bb"}
    assert {r.piece for r in separate if r.split == "validation"} == {"Jazz1-130-D"}
    published = GuitarSet(str(root), splits="published").records()
    held_out = {split: {r.audio for r in published if r.split == split} for split in ("validation", "test")}
    assert held_out["validation"] == held_out["test"]
    assert len(held_out["test"]) == 8
    assert len({r.id for r in published}) == len(published) == 20 + 8
    assert {r.piece for r in published if r.split == "train"} == {"BN1-129-Eb", "Jazz1-130-D", "Rock2-85-F"}


def test_recordings(root: Path):
    mic, pickup = (GuitarSet(str(root), recording=name).records()[0] for name in ("mic", "pickup"))
    assert mic.id == pickup.id
    assert pickup.waveform(1000).max() == pytest.approx(2 * float(mic.waveform(1000).max()), rel=0.01)
    with pytest.raises(UsageError, match=r"guitarset\.recording: 'hex' is none of mic, pickup"):
        GuitarSet(str(root), recording="hex")


def test_it_names_what_is_wrong(root: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"no audio_mono-mic/\*_mic\.wav in"):
        GuitarSet(str(tmp_path)).records()
    shutil.rmtree(root / "audio_mono-mic")
    with pytest.raises(DataError, match=r"no audio_mono-mic/"):
        GuitarSet(str(root)).records()
    labels = root / "annotation" / "00_BN1-129-Eb_comp.jams"
    for text, message in (
        ("{", "is no JAMS file"),
        ('{"annotations": [{}]}', "is no JAMS file with note_midi annotations .*namespace"),
        ('{"annotations": [{"namespace": "note_midi", "data": [{"time": 1}]}]}', "is no JAMS file.*duration"),
        ('{"annotations": [{"namespace": "note_midi", "data": []}]}', "has no notes"),
    ):
        labels.write_text(text)
        record = GuitarSet(str(root), recording="pickup").records()[0]
        with pytest.raises(DataError, match=rf"Eb_comp\.jams: {message}"):
            record.performance()
    labels.unlink()
    with pytest.raises(DataError, match=r"Eb_comp_mix\.wav has no notes: .*Eb_comp\.jams is missing"):
        GuitarSet(str(root), recording="pickup").records()
