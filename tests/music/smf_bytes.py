"""MIDI files written byte by byte, so that the tests of the reader do not depend on the writer."""

from __future__ import annotations

Event = tuple[int, bytes]  # absolute tick, bytes of the event


def length(value: int) -> bytes:
    """A variable-length quantity."""
    digits = [value & 127]
    while value := value >> 7:
        digits.append(value & 127 | 128)
    return bytes(reversed(digits))


def track(*events: Event, end: int | None = None) -> bytes:
    """A track chunk; events keep their order. `end` is the tick of end-of-track."""
    body, now = b"", 0
    for tick, event in events:
        body += length(tick - now) + event
        now = tick
    body += length((now if end is None else end) - now) + b"\xff\x2f\x00"
    return b"MTrk" + len(body).to_bytes(4, "big") + body


def midi(*tracks: bytes, division: int = 480, kind: int = 1) -> bytes:
    header = b"".join(value.to_bytes(2, "big") for value in (kind, len(tracks), division))
    return b"MThd\x00\x00\x00\x06" + header + b"".join(tracks)


def on(tick: int, pitch: int = 60, velocity: int = 64, channel: int = 0) -> Event:
    return tick, bytes((0x90 | channel, pitch, velocity))


def off(tick: int, pitch: int = 60, channel: int = 0) -> Event:
    return tick, bytes((0x80 | channel, pitch, 0))


def control(tick: int, number: int, value: int, channel: int = 0) -> Event:
    return tick, bytes((0xB0 | channel, number, value))


def program(tick: int, number: int, channel: int = 0) -> Event:
    return tick, bytes((0xC0 | channel, number))


def meta(tick: int, kind: int, payload: bytes) -> Event:
    return tick, bytes((0xFF, kind)) + length(len(payload)) + payload


def tempo(tick: int, usec_per_quarter: int) -> Event:
    return meta(tick, 0x51, usec_per_quarter.to_bytes(3, "big"))
