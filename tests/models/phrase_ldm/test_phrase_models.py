"""The two models with their data: stages of the autoencoder, latents of songs, what is composed, and the commands."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import save_file

from midisynth.checkpoints import load_model, save_weights
from midisynth.datasets.audio_pairs import Part
from midisynth.datasets.cache import Prepared
from midisynth.datasets.corpus import Record
from midisynth.errors import CheckpointError, UsageError
from midisynth.main import main
from midisynth.models.phrase_ldm import PhraseLdm, PhraseLdmData, PhraseVae, PhraseVaeData
from midisynth.models.phrase_ldm.codec import song_arrays
from midisynth.models.phrase_ldm.composing import parse_bars, request, sample_latents
from midisynth.models.phrase_ldm.conditions import SectionIds
from midisynth.models.phrase_ldm.data import EverySong, RandomSongs
from midisynth.models.phrase_ldm.latents import LatentTable
from midisynth.models.phrase_ldm.layouts import LayoutIds
from midisynth.models.phrase_ldm.remiz import Bar, Note, Track, performance_from_bars
from midisynth.models.phrase_ldm.rows import BAR_ID, EOS_ID, INST_ID, MASK_ID, SEP_ID
from midisynth.models.phrase_ldm.sections import Section, parse_sections
from midisynth.models.phrase_ldm.texts import parse
from midisynth.models.phrase_ldm.units import is_unit
from midisynth.models.phrase_ldm.vae_data import EveryRow, Phrases, RandomRows, Rows
from midisynth.models.phrase_ldm.vocabulary import IDS, PITCH_IDS, to_text
from midisynth.module import Item, Noise
from midisynth.music.midi import read_midi, write_midi
from midisynth.render import predict

SMALL = {"dim": 32, "hidden_dim": 64, "layers": 1, "heads": 2, "head_dim": 16, "latent": 8}
DENOISER = {
    "latent": 8,
    "max_bars": 12,
    "layers": 1,
    "heads": 2,
    "head_dim": 16,
    "memory_heads": 1,
    "time_dim": 16,
    "token_dim": 16,
    "memory_dim": 16,
    "sample_steps": 3,
}
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def bars_of(seed: int, count: int = 8) -> list[Bar]:
    """A melody on a xylophone and a piano below it, in 4/4."""
    generator = np.random.default_rng(seed)
    scale = [0, 2, 4, 5, 7, 9, 11]
    return [
        Bar(
            [
                Track(13, [Note(12 * beat, 72 + scale[int(generator.integers(7))], 12, 90) for beat in range(4)]),
                Track(0, [Note(0, 48 + scale[int(generator.integers(7))], 48, 70)]),
            ]
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six songs for training and two for validation; the first is longer than the denoiser."""
    root = tmp_path_factory.mktemp("songs")
    for split, lengths in (("train", (16, 8, 8, 6, 8, 7)), ("validation", (8, 5))):
        (root / split).mkdir()
        for number, count in enumerate(lengths):
            seed = number + 100 * (split == "validation")
            write_midi(performance_from_bars(bars_of(seed, count)), root / split / f"{split}{number}.mid")
    return root


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder that knows nothing."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae") / "vae"
    save_weights(PhraseVae(**SMALL).eval(), folder, half=False)
    return folder


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A song of 6 bars, in D major."""
    path = tmp_path_factory.mktemp("input") / "song.mid"
    moved = [
        Bar([Track(t.program, [n._replace(pitch=n.pitch + 2) for n in t.notes]) for t in bar.tracks])
        for bar in bars_of(50, 6)
    ]
    write_midi(performance_from_bars(moved), path)
    return path


def composer(vae: Path, seed: int = 0, **options) -> PhraseLdm:
    torch.manual_seed(seed)
    model = PhraseLdm(vae=str(vae), **{**DENOISER, **options}).eval()
    model.scale.fill_(0.5)
    return model


# Autoencoder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(("stage", "unit"), [("infilling", "position"), ("queries", "bar"), ("variational", None)])
def test_every_stage_learns(stage: str, unit: str | None, corpus: Path, cache: Path):
    torch.manual_seed(0)
    model = PhraseVae(
        stage,
        unit,
        **SMALL,
        max_tokens=48,
        dropout=0.0,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )
    data = PhraseVaeData({"folder": {"root": str(corpus), "audio": False}}, batch_size=16, cache_dir=str(cache))
    data.connect(model)
    trainer = Trainer(max_steps=15, num_sanity_val_steps=0, limit_val_batches=2, max_epochs=-1, **QUIET)
    data.trainer = trainer
    data.prepare(workers=1, progress=False)
    trainer.validate(model, data, verbose=False)
    before = float(trainer.callback_metrics["val/loss"])
    trainer.fit(model, data)
    assert float(trainer.callback_metrics["train/loss"]) < before - 1
    metrics = trainer.validate(model, data, verbose=False)[0]
    assert metrics["val/loss"] < before - 1
    assert 0 < metrics["val/token_accuracy"] <= 1
    assert ("val/note_f1" in metrics) == (stage != "infilling")
    assert ("val/kl" in metrics) == (stage == "variational")


def test_a_stage_starts_with_the_t5_of_another(tmp_path: Path):
    first = PhraseVae("infilling", **SMALL)
    save_weights(first, tmp_path / "first", half=False)
    second = PhraseVae("queries", init_from=str(tmp_path / "first"), **SMALL)
    second.initialise()
    for name, tensor in second.network.t5.state_dict().items():
        assert torch.equal(tensor, first.network.t5.state_dict()[name]), name
    wider = PhraseVae(init_from=str(tmp_path / "first"), **{**SMALL, "hidden_dim": 128})
    with pytest.raises(CheckpointError, match="has hidden_dim 64, this model 128"):
        wider.initialise()


def test_rows_of_bars_are_masked_and_whole_in_the_labels():
    make = Rows(0, 128, None, True)
    bar = [IDS[token] for token in ["i-0", "o-0", "p-60", "d-12", "o-12", "p-62", "d-12", "b-1"]]
    shown, wanted = make(bar, np.random.default_rng(0))
    assert MASK_ID in shown
    assert wanted == [*bar, EOS_ID]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Part:
    """Three songs as a `PhraseCodec` prepares them, the second of them with sections."""
    folder = tmp_path_factory.mktemp("prepared")
    codec = PhraseVae(**SMALL).codec
    entries = []
    for number, (count, plan) in enumerate([(8, ""), (10, "i2 A4 B4"), (16, "A8 B8")]):
        record = Record("folder", id=str(number), piece=str(number), split="train", midi=folder / "none.mid")
        song = codec.song(performance_from_bars(bars_of(number, count)), parse_sections(plan) if plan else ())
        arrays = song_arrays(song)
        rows = len(arrays["lengths"])
        # Latents that tell where they are from: song, shift, row.
        latents = np.zeros((3, rows, 8), np.float32)
        latents[..., 0], latents[..., 1] = number, np.arange(3)[:, None]
        latents[..., 2] = np.arange(rows)
        entry = Prepared(record, folder / str(number))
        np.savez(entry.notes_path, **arrays, latents=latents)
        entries.append(entry)
    return Part("folder", 1.0, entries)


def test_training_rows_are_alike_in_length_and_move_through_the_keys(prepared: Part):
    phrases = Phrases(prepared)
    assert len(phrases.ids) == 2 * (8 + 10 + 16)
    assert {tuple(ids.tolist()) for ids in phrases.specials} == {(INST_ID,), (BAR_ID,), (SEP_ID,)}
    rows = RandomRows([phrases], [1.0], Rows(4, 128, None, False), batch=16, seed=0, transpose=6, specials=0.0)
    assert len(rows) % 16 == 0
    for start in range(0, 4 * 16, 16):
        lengths = {len(rows[number][0]) for number in range(start, start + 16)}
        assert max(lengths) - min(lengths) <= 10  # a melody of four notes or a note of the piano
    pitches = {token % 12 for number in range(300) for token in rows[number][1] if token in PITCH_IDS}
    assert pitches == set(range(12))
    assert rows[5] == rows[5]
    assert rows[5] != rows[5 + len(rows)]
    special = RandomRows([phrases], [1.0], Rows(4, 128, None, False), batch=16, seed=0, transpose=0, specials=1.0)
    assert {tuple(special[number][1]) for number in range(100)} == {(i, EOS_ID) for i in (INST_ID, BAR_ID, SEP_ID)}
    every = EveryRow([phrases], Rows(4, 128, None, False), limit=20)
    assert len(every) == 20 + 3
    assert [len(every[i][0]) for i in range(23)] == sorted(len(every[i][0]) for i in range(23))


def test_phrases_become_vectors_and_texts(vae_folder: Path):
    model = load_model(str(vae_folder))
    texts = ["i-0 o-0 p-60 d-12", "b-1", "i-13 o-12 p-72 d-3 o-24 p-74 d-3", "i-0 o-0 p-60 d-12"]
    latents = model.encode(texts)
    assert latents.shape == (4, 8)
    assert torch.equal(latents[0], latents[3])
    alone = torch.cat([model.encode([text]) for text in texts])
    torch.testing.assert_close(latents, alone, atol=1e-5, rtol=0)
    decoded = model.decode(latents, model.shortcuts())
    assert len(decoded) == 4
    assert decoded[1] == "b-1"
    with pytest.raises(UsageError, match="stage infilling has no bottleneck"):
        PhraseVae("infilling", **SMALL).encode(texts)


def test_examples_are_of_the_unit_of_the_model(corpus: Path, cache: Path):
    for stage, unit in itertools.product(("infilling", "queries", "variational"), ("phrase", "bar", "position", None)):
        model = PhraseVae(stage, unit, **SMALL)
        assert model.unit == unit or (stage == "infilling") == (model.unit == "bar")
        data = PhraseVaeData({"folder": {"root": str(corpus), "audio": False}}, 2, cache_dir=str(cache))
        data.connect(model)
        data.prepare(workers=1, progress=False)
        data.setup("validate")
        dataset = data.dataset("validation")
        # 13 bars of two phrases, one of which has four onsets.
        assert len(dataset) == {"phrase": 26 + 3, "bar": 13 + 1, "position": 65 + 2}[model.unit]
        for number in range(len(dataset)):
            shown, wanted = dataset[number]
            assert wanted[-1] == EOS_ID
            assert is_unit(wanted[:-1], model.unit)
            assert (shown[model.queries + 1 :] != wanted) == (stage == "infilling")


@pytest.mark.parametrize("unit", ["bar", "position"])
@pytest.mark.parametrize("compat", [None, "published"])
def test_songs_are_put_together_from_bars_and_positions(unit: str, compat: str | None, song: Path):
    """Every vector is decoded to what it was made of, without the network."""

    class Perfect(PhraseVae):
        def encode(self, phrases):
            assert all(is_unit(ids, unit) for ids in phrases)
            return torch.tensor([[number, *ids, *[0] * (99 - len(ids))] for number, ids in enumerate(phrases)])

        def decode(self, latents, shortcuts=None):
            return [to_text(number for number in row[1:].tolist() if number) for row in latents]

    model = Perfect(unit=unit, compat=compat, **SMALL)
    example = model.codec.encode(song)["song"]
    assert model.reconstruct(example).bars == model.codec.decode_texts(example.slots).bars
    assert not model.reconstruct(example).repaired


def test_bars_that_are_lost_count_as_such(song: Path, tmp_path: Path):
    class Short(PhraseVae):
        def encode(self, phrases):
            return phrases

        def decode(self, latents, shortcuts=None):
            return [*latents[:12], *["[SEP]"] * (len(latents) - 12)]

    _, report = compose_one(Short(**SMALL), tmp_path, [song])
    assert (report["bars"], report["note_f1"]) == (6, 0.5)


def test_units_are_not_mixed_up(vae_folder: Path, tmp_path: Path):
    phrase, bar = "i-0 o-0 p-60 d-12 o-12 p-62 d-12", "i-0 o-0 p-60 d-12 b-1"
    fitting = {"phrase": [phrase, "b-1", "[INST]"], "bar": [bar, "b-1"], "position": ["o-12 p-62 d-12", "b-1"]}
    others = {"phrase": [bar, f"{phrase} {phrase}"], "bar": [phrase], "position": [phrase]}
    torch.manual_seed(0)
    for unit, texts in fitting.items():
        model = PhraseVae(unit=unit, **SMALL, max_tokens=24).eval()
        read = parse(" ".join(model.decode(3 * torch.randn(8, 8))))
        assert not read.dropped.keys() - {"o", "p", "d"}  # where a text is cut
        assert model.encode(texts).shape == (len(texts), 8)
        for text in others[unit]:
            with pytest.raises(UsageError, match=f"takes single {unit}s, which '{text}' is not"):
                model.encode([text])
    bars = tmp_path / "bars"
    save_weights(PhraseVae(unit="bar", **SMALL).eval(), bars, half=False)
    with pytest.raises(CheckpointError, match="is an autoencoder of bars, not of phrases"):
        composer(bars).end_latent()
    assert load_model(str(bars)).unit == "bar"


# Latents of songs


def test_examples_are_rows_of_the_table(prepared: Part):
    table = LatentTable([prepared], end=torch.full((8,), -1.0))
    songs = EverySong(table, slots=4, max_bars=12, section_ids=SectionIds(), layout_ids=LayoutIds())
    first, second, long = (songs[number] for number in range(3))
    values = table.values[first["rows"]]
    assert (values[:32, 0] == 0).all()
    assert (values[:32, 1] == 1).all()  # not moved
    assert values[:32, 2].tolist() == list(range(32))
    assert (values[32:] == -1).all()
    assert first["bars"] == 8
    assert not first["types"].any()
    assert second["bars"] == 10
    assert second["lengths"][:4].tolist() == [2, 4, 4, 0]
    layout = LayoutIds().encode([(13, 0)] * 8, 4, 48)
    assert torch.equal(first["layout"], layout)
    piano = EverySong(table, slots=4, max_bars=12, section_ids=SectionIds(), layout_ids=LayoutIds((0,)))
    assert (piano[0]["layout"] == LayoutIds((0,)).unknown).all(), "a layout with a program that has no id is none"
    # Of a song that is too long, as many sections as there is room for.
    assert long["bars"] == 8
    assert long["lengths"][:2].tolist() == [8, 0]
    scale, quantile = table.statistics()
    assert scale > 0 and quantile > scale


def test_training_examples_are_cut_moved_and_rearranged(prepared: Part):
    table = LatentTable([prepared], end=torch.full((8,), -1.0))
    arguments = {
        "slots": 4,
        "max_bars": 12,
        "section_ids": SectionIds(),
        "layout_ids": LayoutIds(),
        "weights": [1.0],
        "seed": 0,
    }
    plain = RandomSongs(table, **arguments, augmentations=[], augmented=0.0, examples_per_song=2)
    assert len(plain) == 6
    seen = set()
    for number in range(60):
        example = plain[number]
        values = table.values[example["rows"]][: 4 * int(example["bars"])]
        assert (values[:, :2] == values[0, :2]).all()
        assert (values[:, 2].diff() == 1).all()
        seen.add((*values[0, :2].tolist(), values[0, 2].item()))
    assert {shift for _, shift, _ in seen} == {0.0, 1.0, 2.0}
    assert {place for song, _, place in seen if song == 2} == {0.0, 32.0}  # both sections of the song that is cut
    turned = RandomSongs(table, **arguments, augmentations=["permuted_sections"], augmented=1.0, examples_per_song=2)
    plans = set()
    for number in range(60):
        example = turned[number]
        values = table.values[example["rows"]][: 4 * int(example["bars"])]
        if values[0, 0] != 1:
            continue
        plan = [length for length in example["lengths"].tolist() if length]
        assert sum(plan) == example["bars"]
        plans.add(tuple(plan))
    assert len(plans) > 2


def test_a_song_whose_only_section_is_too_long_is_cut(prepared: Part):
    table = LatentTable([prepared], end=torch.full((8,), -1.0))
    song = EverySong(table, slots=4, max_bars=6, section_ids=SectionIds(), layout_ids=LayoutIds())[2]
    assert song["bars"] == 6
    assert not song["types"].any()


def test_unknown_sections_are_no_condition():
    ids = SectionIds()
    assert ids.knows([Section("A", 32)])
    assert not ids.knows([Section("A", 33)])
    assert not ids.knows([Section("Q", 4)])
    assert not ids.knows([Section("A", 1)] * 31)


def test_fit_measures_the_scale_and_the_checkpoint_carries_the_autoencoder(
    corpus: Path, vae_folder: Path, tmp_path: Path
):
    model = composer(vae_folder, conditions=["length", "sections", "layout"])
    data = PhraseLdmData(
        {"folder": {"root": str(corpus), "audio": False}},
        batch_size=3,
        cache_dir=str(tmp_path / "cache"),
        transpose=1,
        augmentations=["permuted_bars"],
    )
    data.connect(model)
    trainer = Trainer(max_epochs=1, num_sanity_val_steps=0, default_root_dir=tmp_path, **QUIET)
    trainer.fit(model, data)
    train = torch.cat([torch.from_numpy(p.arrays()["latents"]).flatten(0, 2) for p in data.parts("train")[0].prepared])
    assert model.measured
    assert 0.2 * train.std() < model.scale < 5 * train.std()
    assert "val/loss" in trainer.callback_metrics
    trainer.save_checkpoint(tmp_path / "songs.ckpt")
    assert not any(name.startswith("vae") for name in model.state_dict())
    vae_folder.rename(vae_folder.with_name("moved"))
    try:
        alone = load_model(str(tmp_path / "songs.ckpt"))
        assert torch.equal(alone.end_latent(), model.end_latent())
        assert torch.equal(alone.scale, model.scale)
    finally:
        vae_folder.with_name("moved").rename(vae_folder)
    other = composer(vae_folder, latent=16)
    with pytest.raises(CheckpointError, match="has latent 8, this model 16"):
        other.end_latent()


# Composing


def compose_one(model: PhraseLdm, folder: Path, inputs: list[Path], **options):
    """The performance and the report of the only output."""
    report = predict(model, inputs, folder / "out.mid", **options)
    (outcome,) = report.outcomes
    assert outcome.status == "written", outcome.reason + outcome.trace
    return read_midi(folder / "out.mid"), outcome.report


def notes_of(performance, start: float, end: float, program: int | None = None) -> set[tuple]:
    """(beat, pitch, beats) of the notes that begin within two beats."""
    notes = performance.notes
    onset = notes["onset_tick"] / performance.ticks_per_quarter
    chosen = (onset >= start) & (onset < end)
    if program is not None:
        chosen &= notes["program"] == program
    beats = notes["duration_tick"] / performance.ticks_per_quarter
    return {
        (round(o, 3), int(p), round(d, 3))
        for o, p, d in zip(onset[chosen], notes["pitch"][chosen], beats[chosen], strict=True)
    }


def test_a_song_has_the_bars_that_were_asked_for(vae_folder: Path, tmp_path: Path):
    model = composer(vae_folder, bars=7)
    _, report = compose_one(model, tmp_path, [], seed=1)
    assert report["bars"] == 7
    planned = composer(vae_folder, sections="i2 A4 o1", conditions=["sections"], guidance=2.0)
    _, report = compose_one(planned, tmp_path, [])
    assert report["bars"] == 7
    assert report["sections"] == "i2 A4 o1"
    arranged = composer(vae_folder, layout="0*2 13+0*4 -", conditions=["layout"], guidance=2.0)
    _, report = compose_one(arranged, tmp_path, [])
    assert report["bars"] == 7


def test_continuation_keeps_the_beginning(vae_folder: Path, song: Path, tmp_path: Path):
    given = read_midi(song)
    found, report = compose_one(composer(vae_folder, mode="continue", bars=10), tmp_path, [song])
    assert report["bars"] == 10
    assert notes_of(found, 0, 24) == notes_of(given, 0, 24)


def test_a_song_that_was_composed_here_is_understood(vae_folder: Path, tmp_path: Path):
    """Its melody is on another program, an octave higher, than the one that the model knows."""
    performed = performance_from_bars(bars_of(3, 6), programs={13: 87}, transpose={13: 12})
    assert {0, 87} == set(performed.notes["program"].tolist())
    song = tmp_path / "composed.mid"
    write_midi(performed, song)
    model = composer(vae_folder, mode="continue", bars=10)
    plain = tmp_path / "plain.mid"
    write_midi(performance_from_bars(bars_of(3, 6)), plain)
    assert model.codec.encode(song)["song"].slots == model.codec.encode(plain)["song"].slots
    found, _ = compose_one(model, tmp_path, [song])
    assert notes_of(found, 0, 24) == notes_of(read_midi(song), 0, 24)
    assert 13 not in found.notes["program"]
    as_it_is = composer(vae_folder, mode="continue", bars=10, arranged=False)
    assert any("i-87" in text for text in as_it_is.codec.encode(song)["song"].slots)
    # What has a melody that the model knows keeps its synthesiser.
    both = read_midi(plain)
    both.notes["program"][both.notes["program"] == 0] = 87
    write_midi(both, song)
    assert any("i-87" in text for text in model.codec.encode(song)["song"].slots)


def test_instruments_that_stand_for_others(vae_folder: Path, tmp_path: Path):
    song = tmp_path / "violin.mid"
    write_midi(performance_from_bars(bars_of(3, 6), programs={13: 40}), song)
    options = {"mode": "infill", "instruments": {40: 13}}
    found, _ = compose_one(composer(vae_folder, **options, keep=[40]), tmp_path, [song])
    given = read_midi(song)
    melody = {tuple(note) for note in given.notes[given.notes["program"] == 40][["onset_tick", "pitch"]].tolist()}
    kept = {tuple(note) for note in found.notes[found.notes["program"] == 40][["onset_tick", "pitch"]].tolist()}
    ticks = found.ticks_per_quarter / given.ticks_per_quarter
    assert kept == {(onset * ticks, pitch) for onset, pitch in melody} and 13 not in found.notes["program"]
    for wrong, keep, message in (
        ({40: 13}, [13], "keep: the song has no program 13; it has 0, 40"),
        ({41: 13}, [40], "instruments: the song has no program 41; it has 0, 40"),
        ({40: 0}, [40], "instruments: the song plays program 0 as well as 40: name another for 0"),
    ):
        model = composer(vae_folder, mode="infill", instruments=wrong, keep=keep)
        (failed,) = predict(model, [song], tmp_path / "no.mid").outcomes
        assert failed.status == "failed" and message in failed.reason
    for wrong, message in (({40: 13, 41: 13}, "cannot be taken for the same"), ({40: 128}, "programs are 0 to 127")):
        with pytest.raises(UsageError, match=message):
            composer(vae_folder, **{**options, "instruments": wrong})


def test_what_is_given_is_in_the_latents(vae_folder: Path, song: Path, tmp_path: Path):
    """The network sees what is given, and between two songs are both."""
    model = composer(vae_folder, mode="continue", bars=10)
    example = model.codec.encode(song)["song"]
    noise = Noise([Item(song, tmp_path / "x.mid", "key")])
    (found,) = sample_latents(model, [request(model, example)], noise)
    own = model.vae.encode(example.slots)
    torch.testing.assert_close(found[:24], own, atol=1e-4, rtol=1e-4)
    assert not torch.isclose(found[24:40], model.end_latent(), atol=1e-2).all(dim=1).any()
    torch.testing.assert_close(found[40:], model.end_latent().expand(8, -1), atol=1e-4, rtol=1e-4)
    other = tmp_path / "other.mid"
    write_midi(performance_from_bars(bars_of(3, 6)), other)
    between = composer(vae_folder, mode="interpolate", other=str(other), share=0.25)
    second = between.vae.encode(between.codec.encode(other)["song"].slots)
    torch.testing.assert_close(request(between, example).latents[:24], 0.75 * own + 0.25 * second)


@pytest.mark.parametrize("dropped", [0.0, 1.0])
def test_conditions_are_left_out_in_training(vae_folder: Path, dropped: float):
    model = composer(vae_folder, conditions=["length"], cfg_dropout=dropped).train()
    batch = {"latents": torch.randn(4, 48, 8), "bars": torch.tensor([3, 5, 7, 9])}
    batch |= {name: torch.zeros(4, 30, dtype=torch.long) for name in ("types", "lengths")}
    model.training_step(batch, 0).backward()
    assert (float(model.network.length_encoder.length_embedding.weight.grad.abs().sum()) == 0) == bool(dropped)


def test_infilled_bars_lie_between_the_others(vae_folder: Path, song: Path, tmp_path: Path):
    given = read_midi(song)
    found, report = compose_one(composer(vae_folder, mode="infill", redo="2-3,5"), tmp_path, [song])
    assert report["bars"] == 6
    for bar in (0, 3, 5):
        assert notes_of(found, 4 * bar, 4 * bar + 4) == notes_of(given, 4 * bar, 4 * bar + 4)
    assert notes_of(found, 4, 12) != notes_of(given, 4, 12)


@pytest.mark.parametrize("solver", ["dpm_solver", "ddim"])
def test_an_accompaniment_leaves_the_melody_alone(vae_folder: Path, song: Path, tmp_path: Path, solver: str):
    given = read_midi(song)
    repeats = 1 if solver == "dpm_solver" else 2
    model = composer(vae_folder, mode="infill", keep=[13], solver=solver, repeats=repeats)
    found, report = compose_one(model, tmp_path, [song])
    assert report["bars"] == 6
    assert notes_of(found, 0, 24, 13) == notes_of(given, 0, 24, 13)
    assert notes_of(found, 0, 24, 0) != notes_of(given, 0, 24, 0)


def test_no_noise_varies_nothing(vae_folder: Path, song: Path, tmp_path: Path):
    model = composer(vae_folder, mode="vary", strength=0.0)
    example = model.codec.encode(song)
    noise = Noise([Item(song, tmp_path / "x.mid", "key")])
    ((_, same),) = model.render([example], noise)
    kept = model.vae.reconstruct(example["song"])
    assert same.report["bars"] == 6
    pitches = [sorted(n.pitch for t in bar.tracks for n in t.notes) for bar in kept.bars]
    assert sorted(same.performance.notes["pitch"].tolist()) == sorted(
        pitch - example["song"].shift for bar in pitches for pitch in bar
    )


def test_between_a_song_and_itself_is_itself(vae_folder: Path, song: Path, tmp_path: Path):
    halfway = composer(vae_folder, mode="interpolate", other=str(song), strength=0.0)
    varied = composer(vae_folder, mode="vary", strength=0.0)
    first, _ = compose_one(halfway, tmp_path, [song])
    second, _ = compose_one(varied, tmp_path, [song])
    assert first.notes.tobytes() == second.notes.tobytes()


def test_between_two_songs_is_as_long_as_the_longer(vae_folder: Path, song: Path, tmp_path: Path):
    longer = tmp_path / "longer.mid"
    write_midi(performance_from_bars(bars_of(3, 9)), longer)
    options = {"mode": "interpolate", "other": str(longer), "conditions": ["layout"]}
    _, report = compose_one(composer(vae_folder, **options, layout="13+0*9"), tmp_path, [song])
    assert report["bars"] == 9
    (failed,) = predict(composer(vae_folder, **options, layout="13+0*6"), [song], tmp_path / "no.mid").outcomes
    assert failed.reason == "the longer song has 9 bars: mode interpolate keeps them"


def test_the_key_is_the_one_that_was_asked_for(vae_folder: Path, song: Path, tmp_path: Path):
    model = composer(vae_folder, mode="continue", bars=7)
    at_home, _ = compose_one(model, tmp_path, [song])
    elsewhere, _ = compose_one(composer(vae_folder, mode="continue", bars=7, key="E"), tmp_path, [song])
    shift = {
        b[1] - a[1] for a, b in zip(sorted(notes_of(at_home, 0, 24)), sorted(notes_of(elsewhere, 0, 24)), strict=True)
    }
    assert shift == {2}
    faster, _ = compose_one(composer(vae_folder, mode="continue", bars=7, tempo=150.0), tmp_path, [song])
    assert faster.notes["onset_sec"].max() == pytest.approx(at_home.notes["onset_sec"].max() * 120 / 150, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "has_input", "message"),
    [
        ({"mode": "continue"}, False, "mode continue works on a song"),
        ({}, True, "mode compose makes songs from nothing"),
        ({"mode": "continue", "bars": 5}, True, "has 6 bars already"),
        ({"mode": "infill"}, True, "name the bars to compose anew"),
        ({"mode": "infill", "redo": "5-9"}, True, "5-9 is not within the bars of the song, 1 to 6"),
        ({"mode": "infill", "keep": [40]}, True, "no program 40; it has 0, 13"),
        ({"mode": "vary", "bars": 9}, True, "mode vary keeps them"),
        ({"layout": "13*4", "bars": 5, "conditions": ["layout"]}, False, "several ways (layout 4, bars 5)"),
        ({"layout": "40*4", "conditions": ["layout"]}, False, "no program 40"),
    ],
)
def test_what_cannot_be_done_is_said(vae_folder: Path, song: Path, tmp_path: Path, options, has_input, message):
    report = predict(composer(vae_folder, **options), [song] if has_input else [], tmp_path / "out.mid")
    assert report.outcomes[0].status == "failed"
    assert message in report.outcomes[0].reason
    assert "\n" not in report.outcomes[0].reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.5}, "strength is 1.5"),
        ({"redo": "1"}, "set mode to infill"),
        ({"mode": "interpolate"}, "belong together"),
        ({"bars": 13}, "the model takes 1 to 12"),
        ({"repeats": 2}, "repeats needs solver"),
        ({"key": "H"}, "'H' is no key"),
        ({"tempo": 0.0}, "tempo is 0.0"),
        ({"section_lengths": [8, 4]}, "in an order of their own"),
        ({"sections": "A8"}, "not trained with plans"),
        ({"layout": "13*4"}, "not trained with layouts"),
        ({"conditions": ["sections", "layout"], "compat": "published"}, "not both"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        PhraseLdm(vae="none", **{**DENOISER, **options})


def test_lists_of_bars():
    assert parse_bars("2-4, 1", 8) == {0, 1, 2, 3}
    for text in ("", "a", "3-", "0", "4-2", "9"):
        with pytest.raises(UsageError, match="redo"):
            parse_bars(text, 8)


def test_other_programs_read_what_is_composed(vae_folder: Path, song: Path, tmp_path: Path):
    import partitura
    import pretty_midi

    found, _ = compose_one(composer(vae_folder, mode="infill", keep=[13]), tmp_path, [song])
    assert len(found.notes)
    read = pretty_midi.PrettyMIDI(str(tmp_path / "out.mid"))
    assert sum(len(instrument.notes) for instrument in read.instruments) == len(found.notes)
    assert all(instrument.name for instrument in read.instruments)
    assert len(partitura.load_performance_midi(tmp_path / "out.mid").note_array()) == len(found.notes)
    symusic = pytest.importorskip("symusic")
    assert sum(len(track.notes) for track in symusic.Score(str(tmp_path / "out.mid")).tracks) == len(found.notes)


def test_a_song_does_not_depend_on_its_batch(vae_folder: Path, tmp_path: Path):
    together = []

    class Watched(PhraseLdm):
        def render(self, batch, noise):
            together.append(len(batch))
            return super().render(batch, noise)

    torch.manual_seed(0)
    model = Watched(vae=str(vae_folder), **DENOISER).eval()
    for folder, batch in (("one", 1), ("two", None)):
        report = predict(model, [], tmp_path / folder, count=2, batch_size=batch, seed=3)
        assert [outcome.status for outcome in report.outcomes] == ["written"] * 2
    assert together == [1, 1, 2], "songs are composed together unless a batch size says otherwise"
    names = [path.name for path in sorted((tmp_path / "one").glob("*.mid"))]
    assert names == ["watched-1.mid", "watched-2.mid"]
    songs = [read_midi(tmp_path / folder / name).notes for name in names for folder in ("one", "two")]
    assert songs[0].tobytes() == songs[1].tobytes()
    assert songs[0].tobytes() != songs[2].tobytes()


# Published weights


def hub(folder: Path, state: dict[str, torch.Tensor], **config) -> Path:
    folder.mkdir()
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_published_models_are_read_with_the_autoencoder_beside_them(tmp_path: Path):
    torch.manual_seed(0)
    vae = PhraseVae(**SMALL)
    state = {f"model.{name.removeprefix('network.')}": tensor for name, tensor in vae.state_dict().items()}
    hub(tmp_path / "phrase-vae", state, t5_config={}, n_compress_tokens=4)
    ldm = PhraseLdm(vae=str(tmp_path / "phrase-vae"), **{**DENOISER, "conditions": ["length"]}, compat="published")
    state = {name.removeprefix("network."): t for name, t in ldm.state_dict().items() if name.startswith("network.")}
    config = {"scale_factor": 0.7, "clip_range": 3.0, "diffusion_steps": 5}
    hub(tmp_path / "ldm", state, **config, model_config={"attention_head_dim": 16, "sample_size": 48})
    main(["import", "phrase_ldm", str(tmp_path / "ldm"), "--output", str(tmp_path / "ldm.ckpt")])
    main(["import", "phrase_vae", str(tmp_path / "phrase-vae"), "--output", str(tmp_path / "vae.ckpt")])
    model = load_model(str(tmp_path / "ldm.ckpt"), bars=3)
    assert (float(model.scale), float(model.clip)) == (pytest.approx(0.7), 3.0)
    assert (model.hparams.max_bars, model.hparams.sample_steps, model.hparams.solver) == (12, 5, "ddpm")
    assert model.conditions == {"length"}
    published = load_model(str(tmp_path / "vae.ckpt"))
    for name, tensor in vae.state_dict().items():
        assert torch.equal(published.state_dict()[name], tensor), name
    assert torch.equal(model.end_latent(), published.encode(["[SEP]"])[0])
    assert torch.equal(model.padding(), 0.7 * model.end_latent())
    compose_one(model, tmp_path, [])


# Commands and processes


def test_commands_from_corpus_to_songs(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, song: Path):
    monkeypatch.chdir(tmp_path)
    trainer = [
        *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.max_steps=2"),
        *("--trainer.limit_val_batches=1", "--data.corpora.folder.root", str(corpus), "--data.cache_dir=cache"),
    ]
    main(["fit", "--config=phrase_vae/tiny", *trainer, "--trainer.default_root_dir=vae"])
    (vae,) = Path("vae").rglob("last.ckpt")
    words = ["--model.latent=16", f"--model.vae={vae}", *trainer]
    main(["prepare", "--config=phrase_ldm/tiny", *words[:2], *trainer[3:]])
    prepared = sorted(Path("cache").glob("*/*.npz"))
    main(["fit", "--config=phrase_ldm/tiny", *words, "--trainer.default_root_dir=ldm"])
    assert sorted(Path("cache").glob("*/*.npz")) == prepared
    (ldm,) = Path("ldm").rglob("last.ckpt")
    main(["predict", f"--ckpt_path={ldm}", "--songs=2", "--output=songs/", "--plot", "--model.bars=4"])
    assert sorted(path.name for path in Path("songs").iterdir()) == [
        f"phraseldm-{number}.mid{suffix}" for number in (1, 2) for suffix in ("", ".json", ".png")
    ]
    assert json.loads(Path("songs/phraseldm-1.mid.json").read_text())["bars"] == 4
    main(["predict", str(song), f"--ckpt_path={ldm}", "--model.mode=continue", "--output=more.mid"])
    assert len(read_midi(Path("more.mid")).notes)
    violin = read_midi(song)
    violin.notes["program"][violin.notes["program"] == 13] = 40
    write_midi(violin, Path("violin.mid"))
    words = ["predict", "violin.mid", f"--ckpt_path={ldm}", "--model.mode=infill", "--model.keep=[40]"]
    assert main([*words, "--model.instruments={40: 13}", "--output=band.mid"]) == 0
    assert 40 in read_midi(Path("band.mid")).notes["program"]


DDP_SCRIPT = """
import sys
from pathlib import Path
import torch
from lightning.pytorch import Callback, Trainer
from midisynth.models.phrase_ldm import PhraseLdm, PhraseLdmData

