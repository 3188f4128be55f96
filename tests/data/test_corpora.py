"""Corpora `folder`, `maestro` and `rendered`: records, splits, and messages that name what is missing."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from midisynth.datasets.corpus import split_by_hash
from midisynth.datasets.folder import Folder
from midisynth.datasets.maestro import Maestro
from midisynth.datasets.rendered import Rendered, Variation, vary
from midisynth.errors import DataError, UsageError
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.pedal import extend_by_pedal
from midisynth.registry import open_corpus

ROOT = Path(__file__).resolve().parents[2]
CLIPS = ROOT / "examples" / "data"
RATE = 16000
LAYERS = (4, 8, 12)


def onset_energy_ratio(record) -> float:
    """Mean energy after the onsets of a record over that just before, where nothing else starts."""
    audio, onsets = record.waveform(RATE).numpy(), np.unique(record.performance().notes["onset_sec"].round(3))
    alone = onsets[1:][np.diff(onsets) > 0.12]
    after = [np.square(audio[round(t * RATE) : round((t + 0.05) * RATE)]).mean() for t in alone]
    before = [np.square(audio[round((t - 0.05) * RATE) : round(t * RATE)]).mean() for t in alone]
    assert len(alone) > 5
    return float(np.median(np.array(after) / np.array(before)))


def test_split_by_hash_keeps_shares():
    splits = [split_by_hash(f"piece {number}", validation=0.2, test=0.1) for number in range(2000)]
    assert splits.count("validation") / 2000 == pytest.approx(0.2, abs=0.03)
    assert splits.count("test") / 2000 == pytest.approx(0.1, abs=0.03)
    assert splits == [split_by_hash(f"piece {number}", validation=0.2, test=0.1) for number in range(2000)]


def test_folder_reads_the_examples():
    records = open_corpus("folder", {"root": str(CLIPS)}).records()
    assert [(r.split, r.piece) for r in records] == [
        ("test", "Chopin_op10_no3_p09_012000ms"),
        ("train", "Chopin_op38_p02_004000ms"),
        ("validation", "Chopin_op10_no3_p09_012000ms"),
    ]
    for record in records:
        assert len(record.waveform(RATE)) == 10 * RATE
        assert onset_energy_ratio(record) > 1.3


def test_folder_splits_by_piece_and_minds_neither_case_nor_depth(tmp_path: Path):
    clip = CLIPS / "train" / "Chopin_op38_p02_004000ms"
    for number in range(30):
        for take in "ab":
            folder = tmp_path / f"disc{number % 3}"
            folder.mkdir(exist_ok=True)
            shutil.copy(clip.with_suffix(".flac"), folder / f"song{number}_{take}.FLAC")
            shutil.copy(clip.with_suffix(".midi"), folder / f"song{number}_{take}.Mid")
    (tmp_path / "disc0" / "without_audio.mid").write_bytes(b"")
    records = Folder(str(tmp_path), piece_pattern=r"(song\d+)_", validation=0.3, test=0.3).records()
    assert len(records) == 60
    assert len({record.id for record in records}) == 60
    split_of = {}
    for record in records:
        assert split_of.setdefault(record.piece, record.split) == record.split
    assert set(split_of.values()) == {"train", "validation", "test"}


def test_folder_of_midi_files_alone(tmp_path: Path):
    clip = CLIPS / "train" / "Chopin_op38_p02_004000ms"
    (tmp_path / "test").mkdir()
    shutil.copy(clip.with_suffix(".midi"), tmp_path / "a.mid")
    shutil.copy(clip.with_suffix(".midi"), tmp_path / "test" / "b.midi")
    shutil.copy(clip.with_suffix(".flac"), tmp_path / "a.flac")
    records = Folder(str(tmp_path), audio=False).records()
    assert [(record.id, record.audio) for record in records] == [("a", None), ("test_b", None)]
    assert records[1].split == "test"
    (tmp_path / "test" / "b.midi").unlink()
    with pytest.raises(DataError, match="no MIDI file"):
        Folder(str(tmp_path / "test"), audio=False).records()


def test_folder_names_what_is_wrong(tmp_path: Path):
    with pytest.raises(DataError, match="no such folder"):
        Folder(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="no audio file"):
        Folder(str(tmp_path)).records()
    clip = CLIPS / "train" / "Chopin_op38_p02_004000ms"
    shutil.copy(clip.with_suffix(".flac"), tmp_path / "lonely.flac")
    with pytest.raises(DataError, match=r"lonely\.flac has no MIDI file of the same name \(lonely\.mid\)"):
        Folder(str(tmp_path)).records()
    shutil.copy(clip.with_suffix(".midi"), tmp_path / "lonely.mid")
    assert len(Folder(str(tmp_path)).records()) == 1
    shutil.copy(clip.with_suffix(".flac"), tmp_path / "lonely.ogg")
    with pytest.raises(DataError, match="have one name"):
        Folder(str(tmp_path)).records()
    with pytest.raises(DataError, match="is not a regular expression with a group"):
        Folder(str(CLIPS), piece_pattern="(").records()
    with pytest.raises(UsageError, match=r"no option 'piece_patern'; did you mean 'piece_pattern'\?"):
        open_corpus("folder", {"root": str(CLIPS), "piece_patern": "x"})


def as_columns(rows: list[dict]) -> dict:
    return {name: {str(number): row[name] for number, row in enumerate(rows)} for name in rows[0]}


@pytest.mark.parametrize("kind", ["csv", "v1", "list", "columns"])
def test_maestro_reads_every_version_of_its_table(kind: str, tmp_path: Path):
    shutil.copytree(CLIPS, tmp_path / "data")
    root = tmp_path / "data"
    expected = Maestro(str(root)).records()
    if kind == "v1":
        (root / "metadata.csv").rename(root / "maestro-v1.0.0.csv")
    elif kind != "csv":
        lines = (root / "metadata.csv").read_text(encoding="utf-8").splitlines()
        rows = list(csv.DictReader(lines))
        version = "v2.0.0" if kind == "list" else "v3.0.0"
        table = rows if kind == "list" else as_columns(rows)
        (root / f"maestro-{version}.json").write_text(json.dumps(table), encoding="utf-8")
        (root / "metadata.csv").unlink()
    records = Maestro(str(root)).records()
    assert [(r.id, r.split, r.piece) for r in records] == [(r.id, r.split, r.piece) for r in expected]
    assert {r.split for r in records} == {"train", "validation", "test"}
    assert records[0].metadata["composer"] == "Frédéric Chopin"
    assert all(onset_energy_ratio(record) > 1.3 for record in records)


def test_maestro_names_what_is_wrong(tmp_path: Path):
    with pytest.raises(DataError, match=r"no maestro-v\*\.json"):
        Maestro(str(tmp_path))
    shutil.copytree(CLIPS, tmp_path / "data")
    root = tmp_path / "data"
    (root / "test" / "Chopin_op10_no3_p09_012000ms.midi").unlink()
    with pytest.raises(DataError, match=r"Chopin_op10_no3_p09_012000ms\.midi is missing \(1 of the 6 files"):
        Maestro(str(root)).records()
    for text, message in (
        ("{", "is damaged"),
        ("[]", "has no rows"),
        ('[{"split": "train"}]', "has no column 'canonical_composer'"),
        ("3", "neither a list of records nor a table of columns"),
    ):
        (root / "table.json").write_text(text)
        with pytest.raises(DataError, match=message):
            Maestro(str(root), table="table.json").records()
    with pytest.raises(DataError, match=r"absent\.json cannot be read"):
        Maestro(str(root), table="absent.json").records()
    table = (root / "metadata.csv").read_text(encoding="utf-8").replace(",validation,", ",dev,")
    (root / "metadata.csv").write_text(table, encoding="utf-8")
    with pytest.raises(DataError, match="row 1: split 'dev' is none of train, validation, test"):
        Maestro(str(root)).records()


def test_maestro_itself(data_root: Path):
    (record,) = Maestro(str(data_root / "maestro")).records()
    assert record.split in ("train", "validation", "test")
    assert len(record.waveform(RATE)) == 2 * RATE
    assert 690 < record.performance().end_sec < 720
    with pytest.raises(DataError, match="is missing"):
        Maestro(str(data_root / "maestro"), table="maestro-v3.0.0-sample.csv").records()
    clips = Maestro(str(data_root / "rendered_piano")).records()
    assert [sum(r.split == split for r in clips) for split in ("train", "validation", "test")] == [12, 6, 6]


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Performances of two pieces, one with a late start, and files that have nothing to play."""
    folder = tmp_path_factory.mktemp("music")
    shutil.copy(ROOT / "examples" / "mozart_k331.mid", folder / "mozart_p01.mid")
    late = read_midi(ROOT / "examples" / "mozart_k331.mid")
    for table, time, tick in ((late.notes, "onset_sec", "onset_tick"), (late.controls, "time_sec", "tick")):
        table[time] += 90
        table[tick] += 90 * 2 * late.ticks_per_quarter  # the file is at 120 bpm
    write_midi(late, folder / "mozart_p02.mid")
    shutil.copy(ROOT / "examples" / "bach.mid", folder / "bach.MID")
    shutil.copy(CLIPS / "train" / "Chopin_op38_p02_004000ms.midi", folder / "chopin_p02.midi")
    (folder / "broken.mid").write_bytes(b"MThd")
    return folder


