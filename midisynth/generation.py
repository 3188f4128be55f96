"""Sampling rules of models that generate one token after the other.

Randomness comes in as uniform numbers, so that the same numbers give the same tokens on every device and in every
batch, and nothing has to wait for a device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from midisynth.errors import UsageError


@dataclass(frozen=True)
class SamplingRules:
    """What is done to logits before a token is drawn, in this order.

    Attributes:
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_k: Keep this many of the likeliest tokens, and those that are as likely as the last of them; 0 or less
            keeps all.
        top_p: Keep the fewest likeliest tokens that have this probability together (Holtzman et al. 2020, "The Curious
            Case of Neural Text Degeneration", section 3.1); 1 keeps all.

    Raises:
        UsageError: A value is out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}, expected more than 0 and at most 1")

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.top_k == 1 or self.temperature == 0


def sample(logits: Tensor, uniforms: Tensor | None, rules: SamplingRules) -> Tensor:
    """Draw one token from each row of logits.

    Args:
        logits: [..., classes]; what is -inf is never drawn.
        uniforms: [...] numbers in [0, 1); None if the rules are greedy.
        rules: See there.

    Returns:
        [...] int64.
    """
    if rules.greedy:
        return logits.argmax(dim=-1)
    logits = filter_logits(logits if logits.dtype == torch.float64 else logits.float(), rules)
    return inverse_cdf(logits.softmax(dim=-1), uniforms)


def filter_logits(logits: Tensor, rules: SamplingRules) -> Tensor:
    """Apply temperature, top-k and top-p: [..., classes] -> the same, -inf for classes that are not kept."""
    logits = logits / rules.temperature
    classes = logits.shape[-1]
    if 0 < rules.top_k < classes:
        least = logits.topk(rules.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if rules.top_p < 1:
        likeliest, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        dropped = likeliest.cumsum(dim=-1) - likeliest >= rules.top_p
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    return logits


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The class at which the running sum of weights first exceeds `uniforms` times their sum.

    Args:
        weights: [..., classes], not negative; their sum need not be 1.
        uniforms: [...] in [0, 1).

    Returns:
        [...] int64; never a class without weight.
    """
    running = weights.cumsum(dim=-1)
    total = running[..., -1]
    # A product that is rounded up to the sum itself would lie behind the last class.
    threshold = torch.minimum(uniforms.to(total) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(running, threshold[..., None], right=True)[..., 0]
