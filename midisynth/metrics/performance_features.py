"""Performance features: what a player does beyond tempo and loudness, note by note.

Asynchrony within chords, articulation (key overlap: Repp 1997), dynamics against the markings (Kosta et al. 2016) and
against the tempo (Todd 1992), pedalling; as Zhang et al. (2024, arXiv 2406.14850) compute them. Their form has numbers
where there is nothing to measure, looks at the lowest-numbered voice alone, takes every controller for the pedal and
puts the consistency of a marking on other beats. The default is NaN there, all voices, and the sustain pedal;
`published` gives theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from midisynth.metrics.expression import group_means, onset_groups

#: Markings of loudness that have an order.
MARKINGS = ("ppp", "pp", "p", "mp", "mf", "f", "ff", "fff")
#: Every feature, in the order of `performance_features`.
FEATURES = (
    *("asynchrony.delta", "asynchrony.pitch_cor", "asynchrony.vel_cor", "asynchrony.pitch_vel_cor"),
    *("asynchrony.voice_std", "articulation.kor", "articulation.kot", "dynamics.agreement"),
    *("dynamics.consistency_std", "dynamics.ramp_cor", "dynamics.tempo_cor", "pedal.onset_value"),
    *("pedal.offset_value", "pedal.to_prev_release", "pedal.to_next_release", "pedal.pedal_coverage"),
)

_WINDOW_BEATS = 5  # tempo and loudness are compared this far around an onset
_LONGEST_SPREAD_SEC = 1.0
_LARGEST_OVERLAP = 5.0
_LONGEST_WAIT_SEC = 10.0
_PEDAL_DOWN = 64
_PEDAL_TOUCHED = 10
_PEDAL_SAMPLES = 500  # of the published form
_SAME_BEAT = 1e-4


@dataclass(frozen=True)
class PlayedNotes:
    """Matched notes of a performance in the order of the score: by onset, then pitch.

    Attributes:
        onset_beat: [notes] of the score, in beats.
        duration_beat: [notes] of the score, in beats.
        pitch: [notes], MIDI key numbers.
        voice: [notes].
        onset_sec: [notes] as performed, in seconds.
        duration_sec: [notes] as performed, in seconds; to the release of the key, or with the pedal where published.
        velocity: [notes], 1 to 127.
        beat_period: [notes], seconds a beat.
        marking: [notes] of strings: the marking of loudness that begins at a note, "" elsewhere.
        crescendo: [notes], how far a crescendo has come (0 to 1), 0 outside.
        diminuendo: [notes], the same of diminuendi.
        pedal_sec: [events], times of the pedal's controller events, in seconds, in time order.
        pedal_value: [events], 0 to 127.
    """

    onset_beat: np.ndarray
    duration_beat: np.ndarray
    pitch: np.ndarray
    voice: np.ndarray
    onset_sec: np.ndarray
    duration_sec: np.ndarray
    velocity: np.ndarray
    beat_period: np.ndarray
    marking: np.ndarray
    crescendo: np.ndarray
    diminuendo: np.ndarray
    pedal_sec: np.ndarray
    pedal_value: np.ndarray


def performance_features(notes: PlayedNotes, published: bool = False) -> dict[str, np.ndarray]:
    """All of `FEATURES`, [notes] each.

    Args:
        notes: What was played.
        published: As published: numbers instead of NaN where a feature is not defined, see the module.
    """
    return {
        **asynchrony(notes, published),
        **articulation(notes, published),
        **dynamics(notes, published),
        **pedal(notes, published),
    }


def asynchrony(notes: PlayedNotes, published: bool = False) -> dict[str, np.ndarray]:
    """How the notes of a chord are spread, the same number for all of them.

    delta: last minus first onset (seconds, at most 1). pitch_cor, vel_cor: correlation of earliness with pitch and
    velocity. pitch_vel_cor: correlation of the latter two. voice_std: spread of the mean onsets of the voices (seconds,
    at most 1).

    Args:
        notes: What was played.
        published: Correlations that are not defined, and what single notes have, are 0 instead of NaN.
    """
    _, group = onset_groups(notes.onset_beat)
    first, last = _extremes(notes.onset_sec, group)
    columns = {
        "delta": np.minimum(last - first, _LONGEST_SPREAD_SEC),
        "pitch_cor": -_group_correlation(notes.pitch, notes.onset_sec, group),
        "vel_cor": -_group_correlation(notes.velocity, notes.onset_sec, group),
        "pitch_vel_cor": _group_correlation(notes.velocity, notes.pitch, group),
        "voice_std": np.minimum(_voice_spread(notes, group), _LONGEST_SPREAD_SEC),
    }
    if published:
        columns = {name: np.nan_to_num(column) for name, column in columns.items()}
    else:
        alone = np.bincount(group) == 1
        columns |= {name: np.where(alone, np.nan, columns[name]) for name in ("delta", "voice_std")}
    return {f"asynchrony.{name}": column[group] for name, column in columns.items()}


def _extremes(values: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of each group."""
    low, high = np.full(group.max() + 1, np.inf), np.full(group.max() + 1, -np.inf)
    np.minimum.at(low, group, values)
    np.maximum.at(high, group, values)
    return low, high


