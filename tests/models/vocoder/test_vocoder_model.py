"""`NeuralVocoder`: blocks, files, training, and its weights as files."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from midisynth.checkpoints import load_model, save_weights
from midisynth.errors import AudioError, UsageError
from midisynth.evaluation import PREDICTION, Renditions
from midisynth.models.vocoder import NeuralVocoder, VocoderData
from midisynth.module import Item, Noise
from midisynth.music.notes import NOTE_DTYPE

HEADS = ("oscillators", "istft")


def rendered(model: NeuralVocoder, path, seed: int = 0) -> torch.Tensor:
    """The audio that `predict` writes for a file, [channels, samples]."""
    noise = Noise([Item(path, path.with_suffix(".out.wav"), "key")], seed)
    chunks = list(model.render(model.collate([model.codec.encode(path)]), noise))
    assert all(chunk.sample_rate == model.sample_rate for _, chunk in chunks)
    return torch.cat([chunk.audio for _, chunk in chunks], dim=1)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("sizes", [[1], [37], [500], [699, 1], [0, 300]])
@torch.no_grad()
def test_blocks_are_the_whole(build, changing, head, sizes):
    model = build(head=head)
    whole = model.network(changing[None])
    stream, done, start = model.stream(), [], 0
    while start < len(changing):
        for size in sizes:
            done.append(stream.push(changing[start : start + size]))
            start += size
    done.append(stream.finish())
    torch.testing.assert_close(torch.cat(done, dim=1), whole, rtol=0, atol=1e-4)
    assert torch.equal(torch.cat(done, dim=1), model(changing))  # to the bit, however it is pushed
    assert model(changing[:0]).shape == (1, 0)


@pytest.mark.parametrize("head", HEADS)
def test_calls_are_equal(build, changing, head):
    """The second time, under autocast and in inference mode; the seed chooses the noise and nothing else."""
    model = build(head=head)
    first = model(changing[:60], seed=5)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(changing[:60], seed=5), first)
    assert torch.equal(model(changing[:60], seed=6), first) == (head == "istft")


def test_rendering_before_training_does_no_harm(build, changing):
    """Constants that are made in inference mode could not be trained through."""
    model = build()
    with torch.inference_mode():
        model(changing[:20])
    model.network(changing[None, :20]).sum().backward()
    assert model.network.head.oscillators.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("options", [{"noise_steps": 7}, {"steps": 3}, {"sample_rate": 22051}])
def test_frames_that_cannot_be_divided(build, options):
    with pytest.raises(UsageError, match=r"steps is|sample_rate is"):
        build(**options)


def test_frequencies_are_in_the_weights(build, held, tmp_path):
    """And so is what follows from them."""
    model = build()
    before = model(held)
    model.tune(model.network.head.frequencies.numpy() * 1.01)
    tuned = model(held)
    assert (tuned - before).abs().max() > 1e-3
    save_weights(model, tmp_path / "weights", half=False)
    assert torch.equal(load_model(tmp_path / "weights")(held), tuned)
    other = build()
    assert torch.equal(other(held), before)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(held), tuned)
    save_weights(model, tmp_path / "half")
    half = load_model(tmp_path / "half")
    assert torch.equal(half.network.head.frequencies, model.network.head.frequencies)
    torch.testing.assert_close(half(held), tuned, rtol=0, atol=1e-2)
    stored = (tmp_path / "half" / "model.safetensors").stat().st_size
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert stored < 2 * parameters + 30_000  # nothing that can be computed is stored


# Files


@pytest.mark.parametrize(("rate", "seconds", "channels"), [(16000, 3.0, 1), (44100, 1.234, 2), (11025, 0.013, 1)])
def test_files_keep_their_length(build, tmp_path, rate, seconds, channels):
    path = tmp_path / "in.flac"
    samples = round(rate * seconds)
    soundfile.write(path, np.sin(np.arange(samples) * 0.05)[:, None].repeat(channels, 1) * 0.1, rate)
    model = build()
    audio = rendered(model, path)
    assert audio.shape == (1, round(samples / rate * 32000))
    assert model.duration_sec(model.codec.encode(path)) == pytest.approx(seconds, abs=1e-3)
    assert torch.equal(rendered(model, path), audio)


def test_a_file_is_its_spectrogram(build, tmp_path, monkeypatch):
    """Frames are made in blocks; none is missing, doubled or wrong where blocks meet."""
    path = tmp_path / "in.wav"
    audio = np.random.default_rng(0).standard_normal(16000 * 2 + 77) * 0.1
    soundfile.write(path, audio, 16000, subtype="FLOAT")
    model = build()
    whole = model.log_mel(torch.from_numpy(audio).float()[None])[0]
    from midisynth.models.vocoder import model as module

    stream = module.stream_audio
    monkeypatch.setattr(module, "stream_audio", lambda path, rate: stream(path, rate, block_sec=0.3))
    blocks = list(model._mel_blocks(path))
    assert len(blocks) > 5 and max(map(len, blocks)) < 30
    torch.testing.assert_close(torch.cat(blocks), whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as audio"),
        (b"<html>404</html>", "cannot be read as audio"),
        (None, "no such file"),
    ],
)
def test_bad_files(build, tmp_path, content, message):
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AudioError, match=message) as caught:
        build().codec.encode(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_bad_content(build, tmp_path):
    model = build()
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(4000, np.nan), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "long.wav", np.zeros(16000), 16000)
    for name, message in (("empty", "no samples"), ("nan", "NaN or infinite")):
        with pytest.raises(AudioError, match=message):
            rendered(model, tmp_path / f"{name}.wav")
    model.codec.max_duration_sec = 0.5
    with pytest.raises(AudioError, match=r"at most 0\.5 s"):
        model.codec.encode(tmp_path / "long.wav")


# Training


def examples(model: NeuralVocoder, count: int = 2) -> DataLoader:
    """Decaying chords at the rate of a model."""
    samples = model.codec.segment_samples
    time = torch.arange(samples) / model.sample_rate
    rows = [
        {
            "audio": 0.1
            * sum(torch.sin(2 * torch.pi * f * time) for f in (220.0 * (i + 1), 554.4))
            * torch.exp(-2 * time)
        }
        for i in range(count)
    ]
    return DataLoader(rows, batch_size=2, collate_fn=model.codec.collate)


@pytest.mark.parametrize("head", HEADS)
def test_training_brings_the_sound_closer(build, head):
    model = build(head=head, sample_rate=16000, mel_smoothing=0.0, mel_noise=0.0).train()
    (batch,) = examples(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = model.loss(model.network(model.spectrogram(batch["audio"])), batch["audio"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]


def test_disturbed_spectrograms(build, changing):
    """Smoother and noisier by as much as is asked for, every row by another amount."""
    mel = changing[None, :64].repeat(8, 1, 1)
    assert torch.equal(build(mel_smoothing=0.0, mel_noise=0.0)._disturbed(mel), mel)
    smoothed = build(mel_smoothing=0.3, mel_noise=0.0)._disturbed(mel)
    change = (smoothed - mel).abs().mean(dim=(1, 2))
    assert len(set(change.tolist())) > 4
    assert smoothed.std() < mel.std() and smoothed.mean() == pytest.approx(float(mel.mean()), abs=0.02)
    noisy = build(mel_smoothing=0.0, mel_noise=0.2)._disturbed(mel)
    assert 0.03 < (noisy - mel).std() < 0.2


@pytest.mark.slow
def test_discriminators_are_there_when_they_are_wanted(build, tmp_path):
    assert not any(name.startswith("adversary") for name, _ in build().named_parameters())
    model = build(adversarial=True, adversarial_from=1, sample_rate=16000).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, examples(model, count=4))
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert any(name.startswith("adversary") for name in moved) and any(name.startswith("network") for name in moved)
    assert {"train/adversarial", "train/features", "train/discriminator"} <= trainer.logged_metrics.keys()


def test_the_piano_of_the_data_tunes_the_model(build, monkeypatch, tmp_path):
    """When training starts, and not before."""
    from midisynth.models.vocoder import data as module

    asked = []

    class Notes:
        def __init__(self, root, layers, sample_rate, **options):
            asked.append((root, sample_rate))

        def note(self, key: int, velocity: int) -> np.ndarray:
            time = np.arange(3 * 32000) / 32000
            return 0.1 * np.sin(2 * np.pi * 442.0 * 2 ** ((key - 69) / 12) * time) * np.exp(-time)

    monkeypatch.setattr(module, "SampledPiano", Notes)
    monkeypatch.setattr(VocoderData.__mro__[1], "setup", lambda self, stage: None)
    model = build()
    data = VocoderData({"folder": str(tmp_path)}, piano="samples")
    data.connect(model)
    before = model.network.head.frequencies.clone()
    data.setup("test")
    assert torch.equal(model.network.head.frequencies, before) and not asked
    data.setup("fit")
    assert asked == [("samples", 32000)]
    ratio = model.network.head.frequencies / before
    assert ratio.median() == pytest.approx(442 / 440, rel=1e-3)


class Listener(Callback):
    """Keeps what a test rendered."""

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.heard: Renditions = outputs


def test_a_test_compares_with_other_vocoders(build, monkeypatch, tmp_path):
    """Of any rate; they stay out of the checkpoints of the one that is tested."""
    monkeypatch.setattr(VocoderData.__mro__[1], "setup", lambda self, stage: None)
    save_weights(build(head="istft", sample_rate=16000), tmp_path / "other")
    model, listener = build(sample_rate=32000), Listener()
    data = VocoderData({"folder": str(tmp_path)}, compare={"other": str(tmp_path / "other")})
    data.connect(model)
    data.setup("test")
    examples = [{"audio": 0.1 * torch.randn(model.codec.segment_samples), "notes": np.zeros(0, NOTE_DTYPE)}] * 2
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[listener], default_root_dir=tmp_path
    )
    loader = DataLoader(examples, batch_size=2, collate_fn=model.codec.collate)
    (logged,) = trainer.test(model, loader, verbose=False)
    assert set(listener.heard.rows) == {PREDICTION, "griffin_lim", "other"}
    for shown, rate in ((listener.heard, 16000), (listener.heard.pictured, 32000)):
        assert shown.sample_rate == rate
        assert {tuple(audio.shape) for audio in shown.rows.values()} == {(2, 24 * 320 * rate // 16000)}
    for row in ("", "griffin_lim/", "other/"):
        assert {f"test/{row}{name}" for name in ("real_time", "full_band_distance", "mel_error")} <= logged.keys()
    # At 16 kHz there is nothing in the upper half of the band.
    assert logged["test/griffin_lim/full_band_distance"] > 1
    assert not any("rival" in name or "other" in name for name in model.state_dict())
    with pytest.raises(UsageError, match="compare: 'prediction' is the row"):
        VocoderData({"folder": str(tmp_path)}, compare={"prediction": "vocoder_piano"})
