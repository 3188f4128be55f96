"""Check a rendered WAV against the MIDI file that it was made from: sound, length, onsets. Exit code 1 if it fails."""

from __future__ import annotations

import sys

from midisynth.audio.io import load_audio
from midisynth.metrics.functional import onset_energy_rise
from midisynth.music.midi import read_midi

MIDI, WAV = sys.argv[1:3]
RATE = 16000
TAIL_SEC = 10.0  # longest release that is still no fault
STRUCK_DB = 3.0  # least rise of a note's band energy at its onset


def main() -> str | None:
    performance = read_midi(MIDI)
    audio = load_audio(WAV, RATE).mean(dim=0)
    rms = float(audio.square().mean().sqrt())
    seconds = len(audio) / RATE
    rise = onset_energy_rise(audio, RATE, performance.notes)
    heard = float((rise > STRUCK_DB).mean())
    print(
        f"{WAV}: {seconds:.1f} s for {performance.end_sec:.1f} s of notes, RMS {rms:.4f}, {heard:.0%} of onsets heard"
    )
    if rms < 1e-3:
        return "silent"
    if not performance.end_sec <= seconds <= performance.end_sec + TAIL_SEC:
        return "wrong length"
    if heard < 0.8:
        return "notes are missing"
    return None


if (fault := main()) is not None:
    sys.exit(f"{WAV}: {fault}")
