"""Judge checkpoints by pieces that no training saw, beside the instrument that they imitate and a SoundFont.

    python benchmarks/judge.py spectrogram_diffusion_piano --pieces reserve/ --piano data/salamander \
        --soundfont /usr/share/sounds/sf2/FluidR3_GM.sf2 --output judged/

Each piece is cut to its first --seconds and played by the sampled piano, the SoundFont and the checkpoint (as
`midisynth predict` does). `evaluate.py` scores all of them against the notes and against the sampled piano; for the
checkpoint the spectrogram before the vocoder is scored as well, and speed and size are noted. A twin shows what
distances mean nothing: it is the sampled piano with onsets moved by up to 3 ms, which nobody hears. Every contestant
gets OUTPUT/NAME.json, the tables of all that are there go to OUTPUT/README.md (`tables.py` makes them).

Rendering is quick and done every time; transcription is slow and done once for a sound, so a run that was stopped goes
on where it was. The sampled piano plays at --rate; sounds are compared at 16 kHz and, where a checkpoint's rate is
higher, at the lower of both rates.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chain
import tables
import torch
from evaluate import (
    AUDIBLE,
    MEL_RATE,
    Pair,
    RememberingTranscriber,
    distances,
    evaluate,
    excerpt,
    finite,
    flux_ratios,
    load_excerpt,
    mean,
)
from torch import Tensor

from midisynth import weights
from midisynth.audio.features import LogMel
from midisynth.audio.io import resample
from midisynth.checkpoints import load_model
from midisynth.datasets.files import replacing
from midisynth.errors import MidisynthError
from midisynth.metrics.functional import mel_error
from midisynth.music.midi import read_midi
from midisynth.music.pedal import extend_by_pedal

PIANO, SOUNDFONT, TWIN = "piano", "soundfont", "twin"
#: By how much the onsets of the twin are moved at most (seconds).
TWIN_SEC = 0.003


def score(
    audio: Sequence[Path], pieces: Sequence[Path], pianos: Sequence[Path], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Scores of the renderings of one contestant by piece."""
    hear = None if options.no_transcriber else RememberingTranscriber(options.output / "transcriptions")
    scores = {}
    for file, piece, piano in zip(audio, pieces, pianos, strict=True):
        print(f"{file.parent.name}: {piece.stem}", file=sys.stderr)
        pair = Pair(file, piece, None if file == piano else piano)
        scores[piece.stem] = evaluate(pair, hear, seconds=options.seconds, offset=0.0, sample_rate=MEL_RATE)
        # Each contestant stands for itself; the piano's own score is in its own file.
        scores[piece.stem].pop("reference_f1", None)
    return scores


def score_spectrogram(mel: Tensor, piano: Path, piece: Path, seconds: float) -> dict[str, float]:
    """A spectrogram [frames, mels] before the vocoder, compared with that of the sampled piano."""
    notes, _ = excerpt(extend_by_pedal(read_midi(piece)).notes, 0.0, seconds)
    wanted = LogMel()(resample(*load_excerpt(piano, 0.0, seconds), MEL_RATE)[None])[0].clamp(*AUDIBLE)
    # What a short rendering lacks at the end is silence.
    mel = torch.nn.functional.pad(mel, (0, 0, 0, max(len(wanted) - len(mel), 0)), value=AUDIBLE[0])
    mel = mel[: len(wanted)].clamp(*AUDIBLE)
    flux = {f"mel_{name}": value for name, value in flux_ratios(mel, wanted, notes).items()}
    return {"mel_error": float(mel_error(mel, wanted)), **flux}


