"""What only a CUDA device can show: mixed precision in training, and the same spectrograms as on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from midisynth.checkpoints import load_model
from midisynth.module import Item, Noise
from midisynth.render import default_checkpoint

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "mozart_k331.mid"

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_tiny_fits_and_predicts(precision: str, tmp_path: Path):
    options = ["--trainer.accelerator=gpu", "--trainer.devices=1", f"--trainer.precision={precision}"]
    fit = ["fit", "--config=spectrogram_diffusion/tiny", f"--trainer.default_root_dir={tmp_path}", *options]
    done = subprocess.run([sys.executable, "-m", "midisynth", *fit], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    predict = ["predict", str(EXAMPLE), f"--ckpt_path={checkpoint}", f"--output={tmp_path / 'out.wav'}", *options]
    done = subprocess.run([sys.executable, "-m", "midisynth", *predict], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.callbacks+=midisynth.training.compiling.CompileModules", "--trainer.callbacks.modules=[network]"],
        ["--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay=0.9"],
        ["--trainer.accumulate_grad_batches=2"],
    ],
    ids=["compiled", "averaged", "accumulated"],
)
def test_ways_of_training_save_what_loads_without_them(options: list[str], tmp_path: Path):
    """In bfloat16, as `small_gpu` uses them; loading checks the names of all tensors."""
    words = ["fit", "--config=spectrogram_diffusion/tiny", f"--trainer.default_root_dir={tmp_path}"]
    words += ["--trainer.accelerator=gpu", "--trainer.devices=1", "--trainer.precision=bf16-mixed", *options]
    done = subprocess.run([sys.executable, "-m", "midisynth", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    assert all(tensor.isfinite().all() for tensor in load_model(str(checkpoint)).state_dict().values())


def test_spectrograms_equal_those_of_the_cpu():
    model = load_model(default_checkpoint([str(EXAMPLE)]))
    segments = model.codec.collate(model.codec.encode(EXAMPLE)["segments"][:8])
    noise = Noise([Item(EXAMPLE, EXAMPLE, "key")])
    mels = []
    for device in ("cpu", "cuda"):
        generators = [noise.generator(0, index) for index in range(8)]
        with torch.inference_mode():
            mels.append(model.to(device).sample_segments(segments, model.noise_source(generators)).cpu())
    torch.testing.assert_close(mels[0], mels[1], rtol=0, atol=1e-2)
