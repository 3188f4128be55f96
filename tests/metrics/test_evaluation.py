"""What `midisynth test` says of audio: against plain functions, over processes, from the command line."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from onnx_files import FRAME_SAMPLES, write_embedding
from torch.utils.data import DataLoader, Dataset

from midisynth.embeddings import load_embedding
from midisynth.errors import MidisynthError
from midisynth.evaluation import ENCODED, PREDICTION, AudioEvaluation, Renditions
from midisynth.main import main
from midisynth.metrics import functional
from midisynth.metrics.frechet import Gaussian, frechet_distance
from midisynth.metrics.transcription import Transcriber
from midisynth.music.notes import NOTE_DTYPE
from midisynth.training.sampler import EvaluationSampler

RATE, SAMPLES, CLIPS = 16000, 8000, 25


class Clips(Dataset):
    """Recordings of noise that swells."""

    def __len__(self) -> int:
        return CLIPS

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = torch.randn(SAMPLES, generator=torch.Generator().manual_seed(index))
        return 0.1 * noise * torch.linspace(0, 1 + index % 3, SAMPLES)


def name_of(clip: torch.Tensor) -> str:
    """Clips are of two recordings."""
    return "upwards" if clip[100] > 0 else "downwards"


class Player(LightningModule):
    """Plays recordings with too much gain, and passes them through a coder that cuts off the last bits."""

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> Renditions:
        rows = {PREDICTION: 1.5 * batch, ENCODED: (64 * batch).round() / 64}
        return Renditions(rows, batch, RATE, names=[name_of(clip) for clip in batch])


class Silent(LightningModule):
    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("test/loss", batch.mean())


def evaluate(folder: Path, model: LightningModule, **options) -> list[dict[str, float]]:
    """Test on the processes that there are; the report is folder/report.json."""
    embeddings = {"crepe": None, "tiny": str(folder / "tiny.onnx")}
    defaults = {"embeddings": embeddings, "report": str(folder / "report.json"), "pictures": 0}
    evaluation = AudioEvaluation(**defaults | options)
    distributed = torch.distributed.is_initialized()
    rank, processes = (torch.distributed.get_rank(), 2) if distributed else (0, 1)
    loader = DataLoader(Clips(), batch_size=2, sampler=EvaluationSampler(Clips(), rank, processes))
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[evaluation],
    )
    return trainer.test(model, loader, verbose=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_embedding(tmp_path / "tiny.onnx")
    return tmp_path


@pytest.fixture
def report(folder: Path) -> dict:
    evaluate(folder, Player())
    return json.loads((folder / "report.json").read_text())


def test_scores_are_those_of_the_functions(folder: Path, capsys: pytest.CaptureFixture[str]):
    (logged,) = evaluate(folder, Player())
    result = json.loads((folder / "report.json").read_text())
    assert (result["clips"], result["seconds"], result["sample_rate"]) == (CLIPS, CLIPS * SAMPLES / RATE, RATE)
    recordings = [Clips()[index] for index in range(CLIPS)]
    for row, make in ((PREDICTION, lambda x: 1.5 * x), (ENCODED, lambda x: (64 * x).round() / 64)):
        scores = result["scores"][row]
        for name, score in (
            ("log_spectral_distance", functional.log_spectral_distance),
            ("spectral_convergence", functional.spectral_convergence),
            ("chroma_error", lambda a, b: functional.chroma_error(a, b, RATE)),
            ("loudness_correlation", lambda a, b: functional.loudness_correlation(a, b, RATE)),
        ):
            wanted = np.mean([float(score(make(clip), clip)) for clip in recordings])
            assert scores[name] == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        assert scores["tiny_frames"] == CLIPS * SAMPLES / FRAME_SAMPLES
        assert scores["tiny_recon"] > 0 and scores["tiny_fad"] > 0
        assert scores["tiny_fad_low"] < scores["tiny_fad_high"]
    assert logged["test/tiny_fad"] == pytest.approx(result["scores"][PREDICTION]["tiny_fad"])
    assert logged["test/ground_truth_encoded/tiny_recon"] == pytest.approx(result["scores"][ENCODED]["tiny_recon"])
    printed = capsys.readouterr().out
    assert f"{CLIPS} clips, 12.5 s at 16000 Hz" in printed
    assert "tiny (tiny.onnx, SHA-256 " in printed and "; 16000 Hz, 4 x 50/s)" in printed
    assert "no weights for vggish and trill: see docs/evaluation.md" in printed


def by_recording(table: Path) -> dict[tuple[str, str], float]:
    """Row and recording -> Fréchet distance."""
    with table.open(newline="") as file:
        return {(line["row"], line["recording"]): float(line["tiny_fad"]) for line in csv.DictReader(file)}


def test_distance_of_every_recording(folder: Path, report: dict):
    network = load_embedding("tiny", str(folder / "tiny.onnx"))
    clips = [Clips()[index] for index in range(CLIPS)]
    everything = Gaussian.of(torch.cat([network(clip[None])[0] for clip in clips]))
    found = by_recording(folder / "report.csv")
    assert len(found) == 6
    for row, gain in ((PREDICTION, 1.5), ("ground truth", 1.0)):
        for name in ("upwards", "downwards"):
            own = Gaussian.of(torch.cat([network(gain * clip[None])[0] for clip in clips if name_of(clip) == name]))
            assert found[row, name] == pytest.approx(float(frechet_distance(own, everything)), rel=1e-5)


def test_reports_are_numbered_beside_the_logs(folder: Path):
    for _ in range(2):
        evaluate(folder, Player(), report=None)
    names = ("test_0.csv", "test_0.json", "test_1.csv", "test_1.json")
    assert sorted(path.name for path in (folder / "lightning_logs").iterdir()) == list(names)


def test_too_few_frames_are_told(folder: Path, capsys: pytest.CaptureFixture[str]):
    write_embedding(folder / "tiny.onnx", dim=400)
    (logged,) = evaluate(folder, Player())
    printed = capsys.readouterr().out
    assert "tiny: 625 frames are too few for a Fréchet distance, which needs 800: test on at least 16 s" in printed
    assert "test/tiny_recon" in logged and "test/tiny_fad" not in logged
    assert json.loads((folder / "report.json").read_text())["scores"][PREDICTION]["tiny_fad"] is None


def test_models_without_audio(folder: Path, capsys: pytest.CaptureFixture[str]):
    evaluate(folder, Silent())
    assert "Silent renders no audio in a test: there is nothing more to score" in capsys.readouterr().out
    assert not (folder / "report.json").exists()


def test_a_missing_crepe_is_a_remark_unless_it_was_asked_for(folder: Path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    evaluate(folder, Player(), embeddings=None)
    assert "the embedding crepe needs torchcrepe; install it with: pip install torchcrepe" in capsys.readouterr().out
    with pytest.raises(MidisynthError, match="pip install torchcrepe"):
        evaluate(folder, Player(), embeddings={"crepe": "tiny"})


class Whistler(LightningModule):
    """The recording is a tone at 6 kHz, the prediction one at 2 kHz; pictures show a rate twice as high."""

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> Renditions:
        def tone(hertz: float, rate: int) -> torch.Tensor:
            audio = 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(rate) / rate)
            return audio.expand(len(batch), -1)

        pictured = Renditions({PREDICTION: tone(2000, 2 * RATE)}, tone(6000, 2 * RATE), 2 * RATE)
        return Renditions({PREDICTION: tone(2000, RATE)}, tone(6000, RATE), RATE, pictured=pictured)


def heights(picture: Path) -> list[float]:
    """Where the brightest line of each of two spectrograms is, as a share of the height of the picture."""
    red, green, blue = np.moveaxis(matplotlib.image.imread(picture)[..., :3], -1, 0)
    lines = np.flatnonzero(((red > 0.9) & (green > 0.7) & (blue < 0.9)).sum(axis=1) > 500) / len(red)
    return [float(lines[half].mean()) for half in (lines < 0.5, lines > 0.5)]


def test_pictures_show_the_spectrograms(folder: Path, capsys: pytest.CaptureFixture[str]):
    evaluate(folder, Whistler(), pictures=2)
    assert sorted(path.name for path in folder.glob("*.png")) == ["report_1.png", "report_2.png"]
    # Of 16 kHz, one line is at three eighths of the upper plot and the other at one eighth of the lower one.
    plots = (0.065, 0.435), (0.52, 0.89)
    wanted = [(1 - share) * bottom + share * top for share, (top, bottom) in zip((3 / 8, 1 / 8), plots, strict=True)]
    assert heights(folder / "report_1.png") == pytest.approx(wanted, abs=0.02)
    printed = capsys.readouterr().out
    assert printed.index("scores: ") < printed.index("report_1.png") < printed.index("report_2.png")


def test_three_pictures_where_they_can_be_drawn(folder: Path, monkeypatch, capsys):
    evaluate(folder, Player(), pictures=None)
    assert len(list(folder.glob("*.png"))) == 3
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    evaluate(folder, Player(), report=str(folder / "bare.json"), pictures=None)
    assert "no pictures: they need matplotlib; install it with: pip install matplotlib" in capsys.readouterr().out
    assert (folder / "bare.json").exists() and not list(folder.glob("bare*.png"))
    evaluate(folder, Player(), pictures=0)
    assert "matplotlib" not in capsys.readouterr().out
    with pytest.raises(MidisynthError, match="pip install matplotlib"):
        evaluate(folder, Player(), pictures=1)


class Pianist(LightningModule):
    """Plays the true notes, and a wrong one in its prediction; what a transcriber would hear is in the audio itself."""

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> Renditions:
        notes = np.zeros(2, NOTE_DTYPE)
        notes["onset_sec"], notes["duration_sec"], notes["pitch"], notes["velocity"] = (0.1, 0.3), 0.2, (60, 64), 80
        return Renditions({PREDICTION: batch + 1}, batch, RATE, [notes] * len(batch))


def test_notes(folder: Path, monkeypatch, capsys):
    """A stand-in hears one note fewer in predictions, which are loud."""

    def hear(self, audio, sample_rate):
        notes = Pianist().test_step(audio[None], 0).notes[0]
        return notes[: 1 if audio.mean() > 0.5 else 2]

    monkeypatch.setattr(Transcriber, "__init__", lambda self, device="cpu": None)
    monkeypatch.setattr(Transcriber, "__call__", hear)
    (logged,) = evaluate(folder, Pianist(), transcribe=True)
    scores = json.loads((folder / "report.json").read_text())["scores"]
    assert scores["ground truth"]["note_f1"] == 1
    assert scores[PREDICTION]["note_recall"] == 0.5 and scores[PREDICTION]["note_precision"] == 1
    assert logged["test/note_f1"] == pytest.approx(2 / 3)
    assert "onset F1" in capsys.readouterr().out
    evaluate(folder, Player(), transcribe=True)
    assert "does not tell the notes of its examples" in capsys.readouterr().out


def _two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    evaluate(Path(folder), Player(), report=f"{folder}/{rank}.json")
    torch.distributed.destroy_process_group()


def flat(values: dict, prefix: str = "") -> dict[str, float]:
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}/")
        else:
            found[prefix + key] = math.nan if value is None else value
    return found


def test_two_processes_say_what_one_says(folder: Path, report: dict):
    """25 clips: one process has one more."""
    torch.multiprocessing.spawn(_two, args=(str(folder),), nprocs=2)
    assert report["scores"][PREDICTION]["tiny_fad_inf"] is not None
    for rank in range(2):
        together = json.loads((folder / f"{rank}.json").read_text())
        assert together["clips"] == CLIPS
        assert flat(together["scores"]) == pytest.approx(flat(report["scores"]), rel=1e-6, abs=1e-9, nan_ok=True)
        # Clips of either recording are on both processes.
        assert by_recording(folder / f"{rank}.csv") == pytest.approx(by_recording(folder / "report.csv"), rel=1e-6)


def test_command_line(folder: Path, capfd: pytest.CaptureFixture[str]):
    """The smallest model of the package on the clips of the repository."""
    words = ["test", "--config=spectrogram_diffusion/tiny", "--trainer.enable_progress_bar=false"]
    words += [f"--data.cache_dir={folder}/cache", f"--report={folder}/report.json"]
    assert main([*words, f"--embeddings.tiny={folder}/tiny.onnx", "--embeddings.crepe=null"]) == 0
    result = json.loads((folder / "report.json").read_text())
    assert set(result["scores"]) == {PREDICTION, ENCODED}
    assert list(result["embeddings"]) == ["tiny"]
    # One clip of the repository is for testing.
    rows = {row for row, _ in by_recording(folder / "report.csv")}
    assert rows == {PREDICTION, ENCODED, "ground truth"}
    assert (folder / "report_1.png").read_bytes().startswith(b"\x89PNG")
    # An untrained model on the one side, Griffin-Lim on the other.
    untrained, vocoded = (result["scores"][row] for row in (PREDICTION, ENCODED))
    assert vocoded["log_spectral_distance"] < 1 < untrained["log_spectral_distance"]
    assert vocoded["loudness_correlation"] > 0.95
    assert ENCODED in capfd.readouterr().out
    assert main([*words, "--embeddings.trill=weights.pth"]) == 1
    assert "embeddings.trill: weights.pth: expected an .onnx file" in capfd.readouterr().err
