"""What a network gets to know of the notes of a score."""

from __future__ import annotations

from typing import Literal

import numpy as np

from midisynth.models.dexter.playing import is_grace
from midisynth.models.dexter.sounding import Sounding
from midisynth.music.score_notes import DEFAULT_TEMPO, Score

Kind = Literal["published", "rich"]

#: Rows of the published models, raw: their networks scale them.
PUBLISHED = ("onset_div", "duration_div", "pitch", "voice")

#: Columns of the rich features. "Log" is log2 of quarters, halved and kept within -3..3; a semitone is 1/12.
RICH = {
    # The note
    "pitch": "octaves above E4",
    "duration": "log of the written duration; -3 for a grace note",
    "grace": "1 for a grace note",
    "lower_staff": "1 below the first staff of its part",
    # Its neighbours
    "ioi_before": "log of the time since the last onset of any voice",
    "ioi_after": "log of the time until the next onset of any voice",
    "voice_ioi_before": "log of the time since the last onset of its voice",
    "voice_ioi_after": "log of the time until the next onset of its voice",
    "rest_after": "log2(1 + quarters) of silence in its voice after it",
    "silence_before": "log2(1 + quarters) for which nothing sounds before it",
    "interval_before": "from the last notes of its voice, octaves within -2..2",
    "interval_after": "to the next notes of its voice, octaves within -2..2",
    # Its chord
    "chord_size": "log2 of the notes that begin with it",
    "chord_rank": "place among them by pitch, 0 lowest to 1 highest; 1 if it is alone",
    "highest": "1 if nothing that sounds is higher",
    "lowest": "1 if nothing that sounds is lower",
    "above_bass": "octaves above the lowest note that sounds",
    "below_top": "octaves below the highest note that sounds",
    "dissonance": "mean roughness of the intervals that sound, 0..1",
    # Its surroundings
    "density": "log2(1 + onsets a quarter) within 2 quarters",
    "density_change": "log2 of the density of the next 2 quarters / that of the last 2",
    "relative_pitch": "octaves above the mean of 4 quarters to both sides",
    "pitch_spread": "standard deviation of pitch within 4 quarters, octaves",
    "contour": "mean pitch of the next 4 quarters less that of the last 4, octaves",
    # Metre
    "bar_sin": "place in the bar, sine",
    "bar_cos": "place in the bar, cosine",
    "beat_sin": "place in the beat, sine",
    "beat_cos": "place in the beat, cosine",
    "strength": "1 on the downbeat, 0.75 on main beats, 0.5 on beats, 0.25 on their halves, 0.1 elsewhere",
    "bar_length": "log2 of the beats in a bar, less 2",
    "beat_unit": "log2 of the quarters in a beat",
    # Key
    "fifths_sin": "fifths above the tonic, sine on their circle",
    "fifths_cos": "fifths above the tonic, cosine on their circle",
    "chromatic": "1 outside the scale of the key signature",
    "minor": "1 in a minor key",
    # Marks
    "tempo": "log2 of the notated quarters a minute / 120; 0 without a mark",
    "has_tempo": "1 if the page names a tempo",
    "tempo_change": "1 in an accelerando, -1 in a ritardando",
    "loudness": "(velocity of the dynamic mark - 64) / 32; 0 without a mark",
    "has_loudness": "1 if the page names a dynamic",
    "loudness_change": "progress in a crescendo, 0..1, or diminuendo, 0..-1",
    "slur": "1 under a slur",
    "slur_start": "1 where its voice enters a slur",
    "slur_end": "1 where its voice leaves a slur",
    "staccato": "1 with a dot",
    "tenuto": "1 with a line",
    "accent": "1 with an accent",
    "ornament": "1 with a trill, turn or mordent",
    "tuplet": "1 in a tuplet",
    "fermata": "1 if any note of its onset has a fermata",
    "before_fermata": "1 at a fermata, halved with every quarter before it",
    # Form
    "progress": "share of the piece before it",
    "after_start": "1 at the first onset, halved with every 2 bars",
    "before_end": "1 at the last onset, halved with every 2 bars before it",
    "last_bar": "1 at the last onset, halved with every half bar before it",
    # The piece as a whole, so that a window knows what it is part of
    "piece_ioi": "mean of `ioi_after`",
    "piece_density": "log2(1 + onsets a quarter) of the whole piece",
    "piece_pitch": "mean of `pitch`",
}


def feature_count(kind: Kind) -> int:
    """Columns of `score_features`."""
    return len(PUBLISHED if kind == "published" else RICH)


def score_features(score: Score, kind: Kind) -> np.ndarray:
    """What a network reads of each note.

    Args:
        score: At least one note.
        kind: "published": the four columns of the published models, raw. "rich": what is printed around a note, in
            units of about 1; every number is finite.

    Returns:
        [notes, columns] float32, columns as in `PUBLISHED` or `RICH`.
    """
    notes = score.notes
    if kind == "published":
        return np.stack([notes[name] for name in PUBLISHED], axis=1).astype(np.float32)
    columns: dict[str, np.ndarray | float] = {
        **_note(notes),
        **_neighbours(notes),
        **_chord(notes),
        **_surroundings(notes),
        **_metre(notes),
        **_key(notes),
        **_marks(notes),
        **_form(notes),
    }
    columns["piece_ioi"] = float(np.mean(columns["ioi_after"]))
    columns["piece_pitch"] = float(np.mean(columns["pitch"]))
    table = np.empty((len(notes), len(RICH)), np.float32)
    for index, name in enumerate(RICH):
        table[:, index] = columns[name]
    return table


