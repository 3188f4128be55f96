"""The schedule's shape, and that it comes out of a YAML file."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LRSchedulerCallable

from midisynth.training.schedules import WarmupCosine


def rates(schedule, steps: int) -> list[float]:
    made = []
    for _ in range(steps):
        made.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return made


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)


def test_shape():
    made = rates(WarmupCosine(optimizer(), total_steps=110, warmup_steps=10, final=0.05), 150)
    assert made[0] == pytest.approx(0.2)
    assert made[9] == made[10] == pytest.approx(2.0)
    assert made[60] == pytest.approx(2.0 * (0.05 + 0.95 / 2))
    assert made[110] == made[149] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(made[9:]))
    with pytest.raises(ValueError, match="warmup_steps is 100"):
        WarmupCosine(optimizer(), total_steps=100)


def test_a_resumed_schedule_goes_on():
    whole = rates(WarmupCosine(optimizer(), total_steps=50, warmup_steps=5), 30)
    first = WarmupCosine(optimizer(), total_steps=50, warmup_steps=5)
    rates(first, 12)
    second = WarmupCosine(optimizer(), total_steps=50, warmup_steps=5)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert rates(second, 18) == pytest.approx(whole[12:])


def test_from_a_class_path():
    parser = ArgumentParser()
    parser.add_argument("--schedule", type=LRSchedulerCallable)
    config = {
        "class_path": "midisynth.training.schedules.WarmupCosine",
        "init_args": {"total_steps": 20, "warmup_steps": 2},
    }
    parsed = parser.instantiate_classes(parser.parse_object({"schedule": config}))
    assert rates(parsed.schedule(optimizer()), 2) == pytest.approx([1.0, 2.0])
