"""What ships, as a stranger meets it: the command of the README, and what the piano promises."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from midisynth import weights
from midisynth.audio.io import load_audio
from midisynth.checkpoints import load_model
from midisynth.metrics.functional import onset_energy_rise
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.notes import NOTE_DTYPE, Performance
from midisynth.render import default_checkpoint, predict

EXAMPLES = Path(__file__).parents[1] / "examples"
MAX_FILE_BYTES, MAX_FOLDER_BYTES = 16e6, 80e6
#: A note counts as heard where its band energy rises by so much at its onset (dB).
STRUCK_DB = 3.0


def piece(path: Path, seconds: float, notes: int) -> Path:
    """A MIDI file of so many notes in so many seconds, chords all over the keyboard."""
    generator = np.random.default_rng(0)
    table = np.zeros(notes, NOTE_DTYPE)
    ticks = np.sort(generator.integers(0, round((seconds - 1) * 960), notes))
    table["onset_tick"], table["duration_tick"] = ticks, 480
    table["onset_sec"], table["duration_sec"] = ticks / 960, 0.5
    table["pitch"], table["velocity"] = generator.integers(21, 109, notes), generator.integers(20, 110, notes)
    write_midi(Performance(notes=table), path)
    return path


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "midisynth", *map(str, words)], capture_output=True, text=True)


@pytest.mark.parametrize("shipped", weights.shipped(), ids=lambda shipped: shipped.name)
def test_what_ships_is_small_complete_and_loads(shipped: weights.Shipped):
    sizes = [file.stat().st_size for file in shipped.folder.iterdir()]
    assert max(sizes) <= MAX_FILE_BYTES and sum(sizes) <= MAX_FOLDER_BYTES
    card = (shipped.folder / "CARD.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("licence", "## Data", "## Training", "## Measured", "## Weaknesses"))
    assert yaml.safe_load((shipped.folder / "config.yaml").read_text())["sha256"] == shipped.sha256
    model = load_model(shipped.name)
    assert set(shipped.reads) <= set(model.reads) and model.writes == shipped.writes
    assert not model.training


def test_predict_plays_the_example(tmp_path: Path):
    done = command("predict", EXAMPLES / "mozart_k331.mid", "--output", tmp_path / "out.wav")
    assert done.returncode == 0, done.stderr
    summary = r"1 written, 0 skipped, 0 failed; [\d.]+ s of audio in [\d.]+ s \([\d.]+ x real time\)"
    assert re.search(summary, done.stdout)
    performance = read_midi(EXAMPLES / "mozart_k331.mid")
    audio = load_audio(tmp_path / "out.wav", 16000)[0]
    assert performance.end_sec <= len(audio) / 16000 <= performance.end_sec + 10
    assert 0.01 < audio.square().mean().sqrt() < 0.3
    assert (onset_energy_rise(audio, 16000, performance.notes) > STRUCK_DB).mean() > 0.9
    # What sounds is the piece and not anything that moves all the time: elsewhere the same keys do not rise.
    moved = performance.notes.copy()
    moved["onset_sec"] += 0.25 * (np.arange(len(moved)) % 2 + 1)
    assert (onset_energy_rise(audio, 16000, moved) > STRUCK_DB).mean() < 0.6


def test_louder_notes_are_louder(tmp_path: Path):
    notes = np.zeros(4, NOTE_DTYPE)
    notes["onset_tick"], notes["duration_tick"] = np.arange(4) * 1920, 960
    notes["onset_sec"], notes["duration_sec"] = np.arange(4) * 2.0, 1.0
    notes["pitch"], notes["velocity"] = 60, [25, 55, 85, 115]
    write_midi(Performance(notes=notes), tmp_path / "in.mid")
    predict(load_model(default_checkpoint(["in.mid"])), tmp_path / "in.mid", tmp_path / "out.wav")
    audio = load_audio(tmp_path / "out.wav")[0]
    levels = [float(audio[start : start + 16000].square().mean().sqrt()) for start in range(0, 4 * 32000, 32000)]
    assert all(1.3 * low < high for low, high in itertools.pairwise(levels)), levels


def test_the_same_bytes_alone_and_beside_others(tmp_path: Path):
    model = load_model(default_checkpoint(["in.mid"]))
    (tmp_path / "in").mkdir()
    for number, seconds in enumerate((3, 8, 5)):
        piece(tmp_path / "in" / f"{number}.mid", seconds, 10 * seconds)
    predict(model, tmp_path / "in", tmp_path / "together", batch_size=3)
    predict(model, [tmp_path / "in" / f"{number}.mid" for number in (2, 0, 1)], tmp_path / "alone")
    for number in range(3):
        together, alone = (load_audio(tmp_path / run / f"{number}.wav") for run in ("together", "alone"))
        assert torch.equal(together, alone)


MEMORY = """
import resource, sys
from midisynth.checkpoints import load_model
from midisynth.render import predict
report = predict(load_model(sys.argv[1]), sys.argv[2], sys.argv[3])
assert len(report.written) == 1, report
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_piece(tmp_path: Path):
    """Ten minutes and 20,000 notes, against one minute."""
    peaks = []
    for seconds, notes in ((60, 2000), (600, 20000)):
        source = piece(tmp_path / f"{seconds}.mid", seconds, notes)
        words = [sys.executable, "-c", MEMORY, default_checkpoint([str(source)]), source, tmp_path / f"{seconds}.wav"]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] <= 1.1 * peaks[0], peaks
