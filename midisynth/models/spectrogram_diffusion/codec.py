"""Notes <-> token segments and note tables.

Tokens are those of the published PyTorch models, which follow MT3 (Gardner et al. 2021, section 3.2): every segment
starts with the notes that still sound ("tie section"), and a shift token gives the absolute time within the segment.
More than one velocity bin is an extension: the published vocabulary knows only on and off.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from midisynth.errors import DataError, MidiError, UsageError
from midisynth.music.midi import read_midi
from midisynth.music.notes import Performance, is_drum
from midisynth.music.pedal import extend_by_pedal
from midisynth.music.rolls import TABLE_COLUMNS, note_table

logger = logging.getLogger(__name__)

STEPS_PER_SEC = 100

#: Id 0 is a shift by nothing, which is never emitted.
PADDING = 0

SEGMENT_NOTE_DTYPE = np.dtype(
    [
        ("onset_step", "<i8"),  # 0 for a note that was sounding before the segment
        ("end_step", "<i8"),  # the length of the segment for a note that sounds on after it; drums end at once
        ("pitch", "<i4"),
        ("program", "<i4"),
        ("velocity_bin", "<i4"),  # 1..bins
        ("drum", "?"),
        ("tied", "?"),  # from the tie section, which carries no velocity: its bin is 1
    ]
)


@dataclass(frozen=True)
class Vocabulary:
    """Layout of the token ids: shifts, pitches, velocities, the tie, programs, drum pitches.

    Attributes:
        pitch: Id of pitch 0, which is also the number of ids for shifts (1/100 s from the start of the segment).
        velocity_bins: Loudness classes; 1 is on, 0 always is off.
    """

    pitch: int
    velocity_bins: int = 1

    @property
    def velocity(self) -> int:
        """Id of velocity bin 0, the note-off."""
        return self.pitch + 128

    @property
    def tie(self) -> int:
        """Id that ends the tie section."""
        return self.velocity + self.velocity_bins + 1

    @property
    def program(self) -> int:
        """Id of program 0."""
        return self.tie + 1

    @property
    def drum(self) -> int:
        """Id of drum pitch 0."""
        return self.program + 128

    def __len__(self) -> int:
        return self.drum + 128


def note_events(notes: np.ndarray, origin_sec: float = 0.0, velocity_bins: int = 1) -> np.ndarray:
    """Notes -> note-on and note-off events in the order in which they become tokens.

    A note takes at least one step. Offs come before ons, so that a key can be struck again in the step of its release.

    Args:
        notes: [notes] of `NOTE_DTYPE`, after the pedal has been applied.
        origin_sec: Time of step 0 (seconds).
        velocity_bins: Loudness classes.

    Returns:
        [events, 5] int64 columns step, drum (0 or 1), program (0 for drums), velocity bin (0 is off), pitch; sorted.
    """
    onset_sec = notes["onset_sec"] - origin_sec
    onset = np.rint(onset_sec * STEPS_PER_SEC).astype(np.int64)
    end = np.rint((onset_sec + notes["duration_sec"]) * STEPS_PER_SEC).astype(np.int64)
    end = np.where(end == onset, end + 1, end)
    drum = is_drum(notes).astype(np.int64)
    velocity_bin = np.ceil(velocity_bins * notes["velocity"] / 127).astype(np.int64)
    program = np.where(drum, 0, notes["program"])
    pitch = notes["pitch"].astype(np.int64)
    on = np.stack([onset, drum, program, velocity_bin, pitch], axis=1)
    off = np.stack([end, drum, program, np.zeros_like(end), pitch], axis=1)[drum == 0]
    events = np.concatenate([on, off])
    return events[np.lexsort(events.T[::-1])]


def segment_tokens(events: np.ndarray, first_step: int, steps: int, vocabulary: Vocabulary) -> list[int]:
    """Tokens of the segment that starts at `first_step`.

    Program, velocity and shift are written only where they change; program and velocity are forgotten at every shift
    and after the tie section.

    Args:
        events: From `note_events`.
        first_step: Start of the segment (1/100 s).
        steps: Length of the segment (1/100 s).
        vocabulary: Token ids.
    """
    begin, end = np.searchsorted(events[:, 0], [first_step, first_step + steps])
    tokens: list[int] = []
    program = None
    for program_, pitch in _sounding(events[:begin]):
        if program_ != program:
            tokens.append(vocabulary.program + program_)
            program = program_
        tokens.append(vocabulary.pitch + pitch)
    tokens.append(vocabulary.tie)

    shift, program, velocity = 0, None, None
    for step, drum, program_, velocity_, pitch in events[begin:end].tolist():
        if step - first_step != shift:
            shift, program, velocity = step - first_step, None, None
            tokens.append(shift)
        if not drum and program_ != program:
            program, velocity = program_, None
            tokens.append(vocabulary.program + program)
        if velocity_ != velocity:
            velocity = velocity_
            tokens.append(vocabulary.velocity + velocity)
        tokens.append((vocabulary.drum if drum else vocabulary.pitch) + pitch)
    return tokens


def _sounding(events: np.ndarray) -> list[tuple[int, int]]:
    """(program, pitch) of all pitched notes whose last event was an on, sorted."""
    pitched = events[events[:, 1] == 0]
    keys = pitched[:, 2] * 128 + pitched[:, 4]
    # np.unique gives the first occurrence; reversed, that is the last event of each key.
    unique, last = np.unique(keys[::-1], return_index=True)
    on = pitched[::-1][last, 3] > 0
    return [divmod(key, 128) for key in unique[on].tolist()]


def decode_segment(tokens: Sequence[int], steps: int, vocabulary: Vocabulary) -> np.ndarray:
    """Tokens of a segment of `steps` -> its notes, [notes] of `SEGMENT_NOTE_DTYPE` by onset, program and pitch.

    The inverse of `segment_tokens` up to what tokens do not say: times are in steps, velocities in bins. A note-off
    without a note is skipped, as a network may well write one.
    """
    notes: list[tuple[int, int, int, int, int, bool, bool]] = []
    open_notes: dict[tuple[int, int], tuple[int, int, bool]] = {}  # (program, pitch) -> onset, velocity bin, tied

    def close(key: tuple[int, int], step: int) -> None:
        onset, velocity_bin, tied = open_notes.pop(key)
        notes.append((onset, step, key[1], key[0], velocity_bin, False, tied))

    step, program, velocity, in_ties = 0, 0, 0, True
    for token in tokens:
        if token < vocabulary.pitch:
            step = token
        elif token >= vocabulary.drum:
            notes.append((step, step, token - vocabulary.drum, 0, velocity, True, False))
        elif token >= vocabulary.program:
            program = token - vocabulary.program
        elif token == vocabulary.tie:
            in_ties = False
        elif token >= vocabulary.velocity:
            velocity = token - vocabulary.velocity
        else:
            key = (program, token - vocabulary.pitch)
            if in_ties:
                open_notes[key] = (0, 1, True)
                continue
            if key in open_notes:
                close(key, step)
            if velocity:
                open_notes[key] = (step, velocity, False)
    for key in list(open_notes):
        close(key, steps)
    return np.sort(np.array(notes, SEGMENT_NOTE_DTYPE), order=["onset_step", "program", "pitch"])


class SpectrogramDiffusionCodec:
    """What `SpectrogramDiffusion` and its data module share: time grid, tokens, note tables.

    Args:
        sample_rate: Of the audio (Hz).
        hop_length: Distance of frames (samples).
        win_length: Length of the window of a frame (samples).
        segment_frames: Frames that are generated at once.
        overlap_frames: Frames that a segment shares with the next one.
        tail_sec: What is rendered after the end of the last note (seconds).
        tokens: Make tokens.
        tables: Make note tables.
        velocity_bins: Loudness classes of the tokens.
        shift_ids: Token ids for time shifts; None: two more than a segment has steps.
        max_tokens: Longest token sequence of a segment.
        framing: Of the spectrogram, see `midisynth.audio.features.LogMel`.
        note_seq: Read MIDI as note_seq does, on which the published models were trained: a release ends all notes of
            its key, and instruments do not share a pedal.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        hop_length: int,
        win_length: int,
        segment_frames: int,
        overlap_frames: int,
        tail_sec: float,
        tokens: bool,
        tables: bool,
        velocity_bins: int,
        shift_ids: int | None,
        max_tokens: int,
        framing: Literal["published", "centered"],
        note_seq: bool,
    ):
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.segment_frames = segment_frames
        self.advance_frames = segment_frames - overlap_frames
        self.tail_sec = tail_sec
        self.tokens = tokens
        self.tables = tables
        self.max_tokens = max_tokens
        self.framing = framing
        self.note_seq = note_seq
        self.max_duration_sec = 7200.0
        self.repair = False
        #: Length of a segment (1/100 s).
        self.segment_steps = round(self.segment_sec * STEPS_PER_SEC)
        if shift_ids is not None and shift_ids < self.segment_steps:
            raise UsageError(f"shift_ids is {shift_ids}, but a segment has {self.segment_steps} time steps: raise it")
        # The published models reserve two ids more than shifts can take.
        self.vocabulary = Vocabulary(self.segment_steps + 2 if shift_ids is None else shift_ids, velocity_bins)
        # The last frame sees beyond the segment unless frames are centred, where the border is reflected.
        beyond = 0 if framing == "centered" else max(win_length - hop_length, 0)
        #: Audio that a training crop needs (samples).
        self.segment_samples = segment_frames * hop_length + beyond

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

    def tokenize(self, notes: np.ndarray) -> list[list[int]]:
        """Cut notes, pedal applied, into consecutive segments without overlap, up to the last event."""
        events = note_events(notes, velocity_bins=self.vocabulary.velocity_bins)
        steps = self.segment_steps
        segments = int(events[-1, 0]) // steps + 1 if len(events) else 0
        return [segment_tokens(events, index * steps, steps, self.vocabulary) for index in range(segments)]

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
        events = note_events(performance.notes, start_sec, self.vocabulary.velocity_bins) if self.tokens else None
        return self._example(performance.notes, events, 0, start_sec)

    def _example(
        self, notes: np.ndarray, events: np.ndarray | None, first_step: int, start_sec: float
    ) -> dict[str, Tensor]:
        """The segment at `start_sec`, which is `first_step` on the clock of `events`; no tokens without events."""
        example = {}
        if events is not None:
            example["tokens"] = self._checked_tokens(events, first_step, start_sec)
        if self.tables:
            example["notes"] = torch.from_numpy(note_table(notes, start_sec, self.segment_sec))
        return example

    def _checked_tokens(self, events: np.ndarray, first_step: int, start_sec: float) -> Tensor:
        tokens = segment_tokens(events, first_step, self.segment_steps, self.vocabulary)
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
        events = note_events(notes, velocity_bins=self.vocabulary.velocity_bins) if self.tokens else None
        try:
            encoded = [self._example(notes, events, round(start * STEPS_PER_SEC), start) for start in starts_sec]
        except DataError as error:
            raise MidiError(path, str(error)) from error
        return {"segments": encoded, "frames": frames, "samples": samples}

    def collate(self, examples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Stack what `encode_segment` returned, padded to the longest, together with "audio" where there is some.

        Returns:
            "tokens" [batch, tokens] int64, "notes" [batch, notes, 4] float32, "audio" [batch, samples] float32.
        """
        batch = {}
        if self.tokens:
            batch["tokens"] = pad_sequence([e["tokens"] for e in examples], batch_first=True, padding_value=PADDING)
        if self.tables:
            one_row = torch.zeros(1, len(TABLE_COLUMNS))  # sets the shape where no segment has a note
            tables = [e["notes"] for e in examples]
            batch["notes"] = pad_sequence([*tables, one_row], batch_first=True)[:-1]
        if "audio" in examples[0]:
            batch["audio"] = torch.stack([e["audio"] for e in examples])
        return batch
