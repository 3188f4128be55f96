"""How a performance comes out of the noise, as an animation: a frame for every step of the sampler.

    python benchmarks/dexter_denoising.py dexter_piano examples/bach_minuet.musicxml denoising.gif

Tempo and velocity over the score: grey is what the sampler holds, blue what the network makes of it. More steps make a
longer animation: `--steps 50`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from midisynth.checkpoints import load_model
from midisynth.errors import MidisynthError
from midisynth.models.dexter.plots import denoising_animation, denoising_steps
from midisynth.module import Item, Noise


def main() -> None:
    """Sample and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of DExter")
    parser.add_argument("score", type=Path)
    parser.add_argument("output", type=Path, help="GIF file")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = load_model(options.checkpoint, sample_steps=options.steps)
    piece = model.codec.encode(options.score)
    noise = Noise([Item(options.score, options.output, options.score.name)], options.seed)
    steps = denoising_steps(model, piece, lambda number, shape: noise.normal(0, number, shape))
    denoising_animation(piece["score"], steps, model.codec.expression, options.output)


if __name__ == "__main__":
    try:
        main()
    except MidisynthError as error:
        sys.exit(f"error: {error}")
