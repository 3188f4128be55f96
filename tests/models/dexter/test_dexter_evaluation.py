"""What `midisynth test` says of performances: people above the page, over processes, from the command line."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from midisynth.evaluation import PREDICTION
from midisynth.interpretations import (
    ANOTHER,
    CONSENSUS,
    WRITTEN,
    InterpretationEvaluation,
    Interpretations,
    InterpretedPiece,
    confidence_interval,
    every_note,
    matched,
    piece_scores,
)
from midisynth.main import main
from midisynth.metrics.interpretation import CURVES, MEASURES, SCORES, Interpretation, mean_interpretation
from midisynth.models.dexter.evaluation import file_names
from midisynth.models.dexter.expression import ExpressionCodec
from midisynth.models.dexter.plots import curves_figure, denoising_animation
from midisynth.music.alignment import AlignedPerformance
from midisynth.music.alignment_files import read_match
from midisynth.music.midi import write_midi
from midisynth.music.score import read_score_notes
from midisynth.music.score_notes import deadpan
from midisynth.training.sampler import EvaluationSampler

ROOT = Path(__file__).resolve().parents[3]
VIENNA = ROOT / "examples" / "vienna4x22"


@cache
def schubert() -> tuple[AlignedPerformance, AlignedPerformance]:
    """One score, played by two people."""
    score = read_score_notes(VIENNA / "musicxml" / "Schubert_D783_no15.musicxml")
    first, second = (read_match(VIENNA / "match" / f"Schubert_D783_no15_p0{n}.match", score) for n in (1, 2))
    return first, second


def changed(aligned: AlignedPerformance, **columns: np.ndarray) -> AlignedPerformance:
    """The same performance with other columns of its notes."""
    notes = aligned.performance.notes.copy()
    for name, column in columns.items():
        notes[name] = column
    return replace(aligned, performance=aligned.performance.with_notes(notes))


def shuffled(aligned: AlignedPerformance) -> AlignedPerformance:
    velocity = np.random.default_rng(0).permutation(aligned.performance.notes["velocity"])
    return changed(aligned, velocity=velocity)


def as_written() -> AlignedPerformance:
    score = schubert()[0].score
    return every_note(score, deadpan(score))


def scores(row: AlignedPerformance, *humans: AlignedPerformance) -> dict[str, float]:
    measured = [Interpretation.of(human) for human in humans]
    return piece_scores(measured, {"row": [Interpretation.of(row)]})["row"]


class TestMeasures:
    @pytest.mark.parametrize("measure", MEASURES)
    def test_a_performance_is_like_itself(self, measure: str):
        human = schubert()[0]
        found = scores(human, human)
        for comparison, wanted in (("deviation", 0), ("kl", 0), ("correlation", 1)):
            value = found[f"{measure}_{comparison}"]
            assert value == pytest.approx(wanted, abs=1e-9) or math.isnan(value)
        if measure in CURVES:
            assert found[f"{measure}_correlation"] == pytest.approx(1)

    def test_a_performance_begins_when_it_likes(self):
        human = schubert()[0]
        notes = human.performance.notes
        later = changed(human, onset_sec=notes["onset_sec"] + 5)
        later.performance.controls = human.performance.controls.copy()
        later.performance.controls["time_sec"] += 5
        first, second = Interpretation.of(human), Interpretation.of(later)
        for measure in (*CURVES, "asynchrony.delta", "articulation.kor", "pedal.to_prev_release"):
            np.testing.assert_allclose(second.values[measure], first.values[measure], atol=1e-6, err_msg=measure)

    def test_twice_as_fast(self):
        human = schubert()[0]
        notes = human.performance.notes
        faster = changed(human, onset_sec=notes["onset_sec"] / 2, duration_sec=notes["duration_sec"] / 2)
        found = scores(faster, human)
        assert found["tempo_deviation"] == pytest.approx(1, abs=0.02), "a tempo beyond the range is clipped"
        assert found["tempo_correlation"] > 0.95
        assert found["articulation_correlation"] == pytest.approx(1, abs=1e-6)
        assert found["tempo_kl"] > 1

    def test_shuffled_velocities_have_the_distribution_and_not_the_course(self):
        first, second = schubert()
        like, unlike = scores(first, second), scores(shuffled(first), second)
        assert unlike["velocity_correlation"] < 0.3 < like["velocity_correlation"]
        assert unlike["tempo_correlation"] == pytest.approx(like["tempo_correlation"])

    def test_the_page_follows_nobody(self):
        found = scores(as_written(), *schubert())
        for curve in CURVES:
            assert found[f"{curve}_correlation"] == 0
        assert found["velocity_deviation"] < 0, "these two play louder"

    def test_graces_and_notes_that_were_left_out_have_no_tempo(self):
        human = schubert()[0]
        rows = np.arange(len(human.pairs))
        part = replace(human, pairs=human.pairs[rows % 3 != 1])
        whole, partly = Interpretation.of(human), Interpretation.of(part)
        assert np.isnan(partly.values["articulation"]).sum() > np.isnan(whole.values["articulation"]).sum()
        assert len(partly.values["tempo"]) == len(whole.values["tempo"])


class TestRows:
    @pytest.fixture
    def people(self) -> list[Interpretation]:
        """Six who agree in part."""
        generator = np.random.default_rng(0)
        common = {measure: generator.normal(100, 20, 200) for measure in MEASURES}
        return [
            Interpretation({name: curve + generator.normal(0, 20, 200) for name, curve in common.items()})
            for _ in range(6)
        ]

    def test_the_mean_of_people_is_nearer_than_one_of_them_than_the_page(self, people):
        flat = Interpretation({measure: np.full(200, 100.0) for measure in MEASURES})
        found = piece_scores(people, {WRITTEN: [flat], PREDICTION: [people[0]]})
        for measure in ("tempo", "velocity"):
            key = f"{measure}_correlation"
            assert found[CONSENSUS][key] > found[ANOTHER][key] + 0.1 > 0.4
            assert found[WRITTEN][key] == 0
            assert found[ANOTHER][f"{measure}_kl"] < found[ANOTHER][f"{measure}_kl"] + 1
        assert found[PREDICTION]["tempo_correlation_all"] > found[ANOTHER]["tempo_correlation_all"], "it is among them"
        assert abs(found[ANOTHER]["velocity_deviation_all"]) < 0.2
        assert math.isnan(found[CONSENSUS]["tempo_deviation_all"]), "against one alone there is no spread"

    def test_rows_of_people_need_people(self, people):
        assert set(piece_scores(people[:1], {WRITTEN: [people[1]]})) == {WRITTEN}
        assert set(piece_scores(people[:2], {WRITTEN: [people[2]]})) == {WRITTEN, ANOTHER}

    def test_a_row_is_the_mean_over_what_it_has(self, people):
        both = piece_scores(people[:3], {"row": people[3:5]})["row"]
        single = [piece_scores(people[:3], {"row": [one]})["row"] for one in people[3:5]]
        for name in ("tempo_correlation", "velocity_deviation", "tempo_correlation_all"):
            assert both[name] == pytest.approx(np.mean([one[name] for one in single]))

    def test_mean_tempo_is_geometric_and_heeds_who_played(self):
        slow, fast = (Interpretation(dict.fromkeys(MEASURES, np.array(v))) for v in ([50.0, np.nan], [200.0, 80.0]))
        mean = mean_interpretation([slow, fast])
        assert mean.values["tempo"] == pytest.approx([100, 80])
        assert mean.values["velocity"] == pytest.approx([125, 80])

    def test_confidence(self):
        values = np.random.default_rng(0).normal(0.5, 0.1, (40, 1, 2))
        low, high = confidence_interval(values)
        assert (low < values.mean(axis=0)).all() and (values.mean(axis=0) < high).all()
        assert high - low == pytest.approx(np.full((1, 2), 2 * 1.96 * 0.1 / math.sqrt(40)), rel=0.3)
        again = confidence_interval(values)
        assert (again[0] == low).all()
        assert np.isnan(confidence_interval(values[:1])).all()


def test_renderers_are_matched_key_by_key():
    score = schubert()[0].score
    performance = deadpan(score)
    performance.notes = performance.notes[np.argsort(performance.notes["onset_sec"] + 1e-3, kind="stable")][::-1]
    aligned = matched(score, performance)
    assert (aligned.pairs[:, 0] == np.arange(len(score.notes))).all()
    wanted = deadpan(score).notes
    found = performance.notes[aligned.pairs[:, 1]]
    assert (found["pitch"] == wanted["pitch"]).all()
    # Of two voices on one key either may be the other.
    assert found["onset_sec"] == pytest.approx(wanted["onset_sec"])


def test_names_of_pieces():
    assert file_names(["a b/c", "a b/c", "d", "a b/c"]) == ["a_b_c", "a_b_c-2", "d", "a_b_c-3"]


class Player(LightningModule):
    """Plays like the second of two people."""

    def test_step(self, batch: list[int], batch_idx: int) -> Interpretations:
        first, second = schubert()
        pieces = [InterpretedPiece(f"piece{number}", (first, shuffled(first)), (second,)) for number in batch]
        return Interpretations(pieces)


def evaluate(folder: Path, model: LightningModule, **options) -> list[dict[str, float]]:
    """Test on the processes that there are."""
    evaluation = InterpretationEvaluation(**{"report": str(folder / "report.json"), "pictures": 0} | options)
    distributed = torch.distributed.is_initialized()
    rank, processes = (torch.distributed.get_rank(), 2) if distributed else (0, 1)
    loader = DataLoader(range(3), 1, sampler=EvaluationSampler(range(3), rank, processes), collate_fn=list)
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


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    renderer = tmp_path / "flat"
    renderer.mkdir()
    write_midi(deadpan(schubert()[0].score), renderer / "piece1.mid")
    (logged,) = evaluate(tmp_path, Player(), renderers={"flat": str(renderer)}, pictures=1)
    result = json.loads((tmp_path / "report.json").read_text())
    assert sorted(result["pieces"]) == ["piece0", "piece1", "piece2"]
    assert set(result["scores"]) == {PREDICTION, "flat", WRITTEN, ANOTHER}
    assert set(result["scores"][PREDICTION]) == set(SCORES)
    assert result["scores"]["flat"]["tempo_correlation"] == pytest.approx(0, abs=0.1), "ticks are rounded"
    assert logged["test/tempo_correlation"] == pytest.approx(result["scores"][PREDICTION]["tempo_correlation"])
    low, high = result["confidence"][PREDICTION]["tempo_correlation"]
    assert low == pytest.approx(high), "the pieces are all the same"
    with open(tmp_path / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 4
    assert {row["piece"] for row in rows if row["tempo_correlation"] and row["row"] == "flat"} == {"piece1"}
    printed = capsys.readouterr().out
    assert "renderers.flat: has no file for 2 of 3 pieces" in printed
    assert "pieces: 3 (midisynth" in printed and "another human" in printed
    assert (tmp_path / "report_1.png").read_bytes().startswith(b"\x89PNG")


def _two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    evaluate(Path(folder), Player(), report=f"{folder}/{rank}.json")
    torch.distributed.destroy_process_group()


def test_two_processes_say_what_one_says(tmp_path: Path):
    """Three pieces: one process has one more."""
    evaluate(tmp_path, Player())
    alone = json.loads((tmp_path / "report.json").read_text())
    torch.multiprocessing.spawn(_two, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        together = json.loads((tmp_path / f"{rank}.json").read_text())
        assert together["scores"] == alone["scores"]
        assert (together["pieces"], together["confidence"]) == (alone["pieces"], alone["confidence"])


def test_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """The smallest model on the performances of the repository."""
    words = ["test", "--config=dexter/tiny", "--trainer.enable_progress_bar=false", "--data.root", str(VIENNA)]
    words += [f"--data.cache_dir={tmp_path}/cache", f"--report={tmp_path}/report.json", "--data=vienna4x22"]
    words += ['--data.test_pieces=["schubert d 783 no 15"]']
    assert main(words) == 0
    result = json.loads((tmp_path / "report.json").read_text())
    assert result["pieces"] == ["schubert_d_783_no_15"]
    assert set(result["scores"]) == {PREDICTION, WRITTEN, ANOTHER}
    assert result["scores"][ANOTHER]["tempo_correlation"] > 0.3
    assert "correlation with each human performance" in capfd.readouterr().out
    assert main([*words, f"--renderers.other={tmp_path}/missing"]) == 1
    assert "renderers.other: no such folder" in capfd.readouterr().err


class TestPlots:
    def test_curves(self):
        first, second = schubert()
        codec = ExpressionCodec()
        values = [codec.encode(one).values for one in (first, second)]
        figure = curves_figure(first.score, values[0], codec, "one", {"other": values[1]})
        tempo, velocity = figure.axes
        assert [line.get_label() for line in tempo.lines] == ["one", "other"]
        drawn = tempo.lines[0].get_ydata(), velocity.lines[0].get_ydata()
        measured = Interpretation.of(first)
        assert np.corrcoef(drawn[0], measured.values["tempo"])[0, 1] > 0.9
        known = np.isfinite(measured.values["velocity"])
        assert drawn[1][known] == pytest.approx(measured.values["velocity"][known], abs=2)

    def test_animation(self, tmp_path: Path):
        from PIL import Image

        codec = ExpressionCodec()
        human = schubert()[0]
        values = codec.encode(human).values.astype(np.float64)
        noise = np.random.default_rng(0).normal(0, 0.2, values.shape)
        steps = [(values + share * noise, values + share * noise / 2) for share in (1, 0.5, 0)]
        denoising_animation(human.score, steps, codec, tmp_path / "out.gif")
        with Image.open(tmp_path / "out.gif") as image:
            assert (image.format, image.n_frames) == ("GIF", 3)
        assert [path.name for path in tmp_path.iterdir()] == ["out.gif"]
