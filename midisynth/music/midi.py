"""The one MIDI reader and writer: files to `Performance` and back.

Where readers disagree the choice is the one a listener would make: tempi and pedals act wherever in the file they
stand, no note is dropped, and every change to what the file says is recorded in `Performance.warnings`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import numpy as np

from midisynth.errors import MidiError
from midisynth.music import smf
from midisynth.music.clock import DEFAULT_USEC_PER_QUARTER, TempoMap, ticks_from_seconds
from midisynth.music.notes import (
    BEND_DTYPE,
    CONTROL_DTYPE,
    DRUM_CHANNEL,
    KEY_SIGNATURE_DTYPE,
    NOTE_DTYPE,
    TIME_SIGNATURE_DTYPE,
    Performance,
)
from midisynth.music.pairing import PAIRINGS
from midisynth.music.writer import write_midi

if TYPE_CHECKING:
    import pretty_midi

__all__ = ["Source", "from_pretty_midi", "program_name", "read_midi", "to_pretty_midi", "write_midi"]

Source = str | os.PathLike[str] | bytes | IO[bytes]


def read_midi(
    source: Source,
    *,
    overlap: Literal["restrike", "fifo", "all"] = "restrike",
    repair: bool = False,
    pattern: int | None = None,
    min_duration_ticks: int = 1,
    max_duration_sec: float = 7200.0,
) -> Performance:
    """Read a MIDI file of type 0, 1 or 2, with or without RIFF wrapper.

    Args:
        source: Path, the bytes themselves, or a binary file object.
        overlap: What a key that is struck again before its release means. "restrike": the second stroke ends the first
            note, as on a piano. "fifo": the notes overlap and each release ends the older one. "all": the first
            release ends them all, as in pretty_midi.
        repair: Read what is left of a damaged file instead of refusing it.
        pattern: Which pattern of a type 2 file to read, from 0; other types have none.
        min_duration_ticks: Shorter notes are lengthened to this (ticks).
        max_duration_sec: Longest file that is accepted (seconds, up to the end of its longest track).

    Raises:
        MidiError: The file cannot be read, or is refused; the text names the cause.
    """
    data, path = _load(source)
    events = smf.read_events(data, path, repair)
    if events.format == 2:
        events = _pick_pattern(events, pattern, path)
    clock = _tempo_map(events)
    end_tick = max(events.track_ends)
    end_sec = float(clock.seconds(end_tick))
    if end_sec > max_duration_sec:
        raise MidiError(
            path,
            f"it lasts {end_sec:,.0f} s, over the limit of {max_duration_sec:,.0f} s (`max_duration_sec`)",
        )
    names = [""] * len(events.track_ends)
    for _, track, kind, payload in reversed(events.metas):
        if kind == smf.TRACK_NAME:
            names[track] = _decode(payload)
    performance = Performance(
        notes=_notes(events, clock, overlap, min_duration_ticks),
        controls=_channel_events(events, clock, smf.CONTROL, CONTROL_DTYPE),
        bends=_channel_events(events, clock, smf.BEND, BEND_DTYPE),
        tempos=clock.table(),
        time_signatures=_time_signatures(events, clock),
        key_signatures=_key_signatures(events, clock),
        ticks_per_quarter=events.ticks_per_quarter,
        track_names=names,
    )
    performance.warnings = [text if n == 1 else f"{text} ({n} times)" for text, n in events.warnings.items()]
    return performance


def _load(source: Source) -> tuple[bytes, str | None]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), None
    if not isinstance(source, (str, os.PathLike)):
        name = getattr(source, "name", None)
        return source.read(), name if isinstance(name, str) else None
    path = os.fspath(source)
    try:
        return Path(path).read_bytes(), path
    except OSError as error:
        raise MidiError(path, error.strerror or str(error)) from None
    except ValueError as error:  # a NUL in the name
        raise MidiError(path, str(error)) from None


def _decode(name: bytes) -> str:
    """Text of a meta event: files do not say how it is encoded."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("latin-1")


