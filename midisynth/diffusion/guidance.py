"""Classifier-free guidance (Ho and Salimans 2022)."""

from __future__ import annotations

from torch import Tensor


def guide(output: Tensor, scale: float) -> Tensor:
    """Move the conditional output away from the unconditional one: scale * c + (1 - scale) * u.

    The three objectives are affine in each other for a given z, so it does not matter which of them is guided.

    Args:
        output: [2 * batch, ...]: the conditional rows, then the unconditional rows, of one forward pass.
        scale: 1 is no guidance.

    Returns:
        [batch, ...].
    """
    conditional, unconditional = output.chunk(2)
    return unconditional + scale * (conditional - unconditional)