def rendered(music: Path, samples: Path, **options) -> Rendered:
    return Rendered(str(music), str(samples), LAYERS, piece_pattern=r"^(.*?)_p\d\d", **options)


def test_rendered_holds_pieces_out(music: Path, samples: Path):
    records = rendered(music, samples, clips=40, test_pieces=["mozart_p02*"], validation_pieces=["bach"]).records()
    by_split = {s: [r for r in records if r.split == s] for s in ("train", "validation", "test")}
    assert [r.id for r in by_split["test"]] == ["mozart_p01", "mozart_p02"]
    assert [r.id for r in by_split["validation"]] == ["bach"]
    assert len(by_split["train"]) == 40
    assert {r.piece for r in by_split["train"] if r.midi} == {"chopin"}
    assert 5 < sum(r.midi is None for r in by_split["train"]) < 25
    assert len(rendered(music, samples, clips=1, test_pieces=["mozart*"], performances=1).records()) == 2


def test_rendered_clips_are_always_the_same(music: Path, samples: Path):
    options = {"clips": 6, "clip_seconds": 4.0, "test_pieces": ["bach*"]}
    first, again = (rendered(music, samples, **options).records() for _ in range(2))
    other = rendered(music, samples, **options, seed=1).records()
    for record, same in zip(first, again, strict=True):
        assert torch.equal(record.waveform(RATE), same.waveform(RATE))
        assert np.array_equal(record.performance().notes, same.performance().notes)
    assert any(len(a.waveform(RATE)) != len(b.waveform(RATE)) for a, b in zip(first[1:], other[1:], strict=True))


