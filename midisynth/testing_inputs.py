"""Small music files for the contract suite, made here so that an installed package is all it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from midisynth.music.clock import ticks_from_seconds
from midisynth.music.midi import write_midi
from midisynth.music.notes import CONTROL_DTYPE, NOTE_DTYPE, Performance
from midisynth.music.pedal import SUSTAIN


def example_inputs(reads: Sequence[str], folder: Path) -> list[Path]:
    """Small input files of the first kind that a model reads and this module can make.

    Args:
        reads: Suffixes.
        folder: Where they go.
    """
    makers: dict[str, Callable[[Path], Iterator[Path]]] = {
        ".mid": _midi_files,
        ".musicxml": _score_files,
        ".xml": _score_files,
        ".wav": _audio_files,
    }
    for suffix in reads:
        if suffix in makers:
            return list(makers[suffix](folder))
    assert not reads, f"no example inputs for {reads}: read .mid, .musicxml or .wav as well"
    return []


def performance_of(
    rows: Sequence[tuple[float, float, int, int, int]], pedal: Sequence[tuple[float, int]] = ()
) -> Performance:
    """A performance at 120 bpm.

    Args:
        rows: Notes: onset (seconds), duration (seconds), pitch, velocity, channel.
        pedal: Sustain pedal: time (seconds), value; on channel 0.
    """
    notes = np.zeros(len(rows), NOTE_DTYPE)
    for column, name in enumerate(("onset_sec", "duration_sec", "pitch", "velocity", "channel")):
        notes[name] = [row[column] for row in rows]
    controls = np.zeros(len(pedal), CONTROL_DTYPE)
    controls["time_sec"], controls["value"] = [time for time, _ in pedal], [value for _, value in pedal]
    controls["number"] = SUSTAIN
    return ticks_from_seconds(Performance(notes, controls, track_names=[""]))


def _midi_files(folder: Path) -> Iterator[Path]:
    scale = [(0.25 * i, 0.24, 60 + step, 50 + 8 * i, 0) for i, step in enumerate((0, 2, 4, 5, 7, 9, 11, 12))]
    chords = [(0.75 * i, 0.5, pitch, 90, 0) for i, chord in enumerate(((48, 64, 67), (53, 65, 69))) for pitch in chord]
    drums = [(0.5 * i, 0.1, 36 + 2 * (i % 2), 100, 9) for i in range(4)]
    pieces = {
        "scale": performance_of(scale),
        "pedalled": performance_of(chords, [(0.1, 127), (0.7, 0), (0.8, 127), (1.6, 0)]),
        "band": performance_of(scale + drums),
        "late": performance_of([(1.5, 0.5, 21, 1, 0), (1.5, 0.5, 108, 127, 0)]),
        "one_note": performance_of([(0.0, 1.0, 60, 64, 0)]),
    }
    for name, piece in pieces.items():
        write_midi(piece, folder / f"{name}.mid")
        yield folder / f"{name}.mid"


def _score_files(folder: Path) -> Iterator[Path]:
    for name, melody in {"rising": "CDEFGAB", "falling": "BAGF"}.items():
        notes = "".join(
            f"<note><pitch><step>{step}</step><octave>4</octave></pitch><duration>1</duration><voice>1</voice>"
            "<type>quarter</type></note>"
            for step in melody
        )
        measure = (
            f'<measure number="1"><attributes><divisions>1</divisions><time><beats>{len(melody)}</beats>'
            "<beat-type>4</beat-type></time><clef><sign>G</sign><line>2</line></clef></attributes>"
        )
        path = folder / f"{name}.musicxml"
        path.write_text(
            '<?xml version="1.0" encoding="UTF-8"?><score-partwise version="4.0"><part-list><score-part id="P1">'
            '<part-name>Piano</part-name></score-part></part-list><part id="P1">'
            f"{measure}{notes}</measure></part></score-partwise>",
            encoding="utf-8",
        )
        yield path


def _audio_files(folder: Path) -> Iterator[Path]:
    # Rate (Hz), channels and length (seconds): no two alike.
    for name, (rate, channels, seconds) in {"mono": (16000, 1, 1.0), "stereo": (44100, 2, 0.61)}.items():
        time = np.arange(round(rate * seconds))[:, None] / rate
        fading = np.exp(-3 * time) * np.sin(2 * np.pi * 440 * time) * np.linspace(0.2, 0.4, channels)
        path = folder / f"{name}.wav"
        soundfile.write(path, fading, rate)
        yield path
