"""Seeded damage to good files, and a reading of it under a limit of time and memory in a process of its own."""

from __future__ import annotations

import random
import resource
import signal
import time
from collections.abc import Iterator

from midisynth.errors import MidiError
from midisynth.music.midi import read_midi

SECONDS, MEGABYTES = 2, 300  # for each file


def mutants(seeds: list[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """Files with bits flipped, bytes cut out, put in or set to extremes, cut short, or repeated."""
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(rng.choice(seeds))
        start = rng.randrange(len(data))
        match rng.randrange(6):
            case 0:
                del data[start:]
            case 1:
                for _ in range(rng.choice([1, 4, 16, 64])):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 2:
                del data[start : start + rng.randrange(1, 64)]
            case 3:
                data[start:start] = rng.randbytes(rng.randrange(1, 64))
            case 4:
                for _ in range(rng.choice([1, 4, 16])):
                    data[rng.randrange(min(len(data), 100))] = rng.choice([0, 1, 127, 128, 255])
            case 5:
                data[start:] = data[start:] * 3
        yield bytes(data)


def limit() -> None:
    """Bound the memory of this process to what it has and `MEGABYTES` more."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    bound = used + MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def outcome(data: bytes, repair: bool) -> tuple[str, float]:
    """ "read", "refused" or the exception that should not have come, and the time it took (CPU seconds)."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)  # a reader that hangs is killed, which breaks the pool
    start = time.process_time()
    try:
        performance = read_midi(data, repair=repair)
        assert 0 <= performance.end_sec <= 7200 + 60
        result = "read"
    except MidiError as error:
        assert "\n" not in str(error)
        result = "refused"
    except BaseException as error:
        result = repr(error)
    signal.alarm(0)
    return result, time.process_time() - start
