"""The models that come with midisynth keep the contract that plugins have to keep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from midisynth import registry, testing

ROOT = Path(__file__).resolve().parent.parent
BUILT_IN = [entry for entry in registry.entries("models") if entry.package == registry.DISTRIBUTION]

for _entry in BUILT_IN:
    globals()[f"Test{_entry.attribute}"] = testing.contract_suite(_entry.name)


@pytest.fixture(scope="module", autouse=True)
def _at_the_top() -> Iterator[None]:
    """The presets name the clips of the repository relative to its top."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


def test_a_constant_loss_fails_the_fit():
    """The watcher of gradients can fail."""
    import torch
    from lightning.pytorch import LightningModule, Trainer

    class Idle(LightningModule):
        def __init__(self):
            super().__init__()
            self.used, self.idle = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))

        def training_step(self, batch, batch_idx):
            return (self.used * batch).sum() + 0 * self.idle.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[testing.EveryParameterLearns()],
    )
    with pytest.raises(AssertionError, match="no gradient in: idle"):
        trainer.fit(Idle(), torch.ones(4, 1))


def test_silence_is_found(tmp_path: Path):
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "silent.wav", np.zeros(1000), 8000)
    with pytest.raises(AssertionError, match="silent"):
        testing.assert_sounds(tmp_path / "silent.wav")


def test_a_difference_is_found():
    import torch

    from midisynth.module import Rendering

    one, other = ([Rendering(audio=torch.full((1, 8), value), sample_rate=8000)] for value in (0.0, 1e-3))
    testing.assert_close(one, one)
    with pytest.raises(AssertionError):
        testing.assert_close(one, other)
    assert testing.same({"a": [torch.ones(2), 1.0]}, {"a": [torch.ones(2), 1.0]})
    assert not testing.same({"a": [torch.ones(2), 1.0]}, {"a": [torch.ones(2).double(), 1.0]})