def _log(quarters: np.ndarray) -> np.ndarray:
    return np.clip(np.log2(np.maximum(quarters, 1e-9)) / 2, -3.0, 3.0)


def _note(notes: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "pitch": (notes["pitch"] - 64) / 12,
        "duration": np.where(is_grace(notes), -3.0, _log(notes["duration_quarter"])),
        "grace": is_grace(notes),
        "lower_staff": notes["staff"] > 1,
    }


def _steps(onset: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Quarters from the last of some sorted, different onsets and to the next; at the ends, as far as inside."""
    step = np.diff(onset)
    if len(step) == 0:
        step = np.array([max(end - onset[0], 1e-9)])
        return step, step
    return np.append(step[0], step), np.append(step, max(end - onset[-1], step[-1]))


def _neighbours(notes: np.ndarray) -> dict[str, np.ndarray]:
    onset, ends = notes["onset_quarter"], notes["onset_quarter"] + notes["duration_quarter"]
    _, first, group = np.unique(notes["onset_div"], return_index=True, return_inverse=True)
    before, after = _steps(onset[first], float(ends.max()))
    sounding_until = np.maximum.accumulate(np.maximum.reduceat(ends, first))
    silence = np.append(0.0, np.maximum(onset[first][1:] - sounding_until[:-1], 0.0))
    # The notes of a voice that begin together count as one, at their mean pitch.
    keys = np.stack([notes["part"], notes["voice"], notes["onset_div"]], axis=1)
    keys, leader, chord = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    chord = chord.ravel()
    count = np.bincount(chord)
    pitch = np.bincount(chord, notes["pitch"]) / count
    chord_end = np.zeros(len(keys))
    np.maximum.at(chord_end, chord, ends)
    follows = (np.diff(keys[:, :2], axis=0) == 0).all(1)
    step, interval = np.diff(onset[leader]), np.diff(pitch)
    rest = np.maximum(onset[leader][1:] - chord_end[:-1], 0.0)
    own = ends[leader] - onset[leader]
    return {
        "ioi_before": _log(before)[group],
        "ioi_after": _log(after)[group],
        "silence_before": np.log2(1 + silence)[group],
        "voice_ioi_before": _log(np.append(own[0], np.where(follows, step, own[1:])))[chord],
        "voice_ioi_after": _log(np.append(np.where(follows, step, own[:-1]), own[-1]))[chord],
        "rest_after": np.log2(1 + np.append(np.where(follows, rest, 0.0), 0.0))[chord],
        "interval_before": np.clip(np.append(0.0, np.where(follows, interval, 0.0)) / 12, -2, 2)[chord],
        "interval_after": np.clip(np.append(np.where(follows, interval, 0.0), 0.0) / 12, -2, 2)[chord],
    }


def _chord(notes: np.ndarray) -> dict[str, np.ndarray]:
    _, group, size = np.unique(notes["onset_div"], return_inverse=True, return_counts=True)
    # Notes of an onset are sorted by pitch.
    place = np.arange(len(notes)) - (np.cumsum(size) - size)[group]
    alone = size[group] == 1
    sounding = Sounding.of(notes)
    lowest, highest = sounding.lowest[group], sounding.highest[group]
    return {
        "chord_size": np.log2(size)[group],
        "chord_rank": np.where(alone, 1.0, place / np.maximum(size[group] - 1, 1)),
        "highest": notes["pitch"] >= highest,
        "lowest": notes["pitch"] <= lowest,
        "above_bass": (notes["pitch"] - lowest) / 12,
        "below_top": (highest - notes["pitch"]) / 12,
        "dissonance": sounding.dissonance[group],
    }


class _Windows:
    """Sums of a column over the notes whose onsets (quarters) lie in windows around each note."""

    def __init__(self, onset: np.ndarray):
        self.onset = onset

    def sums(self, column: np.ndarray, before: float, after: float) -> np.ndarray:
        """Over onsets from `before` quarters earlier up to less than `after` quarters later, [notes]."""
        total = np.concatenate([[0.0], np.cumsum(column)])
        first = np.searchsorted(self.onset, self.onset - before - 1e-6)
        last = np.searchsorted(self.onset, self.onset + after - 1e-6)
        return total[last] - total[first]


def _surroundings(notes: np.ndarray) -> dict[str, np.ndarray | float]:
    onset, octave = notes["onset_quarter"], (notes["pitch"] - 64) / 12
    windows = _Windows(onset)
    # Chords count once, shared among their notes.
    _, group, size = np.unique(notes["onset_div"], return_inverse=True, return_counts=True)
    share, one = 1 / size[group], np.ones(len(notes))
    count = windows.sums(one, 4, 4)
    mean = windows.sums(octave, 4, 4) / count
    variance = windows.sums(octave**2, 4, 4) / count - mean**2
    past = windows.sums(octave, 4, 0)
    past_count = windows.sums(one, 4, 0)
    past_mean = np.divide(past, past_count, out=octave.copy(), where=past_count > 0)
    future_mean = windows.sums(octave, 0, 4) / windows.sums(one, 0, 4)
    length = max(float((onset + notes["duration_quarter"]).max() - onset[0]), 1e-9)
    return {
        "density": np.log2(1 + windows.sums(share, 2, 2) / 4),
        "density_change": np.clip(np.log2((1 + windows.sums(share, 0, 2)) / (1 + windows.sums(share, 2, 0))), -3, 3),
        "relative_pitch": octave - mean,
        "pitch_spread": np.sqrt(np.maximum(variance, 0.0)),
        "contour": future_mean - past_mean,
        "piece_density": float(np.log2(1 + len(size) / length)),
    }


def _metre(notes: np.ndarray) -> dict[str, np.ndarray]:
    place, beats = notes["bar_beat"], np.maximum(notes["bar_beats"], 1e-3)
    main = np.select([np.isin(np.rint(beats), (6, 9, 12)), np.rint(beats) % 2 == 0], [3.0, 2.0], 1e9)

    def on(period: np.ndarray | float) -> np.ndarray:
        return np.abs(place - np.rint(place / period) * period) < 1e-3

    strength = np.select([np.abs(place) < 1e-3, on(main), on(1.0), on(0.5)], [1.0, 0.75, 0.5, 0.25], 0.1)
    timed = ~is_grace(notes) & (notes["duration_beat"] > 0)
    unit = float(np.median(notes["duration_quarter"][timed] / notes["duration_beat"][timed])) if timed.any() else 1.0
    quarters = np.divide(notes["duration_quarter"], notes["duration_beat"], out=np.full(len(notes), unit), where=timed)
    bar, beat = 2 * np.pi * place / beats, 2 * np.pi * place
    return {
        "bar_sin": np.sin(bar),
        "bar_cos": np.cos(bar),
        "beat_sin": np.sin(beat),
        "beat_cos": np.cos(beat),
        "strength": strength,
        "bar_length": np.log2(beats) - 2,
        "beat_unit": np.log2(quarters),
    }


def _key(notes: np.ndarray) -> dict[str, np.ndarray]:
    # Pitch classes in fifths from C, so that a scale is seven neighbours from one below its major tonic on.
    fifths = (notes["pitch"] * 7 - notes["fifths"]) % 12
    tonic = np.where(notes["minor"], 3, 0)
    angle = 2 * np.pi * (fifths - tonic) / 12
    return {
        "fifths_sin": np.sin(angle),
        "fifths_cos": np.cos(angle),
        "chromatic": (fifths + 1) % 12 > 6,
        "minor": notes["minor"],
    }


def _marks(notes: np.ndarray) -> dict[str, np.ndarray]:
    tempo, loudness = notes["tempo"].astype(np.float64), notes["loudness"].astype(np.float64)
    _, group = np.unique(notes["onset_div"], return_inverse=True)
    fermata = (np.bincount(group, notes["fermata"]) > 0)[group]
    held = np.append(notes["onset_quarter"][fermata], np.inf)
    wait = held[np.searchsorted(held, notes["onset_quarter"] - 1e-6)] - notes["onset_quarter"]
    order = np.lexsort((notes["onset_div"], notes["voice"], notes["part"]))
    slur = notes["slur"][order]
    same = np.append(False, np.diff(notes["voice"][order]) == 0)
    start, end = np.zeros(len(notes), bool), np.zeros(len(notes), bool)
    start[order] = slur & ~(same & np.append(False, slur[:-1]))
    end[order] = slur & ~np.append(same[1:] & slur[1:], False)
    return {
        "tempo": np.nan_to_num(np.log2(np.where(tempo > 0, tempo, np.nan) / DEFAULT_TEMPO)),
        "has_tempo": tempo > 0,
        "loudness": np.nan_to_num((loudness - 64) / 32),
        "has_loudness": np.isfinite(loudness),
        "slur_start": start,
        "slur_end": end,
        "fermata": fermata,
        "before_fermata": np.exp2(-np.maximum(wait, 0.0)),
        **{
            name: notes[name]
            for name in (
                "tempo_change",
                "loudness_change",
                "slur",
                "staccato",
                "tenuto",
                "accent",
                "ornament",
                "tuplet",
            )
        },
    }


def _form(notes: np.ndarray) -> dict[str, np.ndarray]:
    bars = notes["bar"] + notes["bar_beat"] / np.maximum(notes["bar_beats"], 1e-3)
    since, left = np.maximum(bars - bars[0], 0.0), np.maximum(bars[-1] - bars, 0.0)
    return {
        "progress": since / np.maximum(since + left, 1e-9),
        "after_start": np.exp2(-since / 2),
        "before_end": np.exp2(-left / 2),
        "last_bar": np.exp2(-left * 2),
    }
