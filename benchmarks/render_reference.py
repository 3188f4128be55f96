"""Play MIDI files on a sampled instrument: what a model is compared with.

    python benchmarks/render_reference.py pieces/ --sound data/salamander --output salamander/
    python benchmarks/render_reference.py pieces/ --sound /usr/share/sounds/sf2/FluidR3_GM.sf2 --output fluidr3/

The sound is the folder of the Salamander samples, the instrument that the piano learns from, or any SoundFont.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from midisynth.audio.io import AudioWriter
from midisynth.datasets.sampled_piano import open_instrument
from midisynth.music.midi import read_midi

RATE = 16000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("midi", type=Path, help="folder of MIDI files")
    parser.add_argument("--sound", required=True, help="folder of samples, or a .sf2 or .sf3 file")
    parser.add_argument("--output", type=Path, required=True, help="folder for the WAV files")
    args = parser.parse_args()

    instrument = open_instrument(args.sound, RATE)
    args.output.mkdir(parents=True, exist_ok=True)
    for path in sorted(args.midi.glob("*.mid")):
        audio = instrument.render(read_midi(path))
        with AudioWriter(args.output / f"{path.stem}.wav", RATE) as writer:
            writer.write(audio.unsqueeze(0))
        print(f"{writer.path}: {len(audio) / RATE:.1f} s, peak {writer.report.peak:.2f}")


if __name__ == "__main__":
    main()
