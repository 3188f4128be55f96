"""What a string sounds like: (pitch, velocity) -> harmonics, and harmonics -> sound.

    y(t) = sum_h a_h exp(-d_h t) exp(-r max(0, t - duration)) sin(2 pi h f t + p_h)

with levels a, decay rates d and release rate r from the network, and phases p as they come: no loss on magnitudes
can see them, and nobody can hear them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MIN_RELEASE_RATE = 12.0  # 1/s: 104 dB down after a second, the tail that the codec allows for
NOTES_AT_ONCE = 32  # bounds the memory of synthesis, [notes, harmonics, samples], whatever the polyphony


@dataclass(frozen=True)
class Strings:
    """One vibrating string per note.

    Attributes:
        level: Of each harmonic at the onset, [notes, harmonics].
        decay: Rate at which each harmonic fades (1/s), [notes, harmonics].
        release: Further rate after the end of the note (1/s), [notes, 1].
    """

    level: Tensor
    decay: Tensor
    release: Tensor

    def __getitem__(self, index: slice | Tensor) -> Strings:
        return Strings(self.level[index], self.decay[index], self.release[index])


class StringNetwork(nn.Module):
    """Predict the harmonics of a note from its pitch and velocity.

    Args:
        harmonics: Number of harmonics.
        dim: Width of the two hidden layers.
    """

    def __init__(self, harmonics: int, dim: int):
        super().__init__()
        self.harmonics = harmonics
        self.layers = nn.Sequential(
            nn.Linear(2, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 2 * harmonics + 1)
        )

    def forward(self, pitch: Tensor, velocity: Tensor) -> Strings:
        """Predict.

        Args:
            pitch: MIDI key numbers, [notes].
            velocity: 1 to 127, and 0 for silence, [notes].

        Returns:
            One string per note.
        """
        inputs = torch.stack([(pitch - 64) / 24, (velocity - 64) / 32], dim=-1).to(self.layers[0].weight.dtype)
        level, decay, release = self.layers(inputs).split([self.harmonics, self.harmonics, 1], dim=-1)
        # Levels fall by orders of magnitude over the harmonics: an exponential keeps the gradients alike.
        return Strings(
            level=torch.exp(level - 4) * (velocity > 0).unsqueeze(-1),
            decay=functional.softplus(decay),
            release=MIN_RELEASE_RATE + 20 * functional.softplus(release),
        )


def pluck(notes: Tensor, strings: Strings, phases: Tensor, start: int, samples: int, sample_rate: int) -> Tensor:
    """Additive synthesis of a stretch of time.

    Args:
        notes: Rows (onset, duration, pitch, velocity), times in samples, [notes, 4].
        strings: How each note sounds.
        phases: Of each harmonic at the onset (radians), [notes, harmonics].
        start: First sample wanted.
        samples: How many samples are wanted.
        sample_rate: Of the result (Hz).

    Returns:
        [samples]
    """
    time = torch.arange(start, start + samples, device=notes.device)
    order = torch.arange(1, phases.shape[-1] + 1, device=notes.device)
    audio = torch.zeros(samples, device=notes.device)
    for first in range(0, len(notes), NOTES_AT_ONCE):
        part = slice(first, first + NOTES_AT_ONCE)
        rows, string, phase = notes[part], strings[part], phases[part]
        age = (time - rows[:, :1]) / sample_rate  # seconds, [notes, samples]
        held = (age >= 0) * torch.exp(-string.release * (age - rows[:, 1:2] / sample_rate).clamp(min=0))
        hertz = 440 * torch.exp2((rows[:, 2:3] - 69) / 12) * order  # [notes, harmonics]
        level = string.level * (hertz < sample_rate / 2)
        fade = torch.exp(-string.decay.unsqueeze(-1) * age.clamp(min=0).unsqueeze(1))  # [notes, harmonics, samples]
        wave = torch.sin(2 * math.pi * hertz.unsqueeze(-1) * age.unsqueeze(1) + phase.unsqueeze(-1))
        audio = audio + torch.einsum("nh,nhs,nhs,ns->s", level, fade, wave, held)
    return audio
