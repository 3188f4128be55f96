"""A corpus that needs no recordings: MIDI files, played on strings simulated by the algorithm of Karplus and Strong.

K. Karplus, A. Strong, "Digital Synthesis of Plucked-String and Drum Timbres", Computer Music Journal 7(2), 1983.
The MIDI files that come with the package are played unless another folder is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from midisynth.datasets.corpus import Corpus, Record, split_by_hash
from midisynth.errors import DataError
from midisynth.music.notes import is_drum
from midisynth.music.pedal import extend_by_pedal

MUSIC = Path(__file__).parent / "music"
PLUCK_POSITION = 0.2  # from the bridge, as a part of the string
RELEASE_SEC = 0.03  # time constant of a finger that stops the string
TAIL_SEC = 0.3


@dataclass(frozen=True)
class PluckedRecord(Record):
    """A MIDI file whose audio is simulated when it is asked for."""

    def waveform(self, sample_rate: int) -> Tensor:
        """Audio of the whole file, [samples] float32.

        Args:
            sample_rate: Of the result (Hz).
        """
        performance = extend_by_pedal(self.performance())
        audio = np.zeros(round((performance.end_sec + TAIL_SEC) * sample_rate), np.float32)
        for note in performance.notes[~is_drum(performance.notes)]:
            onset = round(float(note["onset_sec"]) * sample_rate)
            held = round(float(note["duration_sec"]) * sample_rate)
            string = karplus_strong(int(note["pitch"]), int(note["velocity"]), sample_rate)
            string = string[: min(held + round(TAIL_SEC * sample_rate), len(audio) - onset)]
            seconds_after_end = np.clip(np.arange(len(string)) - held, 0, None) / sample_rate
            audio[onset : onset + len(string)] += string * np.exp(-seconds_after_end / RELEASE_SEC, dtype=np.float32)
        return torch.from_numpy(audio)


class KarplusStrong(Corpus):
    """A folder of MIDI files, played on simulated strings.

    Args:
        root: Folder of the MIDI files; the ones that come with this package when empty.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    version: ClassVar[int] = 1

    def __init__(self, root: str = "", weight: float = 1.0):
        super().__init__(root or str(MUSIC), weight)

    def records(self) -> list[Record]:
        files = sorted(self.root.rglob("*.mid"))
        if not files:
            raise DataError(f"karplus_strong: no *.mid file in {self.root}")
        names = [file.relative_to(self.root).with_suffix("").as_posix().replace("/", "_") for file in files]
        return [
            PluckedRecord("karplus_strong", id=name, piece=name, split=split_by_hash(name), midi=file)
            for name, file in zip(names, files, strict=True)
        ]


@lru_cache(maxsize=512)
def karplus_strong(pitch: int, velocity: int, sample_rate: int, seconds: float = 4.0) -> np.ndarray:
    """Let one string ring: a delay line of one period whose output is averaged with its neighbour and fed back.

    The average delays by half a sample, linear interpolation by the fraction that tunes the string. The line starts
    as a plucked string, a triangle, whose harmonics are the duller the softer it is played.

    Args:
        pitch: MIDI key number.
        velocity: 1 to 127.
        sample_rate: Of the result (Hz).
        seconds: Length of the result.

    Returns:
        [samples] float32
    """
    period = sample_rate / (440 * 2 ** ((pitch - 69) / 12))
    line = max(int(period - 0.5), 2)
    fraction = min(period - 0.5 - line, 1.0)
    place = np.arange(line) / line
    spectrum = np.fft.rfft(np.interp(place, [0, PLUCK_POSITION, 1], [-1, 1, -1]))
    spectrum *= (velocity / 127) ** (0.25 * np.arange(len(spectrum)) + 1)
    spectrum[0] = 0
    audio = np.zeros(2 + line + round(seconds * sample_rate) // line * line)
    audio[2 : 2 + line] = 0.2 * np.fft.irfft(spectrum, line)
    for now in range(2 + line, len(audio), line):
        last = audio[now - line - 2 : now]
        audio[now : now + line] = 0.5 * ((1 - fraction) * last[2:] + last[1:-1] + fraction * last[:-2])
    return audio[2:].astype(np.float32)
