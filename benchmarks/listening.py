"""Short OGG files for docs/listening.md: the same excerpts by a checkpoint or by a sampled instrument.

    python benchmarks/listening.py now --checkpoint spectrogram_diffusion_piano --pieces shared/ --output docs/audio
    python benchmarks/listening.py soundfont --sound /usr/share/sounds/sf2/FluidR3_GM.sf2 --pieces shared/ \
        --output docs/audio

writes OUTPUT/PIECE_LABEL.ogg for each MIDI file in the folder: its first --seconds, mono, faded out, and all at one
loudness (root mean square), so that the louder one does not sound better.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import chain
import torch
from torch import Tensor

from midisynth.audio.io import AudioWriter, load_audio
from midisynth.checkpoints import load_model
from midisynth.errors import MidisynthError

#: Root mean square of all excerpts (full scale is 1), and where they fade out (seconds).
LOUDNESS, FADE_SEC = 0.06, 0.5


def excerpt(audio: Tensor, rate: int, seconds: float) -> Tensor:
    """The beginning of [channels, samples], mono, faded out and at the common loudness: [1, samples]."""
    audio = audio.mean(dim=0, keepdim=True)[:, : round(seconds * rate)]
    fade = round(FADE_SEC * rate)
    audio[:, -fade:] *= torch.linspace(1, 0, fade)
    return audio * (LOUDNESS / audio.square().mean().sqrt())


def perform(options: argparse.Namespace, folder: Path) -> tuple[list[Path], int]:
    """Audio files of all pieces, and their rate (Hz)."""
    pieces = chain.cut_pieces(options.pieces, options.seconds, folder / "pieces")
    if options.sound:
        return chain.play(options.sound, pieces, folder / "audio", options.rate, options.sound_options), options.rate
    model = load_model(options.checkpoint)
    return chain.render(model, pieces, folder / "audio").audio, model.part("vocoder").sample_rate


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("label", help="of whoever plays, in names of files")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--checkpoint", help="anything that --ckpt_path takes")
    who.add_argument("--sound", type=Path, help="folder of samples, or a .sf2 or .sf3 file")
    parser.add_argument("--pieces", type=Path, required=True, help="folder of MIDI files that may be given away")
    parser.add_argument("--output", type=Path, required=True, help="folder for the .ogg files")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of the excerpts (default: %(default)s)")
    chain.add_sound_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            files, rate = perform(options, Path(folder))
            for file in files:
                with AudioWriter(options.output / f"{file.stem}_{options.label}.ogg", rate) as writer:
                    writer.write(excerpt(load_audio(file), rate, options.seconds))
                print(f"{writer.path}: {writer.path.stat().st_size / 1000:.0f} kB, peak {writer.report.peak:.2f}")
    except MidisynthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
