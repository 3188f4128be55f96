"""Standard MIDI File bytes to flat event arrays (SMF 1.0, 1996; RP-029 for the RIFF wrapper).

The readers that exist disagree about ordinary files and fail in seven ways on damaged ones, so the bytes are read
here. Nothing is allocated from a length that a file merely claims.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from midisynth.errors import MidiError

NOTE_OFF, NOTE_ON, CONTROL, PROGRAM, BEND = 0x80, 0x90, 0xB0, 0xC0, 0xE0  # status bytes, less the channel
TRACK_NAME, END_OF_TRACK, TEMPO, TIME_SIGNATURE, KEY_SIGNATURE = 0x03, 0x2F, 0x51, 0x58, 0x59
_KEPT_META = frozenset({TRACK_NAME, TEMPO, TIME_SIGNATURE, KEY_SIGNATURE})

# System messages that belong on a cable and not into a file, and the number of bytes that follow each. F4, F5, F9 and
# FD are undefined, so that nobody can tell where the next event begins.
_CABLE_MESSAGES = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, 0xF8: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFE: 0}

_MAX_DELTA = 2**28 - 1  # the longest pause that one event can state (ticks)
_JUNK_SEARCHED = 256  # bytes; a MacBinary header has 128, a byte-order mark 3
_OTHER_FORMATS = {
    b"\x1f\x8b": "it is gzip data; unpack it first",
    b"PK\x03\x04": "it is a ZIP archive; unpack it first",
    b"\x89PNG": "it is a PNG image",
    b"fLaC": "it is FLAC audio",
    b"OggS": "it is Ogg audio",
    b"ID3": "it is MP3 audio",
    b"RIFF": "it is a RIFF file without MIDI data",
}


@dataclass
class Events:
    """What a MIDI file contains, in file order: track after track.

    Attributes:
        format: 0 (one track), 1 (simultaneous tracks) or 2 (independent patterns).
        ticks_per_quarter: Resolution.
        smpte_usec_per_quarter: For SMPTE division the constant tempo that gives ticks their length; otherwise None.
        ticks: Absolute times of the channel messages (ticks), [messages] int64.
        messages: Status, first and second data byte of each as 0xSSAABB, [messages] int32.
        tracks: Track of each, [messages] int64.
        metas: (tick, track, type, payload) of track names, tempi and signatures.
        track_ends: Tick at which each track ends.
        warnings: What had to be mended, and how often.
    """

    format: int
    ticks_per_quarter: int
    smpte_usec_per_quarter: int | None
    ticks: np.ndarray
    messages: np.ndarray
    tracks: np.ndarray
    metas: list[tuple[int, int, int, bytes]]
    track_ends: list[int]
    warnings: Counter[str]


class _Damage(Exception):
    """A track cannot be read beyond this point."""


def read_events(data: bytes, path: str | None = None, repair: bool = False) -> Events:
    """Read the bytes of a MIDI file.

    Args:
        data: The whole file.
        path: Its name in errors.
        repair: Read what is left of a damaged file: clamp data bytes to 127, cut damaged tracks at the damage, skip
            junk before the header.

    Raises:
        MidiError: This is not a MIDI file, or it is damaged and `repair` is off.
    """
    reader = _Reader(repair)
    try:
        return reader.read(data)
    except _Damage as damage:
        raise MidiError(path, str(damage)) from None


@dataclass
class _Reader:
    repair: bool
    ticks: array = field(default_factory=lambda: array("q"))
    messages: array = field(default_factory=lambda: array("i"))
    track_sizes: list[int] = field(default_factory=list)
    track_ends: list[int] = field(default_factory=list)
    metas: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    warnings: Counter[str] = field(default_factory=Counter)

    def read(self, data: bytes) -> Events:
        data = self._unwrap(data)
        format_, declared, division, position = _header(data)
        ticks_per_quarter, smpte_usec = _resolution(division)
        self._read_chunks(data, position, declared)
        if not self.track_ends:
            raise _Damage("it has no tracks")
        if len(self.track_ends) != declared:
            self.warnings[f"the header announces {declared} tracks, the file has {len(self.track_ends)}"] += 1
        return Events(
            format_,
            ticks_per_quarter,
            smpte_usec,
            np.array(self.ticks, np.int64),
            np.array(self.messages, np.int32),
            np.repeat(np.arange(len(self.track_sizes)), self.track_sizes),
            self.metas,
            self.track_ends,
            self.warnings,
        )

    def _unwrap(self, data: bytes) -> bytes:
        """The MIDI file inside `data`: as it is, in a RIFF wrapper, or (repair) behind junk."""
        if data.startswith(b"MThd"):
            return data
        if data.startswith(b"RIFF") and data[8:12] == b"RMID":
            return _riff_data(data)
        start = data.find(b"MThd", 0, _JUNK_SEARCHED)
        if start > 0 and self.repair:
            self.warnings[f"{start} bytes before the header skipped"] += 1
            return data[start:]
        if start > 0:
            raise _Damage(f"{start} bytes stand before the header (MThd); `repair` skips them")
        if not data:
            raise _Damage("it is empty")
        known = next((what for magic, what in _OTHER_FORMATS.items() if data.startswith(magic)), None)
        raise _Damage(f"not a MIDI file: {known or f'it begins with {data[:4]!r} instead of MThd'}")

    def _read_chunks(self, data: bytes, position: int, declared: int) -> None:
        while position < len(data):
            tag, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "big")
            left = len(data) - position - 8
            if tag == b"MThd":
                self.warnings["a second MIDI file that follows the first was ignored"] += 1
                return
            if left < 0 or not all(32 <= byte < 127 for byte in tag) or (tag != b"MTrk" and size > left):
                if len(self.track_ends) < declared and not self.repair:
                    raise _Damage(
                        f"byte {position} should begin a track and does not; `repair` reads what comes before"
                    )
                self.warnings[f"{len(data) - position} bytes after the last track ignored"] += 1
                return
            if tag == b"MTrk":
                if size > left and not self.repair:
                    raise _Damage(
                        f"track {len(self.track_ends) + 1} is cut off: {left} of {size} bytes are there; "
                        "`repair` reads them"
                    )
                self._read_track(data[position + 8 : position + 8 + size])
            position += 8 + size

    def _read_track(self, chunk: bytes) -> None:
        before = len(self.ticks)
        number = len(self.track_ends) + 1
        try:
            self._read_messages(chunk)
        except _Damage as damage:
            if not self.repair:
                raise _Damage(f"track {number} is damaged {damage}; `repair` reads what can be read") from None
            self.warnings[f"track {number} is damaged and was cut {damage}"] += 1
            self.track_ends.append(self.ticks[-1] if len(self.ticks) > before else 0)
        self.track_sizes.append(len(self.ticks) - before)

    def _read_messages(self, chunk: bytes) -> None:
        """The hot loop: about a third of a microsecond for each event."""
        add_tick, add_message = self.ticks.append, self.messages.append
        position = tick = running = 0
        size = len(chunk)
        try:
            while position < size:
                delta = chunk[position]
                position += 1
                if delta > 127:
                    delta, position = _variable_length(chunk, position - 1)
                tick += delta
                status = chunk[position]
                if status > 127:
                    position += 1
                else:
                    # Running status survives meta events and system exclusives here. The standard forbids to write
                    # such files, but they exist and have only one meaning.
                    status = running
                if 127 < status < 0xF0:
                    running = status
                    first = chunk[position]
                    if status & 0xE0 == 0xC0:  # program change and channel pressure have one data byte
                        second = 0
                        position += 1
                    else:
                        second = chunk[position + 1]
                        position += 2
                    if first | second > 127:
                        first, second = self._clamp(first, second)
                    add_tick(tick)
                    add_message(status << 16 | first << 8 | second)
                elif status == 0:
                    raise _Damage("data without a status byte before it")
                else:
                    position, ended = self._system_message(chunk, position, status, tick)
                    if ended:
                        break
            else:
                self.warnings["end-of-track event missing"] += 1
        except IndexError:
            raise _Damage("at its end: an event is incomplete") from None
        except _Damage as damage:
            raise _Damage(f"at its byte {position}: {damage}") from None
        if position < size:
            self.warnings["events after the end of a track ignored"] += 1
        self.track_ends.append(tick)

    def _clamp(self, first: int, second: int) -> tuple[int, int]:
        if not self.repair:
            raise _Damage(f"data byte {max(first, second)} is over 127")
        self.warnings["data bytes over 127 clamped"] += 1
        return min(first, 127), min(second, 127)

    def _system_message(self, chunk: bytes, position: int, status: int, tick: int) -> tuple[int, bool]:
        """Read a meta event, system exclusive or stray system message whose status has been read.

        Returns:
            The position behind it, and whether it ends the track.
        """
        if status in _CABLE_MESSAGES:
            self.warnings["system messages that do not belong into a file ignored"] += 1
            return position + _CABLE_MESSAGES[status], False
        if status not in (0xF0, 0xF7, 0xFF):
            raise _Damage(f"undefined status byte {status:02X}")
        kind = None
        if status == 0xFF:
            kind = chunk[position]
            position += 1
        length, position = _variable_length(chunk, position)
        end = position + length
        if end > len(chunk):
            raise _Damage(f"an event of {length} bytes is longer than its track")
        if kind in _KEPT_META:
            self.metas.append((tick, len(self.track_ends), kind, chunk[position:end]))
        return end, kind == END_OF_TRACK


def _variable_length(chunk: bytes, position: int) -> tuple[int, int]:
    """A variable-length quantity at `position`, and the position behind it."""
    value = 0
    for offset in range(4):
        byte = chunk[position + offset]
        value = value << 7 | byte & 127
        if byte < 128:
            return value, position + offset + 1
    raise _Damage("variable-length number of more than 4 bytes")


def _riff_data(data: bytes) -> bytes:
    position = 12
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        if data[position : position + 4] == b"data":
            return data[position + 8 : position + 8 + size]
        position += 8 + size + size % 2  # RIFF chunks are padded to an even size
    raise _Damage("RIFF file without a data chunk")


def _header(data: bytes) -> tuple[int, int, int, int]:
    """Format, number of tracks, division, and the position of the first chunk."""
    size = int.from_bytes(data[4:8], "big")
    if size < 6 or len(data) < 14:
        raise _Damage("its header is cut off")
    format_, tracks, division = (int.from_bytes(data[start : start + 2], "big") for start in (8, 10, 12))
    if format_ > 2:
        raise _Damage(f"type {format_} does not exist; MIDI files are of type 0, 1 or 2")
    return format_, tracks, division, 8 + size


def _resolution(division: int) -> tuple[int, int | None]:
    """Ticks per quarter, and microseconds per quarter where the division fixes them.

    SMPTE division counts ticks of a frame. It is expressed as a resolution and a tempo that give each tick exactly
    its length, so that nothing else needs to know of it. 29 stands for 29.97 = 30000 / 1001 frames a second.
    """
    if division == 0:
        raise _Damage("its division is 0 ticks a quarter note, so that no time can be told")
    if division < 0x8000:
        return division, None
    frames, ticks = 256 - (division >> 8), division & 255
    equivalent = {24: (12, 500_000), 25: (25, 1_000_000), 29: (15, 500_500), 30: (15, 500_000)}
    if frames not in equivalent or ticks == 0:
        raise _Damage(f"SMPTE division of {frames} frames of {ticks} ticks; frames are 24, 25, 29 or 30, ticks over 0")
    multiple, usec = equivalent[frames]
    return multiple * ticks, usec


def write_events(
    columns: tuple[np.ndarray, ...],
    metas: list[tuple[int, int, int, bytes]],
    tracks: int,
    ticks_per_quarter: int,
) -> bytes:
    """The bytes of a MIDI file: type 0 for one track, type 1 for more.

    Args:
        columns: Tracks, ticks, ranks and messages (0xSSAABB) of the channel messages, each [messages]. Ranks (over 0)
            order what happens at one tick of one track; rows break ties.
        metas: (tick, track, type, payload) of the meta events, which precede everything else at their tick.
        tracks: Number of tracks.
        ticks_per_quarter: Resolution.
    """
    meta_ticks = np.array([meta[0] for meta in metas], np.int64)
    meta_tracks = np.array([meta[1] for meta in metas], np.int64)
    track = np.concatenate([meta_tracks, columns[0]])
    tick = np.concatenate([meta_ticks, columns[1]])
    rank = np.concatenate([np.zeros(len(metas), np.int64), columns[2]])
    message = np.concatenate([-1 - np.arange(len(metas)), columns[3]])
    order = np.lexsort((rank, tick, track))
    bounds = np.searchsorted(track[order], np.arange(tracks + 1))
    header = b"MThd" + b"".join(
        value.to_bytes(width, "big")
        for value, width in ((6, 4), (int(tracks > 1), 2), (tracks, 2), (ticks_per_quarter, 2))
    )
    chunks = [header]
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        chosen = order[start:stop]
        body = _encode_track(tick[chosen].tolist(), message[chosen].tolist(), metas)
        chunks += [b"MTrk", len(body).to_bytes(4, "big"), body]
    return b"".join(chunks)


def _encode_track(ticks: list[int], messages: list[int], metas: list[tuple[int, int, int, bytes]]) -> bytes:
    body = bytearray()
    now = 0
    for tick, message in zip(ticks, messages, strict=True):
        delta, now = tick - now, tick
        while delta > _MAX_DELTA:
            body += _encode_length(_MAX_DELTA) + b"\xff\x01\x00"  # an empty text event carries the rest
            delta -= _MAX_DELTA
        body += _encode_length(delta)
        if message < 0:
            _, _, kind, payload = metas[-1 - message]
            body += bytes((0xFF, kind)) + _encode_length(len(payload)) + payload
        elif message >> 16 & 0xE0 == 0xC0:
            body += bytes((message >> 16, message >> 8 & 127))
        else:
            body += message.to_bytes(3, "big")
    return bytes(body + b"\x00\xff\x2f\x00")


def _encode_length(value: int) -> bytes:
    """A variable-length quantity: 7 bits a byte, the high bit set on all but the last."""
    if value < 128:
        return bytes((value,))
    groups = [value & 127]
    while value := value >> 7:
        groups.append(value & 127 | 128)
    return bytes(reversed(groups))
