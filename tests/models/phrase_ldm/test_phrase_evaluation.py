"""What `midisynth test` says of phrases and songs: perfect copies, random bars, stolen melodies, several processes."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from midisynth.checkpoints import save_weights
from midisynth.evaluation import PREDICTION
from midisynth.main import main
from midisynth.models.phrase_ldm import PhraseVae
from midisynth.models.phrase_ldm.data import PhraseLdmData
from midisynth.models.phrase_ldm.evaluation import shortened
from midisynth.models.phrase_ldm.model import PhraseLdm
from midisynth.models.phrase_ldm.remiz import Bar, Note, Track, performance_from_bars
from midisynth.models.phrase_ldm.rows import BAR_ID, INST_ID, collate, labels, row
from midisynth.models.phrase_ldm.sections import Section
from midisynth.models.phrase_ldm.song_scores import (
    HELD_OUT,
    NGRAMS,
    RANDOM_BARS,
    ROWS,
    TRAINING,
    UNTRAINED,
    KnownSong,
    SongScores,
    melody_program,
    melody_words,
    structure_scores,
    summarize,
)
from midisynth.models.phrase_ldm.vae_evaluation import SPECIAL, PhraseScore, phrase_score, score_phrases
from midisynth.models.phrase_ldm.vae_evaluation import summarize as summarize_phrases
from midisynth.models.phrase_ldm.vocabulary import to_ids
from midisynth.music.midi import write_midi
from midisynth.summaries import Measurements, Summary, SummaryEvaluation, dealt
from midisynth.training.sampler import EvaluationSampler

SMALL = {"dim": 32, "hidden_dim": 64, "layers": 1, "heads": 2, "head_dim": 16, "latent": 8}
TRAINER = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def song_bars(seed: int, count: int = 8) -> list[Bar]:
    """A melody and a bass; the second half is the first again."""
    generator = np.random.default_rng(seed)
    half = [
        Bar(
            [
                Track(13, [Note(12 * beat, int(generator.integers(60, 80)), 12, 90) for beat in range(4)]),
                Track(0, [Note(0, int(generator.integers(36, 48)), 48, 70)]),
            ]
        )
        for _ in range(count // 2)
    ]
    return half + half


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training songs and two held-out ones, of 8 and 12 bars."""
    root = tmp_path_factory.mktemp("songs")
    for split, lengths in (("train", (8, 8, 12, 8)), ("test", (8, 12))):
        (root / split).mkdir()
        for number, count in enumerate(lengths):
            path = root / split / f"{split}-{number}.mid"
            write_midi(performance_from_bars(song_bars(number + 10 * (split == "test"), count)), path)
    return root


@pytest.fixture(scope="module")
def vae() -> PhraseVae:
    torch.manual_seed(0)
    return PhraseVae(**SMALL).eval()


