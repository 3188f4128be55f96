"""What is trained in every stage, what a checkpoint carries, and whole performances in the sound of a prompt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from midisynth.checkpoints import load_model, save_weights
from midisynth.errors import CheckpointError, MidiError, UsageError
from midisynth.main import main
from midisynth.models.midi_valle import MidiValle, NoteRows, PianoCodec
from midisynth.models.midi_valle.checkpoint import own_name
from midisynth.models.midi_valle.codecs import UNTRAINED, load_neural_codec
from midisynth.models.midi_valle.evaluation import listening
from midisynth.models.midi_valle.examples import collate_segments
from midisynth.models.midi_valle.prompts import default_prompt
from midisynth.models.midi_valle.rendering import sound_of
from midisynth.module import Item, Noise
from midisynth.music.midi import read_midi, write_midi
from midisynth.testing_inputs import performance_of
from midisynth.training.optimizers import ScaledAdam

SIZES = {"neural_codec": UNTRAINED, "codebooks": 4, "bins": 64, "dim": 16, "heads": 2, "layers": 1}
CUTS = {"prompt_sec": 1.0, "min_segment_sec": 2.0, "max_segment_sec": 3.0, "overlap_sec": 0.2}


def built(**options: Any) -> MidiValle:
    torch.manual_seed(0)
    return MidiValle(**{**SIZES, **CUTS, **options})


def batch(seed: int = 0, prompts: bool = False) -> dict[str, Any]:
    """Two segments of notes and codes at random."""
    random = np.random.default_rng(seed)
    examples = []
    for frames, count in ((90, 9), (70, 12)):
        onsets = np.sort(random.uniform(0, frames / 50, count))
        rows = [(float(onset), 0.3, int(random.integers(30, 90)), 70, 0) for onset in onsets]
        example = {
            "rows": torch.from_numpy(NoteRows().encode(performance_of(rows))),
            "codes": torch.from_numpy(random.integers(0, 64, (frames, 4))),
        }
        if prompts:
            example |= {"neighbour": example["codes"].flip(0), "place": 0.5, "longest": 50}
        examples.append(example)
    return collate_segments(examples)


def test_what_the_notes_tell():
    """Nothing, where the model is deaf to them."""
    random = np.random.default_rng(0)
    examples = []
    for count in (9, 12):
        rows = [(float(onset), 0.3, 60, 70, 0) for onset in np.sort(random.uniform(0, 1.5, count))]
        codes = torch.from_numpy(random.integers(0, 64, (90, 4)))
        rows = torch.from_numpy(NoteRows().encode(performance_of(rows)))
        examples.append({"rows": rows, "prompt": codes[:40], "codes": codes[40:]})
    examples = [{**one, "other": other["rows"]} for one, other in zip(examples, examples[::-1], strict=True)]
    model = built().eval()
    with torch.no_grad():
        found = listening(model, examples)
        torch.testing.assert_close(found["sensitivity"], found["other_nats"] - found["nats"])
        assert (found["sensitivity"].abs() > 1e-4).all()
        # Alone or in a batch.
        torch.testing.assert_close(listening(model, examples[1:])["nats"], found["nats"][1:])
        assert set(listening(model, [{k: v for k, v in examples[0].items() if k != "other"}])) == {"nats"}
        assert 3 < float(found["nats"].mean()) < 6  # of ln 65
        model.network.ar.text_embedding.weight.zero_()
        examples = [{**one, "other": one["rows"].flip(0)} for one in examples]
        assert (listening(model, examples)["sensitivity"].abs() < 1e-6).all()


def learned(model: MidiValle, steps: int = 1, prompts: bool = False) -> set[str]:
    """Names of the parameters that steps of training change."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = model.build_optimizer(partial(ScaledAdam, lr=0.05))
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        loss = model.training_step(batch(step, prompts), step)
        assert torch.isfinite(loss)
        loss.backward()
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        # What processes that train together rely on.
        assert not [name for name, parameter in trained if parameter.grad is None]
        optimizer.step()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def parts_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"notes", "ar", "nar"}),
        ({"train_stage": "ar"}, {"notes", "ar"}),
        ({"train_stage": "nar"}, {"notes", "nar"}),
        ({"train_stage": "nar", "init_from": "x"}, {"nar"}),
        ({"train_stage": "ar", "compat": "published"}, {"ar"}),
        ({"codebooks": 1}, {"notes", "ar"}),
    ],
)
def test_stages_train_what_they_should(options: dict[str, Any], expected: set[str]):
    model = built(**options)
    assert parts_of(learned(model, steps=2)) == expected
    assert parts_of({name for name, p in model.named_parameters() if p.requires_grad}) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"prefix_mode": 0},
        {"prefix_mode": 2},
        {"prefix_mode": 4},
        {"architecture": "vall_f"},
        {"note_positions": "onset"},
        {"prenet": True, "norm_first": False, "share_embedding": False, "prepend_bos": True},
        {"share_embedding": False, "layers": 2, "nar_scale": 0.5},
    ],
    ids=["mode 0", "mode 2", "mode 4", "VALL-F", "onsets", "others", "narrow"],
)
def test_variants_learn(options: dict[str, Any]):
    model = built(**options, dropout=0.0)
    names = learned(model, steps=4, prompts=model.needs_neighbours)
    assert any(name.startswith("network.nar.predict_layers") for name in names)
    assert any(name.startswith("network.ar.predict_layer") for name in names)


