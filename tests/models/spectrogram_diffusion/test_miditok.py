"""MidiTok's tokens as the tokens of the model."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from midisynth.checkpoints import load_model
from midisynth.errors import UsageError
from midisynth.models.spectrogram_diffusion.miditok_codec import MidiTokTokens
from midisynth.music.midi import read_midi
from midisynth.music.notes import NOTE_DTYPE, is_drum
from midisynth.music.pedal import extend_by_pedal
from midisynth.testing import run

miditok = pytest.importorskip("miditok", reason="tokens by MidiTok need the package miditok")

ROOT = Path(__file__).parents[3]
SEGMENT_SEC = 5.12
CLASSES = ("REMI", "TSD", "MIDILike", "Structured")


def notes_of(*rows: tuple[float, float, int, int, int]) -> np.ndarray:
    """Notes from onset, end, pitch, program (-1: drum), velocity."""
    notes = np.zeros(len(rows), NOTE_DTYPE)
    for note, (onset, end, pitch, program, velocity) in zip(notes, rows, strict=True):
        note["onset_sec"], note["duration_sec"], note["pitch"], note["velocity"] = onset, end - onset, pitch, velocity
        note["program"], note["channel"] = max(program, 0), 9 if program < 0 else 0
    return notes


def decoded(tokens: MidiTokTokens, ids: list[int]) -> list[tuple[int, int, int, int, int]]:
    """Onset and end (1/100 s), pitch, program and velocity of what MidiTok reads from ids, sorted."""
    tokenizer = tokens._tokenizer
    score = tokenizer.decode(ids)
    scale = 50 / score.tpq
    return sorted(
        (round(n.time * scale), round(n.end * scale), n.pitch, -1 if track.is_drum else track.program, n.velocity)
        for track in score.tracks
        for n in track.notes
    )


@pytest.mark.parametrize("name", CLASSES)
def test_notes_come_back(name: str):
    """To 10 ms, with programs and drums; velocities to MidiTok's 32 steps."""
    tokens = MidiTokTokens(name, SEGMENT_SEC)
    notes = notes_of(
        (10.0, 11.0, 60, 0, 79), (10.5, 10.61, 64, 0, 95), (11.0, 14.0, 55, 40, 64), (12.34, 12.4, 36, -1, 111)
    )
    ids = tokens.segment(notes, 10.0)
    assert ids[0] == tokens.tie and max(ids) < len(tokens) and 0 not in ids
    found = decoded(tokens, ids[1:])
    assert [row[:4] for row in found] == [(0, 100, 60, 0), (50, 61, 64, 0), (100, 400, 55, 40), (234, 240, 36, -1)]
    assert [row[4] for row in found] == pytest.approx([79, 95, 64, 111], abs=2)


@pytest.mark.parametrize("name", CLASSES)
def test_held_notes_come_before_the_tie(name: str):
    """What sounds already is told apart from what is struck at the start, and lasts as long as is left of it."""
    tokens = MidiTokTokens(name, SEGMENT_SEC)
    notes = notes_of((1.0, 4.0, 60, 0, 79), (0.5, 30.0, 48, 40, 64), (2.0, 2.5, 72, 0, 79), (0.0, 1.99, 50, 0, 64))
    ids = tokens.segment(notes, 2.0)
    tie = ids.index(tokens.tie)
    assert [row[:4] for row in decoded(tokens, ids[:tie])] == [(0, 200, 60, 0), (0, 512, 48, 40)]
    assert [row[:4] for row in decoded(tokens, ids[tie + 1 :])] == [(0, 50, 72, 0)]


def test_silence_and_drums_that_were_struck_before_are_nothing():
    tokens = MidiTokTokens("TSD", SEGMENT_SEC)
    assert tokens.segment(notes_of(), 3.0) == [tokens.tie]
    assert tokens.segment(notes_of((1.9, 2.4, 38, -1, 90), (60.0, 61.0, 60, 0, 90)), 2.0) == [tokens.tie]


def test_a_real_piece(midi_files):
    """Every onset of an ensemble with drums, found where it is."""
    notes = extend_by_pedal(read_midi(midi_files[1])).notes
    tokens = MidiTokTokens("TSD", SEGMENT_SEC)
    ids = tokens.segment(notes, 1.0)
    inside = notes[(notes["onset_sec"] >= 1.0) & (notes["onset_sec"] < 1.0 + SEGMENT_SEC)]
    program = np.where(is_drum(inside), -1, inside["program"])
    step = np.rint((inside["onset_sec"] - 1.0) * 100).astype(int)
    wanted = set(zip(step.tolist(), inside["pitch"].tolist(), program.tolist(), strict=True))
    found = {(row[0], row[2], row[3]) for row in decoded(tokens, ids[ids.index(tokens.tie) + 1 :])}
    assert wanted == found


