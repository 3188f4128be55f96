"""What the marks of a page mean for its notes: tempo, loudness, articulation.

Words are read here rather than by partitura, whose grammar takes a "rubato" for an accelerando and knows Italian alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from midisynth.music.score_parts import clock_of

if TYPE_CHECKING:
    from partitura.score import Note, Part

#: Quarter notes a minute of tempo words, the middle of what metronomes print beside them. The first that fits counts.
TEMPO_WORDS = (
    (r"larghetto", 63),
    (r"largo|grave", 50),
    (r"adagietto", 74),
    (r"adagio|molto lento|sehr langsam", 66),
    (r"lento|lent\b|langsam|slow", 60),
    (r"andantino", 88),
    (r"andante|gehend", 80),
    (r"allegro moderato|moderato assai", 116),
    (r"allegretto", 112),
    (r"moderato|modéré|m(ä|ae?)(ß|ss)ig|menuet|minuet", 108),
    (r"prestissimo", 200),
    (r"presto|sehr (schnell|rasch)", 180),
    (r"vivacissimo", 180),
    (r"vivace|vivo|vif\b|lebhaft", 160),
    (r"allegro (assai|molto|vivace|con (brio|fuoco))|molto allegro", 152),
    (r"allegro (ma )?non (tanto|troppo)", 126),
    (r"allegro|schnell|rasch|fast\b", 138),
)
_SLOWER = re.compile(r"\b(rit\b|rit\.|ritard|riten|rall|allarg|slentando|calando|smorz|morendo|slower)")
_FASTER = re.compile(r"\b(accel|string\b|string\.|stringendo|affrett|stretto|faster)")
_FIRST_TEMPO = re.compile(r"\b(tempo (i\b|1|primo)|tempo di prima)")
_BACK = re.compile(r"\b(a|in) tempo\b")
_MORE, _LESS = re.compile(r"\bpi[uù] (mosso|vivo|allegro|presto)"), re.compile(r"\bmeno (mosso|allegro|presto)")
_STEP = 1.15  # how much faster "più mosso" is

#: MIDI velocities of dynamics, as MuseScore plays them.
LOUDNESS = {
    "n": 1,
    "pppp": 10,
    "ppp": 16,
    "pp": 33,
    "p": 49,
    "mp": 64,
    "mf": 80,
    "f": 96,
    "ff": 112,
    "fff": 126,
    "ffff": 127,
}
_LOUDNESS_WORDS = (
    (r"pianissimo", "pp"),
    (r"mezzo[ -]?piano", "mp"),
    (r"mezzo[ -]?forte", "mf"),
    (r"fortissimo", "ff"),
    (r"sotto voce|mezza voce", "p"),
    (r"\bpiano\b", "p"),
    (r"\bforte\b", "f"),
)
_LEVEL = re.compile(r"(?<![\w.])(p{1,6}|f{1,6}|m[pf])(?![\w.])")
_LOUDER = re.compile(r"\bcresc")
_SOFTER = re.compile(r"\b(decresc|decr\b|dim\b|dim\.|dimin|calando|smorz|morendo|perdendo)")
_FORCED = re.compile(r"(sf+z?p*|f+z+p*|f+p+|rfz?|rinf\w*|sforz\w*)\.?")

_MOST_BARS = 4  # a change without an end ("rit.") is over after so many bars at the latest

_ACCENTS = {"accent", "strong-accent", "soft-accent", "stress", "acc", "marc", "acc-soft", "acc-long", "acc-inv"}
_STACCATOS = {"staccato", "staccatissimo", "spiccato", "detached-legato", "stacc", "stacciss", "spicc", "ten-stacc"}
_TENUTOS = {"tenuto", "detached-legato", "ten", "ten-stacc"}


def _words(part: Part) -> Iterator[tuple[Any, str]]:
    """Every direction of a part with its text in lower case."""
    from partitura.score import Direction, Words

    for mark in part.iter_all(Direction, include_subclasses=True):
        yield mark, (mark.raw_text or mark.text or "").strip().lower()
    for mark in part.iter_all(Words):
        yield mark, (mark.text or "").strip().lower()


class TempoMarks:
    """The tempo that a page prescribes, from the marks of all its parts.

    Args:
        parts: As partitura has them.
        divisions: Common divisions of a quarter note.
    """

    def __init__(self, parts: Sequence[Part], divisions: int):
        from partitura.score import Tempo
        from partitura.utils.music import to_quarter_tempo

        numbers: dict[int, float] = {}
        words: dict[int, str] = {}
        for part in parts:
            clock = clock_of(part, divisions)
            for mark in part.iter_all(Tempo):
                numbers.setdefault(int(clock(mark.start.t)), to_quarter_tempo(mark.unit or "q", mark.bpm))
            for mark, text in _words(part):
                time = int(clock(mark.start.t))
                if _kind(text):
                    words.setdefault(time, text)
        self.times, self.tempos, self.changes = _followed(numbers, words)
        self._longest = _MOST_BARS * 4 * divisions

    def columns(self, onset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tempo (quarters a minute, NaN before the first mark) and its change (1, 0, -1) at onsets, each [notes]."""
        if len(self.times) == 0:
            return np.full(len(onset), np.nan), np.zeros(len(onset))
        index = np.searchsorted(self.times, onset, side="right") - 1
        held = index >= 0
        within = held & (onset - self.times[index] < self._longest)
        return np.where(held, self.tempos[index], np.nan), np.where(within, self.changes[index], 0)


