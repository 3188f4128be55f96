"""How a checkpoint's solver, steps, guidance, segments and overlap are chosen: quality and speed of each setting.

    python benchmarks/sweep.py spectrogram_diffusion_piano --pieces reserve/ --piano data/salamander --solvers ddim \
        dpm_solver ddpm --steps 1 2 4 8 --segments 64 128 256 --overlaps 0 16 32 --output benchmarks/sweep

Every setting renders the same pieces with the same seed, and is compared with the sampled piano (`judge.py` explains
the figures; nothing is transcribed). What is not varied is as in the checkpoint. Segments of another length are made by
the same weights, which learned one length: what a network knows of positions is cut off or continued. OUTPUT.json keeps
every setting that was measured, and a run leaves out what is there; OUTPUT.md is its table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import chain
import tables
import torch
from evaluate import MEL_RATE, Pair, evaluate, mean
from judge import add_arguments, score_spectrogram
from torch import Tensor

from midisynth.checkpoints import load_model
from midisynth.datasets.files import replacing
from midisynth.errors import MidisynthError
from midisynth.module import MidiModule
from midisynth.nn.positions import sinusoids

SCORES = ("log_spectral_distance", "spectral_convergence", "flux_ratio", "held_flux_ratio")


def settings(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What to try: every solver with every number of steps, every guidance, every overlap of segments of every length.

    At most half of a segment can overlap. Without lengths, overlaps are those of the checkpoint's own segments.
    """
    for solver, steps in product(options.solvers, options.steps):
        yield {"solver": solver, "sample_steps": steps}
    for scale in options.guidance:
        yield {"guidance_scale": scale}
    for frames, overlap in product(options.segments, options.overlaps):
        if overlap <= frames // 2:
            yield {"segment_frames": frames, "overlap_frames": overlap}
    for overlap in options.overlaps if not options.segments else ():
        yield {"overlap_frames": overlap}


def load(checkpoint: str, setting: Mapping[str, Any]) -> MidiModule:
    """A checkpoint with other options, with positions for as many frames as its segments then have."""
    options = dict(setting)
    frames = options.pop("segment_frames", None)
    model = load_model(checkpoint, **options)
    if frames is None:
        return model
    other = type(model)(**{**model.hparams, "segment_frames": frames})
    state, sizes = model.state_dict(), {name: tensor.shape for name, tensor in other.state_dict().items()}
    for name in [name for name, tensor in state.items() if tensor.shape != sizes[name]]:
        if not name.endswith("_positions"):
            raise MidisynthError(f"--segments: the tokens of {checkpoint} are for segments of its own length ({name})")
        state[name] = continued(state[name], frames)
    other.load_state_dict(state)
    return other.eval()


def continued(table: Tensor, rows: int) -> Tensor:
    """A table of sinusoids with random phases [positions, dim], cut off or continued to so many positions.

    Each column is fitted with every rate that such tables have, and goes on as the one that fits best.
    """
    known, half = len(table), table.shape[1] // 2
    basis = sinusoids(max(rows, known), 2 * half).double()
    pairs = torch.stack([basis[:, :half], basis[:, half:]], dim=-1).transpose(0, 1)  # [rates, positions, 2]
    fits = pairs @ torch.linalg.lstsq(pairs[:, :known], table.double().expand(half, -1, -1)).solution
    best = (fits[:, :known] - table).square().sum(dim=1).argmin(dim=0)
    made = fits[best, :, torch.arange(2 * half)].T.to(table.dtype)
    return torch.cat([table, made[known:]])[:rows]


def measure(
    setting: dict[str, Any], pieces: Sequence[Path], pianos: Sequence[Path], options: argparse.Namespace
) -> dict[str, Any]:
    """Mean scores and speed of one setting."""
    model = load(options.checkpoint, setting)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        chain.render(model, pieces[:1], Path(folder))  # first calls are slower, and not what is measured
        run = chain.render(model, pieces, Path(folder))
        for file, stream, piece, piano in zip(run.audio, run.streams, pieces, pianos, strict=True):
            pair = Pair(file, piece, piano)
            scores = evaluate(pair, None, seconds=options.seconds, offset=0.0, sample_rate=MEL_RATE)
            rows.append(
                {name: scores[name] for name in SCORES} | score_spectrogram(stream.mel, piano, piece, options.seconds)
            )
    return {"setting": setting, **mean(rows), "speed": run.speed()}


def sweep(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what is not in the file yet; it is written after every setting."""
    path = options.output.with_suffix(".json")
    facts = {name: getattr(options, name) for name in ("checkpoint", "seconds", "rate", "sound_options")}
    facts["digest"] = chain.digest(load_model(options.checkpoint))
    found = json.loads(path.read_text()) if path.is_file() else {**facts, "sweep": []}
    if any(found[name] != value for name, value in facts.items()):
        raise MidisynthError(f"{path}: is of another checkpoint or other options; delete it, or name another --output")
    missing = [s for s in settings(options) if all(s != row["setting"] for row in found["sweep"])]
    with tempfile.TemporaryDirectory() as folder:
        pieces = chain.cut_pieces(options.pieces, options.seconds, Path(folder, "pieces"))
        pianos = chain.play(options.piano, pieces, Path(folder, "piano"), options.rate, options.sound_options)
        for setting in missing:
            found["sweep"].append(measure(setting, pieces, pianos, options))
            with replacing(path) as file:
                file.write((json.dumps(found, indent=1) + "\n").encode())
            print(setting, file=sys.stderr)
    return found["sweep"]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--solvers", nargs="*", default=[])
    parser.add_argument("--steps", nargs="*", type=int, default=[])
    parser.add_argument("--guidance", nargs="*", type=float, default=[], help="of checkpoints with tokens")
    parser.add_argument("--segments", nargs="*", type=int, default=[], help="frames that are generated at once")
    parser.add_argument(
        "--overlaps", nargs="*", type=int, default=[], help="frames of the fade, each with each segment"
    )
    parser.add_argument("--output", type=Path, required=True, help="where .json and .md go, without suffix")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        text = tables.sweep({"sweep": sweep(options)})
    except MidisynthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.output.with_suffix(".md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
