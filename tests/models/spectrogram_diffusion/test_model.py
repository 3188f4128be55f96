from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from midisynth.audio.vocoder import Vocoder, VocoderStream
from midisynth.errors import UsageError
from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion
from midisynth.models.spectrogram_diffusion.model import PRIOR_LEARNING_RATE_FACTOR
from midisynth.module import Item, Noise

PRESETS = Path(__file__).parents[3] / "cfg" / "spectrogram_diffusion"
KINDS = {
    "tokens": {},
    "frames": {"tokens": False, "note_roll": True, "template_prior": True, "objective": "x0", "mel_min": -7.0},
    "all": {"note_roll": True, "template_prior": True, "objective": "x0", "velocity_bins": 8},
    "seed": {"compat": "seed"},
    "context": {"context": True},
    "context without tokens": {"context": True, "tokens": False, "note_roll": True},
    "seed with context": {"compat": "seed", "context": True, "overlap_frames": 0},
    "t5x": {"compat": "t5x", "context": True, "overlap_frames": 0},
}


def training_batch(model: SpectrogramDiffusion, batch: int = 3) -> dict[str, torch.Tensor]:
    """Noise as audio, and notes of a random chord for each row."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for _ in range(batch):
        example = {"audio": 0.1 * torch.randn(model.codec.segment_samples, generator=generator)}
        if context := model.codec.context_samples:
            example["context_audio"] = 0.1 * torch.randn(context, generator=generator)
            example["context_samples"] = torch.tensor(context * len(examples) // batch)  # the first row has none
        if model.codec.tokens:
            example["tokens"] = torch.randint(1, len(model.codec.vocabulary), (20,), generator=generator)
        if model.codec.tables:
            example["notes"] = torch.rand(4, 4, generator=generator) * torch.tensor([1.0, 1.5, 87.0, 1.0])
        examples.append(example)
    return model.codec.collate(examples)


def preset(name: str) -> dict:
    options = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())["model"]["init_args"]
    options.pop("optimizer", None)
    options.pop("lr_scheduler", None)
    return options


# Construction

PUBLISHED = {
    "diff_small": (83.5, 901, 81920),
    "diff_small_context": (102.4, 901, 81920),
    "diff_base_context": (402.5, 901, 81920),
    "official_small_context": (104.0, 1536, 82240),
    "official_base_context": (411.7, 1536, 82240),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes(name):
    with torch.device("meta"):
        model = SpectrogramDiffusion(**preset(name))
    millions, rows, samples = PUBLISHED[name]
    tensors = list(model.parameters())
    if model.hparams.compat == "t5x":
        # The authors count tables of positions, which are not trained.
        tensors += [buffer for name, buffer in model.network.named_buffers() if name.endswith("positions")]
    assert sum(tensor.numel() for tensor in tensors) == pytest.approx(millions * 1e6, abs=0.05e6)
    assert model.codec.table_rows == rows
    assert model.codec.segment_samples == samples


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_of_published_models_spell_everything_out(name):
    model = SpectrogramDiffusion.__init__
    names = set(model.__code__.co_varnames[1 : model.__code__.co_argcount]) - {"optimizer", "lr_scheduler"}
    # With a range that is learned from the data its ends have no effect.
    assert names - set(preset(name)) == ({"mel_min", "mel_max"} if name.startswith("diff") else set())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tokens": False}, "would not know the notes"),
        ({"template_prior": True}, "set objective to x0"),
        ({"compat": "seed", "note_roll": True}, "compat seed"),
        ({"overlap_frames": 40}, "at most half of segment_frames"),
        ({"programs": "slakh"}, "belong to the tokens of compat t5x"),
        ({"compat": "t5x", "shift_ids": 514}, "unset shift_ids"),
        ({"grid": "leading"}, "goes with solver ddpm"),
    ],
)
def test_options_that_do_not_fit_are_refused(build, options, text):
    with pytest.raises(UsageError, match=text):
        build(**options)


# Training


@pytest.mark.parametrize("kind", KINDS)
def test_training_reaches_every_parameter(build, kind):
    model = build(**KINDS[kind])
    loss = model.training_step(training_batch(model), 0)
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("objective", ["epsilon", "x0", "v"])
def test_each_objective_can_be_learned(build, objective):
    """A few steps on one batch lower the loss on the same noise."""
    model = build(objective=objective, dropout=0.0)
    batch = training_batch(model)
    t, epsilon = torch.tensor([0.2, 0.5, 0.8]), torch.randn(3, 64, 128)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = model.loss(batch, t, epsilon)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_training_target_covers_the_true_audio_of_its_last_frame(build):
    """The window of the last frame reaches beyond the segment; zeros there would teach a fade at every border."""
    model = build()
    audio = 0.1 * torch.randn(1, model.codec.segment_samples + 3200)
    longer = model.scaled_mel(audio)
    torch.testing.assert_close(model.scaled_mel(audio[:, : model.codec.segment_samples]), longer)
    assert longer.shape == (1, 64, 128)


def test_context_is_the_target_of_the_segment_before(build):
    """In a recording without end, each segment is the next one's context, to the last frame."""
    model = build(**KINDS["context"]).eval()
    frames, hop = 64, 320
    audio = 0.1 * torch.randn(1, 3 * frames * hop + hop)
    second, third = (
        {
            "audio": audio[:, first : first + model.codec.segment_samples],
            "context_audio": audio[:, first - frames * hop : first],
            "context_samples": torch.tensor([known]),
        }
        for first, known in ((frames * hop, frames * hop), (2 * frames * hop, 10 * hop))
    )
    target, _ = model.spectrograms(second)
    _, context = model.spectrograms(third)
    torch.testing.assert_close(context["context"][:, -10:], target[:, -10:])
    assert context["context_mask"].tolist() == [[False] * 54 + [True] * 10]