def _pick_pattern(events: smf.Events, pattern: int | None, path: str | None) -> smf.Events:
    count = len(events.track_ends)
    if pattern is None:
        raise MidiError(
            path, f"it is of type 2: {count} independent patterns that do not sound together; `pattern` picks one"
        )
    if not 0 <= pattern < count:
        raise MidiError(path, f"pattern {pattern} does not exist; it has patterns 0 to {count - 1}")
    chosen = events.tracks == pattern
    return replace(
        events,
        ticks=events.ticks[chosen],
        messages=events.messages[chosen],
        tracks=np.zeros(int(chosen.sum()), np.int64),
        metas=[(tick, 0, kind, payload) for tick, track, kind, payload in events.metas if track == pattern],
        track_ends=[events.track_ends[pattern]],
    )


def _tempo_map(events: smf.Events) -> TempoMap:
    """The tempo map from the events of all tracks; the last of several at one tick counts."""
    if events.smpte_usec_per_quarter is not None:
        return TempoMap([0], [events.smpte_usec_per_quarter], events.ticks_per_quarter)
    tempos = {0: DEFAULT_USEC_PER_QUARTER}
    for tick, _, kind, payload in events.metas:
        if kind == smf.TEMPO:
            usec = int.from_bytes(payload, "big")
            if len(payload) == 3 and usec > 0:
                tempos[tick] = usec
            else:
                events.warnings["impossible tempo ignored"] += 1
    ticks = sorted(tempos)
    return TempoMap(ticks, [tempos[tick] for tick in ticks], events.ticks_per_quarter)


def _time_signatures(events: smf.Events, clock: TempoMap) -> np.ndarray:
    signatures = {}
    for tick, _, kind, payload in events.metas:
        if kind == smf.TIME_SIGNATURE:
            if len(payload) >= 2 and payload[0] > 0 and payload[1] <= 7:
                signatures[tick] = (payload[0], 2 ** payload[1])
            else:
                events.warnings["impossible time signature ignored"] += 1
    rows = [(0.0, tick, *signatures[tick]) for tick in sorted(signatures)]
    return _with_seconds(np.array(rows, TIME_SIGNATURE_DTYPE), clock)


def _key_signatures(events: smf.Events, clock: TempoMap) -> np.ndarray:
    signatures = {}
    for tick, _, kind, payload in events.metas:
        if kind == smf.KEY_SIGNATURE:
            fifths = int.from_bytes(payload[:1], "big", signed=True)
            if len(payload) == 2 and abs(fifths) <= 7 and payload[1] <= 1:
                signatures[tick] = (fifths, payload[1] == 1)
            else:
                events.warnings["impossible key signature ignored"] += 1
    rows = [(0.0, tick, *signatures[tick]) for tick in sorted(signatures)]
    return _with_seconds(np.array(rows, KEY_SIGNATURE_DTYPE), clock)


def _with_seconds(table: np.ndarray, clock: TempoMap) -> np.ndarray:
    table["time_sec"] = clock.seconds(table["tick"])
    return table


def _channel_events(events: smf.Events, clock: TempoMap, kind: int, dtype: np.dtype) -> np.ndarray:
    """Controllers or pitch bends of all tracks, in time order; file order breaks ties."""
    chosen = np.flatnonzero((events.messages >> 16) & 0xF0 == kind)
    chosen = chosen[np.argsort(events.ticks[chosen], kind="stable")]
    messages = events.messages[chosen]
    first, second = (messages >> 8) & 127, messages & 127
    table = np.zeros(len(chosen), dtype)
    table["tick"] = events.ticks[chosen]
    table["channel"] = (messages >> 16) & 15
    table["track"] = events.tracks[chosen]
    if kind == smf.BEND:
        table["value"] = (second << 7 | first) - 8192
    else:
        table["number"], table["value"] = first, second
    return _with_seconds(table, clock)