class TestPhrases:
    PHRASES = ("i-0 o-0 p-60 d-12 o-12 p-64 d-12", "i-25 o-0 p-70 d-48", "i-128 o-0 p-164 d-3")

    def batch(self, *phrases: list[int]) -> dict[str, torch.Tensor]:
        return collate([row(ids) for ids in phrases], [labels(ids) for ids in phrases])

    def test_a_model_that_knows_the_phrases_is_right(self, vae: PhraseVae):
        """One that was made to write the phrases, whatever it reads, token by token."""
        phrase = to_ids(self.PHRASES[0])
        torch.manual_seed(0)
        model = PhraseVae(**{**SMALL, "dim": 64}, dropout=0.0)
        optimizer = torch.optim.Adam(model.parameters(), 0.003)
        batch = self.batch(phrase)
        for _ in range(200):
            loss = model.network(batch["tokens"], batch["mask"], batch["labels"]).losses(batch["labels"], 0.0)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if loss < 0.02:
                break
        (right,) = score_phrases(model.eval(), batch)
        assert right == PhraseScore(0, len(phrase) + 1, len(phrase) + 1, 1, 1, 1, 1, 0, len(phrase) + 1)
        other = to_ids("i-0 o-0 p-60 d-12 o-12 p-64 d-24")
        (wrong,) = score_phrases(model, self.batch(other))
        assert (wrong.op, wrong.opd, wrong.exact) == (1, 0.5, 0), "it can only write the one that it learnt"

    def test_what_has_no_notes_is_a_row_of_its_own(self, vae: PhraseVae):
        phrases = [to_ids(text) for text in self.PHRASES]
        scores = score_phrases(vae, self.batch(*phrases, [INST_ID], [BAR_ID]))
        assert [one.instrument for one in scores] == [0, 25, 128, -1, -1]
        summary = summarize_phrases(scores)
        assert list(summary.scores) == [
            PREDICTION,
            "0 Acoustic Grand Piano",
            "25 Acoustic Guitar (steel)",
            "drums",
            SPECIAL,
        ]
        assert summary.scores[PREDICTION]["phrases"] == 3
        assert summary.scores[SPECIAL]["phrases"] == 2
        assert "token" in summary.table()

    def test_a_model_without_bottleneck_is_asked_for_tokens_alone(self):
        model = PhraseVae(**SMALL, stage="infilling").eval()
        ids = to_ids("i-0 o-0 p-60 d-12 b-1")
        (score,) = score_phrases(model, collate([row(ids, 0)], [labels(ids, 0)]))
        assert score.tokens == 6
        assert math.isnan(score.opd)
        assert [track.tokens for track in score.tracks] == [4]
        assert math.isnan(summarize_phrases([score]).scores[PREDICTION]["exact"])

    def test_instruments_of_a_bar_are_told_apart(self):
        bar = to_ids("i-13 o-0 p-72 d-12 o-12 p-74 d-12 i-0 o-0 p-48 d-48 b-1 [EOS]")
        other = to_ids("[BOS] i-13 o-0 p-72 d-12 o-12 p-74 d-24 i-25 o-0 p-48 d-48 b-1 [EOS]")
        right = [True] * 9 + [False] * 4
        scores = [phrase_score(bar, other, right, by_track=True), phrase_score(bar, bar, [True] * 13, by_track=True)]
        assert (scores[0].tokens, scores[0].right) == (13, 9)
        assert scores[0].opd == pytest.approx(2 / 3)
        summary = summarize_phrases(scores, "bar")
        assert list(summary.scores) == [PREDICTION, "0 Acoustic Grand Piano", "13 Xylophone"]
        piano, xylophone = list(summary.scores.values())[1:]
        assert (piano["token_accuracy"], piano["opd"], piano["exact"], piano["bars"]) == (6 / 8, 0.5, 0.5, 2)
        assert (xylophone["token_accuracy"], xylophone["op"], xylophone["opd"]) == (1, 1, 0.75)
        assert summary.title == "2 held-out bars"
        assert summary.details["unit"] == "bar"
        assert list(summarize_phrases(scores, "position").scores) == [PREDICTION], "positions do not name theirs"

    def test_means_are_of_phrases_and_of_tokens(self):
        scores = [PhraseScore(0, 10, 9, 1, 1, 1, 1, 0, 10), PhraseScore(0, 30, 3, 0.5, 0, 0, 0, 2, 30)]
        means = summarize_phrases(scores).scores[PREDICTION]
        assert means["token_accuracy"] == pytest.approx(12 / 40)
        assert (means["op"], means["opd"], means["exact"]) == (0.75, 0.5, 0.5)

    def test_from_the_command_line(self, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        report = tmp_path / "report.json"
        options = (f"--data.cache_dir={tmp_path}/cache", f"--report={report}", "--trainer.logger=false")
        data = (f"--data.corpora.folder.root={corpus}", "--data.corpora.folder.audio=false")
        assert main(["test", "--config=phrase_vae/tiny", *data, *options]) == 0
        scores = json.loads(report.read_text())["scores"]
        # 20 bars of a melody and a bass, the halves of which are equal.
        assert scores[PREDICTION]["phrases"] == 40
        assert scores["13 Xylophone"]["phrases"] == 20
        assert "held-out phrases" in capsys.readouterr().out


class TestSongs:
    def test_random_bars_have_no_structure_and_a_repeated_half_has(self):
        generator = torch.Generator().manual_seed(0)
        half = torch.randn(32, 64, generator=generator)
        means = torch.zeros(4, 64)
        assert structure_scores(torch.cat([half, half]), means)["recurrence"] == pytest.approx(0.5)
        assert structure_scores(torch.randn(64, 64, generator=generator), means)["recurrence"] == 0
        assert structure_scores(torch.randn(4, 64), means) == {"bars": 1}

    def test_what_all_bars_have_in_common_is_no_structure(self):
        """Bar lines, empty slots and the mean phrase make any two bars alike to the published measure."""
        generator = torch.Generator().manual_seed(0)
        means = 3 * torch.randn(4, 64, generator=generator)
        bars = torch.randn(16, 4, 64, generator=generator)
        bars[:, 2:] = 0  # an empty slot and the bar line
        song = (torch.cat([bars, bars]) + means).flatten(0, 1)
        scores = structure_scores(song, means, [Section("A", 8), Section("B", 8), Section("A", 8), Section("B", 8)])
        assert scores["recurrence"] == pytest.approx(0.5)
        assert scores["recurrence_published"] == 0, "all is bright"
        assert scores["same_section"] == pytest.approx(1)
        assert abs(scores["other_section"]) < 0.1

    def test_melodies_are_of_the_program_that_most_songs_have(self):
        song = KnownSong("a", torch.zeros(32, 8), song_bars(0))
        assert melody_program([song]) == 13
        words = melody_words(song.bars[:1], 13)
        assert words[0] == "i-13"
        assert words[-1] == "b-1"
        other = KnownSong("b", torch.zeros(4, 8), [Bar([Track(5, [Note(0, 60, 12, 90)])])])
        assert melody_program([other, other, song]) is None
        assert melody_words(other.bars, None) == ["i-0", "o-0", "p-60", "d-12", "b-1"]

    def test_a_song_is_shortened_to_whole_sections(self):
        song = KnownSong("a", torch.zeros(32, 8), song_bars(0), (Section("A", 4), Section("B", 4)))
        short = shortened(song, 6, 4)
        assert (len(short.latents), len(short.bars), short.sections) == (24, 6, (Section("A", 4),))

    @staticmethod
    def scored(name: str, latents: dict[str, torch.Tensor]) -> SongScores:
        dim = latents[HELD_OUT].shape[1]
        scores = {one: structure_scores(values, torch.zeros(4, dim)) for one, values in latents.items()}
        return SongScores(name, latents, scores, (), 8, Counter(p=1), Counter(), 13, torch.eye(8))

    def test_songs_like_the_held_out_ones_are_nearer_than_random_bars(self):
        """Latents of bars that follow each other are alike in songs: only n-grams can tell bars in no order."""
        generator = torch.Generator().manual_seed(1)

        def song() -> torch.Tensor:
            return torch.randn(256, 4, generator=generator).cumsum(0) / 4

        def shuffled(values: torch.Tensor) -> torch.Tensor:
            bars = values.unflatten(0, (-1, 4))
            return bars[torch.randperm(len(bars), generator=generator)].flatten(0, 1)

        songs = []
        for number in range(8):
            real, other = song(), song()
            latents = {PREDICTION: real + 0.01, RANDOM_BARS: shuffled(real), TRAINING: other, HELD_OUT: real}
            songs.append(self.scored(str(number), latents))
        summary = summarize(songs, 0)
        scores = summary.scores
        assert scores[RANDOM_BARS]["fid_1"] == pytest.approx(0, abs=1e-6)
        for n in NGRAMS[1:]:
            assert scores[PREDICTION][f"fid_{n}"] < scores[RANDOM_BARS][f"fid_{n}"]
        assert scores[HELD_OUT].get("fid_1") is None, "the reference is not compared with itself"
        assert scores[PREDICTION]["recurrence_gap"] == pytest.approx(0, abs=0.1)
        assert summary.details["dropped"] == {"p": 8}

    def test_too_few_phrases_have_no_distance(self):
        latents = {name: torch.randn(20, 8) for name in ROWS}
        summary = summarize([self.scored("a", latents)], 0)
        assert not math.isnan(summary.scores[PREDICTION]["fid_1"])
        assert math.isnan(summary.scores[PREDICTION]["fid_2"])
        assert any("too few phrases" in remark for remark in summary.remarks)

    def test_a_whole_test(self, vae: PhraseVae, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        save_weights(vae, tmp_path / "vae")
        torch.manual_seed(0)
        model = PhraseLdm(
            vae=str(tmp_path / "vae"),
            latent=8,
            max_bars=10,
            layers=1,
            heads=2,
            head_dim=16,
            memory_heads=1,
            time_dim=8,
            token_dim=8,
            memory_dim=16,
            conditions=["length", "layout"],
            length_bucket=2,
            sample_steps=2,
        )
        data = PhraseLdmData(
            {"folder": {"root": str(corpus), "audio": False}}, batch_size=2, cache_dir=str(tmp_path / "cache")
        )
        data.connect(model)
        results = []
        for number in range(2):
            report = tmp_path / f"report{number}.json"
            Trainer(**TRAINER, callbacks=[SummaryEvaluation(str(report), 1)]).test(model, data, verbose=False)
            results.append(json.loads(report.read_text()))
        assert results[0] == results[1], "the noise follows from the songs"
        scores = results[0]["scores"]
        assert list(scores) == list(ROWS)
        assert scores[HELD_OUT]["bars"] == 9, "the song of 12 bars is cut to what the model takes"
        assert scores[HELD_OUT]["recurrence"] is not None
        for name in (PREDICTION, UNTRAINED, RANDOM_BARS):
            assert scores[name]["bars"] <= 10
            assert 0 <= scores[name]["layout_accuracy"] <= 1
        assert scores[UNTRAINED]["length_error"] >= 0
        assert scores[HELD_OUT]["layout_accuracy"] == 1
        assert scores[RANDOM_BARS]["notes_per_bar"] == 5
        assert scores[RANDOM_BARS]["copied"] < 1
        assert scores[TRAINING]["copied"] is None, "a training song is its own copy"
        assert results[0]["songs"] == ["folder/test_test-0", "folder/test_test-1"]
        assert (tmp_path / "report0_1.png").is_file()
        with (tmp_path / "report0.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 2 * len(ROWS)
        assert "Fréchet distance" in capsys.readouterr().out
        data.untrained = False
        Trainer(**TRAINER, callbacks=[SummaryEvaluation(str(tmp_path / "report.json"), 0)]).test(
            model, data, verbose=False
        )
        alone = json.loads((tmp_path / "report.json").read_text())["scores"]
        assert alone == {row: values for row, values in scores.items() if row != UNTRAINED}


class Counted(LightningModule):
    """Measures the numbers of its items."""

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> Measurements:
        return Measurements([float(value) for value in batch])

    def test_summary(self, items: list[float], pictures: int) -> Summary:
        score = {"first": items[0], "last": items[-1], "sum": sum(items)}
        return Summary("numbers", {PREDICTION: score}, {"scores": {"sum": "sum"}}, ("sum",))


def test_items_keep_their_order_over_processes():
    assert dealt([[0, 3, 6], [1, 4], [2, 5]]) == list(range(7))


def counted(report: Path) -> dict[str, dict[str, float]]:
    """Scores of a test on the processes that there are."""
    trainer = Trainer(**TRAINER, use_distributed_sampler=False, callbacks=[SummaryEvaluation(str(report))])
    distributed = torch.distributed.is_initialized()
    rank, processes = (torch.distributed.get_rank(), 2) if distributed else (0, 1)
    loader = DataLoader(range(7), 2, sampler=EvaluationSampler(range(7), rank, processes))
    (logged,) = trainer.test(Counted(), loader, verbose=False)
    assert logged == {"test/sum": 21}
    return json.loads(report.read_text())["scores"]


def _two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    counted(Path(folder, f"{rank}.json"))
    torch.distributed.destroy_process_group()


def test_two_processes_say_what_one_says(tmp_path: Path):
    """Seven items: one process has one more."""
    alone = counted(tmp_path / "report.json")
    assert alone == {PREDICTION: {"first": 0, "last": 6, "sum": 21}}
    torch.multiprocessing.start_processes(_two, (str(tmp_path),), 2, start_method="fork")
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text())["scores"] == alone