@torch.no_grad()
def test_what_is_not_known_of_the_context_does_not_matter(build):
    model = build(**KINDS["context without tokens"]).eval()
    batch = {"notes": training_batch(model)["notes"], "context_mask": torch.zeros(3, 64, dtype=torch.bool)}
    z, t = torch.randn(3, 64, 128), torch.rand(3)

    def output(context: torch.Tensor) -> torch.Tensor:
        return model.network(z, t, model.condition({**batch, "context": context}, 64))

    nothing = output(torch.zeros(3, 64, 128))
    assert nothing.isfinite().all()
    torch.testing.assert_close(output(torch.randn(3, 64, 128)), nothing)
    batch["context_mask"][:, 40:] = True
    assert (output(torch.zeros(3, 64, 128)) - nothing).abs().max() > 1e-4


def test_validation_depends_on_the_items_alone(build, monkeypatch):
    logged = []
    monkeypatch.setattr(SpectrogramDiffusion, "log", lambda self, name, value, **_: logged.append((name, value.item())))
    model = build().eval()
    batch = training_batch(model)
    with torch.no_grad():
        model.validation_step(batch, 0)
        torch.manual_seed(7)
        model.validation_step(batch, 5)
        for row in range(3):
            model.validation_step({name: tensor[row : row + 1] for name, tensor in batch.items()}, row)
    assert {name for name, _ in logged} == {"val/loss"}
    whole, again, *rows = [value for _, value in logged]
    assert whole == again == pytest.approx(sum(rows) / 3, rel=1e-5)


def test_the_prior_learns_faster_and_does_not_decay(build):
    model = build(**KINDS["frames"])
    rest, prior = model.configure_optimizers().param_groups
    assert prior["lr"] == pytest.approx(PRIOR_LEARNING_RATE_FACTOR * rest["lr"])
    assert prior["weight_decay"] == 0 < rest["weight_decay"]
    assert {id(p) for p in prior["params"]} == {id(p) for p in model.network.prior.parameters()}
    assert len(rest["params"]) + len(prior["params"]) == len(list(model.parameters()))


