"""Pieces and segments of notes -> what the networks read of them: tokens and note tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from midisynth.errors import DataError, MidiError, UsageError
from midisynth.models.spectrogram_diffusion import t5_tokens
from midisynth.models.spectrogram_diffusion.miditok_codec import MidiTokTokens
from midisynth.models.spectrogram_diffusion.t5_tokens import Programs
from midisynth.models.spectrogram_diffusion.tokens import (
    PADDING,
    STEPS_PER_SEC,
    Vocabulary,
    note_events,
    notes_that_matter,
    segment_tokens,
)
from midisynth.music.midi import read_midi
from midisynth.music.notes import Performance, is_drum
from midisynth.music.pedal import extend_by_pedal
from midisynth.music.rolls import TABLE_COLUMNS, note_table

logger = logging.getLogger(__name__)


class SpectrogramDiffusionCodec:
    """What `SpectrogramDiffusion` and its data module share: time grid, tokens, note tables.

    Args:
        sample_rate: Of the audio (Hz).
        hop_length: Distance of frames (samples).
        win_length: Length of the window of a frame (samples).
        segment_frames: Frames that are generated at once.
        overlap_frames: Frames in which a segment is faded into the next one.
        margin_frames: Frames at both ends of a segment that its neighbour's are taken for.
        tail_sec: What is rendered after the end of the last note (seconds).
        tokens: Make tokens.
        tables: Make note tables.
        velocity_bins: Loudness classes of the tokens.
        shift_ids: Token ids for time shifts; None: two more than a segment has steps.
        max_tokens: Longest token sequence of a segment.
        framing: Of the spectrogram, see `midisynth.audio.features.LogMel`.
        note_seq: Read MIDI as note_seq does, on which the published models were trained: a release ends all notes of
            its key, and instruments do not share a pedal.
        context: Training examples carry the audio before them, as much as they have themselves.
        t5: The tokens of the official models; `shift_ids` has no meaning then.
        programs: How finely official tokens tell instruments, see `t5_tokens.reprogram`.
        faulty_ties: Let official tokens claim that notes sound which do not, as the original's do.
        miditok: MidiTok's tokens, see `miditok_codec.MidiTokTokens`, to which options of the others mean nothing; None
            for the others.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        hop_length: int,
        win_length: int,
        segment_frames: int,
        overlap_frames: int,
        margin_frames: int,
        tail_sec: float,
        tokens: bool,
        tables: bool,
        velocity_bins: int,
        shift_ids: int | None,
        max_tokens: int,
        framing: Literal["published", "centered"],
        note_seq: bool,
        context: bool = False,
        t5: bool = False,
        programs: Programs = "full",
        faulty_ties: bool = False,
        miditok: Mapping[str, Any] | str | None = None,
    ):
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.segment_frames = segment_frames
        self.margin_frames = margin_frames
        self.advance_frames = segment_frames - overlap_frames - 2 * margin_frames
        self.tail_sec = tail_sec
        self.tokens = tokens
        self.tables = tables
        self.max_tokens = max_tokens
        self.framing = framing
        self.note_seq = note_seq
        self.t5 = t5
        self.programs = programs
        self.faulty_ties = faulty_ties
        self.max_duration_sec = 7200.0
        self.repair = False
        #: Length of a segment (1/100 s).
        self.segment_steps = round(self.segment_sec * STEPS_PER_SEC)
        if t5:
            self.vocabulary = t5_tokens.vocabulary(velocity_bins)
        else:
            if shift_ids is not None and shift_ids < self.segment_steps:
                raise UsageError(
                    f"shift_ids is {shift_ids}, but a segment has {self.segment_steps} time steps: raise it"
                )
            # The published models reserve two ids more than shifts can take.
            self.vocabulary = Vocabulary(self.segment_steps + 2 if shift_ids is None else shift_ids, velocity_bins)
        self.miditok = None if miditok is None else MidiTokTokens(miditok, self.segment_sec)
        # The last frame sees beyond the segment unless frames are centred, where the border is reflected.
        beyond = 0 if framing == "centered" else max(win_length - hop_length, 0)
        #: Audio that a training crop needs (samples).
        self.segment_samples = segment_frames * hop_length + beyond
        #: Audio before a training crop that it needs (samples).
        self.context_samples = segment_frames * hop_length if context else 0

    @property
    def segment_sec(self) -> float:
        """Length of a segment (seconds)."""
        return self.segment_frames * self.hop_length / self.sample_rate

    def read(self, path: Path) -> Performance:
        """Read a MIDI file and apply its pedal."""
        return self.apply_pedal(
            read_midi(
                path,
                overlap="all" if self.note_seq else "restrike",
                repair=self.repair,
                max_duration_sec=self.max_duration_sec,
            )
        )

    def apply_pedal(self, performance: Performance) -> Performance:
        """Extend notes by the sustain pedal, as everything else here expects them."""
        return extend_by_pedal(performance, group="instrument" if self.note_seq else "channel")

    @property
    def table_rows(self) -> int:
        """Rows of the embedding of tokens."""
        if self.miditok is not None:
            return len(self.miditok)
        return t5_tokens.table_rows(self.vocabulary) if self.t5 else len(self.vocabulary)

    def _events(self, notes: np.ndarray, origin_sec: float = 0.0) -> np.ndarray:
        """Events of the token family, [events, 5] as in `tokens.note_events`."""
        bins = self.vocabulary.velocity_bins
        if not self.t5:
            return note_events(notes, origin_sec, bins)
        return t5_tokens.note_events(t5_tokens.reprogram(notes, self.programs), origin_sec, bins, self.faulty_ties)

    def _segment_tokens(self, events: np.ndarray, first_step: int, steps: int | None) -> list[int]:
        if self.t5:
            return t5_tokens.segment_tokens(events, first_step, steps, self.vocabulary, self.faulty_ties)
        return segment_tokens(events, first_step, steps, self.vocabulary)

    def tokenize(self, notes: np.ndarray, end_sec: float | None = None) -> list[list[int]]:
        """Cut notes into consecutive segments without overlap.

        Args:
            notes: [notes] of `NOTE_DTYPE`, pedal applied.
            end_sec: Where official tokens end; the last segment takes all that is left. Where the notes end when None.
                The others always end with the last event.
        """
        events, steps = self._events(notes), self.segment_steps
        if self.t5:
            if end_sec is None:
                end_sec = float((notes["onset_sec"] + notes["duration_sec"]).max(initial=0.0))
            # The original pads the audio by one to hop_length samples.
            frames = int(end_sec * self.sample_rate) // self.hop_length + 1
            segments = -(-frames // self.segment_frames)
            lengths = [*[steps] * (segments - 1), None]
        else:
            lengths = [steps] * (int(events[-1, 0]) // steps + 1 if len(events) else 0)
        return [self._segment_tokens(events, index * steps, length) for index, length in enumerate(lengths)]

    def encode_segment(self, performance: Performance, start_sec: float) -> dict[str, Tensor]:
        """Conditioning of the segment that starts at `start_sec`.

        Args:
            performance: From `apply_pedal`.
            start_sec: Start of the segment (seconds); any number.

        Returns:
            "tokens" [tokens] int64 if tokens are on, "notes" [notes, 4] float32 if note tables are on.

        Raises:
            DataError: The segment has more tokens than the network has positions.
        """
        events = None
        if self.tokens and self.miditok is None:
            near = notes_that_matter(performance.notes, start_sec, self.segment_sec)
            events = self._events(performance.notes if self.faulty_ties else near, start_sec)
        return self._example(performance.notes, events, 0, start_sec)

    def _example(
        self, notes: np.ndarray, events: np.ndarray | None, first_step: int, start_sec: float
    ) -> dict[str, Tensor]:
        """The segment at `start_sec`, which is `first_step` on the clock of `events`, if the tokens come from these."""
        example = {}
        if self.tokens:
            example["tokens"] = self._checked(
                self._segment_tokens(events, first_step, self.segment_steps)
                if self.miditok is None
                else self.miditok.segment(notes, start_sec),
                start_sec,
            )
        if self.tables:
            example["notes"] = torch.from_numpy(note_table(notes, start_sec, self.segment_sec))
        return example

    def _checked(self, tokens: list[int], start_sec: float) -> Tensor:
        if len(tokens) > self.max_tokens:
            raise DataError(
                f"{len(tokens)} note tokens in the {self.segment_sec:.2f} s from {start_sec:.2f} s, but the model "
                f"takes {self.max_tokens} (max_tokens): thin out the notes, or use a model without tokens"
            )
        return torch.tensor(tokens)

    def encode(self, path: Path) -> dict[str, Any]:
        """Read a MIDI file and cut it into segments that cover it and the tail after its last note.

        Returns:
            "segments": list of what `encode_segment` returns, every `advance_frames` frames; "frames": mel frames of
            the output; "samples": its length (samples).

        Raises:
            MidiError: The file cannot be read, has no notes, or has too many at some place.
        """
        performance = self.read(path)
        for warning in performance.warnings:
            logger.warning("%s: %s", path, warning)
        notes = performance.notes if self.tokens else performance.notes[~is_drum(performance.notes)]
        if len(notes) == 0:
            what = "notes" if self.tokens else "pitched notes, and this model plays no drums"
            raise MidiError(path, f"has no {what}: there is nothing to render")
        samples = round((performance.with_notes(notes).end_sec + self.tail_sec) * self.sample_rate)
        frames = -(-samples // self.hop_length)
        # A centred spectrogram has one frame more than the vocoder's framing, see `SpectrogramDiffusion.render`.
        needed = frames + (self.framing == "centered")
        overlap = self.segment_frames - self.advance_frames
        segments = max(1, -(-(needed - overlap) // self.advance_frames))
        starts_sec = np.arange(segments) * (self.advance_frames * self.hop_length / self.sample_rate)
        # All segments are cut from one list of events: sorting it again for each would be quadratic in the length.
        events = self._events(notes) if self.tokens and self.miditok is None else None
        try:
            encoded = [self._example(notes, events, round(start * STEPS_PER_SEC), start) for start in starts_sec]
        except DataError as error:
            raise MidiError(path, str(error)) from error
        return {"segments": encoded, "frames": frames, "samples": samples}

    def collate(self, examples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Stack what `encode_segment` returned, padded to the longest, together with audio where there is some.

        Returns:
            "tokens" [batch, tokens] int64, "notes" [batch, notes, 4] float32, "audio" [batch, samples] float32;
            with context "context_audio" [batch, samples] float32 and "context_samples" [batch] int64.
        """
        batch = {}
        if self.tokens:
            batch["tokens"] = pad_sequence([e["tokens"] for e in examples], batch_first=True, padding_value=PADDING)
        if self.tables:
            one_row = torch.zeros(1, len(TABLE_COLUMNS))  # sets the shape where no segment has a note
            tables = [e["notes"] for e in examples]
            batch["notes"] = pad_sequence([*tables, one_row], batch_first=True)[:-1]
        for name in ("audio", "context_audio", "context_samples"):
            if name in examples[0]:
                batch[name] = torch.stack([e[name] for e in examples])
        for name in ("truth", "name"):
            if name in examples[0]:
                batch[name] = [e[name] for e in examples]
        return batch
