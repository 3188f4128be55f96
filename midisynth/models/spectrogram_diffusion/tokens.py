"""Tokens of the published PyTorch models, which follow MT3 (Gardner et al. 2021, section 3.2).

Every segment starts with the notes that still sound ("tie section"), and a shift token gives the absolute time within
the segment. More than one velocity bin is an extension: the published vocabulary knows only on and off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from midisynth.music.notes import is_drum

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
    """Layout of the token ids: specials, shifts, pitches, velocities, the tie, programs, drum pitches.

    Attributes:
        pitch: Id of pitch 0, before which are specials and shifts (1/100 s from the start of the segment).
        velocity_bins: Loudness classes; 1 is on, 0 always is off.
        specials: Number of ids before the shift by 0.
    """

    pitch: int
    velocity_bins: int = 1
    specials: int = 0

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


def notes_that_matter(notes: np.ndarray, start_sec: float, duration_sec: float) -> np.ndarray:
    """The notes on which the tokens of a segment depend.

    Those that sound in it, and all of the keys that are held into it: of notes of one key that overlap, the first
    release ends them all. For long pieces it is much faster to leave out the others.

    Args:
        notes: [notes] of `NOTE_DTYPE`, after the pedal has been applied.
        start_sec: Start of the segment (seconds).
        duration_sec: Its length (seconds).
    """
    slack_sec = 2 / STEPS_PER_SEC  # for rounding, and for notes without length
    begun = notes["onset_sec"] < start_sec + duration_sec + slack_sec
    inside = begun & (notes["onset_sec"] + notes["duration_sec"] > start_sec - slack_sec)
    held = inside & (notes["onset_sec"] < start_sec + slack_sec)
    key = notes["program"] * 128 + notes["pitch"]
    return notes[inside | (begun & np.isin(key, key[held]))]


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
    for program_, pitch in sounding(events[:begin]):
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


def sounding(events: np.ndarray) -> list[tuple[int, int]]:
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
        if token < vocabulary.specials:
            continue
        if token < vocabulary.pitch:
            step = token - vocabulary.specials
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
