"""Small files of known content, for data sets in miniature."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pretty_midi
import soundfile

#: Onset (s), end (s), pitch.
Note = tuple[float, float, int]


def write_tones(path: Path, notes: Sequence[Note], seconds: float, rate: int = 8000, level: float = 0.1) -> None:
    """A sine for every note, mono."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    audio = np.zeros(len(time))
    for onset, end, pitch in notes:
        sounding = (time >= onset) & (time < end)
        audio += level * sounding * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
    soundfile.write(path, audio, rate)


def write_notes(path: Path, instruments: Sequence[tuple[int, bool, Sequence[Note]]]) -> None:
    """A MIDI file with a track without notes and one for each program, is_drum, notes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    midi = pretty_midi.PrettyMIDI(resolution=480, initial_tempo=120)
    for program, drum, notes in instruments:
        instrument = pretty_midi.Instrument(program, is_drum=drum)
        instrument.notes = [pretty_midi.Note(80, pitch, onset, end) for onset, end, pitch in notes]
        midi.instruments.append(instrument)
    midi.write(str(path))


def rows(performance) -> list[tuple]:
    """Notes as sorted rows of onset, end (s, to the millisecond), pitch, program, whether a drum."""
    return sorted(
        (
            round(float(note["onset_sec"]), 3),
            round(float(note["onset_sec"] + note["duration_sec"]), 3),
            int(note["pitch"]),
            int(note["program"]),
            bool(note["channel"] == 9),
        )
        for note in performance.notes
    )
