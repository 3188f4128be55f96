"""A run that is killed and resumed ends with the very bits of one that is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyData, ToyShuffled, train

ROOT = Path(__file__).resolve().parents[2]


def same_bits(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same_bits(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same_bits, one, two))
    return one == two


def saved(folder: Path, step: int) -> dict:
    return torch.load(folder / f"step={step}.ckpt", weights_only=True)


def assert_same_training(one: dict, two: dict) -> None:
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers"):
        assert same_bits(one[part], two[part]), part


# Five batches an epoch: within an epoch, at its end, at its start, and far into the run, with other cadences of saving.
@pytest.mark.parametrize(("save_every", "fail_at"), [(3, 3), (3, 8), (5, 7), (1, 5), (10, 12), (4, 4), (3, 11)])
@pytest.mark.parametrize("data", [ToyData, ToyShuffled])
def test_resumed_run_is_bit_equal(data: type[ToyData], save_every: int, fail_at: int, tmp_path: Path):
    steps = 13
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _, straight = train(whole, data, steps, save_every=1, val_check_interval=2)
    with pytest.raises(RuntimeError, match="killed"):
        train(killed, data, steps, save_every=save_every, fail_at=fail_at, val_check_interval=2)
    step = fail_at // save_every * save_every
    _, resumed = train(killed, data, steps, save_every=1, resume=killed / f"step={step}.ckpt", val_check_interval=2)
    assert resumed.seen == straight.seen[step:]
    assert len(set(straight.seen)) > 4
    assert_same_training(saved(whole, steps), saved(killed, steps))


def test_prefetched_batches_are_not_skipped(tmp_path: Path):
    """Workers are several batches ahead when the run dies."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _, straight = train(whole, ToyData, 8, save_every=8)
    with pytest.raises(RuntimeError, match="killed"):
        train(killed, ToyData, 8, save_every=2, fail_at=3, workers=2)
    _, resumed = train(killed, ToyData, 8, save_every=8, resume=killed / "step=2.ckpt", workers=2)
    assert resumed.seen == straight.seen[2:]
    assert_same_training(saved(whole, 8), saved(killed, 8))


def launch(folder: Path, steps: int, save_every: int, fail_at: int = -1, resume: str = "") -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).with_name("toy.py"))
    words = [str(folder), str(steps), str(save_every), str(fail_at), resume]
    command = [sys.executable, script, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode != 0) == (fail_at >= 0), done.stderr


def results(folder: Path) -> list[dict]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes(tmp_path: Path):
    """Two batches of each process an epoch; in validation, one process has a batch more than the other."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    launch(whole, 7, save_every=1)
    launch(killed, 7, save_every=3, fail_at=5)
    launch(killed, 7, save_every=1, resume=str(killed / "step=3.ckpt"))
    for straight, resumed in zip(results(whole), results(killed), strict=True):
        assert resumed["seen"] == straight["seen"][3:]
    assert_same_training(saved(whole, 7), saved(killed, 7))
    one, two = results(whole)
    assert not set(one["seen"]) & set(two["seen"])
    losses = one["validated"] + two["validated"]
    assert (len(one["validated"]), len(two["validated"])) == (5, 4)
    assert one["val/loss"] == two["val/loss"] == pytest.approx(sum(losses) / 9, rel=1e-5)