def test_draws_belong_to_the_step_and_to_the_batch():
    model = built(dropout=0.0)
    losses = []
    for seed in (1, 1, 2, 3, 4):
        torch.manual_seed(seed)
        losses.append(float(model.training_step(batch(), 0)))
    assert losses[0] == losses[1]
    assert len(set(losses)) > 2
    seen: list[dict[str, float]] = []
    model.log = lambda name, value, **_: seen[-1].update({name: float(value)})  # type: ignore[method-assign]
    for content in (0, 0, 1):
        seen.append({})
        model.validation_step(batch(content), 0)
    assert seen[0] == seen[1] != seen[2]
    assert set(seen[0]) == {"val/loss", "val/ar_loss", "val/nar_loss", "val/ar_top10", "val/nar_top10"}
    assert seen[0]["val/loss"] == pytest.approx((seen[0]["val/ar_loss"] + seen[0]["val/nar_loss"]) / 2, rel=1e-5)


def test_a_stage_starts_from_the_one_before(tmp_path: Path):
    first = built(train_stage="ar")
    learned(first)
    save_weights(first, tmp_path / "ar", half=False)
    second = built(train_stage="nar", init_from=str(tmp_path / "ar"))
    second.initialise()
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor)
    with pytest.raises(CheckpointError, match="is of another size: give the options it was trained with"):
        built(init_from=str(tmp_path / "ar"), dim=32).initialise()
    save_weights(PianoCodec(filters=2, dim=8, codebooks=1, bins=2), tmp_path / "codec")
    with pytest.raises(CheckpointError, match="is of PianoCodec, not of MidiValle"):
        built(init_from=str(tmp_path / "codec")).initialise()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"prompt_audio": "p.wav"}, "prompt_midi is missing: a prompt is a recording and the notes"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"codebooks": 1, "train_stage": "nar"}, "train_stage nar needs more than one of codebooks"),
        ({"note_positions": "onset", "prefix_mode": 4}, "note_positions onset needs prefix_mode 0 or 1 (it is 4)"),
        ({"max_segment_sec": 1.0}, "expected 2 * overlap_sec <= min_segment_sec <= max_segment_sec"),
        ({"max_segment_sec": 30.0}, "max_segment_sec is 30: with its prompt a segment can be 32.2 s long"),
        ({"compat": "published", "pedal": True}, "compat published knows keys alone: leave pedal out"),
        ({"prompt_sec": 0.5}, "prompt_sec is 0.5, expected at least 1"),
        ({"segments_per_batch": 0}, "segments_per_batch is 0, expected at least 1"),
        ({"overlap_sec": -0.1}, "overlap_sec is -0.1, expected at least 0"),
        ({"heads": 3}, "dim, heads and layers are 16, 3 and 1: expected an even dim that heads divide"),
        ({"nar_scale": 0.5}, "dim, heads and layers times nar_scale are 8, 1 and 0: expected"),
    ],
)
def test_options_that_do_not_fit_are_an_error_in_a_line(options: dict[str, Any], complaint: str):
    with pytest.raises(UsageError) as error:
        built(**options)
    assert complaint in str(error.value)