def _group_correlation(first: np.ndarray, second: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Pearson correlation within each group; NaN where one side is constant."""
    constant = np.any([np.equal(*_extremes(side, group)) for side in (first, second)], axis=0)
    first, second = (side - group_means(np.asarray(side, np.float64), group)[group] for side in (first, second))
    products = [np.bincount(group, a * b) for a, b in ((first, second), (first, first), (second, second))]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(constant, np.nan, products[0] / np.sqrt(products[1] * products[2]))


def _voice_spread(notes: PlayedNotes, group: np.ndarray) -> np.ndarray:
    """Standard deviation of the mean onsets of the voices in each group (seconds)."""
    pairs, member = np.unique(np.stack([group, notes.voice]), axis=1, return_inverse=True)
    onset = group_means(notes.onset_sec.astype(np.float64), member.ravel())
    owner = pairs[0].astype(np.intp)
    return np.sqrt(group_means(np.square(onset - group_means(onset, owner)[owner]), owner))


def articulation(notes: PlayedNotes, published: bool = False) -> dict[str, np.ndarray]:
    """How a note is joined to its successor in the voice: the next onset, if it is where the note ends in the score.

    kot: from the successor's onset to the note's release (seconds, at most 5); negative where there is a gap. kor: the
    same relative to the time between both onsets (at most 5). In a chord the successor is the nearest in pitch.

    Args:
        notes: What was played.
        published: The lowest-numbered voice alone, and -1 where there is no successor.
    """
    successor = successors(notes, published)
    has = np.flatnonzero(successor >= 0)
    after = successor[has]
    overlap = notes.onset_sec[has] + notes.duration_sec[has] - notes.onset_sec[after]
    interval = notes.onset_sec[after] - notes.onset_sec[has]
    ratio = np.divide(overlap, interval, out=np.zeros(len(has)), where=interval > 0)
    if not published:
        ratio[interval <= 0] = np.nan
    columns = {name: np.full(len(successor), -1.0 if published else np.nan) for name in ("kor", "kot")}
    columns["kor"][has] = np.minimum(ratio, _LARGEST_OVERLAP)
    columns["kot"][has] = np.minimum(overlap, _LARGEST_OVERLAP)
    return {f"articulation.{name}": column for name, column in columns.items()}


def successors(notes: PlayedNotes, published: bool = False) -> np.ndarray:
    """The note that each note leads to in its voice, see `articulation`, [notes] of indices; -1 for none.

    Args:
        notes: What was played.
        published: The lowest-numbered voice alone; beats are compared in single precision, to the last bit.
    """
    precision, tolerance = (np.float32, 0.0) if published else (np.float64, _SAME_BEAT)
    onset = notes.onset_beat.astype(precision)
    end = onset + notes.duration_beat.astype(precision)
    found = np.full(len(onset), -1)
    for voice in np.unique(notes.voice)[: 1 if published else None]:
        members = np.flatnonzero(notes.voice == voice)
        moments = np.unique(onset[members])
        after = np.searchsorted(moments, onset[members] + tolerance, side="right")
        follows = after < len(moments)
        follows &= np.abs(moments[np.minimum(after, len(moments) - 1)] - end[members]) <= tolerance
        for note, moment in zip(members[follows], moments[after[follows]], strict=True):
            candidates = members[onset[members] == moment]
            found[note] = candidates[np.abs(notes.pitch[candidates] - notes.pitch[note]).argmin()]
    return found


def dynamics(notes: PlayedNotes, published: bool = False) -> dict[str, np.ndarray]:
    """How loudness follows the tempo and the markings.

    tempo_cor: correlation of tempo and velocity over the onsets within 5 beats. agreement, where a marking begins: 1 if
    the change from the marking before goes in the right direction, else -1. consistency_std, there too: standard
    deviation of the velocities at all places with this marking. ramp_cor, within crescendi and diminuendi: correlation
    of velocity with the progress of the marking, positive where it goes in the right direction.

    Args:
        notes: What was played.
        published: 0 instead of NaN, nothing of markings where there are fewer than two, and the errors of the original
            in placing the consistency and in bounding ramps.
    """
    beats, group = onset_groups(notes.onset_beat)
    lead = np.unique(group, return_index=True)[1]
    velocity = group_means(notes.velocity.astype(np.float64), group)
    columns = {name: np.full(len(beats), np.nan) for name in ("agreement", "consistency_std", "ramp_cor")}
    columns["tempo_cor"] = _windowed_correlation(beats, 1 / notes.beat_period[lead].astype(np.float64), velocity)
    if published:
        columns = {name: np.nan_to_num(column) for name, column in columns.items()}
        _published_markings(columns, notes, beats, group, velocity)
        ramps = (notes.crescendo, 1, published_ramps), (notes.diminuendo, -1, published_ramps)
    else:
        _markings(columns, _marking_by_group(notes, group), velocity)
        ramps = (notes.crescendo, 1, rising_ramps), (notes.diminuendo, -1, rising_ramps)
    marked = np.isin(notes.marking[lead], MARKINGS).sum() >= 2
    for ramp, sign, bounds in ramps if marked or not published else ():
        progress = np.asarray(ramp[lead], np.float64)
        for start, stop, covered in bounds(progress):
            value = sign * _plain_correlation(progress[start:stop], velocity[start:stop])
            columns["ramp_cor"][start:covered] = np.nan_to_num(value) if published else value
    return {f"dynamics.{name}": columns[name][group] for name in sorted(columns)}


def _windowed_correlation(beats: np.ndarray, tempo: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """Correlation of two curves in a window around each onset; NaN where one of them is constant there."""
    start = np.searchsorted(beats, beats - _WINDOW_BEATS - _SAME_BEAT)
    stop = np.searchsorted(beats, beats + _WINDOW_BEATS + _SAME_BEAT, side="right")
    return np.array(
        [_plain_correlation(tempo[low:high], velocity[low:high]) for low, high in zip(start, stop, strict=True)]
    )


def _plain_correlation(first: np.ndarray, second: np.ndarray) -> float:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return np.nan
    first, second = first - first.mean(), second - second.mean()
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


def _marking_by_group(notes: PlayedNotes, group: np.ndarray) -> np.ndarray:
    """Position in `MARKINGS` of the marking that begins at each onset, -1 where none does, [groups]."""
    ranks = np.full(group.max() + 1, -1)
    for rank, name in enumerate(MARKINGS):
        ranks[group[notes.marking == name]] = rank
    return ranks


def _markings(columns: dict[str, np.ndarray], ranks: np.ndarray, velocity: np.ndarray) -> None:
    places = np.flatnonzero(ranks >= 0)
    # The same marking again asks for no change.
    turns = np.flatnonzero(np.diff(ranks[places])) + 1
    change = np.sign(np.diff(ranks[places]) * np.diff(velocity[places]))
    columns["agreement"][places[turns]] = change[turns - 1]
    for rank in np.unique(ranks[places]):
        same = places[ranks[places] == rank]
        if len(same) > 1:
            columns["consistency_std"][same] = velocity[same].std()


def _published_markings(
    columns: dict[str, np.ndarray], notes: PlayedNotes, beats: np.ndarray, group: np.ndarray, velocity: np.ndarray
) -> None:
    """Agreement and consistency where the original puts them."""
    # Where any note of a chord begins a marking, its first note tells which; it may tell none.
    places = np.unique(group[notes.marking != ""])
    names = np.array([notes.marking[np.flatnonzero(group == place)[0]] or "N/A" for place in places], dtype=object)
    known = [
        (MARKINGS.index(name), velocity[place]) for name, place in zip(names, places, strict=True) if name in MARKINGS
    ]
    if len(known) < 2:
        return
    # Places are counted with the unknown markings, pairs without.
    for (rank, loud), (next_rank, next_loud), place in zip(known, known[1:], places[1:], strict=False):
        # The original adds a trifle to the second of each pair, so that equals count as rising.
        columns["agreement"][place] = (1 if next_rank >= rank else -1) * (1 if next_loud + 1e-5 > loud else -1)
    for name, place in zip(sorted(set(names)), places, strict=False):
        columns["consistency_std"][place] = velocity[places[names == name]].std()


def rising_ramps(progress: np.ndarray) -> list[tuple[int, int, int]]:
    """Stretches in which a crescendo or diminuendo goes on.

    Args:
        progress: [groups], 0 outside, rising inside.

    Returns:
        For each first group, the end of the stretch, and again the end.
    """
    inside = np.concatenate([[False], progress > 0, [False]])
    starts, stops = (np.flatnonzero(np.diff(inside.astype(int)) == edge) for edge in (1, -1))
    # One ramp may follow another without a pause.
    again = np.flatnonzero((np.diff(progress) < 0) & (progress[1:] > 0)) + 1
    edges = sorted({*starts, *again}), sorted({*stops, *again})
    return [(int(start), int(stop), int(stop)) for start, stop in zip(*edges, strict=True)]


def published_ramps(progress: np.ndarray) -> list[tuple[int, int, int]]:
    """The same as the original finds them: wherever the progress begins or ceases to change.

    Args:
        progress: [groups].

    Returns:
        For each first group, the end of what is compared, and the end of what is told about it.
    """
    changes = np.diff(progress, prepend=progress[0]) != 0
    edges = np.flatnonzero(np.diff(changes, prepend=changes[0]))
    return [(int(start), int(stop), int(stop) + 1) for start, stop in zip(edges[::2], edges[1::2], strict=False)]


def pedal(notes: PlayedNotes, published: bool = False) -> dict[str, np.ndarray]:
    """Where the pedal is when keys go down and up.

    onset_value, offset_value: of the controller (0 to 127). to_prev_release: from the release of the pedal before to
    the note's onset (seconds, at most 10). to_next_release: from the note's end to the next release. pedal_coverage:
    share of the time up to the last event with a value above 10, the same for all notes.

    Args:
        notes: What was played.
        published: Values are interpolated between events and 0 beyond them, releases are dips of at least 10 on 500
            samples, and what is missing is 0.
    """
    times, values = notes.pedal_sec, notes.pedal_value.astype(np.float64)
    end_sec = notes.onset_sec + notes.duration_sec
    if published:
        # In single precision an end may fall on the other side of a release, where the interpolated curve is steep.
        end_sec = (notes.onset_sec.astype(np.float32) + notes.duration_sec.astype(np.float32)).astype(np.float64)
        times, values = (times, values) if len(times) > 1 else (np.zeros(2), np.zeros(2))
        samples = np.linspace(0, times[-1], _PEDAL_SAMPLES)
        order = np.argsort(times, kind="stable")
        at = [np.interp(moments, times[order], values[order], 0, 0) for moments in (notes.onset_sec, end_sec, samples)]
        releases = samples[_dips(at[2])]
        coverage = np.count_nonzero(at[2] > _PEDAL_TOUCHED) / _PEDAL_SAMPLES if times[-1] else 0.0
    else:
        at = [_held(times, values, moments) for moments in (notes.onset_sec, end_sec)]
        down = np.concatenate([[False], values >= _PEDAL_DOWN])
        releases = times[down[:-1] & ~down[1:]]
        coverage = _coverage(times, values, float(max(end_sec.max(initial=0), times.max(initial=0))))
    before = np.searchsorted(releases, notes.onset_sec, side="right") - 1
    after = np.searchsorted(releases, end_sec)
    bounds = np.concatenate([releases, [np.nan]])
    since = np.where(before >= 0, notes.onset_sec - bounds[before], np.nan)
    until = bounds[after] - end_sec
    columns = {
        "onset_value": at[0],
        "offset_value": at[1],
        "to_prev_release": np.minimum(since, _LONGEST_WAIT_SEC),
        "to_next_release": np.minimum(until, _LONGEST_WAIT_SEC),
        "pedal_coverage": np.full(len(end_sec), coverage),
    }
    return {f"pedal.{name}": np.nan_to_num(column) if published else column for name, column in columns.items()}


def _dips(curve: np.ndarray) -> np.ndarray:
    from scipy.signal import find_peaks

    return find_peaks(-curve, prominence=_PEDAL_TOUCHED)[0]


def _held(times: np.ndarray, values: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Value of a controller at some moments; it stays until the next event, and is 0 before the first."""
    return np.concatenate([[0.0], values])[np.searchsorted(times, moments, side="right")]


def _coverage(times: np.ndarray, values: np.ndarray, end_sec: float) -> float:
    if end_sec <= 0:
        return 0.0
    lengths = np.diff(times, append=end_sec)
    return float(lengths[values > _PEDAL_TOUCHED].sum() / end_sec)
