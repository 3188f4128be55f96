"""What the page says of every note: place in time and metre, and the marks that shape its performance.

`midisynth.music.notes.Performance` is what sounds; a `Score` is what a player reads. Times are exact multiples of the
score's divisions; "beat" is the unit of the time signature's denominator (an eighth in 6/8).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from midisynth.music.clock import TempoMap
from midisynth.music.notes import NOTE_DTYPE, Performance

#: Velocity of everything that is played without expression.
DEADPAN_VELOCITY = 64

#: Grace notes that are played without expression last this part of a quarter note: an eighth of it.
GRACE_SHARE = 8

#: Quarter notes a minute where the page says none.
DEFAULT_TEMPO = 120.0

_LEAST_RESOLUTION = 480  # ticks of a quarter note

SCORE_NOTE_DTYPE = np.dtype(
    [
        ("id", "U64"),  # unique in a score; a repeat that is played twice adds "-1", "-2"
        ("onset_div", "<i8"),
        ("duration_div", "<i8"),  # 0 for grace notes; ties are one note
        ("onset_beat", "<f8"),  # 0 is the first full bar, so that a pick-up lies before it
        ("duration_beat", "<f8"),
        ("onset_quarter", "<f8"),
        ("duration_quarter", "<f8"),
        ("pitch", "<i4"),  # sounding MIDI key number, 0..127
        ("voice", "<i4"),  # unique within the part, from 1
        ("staff", "<i4"),  # from 1; 0 where the source has none
        ("part", "<i4"),
        ("bar", "<i4"),  # counts played bars from 0
        ("bar_beat", "<f8"),  # beats since the bar line; a pick-up begins where it would in a full bar
        ("bar_beats", "<f8"),  # length of the full bar
        ("fifths", "<i4"),  # key signature
        ("minor", "?"),
        ("tempo", "<f4"),  # notated quarters a minute that hold here; NaN where the page says none
        ("tempo_change", "<f4"),  # 1 within an accelerando, -1 within a ritardando (to the next mark), else 0
        ("loudness", "<f4"),  # last of ppp..fff that holds here as a MIDI velocity; NaN where the page says none
        ("loudness_change", "<f4"),  # progress 0..1 within a crescendo, 0..-1 within a diminuendo, else 0
        ("grace", "?"),
        ("slur", "?"),
        ("staccato", "?"),  # like tenuto and accent, for all notes of a chord in one voice
        ("tenuto", "?"),
        ("accent", "?"),  # and sf, sfz, fp
        ("fermata", "?"),
        ("ornament", "?"),
        ("tuplet", "?"),
    ]
)


@dataclass
class Score:
    """A score as a player reads it, repeats played or not.

    Attributes:
        notes: [notes] of `SCORE_NOTE_DTYPE`, sorted by onset_div, then pitch; the order of the file breaks ties.
        divisions: Divisions of `onset_div` in a quarter note.
        title: "" where the page has none.
        warnings: What the reader had to mend, one sentence each.
    """

    notes: np.ndarray = field(default_factory=partial(np.empty, 0, SCORE_NOTE_DTYPE))
    divisions: int = 480
    title: str = ""
    warnings: list[str] = field(default_factory=list)

    def with_notes(self, notes: np.ndarray) -> Score:
        """The same score with other notes, [notes] of `SCORE_NOTE_DTYPE`."""
        return replace(self, notes=notes)

    def beats(self, quarters: ArrayLike) -> np.ndarray:
        """Score times in quarters -> beats, float64, same shape; exact at onsets and ends of notes."""
        return _converted(self.notes, "quarter", "beat", quarters)

    def quarters(self, beats: ArrayLike) -> np.ndarray:
        """Score times in beats -> quarters, float64, same shape; exact at onsets and ends of notes."""
        return _converted(self.notes, "beat", "quarter", beats)


def _converted(notes: np.ndarray, source: str, target: str, times: ArrayLike) -> np.ndarray:
    """Times of one unit in another: linear between the onsets and ends of notes, and beyond them as at their edge."""
    knots = [
        np.concatenate([notes[f"onset_{unit}"], notes[f"onset_{unit}"] + notes[f"duration_{unit}"]])
        for unit in (source, target)
    ]
    _, first = np.unique(np.round(knots[0], 6), return_index=True)
    x, y = knots[0][first], knots[1][first]
    times = np.asarray(times, np.float64)
    converted = np.interp(times, x, y)
    if len(x) > 1:
        slope = np.diff(y) / np.diff(x)
        converted += slope[0] * np.minimum(times - x[0], 0) + slope[-1] * np.maximum(times - x[-1], 0)
    return converted


def deadpan(score: Score, bpm: float | None = None) -> Performance:
    """The score played without expression: in tempo, notes as long as written, velocity 64, no pedal.

    Args:
        score: Row i of its notes becomes row i of the performance, on one track.
        bpm: Quarter notes a minute at the beginning; later tempo marks keep their proportion to it. None: the tempo
            of the page, 120 until it says one.

    Returns:
        Grace notes last an eighth of a quarter note and sound with their main note.
    """
    rows = score.notes
    scale = -(-_LEAST_RESOLUTION // score.divisions)
    notes = np.zeros(len(rows), NOTE_DTYPE)
    notes["onset_tick"] = rows["onset_div"] * scale
    grace_ticks = score.divisions * scale // GRACE_SHARE
    notes["duration_tick"] = np.where(rows["duration_div"] > 0, rows["duration_div"] * scale, grace_ticks)
    clock = _deadpan_clock(notes["onset_tick"], rows["tempo"], bpm, score.divisions * scale)
    notes["onset_sec"] = clock.seconds(notes["onset_tick"])
    notes["duration_sec"] = clock.seconds(notes["onset_tick"] + notes["duration_tick"]) - notes["onset_sec"]
    notes["pitch"] = rows["pitch"]
    notes["velocity"] = DEADPAN_VELOCITY
    return Performance(notes=notes, tempos=clock.table(), ticks_per_quarter=clock.ticks_per_quarter)


def _deadpan_clock(ticks: np.ndarray, tempo: np.ndarray, bpm: float | None, ticks_per_quarter: int) -> TempoMap:
    """The tempo of the page as a tempo map; a change takes effect at the next note.

    Args:
        ticks: Onsets in ascending order, [notes].
        tempo: Quarter notes a minute, NaN where the page says none, [notes].
        bpm: As in `deadpan`.
        ticks_per_quarter: Resolution.
    """
    tempo = np.where(np.isnan(tempo), DEFAULT_TEMPO, tempo.astype(np.float64))
    if bpm is not None:
        tempo = tempo * (bpm / tempo[0])
    changes = np.flatnonzero(np.diff(tempo, prepend=0))
    starts, last = np.unique(np.append(0, ticks[changes[1:]]), return_index=True)
    return TempoMap(starts, np.rint(60e6 / tempo[changes][last]), ticks_per_quarter)
