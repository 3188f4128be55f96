"""Where a rendering was put together from segments: can it be seen or heard?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Smaller steps of a waveform are taken for this one, four times the last of 16 bits (-78 dB): where a sound has faded,
#: all steps are nothing but rounding, and two of these stand beside one of them.
SMALLEST_STEP = 4 / 2**15


def mel_step_excess(mel: Tensor, joints: Sequence[int], reference: Tensor | None = None) -> float:
    """How much more a spectrogram changes at its joints than elsewhere.

    Args:
        mel: [frames, mels] log magnitude.
        joints: Frames that are the first after a joint.
        reference: [frames, mels] without joints, whose own steps at these frames are taken off; None: nothing is.

    Returns:
        Mean absolute change (nats) from one frame to the next at the joints, minus that of all other frames.
    """
    steps = mel.diff(dim=0).abs().mean(dim=1)
    if reference is not None:
        steps = steps - reference.diff(dim=0).abs().mean(dim=1)
    at_joint = torch.zeros(len(steps), dtype=torch.bool)
    at_joint[torch.as_tensor(joints) - 1] = True
    return (steps[at_joint].mean() - steps[~at_joint].mean()).item()


def sample_jumps(audio: Tensor, joints: Sequence[int], around: int = 64) -> Tensor:
    """The step of the waveform at each joint over the largest step close by, [joints]; more than 2 is a click.

    Args:
        audio: [samples], full scale at 1.
        joints: Samples that are the first after a joint.
        around: How far "close by" reaches to both sides (samples).
    """
    steps = audio.diff().abs()
    ratios = []
    for joint in joints:
        before, after = steps[max(joint - 1 - around, 0) : joint - 1], steps[joint : joint + around]
        largest = torch.cat([before, after]).max().clamp_min(SMALLEST_STEP)
        ratios.append(steps[joint - 1] / largest)
    return torch.stack(ratios)


def level_steps(audio: Tensor, joints: Sequence[int], sample_rate: int, window_sec: float = 0.01) -> Tensor:
    """How far the level around each joint is from that of its neighbourhood (dB), [joints].

    The level within `window_sec` of a joint, against the nearer one of the equally long stretches before and after:
    an onset or a release at a joint agrees with one of them, a dropout or a burst with neither.

    Args:
        audio: [samples].
        joints: Samples that are the first after a joint; at least three windows from the ends.
        sample_rate: Of the audio (Hz).
        window_sec: Half the length of a stretch (seconds).
    """
    half = round(window_sec * sample_rate)

    def level(start: int) -> Tensor:
        # The floor, -80 dB, keeps silence from being compared with silence.
        return 10 * torch.log10(audio[start : start + 2 * half].square().mean() + 1e-8)

    steps = []
    for joint in joints:
        here = level(joint - half)
        steps.append(min((here - level(joint + offset)).abs() for offset in (-3 * half, half)))
    return torch.stack(steps)
