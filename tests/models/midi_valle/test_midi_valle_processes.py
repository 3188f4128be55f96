"""Training in processes: two that learn together, and a run that is stopped within an epoch and goes on."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from midisynth.main import main

ROOT = Path(__file__).resolve().parents[3]
#: Three passes over the clip in an epoch give five batches.
DATA = ["--data.corpora.folder.root=examples/data", "--data.corpora.folder.weight=3"]


def fit(folder: Path, *words: str) -> list[str]:
    return [
        "fit",
        "--config=midi_valle/tiny",
        "--trainer.accelerator=cpu",
        f"--trainer.default_root_dir={folder}",
        *words,
    ]


def test_two_processes_train(tmp_path: Path):
    """Each draws another stage: no parameter may be left without a gradient on either, which would be a crash."""
    words = fit(tmp_path, *DATA, "--trainer.strategy=ddp", "--trainer.devices=2", "--model.codebooks=4")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "midisynth", *words, "--trainer.val_check_interval=2"]
    command += ["--trainer.check_val_every_n_epoch=null"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (metrics,) = tmp_path.rglob("metrics.csv")
    validated = [row for row in csv.DictReader(metrics.open()) if row["val/loss"]]
    assert len(validated) == 2
    assert all(math.isfinite(float(row[name])) for row in validated for name in ("val/ar_loss", "val/nar_loss"))


def saved(folder: Path, step: int) -> dict[str, Any]:
    (path,) = folder.rglob(f"step={step}.ckpt")
    return torch.load(path, weights_only=True)


def same_bits(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same_bits(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same_bits, one, two))
    return one == two


def test_a_stopped_run_goes_on_with_the_very_next_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the middle of an epoch of batches by duration, with accumulation and a running average."""
    monkeypatch.chdir(ROOT)
    options = [
        *DATA,
        "--trainer.devices=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.limit_val_batches=0",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.filename={step}",
        "--trainer.callbacks.every_n_train_steps=1",
        "--trainer.callbacks.save_top_k=-1",
        "--trainer.callbacks+=midisynth.training.averaging.RunningAverage",
        "--trainer.callbacks.every_n_steps=2",
        "--trainer.callbacks+=midisynth.training.memory.RehearseLargestBatches",
    ]
    assert main(fit(tmp_path / "whole", *options, "--trainer.max_steps=4")) == 0
    (first,) = (tmp_path / "whole").rglob("step=1.ckpt")
    assert main(fit(tmp_path / "resumed", *options, "--trainer.max_steps=4", f"--ckpt_path={first}")) == 0
    one, two = saved(tmp_path / "whole", 4), saved(tmp_path / "resumed", 4)
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        assert same_bits(one[part], two[part]), part
    assert not same_bits(one["state_dict"], one["current_model_state"])
    # Rates follow batches, of which a step has two.
    assert one["lr_schedulers"][0]["last_epoch"] == 8 - (one["epoch"] > 0)
