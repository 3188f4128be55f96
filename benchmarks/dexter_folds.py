"""DExter beside ridge regression on pieces that neither was trained on, by cross-validation over pieces.

    python benchmarks/dexter_folds.py --asap data/asap --vienna4x22 data/vienna4x22 --output folds/

The pieces are those that the two corpora give for training by themselves: nobody has looked at them to choose how the
model is built, trained or sampled. Each fold leaves out some of them; `dexter/demo` and the regression are trained
alike on the others and on the pieces for validation and testing, which are never judged. A fold that is in the output
folder is not computed again. Everything is judged as `midisynth test` does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from math import nan
from pathlib import Path
from typing import Any

import torch
from dexter_ridge import Ridge, judged, open_data, report, training_pieces

from midisynth.checkpoints import load_model
from midisynth.datasets.asap import Asap
from midisynth.datasets.vienna4x22 import Vienna4x22
from midisynth.errors import MidisynthError
from midisynth.reports import write_json


def unseen(roots: dict[str, str]) -> dict[str, list[str]]:
    """Pieces for training of every corpus, in the order of their names."""
    corpora = {"asap": Asap, "vienna4x22": Vienna4x22}
    found = {name: corpora[name](root).records() for name, root in roots.items()}
    # One corpus may test what the other trains on.
    seen = {record.piece for records in found.values() for record in records if record.split != "train"}
    return {name: sorted({record.piece for record in records} - seen) for name, records in found.items()}


def fold(roots: dict[str, str], left_out: dict[str, list[str]], folder: Path, cache: str, more: list[str]) -> Any:
    """Train both without some pieces, and score them on these.

    Args:
        roots: Of the corpora.
        left_out: Pieces of each.
        folder: For the checkpoint.
        cache: Folder for prepared data.
        more: Options of `midisynth fit`.
    """
    # Pieces of this list alone are for testing, none for validation: a named list takes the place of the hash.
    corpora = {
        name: {"root": root, "test_pieces": left_out[name], "validation_pieces": []} for name, root in roots.items()
    }
    if not (folder / "last.ckpt").is_file():
        command = [sys.executable, "-m", "midisynth", "fit", "--config", "dexter/demo", f"--data.cache_dir={cache}"]
        # Training wants something to validate on; nothing is chosen by what comes of it.
        first, *rest = left_out["asap"]
        fitted = {**corpora, "asap": {**corpora["asap"], "test_pieces": rest, "validation_pieces": [first]}}
        command += [f"--data.corpora.{name}={json.dumps(options)}" for name, options in fitted.items()]
        command += [f"--trainer.default_root_dir={folder}", f"--trainer.callbacks.dirpath={folder}"]
        subprocess.run([*command, *more], check=True)
    data = open_data(corpora, cache)
    return judged(Ridge(training_pieces(data)), load_model(str(folder / "last.ckpt")).eval(), data)


def main() -> None:
    """Compute the folds that are missing, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asap", required=True, help="folder of the corpus")
    parser.add_argument("--vienna4x22", required=True, help="folder of the corpus")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--cache", help="folder for prepared data")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and scores")
    options, more = parser.parse_known_args()
    torch.set_num_threads(1)
    roots = {"asap": options.asap, "vienna4x22": options.vienna4x22}
    pieces = unseen(roots)
    cache = options.cache or str(options.output / "cache")
    scores: dict[str, Any] = {}
    for number in range(options.folds):
        file = options.output / f"fold_{number}.json"
        if not file.is_file():
            left_out = {name: found[number :: options.folds] for name, found in pieces.items()}
            write_json(file, fold(roots, left_out, options.output / str(number), cache, more))
        # JSON has no NaN.
        read = json.loads(
            file.read_text(), object_pairs_hook=lambda found: {k: nan if v is None else v for k, v in found}
        )
        scores |= read
    write_json(options.output / "folds.json", report(scores))


if __name__ == "__main__":
    try:
        main()
    except MidisynthError as error:
        sys.exit(f"error: {error}")