def test_rendered_clips_sound_where_their_notes_are(music: Path, samples: Path):
    records = rendered(music, samples, clips=30, clip_seconds=5.0, test_pieces=["bach*", "mozart*"]).records()
    for record in records:
        performance = record.performance()
        assert len(performance.notes) > 0
        audio = record.waveform(RATE)
        if record.split == "train":
            assert performance.end_sec <= 5.0 + 1e-6
        # A low note fades for longer, and a high one rings on.
        assert 0.34 < len(audio) / RATE - extend_by_pedal(performance).end_sec < 1.6
        assert performance.notes["onset_sec"].min() < 5.0
        sounding = audio.abs() > 1e-3
        assert sounding[: 5 * RATE].any()
    late = next(record for record in records if record.id == "mozart_p02")
    early = next(record for record in records if record.id == "mozart_p01")
    assert late.performance().end_sec == pytest.approx(early.performance().end_sec, abs=0.2)


def test_rendered_exercises_replace_their_share_of_the_patterns(music: Path, samples: Path):
    options = {"clips": 40, "clip_seconds": 4.0, "patterns": 0.7, "test_pieces": ["bach*"]}
    without, half, all_ = (
        [r for r in rendered(music, samples, exercises=share, **options).records() if r.split == "train"]
        for share in (0.0, 0.5, 1.0)
    )
    same = [np.array_equal(a.performance().notes, b.performance().notes) for a, b in zip(without, half, strict=True)]
    generated = [record.midi is None for record in without]
    assert all(equal for equal, made in zip(same, generated, strict=True) if not made)
    assert 0.2 < np.mean([not equal for equal, made in zip(same, generated, strict=True) if made]) < 0.8
    assert not any(
        np.array_equal(a.performance().notes, b.performance().notes)
        for a, b in zip(without, all_, strict=True)
        if a.midi is None
    )


