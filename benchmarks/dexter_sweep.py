"""Which solver, steps, guidance and temperature a DExter checkpoint should play with.

    python benchmarks/dexter_sweep.py my_pianist/ --data asap=data/asap --data vienna4x22=data/vienna4x22

Windows of the pieces for validation, which the checkpoint must not have been trained on, are sampled with every
setting. For each: correlation of the five parameters with those of the pianist (tempo and velocity along the onsets),
and how much tempo, velocity and timing vary beside how much they do for the pianist. Means over windows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from midisynth.checkpoints import load_model
from midisynth.datasets.corpus import SPLITS
from midisynth.errors import MidisynthError, UsageError
from midisynth.metrics.expression import correlation, tempo_curve, velocity_curve
from midisynth.models.dexter.data import DExterData
from midisynth.models.dexter.expression import ARTICULATION, PEDAL, TIMING, VELOCITY
from midisynth.models.dexter.model import DExter
from midisynth.models.dexter.validation import sample_windows

COLUMNS = ("tempo", "velocity", "timing", "articulation", "pedal", "tempo spread", "velocity spread", "timing spread")
#: Solver, steps, guidance, temperature.
SETTINGS = [
    ("ddim", 1, 1.0, 0.0),
    ("ddim", 2, 1.0, 0.0),
    ("ddim", 2, 1.5, 0.0),
    ("ddim", 2, 2.0, 0.0),
    ("ddim", 2, 1.5, 0.5),
    ("ddim", 2, 1.75, 0.5),
    ("ddim", 2, 2.0, 0.5),
    ("ddim", 2, 1.75, 1.0),
    ("ddim", 4, 1.75, 0.5),
    ("dpm_solver", 10, 1.0, 0.0),
    ("dpm_solver", 10, 1.5, 0.5),
    ("dpm_solver", 10, 1.0, 1.0),
    ("dpm_solver", 25, 1.5, 1.0),
    ("ddpm", 25, 1.0, 1.0),
]


def compared(model: DExter, batch: Mapping[str, Tensor], sampled: Tensor, row: int) -> list[float]:
    """`COLUMNS` of one sampled window; NaN where there is nothing to compare.

    Args:
        model: For its scales and codec.
        batch: Windows.
        sampled: [batch, notes, 5] z-scores.
        row: Of the batch.
    """
    matched = batch["matched"][row].numpy()
    onset = batch["onset"][row].numpy()[matched]
    values = model.denormalised(sampled, batch["level"])[row].numpy()[matched]
    human = batch["values"][row].numpy()[matched]
    if len(onset) < 10:
        return [np.nan] * len(COLUMNS)
    tempi = [np.log2(tempo_curve(onset, model.codec.expression.beat_periods(one))[1]) for one in (values, human)]
    velocities = [velocity_curve(onset, one[:, VELOCITY])[1] for one in (values, human)]
    others = [correlation(values[:, channel], human[:, channel]) for channel in (TIMING, ARTICULATION, PEDAL)]
    pairs = (tempi, velocities, (values[:, TIMING], human[:, TIMING]))
    spreads = [np.std(ours) / max(np.std(theirs), 1e-9) for ours, theirs in pairs]
    return [correlation(*(2.0**curve for curve in tempi)), correlation(*velocities), *others, *spreads]


@torch.no_grad()
def sweep(model: DExter, batches: Sequence[Mapping[str, Tensor]]) -> str:
    """A Markdown table of all settings."""
    names = ("solver", "steps", "guidance", "temperature", *COLUMNS, "CPU s")
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join(["---"] * len(names)) + " |"]
    for solver, steps, guidance, temperature in SETTINGS:
        model.hparams.update(solver=solver, sample_steps=steps, guidance=guidance, temperature=temperature)
        start = time.process_time()
        rows = []
        for batch in batches:
            sampled = sample_windows(model, batch, model.expected_midlevel(batch))
            rows += [compared(model, batch, sampled, row) for row in range(len(sampled))]
        cells = [f"{value:.2f}" for value in np.nanmean(rows, axis=0)]
        seconds = f"{time.process_time() - start:.1f}"
        lines.append("| " + " | ".join([solver, str(steps), str(guidance), str(temperature), *cells, seconds]) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of DExter")
    parser.add_argument("--data", action="append", required=True, metavar="CORPUS=FOLDER", help="may be repeated")
    parser.add_argument("--cache", help="folder for prepared data")
    parser.add_argument("--every", type=int, default=3, help="take every so many windows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        model = load_model(options.checkpoint).eval()
        if not isinstance(model, DExter):
            raise UsageError(f"{options.checkpoint} is no DExter")
        data = DExterData(dict(item.split("=", 1) for item in options.data), cache_dir=options.cache)
        data.connect(model)
        data.prepare(splits=[split for split in SPLITS if split == "validation"])
        data.setup("validate")
        windows = data.dataset("validation")
    except MidisynthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    chosen = [windows[index] for index in range(0, len(windows), options.every)]
    batches = [default_collate(chosen[first : first + 16]) for first in range(0, len(chosen), 16)]
    print(f"{len(chosen)} windows\n\n{sweep(model, batches)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
