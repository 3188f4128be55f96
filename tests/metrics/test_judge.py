"""Judging, sweeping and their tables, on a tiny model and a piano of sines."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import chain
import judge
import numpy as np
import pytest
import sweep
import tables
import torch
import yaml

from midisynth.audio.vocoder import GriffinLim
from midisynth.checkpoints import save_weights
from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.notes import NOTE_DTYPE, Performance
from midisynth.music.pedal import extend_by_pedal
from midisynth.nn.positions import shuffled_sinusoids

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A checkpoint, pieces and a sampled piano, as the command line names them."""
    folder = tmp_path_factory.mktemp("judge")
    options = yaml.safe_load((ROOT / "cfg/spectrogram_diffusion/tiny.yaml").read_text())["model"]["init_args"]
    save_weights(SpectrogramDiffusion(**options), folder / "tiny")
    (folder / "pieces").mkdir()
    for name in ("one", "two"):
        shutil.copy(ROOT / "tests/audio/data/piano.midi", folder / "pieces" / f"{name}.mid")
    spec = importlib.util.spec_from_file_location("sines", ROOT / "tests/data/conftest.py")
    sines = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sines)
    sines.write_releases(sines.write_samples(folder / "samples"))
    words = [folder / "tiny", "--pieces", folder / "pieces", "--piano", folder / "samples"]
    return [str(word) for word in [*words, "--seconds", 2, "--rate", 24000, "--sound-options", '{"layers": [4, 12]}']]


def test_judging(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    samples = arguments[arguments.index("--piano") + 1]
    words = [*arguments, "--no-transcriber", "--soundfont", samples, "--output", str(tmp_path), "--name", "me"]
    assert judge.main(words) == 0
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("me", "piano", "soundfont", "twin")}
    assert set(found["me"]["pieces"]) == {"one", "two"}
    assert found["me"]["sample_rate"] == 16000 and found["me"]["bytes"] > 10000
    assert {"mel_error", "mel_held_flux_ratio", "log_spectral_distance"} <= set(found["me"]["mean"])
    assert "log_spectral_distance" not in found["piano"]["mean"]
    # Here they are one instrument; files hold 24 bits.
    assert found["soundfont"]["mean"]["log_spectral_distance"] == pytest.approx(0, abs=1e-3)
    assert found["soundfont"]["mean"]["held_flux_ratio"] == pytest.approx(1, abs=1e-3)
    assert 0 < found["twin"]["mean"]["mel_error"] < found["me"]["mean"]["mel_error"]
    assert all(value > 0 for value in found["me"]["speed"].values())
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("| mean of the pieces | me | soundfont | twin | piano |")
    assert text.strip() in capsys.readouterr().out


def test_a_sweep_goes_on_where_it_was(arguments: list[str], tmp_path: Path):
    words = [*arguments, "--solvers", "ddim", "--output", str(tmp_path / "sweep")]
    assert sweep.main([*words, "--steps", "1"]) == 0
    first = json.loads((tmp_path / "sweep.json").read_text())["sweep"]
    assert sweep.main([*words, "--steps", "1", "2", "--overlaps", "4"]) == 0
    rows = json.loads((tmp_path / "sweep.json").read_text())["sweep"]
    assert rows[:1] == first
    assert [row["setting"] for row in rows] == [
        {"solver": "ddim", "sample_steps": 1},
        {"solver": "ddim", "sample_steps": 2},
        {"overlap_frames": 4},
    ]
    assert (tmp_path / "sweep.md").read_text().count("\n") == 5
    words[words.index("--seconds") + 1] = "3"
    assert sweep.main([*words, "--steps", "1"]) == 1


