"""What the parity tests of ScaledAdam and Eve leave open."""

from __future__ import annotations

import torch
from torch import nn

from midisynth.training.optimizers import ScaledAdam


def test_clipping_does_without_the_gradient_of_its_first_parameter():
    """Parameters may have no gradient in some steps: norms of the steps before are kept somewhere all the same."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3, 3)) for _ in range(3)]
    optimizer = ScaledAdam(parameters, lr=0.01, clipping_update_period=4)
    for step in range(12):
        for index, parameter in enumerate(parameters):
            parameter.grad = None if (index, step % 4) in ((0, 2), (1, 3)) else torch.randn(3, 3)
        optimizer.step()
    kept = [state for state in optimizer.state.values() if "norms" in state]
    assert len(kept) == 1
    assert (kept[0]["norms"] > 0).all() and kept[0]["threshold"] > 0
