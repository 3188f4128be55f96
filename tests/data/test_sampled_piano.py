"""The sampled piano against notes whose pitch, level and length are known; SoundFonts through the real program."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from midisynth.datasets.patterns import from_seconds, random_pattern, single_notes
from midisynth.datasets.sampled_piano import SampledPiano, SoundFontPiano, open_instrument
from midisynth.errors import DataError
from midisynth.music.notes import NOTE_DTYPE, Performance

LAYERS = (4, 8, 12)
RATE = 16000
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def piano(samples: Path) -> SampledPiano:
    return SampledPiano(samples, LAYERS, RATE)


def played(*rows: tuple[float, float, int, int], pedals: list[tuple[float, int]] | None = None) -> Performance:
    """A performance of (onset, duration, pitch, velocity)."""
    notes = np.zeros(len(rows), NOTE_DTYPE)
    for note, row in zip(notes, rows, strict=True):
        note["onset_sec"], note["duration_sec"], note["pitch"], note["velocity"] = row
    return from_seconds(notes, pedals or [])


def level(audio: np.ndarray, start_sec: float, end_sec: float) -> float:
    return float(np.sqrt(np.mean(np.square(audio[round(start_sec * RATE) : round(end_sec * RATE)]))))


@pytest.mark.parametrize("key", [21, 22, 45, 60, 61, 62, 69, 107, 108])
def test_pitch_of_recorded_and_neighbouring_keys(piano: SampledPiano, key: int):
    note = piano.note(key, 64)
    spectrum = np.abs(np.fft.rfft(note * np.hanning(len(note)), 8 * len(note)))
    measured = np.argmax(spectrum) * RATE / (8 * len(note))
    assert 1200 * abs(np.log2(measured / (440 * 2 ** ((key - 69) / 12)))) < 5  # cents


@pytest.mark.parametrize("velocity", [30, 64, 100])
def test_onsets_are_on_time_whatever_the_recording(piano: SampledPiano, velocity: int):
    for key in (40, 61, 80):
        audio = piano.render(played((0.5, 0.5, key, velocity))).numpy()
        first = np.argmax(np.abs(audio) > 0.1 * np.abs(audio).max()) / RATE
        assert first == pytest.approx(0.5, abs=0.005)


def test_loudness_rises_with_velocity_throughout(piano: SampledPiano):
    for key in (21, 50, 69, 100):
        loudness = [level(piano.note(key, velocity), 0, 0.4) for velocity in range(1, 128)]
        assert all(np.diff(loudness) > 0)
        assert loudness[95] / loudness[31] == pytest.approx(9, rel=0.05)  # the recorded levels of layers 12 and 4


def test_loudness_rises_even_where_recordings_do_not(samples: Path, tmp_path: Path):
    """Layers 4 and 12 swapped: the softest recording is of the loudest strokes."""
    for layer, other in ((4, 12), (12, 4)):
        folder = tmp_path / f"piano-velocity{layer}" / "audio"
        folder.mkdir(parents=True)
        for file in samples.rglob(f"*v{other}.ogg"):
            shutil.copy(file, folder / file.name.replace(f"v{other}", f"v{layer}"))
    swapped = SampledPiano(tmp_path, (4, 12), RATE)
    loudness = [level(swapped.note(60, velocity), 0, 0.4) for velocity in range(1, 128)]
    assert all(np.diff(loudness) > 0)


def test_release_pedal_and_restrike(piano: SampledPiano):
    short = piano.render(played((0.0, 0.5, 69, 90))).numpy()
    assert level(short, 0.6, 0.65) < 0.1 * level(short, 0.4, 0.45)
    assert len(short) / RATE == pytest.approx(0.85, abs=0.01)
    held = piano.render(played((0.0, 0.5, 69, 90), pedals=[(0.2, 127), (1.2, 0)])).numpy()
    assert level(held, 0.6, 0.65) == pytest.approx(level(short, 0.4, 0.45) * np.exp(-0.2), rel=0.02)
    twice = piano.render(played((0.0, 1.0, 69, 90), (0.5, 0.5, 69, 90))).numpy()
    alone = piano.render(played((0.5, 0.5, 69, 90))).numpy()
    assert level(twice, 0.8, 0.95) == pytest.approx(level(alone, 0.8, 0.95), rel=0.01)


def test_drums_and_foreign_keys_are_silent(piano: SampledPiano):
    performance = played((0.0, 0.5, 10, 90), (0.0, 0.5, 120, 90), (0.1, 0.5, 60, 90))
    performance.notes["channel"][2] = 9
    assert piano.render(performance).abs().max() == 0
    assert len(piano.render(Performance())) > 0


def test_cache_holds_the_same_notes(samples: Path, piano: SampledPiano, tmp_path: Path):
    performance = random_pattern(np.random.default_rng(0), 5)
    for _ in range(2):
        cached = SampledPiano(samples, LAYERS, RATE, tmp_path / "cache")
        assert np.array_equal(cached.render(performance), piano.render(performance))
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".npy", ".npy"]


def test_missing_layers_say_how_to_get_them(samples: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"npm install --prefix .* @audio-samples/piano-velocity5"):
        SampledPiano(samples, (4, 5))
    with pytest.raises(DataError, match="layers of a sampled piano are 1 to 16"):
        SampledPiano(samples, (4, 17))
    folder = tmp_path / "piano-velocity4" / "audio"
    folder.mkdir(parents=True)
    shutil.copy(next(samples.rglob("A4v4.ogg")), folder)
    with pytest.raises(DataError, match="no sample within a semitone of key 21"):
        SampledPiano(tmp_path, (4,))


@pytest.mark.skipif(
    "MIDISYNTH_SALAMANDER" not in os.environ, reason="MIDISYNTH_SALAMANDER is not set: folder of Salamander's samples"
)
def test_real_piano(tmp_path: Path):
    piano = SampledPiano(os.environ["MIDISYNTH_SALAMANDER"], cache_dir=tmp_path)
    for key in range(21, 109, 3):
        loudness = [level(piano.note(key, velocity), 0, 0.5) for velocity in range(1, 128)]
        assert all(np.diff(loudness) > 0)
    performances = [random_pattern(np.random.default_rng(seed), 30) for seed in range(10)]
    audio = [piano.render(performance) for performance in performances]
    assert max(float(a.abs().max()) for a in audio) < 1.5


def sound_font() -> Path:
    """The font in pretty_midi's wheel; a skip where it, or fluidsynth, is not there."""
    spec = find_spec("pretty_midi")
    font = Path(spec.origin).parent / "TimGM6mb.sf2" if spec and spec.origin else None
    if font is None or not font.is_file():
        pytest.skip("pretty_midi comes without its SoundFont")
    if shutil.which("fluidsynth") is None:
        pytest.skip("the program fluidsynth is not installed")
    return font


def test_sound_font():
    instrument = open_instrument(sound_font(), RATE)
    audio = instrument.render(single_notes(np.array([60, 72]), np.array([100, 100]), 1.0, 0.5)).numpy()
    assert 1.5 < len(audio) / RATE < 10
    assert level(audio, 0.05, 0.3) > 0.005
    assert level(audio, 1.05, 1.3) > 10 * level(audio, 0.9, 0.98)


def test_sound_font_without_file_or_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match="no such SoundFont"):
        open_instrument(tmp_path / "absent.sf2", RATE)
    (tmp_path / "font.sf3").write_bytes(b"")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="needs the program fluidsynth"):
        SoundFontPiano(tmp_path / "font.sf3")


def test_damaged_sound_font(tmp_path: Path):
    sound_font()
    (tmp_path / "font.sf2").write_bytes(b"not a font")
    with pytest.raises(DataError, match=r"font\.sf2: fluidsynth failed"):
        SoundFontPiano(tmp_path / "font.sf2").render(single_notes(np.array([60]), np.array([100]), 1.0, 0.5))
