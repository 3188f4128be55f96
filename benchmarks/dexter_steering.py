"""How far a DExter checkpoint follows when it is steered.

    python benchmarks/dexter_steering.py dexter_piano scores/*.musicxml --output steering.json

Every score is performed as it is and with each mid-level feature moved by one standard deviation down and up, with the
same noise. What is told is how much the feature, described from the notes that were played, is larger with up than with
down, per standard deviation asked for: 1 follows fully, 0 does not hear, below 0 does the opposite.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from midisynth.checkpoints import load_model
from midisynth.errors import MidisynthError, UsageError
from midisynth.models.dexter.descriptors import MIDLEVEL, describe
from midisynth.models.dexter.model import DExter
from midisynth.models.dexter.rendering import perform
from midisynth.module import Item, Noise
from midisynth.reports import write_json


@torch.inference_mode()
def described(model: DExter, path: Path, steer: dict[str, float]) -> np.ndarray:
    """Mean of the features of a performance, [7] in standard deviations of human performances."""
    model.hparams.steer = steer
    noise = Noise([Item(path, path, path.name)], 0)
    made = perform(model, model.codec.encode(path), lambda draw, shape: noise.normal(0, draw, shape))
    notes = made.performance.notes
    found = describe(notes["onset_sec"], notes["duration_sec"], notes["pitch"]).mean(axis=0)
    return model.standardised(torch.from_numpy(found)).numpy()


def main() -> None:
    """Measure every score and feature, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of DExter")
    parser.add_argument("scores", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.checkpoint).eval()
    if not isinstance(model, DExter):
        raise UsageError(f"{options.checkpoint} is no DExter")
    responses = {
        str(path): [
            float(described(model, path, {name: 1.0})[index] - described(model, path, {name: -1.0})[index]) / 2
            for index, name in enumerate(MIDLEVEL)
        ]
        for path in options.scores
    }
    values = np.array(list(responses.values()))
    print(f"{len(values)} scores\n\n| feature | response | scores that follow |\n| --- | --- | --- |")
    for index, name in enumerate(MIDLEVEL):
        print(f"| {name} | {values[:, index].mean():.2f} | {(values[:, index] > 0).sum()} |")
    if options.output is not None:
        write_json(options.output, {"checkpoint": options.checkpoint, "features": MIDLEVEL, "responses": responses})


if __name__ == "__main__":
    try:
        main()
    except MidisynthError as error:
        sys.exit(f"error: {error}")
