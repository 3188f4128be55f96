"""Putting the audio of segments together: each at its exact place, faded over a real overlap.

Segments overlap in time (`segments.cut` with `overlap_sec`), so both sides of a joint play the same music there and
nothing is shortened. The place of a segment is a sample number that comes from its start, not from the lengths of the
segments before it: there is no drift, whatever lengths the model makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import Literal

import numpy as np
import torch
from scipy.signal import correlate
from torch import Tensor

from midisynth.audio.crossfade import CrossFade
from midisynth.models.midi_valle.segments import Segment

#: An overlap is faded in its middle half; before and after, the segment with more context is heard alone.
FADED = 0.5
#: Fade at the beginning and the end of the whole, and where a segment is too short (seconds).
EDGE_SEC = 0.005

PublishedJoint = Literal["naive", "concat", "fade", "crossfade"]

#: Of the original, all at 32 kHz (samples).
CROSSFADE_SAMPLES, FADE_SAMPLES = 640, 1600
SEARCHED, BUFFER = 2560, 4096


def join(
    audio: Iterable[Tensor], segments: Sequence[Segment], sample_rate: int, overlap_sec: float
) -> Iterator[Tensor]:
    """Place the audio of consecutive segments, and yield what no later segment changes.

    Args:
        audio: Of every segment in order, [samples]; what is too long is cut off, what is too short is followed by
            silence.
        segments: As `cut` made them.
        sample_rate: Of the audio (Hz).
        overlap_sec: With which they were cut (seconds).

    Yields:
        Consecutive [samples], together as long as the last segment ends.
    """
    overlap = round(overlap_sec * sample_rate)
    margin = round(overlap * (1 - FADED) / 2)
    edge = round(EDGE_SEC * sample_rate)
    fade = CrossFade(overlap - 2 * margin, margin)
    starts = [round(segment.start_sec * sample_rate) for segment in segments]
    ends = [*(start + overlap for start in starts[1:]), round(segments[-1].end_sec * sample_rate)]
    for number, (one, start, end) in enumerate(zip(audio, starts, ends, strict=True)):
        fitted = _fitted(one, end - start, edge)
        if number == 0:
            fitted = _faded_in(fitted, edge)
        if number == len(starts) - 1:
            fitted = _faded_in(fitted.flip(0), edge).flip(0)
        yield fade.push(fitted[:, None])[:, 0]
    yield fade.finish()[:, 0]


def _fitted(audio: Tensor, samples: int, edge: int) -> Tensor:
    """Audio of exactly so many samples."""
    if len(audio) >= samples:
        return audio[:samples]
    silence = audio.new_zeros(samples - len(audio))
    return torch.cat([_faded_in(audio.flip(0), edge).flip(0), silence])


def _faded_in(audio: Tensor, samples: int) -> Tensor:
    """Audio [samples] that rises linearly over its first samples."""
    rise = torch.arange(1, samples + 1, device=audio.device, dtype=audio.dtype)[: len(audio)] / (samples + 1)
    return torch.cat([audio[:samples] * rise, audio[samples:]])


def join_as_published(audio: Sequence[Tensor], mode: PublishedJoint = "concat") -> Tensor:
    """Join as the original does, for comparison: joints shorten the whole, though the music has no overlap there.

    Args:
        audio: Pieces at 32 kHz, [samples] each.
        mode: "naive" puts them side by side; "crossfade" and "fade" overlap them by 20 and 50 ms; "concat" overlaps
            them where they correlate best, and leaves out pieces of less than 4096 samples.
    """
    joints: dict[PublishedJoint, Callable[[Tensor, Tensor], Tensor]] = {
        "naive": lambda first, second: torch.cat([first, second]),
        "crossfade": lambda first, second: _overlapped(first, second, CROSSFADE_SAMPLES),
        "fade": lambda first, second: _overlapped(first, second, FADE_SAMPLES),
        "concat": _correlated,
    }
    pieces = [piece for piece in audio if mode != "concat" or len(piece) >= BUFFER]
    return reduce(joints[mode], pieces)


def _overlapped(first: Tensor, second: Tensor, samples: int) -> Tensor:
    """The end of the first fades out while the start of the second fades in."""
    rise = torch.linspace(0, 1, samples, dtype=first.dtype, device=first.device)
    mixed = first[-samples:] * rise.flip(0) + second[:samples] * rise
    return torch.cat([first[:-samples], mixed, second[samples:]])


def _correlated(first: Tensor, second: Tensor) -> Tensor:
    """Overlap at the lag at which both correlate best, under the halves of a Hann window."""
    tail, head = (part.cpu().double().numpy() for part in (first[-SEARCHED:], second[:SEARCHED]))
    lag = int(np.argmax(correlate(tail, head, "same"))) - SEARCHED // 2
    overlap = SEARCHED - lag
    window = torch.hann_window(2 * overlap, periodic=False, dtype=first.dtype, device=first.device)
    mixed = first.new_zeros(2 * BUFFER - overlap)
    mixed[:BUFFER] = first[-BUFFER:]
    mixed[BUFFER - overlap : BUFFER] *= window[overlap:]
    beginning = second[:BUFFER].clone()
    beginning[:overlap] *= window[:overlap]
    mixed[BUFFER - overlap :] += beginning
    return torch.cat([first[:-BUFFER], mixed, second[BUFFER:]])
