"""What a performance costs and what it is worth, by solver and steps, against the published way of sampling.

    python benchmarks/dexter_speed.py dexter_piano --data asap=data/asap --data vienna4x22=data/vienna4x22 --pieces 5

The published program takes 999 ancestral steps, each with two runs of the network (with and without the score), in
windows of 200 notes that share 10 with the next: 1,998 runs for 190 new notes. Here the same weights sample in that way
and with few steps. Compute is counted in notes that pass through the network for each note of the piece, so that it
depends neither on the machine nor on the size of the network; seconds are those of this machine, one thread on a CPU.
Quality is what `midisynth test` measures, on the pieces for testing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from dexter_ridge import open_data

from midisynth.checkpoints import load_model
from midisynth.errors import MidisynthError
from midisynth.evaluation import PREDICTION
from midisynth.interpretations import piece_scores
from midisynth.metrics.interpretation import Interpretation
from midisynth.models.dexter.evaluation import WholePieces, play_pieces
from midisynth.models.dexter.model import DExter
from midisynth.reports import write_json

PUBLISHED = "published"
#: Runs of the network for each window in the published program, notes in a window, and new notes.
RUNS, WINDOW, NEW = 1998, 200, 190
MEASURES = ("correlation", "kl", "deviation")
SCORES = [f"{what}_{measure}" for measure in MEASURES for what in ("tempo", "velocity", "timing", "articulation")]


class Counter:
    """Counts the notes that pass through a network.

    Args:
        model: Whose network is counted.
    """

    def __init__(self, model: DExter):
        self.notes = self.runs = 0
        denoise = model.network.denoise

        def counted(x: torch.Tensor, t: torch.Tensor, conditioned: Any) -> torch.Tensor:
            self.runs += 1
            self.notes += conditioned.rows * x.shape[1]
            return denoise(x, t, conditioned)

        model.network.denoise = counted


def settings(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Name -> options of the model."""
    found: dict[str, dict[str, Any]] = {"as shipped": {}}
    for solver in options.solvers:
        found |= {f"{solver} {steps}": {"solver": solver, "sample_steps": steps} for steps in options.steps}
    if options.published_steps:
        found[PUBLISHED] = {
            "solver": "ddpm",
            "sample_steps": options.published_steps,
            "window": WINDOW,
            "overlap": WINDOW - NEW,
        }
    return found


def measure(model: DExter, examples: Sequence[Mapping[str, Any]], renderings: int) -> dict[str, float]:
    """Cost and quality of one setting, means over pieces.

    Args:
        model: On its device, in evaluation mode.
        examples: Of `WholePieces`.
        renderings: Performances of each piece.
    """
    counter = Counter(model)
    notes, seconds = 0, 0.0
    scores: list[Mapping[str, float]] = []
    for example in examples:
        start = time.perf_counter()
        (piece,) = play_pieces(model, [example], renderings=renderings).pieces
        seconds += time.perf_counter() - start
        notes += renderings * len(example["piece"]["score"].notes)
        rows = {PREDICTION: [Interpretation.of(one) for one in piece.made]}
        scores.append(piece_scores([Interpretation.of(human) for human in piece.humans], rows)[PREDICTION])
    return {
        "compute_per_note": counter.notes / notes,
        "less_than_published": RUNS * WINDOW / NEW / (counter.notes / notes),
        "seconds_per_note": seconds / notes,
        "seconds_per_run": seconds / counter.runs,
        **{name: sum(one[name] for one in scores) / len(scores) for name in SCORES},
    }


def main() -> None:
    """Measure every setting, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of DExter")
    parser.add_argument("--data", action="append", required=True, metavar="CORPUS=FOLDER", help="may be repeated")
    parser.add_argument("--cache", help="folder for prepared data")
    parser.add_argument("--pieces", type=int, default=2, help="how many scores, the shortest first")
    parser.add_argument("--renderings", type=int, default=1, help="performances of each piece")
    parser.add_argument("--solvers", nargs="*", default=["ddpm", "dpm_solver"])
    parser.add_argument("--steps", type=int, nargs="*", default=[10, 25, 50])
    parser.add_argument("--published_steps", type=int, default=999, help="0 leaves the published way out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = open_data(dict(text.split("=", 1) for text in options.data), options.cache)
    results: dict[str, dict[str, float]] = {}
    examples: list[Mapping[str, Any]] = []
    columns = ("compute_per_note", "less_than_published", "seconds_per_note", *SCORES)
    print("| setting | " + " | ".join(name.replace("correlation", "r").replace("_", " ") for name in columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    for name, changes in settings(options).items():
        model = load_model(options.checkpoint, **changes).to(options.device)
        if not examples:
            pieces = WholePieces(data.parts("test"), model.codec)
            everything = sorted((pieces[i] for i in range(len(pieces))), key=lambda e: len(e["piece"]["score"].notes))
            examples = everything[: options.pieces]
        with torch.inference_mode():
            results[name] = measure(model, examples, options.renderings)
        print(f"| {name} | " + " | ".join(f"{results[name][column]:.3g}" for column in columns) + " |", flush=True)
    if options.output is not None:
        names = [example["name"] for example in examples]
        write_json(options.output, {"checkpoint": options.checkpoint, "pieces": names, "settings": results})


if __name__ == "__main__":
    try:
        main()
    except MidisynthError as error:
        sys.exit(f"error: {error}")