def test_schedules_scale_both_rates(build):
    torch.manual_seed(0)
    model = SpectrogramDiffusion(
        **KINDS["frames"],
        dim=16,
        layers=1,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5),
    )
    optimizer = model.configure_optimizers()["optimizer"]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5e-3, 12.5e-3])


@pytest.mark.parametrize("kind", ["tokens", "frames", "seed", "context", "t5x"])
def test_fit_and_test_run(build, kind, tmp_path):
    model = build(**KINDS[kind])
    examples = [{name: tensor[row] for name, tensor in training_batch(model, 4).items()} for row in range(4)]
    loader = DataLoader(examples, batch_size=2, collate_fn=model.collate)
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, loader, loader)
    assert {"train/loss", "val/loss"} <= trainer.callback_metrics.keys()
    first = trainer.test(model, loader, verbose=False)[0]
    assert first.keys() == {"test/mel_error", "test/mel_convergence"}
    assert all(math.isfinite(value) for value in first.values())
    alone = DataLoader(examples, batch_size=1, collate_fn=model.collate)
    assert trainer.test(model, alone, verbose=False)[0] == pytest.approx(first, rel=1e-3)


# Rendering


def items(paths: list[Path]) -> list[Item]:
    return [Item(source=path, output=path.with_suffix(".wav"), key=path.name) for path in paths]


def rendered(model: SpectrogramDiffusion, paths: list[Path], seed: int = 0) -> list[torch.Tensor]:
    """Audio [1, samples] of each file, rendered as one batch."""
    batch = model.collate([model.codec.encode(path) for path in paths])
    chunks: list[list[torch.Tensor]] = [[] for _ in paths]
    with torch.inference_mode():
        for position, rendering in model.render(batch, Noise(items(paths), seed)):
            assert rendering.sample_rate == 16000
            chunks[position].append(rendering.audio)
    return [torch.cat(parts, dim=1) for parts in chunks]


@pytest.mark.parametrize("kind", ["all", "seed"])
@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpm_solver"])
def test_segments_do_not_depend_on_their_batch(build, midi_files, kind, solver):
    model = build(**KINDS[kind], solver=solver, sample_steps=12).eval()
    model.mel_range.min.fill_(-1.0)  # so that what is compared are the values of the diffusion
    model.mel_range.max.fill_(1.0)
    segments = [segment for path in midi_files for segment in model.codec.encode(path)["segments"][:3]]
    noise = torch.randn(len(segments), 12, 64, 128)
    together = model.sample_segments(model.codec.collate(segments), lambda draw: noise[:, draw])
    for row, segment in enumerate(segments):
        alone = model.sample_segments(model.codec.collate([segment]), lambda draw, row=row: noise[row : row + 1, draw])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-4)


def test_pieces_have_their_length_and_their_noise(build, excerpts):
    model = build(**KINDS["frames"]).eval()
    together = rendered(model, excerpts)
    for path, audio in zip(excerpts, together, strict=True):
        piece = model.codec.encode(path)
        assert audio.shape == (1, piece["samples"])
        assert model.duration_sec(piece) == pytest.approx(audio.shape[1] / 16000)
        assert audio.isfinite().all() and audio.abs().max() > 0
    (alone,) = rendered(model, excerpts[:1])
    assert alone.equal(together[0])  # whatever is rendered beside it
    assert not alone.equal(rendered(model, excerpts[:1], seed=1)[0])


