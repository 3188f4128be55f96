"""Music for many instruments: every program and drum, ranges, other voices; and a model that trains on it and plays."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from corpus_files import rows, write_notes

from midisynth.datasets.ensembles import DRUM_KEYS, arrange, fold, keys_of, random_ensemble
from midisynth.datasets.rendered import Rendered
from midisynth.errors import DataError
from midisynth.main import main
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.notes import is_drum
from midisynth.music.pedal import extend_by_pedal

ROOT = Path(__file__).resolve().parents[2]
RATE = 16000


def test_pieces_use_every_program_and_drum():
    programs: set[int] = set()
    drums: set[int] = set()
    for seed in range(300):
        performance = random_ensemble(np.random.default_rng(seed), 4.0)
        notes = performance.notes
        assert len(notes) > 0
        assert notes["onset_sec"].min() >= 0
        assert performance.end_sec <= 4.0 + 1e-6
        beaten = is_drum(notes)
        drums.update(notes["pitch"][beaten].tolist())
        assert len(set(notes["channel"][~beaten].tolist())) == len(set(notes["program"][~beaten].tolist())) <= 6
        for program in np.unique(notes["program"][~beaten]):
            lowest, highest = keys_of(program)
            keys = notes["pitch"][~beaten & (notes["program"] == program)]
            assert lowest <= keys.min() <= keys.max() <= highest
        programs.update(notes["program"][~beaten].tolist())
    assert programs == set(range(128))
    assert drums == set(range(DRUM_KEYS[0], DRUM_KEYS[1] + 1))


def test_pieces_are_always_the_same():
    one, same, other = (random_ensemble(np.random.default_rng(seed), 6.0) for seed in (3, 3, 4))
    assert np.array_equal(one.notes, same.notes)
    assert rows(one) != rows(other)


def test_no_note_sounds_into_the_next_of_its_key():
    for seed in range(8):
        for performance in (
            random_ensemble(np.random.default_rng(seed), 8.0),
            arrange(read_midi(ROOT / "examples" / "bach.mid"), np.random.default_rng(seed)),
        ):
            assert rows(extend_by_pedal(performance)) == rows(performance)


def test_fold():
    pitch = np.arange(128)
    folded = fold(pitch, 36, 60)
    assert folded.min() == 36
    assert folded.max() == 60
    assert not ((folded - pitch) % 12).any()
    assert np.array_equal(folded[36:61], pitch[36:61])


def test_a_single_voice_is_divided(tmp_path: Path):
    source = extend_by_pedal(read_midi(ROOT / "examples" / "mozart_k331.mid"))
    made = [arrange(source, np.random.default_rng(seed)) for seed in range(30)]
    counts = [len(set(performance.notes["channel"].tolist())) for performance in made]
    assert set(counts) == {1, 2, 3, 4}
    for performance in made:
        # Folding may bring strokes of a key together, which are then one.
        assert len(performance.notes) > 0.9 * len(source.notes)
        onsets = np.unique(source.notes["onset_sec"])
        nearest = np.abs(performance.notes["onset_sec"][:, None] - onsets).min(1)
        assert nearest.max() < 1e-6


def test_voices_get_other_programs_and_drums_stay(tmp_path: Path):
    beats = [(0.5 * n, 0.5 * n + 0.1, 36 + 2 * (n % 2)) for n in range(8)]
    tune = [(0.5 * n, 0.5 * n + 0.4, 60 + n) for n in range(8)]
    write_notes(tmp_path / "song.mid", [(0, False, tune), (33, False, [(0.0, 4.0, 40)]), (0, True, beats)])
    source = read_midi(tmp_path / "song.mid")
    made = [arrange(source, np.random.default_rng(seed)) for seed in range(40)]
    for performance in made:
        assert [row for row in rows(performance) if row[-1]] == [row for row in rows(source) if row[-1]]
        assert len(set(performance.notes["channel"].tolist())) == 3
    assert len({program for p in made for program in p.notes["program"].tolist()}) > 30


@pytest.fixture(scope="module")
def general_midi() -> Path:
    """The font in pretty_midi's wheel; a skip where it, or fluidsynth, is not there."""
    spec = find_spec("pretty_midi")
    font = Path(spec.origin).parent / "TimGM6mb.sf2" if spec and spec.origin else None
    if font is None or not font.is_file():
        pytest.skip("pretty_midi comes without its SoundFont")
    if shutil.which("fluidsynth") is None:
        pytest.skip("the program fluidsynth is not installed")
    return font


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "midi"
    beats = [(0.5 * n, 0.5 * n + 0.1, 36 + 2 * (n % 2)) for n in range(8)]
    write_notes(folder / "song.mid", [(56, False, [(0.0, 1.0, 60), (1.0, 2.0, 64)]), (0, True, beats)])
    for name in ("bach", "mozart_k331"):
        shutil.copy(ROOT / "examples" / f"{name}.mid", folder)
    return folder


