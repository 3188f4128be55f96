"""What ships, as a stranger meets it: the command of the README, and what the piano promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import promises
import pytest
import torch
import yaml

from midisynth import weights
from midisynth.audio.io import load_audio
from midisynth.checkpoints import load_model
from midisynth.metrics.functional import onset_energy_rise
from midisynth.module import MidiModule
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


@pytest.fixture(scope="module")
def piano() -> MidiModule:
    """The default for MIDI files."""
    return load_model(default_checkpoint(["in.mid"]))


@pytest.fixture(scope="module")
def play(piano: MidiModule, tmp_path_factory: pytest.TempPathFactory) -> promises.Play:
    return promises.player(piano, tmp_path_factory.mktemp("promises"))


def test_louder_notes_are_louder(play: promises.Play):
    """Velocities 20, 50, 80, 110 from the bass to the treble."""
    found = promises.loudness(play)
    assert found["velocity_smallest_step_db"] > 0, found
    assert found["velocity_smallest_span_db"] >= 12, found


def test_held_notes_decay(play: promises.Play):
    found = promises.decay(play)
    assert found["held_smallest_fall_db"] > 0, found


def test_silence_is_silent(play: promises.Play):
    """Before the first note, in a long rest, and when the last note has faded."""
    found = promises.silence(play)
    assert max(found.values()) < -60, found


def test_no_seam_is_heard(piano: MidiModule, play: promises.Play):
    """Nowhere does the waveform jump, and where segments meet a held chord goes on."""
    times = promises.seam_times(piano, promises.CHORD_SEC)
    found = promises.seams(play, times, promises.excerpt(EXAMPLES / "mozart_k331.mid", 10.0))
    assert found["seams"] >= 2
    assert max(found["largest_jump_in_chord"], found["largest_jump_in_piece"]) <= 2, found
    assert found["largest_level_step_db"] <= 3, found


@pytest.mark.parametrize("seconds", [20.0, pytest.param(600.0, marks=pytest.mark.slow)])
def test_onsets_do_not_drift(play: promises.Play, seconds: float):
    assert abs(promises.drift(play, seconds)["drift_sec"]) <= promises.FRAME_SEC


def test_the_same_bytes_alone_and_beside_others(piano: MidiModule, tmp_path: Path):
    (tmp_path / "in").mkdir()
    for number, seconds in enumerate((3, 8, 5)):
        piece(tmp_path / "in" / f"{number}.mid", seconds, 10 * seconds)
    predict(piano, tmp_path / "in", tmp_path / "together", batch_size=3)
    predict(piano, [tmp_path / "in" / f"{number}.mid" for number in (2, 0, 1)], tmp_path / "alone")
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
    """Four minutes and 8,000 notes, against half a minute."""
    peaks = []
    for seconds, notes in ((30, 1000), (240, 8000)):
        source = piece(tmp_path / f"{seconds}.mid", seconds, notes)
        words = [sys.executable, "-c", MEMORY, default_checkpoint([str(source)]), source, tmp_path / f"{seconds}.wav"]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] <= 1.1 * peaks[0], peaks
