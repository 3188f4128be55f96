"""The adversarial step: who is trained when, what counts as a step, many processes, resumed runs, and that it helps."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

sys.path.insert(0, str(Path(__file__).parent))
from adversarial_toy import train
from test_resume import assert_same_training, saved
from toy import ToyShuffled

from midisynth.errors import UsageError
from midisynth.nn.discriminators import AudioDiscriminator, MultiPeriodDiscriminator, MultiResolutionDiscriminator
from midisynth.training.adversarial import AdversarialStep

ROOT = Path(__file__).resolve().parents[2]


def children(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the generator and of the adversary."""
    theirs = {name: value for name, value in state.items() if name.startswith("adversary.")}
    return {name: value for name, value in state.items() if name not in theirs}, theirs


def distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    assert one.keys() == two.keys()
    return max((one[name] - two[name]).abs().max().item() for name in one)


def weights(folder: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return children(saved(folder, step)["current_model_state"])


class Gradients(Callback):
    """After every backward pass: whose parameters have a gradient."""

    def __init__(self) -> None:
        self.seen: list[tuple[bool, bool]] = []

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        mine = [p.grad is not None for p in module.network.parameters()]
        theirs = [p.grad is not None for p in module.adversary.parameters()]
        assert all(mine) == any(mine)
        assert all(theirs) == any(theirs)
        self.seen.append((all(mine), all(theirs)))


def test_each_side_gets_its_own_gradient(tmp_path: Path):
    """The adversary's gradient is the same with and without the generator's backward pass."""
    received = {}

    class Keep(Callback):
        def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
            gradients = [None if p.grad is None else p.grad.clone() for p in module.adversary.parameters()]
            received.setdefault(trainer.global_step, []).append(gradients)

    watch = Gradients()
    train(tmp_path / "run", 3, callbacks=(watch, Keep()), limit_val_batches=0)
    assert watch.seen == [(False, True), (True, True)] * 3
    for after_its_own, after_the_generators in received.values():
        assert any(gradient.abs().max() > 0 for gradient in after_its_own)
        assert all(map(torch.equal, after_its_own, after_the_generators))


def test_the_adversary_is_not_touched_before_its_start(tmp_path: Path):
    watch = Gradients()
    train(tmp_path / "run", 5, model={"start": 3}, callbacks=(watch,), limit_val_batches=0)
    assert watch.seen == [(True, False)] * 3 + [(False, True), (True, True)] * 2
    (first, adversary_first), (third, adversary_third), (last, adversary_last) = (
        weights(tmp_path / "run", step) for step in (1, 3, 5)
    )
    assert distance(adversary_first, adversary_third) == 0 < distance(adversary_third, adversary_last)
    assert min(distance(first, third), distance(third, last)) > 0
    generator, discriminator = saved(tmp_path / "run", 5)["optimizer_states"]
    assert {float(state["step"]) for state in generator["state"].values()} == {5}
    assert {float(state["step"]) for state in discriminator["state"].values()} == {2}
    assert [schedule["last_epoch"] for schedule in saved(tmp_path / "run", 5)["lr_schedulers"]] == [5, 2]


def test_without_an_adversary_the_trainer_optimises(tmp_path: Path):
    _, model = train(
        tmp_path / "run",
        2,
        model={"start": None},
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        limit_val_batches=0,
    )
    assert model.automatic_optimization
    assert len(model.seen) == 4
    assert not children(model.state_dict())[1]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_are_the_generators(accumulate: int, tmp_path: Path):
    """Of checkpoints, logger, weight averaging and `max_steps`. The last batch of an epoch makes a step."""
    updates = []

    class Averages(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
            updates.append((trainer.global_step, int(trainer.callbacks[0]._average_model.n_averaged)))

    folder = tmp_path / "run"
    trainer, model = train(
        folder,
        8,
        model={"accumulate_grad_batches": accumulate},
        save_every=2,
        callbacks=(Averages(),),
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=1,
    )
    assert trainer.num_training_batches == 5
    assert trainer.global_step == 8
    assert len(model.seen) == {1: 8, 2: 14}[accumulate]
    assert all(step == averaged for step, averaged in updates)
    assert sorted(path.name for path in folder.glob("*.ckpt")) == [f"step={step}.ckpt" for step in (2, 4, 6, 8)]
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    # The trainer numbers steps from 0 in automatic optimisation, too.
    assert {int(row["step"]) for row in rows if row["train/loss"]} <= set(range(9))
    assert [int(row["step"]) for row in rows if row["val/loss"]] == {1: [4], 2: [3, 6]}[accumulate]
    assert {"train/loss", "train/adversarial", "train/features", "train/discriminator"} <= rows[0].keys()
    # Validation by itself has no step to tell.
    assert trainer.validate(model, trainer.datamodule, verbose=False)[0].keys() == {"val/loss"}


def test_accumulated_batches_are_one_large_batch(tmp_path: Path):
    options = {"noise": 0.0, "adam": False}
    train(tmp_path / "large", 2, data=ToyShuffled, batch_size=4, model=options, limit_val_batches=0)
    options["accumulate_grad_batches"] = 2
    train(tmp_path / "small", 2, data=ToyShuffled, batch_size=2, model=options, limit_val_batches=0)
    for one, two, before in zip(
        weights(tmp_path / "large", 2), weights(tmp_path / "small", 2), weights(tmp_path / "large", 1), strict=True
    ):
        assert distance(one, two) < 1e-4 < 1e-3 < distance(one, before)


def test_gradients_are_clipped(tmp_path: Path):
    """Of plain gradient descent at rate 0.5 / 3, a third of a warm-up of three steps."""
    limit = 1e-3
    options = {"noise": 0.0, "adam": False, "gradient_clip_val": limit}
    train(tmp_path / "run", 2, model=options, limit_val_batches=0)
    for one, two in zip(weights(tmp_path / "run", 1), weights(tmp_path / "run", 2), strict=True):
        moved = sum((one[name] - two[name]).square().sum().item() for name in one) ** 0.5
        assert moved == pytest.approx(0.5 * 2 / 3 * limit, rel=1e-2)


@pytest.mark.parametrize(("save_every", "fail_at", "start"), [(3, 4, 0), (5, 7, 0), (2, 5, 4), (1, 2, 4)])
def test_resumed_run_is_bit_equal(save_every: int, fail_at: int, start: int, tmp_path: Path):
    """Within an epoch of five batches, at its end, and before and after the adversary starts."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _, straight = train(whole, 9, model={"start": start}, val_check_interval=2)
    with pytest.raises(RuntimeError, match="killed"):
        train(killed, 9, model={"start": start, "fail_at": fail_at}, save_every=save_every, val_check_interval=2)
    step = fail_at // save_every * save_every
    _, resumed = train(killed, 9, model={"start": start}, resume=killed / f"step={step}.ckpt", val_check_interval=2)
    assert resumed.seen == straight.seen[step:]
    assert len(saved(whole, 9)["optimizer_states"]) == len(saved(whole, 9)["lr_schedulers"]) == 2
    assert_same_training(saved(whole, 9), saved(killed, 9))


def test_resumed_run_with_accumulation_is_bit_equal(tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _, straight = train(whole, 7, model={"accumulate_grad_batches": 2}, limit_val_batches=0)
    with pytest.raises(RuntimeError, match="killed"):
        train(killed, 7, model={"accumulate_grad_batches": 2, "fail_at": 4}, limit_val_batches=0)
    _, resumed = train(
        killed, 7, model={"accumulate_grad_batches": 2}, resume=killed / "step=4.ckpt", limit_val_batches=0
    )
    assert resumed.seen == straight.seen[-len(resumed.seen) :]
    assert_same_training(saved(whole, 7), saved(killed, 7))


def test_bfloat16_autocast(tmp_path: Path):
    _, half = train(tmp_path / "half", 3, precision="bf16-mixed", limit_val_batches=0)
    train(tmp_path / "full", 3, limit_val_batches=0)
    assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in half.parameters())
    for one, two in zip(weights(tmp_path / "half", 3), weights(tmp_path / "full", 3), strict=True):
        assert 0 < distance(one, two) < 0.05


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val"),
        ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches"),
        ({"callbacks": (ModelCheckpoint(train_time_interval=timedelta(minutes=1)),)}, "train_time_interval"),
    ],
)
def test_settings_of_the_trainer_that_do_not_work_are_refused(option: dict, message: str, tmp_path: Path):
    with pytest.raises(UsageError, match=message) as caught:
        train(tmp_path / "run", 1, **option)
    assert "\n" not in str(caught.value)


class Noise(IterableDataset):
    """White noise of random level; what made it is not given, so the best guess of any sample is 0."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1)
        while True:
            level = 0.2 + 0.8 * torch.rand(16, 1, 1, generator=generator)
            noise = torch.randn(2, 16, 1, 512, generator=generator)
            yield torch.cat([level.expand(-1, -1, 512), noise[0]], dim=1), level * noise[1]


class NoiseMaker(LightningModule):
    """Plain Lightning: level and other noise -> audio."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv1d(2, 16, 5, padding=2), nn.LeakyReLU(0.1), nn.Conv1d(16, 16, 5, padding=2)]
        self.network = nn.Sequential(*layers, nn.LeakyReLU(0.1), nn.Conv1d(16, 1, 5, padding=2))
        self.ratios: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        condition, reference = batch
        audio = self.network(condition)
        self.ratios.append((audio.std(dim=-1) / reference.std(dim=-1)).detach().flatten())
        loss = 0.1 * (audio - reference).square().mean()
        return self.finish(loss, audio, reference, batch_idx)

    def finish(self, loss: Tensor, audio: Tensor, reference: Tensor, batch_idx: int) -> Tensor:
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.network.parameters(), lr=3e-3, betas=(0.5, 0.9))


class AdversarialNoiseMaker(AdversarialStep, NoiseMaker):
    def __init__(self, objective: str) -> None:
        super().__init__()
        parts = [MultiPeriodDiscriminator((2, 3), (8, 16)), MultiResolutionDiscriminator((64,), (8, 8, 8))]
        self.use_adversary(
            AudioDiscriminator(parts, objective), partial(torch.optim.Adam, lr=3e-3, betas=(0.5, 0.9)), start_step=10
        )

    def finish(self, *arguments: Any) -> Tensor:
        return self.adversarial_step(*arguments)


@pytest.mark.parametrize("objective", [None, "least_squares", "hinge"])
def test_an_adversary_demands_what_cannot_be_predicted(objective: str | None, tmp_path: Path):
    """The error of single samples leads to silence; the adversary hears how loud noise has to be."""
    torch.manual_seed(0)
    model = NoiseMaker() if objective is None else AdversarialNoiseMaker(objective)
    trainer = Trainer(
        max_steps=100,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, DataLoader(Noise(), batch_size=None))
    ratio = torch.cat(model.ratios[-10:])
    if objective is None:
        assert ratio.max() < 0.1
    else:
        assert 0.5 < ratio.mean() < 1.5
        assert ratio.min() > 0.25


class Greedy(NoiseMaker):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class GreedyGenerator(AdversarialNoiseMaker, Greedy):
    pass


def test_a_generator_that_would_step_the_adversary_is_refused():
    with pytest.raises(ValueError, match="generator_parameters"):
        GreedyGenerator("hinge").configure_optimizers()


def launch(folder: Path, steps: int, **arguments: Any) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).with_name("adversarial_toy.py"))
    command = [sys.executable, script, str(folder), json.dumps({"steps": steps, **arguments})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "finished reduction" not in done.stderr


def test_two_processes_are_one_with_all_their_batches(tmp_path: Path):
    """Two batches of each. The adversary starts within the run: there are steps with and without gradients for it."""
    model = {"noise": 0.0, "adam": False, "start": 1}
    train(tmp_path / "one", 2, data=ToyShuffled, batch_size=4, model=model, limit_val_batches=0)
    launch(tmp_path / "two", 2, batch_size=1, model={**model, "accumulate_grad_batches": 2})
    for one, two, before in zip(
        weights(tmp_path / "one", 2), weights(tmp_path / "two", 2), weights(tmp_path / "one", 1), strict=True
    ):
        # One sample on the other side of a kink of a loss or an activation makes up to 0.5 / 8000.
        assert distance(one, two) < 1e-4 < 1e-2 < distance(one, before)


def test_two_processes_resume_bit_equal(tmp_path: Path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    launch(whole, 5, model={"start": 2})
    launch(resumed, 5, model={"start": 2}, resume=str(whole / "step=3.ckpt"))
    assert_same_training(saved(whole, 5), saved(resumed, 5))