def test_rendered_plays_ensembles(music: Path, general_midi: Path):
    options = {"clips": 8, "clip_seconds": 2.0, "patterns": 0.5, "test_pieces": ["song"]}
    records = Rendered(str(music), str(general_midi), ensemble=True, **options).records()
    (song,) = (record for record in records if record.split == "test")
    notes = song.performance().notes
    assert set(notes["program"][~is_drum(notes)].tolist()) == {56}
    assert is_drum(notes).sum() == 8
    programs: set[int] = set()
    for record in records:
        performance, audio = record.performance(), record.waveform(RATE)
        assert len(audio) / RATE <= performance.end_sec + 1.001
        assert 0.001 < audio.abs().max() < 1
        programs.update(performance.notes["program"].tolist())
        again = record.performance()
        assert np.array_equal(again.notes, performance.notes)
    assert len(programs) > 6
    assert torch.equal(records[1].waveform(RATE), records[1].waveform(RATE))
    # Without its own programs a file is left to the piano: the same SoundFont, one program, no drums.
    (piano,) = (r for r in Rendered(str(music), str(general_midi), **options).records() if r.split == "test")
    assert set(piano.performance().notes["program"].tolist()) == {0}
    assert not is_drum(piano.performance().notes).any()


def test_drums_and_instruments_sound_different(music: Path, general_midi: Path, tmp_path: Path):
    spectra = []
    for program, drum in ((0, False), (56, False), (73, False), (0, True)):
        folder = tmp_path / f"{program}-{drum}"
        write_notes(folder / "note.mid", [(program, drum, [(0.0, 1.0, 60)])])
        options = {"ensemble": True, "clips": 1, "patterns": 1.0, "test_pieces": ["note"]}
        (record,) = (r for r in Rendered(str(folder), str(general_midi), **options).records() if r.split == "test")
        spectrum = torch.fft.rfft(record.waveform(RATE), 2 * RATE).abs()
        spectra.append(spectrum / spectrum.norm())
    for first in range(4):
        for second in range(first):
            assert float(spectra[first] @ spectra[second]) < 0.9


def test_an_ensemble_needs_a_soundfont(music: Path):
    with pytest.raises(DataError, match="an ensemble is played by a SoundFont"):
        Rendered(str(music), str(music), ensemble=True)


def test_the_preset_trains_and_plays(
    music: Path, general_midi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    model = {
        "dim": 16,
        "hidden_dim": 32,
        "heads": 1,
        "head_dim": 16,
        "layers": 1,
        "segment_frames": 32,
        "sample_steps": 1,
    }
    data = {"root": music, "sound": general_midi, "clips": 4, "clip_seconds": 1.0, "workers": 0, "batch_size": 2}
    data |= {"validation_pieces": '["song"]'}
    trainer = {"max_steps": 2, "accelerator": "cpu", "precision": "32-true", "default_root_dir": tmp_path}
    words = [f"--model.{name}={value}" for name, value in model.items()]
    words += [f"--data.{name}={value}" for name, value in data.items()]
    words += [f"--trainer.{name}={value}" for name, value in trainer.items()]
    code = main(["fit", "--config", "spectrogram_diffusion/general_midi", "--data=rendered", *words])
    assert code == 0, capsys.readouterr().err
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    song = random_ensemble(np.random.default_rng(0), 1.0)
    write_midi(song, tmp_path / "song.mid")
    assert main(["predict", str(tmp_path / "song.mid"), f"--ckpt_path={checkpoint}", "--trainer.accelerator=cpu"]) == 0
    audio, rate = soundfile.read(tmp_path / "song.wav")
    assert len(audio) / rate >= song.end_sec
    assert np.isfinite(audio).all()
