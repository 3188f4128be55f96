"""`Performance` to MIDI file; import it from `midisynth.music.midi`."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import numpy as np

from midisynth.errors import MidiError
from midisynth.music import smf
from midisynth.music.clock import TempoMap
from midisynth.music.notes import Performance


def write_midi(performance: Performance, path: str | os.PathLike[str]) -> None:
    """Write a MIDI file that reads back to the same notes, controllers, tempi and names.

    Ticks are what is written. The file appears under its name only when it is complete.

    Args:
        performance: Its ticks and seconds must agree; `clock.ticks_from_seconds` sets ticks from seconds.
        path: The file; it is replaced if it exists.

    Raises:
        MidiError: Something cannot be expressed in MIDI, or the file cannot be written.
    """
    path = os.fspath(path)
    _check_writable(performance, path)
    tracks = max(
        [len(performance.track_names), 1]
        + [int(t["track"].max()) + 1 for t in (performance.notes, performance.controls, performance.bends) if len(t)]
    )
    data = smf.write_events(_messages(performance), _metas(performance), tracks, performance.ticks_per_quarter)
    temporary = os.path.join(os.path.dirname(path), f".{secrets.token_hex(8)}.part")
    try:
        Path(temporary).write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise MidiError(path, f"cannot be written: {error.strerror}") from None


_TICKS, _CHANNELS, _TRACKS, _BYTES = (0, 2**40), (0, 15), (0, 65534), (0, 127)
_LIMITS = {
    "notes": {
        "pitch": _BYTES,
        "velocity": (1, 127),
        "program": _BYTES,
        "channel": _CHANNELS,
        "track": _TRACKS,
        "onset_tick": _TICKS,
        "duration_tick": (1, 2**40),
    },
    "controls": {"number": _BYTES, "value": _BYTES, "channel": _CHANNELS, "track": _TRACKS, "tick": _TICKS},
    "bends": {"value": (-8192, 8191), "channel": _CHANNELS, "track": _TRACKS, "tick": _TICKS},
    "tempos": {"usec_per_quarter": (1, 2**24 - 1), "tick": _TICKS},
    "time_signatures": {"numerator": (1, 255), "denominator": (1, 128), "tick": _TICKS},
    "key_signatures": {"fifths": (-7, 7), "tick": _TICKS},
}


def _check_writable(performance: Performance, path: str) -> None:
    if not 0 < performance.ticks_per_quarter < 0x8000:
        raise MidiError(path, f"cannot be written: {performance.ticks_per_quarter} ticks a quarter, not 1 to 32767")
    for name, columns in _LIMITS.items():
        table = getattr(performance, name)
        for column, (low, high) in columns.items():
            bad = np.flatnonzero((table[column] < low) | (table[column] > high))
            if len(bad):
                value = table[column][bad[0]]
                raise MidiError(
                    path, f"cannot be written: {column} of {name}[{bad[0]}] is {value}, not {low} to {high}"
                )
    denominators = performance.time_signatures["denominator"]
    if (denominators & (denominators - 1)).any():
        raise MidiError(path, "cannot be written: the denominator of a time signature is not a power of 2")
    clock = TempoMap.of(performance)
    tolerance = 1e-6 + clock.usec_per_quarter.max() / (performance.ticks_per_quarter * 1e6)  # one tick
    notes, controls, bends = performance.notes, performance.controls, performance.bends
    for ticks, seconds in (
        (notes["onset_tick"], notes["onset_sec"]),
        (notes["onset_tick"] + notes["duration_tick"], notes["onset_sec"] + notes["duration_sec"]),
        (controls["tick"], controls["time_sec"]),
        (bends["tick"], bends["time_sec"]),
    ):
        if (np.abs(clock.seconds(ticks) - seconds) > tolerance).any():
            raise MidiError(path, "cannot be written: its ticks and seconds disagree; use clock.ticks_from_seconds")


def _messages(performance: Performance) -> tuple[np.ndarray, ...]:
    """Tracks, ticks, ranks and messages for `smf.write_events`, each [messages]."""
    notes, controls, bends = performance.notes, performance.controls, performance.bends
    notes = notes[np.lexsort((notes["pitch"], notes["channel"], notes["track"], notes["onset_tick"]))]
    onset, end, row = notes["onset_tick"], notes["onset_tick"] + notes["duration_tick"], np.arange(len(notes))
    bend = bends["value"] + 8192
    changes = _program_changes(notes)
    changed = notes[changes]

    def part(table, ticks, rank, kind, first, second):
        message = (kind | table["channel"]) << 16 | first << 8 | second
        return table["track"], ticks, np.broadcast_to(rank, ticks.shape), message

    # Releases come first, so that a key can be struck again at the tick of its release.
    parts = [
        part(notes, end, 1, smf.NOTE_OFF, notes["pitch"], 64),
        part(controls, controls["tick"], 2, smf.CONTROL, controls["number"], controls["value"]),
        part(bends, bends["tick"], 3, smf.BEND, bend & 127, bend >> 7),
        part(changed, changed["onset_tick"], 4 + 2 * changes, smf.PROGRAM, changed["program"], 0),
        part(notes, onset, 5 + 2 * row, smf.NOTE_ON, notes["pitch"], notes["velocity"]),
    ]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _program_changes(notes: np.ndarray) -> np.ndarray:
    """Indices of the notes before which a program is stated: the first of each track and channel, and every change."""
    owner = notes["track"] * 16 + notes["channel"]
    order = np.argsort(owner, kind="stable")
    differs = (np.diff(owner[order]) != 0) | (np.diff(notes["program"][order]) != 0)
    return np.sort(np.concatenate([order[:1], order[1:][differs]]))


def _metas(performance: Performance) -> list[tuple[int, int, int, bytes]]:
    """(tick, track, type, payload) of names, tempi and signatures; all but names go to the first track."""
    metas = [(0, track, smf.TRACK_NAME, name.encode()) for track, name in enumerate(performance.track_names) if name]
    for row in performance.tempos:
        metas.append((int(row["tick"]), 0, smf.TEMPO, int(row["usec_per_quarter"]).to_bytes(3, "big")))
    for row in performance.time_signatures:
        power = int(row["denominator"]).bit_length() - 1
        # 24 MIDI clocks a metronome click and 8 thirty-seconds a quarter are the values of SMF 1.0's example.
        metas.append((int(row["tick"]), 0, smf.TIME_SIGNATURE, bytes((int(row["numerator"]), power, 24, 8))))
    for row in performance.key_signatures:
        payload = bytes((int(row["fifths"]) & 255, int(row["minor"])))
        metas.append((int(row["tick"]), 0, smf.KEY_SIGNATURE, payload))
    return metas
