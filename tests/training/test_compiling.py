"""Compiling, mixed precision and accumulation change how fast a model learns, not what."""

from __future__ import annotations

import copy
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from midisynth.errors import UsageError
from midisynth.training.compiling import CompileModules

sys.path.insert(0, str(Path(__file__).parent))
from toy import CLIPS, Toy, ToyData, train


def fit(folder: Path, callbacks: tuple, **options) -> tuple[Trainer, Toy]:
    return train(folder, ToyData, 4, save_every=4, callbacks=callbacks, **options)


class Watch(CompileModules):
    """Compiles, and remembers what ran compiled."""

    def on_train_end(self, trainer, pl_module):
        self.compiled = {name for name, module in pl_module.named_modules() if module._compiled_call_impl is not None}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Toy:
    return fit(tmp_path_factory.mktemp("plain"), ())[1]


def learned(model: Toy) -> dict[str, torch.Tensor]:
    """Every tensor but the bias in front of the norm and the mean that takes it away again.

    That bias has no gradient but rounding, which the optimizer scales up to a step as large as any other.
    """
    return {k: v for k, v in model.state_dict().items() if k not in ("network.0.bias", "network.1.running_mean")}


def check(folder: Path, callback: Watch, plain: Toy) -> None:
    _, model = fit(folder, (callback,))
    assert callback.compiled
    trained, expected = learned(model), learned(plain)
    assert not torch.allclose(expected["network.0.weight"], Toy().network[0].weight, atol=2e-3)
    torch.testing.assert_close(trained, expected, rtol=0, atol=2e-4)
    (saved,) = folder.glob("*.ckpt")
    state = torch.load(saved, weights_only=True)["state_dict"]
    assert list(state) == list(plain.state_dict())
    Toy().load_state_dict(state)


def test_traced_training_is_the_same(tmp_path, plain):
    check(tmp_path, Watch(["network"], backend="aot_eager"), plain)


@pytest.mark.slow
def test_compiled_training_is_the_same(tmp_path, plain):
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler, there is none")
    # Convolution and norm alone: each more takes seconds to compile.
    check(tmp_path, Watch(["network.1"]), plain)


def test_only_training_is_compiled():
    model = Toy()
    callback = CompileModules(["network"])
    callback.setup(Trainer(logger=False, accelerator="cpu"), model, "validate")
    assert model.network._compiled_call_impl is None
    callback.setup(Trainer(logger=False, accelerator="cpu"), model, "fit")
    assert model.network._compiled_call_impl is not None
    # Weight averaging copies the model while it is compiled.
    assert list(copy.deepcopy(model).state_dict()) == list(model.state_dict())


def test_a_name_that_is_none():
    with pytest.raises(UsageError, match="encoder"):
        CompileModules(["network.encoder"]).setup(Trainer(logger=False, accelerator="cpu"), Toy(), "fit")


class Linear(Toy):
    """Learns by plain gradient descent, so that gradients can be read from the weights."""

    def __init__(self):
        super().__init__()
        self._optimizer, self._lr_scheduler = partial(torch.optim.SGD, lr=0.01), None
        self.network = nn.Conv1d(1, 1, 64, 32)

    def training_step(self, batch, batch_idx):
        loss = (self(batch["audio"]) - batch["count"]).square().mean()
        self.log("train/loss", loss)
        return loss


def weights_after(folder: Path, batch_size: int, accumulate: int, steps: int = 3, callbacks: tuple = ()) -> Linear:
    torch.manual_seed(0)
    model = Linear()
    data = ToyData({"folder": str(CLIPS)}, batch_size=batch_size, cache_dir=str(folder / "cache"))
    data.connect(model)
    trainer = Trainer(
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        limit_train_batches=accumulate,  # one step an epoch: what is left over at its end depends on the batch
        callbacks=list(callbacks),
        default_root_dir=folder,
    )
    trainer.fit(model, data)
    assert trainer.global_step == steps
    return model


def test_accumulated_batches_are_one_batch(tmp_path):
    """Four batches of two give the gradients of one of eight, step after step."""
    whole, parts = weights_after(tmp_path, 8, 1), weights_after(tmp_path, 2, 4)
    start = Linear()
    torch.testing.assert_close(whole.state_dict(), parts.state_dict(), rtol=0, atol=1e-6)
    assert not torch.equal(whole.network.weight, start.network.weight)


def test_the_average_moves_once_a_step(tmp_path):
    """With accumulation too: it averages optimizer steps, not batches."""
    averages = [EMAWeightAveraging(decay=0.5), EMAWeightAveraging(decay=0.5)]
    whole = weights_after(tmp_path, 8, 1, callbacks=(averages[0],))
    parts = weights_after(tmp_path, 2, 4, callbacks=(averages[1],))
    torch.testing.assert_close(whole.state_dict(), parts.state_dict(), rtol=0, atol=1e-6)
    plain = weights_after(tmp_path, 8, 1)
    assert not torch.allclose(whole.network.weight, plain.network.weight)


def test_the_rate_moves_once_a_step(tmp_path):
    """`WarmupCosine` counts optimizer steps, whatever is accumulated."""
    trainer, _ = train(tmp_path, ToyData, 3, save_every=3, accumulate_grad_batches=2)
    (config,) = trainer.lr_scheduler_configs
    assert config.scheduler.last_epoch == trainer.global_step == 3
