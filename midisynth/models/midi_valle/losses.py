"""Targets, losses and accuracies of MIDI-VALLE, and what chance decides of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Longest acoustic prefix of the non-autoregressive decoder (frames): 3 seconds of the published codec.
MAX_PREFIX = 150

PrefixMode = Literal[0, 1, 2, 4]


class NarDraw(NamedTuple):
    """What chance decides of a training step of the non-autoregressive decoder.

    Attributes:
        stage: The codebook that is predicted from those before it, counted from 0; at least 1.
        prefix_frames: Length of the prefix (frames), in prefix modes 1 and 2.
        starts: [batch] int64 first frame of the prefix in each item, in prefix mode 2.
        prompts: [batch, frames, codebooks] codes of a neighbouring segment, in prefix mode 4.
    """

    stage: int
    prefix_frames: int = 0
    starts: Tensor | None = None
    prompts: Tensor | None = None


def draw_nar(
    prefix_mode: PrefixMode,
    codebooks: int,
    code_lengths: Sequence[int],
    generator: torch.Generator,
    prompts: Tensor | None = None,
    max_prefix: int = MAX_PREFIX,
) -> NarDraw:
    """Draw a stage and a prefix as the original does.

    Args:
        prefix_mode: 0: no prefix; 1: the first frames of each item; 2: frames from anywhere in each item; 4: frames of
            a neighbouring segment.
        codebooks: Codebooks of the model; at least 2.
        code_lengths: Of each item (frames).
        generator: On the CPU.
        prompts: [batch, frames, codebooks], in prefix mode 4.
        max_prefix: Longest prefix (frames).
    """

    def integer(low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        return int(torch.randint(low, high + 1, (), generator=generator))

    stage = integer(1, codebooks - 1)
    quarter = min(code_lengths) // 4
    if prefix_mode == 1:
        return NarDraw(stage, min(integer(quarter, max(2 * quarter - 1, quarter)), max_prefix))
    if prefix_mode == 2:
        frames = min(max_prefix, quarter)
        return NarDraw(stage, frames, torch.tensor([integer(0, length - frames) for length in code_lengths]))
    return NarDraw(stage, prompts=prompts)


class Losses(NamedTuple):
    """Losses of a batch.

    Attributes:
        total: What training minimises: nats, summed over the frames of the batch.
        frames: Number of frames of the batch, by which `total` is divided where a loss per frame is wanted.
        ar: Summed loss of the autoregressive decoder, None if it is not trained.
        nar: The same of the other decoder, scaled as if the prefix had been predicted as well.
        ar_top10: Share of the frames whose code is among the ten likeliest, without ends; None if not trained.
        nar_top10: The same of the other decoder.
    """

    total: Tensor
    frames: Tensor
    ar: Tensor | None
    nar: Tensor | None
    ar_top10: Tensor | None
    nar_top10: Tensor | None


class ArTargets(NamedTuple):
    """The first codebook, shifted.

    Attributes:
        inputs: [batch, steps] int64; the end where items have ended.
        targets: [batch, steps] int64; the end once items have ended.
        mask: [batch, steps] bool, True where an input is a frame or the start: the same steps whose target counts.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor


def ar_targets(first: Tensor, mask: Tensor, end: int, start: int | None) -> ArTargets:
    """Inputs and targets of the autoregressive decoder.

    Args:
        first: [batch, frames] int64 codes of the first codebook.
        mask: [batch, frames] bool, True for frames of the item.
        end: Index of the end.
        start: Index of the start; None: the first frame is given and never predicted.
    """
    ended = F.pad(first.masked_fill(~mask, end), (0, 1), value=end)
    if start is None:
        return ArTargets(ended[:, :-1], ended[:, 1:], mask)
    return ArTargets(F.pad(ended[:, :-1], (1, 0), value=start), ended, F.pad(mask, (1, 0), value=True))


def summed_cross_entropy(logits: Tensor, targets: Tensor, ignored: int | None = None) -> Tensor:
    """Cross entropy (nats) of logits [batch, length, classes] at targets [batch, length], summed without `ignored`."""
    ignore_index = -100 if ignored is None else ignored
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=ignore_index, reduction="sum")


@torch.no_grad()
def top10_share(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """Share of targets [batch, length] among the ten largest logits [batch, length, classes], without `ignored`."""
    best = logits.float().topk(min(10, logits.shape[-1]), dim=-1).indices
    counted = targets != ignored
    hits = (best == targets[..., None]).any(dim=-1) & counted
    return hits.sum() / counted.sum().clamp(min=1)