def test_segments_of_other_lengths(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The same weights, in segments that overlap by at most a half."""
    words = [*arguments[1:], "--segments", "24", "--overlaps", "4", "16", "--output", str(tmp_path / "sweep")]
    assert sweep.main([arguments[0], *words]) == 1  # its tokens count the frames of a segment
    assert "the tokens of" in capsys.readouterr().err
    options = yaml.safe_load((ROOT / "cfg/spectrogram_diffusion/tiny.yaml").read_text())["model"]["init_args"]
    save_weights(SpectrogramDiffusion(**options | {"tokens": False, "note_roll": True}), tmp_path / "rolls")
    trained = sweep.load(str(tmp_path / "rolls"), {})
    assert sweep.main([str(tmp_path / "rolls"), *words]) == 0
    rows = json.loads((tmp_path / "sweep.json").read_text())["sweep"]
    tried = [(row["setting"]["segment_frames"], row["setting"]["overlap_frames"]) for row in rows]
    assert tried == [(24, 4)]
    for frames in (24, 200):
        model = sweep.load(str(tmp_path / "rolls"), {"segment_frames": frames, "overlap_frames": 4})
        assert model.codec.segment_frames == frames and not model.training
        for name, tensor in model.state_dict().items():
            before = trained.state_dict()[name]
            shared = min(tensor.shape, before.shape)
            assert torch.equal(tensor[tuple(map(slice, shared))], before[tuple(map(slice, shared))]), name


def test_positions_go_on_as_they_would_have():
    table = shuffled_sinusoids(300, 32)
    torch.testing.assert_close(sweep.continued(table[:128], 300), table, rtol=0, atol=1e-4)
    assert torch.equal(sweep.continued(table, 50), table[:50])


def test_pieces_are_cut_and_played_by_a_piano(tmp_path: Path):
    notes = np.zeros(4, NOTE_DTYPE)
    notes["onset_sec"], notes["duration_sec"] = [5.0, 6.0, 7.95, 9.0], 4.0
    notes["onset_tick"], notes["duration_tick"] = notes["onset_sec"] * 960, 4 * 960
    notes["pitch"], notes["velocity"], notes["program"], notes["channel"] = 60, 64, 40, 3
    (tmp_path / "in").mkdir()
    write_midi(Performance(notes=notes), tmp_path / "in" / "late.mid")
    (piece,) = chain.cut_pieces(tmp_path / "in", 3.0, tmp_path / "out")
    cut = extend_by_pedal(read_midi(piece)).notes
    assert cut["onset_sec"].tolist() == pytest.approx([0.1, 1.1], abs=2e-3)
    assert not cut["program"].any() and not cut["channel"].any()


def test_moved_pieces_are_nearly_the_same(tmp_path: Path):
    source = ROOT / "tests/audio/data/piano.midi"
    (moved,) = chain.moved_pieces([source], 0.003, tmp_path)
    before, after = read_midi(source).notes, read_midi(moved).notes
    assert sorted(before["pitch"]) == sorted(after["pitch"])
    order = [np.lexsort((notes["onset_sec"], notes["pitch"])) for notes in (before, after)]
    moves = after["onset_sec"][order[1]] - before["onset_sec"][order[0]]
    assert 0 < np.abs(moves).max() <= 0.004  # a tick is half a millisecond or so


def test_a_watched_vocoder_sounds_the_same():
    vocoder = GriffinLim(iterations=1)
    mel = torch.rand(150, 128) - 5
    plain = vocoder(mel, seed=3)
    with chain.watched(vocoder) as seen:
        assert torch.equal(vocoder(mel, seed=3), plain)
        vocoder(mel[:10])
    assert [len(stream.mel) for stream in seen] == [150, 10]
    assert torch.equal(seen[0].mel, mel) and seen[0].cpu_sec > 0
    assert torch.equal(vocoder(mel, seed=3), plain) and len(seen) == 2


def test_tables(tmp_path: Path):
    def contestant(f1: float) -> dict:
        return {"mean": {"f1": f1}, "pieces": {"a": {"notes": 10, "f1": f1}}}

    results = [{"name": name, **contestant(f1)} for name, f1 in (("piano", 1.0), ("soundfont", 0.8), ("mine", 0.76))]
    lines = tables.judged(results).splitlines()
    assert lines[0] == "| mean of the pieces | mine | soundfont | piano |"
    assert "| onset F1 / SoundFont's | 0.950 | 1.000 | 1.250 |" in lines
    assert "| a | 10 | 0.760 | 0.800 | 1.000 |" in lines
