"""Pictures for the documentation: a piece and its rendering, sounds of one piece beside each other, the loss of a run.

midisynth predict examples/mozart_k331.mid
python docs/images/draw.py piece examples/mozart_k331.mid examples/mozart_k331.wav docs/images/mozart_k331.png
python docs/images/draw.py compare "sampled piano=piano.flac" "Griffin-Lim=before.wav" "now=after.wav" chains.png
python docs/images/draw.py loss lightning_logs/version_0/metrics.csv loss.png
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps

from midisynth.audio.features import LogMel
from midisynth.audio.io import load_audio
from midisynth.music.midi import read_midi
from midisynth.pictures import draw_spectrograms, new_figure, save

RATE = 16000
HOP = 320


def draw_piece(midi: Path, audio: Path, picture: Path, seconds: float) -> None:
    """A MIDI file above the mel spectrogram of its rendering."""
    notes = read_midi(midi).notes
    notes = notes[notes["onset_sec"] < seconds]
    sound = load_audio(audio, RATE).mean(dim=0, keepdim=True)[:, : int(seconds * RATE)]
    mel = LogMel(sample_rate=RATE, hop_length=HOP)(sound)[0]

    figure, (above, below) = new_figure(2, 2.6)
    bars = above.barh(notes["pitch"], notes["duration_sec"], left=notes["onset_sec"], height=0.9)
    for bar, velocity in zip(bars, notes["velocity"], strict=True):
        bar.set_color(colormaps["viridis"](velocity / 110))
    above.set_ylabel("MIDI key")
    extent = (0, len(mel) * HOP / RATE, 0, mel.shape[1])
    below.imshow(mel.T.clamp(min=-9), origin="lower", aspect="auto", extent=extent, cmap="magma")
    below.set_ylabel("mel bin")
    below.set_xlabel("seconds")
    above.set_xlim(0, seconds)
    save(figure, picture)


def draw_comparison(sounds: Sequence[tuple[str, Path]], picture: Path, start: float, seconds: float, rate: int) -> None:
    """Spectrograms one above the other, in decibels below the loudest point of the first.

    Args:
        sounds: Titles and audio files.
        picture: The .png file.
        start: Where the excerpt begins (seconds).
        seconds: Its length (seconds).
        rate: Sounds are resampled to it: the picture reaches up to half of it (Hz).
    """
    loaded = {title: load_audio(path, rate).mean(dim=0) for title, path in sounds}
    save(draw_spectrograms(loaded, rate, start, seconds), picture)


def draw_loss(log: Path, picture: Path) -> None:
    """Losses by step, from the CSV file of a run."""
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, (axis,) = new_figure(1, 3.6, 7.0)
    for name, style in (("train/loss", {"alpha": 0.5, "linewidth": 0.8}), ("val/loss", {"marker": "o"})):
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        if points:
            axis.plot(*zip(*points, strict=True), label=name, **style)
    axis.set_xlabel("step")
    axis.set_yscale("log")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    save(figure, picture)


def _titled(text: str) -> tuple[str, Path]:
    title, sign, path = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not TITLE=FILE")
    return title, Path(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    piece = kinds.add_parser("piece", help="a MIDI file and its rendering")
    piece.add_argument("midi", type=Path)
    piece.add_argument("audio", type=Path)
    compare = kinds.add_parser("compare", help="spectrograms of sounds")
    compare.add_argument("sounds", nargs="+", type=_titled, metavar="TITLE=FILE")
    compare.add_argument("--start", type=float, default=0.0)
    compare.add_argument("--rate", type=int, default=RATE, help="twice the highest frequency (default: %(default)s)")
    loss = kinds.add_parser("loss", help="the losses of a run")
    loss.add_argument("log", type=Path, help="metrics.csv")
    for kind, seconds in ((piece, 20.0), (compare, 6.0)):
        kind.add_argument("--seconds", type=float, default=seconds)
    for kind in (piece, compare, loss):
        kind.add_argument("picture", type=Path)
    args = parser.parse_args()

    if args.kind == "piece":
        draw_piece(args.midi, args.audio, args.picture, args.seconds)
    elif args.kind == "compare":
        draw_comparison(args.sounds, args.picture, args.start, args.seconds, args.rate)
    else:
        draw_loss(args.log, args.picture)


if __name__ == "__main__":
    main()