def _notes(events: smf.Events, clock: TempoMap, overlap: str, min_duration_ticks: int) -> np.ndarray:
    """All notes, in the order that `Performance.notes` promises."""
    status = (events.messages >> 16) & 0xF0
    index = np.flatnonzero((status == smf.NOTE_ON) | (status == smf.NOTE_OFF))
    messages, ticks, tracks = events.messages[index], events.ticks[index], events.tracks[index]
    channel, pitch = (messages >> 16) & 15, (messages >> 8) & 127
    velocity = np.where(status[index] == smf.NOTE_ON, messages & 127, 0)
    keys = (tracks * 16 + channel) * 128 + pitch
    paired, hanging = PAIRINGS[overlap](ticks.tolist(), keys.tolist(), velocity.tolist())
    ends = np.array(paired, np.int64)
    if hanging:
        ends[hanging] = np.array(events.track_ends)[tracks[hanging]]
        events.warnings["note never released, closed at the end of its track"] += len(hanging)

    on = velocity > 0
    notes = np.zeros(int(on.sum()), NOTE_DTYPE)
    notes["onset_tick"], notes["duration_tick"] = ticks[on], ends[on] - ticks[on]
    notes["pitch"], notes["velocity"], notes["channel"], notes["track"] = (
        pitch[on],
        velocity[on],
        channel[on],
        tracks[on],
    )
    notes["program"] = _programs(events, index[on])
    short = notes["duration_tick"] < min_duration_ticks
    if short.any():
        notes["duration_tick"][short] = min_duration_ticks
        events.warnings[f"note shorter than {min_duration_ticks} tick(s) lengthened"] += int(short.sum())
    notes["onset_sec"] = clock.seconds(notes["onset_tick"])
    notes["duration_sec"] = clock.seconds(notes["onset_tick"] + notes["duration_tick"]) - notes["onset_sec"]
    return notes[np.lexsort((notes["pitch"], notes["channel"], notes["track"], notes["onset_tick"]))]