def score_twin(
    pieces: Sequence[Path], pianos: Sequence[Path], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Distances of the sampled piano from itself by piece, when its onsets are moved a little."""
    moved = chain.moved_pieces(pieces, TWIN_SEC, options.output / "moved")
    twins = chain.play(options.piano, moved, options.output / TWIN, options.rate, options.sound_options)
    scores = {}
    for twin, piece, piano in zip(twins, pieces, pianos, strict=True):
        scores[piece.stem] = evaluate(
            Pair(twin, piece, piano), None, seconds=options.seconds, offset=0.0, sample_rate=MEL_RATE
        )
        audio, rate = load_excerpt(twin, 0.0, options.seconds)
        mel = LogMel()(resample(audio, rate, MEL_RATE)[None])[0]
        scores[piece.stem] |= score_spectrogram(mel, piano, piece, options.seconds)
        scores[piece.stem] |= full_band(twin, piano, piece, options.seconds)
    return scores


def full_band(file: Path, piano: Path, piece: Path, seconds: float) -> dict[str, float]:
    """Distances at the lower of two rates, where that is more than `MEL_RATE`."""
    audio, rate = load_excerpt(file, 0.0, seconds)
    reference, reference_rate = load_excerpt(piano, 0.0, seconds)
    lower = min(rate, reference_rate)
    if lower == MEL_RATE:
        return {}
    notes, _ = excerpt(read_midi(piece).notes, 0.0, seconds)
    found = distances(resample(audio, rate, lower), resample(reference, reference_rate, lower), lower, notes)
    return {"full_rate": lower, "full_log_spectral_distance": found["log_spectral_distance"]}


def size(reference: str) -> int:
    """Bytes of a checkpoint: a file, a folder, or the name of one that ships; 0 for what has none."""
    shipped = weights.find(reference)
    path = Path(reference) if shipped is None else shipped.folder
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def judge(
    reference: str, pieces: Sequence[Path], pianos: Sequence[Path], options: argparse.Namespace
) -> dict[str, Any]:
    """Render pieces with a checkpoint and score it."""
    model = load_model(reference, **options.override)
    folder = options.output / name_of(reference, options)
    chain.render(model, pieces[:1], folder)  # first calls are slower, and not what is measured
    run = chain.render(model, pieces, folder)
    scores = score(run.audio, pieces, pianos, options)
    for stream, file, piece, piano in zip(run.streams, run.audio, pieces, pianos, strict=True):
        scores[piece.stem] |= score_spectrogram(stream.mel, piano, piece, options.seconds)
        scores[piece.stem] |= full_band(file, piano, piece, options.seconds)
    vocoder = model.part("vocoder")
    facts = {
        "checkpoint": reference,
        "digest": chain.digest(model),
        "override": options.override,
        "vocoder": model.hparams.vocoder,
        "sample_rate": vocoder.sample_rate,
        "bytes": size(reference) + size(model.hparams.vocoder),
        "speed": run.speed(),
    }
    return facts | result(scores)


def result(scores: Mapping[str, dict[str, float]]) -> dict[str, Any]:
    """Scores as they are written."""
    return {
        "mean": finite(mean(list(scores.values()))),
        "pieces": {name: finite(row) for name, row in scores.items()},
    }


def name_of(reference: str, options: argparse.Namespace) -> str:
    """What a checkpoint is called in tables and files."""
    return options.name or Path(reference).stem


def write(found: Mapping[str, Any], path: Path, options: argparse.Namespace) -> None:
    settings = {"seconds": options.seconds, "reference_rate": options.rate, "sound_options": options.sound_options}
    with replacing(path) as file:
        file.write((json.dumps({**settings, **found}, indent=1) + "\n").encode())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is rendered, and what it is compared with."""
    parser.add_argument("checkpoint", help="anything that --ckpt_path takes")
    parser.add_argument("--pieces", type=Path, required=True, help="folder of MIDI files")
    parser.add_argument("--piano", type=Path, required=True, help="folder of samples: the sound to compare with")
    parser.add_argument("--seconds", type=float, default=15.0, help="what of each piece counts (default: %(default)s)")
    chain.add_sound_arguments(parser)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--name", help="of the checkpoint in files and tables (default: its own)")
    parser.add_argument("--soundfont", type=Path, required=True, help="a .sf2 or .sf3 file")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument(
        "--override", type=json.loads, default={}, help="options of the checkpoint to replace, '{\"sample_steps\": 4}'"
    )
    parser.add_argument("--no-transcriber", action="store_true", help="leave out the note scores")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    output = options.output
    try:
        pieces = chain.cut_pieces(options.pieces, options.seconds, output / "pieces")
        pianos = chain.play(options.piano, pieces, output / PIANO, options.rate, options.sound_options)
        others = chain.play(options.soundfont, pieces, output / SOUNDFONT, options.rate, options.sound_options)
        found = judge(options.checkpoint, pieces, pianos, options)
        write(found, output / f"{name_of(options.checkpoint, options)}.json", options)
        write(result(score_twin(pieces, pianos, options)), output / f"{TWIN}.json", options)
        for name, audio in ((PIANO, pianos), (SOUNDFONT, others)):
            write(result(score(audio, pieces, pianos, options)), output / f"{name}.json", options)
    except MidisynthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = tables.judged([tables.read(path) for path in sorted(output.glob("*.json"))])
    (output / "README.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
