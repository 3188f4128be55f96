"""Draw a MIDI file and the mel spectrogram of its rendering, one above the other.

midisynth predict examples/mozart_k331.mid
python docs/images/draw.py examples/mozart_k331.mid examples/mozart_k331.wav docs/images/mozart_k331.png
"""

from __future__ import annotations

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from midisynth.audio.features import LogMel
from midisynth.audio.io import load_audio
from midisynth.music.midi import read_midi

RATE = 16000
HOP = 320


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("midi")
    parser.add_argument("audio")
    parser.add_argument("picture")
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()

    notes = read_midi(args.midi).notes
    notes = notes[notes["onset_sec"] < args.seconds]
    audio = load_audio(args.audio, RATE).mean(dim=0, keepdim=True)[:, : int(args.seconds * RATE)]
    mel = LogMel(sample_rate=RATE, hop_length=HOP)(audio)[0]

    figure, (above, below) = plt.subplots(2, 1, figsize=(11, 5.2), sharex=True, height_ratios=[1, 1.3])
    bars = above.barh(notes["pitch"], notes["duration_sec"], left=notes["onset_sec"], height=0.9)
    for bar, velocity in zip(bars, notes["velocity"], strict=True):
        bar.set_color(plt.cm.viridis(velocity / 110))
    above.set_ylabel("MIDI key")
    below.imshow(
        mel.T.clamp(min=-9),
        origin="lower",
        aspect="auto",
        extent=(0, len(mel) * HOP / RATE, 0, mel.shape[1]),
        cmap="magma",
    )
    below.set_ylabel("mel bin")
    below.set_xlabel("seconds")
    above.set_xlim(0, args.seconds)
    figure.tight_layout()
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main()