@pytest.mark.parametrize("kind", ["context", "seed with context"])
def test_pieces_with_context(build, excerpts, kind):
    """Segments follow from each other; a piece comes out the same beside others, but for `pieces_per_batch`."""
    model = build(**KINDS[kind], sample_steps=1).eval()
    if kind == "seed with context":
        model.mel_range.min.fill_(-11.0)
        model.mel_range.max.fill_(4.0)
    contexts: list[tuple[torch.Tensor, torch.Tensor]] = []
    generated: list[torch.Tensor] = []
    sample_segments = model.sample_segments

    def record(batch, noise):
        contexts.append((batch["context"], batch["context_mask"]))
        generated.append(sample_segments(batch, noise))
        return generated[-1]

    model.sample_segments = record
    together = rendered(model, excerpts)
    counts = [len(model.codec.encode(path)["segments"]) for path in excerpts]
    assert [len(mels) for mels in generated] == [1] * sum(counts)
    context, mask = contexts[0]
    if kind == "context":
        assert not mask.any()
        assert contexts[1][1].sum() == 56  # as many frames as the first segment is ahead of the second
        expected = model.mel_range(generated[0][0, :56])
        torch.testing.assert_close(contexts[1][0][0, -56:][:48], expected[:48])  # the rest is faded in from here on
    else:
        assert context.shape[1] == 65 and mask.all() and (context == context[0, 0, 0]).all()  # silence
        torch.testing.assert_close(contexts[1][0], model.mel_range(generated[0]))
    (alone,) = rendered(model, excerpts[:1])
    assert alone.equal(together[0])
    model.hparams.pieces_per_batch = 2
    generated.clear()
    side_by_side = rendered(model, excerpts)
    assert [len(mels) for mels in generated] == [2] * min(counts) + [1] * (max(counts) - min(counts))
    assert [audio.shape for audio in side_by_side] == [audio.shape for audio in together]


def test_seed_models_sound_on_time(build, excerpts):
    """Their frames are centred, one hop later than vocoders expect: the first frame of a piece is left out."""
    model = build(**KINDS["seed"]).eval()
    model.mel_range.min.fill_(-11.0)
    model.mel_range.max.fill_(4.0)
    pushed: list[torch.Tensor] = []
    model.declare_part("vocoder", lambda _, content: RecordingVocoder(pushed))
    (audio,) = rendered(model, excerpts[1:])
    piece = model.codec.encode(excerpts[1])
    assert audio.shape == (1, piece["samples"])
    assert len(torch.cat(pushed)) == piece["frames"]
    noise = Noise(items(excerpts[1:]))
    batch = model.codec.collate(piece["segments"][:1])
    first = model.sample_segments(batch, model.noise_source([noise.generator(0)]))[0]
    torch.testing.assert_close(torch.cat(pushed)[:50], first[1:51], rtol=0, atol=1e-2)


class RecordingVocoder(Vocoder):
    """Keeps the frames that it gets."""

    sample_rate = 16000

    def __init__(self, pushed: list[torch.Tensor]):
        self.pushed = pushed

    def stream(self, seed: int = 0) -> VocoderStream:
        recorder = self

        class Stream(VocoderStream):
            def push(self, mel: torch.Tensor) -> torch.Tensor:
                recorder.pushed.append(mel)
                return torch.zeros(1, len(mel) * 320)

            def finish(self) -> torch.Tensor:
                return torch.zeros(1, 0)

        return Stream()


# Cost


def cpu_seconds(run: Callable[[], object], repeats: int = 2) -> float:
    """Least processor time of a few runs, so that other load on the machine does not count."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.slow
@torch.no_grad()
def test_the_default_solver_needs_a_thirtieth_of_the_original():
    """At the published size: 1,000 steps of the original, each with its encoders and both halves, against ours.

    One step of the original is timed, and ours for 1 and 2 steps, from which the default number follows.
    """
    model = SpectrogramDiffusion().eval()
    network, steps = model.network, model.hparams.sample_steps
    tokens = torch.randint(1, 900, (1, 400))
    z = torch.randn(1, 256, 128)
    dropped = torch.tensor([True, False])

    def original_step() -> None:
        conditioning = network.condition(256, tokens.expand(2, -1), keep=dropped)
        network(z.expand(2, -1, -1), torch.tensor([0.5]), conditioning)

    def ours(steps: int) -> None:
        model.hparams.sample_steps = steps
        model.sample_segments({"tokens": tokens}, lambda _: z)

    one, two = cpu_seconds(lambda: ours(1)), cpu_seconds(lambda: ours(2))
    default = one + (steps - 1) * (two - one)
    assert 1000 * cpu_seconds(original_step) > 30 * default