def _programs(events: smf.Events, note_ons: np.ndarray) -> np.ndarray:
    """Program of each note, [notes].

    The last change in the note's own track counts, because files with more instruments than channels share one channel
    between tracks; a track without any follows the changes of its channel in other tracks.

    Args:
        events: The file.
        note_ons: Indices of the note-ons among the messages, [notes].
    """
    changes = np.flatnonzero((events.messages >> 16) & 0xF0 == smf.PROGRAM)
    programs = np.zeros(len(note_ons), np.int32)
    if len(changes) == 0:
        return programs
    values = (events.messages[changes] >> 8) & 127
    channel = (events.messages >> 16) & 15

    def latest(group: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The last change at or before each note within its group, and whether there is one."""
        order = np.lexsort((time[changes], group[changes]))
        span = int(time.max()) + 1
        sought = group[note_ons].astype(np.int64) * span + time[note_ons]
        place = np.searchsorted((group[changes].astype(np.int64) * span + time[changes])[order], sought, "right") - 1
        found = order[np.maximum(place, 0)]
        return values[found], (place >= 0) & (group[changes][found] == group[note_ons])

    for group, time in ((channel, events.ticks), (events.tracks * 16 + channel, np.arange(len(events.messages)))):
        value, exists = latest(group, time)
        programs[exists] = value[exists]
    return programs


def from_pretty_midi(midi: pretty_midi.PrettyMIDI) -> Performance:
    """Take over notes, controllers, bends, tempi, signatures and names.

    Instrument i becomes track i; drums get channel 9 and the others the remaining fifteen in turn.

    Args:
        midi: Its times (seconds) are kept; ticks are the nearest ones.
    """
    times, bpm = midi.get_tempo_changes()
    ticks = np.rint([midi.time_to_tick(time) for time in times]).astype(np.int64)
    ticks, first = np.unique(ticks, return_index=True)
    clock = TempoMap(ticks, np.rint(60e6 / bpm[first]).astype(np.int64), midi.resolution)
    melodic = [channel for channel in range(16) if channel != DRUM_CHANNEL]
    notes, controls, bends = [], [], []
    drums = 0
    for track, instrument in enumerate(midi.instruments):
        drums += instrument.is_drum
        channel = DRUM_CHANNEL if instrument.is_drum else melodic[(track - drums) % len(melodic)]
        notes += [
            (n.start, n.end - n.start, 0, 0, n.pitch, n.velocity, channel, instrument.program, track)
            for n in instrument.notes
        ]
        controls += [(c.time, 0, c.number, c.value, channel, track) for c in instrument.control_changes]
        bends += [(b.time, 0, b.pitch, channel, track) for b in instrument.pitch_bends]
    performance = Performance(
        notes=np.array(notes, NOTE_DTYPE),
        controls=np.sort(np.array(controls, CONTROL_DTYPE), order="time_sec", kind="stable"),
        bends=np.sort(np.array(bends, BEND_DTYPE), order="time_sec", kind="stable"),
        tempos=clock.table(),
        time_signatures=np.array(
            [(s.time, 0, s.numerator, s.denominator) for s in midi.time_signature_changes], TIME_SIGNATURE_DTYPE
        ),
        key_signatures=np.array(
            [(s.time, 0, *_fifths(s.key_number)) for s in midi.key_signature_changes], KEY_SIGNATURE_DTYPE
        ),
        ticks_per_quarter=midi.resolution,
        track_names=[instrument.name for instrument in midi.instruments],
    )
    return ticks_from_seconds(performance)


def _fifths(key_number: int) -> tuple[int, bool]:
    """Sharps (flats below 0) and mode of pretty_midi's key number: 0 to 11 major, 12 to 23 minor, from C."""
    minor = key_number >= 12
    relative_major = (key_number + 3 * minor) % 12
    return (relative_major * 7 + 5) % 12 - 5, minor


def _key_number(fifths: int, minor: bool) -> int:
    """pretty_midi's key number; see `_fifths`."""
    major = fifths * 7 % 12
    return (major - 3) % 12 + 12 if minor else major


def to_pretty_midi(performance: Performance) -> pretty_midi.PrettyMIDI:
    """The same music as a pretty_midi object, with one instrument for each track, channel and program.

    Controllers and bends go to every instrument on their channel, since pretty_midi gives each a channel of its own.
    """
    import pretty_midi

    clock = TempoMap.of(performance)
    midi = pretty_midi.PrettyMIDI(resolution=performance.ticks_per_quarter)
    seconds_per_tick = clock.usec_per_quarter / (1e6 * performance.ticks_per_quarter)
    # The constructor offers a single tempo; readers of pretty_midi set its tempo map through this attribute.
    midi._tick_scales = list(zip(clock.start_ticks.tolist(), seconds_per_tick.tolist(), strict=True))
    end_tick = performance.notes["onset_tick"] + performance.notes["duration_tick"]
    last_tick = max([0, *(int(t.max()) for t in (end_tick, performance.controls["tick"]) if len(t))])
    midi._update_tick_to_time(last_tick)
    instruments: dict[tuple[int, int, int], pretty_midi.Instrument] = {}
    for note in performance.notes.tolist():
        onset, duration, _, _, pitch, velocity, channel, program, track = note
        if (track, channel, program) not in instruments:
            name = performance.track_names[track] if track < len(performance.track_names) else ""
            instruments[track, channel, program] = pretty_midi.Instrument(program, channel == DRUM_CHANNEL, name)
        instruments[track, channel, program].notes.append(pretty_midi.Note(velocity, pitch, onset, onset + duration))
    for (_, channel, _), instrument in instruments.items():
        on_channel = performance.controls[performance.controls["channel"] == channel].tolist()
        instrument.control_changes = [pretty_midi.ControlChange(c[2], c[3], c[0]) for c in on_channel]
        bends = performance.bends[performance.bends["channel"] == channel].tolist()
        instrument.pitch_bends = [pretty_midi.PitchBend(b[2], b[0]) for b in bends]
    midi.instruments = list(instruments.values())
    midi.time_signature_changes = [
        pretty_midi.TimeSignature(int(s["numerator"]), int(s["denominator"]), float(s["time_sec"]))
        for s in performance.time_signatures
    ]
    midi.key_signature_changes = [
        pretty_midi.KeySignature(_key_number(int(s["fifths"]), bool(s["minor"])), float(s["time_sec"]))
        for s in performance.key_signatures
    ]
    return midi


def program_name(program: int) -> str:
    """Name of a General MIDI program (0 to 127), such as "Acoustic Grand Piano"."""
    import pretty_midi

    return pretty_midi.program_to_instrument_name(program)
