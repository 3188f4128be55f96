"""Rendering and training of `Midi2Wave` at toy sizes: prompts, excerpts, segments, choices, regimes, collapse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from midisynth import checkpoints, render
from midisynth.errors import AudioError, DataError, UsageError
from midisynth.evaluation import PREDICTION
from midisynth.models.midi2wave import Midi2Wave
from midisynth.models.midi2wave.data import collate
from midisynth.models.midi2wave.evaluation import TEACHER_FORCED, evaluate_batch
from midisynth.models.midi2wave.pieces import LongRoll
from midisynth.music.midi import write_midi
from midisynth.testing import render as rendered
from midisynth.testing_inputs import performance_of

RATE, HOP = 2000, 16
DECODER = {"layers": 4, "max_dilation": 8, "residual": 8, "skip": 8, "hidden": 8}
ENCODER = {"layers": 3, "max_dilation": 4, "residual": 8, "skip": 8, "hidden": 8, "outputs": 8}


def build(**options: Any) -> Midi2Wave:
    torch.manual_seed(0)
    sizes = {"sample_rate": RATE, "ticks_per_sec": RATE // HOP, "decoder": DECODER, "encoder": ENCODER}
    return Midi2Wave(**{**sizes, "engine": "torch", "tail_sec": 0.2, **options}).eval()


@pytest.fixture
def song(tmp_path: Path) -> Path:
    notes = [(0.1 * i, 0.1, 60 + i, 80, 0) for i in range(10)]
    write_midi(performance_of(notes), tmp_path / "song.mid")
    return tmp_path / "song.mid"


@pytest.fixture
def recording(song: Path) -> Path:
    """As long as the song, of which it knows nothing."""
    audio = 0.5 * torch.sin(torch.arange(RATE) * 0.3)
    soundfile.write(song.with_suffix(".wav"), audio.numpy(), RATE, subtype="FLOAT")
    return song.with_suffix(".wav")


def audio_of(model: Midi2Wave, song: Path, seed: int = 0) -> torch.Tensor:
    ((*chunks,),) = rendered(model, [song], seed)
    return torch.cat([chunk.audio for chunk in chunks if chunk.audio is not None], dim=1)[0]


def test_an_excerpt_is_what_the_whole_has_there(song: Path, recording: Path):
    """Primed with the same past, a piece goes on in the same way wherever rendering starts."""
    known = {"prompt": str(recording), "prompt_sec": None, "keep_prompt": True}
    whole = audio_of(build(**known), song)
    assert len(whole) == round(1.2 * RATE)
    companding = build().companding
    sine = companding.decode(companding.encode(torch.from_numpy(soundfile.read(recording, dtype="float32")[0])))
    torch.testing.assert_close(whole[:RATE], sine)
    excerpt = audio_of(build(**known, start_sec=0.4, length_sec=0.48), song)
    torch.testing.assert_close(excerpt, sine[round(0.4 * RATE) : round(0.88 * RATE)])


def test_an_excerpt_hears_the_notes_around_it(song: Path, recording: Path):
    """From the same past all samples are the same: the encoder has read what is before, and looks beyond the end."""
    options = {"prompt": str(recording), "prompt_sec": None, "temperature": 0.0, "lookahead_ticks": 3}
    played = []
    for part in ({}, {"start_sec": 0.4, "length_sec": 0.496}):
        model = build(**options, **part)
        for parameter in model.parameters():
            parameter.data *= 3
        played.append(audio_of(model, song))
    whole, excerpt = played
    first, heard = round(0.4 * RATE), model.network.decoder.receptive_field
    assert len(excerpt[heard:].unique()) > 20
    assert torch.equal(excerpt[heard:], whole[first : first + len(excerpt)][heard:])


def test_the_protocol_of_two_seconds_scaled_down(song: Path, recording: Path):
    """The first part is recorded, and only the second is made; it depends on the seed, and is loud or soft with it."""
    options = {"prompt": str(recording.parent), "prompt_sec": 0.2, "length_sec": 0.4, "keep_prompt": True}
    model = build(**options)
    one, other = audio_of(model, song), audio_of(model, song, seed=1)
    given = round(0.2 * RATE)
    assert len(one) == 2 * given
    assert torch.equal(one[:given], other[:given])
    assert not torch.equal(one[given:], other[given:])
    sure = build(**options, temperature=0.0)
    assert torch.equal(audio_of(sure, song), audio_of(sure, song, seed=1))
    made = build(**{**options, "keep_prompt": False})
    assert not torch.equal(audio_of(made, song)[:given], one[:given])
    assert torch.equal(audio_of(made, song)[given:], one[given:])


def test_files_start_afresh_and_segments_cover_them(song: Path):
    model = build()
    alone = audio_of(model, song)
    write_midi(performance_of([(0.0, 0.7, 50, 90, 0)]), song.with_name("other.mid"))
    other, *together = rendered(model, [song.with_name("other.mid"), song, song])
    for chunks in together:
        assert torch.equal(torch.cat([chunk.audio for chunk in chunks], dim=1)[0], alone)
    assert not torch.equal(torch.cat([chunk.audio for chunk in other], dim=1)[0][:1000], alone[:1000])
    assert torch.equal(audio_of(model, song), alone)
    in_segments = audio_of(build(segment_sec=0.5, warmup_sec=0.1), song)
    assert in_segments.shape == alone.shape
    assert in_segments.isfinite().all()


def test_a_prompt_that_ends_too_early_is_told(song: Path, recording: Path):
    with pytest.raises(AudioError, match=r"ends before start_sec, 1\.05 s"):
        build(prompt=str(recording), start_sec=1.05).codec.encode(song)


def test_a_roll_that_is_made_as_it_is_read(song: Path):
    codec = build(roll="both", pedal="hold").codec
    performance = codec.encode(song)["performance"]
    whole, read = codec.roll(performance, 10, 90), LongRoll(codec, performance, 10, 90)
    assert read.shape == whole.shape and whole.any()
    for rows, ticks in ((slice(None), slice(20, 50)), (slice(88), slice(70, 120)), (slice(None), slice(0, 0))):
        assert torch.equal(read[rows, ticks], whole[rows, ticks])


def test_a_missing_prompt_is_told_of_its_file(song: Path, tmp_path: Path):
    (tmp_path / "audio").mkdir()
    report = render.predict(build(prompt=str(tmp_path / "audio")), song, tmp_path / "out.wav")
    (outcome,) = report.failed
    assert "song" in outcome.reason and "prompt" in outcome.reason
    assert not (tmp_path / "out.wav").exists()


def test_the_picture_shows_the_notes(song: Path, tmp_path: Path):
    render.predict(build(), song, tmp_path / "out.wav", plot=True)
    picture = soundfile.info(tmp_path / "out.wav").frames, (tmp_path / "out.wav.png").stat().st_size
    assert picture[0] == round(1.2 * RATE) and picture[1] > 5000


def test_the_year_changes_the_sound(song: Path):
    years = {"attributes": {"year": [2004, 2009]}, "temperature": 0.0}
    models = [build(**years, year=year) for year in (None, 2004, 2009, {"2004": 0.5, "2009": 0.5})]
    table = torch.randn(3, 2 * 8 * 4) * torch.tensor([[0.0], [3.0], [-3.0]])
    for model in models:
        model.network.decoder.global_cond["year"].weight.data.copy_(table)
    unknown, one, other, between = (audio_of(model, song) for model in models)
    assert not torch.equal(unknown, one) and not torch.equal(one, other) and not torch.equal(between, one)
    for kind in ({}, {"segment_sec": 0.5, "warmup_sec": 0.1}):
        models = [build(**years, **kind, year=2004, attribute_guidance=guidance) for guidance in (0.0, 1.0, 3.0)]
        unguided = build(**years, **kind)
        for model in (*models, unguided):
            model.network.decoder.global_cond["year"].weight.data.copy_(table)
        none, same, exaggerated = (audio_of(model, song) for model in models)
        assert torch.equal(none, audio_of(unguided, song))
        assert torch.equal(same, one) or kind
        assert not torch.equal(exaggerated, same) and not torch.equal(exaggerated, none)
    with pytest.raises(UsageError, match="1999"):
        audio_of(build(**years, year=1999), song)
    with pytest.raises(UsageError, match="no attribute 'piano'"):
        audio_of(build(**years, piano="mine"), song)


def items(count: int, history: int = 0) -> list[dict[str, Any]]:
    """Examples in which noise sounds as long as a key is down."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for index in range(count):
        roll = torch.zeros(88, 40)
        roll[40, index % 5 * 6 :][:12] = 1.0
        loud = roll[40].repeat_interleave(HOP)
        audio = 0.3 * loud * torch.randn(40 * HOP, generator=generator)
        examples.append({"audio": audio, "roll": roll, "attributes": torch.empty(0), "history": torch.tensor(history)})
    for index, example in enumerate(examples):
        example["other"] = examples[(index + 1) % count]["roll"]
    return examples


