"""Scheduled sampling: some of the past that a network is trained on is its own (Bengio et al. 2015, arXiv 1506.03099).

In parallel, as the original of this model does it: a pass of the network over the true codes gives a sample at every
position at once, and a part of the positions takes it; further loops repeat this on the result. The share of positions
that keep their code falls linearly, and a further loop begins when the loss no longer does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from midisynth.errors import UsageError

#: What happens at a step: the newest loop takes over, the loss is watched, or nothing will change any more.
Phase = Literal["decay", "wait", "done"]


def mixed(codes: Tensor, samples: Tensor, uniforms: Tensor, kept: float) -> Tensor:
    """Keep a code where its uniform number is at most `kept`, and take the sample elsewhere.

    Args:
        codes: [batch, samples] int64.
        samples: Of the network, of the same shape.
        uniforms: In [0, 1), of the same shape.
        kept: Probability of keeping a code.
    """
    return torch.where(uniforms > kept, samples, codes)


class ScheduledSampling:
    """How many loops there are, and what share of the codes each of them keeps.

    Args:
        start_loops: Loops at the start of training.
        end_loops: Loops at its end.
        start_kept: Share of the codes that a new loop keeps at first.
        end_kept: Share that it keeps at last.
        decay_steps: Steps from the first to the second, at least 2.
        patience: Steps whose mean loss is compared with that of as many before.
        improvement: A further loop begins when the mean loss has fallen by less than this (nats).
        underloop: Probability of a step with fewer loops, each number alike.
        published: Repeat a fault of the original: without loops at the start it has a share all the same, which decays
            unused, so that the first loop begins with the end share.

    Attributes:
        loops: How many there are.
        kept: Share of the codes that each loop keeps.
        phase: What happens now.

    Raises:
        UsageError: The schedule cannot be kept.
    """

    def __init__(
        self,
        start_loops: int = 0,
        end_loops: int = 1,
        start_kept: float = 1.0,
        end_kept: float = 0.1,
        decay_steps: int = 10000,
        patience: int = 250,
        improvement: float = 0.02,
        underloop: float = 0.1,
        published: bool = False,
    ):
        if decay_steps < 2 or patience < 1:
            raise UsageError("scheduled_sampling: decay_steps must be at least 2, and patience 1")
        if end_loops < max(start_loops, 1):
            raise UsageError(f"scheduled_sampling: end_loops is {end_loops}: it must be at least start_loops, and 1")
        self.end_loops = end_loops
        self.start_kept, self.end_kept = start_kept, end_kept
        self.decay_steps = decay_steps
        self.patience = patience
        self.improvement = improvement
        self.underloop = underloop
        self.loops = start_loops
        decaying = start_loops > 0 or published
        self.kept = [end_kept] * (start_loops - 1) + ([start_kept] if decaying else [])
        self.phase: Phase = "decay" if decaying else "wait"
        self._step = 0
        # Zeros as in the original: a decay shorter than the patience is followed by a comparison with too small a mean.
        self._losses = deque([0.0] * patience, maxlen=patience)
        self._before: float | None = None

    def draw_loops(self) -> int:
        """Number of loops of one step, from torch's global random numbers."""
        if self.loops == 0 or torch.rand(()) >= self.underloop:
            return self.loops
        return int(torch.randint(self.loops, ()))

    def __call__(self, codes: Tensor, sample: Callable[[Tensor], Tensor]) -> Tensor:
        """The past that the network is shown in one step.

        Args:
            codes: True codes, [batch, samples].
            sample: Past [batch, samples] -> a sample of the network at every position, of the same shape.
        """
        for kept in self.kept[: self.draw_loops()]:
            if kept < 1:
                uniforms = torch.rand(codes.shape, dtype=torch.float32, device=codes.device)
                codes = mixed(codes, sample(codes), uniforms, kept)
        return codes

    def update(self, loss: float) -> None:
        """Take the loss of a step, the mean of all processes (nats)."""
        self._losses.append(loss)
        if self.phase == "decay":
            self._decay()
        elif self.phase == "wait":
            self._wait()

    @property
    def _mean(self) -> float:
        return sum(self._losses) / self.patience

    def _decay(self) -> None:
        share = self._step / (self.decay_steps - 1)
        self.kept[-1] = self.start_kept - share * (self.start_kept - self.end_kept)
        self._step += 1
        if self._step == self.decay_steps:
            self._step = 0
            self._before = self._mean
            self.phase = "done" if self.loops == self.end_loops else "wait"

    def _wait(self) -> None:
        if self._step > 0 and self._step % self.patience == 0:
            if self._before is not None and self._mean > self._before - self.improvement:
                self.loops += 1
                self.kept.append(self.start_kept)
                self.phase = "decay"
                self._step = 0
                return
            self._before = self._mean
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is, in plain values."""
        return {
            "loops": self.loops,
            "kept": list(self.kept),
            "phase": self.phase,
            "step": self._step,
            "losses": list(self._losses),
            "before": self._before,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was called."""
        self.loops, self.kept, self.phase = state["loops"], list(state["kept"]), state["phase"]
        self._step, self._before = state["step"], state["before"]
        self._losses = deque(state["losses"], maxlen=self.patience)
