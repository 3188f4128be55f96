"""Note patterns that cover what collections of music leave out: every key, loudness, density and polyphony.

Romantic piano music hardly touches the outer octaves, plays few notes loudly alone, and rarely repeats one key fast.
A model that is trained on it alone is wrong wherever a user's file differs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from midisynth.music.notes import CONTROL_DTYPE, NOTE_DTYPE, TEMPO_DTYPE, Performance
from midisynth.music.pedal import SUSTAIN

LOWEST_KEY, HIGHEST_KEY = 21, 108
TICKS_PER_QUARTER = 480
TICKS_PER_SEC = 960  # at 120 bpm

_CHORDS = ((0, 4, 7), (0, 3, 7), (0, 4, 7, 10), (0, 3, 7, 10), (0, 4, 7, 11), (0, 3, 6, 9), (0, 5, 7), (0, 4, 8))
_SCALES = ((2, 2, 1, 2, 2, 2, 1), (2, 1, 2, 2, 1, 3, 1), (1,), (2,), (3,), (4, 3, 5), (3, 4, 5))

#: Onsets and durations (seconds), keys and velocities of one exercise, and whether the pedal is held throughout.
Exercise = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]
#: Onsets (seconds), durations (seconds) and keys of one section.
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def random_pattern(generator: np.random.Generator, seconds: float) -> Performance:
    """Sections of random patterns, each of 2 to 6 seconds, with the pedal down in about half of them.

    Args:
        generator: Source of all choices; equal generators give equal performances.
        seconds: Length; notes end before it.

    Returns:
        Notes of channel 0, and pedal controllers; ticks count seconds at 120 bpm.
    """
    parts, pedals, start = [], [], 0.0
    while start < seconds:
        length = float(min(generator.uniform(2, 6), seconds - start))
        onset, duration, pitch = _SECTIONS[generator.integers(len(_SECTIONS))](generator, length)
        notes = np.zeros(len(onset), NOTE_DTYPE)
        notes["onset_sec"] = start + onset
        notes["duration_sec"] = np.minimum(duration, seconds - notes["onset_sec"])
        notes["pitch"] = pitch
        notes["velocity"] = _velocities(generator, len(onset))
        parts.append(notes[(onset < length) & (notes["duration_sec"] > 0.01)])
        if generator.random() < 0.5:
            pedals += _pedal(generator, start, length)
        start += length
    return from_seconds(np.concatenate(parts), pedals)


def random_exercise(generator: np.random.Generator, seconds: float) -> Performance:
    """Sections that music and `random_pattern` rarely have: long decays, silence, strokes into sounding strings.

    Args:
        generator: Source of all choices; equal generators give equal performances.
        seconds: Length; notes end before it.

    Returns:
        As of `random_pattern`.
    """
    parts, pedals, start = [], [], 0.0
    while start < seconds:
        make, (shortest, longest) = _EXERCISES[generator.integers(len(_EXERCISES))]
        length = float(min(generator.uniform(shortest, longest), seconds - start))
        onset, duration, pitch, velocity, pedal = make(generator, length)
        notes = np.zeros(len(onset), NOTE_DTYPE)
        notes["onset_sec"] = start + onset
        notes["duration_sec"] = np.minimum(duration, length - onset)
        notes["pitch"] = pitch
        notes["velocity"] = np.clip(np.rint(velocity), 1, 127)
        parts.append(notes[notes["duration_sec"] > 0.01])
        if pedal:
            pedals += [(start, int(generator.integers(64, 128))), (start + length, 0)]
        start += length
    notes = np.concatenate(parts)
    if len(notes) == 0:  # silence alone has nothing to learn from
        return random_pattern(generator, seconds)
    return from_seconds(notes, pedals)


def single_notes(keys: np.ndarray, velocities: np.ndarray, spacing_sec: float, duration_sec: float) -> Performance:
    """One note after the other, for measuring an instrument: `keys` [notes] and `velocities` [notes]."""
    notes = np.zeros(len(keys), NOTE_DTYPE)
    notes["onset_sec"] = np.arange(len(keys)) * spacing_sec
    notes["duration_sec"] = duration_sec
    notes["pitch"], notes["velocity"] = keys, velocities
    return from_seconds(notes, [])


def from_seconds(notes: np.ndarray, pedals: list[tuple[float, int]]) -> Performance:
    """A performance from times in seconds alone; ticks are derived at 120 bpm.

    Args:
        notes: [notes] of `NOTE_DTYPE`; ticks need not be set.
        pedals: Times (seconds) and values (0 to 127) of the sustain pedal.
    """
    notes = notes[np.lexsort((notes["pitch"], notes["onset_sec"]))].copy()
    notes["onset_tick"] = np.rint(notes["onset_sec"] * TICKS_PER_SEC)
    end_tick = np.rint((notes["onset_sec"] + notes["duration_sec"]) * TICKS_PER_SEC).astype(np.int64)
    notes["duration_tick"] = np.maximum(end_tick - notes["onset_tick"], 1)
    notes["track"] = 0
    controls = np.zeros(len(pedals), CONTROL_DTYPE)
    controls["number"] = SUSTAIN
    for row, (time, value) in zip(controls, sorted(pedals, key=lambda pedal: pedal[0]), strict=True):
        row["time_sec"], row["tick"], row["value"] = time, round(time * TICKS_PER_SEC), value
    tempos = np.array([(0.0, 0, 500_000)], TEMPO_DTYPE)
    return Performance(
        notes=notes, controls=controls, tempos=tempos, ticks_per_quarter=TICKS_PER_QUARTER, track_names=[""]
    )


def _velocities(generator: np.random.Generator, count: int) -> np.ndarray:
    """Around a loudness of the section, more or less evenly."""
    centre, spread = generator.uniform(5, 122), generator.choice([2.0, 8.0, 20.0])
    return np.clip(np.rint(generator.normal(centre, spread, count)), 1, 127)


def _pedal(generator: np.random.Generator, start: float, length: float) -> list[tuple[float, int]]:
    """Pedal events of a section: held throughout, or renewed now and then."""
    changes = [0.0]
    if generator.random() < 0.6:
        changes += list(np.arange(1, length / 0.8) * generator.uniform(0.5, 1.5))
    events = []
    for change in changes:
        if change < length - 0.3:
            events += [
                (start + change, 0),
                (start + change + generator.uniform(0.03, 0.15), int(generator.integers(64, 128))),
            ]
    return [*events, (start + length, 0)]


def _steps(generator: np.random.Generator, length: float, fastest: float = 0.09, slowest: float = 0.9) -> np.ndarray:
    """Onsets (seconds) at a pace that is drawn evenly on a logarithmic scale, slightly uneven."""
    pace = np.exp(generator.uniform(np.log(fastest), np.log(slowest)))
    steps = pace * np.exp(generator.normal(0, 0.05, int(length / pace) + 2))
    onsets = np.concatenate([[0.0], steps.cumsum()])
    return onsets[onsets < length]


def _durations(generator: np.random.Generator, onsets: np.ndarray) -> np.ndarray:
    """From staccato to well beyond the next onset."""
    pace = float(np.median(np.diff(onsets))) if len(onsets) > 1 else 0.5
    return np.clip(pace * np.exp(generator.normal(0, 0.7, len(onsets))), 0.03, 6)


def _spread(generator: np.random.Generator, onsets: np.ndarray, chords: list[np.ndarray]) -> Rows:
    """Play a chord at every onset, its notes up to some milliseconds apart."""
    sizes = [len(chord) for chord in chords]
    together = np.repeat(onsets, sizes) + generator.uniform(0, generator.choice([0.002, 0.03]), sum(sizes))
    return together, np.repeat(_durations(generator, onsets), sizes), np.concatenate(chords)


def _in_range(keys: np.ndarray) -> np.ndarray:
    """Move keys by octaves into the range of a piano."""
    keys = np.asarray(keys)
    below, above = np.maximum(LOWEST_KEY - keys, 0), np.maximum(keys - HIGHEST_KEY, 0)
    return keys + 12 * -(-below // 12) - 12 * -(-above // 12)


def _any_key(generator: np.random.Generator, count: int | None = None):
    return generator.integers(LOWEST_KEY, HIGHEST_KEY + 1, count)


def _clusters(generator: np.random.Generator, length: float) -> Rows:
    """One to ten random keys at once, anywhere."""
    onsets = _steps(generator, length)
    keys = np.arange(LOWEST_KEY, HIGHEST_KEY + 1)
    most = generator.integers(1, 11)
    chords = [generator.choice(keys, generator.integers(1, most + 1), replace=False) for _ in onsets]
    return _spread(generator, onsets, chords)


def _stacked(generator: np.random.Generator, length: float) -> Rows:
    """Equal intervals on top of one another: seconds to octaves."""
    onsets = _steps(generator, length)
    chords = []
    for _ in onsets:
        stack = _any_key(generator) + generator.choice([1, 2, 3, 4, 5, 7, 12]) * np.arange(generator.integers(2, 6))
        chords.append(np.unique(_in_range(stack)))
    return _spread(generator, onsets, chords)


def _chords(generator: np.random.Generator, length: float) -> Rows:
    """Chords of tonal music in any inversion, some with a bass octave."""
    onsets = _steps(generator, length, fastest=0.2, slowest=1.5)
    chords = []
    for _ in onsets:
        root, shape = _any_key(generator), np.array(_CHORDS[generator.integers(len(_CHORDS))])
        chord = root + shape + 12 * (np.arange(len(shape)) < generator.integers(len(shape)))
        bass = [root % 12 + 24, root % 12 + 36] if generator.random() < 0.4 else []
        chords.append(np.unique(_in_range(np.concatenate([chord, bass]).astype(int))))
    return _spread(generator, onsets, chords)


def _runs(generator: np.random.Generator, length: float) -> Rows:
    """Scales and broken chords up and down."""
    onsets = _steps(generator, length, fastest=0.05, slowest=0.4)
    intervals = np.resize(_SCALES[generator.integers(len(_SCALES))], len(onsets))
    turn = max(int(generator.integers(5, 40)), 1)
    direction = np.where(np.arange(len(onsets)) // turn % 2 == 0, 1, -1) * generator.choice([-1, 1])
    return onsets, _durations(generator, onsets), _in_range(_any_key(generator) + (direction * intervals).cumsum())


def _repeated(generator: np.random.Generator, length: float) -> Rows:
    """One key, or an octave, again and again, down to the shortest time between two strokes."""
    onsets = _steps(generator, length, fastest=0.07, slowest=0.5)
    key = _any_key(generator)
    chord = np.unique(_in_range(np.array([key, key + 12]))) if generator.random() < 0.3 else np.array([key])
    return _spread(generator, onsets, [chord] * len(onsets))


def _two_hands(generator: np.random.Generator, length: float) -> Rows:
    """A melody over chords or broken chords."""
    melody = _steps(generator, length, fastest=0.12)
    walk = generator.integers(60, 90) + generator.integers(-4, 5, len(melody)).cumsum()
    accompaniment = _steps(generator, length, fastest=0.12)
    shape = np.array(_CHORDS[generator.integers(len(_CHORDS))]) + generator.integers(30, 55)
    if generator.random() < 0.5:
        left = _spread(generator, accompaniment, [shape] * len(accompaniment))
    else:
        left = accompaniment, _durations(generator, accompaniment), np.resize(shape, len(accompaniment))
    right = melody, _durations(generator, melody), _in_range(walk)
    onset, duration, pitch = (np.concatenate(pair) for pair in zip(left, right, strict=True))
    return onset, duration, pitch


def _single(generator: np.random.Generator, length: float) -> Rows:
    """Lone notes on random keys, long enough to hear them fade."""
    onsets = _steps(generator, length, fastest=0.4, slowest=3.0)
    return onsets, generator.uniform(0.1, 3.0, len(onsets)), _any_key(generator, len(onsets))


def _held(generator: np.random.Generator, length: float) -> Rows:
    """One chord that is held for the whole section."""
    keys = np.arange(LOWEST_KEY, HIGHEST_KEY + 1)
    chord = generator.choice(keys, generator.integers(1, 8), replace=False)
    return generator.uniform(0, 0.05, len(chord)), np.full(len(chord), length), chord


def _trill(generator: np.random.Generator, length: float) -> Rows:
    """Two neighbours in fast alternation."""
    onsets = _steps(generator, length, fastest=0.05, slowest=0.12)
    key = _any_key(generator)
    pair = _in_range(np.array([key, key + generator.integers(1, 4)]))
    return onsets, _durations(generator, onsets), np.resize(pair, len(onsets))


_SECTIONS: tuple[Callable[[np.random.Generator, float], Rows], ...] = (
    _clusters,
    _stacked,
    _chords,
    _runs,
    _repeated,
    _two_hands,
    _single,
    _held,
    _trill,
)


def _some_keys(generator: np.random.Generator, most: int) -> np.ndarray:
    return generator.choice(np.arange(LOWEST_KEY, HIGHEST_KEY + 1), generator.integers(1, most + 1), replace=False)


def _even(generator: np.random.Generator, length: float, fastest: float, slowest: float) -> tuple[np.ndarray, float]:
    """Onsets at an even pace that is drawn on a logarithmic scale, and the pace (seconds)."""
    pace = float(np.exp(generator.uniform(np.log(fastest), np.log(slowest))))
    return np.arange(0, length, pace), pace


def _long_decay(generator: np.random.Generator, length: float) -> Exercise:
    """A note or a few until nearly nothing is left, held by hand or by the pedal."""
    keys, pedal = _some_keys(generator, 3), bool(generator.random() < 0.5)
    duration = generator.uniform(0.05, 0.5) if pedal else length - 0.4
    return (
        np.zeros(len(keys)),
        np.full(len(keys), duration),
        keys,
        np.full(len(keys), generator.uniform(10, 127)),
        pedal,
    )


def _silence(generator: np.random.Generator, length: float) -> Exercise:
    """Nothing, with the pedal down or up."""
    nothing = np.zeros(0)
    return nothing, nothing, nothing, nothing, bool(generator.random() < 0.3)


def _struck_again(generator: np.random.Generator, length: float) -> Exercise:
    """A key or a chord under a held pedal, its strings still sounding at every stroke."""
    onsets, pace = _even(generator, length, 0.1, 2.0)
    keys = _some_keys(generator, 4)
    strokes, velocity = len(onsets), generator.uniform(10, 120)
    velocities = np.repeat(generator.normal(velocity, 12, strokes), len(keys))
    return (
        np.repeat(onsets, len(keys)),
        np.full(strokes * len(keys), 0.6 * pace),
        np.tile(keys, strokes),
        velocities,
        True,
    )


def _repetition(generator: np.random.Generator, length: float) -> Exercise:
    """One key at an even pace, from as fast as a piano repeats to slow, released before every stroke."""
    onsets, pace = _even(generator, length, 0.06, 1.5)
    duration = pace * generator.uniform(0.2, 0.95)
    velocities = generator.normal(generator.uniform(10, 120), 5, len(onsets))
    return onsets, np.full(len(onsets), duration), np.full(len(onsets), _any_key(generator)), velocities, False


def _staccato(generator: np.random.Generator, length: float) -> Exercise:
    """Short notes and chords, with air between them, dry or under the pedal."""
    onsets, _ = _even(generator, length, 0.15, 0.8)
    chords = [_some_keys(generator, 4) for _ in onsets]
    sizes = [len(chord) for chord in chords]
    durations = np.full(sum(sizes), generator.uniform(0.03, 0.1))
    velocities = np.repeat(generator.normal(generator.uniform(10, 120), 10, len(onsets)), sizes)
    return np.repeat(onsets, sizes), durations, np.concatenate(chords), velocities, bool(generator.random() < 0.3)


def _ladder(generator: np.random.Generator, length: float) -> Exercise:
    """One key from the softest to the loudest stroke, or back."""
    onsets, pace = _even(generator, length, 0.12, 0.6)
    velocities = np.linspace(1, 127, len(onsets))[:: generator.choice([-1, 1])]
    durations = np.full(len(onsets), pace * generator.uniform(0.3, 0.95))
    return onsets, durations, np.full(len(onsets), _any_key(generator)), velocities, False


def _sweep(generator: np.random.Generator, length: float) -> Exercise:
    """All keys from one end to the other at one velocity, as far as time allows."""
    onsets, pace = _even(generator, length, 0.06, 0.2)
    keys = (_any_key(generator) - LOWEST_KEY + np.arange(len(onsets))) % (HIGHEST_KEY - LOWEST_KEY + 1) + LOWEST_KEY
    durations = np.full(len(onsets), pace * generator.uniform(0.5, 3))
    velocities = np.full(len(onsets), generator.uniform(1, 127))
    return onsets, durations, keys[:: generator.choice([-1, 1])], velocities, bool(generator.random() < 0.2)


def _wide_chords(generator: np.random.Generator, length: float) -> Exercise:
    """Chords of five to twelve notes that are spread over the whole keyboard."""
    onsets, pace = _even(generator, length, 0.3, 2.5)
    size = int(generator.integers(5, 13))
    grid = np.linspace(LOWEST_KEY, HIGHEST_KEY, size)
    chords = [np.clip(np.rint(grid + generator.uniform(-5, 5, size)), LOWEST_KEY, HIGHEST_KEY) for _ in onsets]
    chords = [np.unique(chord) for chord in chords]
    sizes = [len(chord) for chord in chords]
    durations = np.full(sum(sizes), pace * generator.uniform(0.2, 0.95))
    velocities = np.repeat(generator.normal(generator.uniform(10, 115), 10, len(onsets)), sizes)
    return np.repeat(onsets, sizes), durations, np.concatenate(chords), velocities, bool(generator.random() < 0.5)


#: Exercises, and how long each lasts (seconds).
_EXERCISES: tuple[tuple[Callable[[np.random.Generator, float], Exercise], tuple[float, float]], ...] = (
    (_long_decay, (5, 12)),
    (_silence, (0.5, 3)),
    (_struck_again, (2, 6)),
    (_repetition, (1, 4)),
    (_staccato, (2, 5)),
    (_ladder, (2, 6)),
    (_sweep, (2, 6)),
    (_wide_chords, (2, 6)),
)