def fit(model: Midi2Wave, folder: Path, steps: int, held_out: int = 4, **options: Any) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **options,
    )
    segments = items(held_out, history=8 * HOP)
    if held_out == 1:
        del segments[0]["other"]
    validation = DataLoader(segments, batch_size=4, collate_fn=collate)
    trainer.fit(model.train(), DataLoader(items(8), batch_size=4, collate_fn=collate), validation)
    return trainer


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def test_sensitivity_shows_collapse(tmp_path: Path):
    """It grows when the model learns to listen to the notes, and is nothing for a decoder that does not."""
    model = build(optimizer=adam, roll="sustained", lookahead_ticks=2)
    trainer = fit(model, tmp_path, 60)
    assert trainer.callback_metrics["val/sensitivity"] > 0.2
    batch = collate(items(4, history=8 * HOP))
    with torch.no_grad():
        measured = evaluate_batch(model.eval(), batch)
        measures = measured.measures
        torch.testing.assert_close(measures["sensitivity"], measures["other_bits"] - measures["bits"])
        assert (measures["bits"] < 7).all() and measures["sensitivity"].mean() > 0.2
        for name in (PREDICTION, TEACHER_FORCED):
            assert measured.rows[name].shape == measured.reference.shape == (4, 32 * HOP)
        model.network.decoder.conditioning.weight.zero_()
        deaf = evaluate_batch(model, batch).measures
    assert deaf["sensitivity"].abs().max() < 1e-5


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_aggressive_steps_change_one_half(half: str, tmp_path: Path):
    model = build(optimizer=adam, aggressive={"criterion": "loss" if half == "decoder" else "information"})
    assert model.aggressive.half == half
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    fit(model, tmp_path, 1, limit_val_batches=0)
    changed = {name.split(".")[1] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {half}


def test_what_the_network_is_shown_in_training(tmp_path: Path):
    """With no code kept, its own; and nothing of the recording, where attributes are always dropped."""
    schedule = {"start_loops": 1, "start_kept": 0.25, "underloop": 0.0}
    model = build(scheduled_sampling=schedule, attributes={"year": ["2004"]}, unknown_probability=1.0)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    model.network.register_forward_pre_hook(lambda network, given: seen.append((network.training, *given[1:])))
    batch = collate([{**item, "attributes": torch.tensor([0.0, 1.0])} for item in items(8)])
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model.train(), DataLoader([batch], batch_size=None))
    ((training, past, attributes),) = seen
    assert training and (attributes == torch.tensor([1.0, 0.0])).all()
    kept = (past == model.companding.encode(batch["audio"])).float().mean()
    assert 0.2 < kept < 0.3