def _kind(text: str) -> str:
    """What a text says of the tempo, "" for nothing."""
    for kind, pattern in (
        ("first", _FIRST_TEMPO),
        ("back", _BACK),
        ("more", _MORE),
        ("less", _LESS),
        ("slower", _SLOWER),
        ("faster", _FASTER),
    ):
        if pattern.search(text):
            return kind
    return "word" if _word_tempo(text) else ""


def _word_tempo(text: str) -> float:
    return next((float(tempo) for pattern, tempo in TEMPO_WORDS if re.search(pattern, text)), 0.0)


def _followed(numbers: dict[int, float], words: dict[int, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go through the marks as a reader does.

    Args:
        numbers: Time (divisions) to quarters a minute.
        words: Time to a text that says something of the tempo.

    Returns:
        Times of the marks, the tempo (NaN where none is known yet) and its change from there on, each [marks].
    """
    tempo = steady = first = np.nan
    rows = []
    for time in sorted(numbers.keys() | words.keys()):
        kind = _kind(words.get(time, ""))
        change = {"slower": -1, "faster": 1}.get(kind, 0)
        if change:
            steady = tempo if rows == [] or rows[-1][2] == 0 else steady
        elif kind == "first":
            tempo = first
        elif kind == "back":
            tempo = steady
        elif kind in ("more", "less"):
            tempo *= _STEP if kind == "more" else 1 / _STEP
        elif kind == "word":
            tempo = _word_tempo(words[time])
        tempo = numbers.get(time, tempo)
        # Programs that play a ritardando write it as numbers: they go on with it.
        if time not in words and rows and rows[-1][2]:
            change = rows[-1][2] if (tempo - rows[-1][1]) * rows[-1][2] > 0 else 0
        if not change:
            steady = tempo
        first = tempo if np.isnan(first) else first
        rows.append((time, tempo, change))
    times, tempos, changes = (np.array(column) for column in zip(*rows, strict=True)) if rows else np.empty((3, 0))
    return times.astype(np.int64), tempos.astype(np.float64), changes.astype(np.int64)


def loudness_columns(part: Part, onset: np.ndarray, staff: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What dynamics and wedges say of notes. They hold for all staves of a part; of two at one time the own one counts.

    Args:
        part: Has the marks.
        onset: Times of the part (its own divisions), [notes].
        staff: Of each note, [notes].

    Returns:
        MIDI velocity of the last mark (NaN before the first), progress of a crescendo (0..1) or diminuendo (0..-1),
        and which notes are forced (sf, sfz, fp), each [notes].
    """
    levels, changes, forces = _dynamics(part)
    loudness = np.full(len(onset), np.nan)
    change = np.zeros(len(onset))
    forced = np.zeros(len(onset), bool)
    for number in np.unique(staff).tolist():
        own = np.flatnonzero(staff == number)
        order = own[np.argsort(onset[own], kind="stable")]
        times = onset[order]
        if levels:
            marks = sorted(levels, key=lambda mark: (mark[0], mark[2] == number))
            starts = np.array([mark[0] for mark in marks])
            index = np.searchsorted(starts, times, side="right") - 1
            values = np.array([mark[1] for mark in marks], np.float64)
            loudness[order] = np.where(index >= 0, values[index], np.nan)
        # The own ones come last, so that they overwrite those of other staves.
        for start, end, direction, _ in sorted(changes, key=lambda change: change[3] in (None, number)):
            first, last = np.searchsorted(times, [start, end])
            change[order[first:last]] = direction * (times[first:last] - start) / (end - start)
        for start, where in forces:
            if where in (None, number):
                first, last = np.searchsorted(times, [start, start + 1])
                forced[order[first:last]] = True
    return loudness, change, forced


def _dynamics(part: Part) -> tuple[list[tuple], list[tuple], list[tuple]]:
    """Levels (time, velocity, staff), changes (start, end, direction, staff) and forced times (time, staff)."""
    levels, changes, forces = [], [], []
    for mark, text in _words(part):
        time, staff = mark.start.t, getattr(mark, "staff", None)
        level = _level(text)
        if _FORCED.fullmatch(text):
            forces.append((time, staff))
            if text.rstrip(".").endswith("p"):  # fp, sfp: soft from the next note on
                levels.append((time + 1, LOUDNESS["p"], staff))
        elif level:
            levels.append((time, LOUDNESS[level], staff))
        direction = 1 if _LOUDER.search(text) else -1 if _SOFTER.search(text) else 0
        if direction:
            changes.append((time, mark.end and mark.end.t, direction, staff))
    levels.sort(key=lambda mark: mark[0])
    starts = np.array([mark[0] for mark in levels] or [0])
    return levels, [_with_end(part, change, starts) for change in changes], forces


def _with_end(part: Part, change: tuple, levels: np.ndarray) -> tuple:
    """A change with its end: its own, else the next level, else some bars later."""
    start, end, direction, staff = change
    if end is None or end <= start:
        bar = part.quarter_duration_map(start) * 4
        after = np.searchsorted(levels, start, side="right")
        end = start + int(_MOST_BARS * bar)
        if after < len(levels):
            end = min(end, int(levels[after]))
    return start, end, direction, staff


def _level(text: str) -> str:
    """The last dynamic that a text names, "" for none."""
    found = _LEVEL.findall(text)
    if found:
        return found[-1][:4]
    return next((level for pattern, level in _LOUDNESS_WORDS if re.search(pattern, text)), "")


def mark_columns(part: Part, notes: Sequence[Note], onset: np.ndarray, voice: np.ndarray) -> dict[str, np.ndarray]:
    """Marks of single notes.

    Programs write articulation at one note of a chord: it counts for all notes of its voice there. A fermata holds
    everything that begins with it.

    Args:
        part: Has slurs and tuplets.
        notes: Of the part, [notes].
        onset: Their times (divisions of the part), [notes].
        voice: Their voices, [notes].

    Returns:
        "staccato", "tenuto", "accent", "fermata", "ornament", "tuplet" and "slur", each [notes] bool.
    """
    marks = [set(note.articulations or ()) for note in notes]
    chords = np.unique(np.stack([onset, voice]), axis=1, return_inverse=True)[1].ravel()
    moments = np.unique(onset, return_inverse=True)[1]

    def shared(own: list[bool], groups: np.ndarray) -> np.ndarray:
        return (np.bincount(groups, weights=np.array(own)) > 0)[groups]

    return {
        "staccato": shared([not mark.isdisjoint(_STACCATOS) for mark in marks], chords),
        "tenuto": shared([not mark.isdisjoint(_TENUTOS) for mark in marks], chords),
        "accent": shared([not mark.isdisjoint(_ACCENTS) for mark in marks], chords),
        "fermata": shared([note.fermata is not None for note in notes], moments),
        "ornament": np.array([bool(note.ornaments) for note in notes]),
        "tuplet": np.array([bool((note.symbolic_duration or {}).get("actual_notes")) for note in notes]),
        "slur": _slurred(part, onset, voice),
    }


def _slurred(part: Part, onset: np.ndarray, voice: np.ndarray) -> np.ndarray:
    """Which notes lie under a slur of their voice, [notes] bool."""
    from partitura.score import Slur

    spans = defaultdict(list)
    for slur in part.iter_all(Slur, mode="starting"):
        ends = [note for note in (slur.start_note, slur.end_note) if note is not None]
        # Of a slur that a repeat cuts one end is missing: the other says the voice, the slur itself the time.
        last = slur.end_note.start.t if slur.end_note is not None else slur.end.t - 1 if slur.end else slur.start.t
        for number in {note.voice or 1 for note in ends}:
            spans[number].append((slur.start.t, last))
    slurred = np.zeros(len(onset), bool)
    for number, ranges in spans.items():
        own = np.flatnonzero(voice == number)
        order = own[np.argsort(onset[own], kind="stable")]
        depth = np.zeros(len(order) + 1, np.int64)
        first, last = np.array(ranges).T
        np.add.at(depth, np.searchsorted(onset[order], first), 1)
        np.add.at(depth, np.searchsorted(onset[order], last, side="right"), -1)
        slurred[order] = np.cumsum(depth[:-1]) > 0
    return slurred
