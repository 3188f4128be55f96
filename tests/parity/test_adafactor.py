"""torch's Adafactor takes the steps with which both families were trained."""

from __future__ import annotations

import pytest
import torch
from fixture_files import Fixture, assert_close


@pytest.mark.parametrize("kind", ["relative", "fixed_lr"])
def test_traces(parity_root, kind):
    """With a relative step the published optimizer ignores its learning rate and takes min(0.01, 1 / sqrt(step))."""
    fixture = Fixture(parity_root("spectrogram_diffusion"), "adafactor")
    config = fixture.config
    names = [name.removesuffix(".init") for name in fixture.tensors if name.endswith(".init")]
    parameters = {name: torch.nn.Parameter(fixture[f"{name}.init"].clone()) for name in names}
    optimizer = torch.optim.Adafactor(
        parameters.values(),
        lr=0.01 if kind == "relative" else config["lr"],
        beta2_decay=config["decay_rate"],
        # Theirs is added to squared gradients, torch's is the square root of the least that they are taken for.
        eps=(config["eps2"][0] ** 0.5, config["eps2"][1]),
        d=config["clip_threshold"],
        weight_decay=config["weight_decay"],
    )
    steps = sum(name.startswith(f"{names[0]}.grad") for name in fixture.tensors)
    assert steps
    for step in range(steps):
        for name, parameter in parameters.items():
            parameter.grad = fixture[f"{name}.grad{step}"].clone()
        optimizer.step()
        for name, parameter in parameters.items():
            assert_close(parameter.detach(), fixture[f"{kind}.{name}.after{step}"], fixture.tolerance("all"))
