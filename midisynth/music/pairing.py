"""Which release ends which note: the answers for a key that is struck again before its release."""

from __future__ import annotations

from collections import defaultdict, deque


def pair_restrike(ticks: list[int], keys: list[int], velocities: list[int]) -> tuple[list[int], list[int]]:
    """End of each note when a new stroke of a key ends the note that sounds there.

    The releases that follow a second stroke are those of both notes, but some devices send only one. A note therefore
    ends when as many releases as strokes have come, or at the last release before the next stroke.

    Args:
        ticks: Times of note-ons and note-offs, [events].
        keys: Which key (of which channel and track) each is for, [events].
        velocities: 0 for a note-off, [events].

    Returns:
        End of each note-on (ticks), [events], and the indices of notes that were never released.
    """
    ends = ticks.copy()
    held: dict[int, list[int]] = {}  # key: [note-on, strokes less releases, last release or -1]
    for index, key in enumerate(keys):
        state = held.get(key)
        if velocities[index]:
            if state is None:
                held[key] = [index, 1, -1]
            else:
                ends[state[0]] = state[2] if state[2] >= 0 else ticks[index]
                held[key] = [index, state[1] + 1, -1]
        elif state is not None:
            if state[1] == 1:
                ends[state[0]] = ticks[index]
                del held[key]
            else:
                state[1] -= 1
                if ticks[index] > ticks[state[0]]:  # at the stroke itself it belongs to the note before
                    state[2] = ticks[index]
    hanging = []
    for index, _, release in held.values():
        if release >= 0:
            ends[index] = release
        else:
            hanging.append(index)
    return ends, hanging


def pair_fifo(ticks: list[int], keys: list[int], velocities: list[int]) -> tuple[list[int], list[int]]:
    """End of each note when every release ends the oldest note of its key; see `pair_restrike`."""
    ends = ticks.copy()
    held: defaultdict[int, deque[int]] = defaultdict(deque)
    for index, key in enumerate(keys):
        if velocities[index]:
            held[key].append(index)
        elif held[key]:
            ends[held[key].popleft()] = ticks[index]
    return ends, [index for waiting in held.values() for index in waiting]


def pair_all(ticks: list[int], keys: list[int], velocities: list[int]) -> tuple[list[int], list[int]]:
    """End of each note when every release ends all notes of its key, as pretty_midi has it; see `pair_restrike`."""
    ends = ticks.copy()
    held: defaultdict[int, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if velocities[index]:
            held[key].append(index)
            continue
        ended = [note for note in held[key] if ticks[note] < ticks[index]] or held[key]
        held[key] = [note for note in held[key] if note not in ended]
        for note in ended:
            ends[note] = ticks[index]
    return ends, [index for waiting in held.values() for index in waiting]


PAIRINGS = {"restrike": pair_restrike, "fifo": pair_fifo, "all": pair_all}
