"""Prepared data: exact, resumable, never half, and honest about broken records."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from midisynth.datasets.cache import corpus_folder, prepare, prepared
from midisynth.datasets.corpus import Record
from midisynth.datasets.folder import Folder
from midisynth.datasets.progress import progress_report
from midisynth.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
CLIP = ROOT / "examples" / "data" / "train" / "Chopin_op38_p02_004000ms"
RATE = 16000


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twelve copies of one clip."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(12):
        for suffix in (".flac", ".midi"):
            shutil.copy(CLIP.with_suffix(suffix), folder / f"{number:02d}{suffix}")
    return folder


def test_prepared_records_are_exact(corpus: Path, tmp_path: Path):
    records = Folder(str(corpus)).records()[:3]
    seen = []
    outcome = prepare(records, tmp_path / "cache", RATE, report=lambda *progress: seen.append(progress))
    assert (outcome.made, outcome.failures) == (3, [])
    assert seen == [(1, 3, "00"), (2, 3, "01"), (3, 3, "02")]
    for entry in prepared(records, tmp_path / "cache"):
        stored, performance = entry.performance(), entry.record.performance()
        for name in ("notes", "controls", "bends", "tempos", "time_signatures", "key_signatures"):
            assert np.array_equal(getattr(stored, name), getattr(performance, name)), name
        assert stored.ticks_per_quarter == performance.ticks_per_quarter
        assert stored.track_names == performance.track_names
        error = entry.audio() / 32767 - entry.record.waveform(RATE).numpy()
        assert np.abs(error).max() <= 0.51 / 32767
        assert isinstance(entry.audio(), np.memmap)
    assert prepare(records, tmp_path / "cache", RATE).made == 0


def test_all_cores_give_what_one_gives(corpus: Path, tmp_path: Path):
    records = Folder(str(corpus)).records()
    for name, workers in (("one", 1), ("two", 2)):
        assert prepare(records, tmp_path / name, RATE, workers=workers).made == 12
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two]
    assert len(one) == 24
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True) if a.suffix == ".npy")


def test_a_changed_file_is_prepared_again(corpus: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    prepare(Folder(str(corpus)).records(), cache, RATE, workers=1)
    shutil.copy(ROOT / "examples" / "data" / "test" / "Chopin_op10_no3_p09_012000ms.midi", corpus / "03.midi")
    records = Folder(str(corpus)).records()
    assert len(prepared(records, cache)) == 11
    assert prepare(records, cache, RATE).made == 1
    assert len(prepared(records, cache)) == 12


def test_broken_records_are_left_out_or_stop(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (corpus / "05.midi").write_bytes(b"MThd")
    (corpus / "07.flac").write_bytes(b"no audio")
    records = Folder(str(corpus)).records()
    outcome = prepare(records, tmp_path / "cache", RATE, workers=2)
    assert outcome.made == 10
    assert sorted(id for id, _ in outcome.failures) == ["05", "07"]
    assert any(str(corpus / "07.flac") in reason for _, reason in outcome.failures)
    assert "folder/05 is left out" in caplog.text
    assert len(prepared(records, tmp_path / "cache")) == 10
    with pytest.raises(DataError, match="folder/05"):
        prepare(records, tmp_path / "strict", RATE, workers=1, on_error="stop")
    with pytest.raises(DataError, match="none of 2 records can be used"):
        prepare([records[5], records[7]], tmp_path / "nothing", RATE)


def test_the_key_tells_what_shapes_the_data(corpus: Path, tmp_path: Path):
    reader = Folder(str(corpus))

    def folder(name: str = "folder", rate: int | None = RATE, **options) -> Path:
        return corpus_folder(tmp_path, reader, name, {"root": "anything", **options}, rate)

    assert folder() == folder(weight=3)
    assert len({folder(), folder(rate=8000), folder(rate=None), folder(test=0.5)}) == 4

    class Newer(Folder):
        version = 2

    assert corpus_folder(tmp_path, Newer(str(corpus)), "folder", {}, RATE) != folder()


KILLED = """
import sys
from midisynth.datasets.cache import prepare
from midisynth.datasets.folder import Folder
if __name__ == "__main__":
    prepare(Folder(sys.argv[1]).records(), __import__("pathlib").Path(sys.argv[2]), 16000, workers=int(sys.argv[3]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_leaves_nothing_half(workers: int, corpus: Path, tmp_path: Path):
    cache, script = tmp_path / "cache", tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(corpus), str(cache), str(workers)]
    job = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        while len(list(cache.glob("*.npz"))) < 3:
            assert job.poll() is None or len(list(cache.glob("*.npz"))) >= 3
            time.sleep(0.002)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    records = Folder(str(corpus)).records()
    ready = prepared(records, cache)
    assert len(ready) >= 3
    for entry in ready:
        assert len(entry.audio()) == 10 * RATE
        assert len(entry.performance().notes) > 10
    assert prepare(records, cache, RATE).made == 12 - len(ready)
    assert len(list(cache.iterdir())) == 24


class Deadly(Record):
    """A record whose decoding takes its process along, as want of memory does."""

    def performance(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_named(corpus: Path, tmp_path: Path):
    records = [*Folder(str(corpus)).records(), Deadly("deadly", "poison", "p", "train")]
    started = time.monotonic()
    with pytest.raises(DataError, match=r"a worker was killed.*poison"):
        prepare(records, tmp_path / "cache", RATE, workers=2)
    assert time.monotonic() - started < 60


def test_progress_is_lines_where_there_is_no_terminal(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    records = Folder(str(corpus)).records()[:5]
    with progress_report("preparing clips") as report:
        prepare(records, tmp_path / "cache", RATE, report=report)
    assert capsys.readouterr().err == "preparing clips: 5/5, 0 s left\n"
    with progress_report("preparing clips", enabled=False) as report:
        prepare(records, tmp_path / "other", RATE, report=report)
    assert capsys.readouterr().err == ""


class Pitches:
    """What a model might keep of a record in place of audio: its pitches, and how often each occurs.

    Args:
        octave: Semitones of an octave.
    """

    def __init__(self, octave: int = 12):
        self.octave = octave
        self.key = {"version": 1, "octave": octave}

    def __call__(self, record: Record) -> dict[str, np.ndarray]:
        pitch = record.performance().notes["pitch"]
        return {"pitch": pitch, "classes": np.bincount(pitch % self.octave, minlength=self.octave)}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_encoder_decides_what_is_kept(workers: int, corpus: Path, tmp_path: Path):
    (corpus / "05.midi").write_bytes(b"MThd")
    records = Folder(str(corpus)).records()
    outcome = prepare(records, tmp_path / "cache", None, workers=workers, encode=Pitches())
    assert (outcome.made, [name for name, _ in outcome.failures]) == (11, ["05"])
    assert len(list((tmp_path / "cache").iterdir())) == 11, "audio is none of its business"
    for entry in prepared(records, tmp_path / "cache"):
        arrays = entry.arrays()
        assert sorted(arrays) == ["classes", "pitch"]
        assert np.array_equal(arrays["pitch"], entry.record.performance().notes["pitch"])
        assert arrays["classes"].sum() == len(arrays["pitch"])
    shutil.copy(CLIP.with_suffix(".midi"), corpus / "05.midi")
    mended = Folder(str(corpus)).records()
    assert prepare(mended, tmp_path / "cache", None, workers=workers, encode=Pitches()).made == 1
    with pytest.raises(DataError, match="folder/05"):
        (corpus / "05.midi").write_bytes(b"MThd")
        prepare(Folder(str(corpus)).records(), tmp_path / "cache", None, encode=Pitches(), on_error="stop")


def test_other_options_of_an_encoder_are_another_cache(corpus: Path, tmp_path: Path):
    reader = Folder(str(corpus))

    class Chroma(Pitches):
        """Another encoder with the same options."""

    folders = {corpus_folder(tmp_path, reader, "folder", {}, None, e) for e in (None, Pitches(), Pitches(7), Chroma())}
    assert len(folders) == 4
    assert corpus_folder(tmp_path, reader, "folder", {}, None, Pitches()) in folders
