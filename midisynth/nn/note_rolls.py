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

#: Ages at which the prior knows a note's spectrum: up to the first number in steps of the second (seconds). Partials
#: beat from the start to the end of a note, but ever fewer of them are heard.
AGE_STEPS_SEC = ((1.28, 0.02), (3.84, 0.04), (10.24, 0.08))
#: Ages between which the smooth part of a note's spectrum is interpolated, equally spaced in log(1 + frames).
AGE_NODES = 8
#: How fast a released note fades before training (seconds).
RELEASE_SEC = 0.05
#: Frames that hold less of a note than this, before its onset or after its release, are silent (nepers).
SILENT_NEPERS = 7.0


def _overlap(table: Tensor, frames: int, hop_sec: float) -> tuple[Tensor, Tensor, Tensor]:
    """Onset and end [batch, notes, 1] and the starts of all frames [frames], in frames."""
    onset, end = (table[..., :2] / hop_sec).unsqueeze(-1).unbind(2)
    return onset, end, torch.arange(frames, device=table.device, dtype=table.dtype)


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
    onset, end, start = _overlap(table, frames, hop_sec)
    struck = F.relu(1 - (onset - (start + 1)).abs())
    sounding = (torch.minimum(end, start + 2) - torch.maximum(onset, start)).clamp(0, 2) / 2
    age_sec = F.relu(start + 1 - onset) * hop_sec
    channels = [struck, sounding, *(sounding * torch.exp(-age_sec / decay) for decay in ROLL_DECAYS_SEC)]
    values = torch.stack(channels, dim=-1) * table[..., 3, None, None]
    # A product with a one-hot matrix, because scattered additions are not deterministic on GPUs.
    one_hot = F.one_hot(table[..., 2].long(), KEYS).to(values.dtype)
    keys = one_hot.transpose(1, 2) @ values.flatten(2)
    return keys.unflatten(2, values.shape[2:]).transpose(1, 2).flatten(2)


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


def _ages() -> Tensor:
    """The grid of `AGE_STEPS_SEC` with one step before the onset, [ages] in seconds."""
    ages, begin = [torch.tensor([-AGE_STEPS_SEC[0][1]])], 0.0
    for end, step in AGE_STEPS_SEC:
        ages.append(begin + step * torch.arange(round((end - begin) / step)))
        begin = end
    return torch.cat([*ages, torch.tensor([begin])])


class AgeTable(nn.Module):
    """Values of every key at every age of its note: curves through a few nodes, and what departs from them.

    The nodes carry what is smooth, so that rare keys and ages get sensible values from their neighbours; the details,
    which start at zero, carry the beating of strings and partials.

    Args:
        mels: Values per key and age.
        start: Value everywhere before training.
    """

    ages: Tensor
    weights: Tensor

    def __init__(self, mels: int, start: float):
        super().__init__()
        ages = _ages()
        self.register_buffer("ages", ages, persistent=False)
        position = torch.log1p(ages.clamp(min=0) / AGE_STEPS_SEC[0][1])
        spacing = math.log1p(AGE_STEPS_SEC[-1][0] / AGE_STEPS_SEC[0][1]) / (AGE_NODES - 1)
        hats = (1 - (position[:, None] / spacing - torch.arange(AGE_NODES)).abs()).clamp(min=0)
        self.register_buffer("weights", hats, persistent=False)
        self.nodes = nn.Parameter(torch.empty(KEYS, AGE_NODES, mels).normal_(start, 0.1))
        self.details = nn.Parameter(torch.zeros(KEYS, len(ages), mels))

    def forward(self) -> Tensor:
        """The whole table, [88 * ages, mels]."""
        return (self.weights @ self.nodes + self.details).flatten(0, 1)

    def locate(self, key: Tensor, age_sec: Tensor) -> tuple[Tensor, Tensor]:
        """Where notes are in the table.

        Args:
            key: [notes] 0..87.
            age_sec: [notes] time since the onset (seconds); ages beyond the grid are its last.

        Returns:
            The row before each age, and how far the age is on the way to the next row, 0..1; both [notes].
        """
        age_sec = age_sec.clamp(self.ages[0], self.ages[-1]).contiguous()
        before = (torch.bucketize(age_sec, self.ages, right=True) - 1).clamp(max=len(self.ages) - 2)
        share = (age_sec - self.ages[before]) / (self.ages[before + 1] - self.ages[before])
        return key * len(self.ages) + before, share


class TemplatePrior(nn.Module):
    """Log-mel spectrogram as the sum of learned note spectra.

    A note of key k and velocity v has at age a the log spectrum S[k, a] + ln v * V[k, a], less what its release has
    taken from it. Notes add up by their powers, as sounds do whose phases have nothing to do with each other:

        P = 1/2 ln(sum over notes of exp(2 (S + ln v V + ln h - r / R[k])) + exp(2 b))

    with h the share of the frame's window after the onset, r the time since the release, and a background b. S, V, R
    and b are learned. It is already a piano, which a network then corrects.

    Args:
        mels: Mel bins.
        hop_sec: Distance of frames (seconds).
    """

    def __init__(self, mels: int, hop_sec: float):
        super().__init__()
        self.hop_sec = hop_sec
        self.spectra = AgeTable(mels, start=-3.0)
        self.slopes = AgeTable(mels, start=1.5)
        self.log_release = nn.Parameter(torch.full((KEYS,), math.log(RELEASE_SEC)))
        self.log_background = nn.Parameter(torch.full((mels,), -6.5))

    def forward(self, table: Tensor, frames: int) -> Tensor:
        """[batch, notes, 4] -> natural log of mel magnitude, [batch, frames, mels]."""
        onset, end = table[..., None, :, :2].unbind(-1)
        centre = (torch.arange(frames, device=table.device, dtype=table.dtype)[:, None] + 1) * self.hop_sec
        age_sec = centre - onset
        # The integral of the Hann window from the onset to its end.
        after = ((age_sec / self.hop_sec + 1) / 2).clamp(0, 1)
        loss = -torch.log(after - torch.sin(2 * math.pi * after) / (2 * math.pi))
        release = self.log_release.exp()[table[..., None, :, 2].long()]
        loss = loss + F.relu(centre - end) / release
        # Most notes are silent in most frames, so only the others are looked up. They come sorted by frame.
        heard = (loss < SILENT_NEPERS) & (table[..., None, :, 3] > 0)
        row, frame, note = heard.nonzero(as_tuple=True)
        before, share = self.spectra.locate(table[row, note, 2].long(), age_sec[row, frame, note])
        values = torch.cat([self.spectra(), self.slopes()], dim=1)
        spectrum, slope = torch.lerp(values[before], values[before + 1], share[:, None]).chunk(2, dim=1)
        log_velocity = table[row, note, 3].log()
        magnitude = spectrum + log_velocity[:, None] * slope - loss[row, frame, note][:, None]
        power = torch.segment_reduce(
            torch.exp(2 * magnitude), "sum", lengths=heard.sum(dim=-1).flatten(), axis=0, unsafe=True
        )
        background = torch.exp(2 * self.log_background)
        return torch.log(power.view(len(table), frames, -1) + background) / 2
