"""Music for many instruments out of little: generated pieces, and other instruments for the voices of MIDI files.

Together they use every General MIDI program and every key of the drum map, which collections of music do not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from midisynth.datasets.labels import PITCHED_CHANNELS
from midisynth.datasets.patterns import from_seconds
from midisynth.music.notes import DRUM_CHANNEL, NOTE_DTYPE, Performance, is_drum
from midisynth.music.pedal import extend_by_pedal

#: Lowest and highest key of the instruments of each family, eight programs each, as General MIDI orders them.
FAMILY_KEYS = (
    *((21, 108), (48, 96), (36, 96), (40, 84), (28, 55), (36, 96), (36, 84), (40, 80)),
    *((44, 84), (60, 96), (36, 96), (36, 84), (36, 84), (48, 84), (36, 84), (48, 72)),
)
#: Instruments whose range is not that of their family.
PROGRAM_KEYS = {
    14: (48, 77),  # tubular bells
    40: (55, 100),  # violin
    41: (48, 88),  # viola
    42: (36, 76),  # cello
    43: (28, 60),  # double bass
    46: (24, 103),  # harp
    47: (36, 60),  # timpani
    57: (40, 72),  # trombone
    58: (28, 58),  # tuba
    67: (36, 69),  # baritone saxophone
    70: (34, 75),  # bassoon
    71: (50, 91),  # clarinet
    72: (74, 108),  # piccolo
}
#: Keys of the drum map of General MIDI.
DRUM_KEYS = (35, 81)

_KICKS, _SNARES, _CYMBALS = (35, 36), (37, 38, 39, 40), (42, 44, 46, 49, 51, 52, 53, 55, 57, 59)
_CHORDS = ((0, 4, 7), (0, 3, 7), (0, 4, 7, 10), (0, 3, 7, 10), (0, 4, 7, 11), (0, 5, 7), (0, 3, 6))
_MOST_PARTS = 6
_MOST_VOICES = 4

#: Onsets (beats), durations (beats) and keys of a part.
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def random_ensemble(generator: np.random.Generator, seconds: float) -> Performance:
    """A piece for one to six random programs, with drums in two thirds of the pieces.

    Args:
        generator: Source of all choices; equal generators give equal performances.
        seconds: Length; notes end before it.

    Returns:
        Every part on a channel of its own; ticks count seconds at 120 bpm.
    """
    beat_sec = 60 / generator.uniform(60, 180)
    bars = int(seconds / beat_sec / 4) + 1
    roots = (generator.integers(12) + generator.choice([0, 5, 7, 9, 2, 4], bars)) % 12
    chords = [(int(root), _CHORDS[generator.integers(len(_CHORDS))]) for root in roots]
    parts = []
    programs = generator.choice(128, generator.integers(1, _MOST_PARTS + 1), replace=False).tolist()
    for channel, program in zip(PITCHED_CHANNELS, programs, strict=False):
        style = _STYLES[generator.integers(len(_STYLES))]
        onset, duration, pitch = style(generator, chords, keys_of(program))
        parts.append(_part(generator, onset * beat_sec, duration * beat_sec, pitch, channel, program))
    if generator.random() < 2 / 3:
        onset, pitch = _drums(generator, bars)
        parts.append(_part(generator, onset * beat_sec, np.full(len(onset), 0.1), pitch, DRUM_CHANNEL, 0))
    return _clean(np.concatenate(parts), seconds)


def arrange(performance: Performance, generator: np.random.Generator) -> Performance:
    """Other programs for the voices of a performance; what one channel plays is divided by pitch.

    Args:
        performance: The pedal applied.
        generator: Source of all choices.

    Returns:
        Notes with other programs, moved by octaves into the range of their instruments; drums as they were.
    """
    notes = performance.notes.copy()
    pitched = ~is_drum(notes)
    channels = np.unique(notes["channel"][pitched])
    if len(channels) == 1:
        borders = np.sort(generator.choice(notes["pitch"][pitched], generator.integers(0, _MOST_VOICES)))
        voices = np.searchsorted(borders, notes["pitch"], side="right")
        notes["channel"][pitched] = np.take(PITCHED_CHANNELS, voices[pitched])
    for channel in np.unique(notes["channel"][pitched]):
        voice = notes["channel"] == channel
        program = int(generator.integers(128))
        notes["program"][voice] = program
        notes["pitch"][voice] = fold(notes["pitch"][voice], *keys_of(program))
    return _clean(notes, performance.end_sec)


def keys_of(program: int) -> tuple[int, int]:
    """Lowest and highest key that an instrument plays."""
    return PROGRAM_KEYS.get(program, FAMILY_KEYS[program // 8])


def fold(pitch: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """Move keys by octaves into a range of at least an octave."""
    below, above = np.maximum(lowest - pitch, 0), np.maximum(pitch - highest, 0)
    return pitch + 12 * -(-below // 12) - 12 * -(-above // 12)


def _clean(notes: np.ndarray, seconds: float) -> Performance:
    """A performance of notes within `seconds`, in which a stroke ends the earlier note of its key."""
    notes = notes[notes["onset_sec"] < seconds - 0.02]
    notes["duration_sec"] = np.minimum(notes["duration_sec"], seconds - notes["onset_sec"])
    return extend_by_pedal(from_seconds(notes, []))


def _part(
    generator: np.random.Generator,
    onset_sec: np.ndarray,
    duration_sec: np.ndarray,
    pitch: np.ndarray,
    channel: int,
    program: int,
) -> np.ndarray:
    """Notes of a part, slightly uneven, about as loud as each other."""
    notes = np.zeros(len(onset_sec), NOTE_DTYPE)
    notes["onset_sec"] = np.maximum(onset_sec + generator.normal(0, 0.008, len(notes)), 0)
    notes["duration_sec"] = np.maximum(duration_sec, 0.05)
    notes["pitch"], notes["channel"], notes["program"] = pitch, channel, program
    notes["velocity"] = np.clip(np.rint(generator.normal(generator.uniform(30, 115), 10, len(notes))), 1, 127)
    return notes


def _thinned(generator: np.random.Generator, onset: np.ndarray) -> np.ndarray:
    """Onsets without some that become rests, but with the first."""
    kept = generator.random(len(onset)) < generator.uniform(0.5, 1.0)
    kept[0] = True
    return onset[kept]


def _tones(chord: tuple[int, tuple[int, ...]], keys: tuple[int, int]) -> np.ndarray:
    """Every key of a range that belongs to a chord."""
    root, shape = chord
    pitch = np.arange(keys[0], keys[1] + 1)
    return pitch[np.isin((pitch - root) % 12, shape)]


def _melody(generator: np.random.Generator, chords: list, keys: tuple[int, int]) -> Rows:
    """One note after the other, near each other, on the tones of the chords."""
    step = generator.choice([0.25, 0.5, 1.0])
    onset = _thinned(generator, np.arange(0, 4 * len(chords), step))
    near = generator.uniform(*keys)
    pitch = []
    for time in onset:
        tones = _tones(chords[int(time // 4)], keys)
        near += generator.normal(0, 3)
        pitch.append(tones[np.abs(tones - near).argmin()])
        near = np.clip(near, *keys)
    return onset, np.diff(onset, append=4 * len(chords)) * generator.uniform(0.4, 1.0), np.array(pitch)


def _bass(generator: np.random.Generator, chords: list, keys: tuple[int, int]) -> Rows:
    """The lowest root of every chord, on some beats."""
    onset = _thinned(generator, np.arange(0, 4 * len(chords), generator.choice([0.5, 1.0, 2.0])))
    roots = np.array([chords[int(time // 4)][0] for time in onset])
    return onset, np.diff(onset, append=4 * len(chords)) * 0.9, fold(roots, keys[0], keys[0] + 11)


def _blocks(generator: np.random.Generator, chords: list, keys: tuple[int, int]) -> Rows:
    """Chords at once, struck anew or held for a bar."""
    step = generator.choice([0.5, 1.0, 2.0, 4.0])
    onset = _thinned(generator, np.arange(0, 4 * len(chords), step))
    lowest = int(generator.integers(keys[0], max(keys[1] - 16, keys[0]) + 1))
    stacks = [_tones(chords[int(time // 4)], (lowest, min(lowest + 16, keys[1]))) for time in onset]
    sizes = [len(stack) for stack in stacks]
    return np.repeat(onset, sizes), np.full(sum(sizes), step * generator.uniform(0.3, 1.0)), np.concatenate(stacks)


def _broken(generator: np.random.Generator, chords: list, keys: tuple[int, int]) -> Rows:
    """Chords note by note, up and down."""
    step = generator.choice([0.25, 0.5])
    onset = np.arange(0, 4 * len(chords), step)
    lowest = int(generator.integers(keys[0], max(keys[1] - 19, keys[0]) + 1))
    pitch = []
    for number, time in enumerate(onset):
        tones = _tones(chords[int(time // 4)], (lowest, min(lowest + 19, keys[1])))
        turn = np.concatenate([tones, tones[-2:0:-1]])
        pitch.append(turn[number % len(turn)])
    return onset, np.full(len(onset), step * generator.uniform(0.5, 2.0)), np.array(pitch)


def _anything(generator: np.random.Generator, chords: list, keys: tuple[int, int]) -> Rows:
    """Keys from anywhere in the range, at any time, of any length."""
    count = int(4 * len(chords) * generator.uniform(0.3, 2.0)) + 1
    onset = np.sort(generator.uniform(0, 4 * len(chords), count))
    return onset, np.exp(generator.normal(-0.3, 0.8, count)), generator.integers(keys[0], keys[1] + 1, count)


_STYLES: tuple[Callable[[np.random.Generator, list, tuple[int, int]], Rows], ...] = (
    _melody,
    _bass,
    _blocks,
    _broken,
    _anything,
)


def _drums(generator: np.random.Generator, bars: int) -> tuple[np.ndarray, np.ndarray]:
    """Onsets (beats) and keys: a bar that repeats, in some pieces with any drum anywhere."""
    steps = np.arange(16) / 4
    layers = []
    for choices, chance in ((_KICKS, 0.3), (_SNARES, 0.2), (_CYMBALS, 0.6)):
        hits = steps[generator.random(len(steps)) < chance * generator.uniform(0.5, 1.5)]
        layers.append((hits, np.full(len(hits), generator.choice(choices))))
    onset = np.concatenate([hits for hits, _ in layers])
    pitch = np.concatenate([keys for _, keys in layers])
    onset = (onset[None, :] + 4 * np.arange(bars)[:, None]).ravel()
    pitch = np.tile(pitch, bars)
    if generator.random() < 0.5:
        count = int(bars * generator.uniform(1, 8))
        onset = np.concatenate([onset, generator.integers(0, 16 * bars, count) / 4])
        pitch = np.concatenate([pitch, generator.integers(DRUM_KEYS[0], DRUM_KEYS[1] + 1, count)])
    return onset, pitch
