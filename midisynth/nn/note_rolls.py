"""Per-frame views of notes for networks that condition on them: a note roll, and a prior made of note spectra.

Both read note tables (`midisynth.music.rolls`): [batch, notes, 4] with onset and end (seconds from the first frame),
key 0..87 and velocity. A row of velocity 0 is padding and leaves no trace.

Frame i covers samples [i * hop, i * hop + 2 * hop) under a Hann window, so that its centre is at (i + 1) * hop.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KEYS = 88

#: Decay times of the roll (seconds): the stroke and the body of a struck string.
ROLL_DECAYS_SEC = (0.15, 1.2)
ROLL_CHANNELS = 2 + len(ROLL_DECAYS_SEC)

#: Decay times of the template envelopes (seconds), from the noise of the hammer to the lowest strings.
TEMPLATE_DECAYS_SEC = (0.03, 0.2, 0.7, 3.0)
#: Loudness is velocity to the power of these: partials do not grow alike.
TEMPLATE_LOUDNESS = (1.5, 3.0)
TEMPLATE_ENVELOPES = len(TEMPLATE_DECAYS_SEC) * len(TEMPLATE_LOUDNESS)
#: How fast a released note fades (seconds).
TEMPLATE_RELEASE_SEC = 0.05


def _in_frames(table: Tensor, frames: int, hop_sec: float) -> tuple[Tensor, Tensor, Tensor]:
    """Onset and end [batch, notes, 1] and the starts of all frames [frames], in frames."""
    onset, end = (table[..., :2] / hop_sec).unsqueeze(-1).unbind(2)
    return onset, end, torch.arange(frames, device=table.device, dtype=table.dtype)


def _to_keys(table: Tensor, values: Tensor) -> Tensor:
    """Sum [batch, notes, frames, channels] over the notes of each key -> [batch, frames, 88 * channels].

    A product with a one-hot matrix, because scattered additions are not deterministic on GPUs.
    """
    one_hot = F.one_hot(table[..., 2].long(), KEYS).to(values.dtype)
    keys = one_hot.transpose(1, 2) @ values.flatten(2)
    return keys.unflatten(2, values.shape[2:]).transpose(1, 2).flatten(2)


def note_roll(table: Tensor, frames: int, hop_sec: float) -> Tensor:
    """Onset, sounding and decaying velocity of every key.

    An onset is shared between the two frames that see it, in proportion to how close their centres are: whole frames
    would shift it by up to one hop.

    Args:
        table: [batch, notes, 4].
        frames: Number of frames.
        hop_sec: Distance of frames (seconds).

    Returns:
        [batch, frames, 88 * 4]; the channels of a key are neighbours.
    """
    onset, end, start = _in_frames(table, frames, hop_sec)
    struck = F.relu(1 - (onset - (start + 1)).abs())
    sounding = (torch.minimum(end, start + 2) - torch.maximum(onset, start)).clamp(0, 2) / 2
    age_sec = F.relu(start + 1 - onset) * hop_sec
    channels = [struck, sounding, *(sounding * torch.exp(-age_sec / decay) for decay in ROLL_DECAYS_SEC)]
    velocity = table[..., 3, None, None]
    return _to_keys(table, torch.stack(channels, dim=-1) * velocity)


def template_envelopes(table: Tensor, frames: int, hop_sec: float) -> Tensor:
    """Loudness of every key over time under each combination of decay and loudness law.

    Args:
        table: [batch, notes, 4].
        frames: Number of frames.
        hop_sec: Distance of frames (seconds).

    Returns:
        [batch, frames, 88 * 8], not negative.
    """
    onset, end, start = _in_frames(table, frames, hop_sec)
    # Share of the Hann window that lies after the onset: its integral from there to its end.
    after = 1 - ((onset - start) / 2).clamp(0, 1)
    heard = after - torch.sin(2 * math.pi * after) / (2 * math.pi)
    released_sec = F.relu(start + 1 - end) * hop_sec
    gain = heard * torch.exp(-released_sec / TEMPLATE_RELEASE_SEC)
    age_sec = F.relu(start + 1 - onset) * hop_sec
    decays = torch.stack([gain * torch.exp(-age_sec / decay) for decay in TEMPLATE_DECAYS_SEC], dim=-1)
    loudness = torch.stack([table[..., 3] ** power for power in TEMPLATE_LOUDNESS], dim=-1)
    return _to_keys(table, (decays.unsqueeze(-1) * loudness[:, :, None, None]).flatten(-2))


class NoteRollEncoder(nn.Module):
    """Note roll -> features of every frame.

    Args:
        dim: Width of the features.
        hop_sec: Distance of frames (seconds).
    """

    def __init__(self, dim: int, hop_sec: float):
        super().__init__()
        self.hop_sec = hop_sec
        self.project = nn.Linear(KEYS * ROLL_CHANNELS, dim)
        self.convolution = nn.Conv1d(dim, dim, kernel_size=5, padding=2)

    def forward(self, table: Tensor, frames: int) -> Tensor:
        """[batch, notes, 4] -> [batch, frames, dim]."""
        x = self.project(note_roll(table, frames, self.hop_sec))
        return x + self.convolution(F.gelu(x).transpose(1, 2)).transpose(1, 2)


class TemplatePrior(nn.Module):
    """Log-mel spectrogram as the sum of learned note spectra: P = ln(e exp(W) + exp(b)).

    Each key has one spectrum per decay time and loudness law; the envelopes e are computed from the notes. It is
    already a crude piano, which a network then corrects.

    Args:
        mels: Mel bins.
        hop_sec: Distance of frames (seconds).
    """

    def __init__(self, mels: int, hop_sec: float):
        super().__init__()
        self.hop_sec = hop_sec
        self.log_spectra = nn.Parameter(torch.empty(KEYS * TEMPLATE_ENVELOPES, mels).normal_(-2.0, 0.3))
        self.log_background = nn.Parameter(torch.full((mels,), -6.5))

    def forward(self, table: Tensor, frames: int) -> Tensor:
        """[batch, notes, 4] -> natural log of mel magnitude, [batch, frames, mels]."""
        envelopes = template_envelopes(table, frames, self.hop_sec)
        return torch.log(envelopes @ self.log_spectra.exp() + self.log_background.exp())
