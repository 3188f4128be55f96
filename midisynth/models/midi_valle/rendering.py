"""Whole performances in the sound of a prompt: cut, generated in batches of segments, put together again."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from midisynth.models.midi_valle.codec import NoteRows
from midisynth.models.midi_valle.decoding import generate
from midisynth.models.midi_valle.frames import FrameLimits
from midisynth.models.midi_valle.joining import join
from midisynth.models.midi_valle.prompts import Prompt
from midisynth.models.midi_valle.segments import Segment, cut, segment
from midisynth.module import Noise, Rendering
from midisynth.music.notes import Performance

if TYPE_CHECKING:
    from midisynth.models.midi_valle.model import MidiValle

logger = logging.getLogger(__name__)

#: Codes are decoded behind so much of their prompt (seconds), because the decoder of the codec looks back.
LOOKBACK_SEC = 1.0


@dataclass(frozen=True)
class Cutting:
    """How `predict` cuts a performance.

    Attributes:
        min_sec: Shortest distance of boundaries (seconds).
        max_sec: Longest distance (seconds).
        overlap_sec: Segments begin so much before their boundary (seconds).
        ring_sec: Sound after the last note (seconds).
    """

    min_sec: float
    max_sec: float
    overlap_sec: float
    ring_sec: float


class PieceCodec:
    """MIDI files to segments; it has no weights.

    Args:
        note_rows: Reads the notes.
        cutting: Where they are cut.

    Attributes:
        max_duration_sec: Longest file that is read (seconds).
        repair: Read what is left of damaged files.
    """

    def __init__(self, note_rows: NoteRows, cutting: Cutting):
        self.note_rows = note_rows
        self.cutting = cutting
        self.max_duration_sec = math.inf
        self.repair = False

    def encode(self, path: Path) -> dict[str, Any]:
        """Read a MIDI file.

        Returns:
            "performance", as `NoteRows.read` returns it.

        Raises:
            MidiError: It cannot be read, or no key of a piano is played in it.
        """
        performance = self.note_rows.read(path, repair=self.repair, max_duration_sec=self.max_duration_sec)
        for warning in performance.warnings:
            logger.warning("%s: %s", path, warning)
        return {"performance": performance}

    def segments(self, performance: Performance) -> list[Segment]:
        """A performance in pieces that are generated one by one."""
        cutting = self.cutting
        return cut(
            performance,
            cutting.min_sec,
            cutting.max_sec,
            overlap_sec=cutting.overlap_sec,
            ring_sec=cutting.ring_sec,
        )


class Job(NamedTuple):
    """A segment that is to be generated.

    Attributes:
        position: Of its piece in the batch.
        index: In its piece.
        segment: What is played.
    """

    position: int
    index: int
    segment: Segment


class Context(NamedTuple):
    """What a segment continues.

    Attributes:
        codes: Of what is heard before it, [frames, codebooks].
        notes: How many are played in that.
        rows: Note rows of both, [note rows, columns].
    """

    codes: Tensor
    notes: int
    rows: Tensor


def render_pieces(
    model: MidiValle, pieces: Sequence[Mapping[str, Any]], noise: Noise
) -> Iterator[tuple[int, Rendering]]:
    """Generate pieces; segments of one or many of them go through the network together.

    Args:
        model: With its weights.
        pieces: From `PieceCodec.encode`.
        noise: The only source of randomness.

    Yields:
        Position of a piece, and the next chunk of its audio, [1, samples].
    """
    prompt, codec = model.prompt(), model.neural_codec
    cuts = [model.codec.segments(piece["performance"]) for piece in pieces]
    jobs = [Job(position, index, one) for position, own in enumerate(cuts) for index, one in enumerate(own)]
    sounds = _generated(model, prompt, pieces, jobs, noise)
    for position, (piece, segments) in enumerate(zip(pieces, cuts, strict=True)):
        own = islice(sounds, len(segments))
        for audio in join(own, segments, codec.sample_rate, model.codec.cutting.overlap_sec):
            yield position, Rendering(audio=audio[None], sample_rate=codec.sample_rate)
        report = {"segments": len(segments), "warnings": [*piece["performance"].warnings, *prompt.warnings]}
        yield position, Rendering(report=report)


def _generated(
    model: MidiValle, prompt: Prompt, pieces: Sequence[Mapping[str, Any]], jobs: Sequence[Job], noise: Noise
) -> Iterator[Tensor]:
    """Audio of the segments in order, [samples] each."""
    continued = model.hparams.context == "previous"
    size = 1 if continued else model.hparams.segments_per_batch
    before: tuple[Job, Tensor] | None = None
    for start in range(0, len(jobs), size):
        chosen = jobs[start : start + size]
        if continued and before is not None and before[0].position == chosen[0].position:
            performance = pieces[chosen[0].position]["performance"]
            contexts = [_continued(model, performance, before[0].segment, before[1], chosen[0].segment, prompt)]
        else:
            contexts = [
                Context(prompt.codes, len(prompt.performance.notes), model.prompted_rows(prompt, job.segment))
                for job in chosen
            ]
        codes = model.generate(
            [context.rows for context in contexts],
            [context.codes for context in contexts],
            [math.ceil(job.segment.seconds * model.frames_per_sec) for job in chosen],
            [noise.generator(job.position, job.index) for job in chosen],
            prompt_notes=[context.notes for context in contexts],
        )
        before = chosen[-1], codes[-1]
        for context, one in zip(contexts, codes, strict=True):
            yield sound_of(model, context.codes, one)


def _continued(
    model: MidiValle, performance: Performance, before: Segment, codes: Tensor, following: Segment, prompt: Prompt
) -> Context:
    """What was generated just before a segment, at most as long as the prompt.

    Its notes and those of the segment are one stretch of the piece, as in training: a note that sounds on from one into
    the other is not cut between them.

    Args:
        model: For its options.
        performance: The whole piece.
        before: The segment before.
        codes: Of that, [frames, codebooks].
        following: The segment that is to be generated.
        prompt: The first one.
    """
    last = round((following.start_sec - before.start_sec) * model.frames_per_sec)
    heard = codes[max(last - len(prompt.codes), 0) : last]
    seconds = len(heard) / model.frames_per_sec
    stretch = model.played(segment(performance, following.start_sec - seconds, following.end_sec))
    notes = int((stretch.notes["onset_sec"] < seconds).sum())
    return Context(heard, notes, torch.from_numpy(model.codec.note_rows.encode(stretch)))


@torch.no_grad()
def sound_of(model: MidiValle, before: Tensor, codes: Tensor) -> Tensor:
    """Audio of codes.

    Args:
        model: For its neural codec.
        before: What comes before them, [frames, codebooks].
        codes: [frames, codebooks].

    Returns:
        [samples] on the CPU.
    """
    codec = model.neural_codec
    before = before[max(len(before) - round(LOOKBACK_SEC * model.frames_per_sec), 0) :].to(codes)
    # The codec is not what takes the time, and half precision in it would be heard.
    with torch.autocast(model.device.type, enabled=False):
        audio = codec.decode(torch.cat([before, codes])[None])[0]
    return audio[len(before) * codec.hop :].cpu()


def generate_codes(
    model: MidiValle,
    rows: Sequence[Tensor],
    prompts: Sequence[Tensor],
    frames: Sequence[int],
    generators: Sequence[torch.Generator],
    prompt_notes: Sequence[int],
) -> list[Tensor]:
    """Codes of exact lengths, see `MidiValle.generate`."""
    rules = model.sampling_rules()
    uniforms = None
    if not rules.greedy:
        uniforms = [torch.rand(count, generator=g) for count, g in zip(frames, generators, strict=True)]
    return generate(
        model.network,
        [one.to(model.device) for one in rows],
        [one.to(model.device) for one in prompts],
        [FrameLimits.exactly(count) for count in frames],
        rules,
        uniforms,
        prompt_notes,
    )
