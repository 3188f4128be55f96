"""Optimizers, schedules and averages of MIDI-VALLE against those of its authors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from midisynth.training.averaging import RunningAverage
from midisynth.training.optimizers import Eve, ScaledAdam
from midisynth.training.schedules import BatchSchedule, Eden, Noam

ParityRoot = Callable[[str], Path]
RTOL, ATOL = 1e-4, 1e-6


@pytest.fixture(scope="module")
def steps(parity_root: ParityRoot) -> tuple[dict[str, Any], dict[str, Tensor]]:
    root = parity_root("midi_valle")
    return json.loads((root / "optim.json").read_text()), load_file(root / "optim.safetensors")


def build(case: str, manifest: dict[str, Any], parameters: list[Tensor]) -> torch.optim.Optimizer:
    options = {
        name: value
        for name, value in manifest["cases"][case].items()
        if not name.startswith(("show_", "clipping_scale_seen"))
    }
    if case == "eve":
        return Eve(parameters, **options)
    assert {
        name: manifest["defaults"][name] for name in ("scalar_lr_scale", "eps", "scalar_max", "size_update_period")
    } == {
        name: ScaledAdam(parameters).defaults[name]
        for name in ("scalar_lr_scale", "eps", "scalar_max", "size_update_period")
    }
    return ScaledAdam(parameters, **options, clipped="scale")


@pytest.mark.parametrize("case", ["scaled_adam", "scaled_adam_noclip", "eve"])
def test_every_step_of_the_optimizers(case: str, steps: tuple[dict[str, Any], dict[str, Tensor]]):
    manifest, tensors = steps
    initial = {name.removeprefix("init."): tensor for name, tensor in tensors.items() if name.startswith("init.")}
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in initial.items()}
    optimizer = build(case, manifest, list(parameters.values()))
    count = len({name.split(".")[1] for name in tensors if name.startswith("grad.")})
    assert count > 4
    for step in range(count):
        for name, parameter in parameters.items():
            parameter.grad = tensors[f"grad.{step}.{name}"].clone()
        optimizer.step()
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter.detach(), tensors[f"{case}.{step}.{name}"], rtol=RTOL, atol=ATOL)


def test_clipping_factors(steps: tuple[dict[str, Any], dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch):
    manifest, _ = steps
    seen: list[float] = []
    usual = ScaledAdam._clipping_factor

    def watched(*args: Any) -> Tensor | None:
        factor = usual(*args)
        seen.append(1.0 if factor is None else float(factor))
        return factor

    monkeypatch.setattr(ScaledAdam, "_clipping_factor", watched)
    test_every_step_of_the_optimizers("scaled_adam", steps)
    expected = manifest["cases"]["scaled_adam"]["clipping_scale_seen_per_step_from_step_1"]
    assert seen[1 : 1 + len(expected)] == pytest.approx(expected, rel=1e-4)


def schedule(kind: str, case: dict[str, Any]) -> BatchSchedule:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=case["base_lr"])
    if kind == "eden":
        made: BatchSchedule = Eden(optimizer, warmup_batches=case["warmup"])
    else:
        made = Noam(optimizer, case["dim"], case["warmup"])
    # Without a step before, torch warns of the wrong order.
    optimizer.step()
    return made


@pytest.mark.parametrize("kind", ["eden", "noam"])
def test_rates(kind: str, parity_root: ParityRoot):
    for case in json.loads((parity_root("midi_valle") / "schedules.json").read_text())[kind]:
        made = schedule(kind, case)
        made.step_to(case.get("batch", case.get("step")), case.get("epoch", 0))
        assert made.optimizer.param_groups[0]["lr"] == pytest.approx(case["lr"], rel=1e-9), case


def test_running_average(parity_root: ParityRoot):
    """Updates stand `period` batches apart; the callback sees the steps between them as well."""
    case = json.loads((parity_root("midi_valle") / "schedules.json").read_text())["model_average"]
    period = case["period"]
    callback = RunningAverage(every_n_steps=period)
    averaged = torch.optim.swa_utils.AveragedModel(model := torch.nn.Linear(3, 1, bias=False).double())
    found = []
    for step in range(period * len(case["weights_at_updates"])):
        values = case["weights_at_updates"][step // period]
        model.weight.data = torch.tensor([values], dtype=torch.float64)
        if callback.should_update(step_idx=step):
            averaged.update_parameters(model)
            found.append(averaged.module.weight.detach()[0].tolist())
    expected = case["average_after_each_update"]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-6)
