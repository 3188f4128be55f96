"""What can be done to bars, and what can be read off them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from midisynth.models.phrase_ldm.grid import DRUMS, MAX_DURATION, folded
from midisynth.models.phrase_ldm.remiz import Bar, Note, Track, sort_notes, sort_tracks
from midisynth.models.phrase_ldm.texts import phrase_text
from midisynth.models.phrase_ldm.vocabulary import BAR, tempo_token, time_signature_token
from midisynth.music.keys import Key, estimate_key, in_range, normalising_shift, pitch_class_histogram

#: Which notes are the melody: those of the highest track, the highest at each onset, or of these what does not overlap.
Melody = Literal["track", "note", "line"]

#: Semitones above the root, by the sign of the chord. The first that fits best wins.
CHORDS: Mapping[str, tuple[int, ...]] = {
    "": (0, 4, 7),
    "m": (0, 3, 7),
    "dim": (0, 3, 6),
    "aug": (0, 4, 8),
    "sus4": (0, 5, 7),
    "sus2": (0, 2, 7),
    "M7": (0, 4, 7, 11),
    "m7": (0, 3, 7, 10),
    "7": (0, 4, 7, 10),
    "o": (0, 3, 6, 9),
    "m7b5": (0, 3, 6, 10),
}
_SHARPS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_HALF_BAR = 24  # positions


def quantized(bars: Sequence[Bar], step: int = 3) -> list[Bar]:
    """Onsets and durations on multiples of `step` positions, halves to the even one; 3 is a sixteenth."""

    def move(note: Note) -> Note:
        longest = MAX_DURATION // step
        duration = step * min(max(1, round(note.duration / step)), longest)
        return note._replace(onset=step * round(note.onset / step), duration=duration)

    return [
        replace(bar, tracks=[replace(track, notes=[move(note) for note in track.notes]) for track in bar.tracks])
        for bar in bars
    ]


def transposed(bars: Sequence[Bar], semitones: int) -> list[Bar]:
    """All tracks but drums moved; notes that would leave MIDI's range by octaves less."""

    pitches = folded(np.arange(128) + semitones).tolist()

    def moved(track: Track) -> Track:
        if track.program == DRUMS:
            return track
        return replace(track, notes=sort_notes([note._replace(pitch=pitches[note.pitch]) for note in track.notes]))

    return [replace(bar, tracks=sort_tracks([moved(track) for track in bar.tracks])) for bar in bars]


def key_and_range(bars: Sequence[Bar]) -> tuple[Key, int, int]:
    """Key of a song by the durations and velocities of its pitched notes, and its lowest and highest pitch.

    C major and the pitch 60 for bars without notes.
    """
    notes = [note for bar in bars for track in bar.tracks if track.program != DRUMS for note in track.notes]
    if not notes:
        return Key(0), 60, 60
    table = np.array(notes, np.int64)
    histogram = pitch_class_histogram(table[:, 1], table[:, 2] * table[:, 3])
    return estimate_key(histogram), int(table[:, 1].min()), int(table[:, 1].max())


def key_shift(bars: Sequence[Bar]) -> int:
    """Semitones that take a song to C major or A minor and keep it within MIDI's range."""
    key, lowest, highest = key_and_range(bars)
    return in_range(normalising_shift(key), lowest, highest)


def pitched_notes(bar: Bar, programs: Collection[int] | None = None, *, unique: bool = False) -> list[Note]:
    """Notes of all tracks but drums, in order.

    Args:
        bar: The bar.
        programs: Of these programs alone.
        unique: Of notes with one onset and pitch the longest alone.
    """
    notes = sort_notes(
        [
            note
            for track in bar.tracks
            if track.program != DRUMS and (programs is None or track.program in programs)
            for note in track.notes
        ]
    )
    if not unique:
        return notes
    return list({(note.onset, note.pitch): note for note in reversed(notes)}.values())[::-1]


def flattened(bar: Bar) -> Bar:
    """All tracks but drums as one piano."""
    return replace(bar, tracks=[Track(0, pitched_notes(bar, unique=True))])


