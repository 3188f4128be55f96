"""Learning-rate schedules that torch has not ready-made."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


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


class BatchSchedule(LRScheduler):
    """Base of schedules that count batches, accumulated ones too, and epochs, where others count steps.

    The rate changes only when `step` or `step_to` is called; `midisynth.module.MidiModule` does this after every step
    of its optimizer.

    Args:
        optimizer: Its rates are the base rates.

    Attributes:
        epoch: Epochs that are complete.
    """

    def __init__(self, optimizer: Optimizer):
        self.epoch = 0
        super().__init__(optimizer)

    def factor(self, batch: int, epoch: int) -> float:
        """What the base rate is multiplied by.

        Args:
            batch: Batches that were trained on.
            epoch: Epochs that are complete.
        """
        raise NotImplementedError

    def get_lr(self) -> list[float]:  # type: ignore[override]
        # torch counts its steps under this name.
        factor = self.factor(self.last_epoch, self.epoch)
        return [rate * factor for rate in self.base_lrs]

    def step_to(self, batch: int, epoch: int) -> None:
        """Set the rate for what comes after `batch` batches and `epoch` epochs."""
        self.last_epoch, self.epoch = batch - 1, epoch
        self.step()


class Eden(BatchSchedule):
    """Falls with the square root of batches and of epochs, for ScaledAdam (Yao et al. 2023, "Zipformer", arXiv
    2310.11230, section 3.5); in a short warm-up it rises from one half.

    Args:
        optimizer: Its rates are the full ones.
        lr_batches: Batches from about which the rate falls.
        lr_epochs: Epochs from about which it falls.
        warmup_batches: Batches of the warm-up.
    """

    def __init__(self, optimizer: Optimizer, lr_batches: int = 5000, lr_epochs: float = 4, warmup_batches: int = 200):
        self._lr_batches, self._lr_epochs, self._warmup_batches = lr_batches, lr_epochs, warmup_batches
        super().__init__(optimizer)

    def factor(self, batch: int, epoch: int) -> float:
        falling = (1 + (batch / self._lr_batches) ** 2) * (1 + (epoch / self._lr_epochs) ** 2)
        rising = 0.5 + 0.5 * batch / self._warmup_batches if batch < self._warmup_batches else 1.0
        return falling**-0.25 * rising


class Noam(BatchSchedule):
    """Rises linearly, then falls with the square root of batches ("Attention Is All You Need", section 5.3).

    Args:
        optimizer: Its rates are factors.
        dim: Width of the network; rates are divided by its square root.
        warmup_batches: Batches until the largest rate.
    """

    def __init__(self, optimizer: Optimizer, dim: int, warmup_batches: int = 200):
        self._dim, self._warmup_batches = dim, warmup_batches
        super().__init__(optimizer)

    def factor(self, batch: int, epoch: int) -> float:
        # Before the first batch the rate is that of the first.
        count = max(batch, 1)
        return self._dim**-0.5 * min(count**-0.5, count * self._warmup_batches**-1.5)
