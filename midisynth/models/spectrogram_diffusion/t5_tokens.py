"""Tokens of the official models (T5X and diffusers), in the words of `tokens.py`.

They differ in order, in what is left out, and in their ids: events of one step follow the unrounded time, a program or
velocity is written only where it differs from the last one of the segment, and padding, end and unknown come first.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from midisynth.models.spectrogram_diffusion.tokens import STEPS_PER_SEC, Vocabulary, sounding
from midisynth.music.notes import is_drum

#: Padding, end and unknown.
SPECIALS = 3
END = 1
#: Shifts of 0..1000 steps have ids, though a segment is shorter.
SHIFT_IDS = 1001
#: Rows of the embedding that no token uses, and what the table's size is a multiple of.
UNUSED_ROWS, ROWS_MULTIPLE = 100, 128

Programs = Literal["full", "slakh", "midi_class", "flat"]

#: Lowest programs of the instrument classes of Slakh2100, which most of the training data have.
SLAKH_PROGRAMS = np.array(
    [
        *(0, 4, 8, 16, 24, 26, 29, 32, 33, 40, 41, 42, 43, 46, 47, 48, 50, 52, 55, 56, 57, 58, 60, 61, 64),
        *(66, 67, 68, 69, 70, 71, 73, 80, 88),
    ]
)


def vocabulary(velocity_bins: int = 1) -> Vocabulary:
    """Ids of the official tokens."""
    return Vocabulary(SPECIALS + SHIFT_IDS, velocity_bins, SPECIALS)


def table_rows(vocabulary: Vocabulary) -> int:
    """Rows of the embedding of the official tokens: 1536 for one velocity bin."""
    return math.ceil((len(vocabulary) + UNUSED_ROWS) / ROWS_MULTIPLE) * ROWS_MULTIPLE


def reprogram(notes: np.ndarray, programs: Programs) -> np.ndarray:
    """Notes with coarser programs; drums keep theirs.

    Args:
        notes: [notes] of `NOTE_DTYPE`.
        programs: "full": as they are; "slakh": the class of Slakh2100 at or below, as diffusers' pipeline does;
            "midi_class": the first of eight; "flat": all are 0.
    """
    if programs == "full":
        return notes
    changed = notes.copy()
    own = notes["program"]
    if programs == "slakh":
        coarse = SLAKH_PROGRAMS[np.searchsorted(SLAKH_PROGRAMS, own, side="right") - 1]
    else:
        coarse = own // 8 * 8 if programs == "midi_class" else np.zeros_like(own)
    changed["program"] = np.where(is_drum(notes), own, coarse)
    return changed


def note_events(
    notes: np.ndarray, origin_sec: float = 0.0, velocity_bins: int = 1, faulty_ties: bool = False
) -> np.ndarray:
    """Notes -> note-on and note-off events in the order in which they become tokens.

    Args:
        notes: [notes] of `NOTE_DTYPE`, after the pedal has been applied.
        origin_sec: Time of step 0 (seconds).
        velocity_bins: Loudness classes.
        faulty_ties: Leave notes without length on for ever, as the original does; else they take one step.

    Returns:
        [events, 5] int64 as in `tokens.note_events`, by unrounded time; at one time offs come first, then programs and
        pitches ascend.
    """
    notes = notes[np.lexsort([notes["pitch"], notes["program"], is_drum(notes)])]
    drum = is_drum(notes)
    onset_sec = notes["onset_sec"] - origin_sec
    end_sec = onset_sec + notes["duration_sec"]
    if not faulty_ties:
        end_sec = np.where(end_sec > onset_sec, end_sec, onset_sec + 1 / STEPS_PER_SEC)
    time_sec = np.concatenate([end_sec[~drum], onset_sec])
    velocity_bin = np.ceil(velocity_bins * notes["velocity"] / 127).astype(np.int64)
    program = np.where(drum, 0, notes["program"])
    on = np.stack([drum, program, velocity_bin, notes["pitch"]], axis=1).astype(np.int64)
    off = on[~drum] * np.array([1, 1, 0, 1])
    step = np.rint(time_sec * STEPS_PER_SEC).astype(np.int64)
    events = np.concatenate([step[:, None], np.concatenate([off, on])], axis=1)
    return events[np.argsort(time_sec, kind="stable")]


def segment_tokens(
    events: np.ndarray, first_step: int, steps: int | None, vocabulary: Vocabulary, faulty_ties: bool = False
) -> list[int]:
    """Tokens of the segment that starts at `first_step`, with the end token.

    Args:
        events: From `note_events`.
        first_step: Start of the segment (1/100 s).
        steps: Length of the segment (1/100 s); None: it takes all that is left.
        vocabulary: Token ids.
        faulty_ties: After the last event, claim that what sounded just before it still does, as the original does.
    """
    begin = int(np.searchsorted(events[:, 0], first_step))
    end = len(events) if steps is None else int(np.searchsorted(events[:, 0], first_step + steps))
    state = begin
    if faulty_ties and len(events) and begin == len(events):
        state = int(np.searchsorted(events[:, 0], events[-1, 0]))
    tokens: list[int] = []
    program = velocity = None
    for program_, pitch in sounding(events[:state]):
        if program_ != program:
            program = program_
            tokens.append(vocabulary.program + program)
        tokens.append(vocabulary.pitch + pitch)
    tokens.append(vocabulary.tie)
    shift = 0
    for step, drum, program_, velocity_, pitch in events[begin:end].tolist():
        if step - first_step != shift:
            shift = step - first_step
            tokens.append(vocabulary.specials + shift)
        if not drum and program_ != program:
            program = program_
            tokens.append(vocabulary.program + program)
        if velocity_ != velocity:
            velocity = velocity_
            tokens.append(vocabulary.velocity + velocity)
        tokens.append((vocabulary.drum if drum else vocabulary.pitch) + pitch)
    return [*tokens, END]
