"""What the sustain pedal does to notes: the one rule that every model uses."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

import numpy as np

from midisynth.music.notes import Performance, is_drum

SUSTAIN = 64  # controller number

_SAME_MOMENT = 1e-9  # seconds; onset plus duration misses another event at the same tick by the last bit of a float
_DOWN, _UP, _ON, _OFF = range(4)  # the order of events at one moment, as in note_seq


def extend_by_pedal(
    performance: Performance, threshold: int = 64, group: Literal["channel", "instrument"] = "channel"
) -> Performance:
    """Let notes sound until key and pedal are up.

    A new stroke of a key that still sounds ends the earlier note. A pedal that is never released holds until the last
    event. Drums are left alone. Controllers are kept; a second application changes nothing.

    Args:
        performance: Notes as they were played, with their controllers.
        threshold: Pedal values from here on are down (0 to 127).
        group: What shares a pedal. "channel": everything on a MIDI channel, in whichever track the pedal stands, as
            synthesizers play it. "instrument": what is on one channel of one track; there a stroke ends the earlier
            note only under the pedal, which is exactly `apply_sustain_control_changes` of note_seq.

    Returns:
        The performance with other note lengths. Of several strokes of a key at one moment the longest stays.
    """
    if group not in ("channel", "instrument"):
        raise ValueError(f"group must be 'channel' or 'instrument', not {group!r}")
    notes = performance.notes
    times, ticks, moments, kinds, owners, indices = _events(performance, threshold, group)
    keys = (notes["program"] * 128 + notes["pitch"]).tolist()
    enders, dropped = _walk(
        keys, moments.tolist(), kinds.tolist(), owners.tolist(), indices.tolist(), always_cut=group == "channel"
    )
    if not enders:
        return performance.with_notes(np.delete(notes, dropped))
    extended = notes.copy()
    changed, by = np.array(list(enders)), np.array(list(enders.values()))
    extended["duration_sec"][changed] = times[by] - notes["onset_sec"][changed]
    extended["duration_tick"][changed] = ticks[by] - notes["onset_tick"][changed]
    return performance.with_notes(np.delete(extended, dropped))


def _events(performance: Performance, threshold: int, group: str) -> tuple[np.ndarray, ...]:
    """Pedal and note events in the order in which they act.

    Returns:
        Times (seconds), ticks, moments (counted), kinds, owners of a pedal and note indices (-1 for pedals), each
        [events].
    """
    notes = performance.notes
    pedals = performance.controls[performance.controls["number"] == SUSTAIN]
    index = np.flatnonzero(~is_drum(notes))
    played = notes[index]

    def owner(table: np.ndarray) -> np.ndarray:
        return table["channel"] if group == "channel" else table["track"] * 16 + table["channel"]

    onset, end = played["onset_sec"], played["onset_sec"] + played["duration_sec"]
    onset_tick, end_tick = played["onset_tick"], played["onset_tick"] + played["duration_tick"]
    times = np.concatenate([pedals["time_sec"], onset, end])
    ticks = np.concatenate([pedals["tick"], onset_tick, end_tick])
    pedal_kinds = np.where(pedals["value"] >= threshold, _DOWN, _UP)
    kinds = np.concatenate([pedal_kinds, np.full(len(played), _ON), np.full(len(played), _OFF)])
    owners = np.concatenate([owner(pedals), owner(played), owner(played)])
    indices = np.concatenate([np.full(len(pedals), -1), index, index])
    by_time = np.argsort(times, kind="stable")
    moments = np.zeros(len(times), np.int64)
    moments[by_time[1:]] = np.cumsum(np.diff(times[by_time]) > _SAME_MOMENT)
    if group == "instrument":
        order = np.lexsort((kinds, moments))
    else:
        # Pedals that move twice in a moment keep their order, which note_seq loses. Of several strokes of a key the
        # longest comes last, so that it is the one that stays.
        last = np.concatenate([np.zeros(len(pedals)), end, end])
        order = np.lexsort((last, np.maximum(kinds, _UP), moments))
    return tuple(column[order] for column in (times, ticks, moments, kinds, owners, indices))


def _walk(
    keys: list[int], moments: list[int], kinds: list[int], owners: list[int], indices: list[int], always_cut: bool
) -> tuple[dict[int, int], list[int]]:
    """Find the event that ends each note whose length changes.

    Args:
        keys: What a stroke cuts: the program and pitch of each note, [notes].
        moments: When each event happens, [events]; likewise `kinds`, `owners` and `indices` from `_events`.
        kinds: [events].
        owners: [events].
        indices: [events].
        always_cut: A stroke ends the earlier note of its key without pedal too.

    Returns:
        Note index to event index, and the notes that have no length left.
    """
    onsets, ends = (
        {note: moment for note, moment, kind in zip(indices, moments, kinds, strict=True) if kind == wanted}
        for wanted in (_ON, _OFF)
    )
    down: defaultdict[int, bool] = defaultdict(bool)
    sounding: defaultdict[int, defaultdict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    enders: dict[int, int] = {}
    dropped = []
    for event, (moment, kind, owner, note) in enumerate(zip(moments, kinds, owners, indices, strict=True)):
        held = sounding[owner]
        if kind == _ON:
            if down[owner] or always_cut:
                for earlier in held.pop(keys[note], ()):
                    enders[earlier] = event
                    if onsets[earlier] == moment:
                        dropped.append(earlier)
            held[keys[note]].append(note)
        elif kind == _OFF:
            if not down[owner] and note in held[keys[note]]:
                held[keys[note]].remove(note)
        elif kind == _DOWN:
            down[owner] = True
        else:
            down[owner] = False
            for key, waiting in list(held.items()):
                enders.update((earlier, event) for earlier in waiting if ends[earlier] < moment)
                held[key] = [earlier for earlier in waiting if ends[earlier] >= moment]
    last = len(moments) - 1
    enders.update((note, last) for held in sounding.values() for waiting in held.values() for note in waiting)
    return enders, dropped


def pedal_stretches(performance: Performance, threshold: int = 64) -> dict[int, np.ndarray]:
    """When the sustain pedal is down, by the rule of `extend_by_pedal`.

    Args:
        performance: Notes as they were played, with their controllers.
        threshold: Pedal values from here on are down (0 to 127).

    Returns:
        Channel to the times at which its pedal goes down and up again (seconds), [stretches, 2]. A pedal that is never
        released goes up with the last event.
    """
    pedals = performance.controls[performance.controls["number"] == SUSTAIN]
    stretches = {}
    for channel in np.unique(pedals["channel"]).tolist():
        own = pedals[pedals["channel"] == channel]
        down = own["value"] >= threshold
        change = np.diff(np.concatenate([[False], down, [False]]).astype(int))
        times = np.append(own["time_sec"], max(performance.end_sec, float(own["time_sec"][-1])))
        stretches[channel] = np.stack([times[change > 0], times[change < 0]], axis=1)
    return stretches