@pytest.mark.parametrize("name", ["REMI", {"tokenization": "MIDILike", "num_velocities": 8, "beat_res": {"0_12": 25}}])
def test_its_content_makes_the_same_tokenizer(name, midi_files, tmp_path):
    notes = extend_by_pedal(read_midi(midi_files[0])).notes
    tokens = MidiTokTokens(name, SEGMENT_SEC)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokens.content))
    copies = [
        MidiTokTokens(tokens.content, SEGMENT_SEC),
        MidiTokTokens(str(tmp_path / "tokenizer.json"), SEGMENT_SEC),
        pickle.loads(pickle.dumps(tokens)),  # to a loader's processes
    ]
    for copy in copies:
        assert len(copy) == len(tokens) and copy.segment(notes, 1.0) == tokens.segment(notes, 1.0)


def test_a_trained_tokenizer(midi_files, tmp_path):
    """Byte pair encoding joins tokens; its merges are part of tokenizer.json, and of the content."""
    config = miditok.TokenizerConfig(pitch_range=(0, 127), use_programs=True, special_tokens=["PAD"])
    tokenizer = miditok.TSD(config)
    tokenizer.train(vocab_size=len(tokenizer) + 40, files_paths=[str(path) for path in midi_files])
    tokenizer.save(tmp_path / "tokenizer.json")
    tokens = MidiTokTokens(str(tmp_path / "tokenizer.json"), SEGMENT_SEC)
    notes = extend_by_pedal(read_midi(midi_files[0])).notes
    ids = tokens.segment(notes, 0.5)
    assert len(tokens) == len(tokenizer) + 1 and any(len(tokenizer) - 40 <= i < len(tokenizer) for i in ids)
    assert MidiTokTokens(tokens.content, SEGMENT_SEC).segment(notes, 0.5) == ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("Remi", "Remi"),
        ("Octuple", "several ids"),
        ({"tokenization": "TSD", "num_velocitys": 8}, "num_velocitys"),
        ({"tokenization": "TSD", "use_programs": False}, "use_programs"),
        ({"tokenization": "TSD", "beat_res": {"four": 8}}, "beat_res"),
        ({"tokenization": "TSD", "special_tokens": ["BOS", "PAD"]}, "PAD"),
        ("missing.json", "missing.json"),
    ],
)
def test_what_cannot_be_used_is_an_error_that_says_so(settings, message):
    with pytest.raises(UsageError, match=message):
        MidiTokTokens(settings, SEGMENT_SEC)


def test_it_belongs_to_new_models(build):
    with pytest.raises(UsageError, match="tokenizer"):
        build(compat="seed", tokenizer="REMI")


def test_trains_and_renders_from_its_checkpoint_alone(build, excerpts, tmp_path):
    """From the command line with a tokenizer.json that is gone when the checkpoint is used."""
    tokens = MidiTokTokens({"tokenization": "TSD", "num_velocities": 8}, 1.28)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokens.content))
    words = ["--config=spectrogram_diffusion/tiny", f"--model.tokenizer={tmp_path / 'tokenizer.json'}"]
    words += ["--trainer.max_steps=2", f"--trainer.default_root_dir={tmp_path}"]
    words += [f"--data.corpora.folder.root={ROOT / 'examples' / 'data'}"]
    run("fit", *words)
    (tmp_path / "tokenizer.json").unlink()
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    model = load_model(str(checkpoint))
    assert model.codec.miditok.content == tokens.content
    assert model.network.embedding.num_embeddings == len(tokens)
    one, other = (model.codec.encode(path)["segments"][0]["tokens"] for path in excerpts)
    nothing = torch.zeros(1, 4)
    batch = model.codec.collate([{"tokens": one, "notes": nothing}, {"tokens": other, "notes": nothing}])
    with torch.inference_mode():
        generators = [torch.Generator().manual_seed(0) for _ in range(2)]
        mels = model.sample_segments(batch, model.noise_source(generators))
    assert mels.isfinite().all() and not mels[0].equal(mels[1])
    run("predict", str(excerpts[0]), f"--ckpt_path={checkpoint}", f"--output={tmp_path / 'out.wav'}")
    assert (tmp_path / "out.wav").stat().st_size > 10_000