def test_rendered_sound_is_what_its_options_say(music: Path, samples: Path):
    def clip(**options) -> torch.Tensor:
        records = rendered(music, samples, clips=1, clip_seconds=4.0, patterns=1.0, test_pieces=["*"], **options)
        return next(r for r in records.records() if r.split == "train").waveform(RATE)

    plain, stereo = clip(), clip(channels=2)
    assert stereo.shape == (2, len(plain))
    assert torch.allclose(stereo.mean(dim=0), plain, atol=2e-4)
    for options in ({"release": False}, {"resonance_db": None}, {"resonance_db": -20.0}):
        other = clip(**options)
        length = min(len(other), len(plain))
        assert not torch.equal(other[:length], plain[:length]), options


def test_variation_stays_in_its_ranges():
    performance = read_midi(ROOT / "examples" / "mozart_k331.mid")
    variation = Variation(8.0, 3, 0.2, (0.8, 1.2), 5, pedal_removed=0.0, pedal_added=0.0)
    shifts, starts, velocities = set(), set(), set()
    for seed in range(60):
        clip = vary(performance, variation, np.random.default_rng(seed))
        assert clip.notes["onset_sec"].min() >= 0
        assert clip.end_sec <= 8.0 + 1e-9
        # The theme never leaves the keyboard, so all notes of a clip move alike.
        source = performance.notes["pitch"].astype(int).tolist()
        made = clip.notes["pitch"].astype(int).tolist()
        possible = [s for s in range(-3, 4) if sorted({p - s for p in made} - set(source)) == []]
        assert possible
        shifts.update(possible)
        starts.add(round(float(clip.notes["onset_sec"].min()), 2))
        velocities.update(clip.notes["velocity"].tolist())
    assert shifts == set(range(-3, 4))
    assert len(starts) > 10
    assert max(velocities) <= 1.2 * performance.notes["velocity"].max() + 5.5
    assert min(velocities) >= 0.8 * performance.notes["velocity"].min() - 5.5


def test_pedal_of_a_clip_is_that_of_the_file_or_another():
    performance = read_midi(ROOT / "examples" / "mozart_k331.mid")

    def sustained(pedal_removed: float, pedal_added: float) -> float:
        """Seconds that the pedal adds to the notes of twenty clips."""
        variation = Variation(8.0, 0, 0.0, (1, 1), 0, pedal_removed, pedal_added)
        clips = [vary(performance, variation, np.random.default_rng(seed)) for seed in range(20)]
        lengths = [(extend_by_pedal(c).notes["duration_sec"].sum(), c.notes["duration_sec"].sum()) for c in clips]
        return sum(long - short for long, short in lengths)

    assert sustained(1.0, 0.0) == pytest.approx(0, abs=1)  # a stroke may cut what is still held
    assert sustained(0.0, 0.0) > 5
    assert sustained(0.0, 1.0) > 100


def test_rendered_names_what_is_wrong(music: Path, samples: Path, tmp_path: Path):
    with pytest.raises(DataError, match="sound: no such file or folder"):
        Rendered(str(music), str(tmp_path / "absent"))
    with pytest.raises(DataError, match="no MIDI file in"):
        rendered(tmp_path, samples).records()
    with pytest.raises(DataError, match="no MIDI file with notes is left for training"):
        rendered(music, samples, test_pieces=["*"]).records()
    with pytest.raises(UsageError, match=r"corpora\.rendered: sound is missing"):
        open_corpus("rendered", {"root": str(music)})
