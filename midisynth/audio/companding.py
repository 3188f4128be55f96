"""Audio as a few discrete levels: mu-law (ITU-T G.711, section 5) or linear."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from midisynth.audio.backend import functional


class Companding:
    """Amplitudes from -1 to 1 <-> codes from 0 to levels - 1.

    Args:
        levels: Number of codes: 256 for mu-law, 65536 for 16 bit.
        law: "mu" has finer steps where it is soft; "linear" has equal steps.
    """

    def __init__(self, levels: int = 256, law: Literal["mu", "linear"] = "mu"):
        self.levels, self.law = levels, law

    @property
    def silence(self) -> int:
        """Code of amplitude 0."""
        return self.levels // 2

    def encode(self, audio: Tensor) -> Tensor:
        """Nearest codes, int64, same shape; what is beyond -1 and 1 is clipped."""
        audio = audio.clamp(-1, 1)
        if self.law == "mu":
            return functional.mu_law_encoding(audio, self.levels)
        return ((audio + 1) * ((self.levels - 1) / 2) + 0.5).long()

    def decode(self, codes: Tensor) -> Tensor:
        """Amplitudes, float32, same shape."""
        codes = codes.to(torch.float32)
        if self.law == "mu":
            return functional.mu_law_decoding(codes, self.levels)
        return codes * (2 / (self.levels - 1)) - 1