@pytest.mark.parametrize("options", [{"bins": 128}, {"codebooks": 5}])
def test_a_codec_that_does_not_fit_is_refused(options: dict[str, Any]):
    with pytest.raises(CheckpointError, match="neural_codec: untrained has 4 codebooks of 64 bins, the model"):
        _ = built(**options).neural_codec


# Rendering


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Eight sparse seconds, and half a second of one note."""
    pieces = {
        "long": [(0.7 * index, 0.4, 50 + index, 80, 0) for index in range(11)],
        "short": [(0.0, 0.5, 60, 80, 0)],
    }
    found = []
    for name, rows in pieces.items():
        found.append(tmp_path / f"{name}.mid")
        write_midi(performance_of(rows), found[-1])
    return found


def rendered(model: MidiValle, files: list[Path], seed: int = 0) -> list[torch.Tensor]:
    """Audio of files that are rendered as one batch, [samples] each."""
    noise = Noise([Item(file, file.with_suffix(".wav"), file.name) for file in files], seed)
    chunks: list[list[torch.Tensor]] = [[] for _ in files]
    with torch.inference_mode():
        for position, chunk in model.eval().render([model.codec.encode(file) for file in files], noise):
            if chunk.audio is not None:
                assert chunk.audio.shape[0] == 1
                chunks[position].append(chunk.audio[0])
    return [torch.cat(parts) for parts in chunks]


def test_whole_performances_are_rendered(files: list[Path]):
    """To the end of the last note and its ring, however segments are batched, and the same for the same seed."""
    model = built()
    together = rendered(model, files)
    for file, audio in zip(files, together, strict=True):
        performance = model.codec.encode(file)["performance"]
        assert len(audio) == round((performance.end_sec + 1.0) * 32000)
        assert model.duration_sec({"performance": performance}) == pytest.approx(len(audio) / 32000, abs=1e-4)
        # Nothing is left silent.
        assert audio.unfold(0, 3200, 3200).abs().amax(dim=1).min() > 1e-3
    assert len(model.codec.segments(model.codec.encode(files[0])["performance"])) == 3
    model.hparams.segments_per_batch = 2
    for one, other in zip(together, rendered(model, files), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert not torch.allclose(rendered(model, files, seed=1)[0], together[0], atol=1e-3)
    model.hparams.context = "previous"
    continued = rendered(model, files)
    assert [len(audio) for audio in continued] == [len(audio) for audio in together]
    # The first segment follows the prompt in either way.
    torch.testing.assert_close(continued[0][:60000], together[0][:60000], rtol=0, atol=1e-4)
    assert not torch.allclose(continued[0], together[0], atol=1e-3)


@pytest.mark.parametrize("held", ["drop", "strike"])
def test_a_segment_continues_the_one_before(held: str, tmp_path: Path):
    """Prompt and segment are one stretch of the piece: every note at its time, and none cut between them."""
    model = built(context="previous", held=held, temperature=0.0)
    path = tmp_path / "piece.mid"
    # A bass through all of it, which sounds across every joint.
    rows = [(0.7 * index, 0.4, 60 + index, 80, 0) for index in range(11)]
    write_midi(performance_of([*rows, *((1.3 * index, 1.2, 40, 80, 0) for index in range(6))]), path)
    calls: list[tuple] = []
    seeds: list[int] = []

    def generate(rows, prompts, frames, generators, prompt_notes):
        codes = MidiValle.generate(model, rows, prompts, frames, generators, prompt_notes)
        calls.append((rows[0], prompts[0], prompt_notes[0], codes[0]))
        seeds.append(generators[0].initial_seed())
        return codes

    model.generate = generate  # type: ignore[method-assign]
    rendered(model, [path])
    performance = model.codec.encode(path)["performance"]
    segments = model.codec.segments(performance)
    assert len(calls) == len(segments) == len(set(seeds)) >= 3
    for (*_, before), (found, prompt, heard, _), one, two in zip(
        calls, calls[1:], segments, segments[1:], strict=False
    ):
        last = round((two.start_sec - one.start_sec) * 50)
        torch.testing.assert_close(prompt, before[last - 50 : last])
        played = model.codec.note_rows.decode(found.numpy()).notes
        onset = performance.notes["onset_sec"] - (two.start_sec - 1.0)
        ends = np.minimum(onset + performance.notes["duration_sec"], two.end_sec - two.start_sec + 1.0)
        begins = (onset >= 0) & (onset < two.seconds + 1.0)
        if held == "strike":
            begins |= (onset < 0) & (ends > 0)
        wanted = np.maximum(onset[begins], 0)
        np.testing.assert_allclose(np.sort(played["onset_sec"]), np.sort(wanted), atol=0.004)
        lengths = played["duration_sec"].sum(), (ends[begins] - wanted).sum()
        assert lengths[0] == pytest.approx(lengths[1], abs=0.01 * len(played))
        assert heard == (wanted < 1.0).sum()


def test_the_codec_keeps_its_precision(files: list[Path]):
    """Under autocast language models are in half precision, and what is heard is not."""
    model = built().eval()
    codes = torch.randint(0, 64, (40, 4))
    prompt = model.prompt()
    again = built().eval()
    with torch.autocast("cpu", torch.bfloat16):
        halved = sound_of(model, prompt.codes, codes)
        torch.testing.assert_close(again.prompt().codes, prompt.codes)
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, sound_of(model, prompt.codes, codes), rtol=0, atol=0)
    # Behind what comes before, as one sound.
    whole = model.neural_codec.decode(torch.cat([prompt.codes, codes])[None])[0]
    torch.testing.assert_close(halved, whole[len(prompt.codes) * 640 :].detach())


def test_notes_at_their_onsets_need_no_count():
    """Silent rows between change what is counted, and not where a note stands."""
    rows = torch.from_numpy(NoteRows().encode(performance_of([(0.5, 0.2, 60, 70, 0), (8.02, 0.2, 64, 70, 0)])))
    more = torch.cat([rows[:2], rows[1:2], rows[2:]])
    for note_positions, same in (("onset", True), ("count", False)):
        network = built(note_positions=note_positions).eval().network
        one, other = (network.ar.embed_text(network.embed_notes(found[None]), None)[0] for found in (rows, more))
        assert torch.allclose(one[2], other[3]) == same
    network = built(note_positions="onset").network
    for notes in (network.embed_notes(rows[None])[0], network.bfloat16().embed_notes(rows[None])[0]):
        # Bfloat16 knows every second number from 256 on.
        torch.testing.assert_close(notes[:, -1], torch.tensor([0.0, 25.0, 401.0, 0.0]), rtol=0, atol=0.1)
    assert network.ar.embed_text(network.embed_notes(rows[None]), None).dtype == torch.bfloat16


def test_greedy_has_no_seed(files: list[Path]):
    model = built(temperature=0.0)
    torch.testing.assert_close(*(rendered(model, files[1:], seed)[0] for seed in (0, 1)))
    drawn = built(top_k=3, top_p=0.9)
    assert not torch.equal(rendered(drawn, files[1:])[0], rendered(model, files[1:])[0])


def test_the_prompt_is_heard(files: list[Path], tmp_path: Path):
    audio, midi = default_prompt()
    waveform, rate = soundfile.read(audio)
    for name, content in {"same": waveform, "soft": 0.05 * waveform}.items():
        soundfile.write(tmp_path / f"{name}.wav", content, rate)
    sounds = [rendered(built(temperature=0.0), files[1:])[0]]
    for name in ("same", "soft"):
        model = built(temperature=0.0, prompt_audio=str(tmp_path / f"{name}.wav"), prompt_midi=str(midi))
        sounds.append(rendered(model, files[1:])[0])
    torch.testing.assert_close(sounds[0], sounds[1], rtol=0, atol=1e-4)
    assert not torch.allclose(sounds[0], sounds[2], atol=1e-3)


def test_doubts_about_a_prompt_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    audio, own = default_prompt()
    transposed, midi = read_midi(own), tmp_path / "other.mid"
    transposed.notes["pitch"] += 1
    write_midi(transposed, midi)
    built(prompt_audio=str(audio), prompt_midi=str(midi), prompt_sec=3.0, prompt_check="warn").eval().prompt()
    assert f"{midi}: its notes are not those that are heard in {audio.name}" in caplog.text
    with pytest.raises(MidiError, match="not those that are heard"):
        built(prompt_audio=str(audio), prompt_midi=str(midi), prompt_sec=3.0).eval().prompt()


def test_rows_are_those_of_the_prompt_and_of_the_segment(files: list[Path]):
    model = built()
    prompt, codec = model.prompt(), model.codec.note_rows
    segment = model.codec.segments(model.codec.encode(files[0])["performance"])[1]
    rows = model.prompted_rows(prompt, segment).numpy()
    alone = codec.encode(prompt.performance)
    count = len(alone) - 2
    assert count == len(prompt.performance.notes) > 0
    np.testing.assert_array_equal(rows[: count + 1], alone[:-1])
    played = codec.decode(rows[count + 1 :]).notes
    wanted = segment.struck.notes
    np.testing.assert_array_equal(played["pitch"], wanted["pitch"])
    np.testing.assert_allclose(played["onset_sec"], wanted["onset_sec"] + prompt.seconds, atol=0.004)


def test_a_checkpoint_is_enough(files: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """It carries its codec; a prompt that is wrong is said to be in one line, and nothing is rendered."""
    codec = tmp_path / "codec"
    torch.manual_seed(1)
    made = PianoCodec(filters=2, dim=8, codebooks=2, bins=64, lstm_layers=1)
    for layer in made.network.network.quantizer.layers:
        layer.codebook.embed.normal_(std=0.1)
    save_weights(made, codec)
    model = built(neural_codec=str(codec), codebooks=2)
    expected = rendered(model, files[1:])[0]
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    for file in codec.iterdir():
        file.unlink()
    torch.testing.assert_close(rendered(load_model(tmp_path / "model.ckpt"), files[1:])[0], expected)
    assert not any("codec" in name for name in model.state_dict())
    soundfile.write(tmp_path / "silent.wav", np.zeros(96000), 32000)
    words = ["predict", str(files[1]), f"--ckpt={tmp_path / 'model.ckpt'}", "--trainer.accelerator=cpu"]
    prompt = [f"--model.prompt_audio={tmp_path / 'silent.wav'}", f"--model.prompt_midi={default_prompt()[1]}"]
    capfd.readouterr()
    assert main([*words, *prompt]) != 0
    said = [line for line in capfd.readouterr().err.splitlines() if "silent.wav" in line]
    assert len(said) == 1
    assert said[0].startswith("midisynth: error:")
    assert "is silent" in said[0]
    assert not files[1].with_suffix(".wav").exists()


def test_published_weights_bring_the_codec_that_lies_beside_them(parity_root: Callable[[str], Path], tmp_path: Path):
    """The names are those of the original; sizes of the note tables, which are fixed, are the published ones."""
    root = parity_root("midi_valle")
    if not (root / "valle_forward.safetensors").is_file():
        pytest.skip(f"valle_forward is not in {root}; MIDISYNTH_PARITY names the folder of all fixtures")
    config = json.loads((root / "valle_forward.json").read_text())["config"]
    sizes = {"layers": config["num_decoder_layers"], "codebooks": config["num_quantizers"]}
    model = built(dim=64, heads=1, **sizes)
    own = model.network.state_dict()
    names = [name.removeprefix("w.") for name in load_file(root / "valle_forward.safetensors") if name.startswith("w.")]
    path = tmp_path / "best-valid-loss.pt"
    torch.save({name: own[own_name(name)] for name in names if own_name(name) in own}, path)
    loaded = MidiValle.load_published(path)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor)
    codec = tmp_path / "compression_32khz_new.bin"
    with pytest.raises(CheckpointError, match=rf"{codec}: no such checkpoint"):
        loaded.parts_state()
    shutil.copy(root / "codec_export.bin", codec)
    assert MidiValle.is_published(tmp_path)
    carried = loaded.parts_state()["neural_codec"]["data"].numpy().tobytes()
    codec.unlink()
    found = load_neural_codec(str(codec), content=carried)
    torch.testing.assert_close(
        dict(found.state_dict()), dict(PianoCodec.load_published(root / "codec_export.bin").state_dict())
    )
