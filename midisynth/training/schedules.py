"""Learning-rate schedules that torch has not ready-made."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupCosine(LambdaLR):
    """Linear warm-up, then half a cosine down to a share of the full rate; it stays there.

    Args:
        optimizer: Its rates are the full ones.
        total_steps: Steps until the end of the cosine.
        warmup_steps: Steps of the warm-up.
        final: Share of the full rate at the end.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 100, final: float = 0.05):
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(f"warmup_steps is {warmup_steps}: it must be less than total_steps ({total_steps})")

        def share(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / warmup_steps
            progress = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

        super().__init__(optimizer, share)