class Watch(Callback):
    def __init__(self):
        self.seen, self.without = [], set()
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(batch["rows"].tolist())
    def on_after_backward(self, trainer, module):
        self.without |= {n for n, p in module.named_parameters() if p.requires_grad and p.grad is None}
    def on_train_end(self, trainer, module):
        state = {n: p.detach().clone() for n, p in module.named_parameters()}
        torch.save((self.seen, sorted(self.without), state), f"{trainer.global_rank}.pt")

root, vae, options = sys.argv[1], sys.argv[2], eval(sys.argv[3])
torch.manual_seed(0)
model = PhraseLdm(vae=vae, conditions=["length", "sections", "layout"], **options)
data = PhraseLdmData({"folder": {"root": root, "audio": False}}, 1, cache_dir="cache")
data.connect(model)
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=2, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    callbacks=[Watch()],
)
trainer.fit(model, data)
"""


def test_two_processes_share_the_work(corpus: Path, vae_folder: Path, tmp_path: Path):
    """Processes train on different songs, every parameter has a gradient, and weights stay equal."""
    (tmp_path / "train.py").write_text(DDP_SCRIPT)
    command = [sys.executable, "train.py", str(corpus), str(vae_folder), repr(DENOISER)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    (seen, missing, one), (others, _, two) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(seen) == len(others) == 2
    assert not any(a == b for a, b in zip(seen, others, strict=True))
    assert missing == []
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
