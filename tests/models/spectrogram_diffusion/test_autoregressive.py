"""Training and generation frame by frame; that the importer's weights compute the same is shown in tests/parity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from midisynth.errors import CheckpointError
from midisynth.models.spectrogram_diffusion import SpectrogramAutoregressive, SpectrogramDiffusion
from midisynth.models.spectrogram_diffusion.checkpoint import published_name
from midisynth.module import Item, Noise

PRESETS = Path(__file__).parents[3] / "cfg" / "spectrogram_ar"
TINY = {
    "segment_frames": 64,
    "overlap_frames": 8,
    "max_tokens": 512,
    "dim": 16,
    "hidden_dim": 24,
    "heads": 1,
    "layers": 2,
    "segments_per_batch": 3,
}


def build(**options) -> SpectrogramAutoregressive:
    torch.manual_seed(0)
    model = SpectrogramAutoregressive(**{**TINY, **options})
    if model.hparams.compat == "seed":
        model.mel_range.min.fill_(-11.0)
        model.mel_range.max.fill_(4.0)
    return model


def training_batch(model: SpectrogramAutoregressive) -> dict[str, Tensor]:
    audio = 0.1 * torch.randn(3, model.codec.segment_samples)
    return {"audio": audio, "tokens": torch.randint(1, len(model.codec.vocabulary), (3, 20))}


def preset(name: str) -> dict:
    options = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())["model"]["init_args"]
    options.pop("optimizer")
    return options


def test_the_published_size():
    with torch.device("meta"):
        model = SpectrogramAutoregressive(**preset("ar_small"))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(44.7e6, abs=0.05e6)


def test_the_preset_of_the_published_model_spells_everything_out():
    model = SpectrogramAutoregressive.__init__
    names = set(model.__code__.co_varnames[1 : model.__code__.co_argcount]) - {"optimizer", "lr_scheduler"}
    assert names - set(preset("ar_small")) == {"mel_min", "mel_max"}


@pytest.mark.parametrize("compat", [None, "seed"])
def test_training_reaches_every_parameter(compat):
    model = build(compat=compat)
    model.training_step(training_batch(model), 0).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_a_few_steps_lower_the_loss():
    model = build(dropout=0.0)
    batch = training_batch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@torch.no_grad()
def test_generation_with_a_cache_equals_one_without(dtype, tolerance):
    model = build().eval().to(dtype)
    memory, mask = model.condition(training_batch(model)["tokens"], sampling=True)
    cached = model.network.generate(memory, mask, 64)
    past = torch.zeros(3, 1, 128, dtype=dtype)
    for _ in range(64):
        following = model.network(past, memory, mask)[:, -1:].clamp(-1, 1)
        past = torch.cat([past, following], dim=1)
    torch.testing.assert_close(cached, past[:, 1:], rtol=0, atol=tolerance)
    # Teacher forcing on its own output gives the output again.
    again = model.network(F.pad(cached, (0, 0, 1, 0))[:, :-1], memory, mask).clamp(-1, 1)
    torch.testing.assert_close(again, cached, rtol=0, atol=tolerance)
    assert (model.network.generate(memory, mask, 64, causal=False) - cached).abs().max() > 1e-3


@pytest.mark.parametrize("options", [{}, {"compat": "seed", "overlap_frames": 0}, {"dither": 0.05}])
def test_pieces(excerpts, options):
    model = build(**options).eval()
    items = [Item(path, path.with_suffix(".wav"), path.name) for path in excerpts]

    def rendered(chosen: slice, seed: int = 0) -> list[Tensor]:
        batch = model.collate([model.codec.encode(path) for path in excerpts[chosen]])
        chunks: list[list[Tensor]] = [[] for _ in batch]
        with torch.inference_mode():
            for position, rendering in model.render(batch, Noise(items[chosen], seed)):
                chunks[position].append(rendering.audio)
        return [torch.cat(parts, dim=1) for parts in chunks]

    together = rendered(slice(None))
    for path, audio in zip(excerpts, together, strict=True):
        assert audio.shape == (1, model.codec.encode(path)["samples"]) and audio.isfinite().all()
    (alone,) = rendered(slice(1))
    assert alone.equal(together[0])


def test_fit_and_test_run(tmp_path):
    model = build()
    rows = training_batch(model)
    examples = [{name: tensor[row] for name, tensor in rows.items()} for row in range(2)]
    loader = DataLoader(examples, batch_size=2, collate_fn=model.collate)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_steps=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(model, loader, loader)
    assert {"train/loss", "val/loss"} <= trainer.callback_metrics.keys()
    assert "test/mel_error" in trainer.test(model, loader, verbose=False)[0]


def test_published_files_tell_the_two_models_apart(tmp_path):
    model = build(compat="seed", head_dim=64)
    path = tmp_path / "published.ckpt"
    torch.save({"state_dict": {published_name(name): t for name, t in model.state_dict().items()}}, path)
    read = SpectrogramAutoregressive.load_published(path)
    assert read.hparams.heads == 1 and read.hparams.compat == "seed"
    with pytest.raises(CheckpointError, match="is the autoregressive model: `midisynth import spectrogram_ar`"):
        SpectrogramDiffusion.load_published(path)
