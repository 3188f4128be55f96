"""Aggressive training: at first the encoder runs ahead of the decoder, which would otherwise learn to do without it.

After "Lagging Inference Networks and Posterior Collapse in Variational Autoencoders" (He et al. 2019, arXiv
1901.05534): every step computes the gradients of both halves, and a rule says which half takes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from midisynth.errors import UsageError

#: Which half of the network a step changes.
Half = Literal["encoder", "decoder", "both"]
#: When the aggressive phase ends, see `AggressiveTraining`.
Criterion = Literal["information", "loss", "published"]


class AggressiveTraining:
    """Which half of the network each step changes.

    "information", the method of the paper: the encoder steps until its mean loss of a window is no lower than that of
    the window before, then the decoder makes one step; the phase ends when the mutual information of music and sound,
    measured at every validation, has stopped rising.

    "loss", as the original of this model means it: windows of steps of the encoder while they improve, one window of
    the decoder when they do not; the phase ends when the mean loss of a window is below a threshold.

    "published" is what the original does: for a misspelt name its phase never ends, and below the threshold the half
    that is trained no longer changes.

    Args:
        criterion: The rule.
        window: Steps between two comparisons of the mean loss.
        threshold: Mean loss that ends the phase under "loss" (nats).
        tolerance: The encoder goes on as long as its mean loss is below the one before plus this (nats).
        longest: Most steps of the encoder in a row under "information".

    Attributes:
        half: What the next step changes.
        aggressive: Whether the phase lasts.

    Raises:
        UsageError: There is no such rule, or it counts nothing.
    """

    def __init__(
        self,
        criterion: Criterion = "information",
        window: int = 10,
        threshold: float = 3.0,
        tolerance: float = 0.0,
        longest: int = 100,
    ):
        if criterion not in get_args(Criterion):
            raise UsageError(f"aggressive.criterion is {criterion!r}: choose one of {', '.join(get_args(Criterion))}")
        if min(window, longest) < 1:
            raise UsageError("aggressive: window and longest must be at least 1")
        self.criterion = criterion
        self.window = window
        self.threshold = threshold
        self.tolerance = tolerance
        self.longest = longest
        self.aggressive = True
        self.half: Half = "encoder" if criterion == "information" else "decoder"
        self._sum, self._count, self._steps = 0.0, 0, 0
        self._before = math.inf
        self._information = -math.inf

    @property
    def waits_for_information(self) -> bool:
        """Whether only a measurement of mutual information can end the phase."""
        return self.aggressive and self.criterion == "information"

    def update(self, loss: float) -> None:
        """Take the loss of a step, the mean of all processes (nats)."""
        if not self.aggressive:
            return
        self._sum += loss
        self._count += 1
        if self.criterion == "information":
            self._alternate()
        elif self._steps % self.window == 0:
            self._compare()
        self._steps += 1

    def take_information(self, information: float) -> None:
        """Take the mutual information of a validation (any unit); under "information" it may end the phase."""
        if self.waits_for_information:
            if information <= self._information:
                self.aggressive, self.half = False, "both"
            self._information = information

    def _alternate(self) -> None:
        if self.half == "decoder":
            self._start("encoder")
        elif self._count % self.window == 0:
            # Counted from the start of the encoder's turn; the sum is that of one window.
            mean = self._sum / self.window
            self._sum = 0.0
            if mean >= self._before + self.tolerance or self._count >= self.longest:
                self._start("decoder")
            else:
                self._before = mean

    def _start(self, half: Half) -> None:
        self.half, self._sum, self._count, self._before = half, 0.0, 0, math.inf

    def _compare(self) -> None:
        mean = self._sum / self._count
        if mean < self.threshold:
            if self.criterion == "loss":
                self.aggressive, self.half = False, "both"
        elif self.half == "encoder" and mean >= self._before + self.tolerance:
            self.half = "decoder"
        else:
            self.half = "encoder"
        self._before, self._sum, self._count = mean, 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where training is, in plain values."""
        return {name: value for name, value in vars(self).items() if name.lstrip("_") in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was called."""
        vars(self).update(state)


_STATE = ("aggressive", "half", "sum", "count", "steps", "before", "information")