def flat_text(bar: Bar) -> str:
    """Text of a flattened bar without its instrument."""
    return " ".join([*phrase_text(flattened(bar).tracks[0]).split()[1:], BAR])


def drum_text(bar: Bar) -> str:
    """Text of the drums of a bar without their instrument."""
    notes = sort_notes([note for track in bar.tracks if track.program == DRUMS for note in track.notes])
    unique = list({(note.onset, note.pitch): note for note in reversed(notes)}.values())[::-1]
    return " ".join([*phrase_text(Track(DRUMS, unique)).split()[1:], BAR])


def remi_plus_text(bar: Bar, *, drums: bool = False) -> str:
    """Text of a bar in the order of REMI+: by onset, with the instrument of every note; time signature, tempo first."""
    notes = sorted(
        (note.onset, track.program, note.pitch + (DRUMS if track.program == DRUMS else 0), note.duration)
        for track in bar.tracks
        if drums or track.program != DRUMS
        for note in track.notes
    )
    head = [time_signature_token(*bar.time_signature), tempo_token(bar.tempo)]
    return " ".join([*head, *(f"o-{o} i-{i} p-{p} d-{d}" for o, i, p, d in notes), BAR])


def piano_roll(bar: Bar, steps: int = 16, programs: Collection[int] | None = None) -> np.ndarray:
    """Durations of notes by onset and pitch, [steps of the bar, 128] int64, in steps; 0 where none begins.

    Args:
        bar: The bar. One with N beats has N quarters of `steps`, whatever its denominator.
        steps: Of a bar of four beats.
        programs: Of these programs alone.
    """
    rows = steps // 4 * bar.time_signature[0]
    roll = np.zeros((rows, 128), np.int64)
    positions = 48 / steps
    for note in pitched_notes(bar, programs, unique=True):
        roll[min(round(note.onset / positions), rows - 1), note.pitch] = round(note.duration / positions)
    return roll


def melody(bar: Bar, kind: Melody = "track") -> list[Note]:
    """Melody of a bar, see `Melody`."""
    if kind == "track":
        return list(bar.tracks[0].notes) if bar.tracks else []
    highest: dict[int, Note] = {}
    for note in pitched_notes(bar):
        highest.setdefault(note.onset, note)
    if kind == "note":
        return list(highest.values())
    line: list[Note] = []
    for note in highest.values():
        if not line or note.onset >= line[-1].onset + line[-1].duration:
            line.append(note)
    return line


def pitch_range(bars: Sequence[Bar]) -> int:
    """Semitones from the lowest to the highest pitch, both counted; -1 without notes."""
    pitches = [note.pitch for bar in bars for note in pitched_notes(bar)]
    return max(pitches) - min(pitches) + 1 if pitches else -1


def half_bar_chords(bar: Bar) -> tuple[str | None, str | None]:
    """Chords of the two halves of a bar in 4/4, such as `Am7/G`; None where fewer than two pitch classes sound."""
    notes = pitched_notes(bar)
    first = [note.pitch for note in notes if note.onset < _HALF_BAR]
    second = [note.pitch for note in notes if note.onset >= _HALF_BAR]
    return chord_name(first), chord_name(second)


def chord_name(pitches: Sequence[int]) -> str | None:
    """The chord that shares most pitch classes with the pitches, on the bass unless another root explains more."""
    classes = {pitch % 12 for pitch in pitches}
    if len(classes) < 2:
        return None
    bass = min(pitches) % 12
    # The bass comes first and max() keeps the first of equals: another root must explain more.
    candidates = [(bass, sign) for sign in CHORDS]
    candidates += [(root, sign) for sign in CHORDS for root in range(12) if root != bass]

    def shared(candidate: tuple[int, str]) -> int:
        root, sign = candidate
        return len(classes & {(root + step) % 12 for step in CHORDS[sign]})

    root, sign = max(candidates, key=shared)
    name = f"{_SHARPS[root]}{sign}"
    return name if root == bass else f"{name}/{_SHARPS[bass]}"