def test_regimes_count_steps_and_not_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two batches make a step; what decides is their mean loss."""
    model = build(aggressive={"criterion": "loss", "threshold": 0.0}, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    told: list[float] = []
    monkeypatch.setattr(model.aggressive, "update", told.append)
    fit(model, tmp_path, 2, accumulate_grad_batches=2, limit_val_batches=0)
    batches = [collate(items(8)[first : first + 4]) for first in (0, 4)]
    losses = []
    for batch in batches:
        codes = model.companding.encode(batch["audio"])
        losses.append(float(model.head.loss(model.logits(codes, batch["roll"]), codes)))
    assert losses[0] != losses[1]
    assert told == pytest.approx([sum(losses) / 2] * 2)


def test_information_needs_the_notes_of_others(tmp_path: Path):
    with pytest.raises(DataError, match="one segment for validation"):
        fit(build(aggressive={}), tmp_path, 2, held_out=1)


def test_training_regimes_go_on_from_a_checkpoint(tmp_path: Path):
    options = {
        "scheduled_sampling": {"start_loops": 1, "decay_steps": 4, "start_kept": 0.9},
        "aggressive": {"window": 2},
        "history_noise": 2.0,
        "bottleneck": "argmax",
        "head": "mixture",
        "components": 2,
        "optimizer": adam,
    }
    model = build(**options)
    trainer = fit(model, tmp_path, 5, check_val_every_n_epoch=1)
    assert model.scheduled.phase == "done"
    assert model.aggressive.state_dict()["_information"] != -float("inf"), "validation told it nothing"
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    loaded = checkpoints.load_model(tmp_path / "saved.ckpt")
    assert loaded.scheduled.state_dict() == model.scheduled.state_dict()
    assert loaded.aggressive.state_dict() == model.aggressive.state_dict()
    assert loaded.aggressive.half == model.aggressive.half


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sample_rate": 16000, "ticks_per_sec": 300}, "multiple of ticks_per_sec"),
        ({"pedal": "extend"}, "roll onset does not show lengths"),
        ({"decoder": {"layer": 3}}, "decoder.layer: no such option"),
        ({"decoder": {"outputs": 3}}, "decoder.outputs follows"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"scheduled_sampling": {"loops": 3}}, "scheduled_sampling.loops: no such option"),
        ({"scheduled_sampling": {"decay_steps": 1}}, "decay_steps must be at least 2"),
        ({"scheduled_sampling": {"start_loops": 2}}, "end_loops is 1"),
        ({"aggressive": {"criterion": "luck"}}, "choose one of information, loss, published"),
        ({"aggressive": {"window": 0}}, "window and longest"),
        ({"aggressive": {}, "conditioned": False}, "aggressive needs an encoder"),
        ({"bottleneck": "argmax", "context_stack": False}, "bottleneck needs an encoder"),
        ({"attribute_guidance": 2.0}, "attribute_guidance is 2, and nothing is chosen"),
        ({"attribute_guidance": float("nan"), "year": 2004}, "attribute_guidance is nan: it must be a number"),
        ({"attribute_guidance": 0.5, "year": 2004, "head": "mixture"}, "needs head categorical, and head is mixture"),
        ({"decoder": {"skips": False}}, "decoder.residual must be 256"),
        ({"start_sec": -1.0}, "start_sec is -1: it must be at least 0"),
        ({"segment_sec": 0.05}, "segment_sec is 0.05: it must be more than 0.05"),
    ],
)
def test_contradictions_are_errors_for_users(options: dict[str, Any], complaint: str):
    with pytest.raises(UsageError, match=complaint):
        build(**options)
