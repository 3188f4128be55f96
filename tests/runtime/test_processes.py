"""Processes that are killed, work side by side, or run long."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from midisynth_sines import Sines

from midisynth.music.clock import ticks_from_seconds
from midisynth.music.midi import write_midi
from midisynth.music.notes import NOTE_DTYPE, Performance
from midisynth.render import predict

ROOT = Path(__file__).parents[2]
TWO_PROCESSES = ["--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--trainer.devices=2"]


def run(environment: dict[str, str], *command: str | Path, timeout: float = 240) -> subprocess.CompletedProcess:
    words = [sys.executable, *(str(word) for word in command)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=timeout)


def test_killed_runs_leave_no_partial_file(environment: dict[str, str], tmp_path: Path, write_notes):
    """Five kills; `benchmarks/kill_predict.py --kills 50` is the whole of it."""
    for number in range(6):
        write_notes(tmp_path / "in" / f"{number}.mid", [60 + number] * 16)
    options = ["--model=sines", "--model.pause_sec=0.05", "--trainer.accelerator=cpu"]
    script = ROOT / "benchmarks" / "kill_predict.py"
    done = run(environment, script, "--kills", "5", "--", tmp_path / "in", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["partial"] == [] and figures["completed_with_same_bytes"] and figures["outputs"] == 6
    assert figures["after_first_write"] >= 2


def test_two_processes_report_together(environment: dict[str, str], tmp_path: Path, write_notes):
    """Seven files of which one is bad, on whichever process: every output once, one report, exit code 1."""
    for number in range(7):
        write_notes(tmp_path / "in" / f"{number}.mid", [60 + number])
    (tmp_path / "in" / "3.mid").write_bytes(b"")
    predict(Sines(), tmp_path / "in", tmp_path / "alone")
    words = [tmp_path / "in", "--model=sines", f"--output={tmp_path}/out/", *TWO_PROCESSES]
    done = run(environment, "-m", "midisynth", "predict", *words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("6 written, 0 skipped, 1 failed") == 1
    assert done.stdout.count("3.mid: failed: ") == 1
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(made) == [f"{number}.wav" for number in (0, 1, 2, 4, 5, 6)]
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "alone").iterdir()}


def test_a_process_may_get_nothing(environment: dict[str, str], tmp_path: Path, write_notes):
    source = write_notes(tmp_path / "only.mid")
    words = [source, "--model=sines", f"--output={tmp_path}/out/", *TWO_PROCESSES]
    for outcome in ("1 written, 0 skipped, 0 failed", "0 written, 1 skipped, 0 failed"):
        done = run(environment, "-m", "midisynth", "predict", *words, "--skip_existing")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count(outcome) == 1


# Runs in a process of its own, whose largest memory tells what one rendering takes.
MEASURE = """
import json, resource, sys, threading, time
from pathlib import Path
from midisynth_sines import Sines
from midisynth.render import predict
warm, source, out = map(Path, sys.argv[1:])
model = Sines(sample_rate=48000, harmonics=1)
predict(model, warm, out / "warm.wav")
sizes, ended = [], threading.Event()
def watch():
    while not ended.wait(0.02):
        sizes.append(sum(path.stat().st_size for path in out.glob(".*.part") if path.exists()))
watcher = threading.Thread(target=watch)
watcher.start()
report = predict(model, source, out / "measured.wav")
ended.set(); watcher.join()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak": peak, "sizes": sorted(set(sizes)), "audio_sec": report.audio_sec}))
"""


def piano(path: Path, minutes: int) -> Path:
    """2,000 short notes a minute."""
    count = 2000 * minutes
    notes = np.zeros(count, NOTE_DTYPE)
    notes["onset_sec"], notes["duration_sec"] = np.arange(count) * 0.03, 0.03
    notes["pitch"], notes["velocity"] = 40 + np.arange(count) % 40, 80
    write_midi(ticks_from_seconds(Performance(notes, track_names=[""])), path)
    return path


def test_memory_does_not_grow_with_the_length(environment: dict[str, str], tmp_path: Path):
    """10 minutes and 20,000 notes take at most 10 % more memory than 1 minute, and audio appears while rendering."""
    measured = {}
    warm = piano(tmp_path / "warm.mid", 1)
    for minutes in (1, 10):
        folder = tmp_path / str(minutes)
        folder.mkdir()
        done = run(environment, "-c", MEASURE, warm, piano(tmp_path / f"{minutes}.mid", minutes), folder)
        assert done.returncode == 0, done.stderr
        measured[minutes] = json.loads(done.stdout.splitlines()[-1])
        assert measured[minutes]["audio_sec"] == pytest.approx(60 * minutes, abs=1)
    assert measured[10]["peak"] <= 1.1 * measured[1]["peak"]
    assert len(measured[10]["sizes"]) >= 10  # the file was seen growing


REPEAT = """
import json, sys
from midisynth_sines import Sines
from midisynth.render import predict
def resident():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))
model = Sines(harmonics=1)
for round in range(20):
    predict(model, sys.argv[1], sys.argv[2])
before = resident()
for round in range(int(sys.argv[3])):
    assert predict(model, sys.argv[1], sys.argv[2]).written
print(json.dumps(resident() - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
def test_many_short_predictions_do_not_pile_up(environment: dict[str, str], tmp_path: Path, write_notes):
    done = run(environment, "-c", REPEAT, write_notes(tmp_path / "a.mid"), tmp_path / "a.wav", "200")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) <= 20e6
