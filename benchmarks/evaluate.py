"""How well do renderings play their notes?

    python benchmarks/evaluate.py renders/ --midi pieces/ --reference soundfont/ --seconds 12 --json scores.json
    python benchmarks/evaluate.py pairs/ --through griffin_lim

Every audio file is scored against the MIDI file of the same name: what a piano transcriber hears in it (onset
precision, recall and F1 within 50 ms, F1 with note ends, correlation of velocities), by how much the energy rises at
the onsets, and, where there is a reference recording of the same name, how far the sound is from it. A perfect
renderer reaches an onset F1 of 0.98 to 0.99: compare with the score of the reference, which is printed beside it.
With --through the audio files are recordings, and what is scored is their copy through mel spectrogram and vocoder.

The transcriber needs transkun and mir_eval (`pip install 'midisynth-lightning[eval]'`) and about ten CPU seconds for
an excerpt of twelve seconds; --no-transcriber leaves it out.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from midisynth.audio.features import LogMel
from midisynth.audio.io import FORMATS, load_audio
from midisynth.audio.vocoder import load_vocoder
from midisynth.errors import MidisynthError, UsageError
from midisynth.metrics import functional
from midisynth.metrics.transcription import Transcriber
from midisynth.music.midi import read_midi
from midisynth.music.pedal import extend_by_pedal

MIDI_SUFFIXES = (".mid", ".midi")

#: A note counts as struck where its band energy rises by so much at its onset (dB).
STRUCK_DB = 3.0

COLUMNS = {
    "notes": "notes",
    "precision": "P",
    "recall": "R",
    "f1": "F1",
    "offset_f1": "off F1",
    "velocity_correlation": "vel r",
    "struck": "struck",
    "reference_f1": "ref F1",
    "log_spectral_distance": "LSD",
    "spectral_convergence": "SC",
    "loudness_correlation": "loud r",
}


@dataclass(frozen=True)
class Pair:
    """A rendering, the notes that it should play, and a recording of them."""

    audio: Path
    midi: Path
    reference: Path | None


def find_pairs(inputs: Sequence[Path], midi: Path | None, reference: Path | None) -> list[Pair]:
    """Audio files in `inputs` (files or folders) with the files of the same name.

    Args:
        inputs: Audio files, or folders of them.
        midi: Folder of the MIDI files; None: beside the audio.
        reference: Folder of the recordings, or None.

    Raises:
        UsageError: There is no audio, or a file has no partner.
    """
    files = []
    for path in inputs:
        inside = path.iterdir() if path.is_dir() else [path]
        files += sorted(file for file in inside if file.suffix.lower() in FORMATS)
    if not files:
        raise UsageError(f"no audio files ({', '.join(FORMATS)}) in {', '.join(map(str, inputs))}")
    return [
        Pair(
            file,
            _partner(file, midi or file.parent, MIDI_SUFFIXES),
            None if reference is None else _partner(file, reference, tuple(FORMATS)),
        )
        for file in files
    ]


def _partner(file: Path, folder: Path, suffixes: Sequence[str]) -> Path:
    for suffix in suffixes:
        if (folder / f"{file.stem}{suffix}").is_file():
            return folder / f"{file.stem}{suffix}"
    raise UsageError(f"{file}: no {file.stem}{{{','.join(suffixes)}}} in {folder}")


def excerpt(notes: np.ndarray, offset: float | None, seconds: float) -> tuple[np.ndarray, float]:
    """Notes that begin in an excerpt, on its clock, and where it begins (seconds).

    Args:
        notes: [notes] of `NOTE_DTYPE`.
        offset: Start (seconds); None: a tenth of a second before the first note.
        seconds: Length (seconds).
    """
    if offset is None:
        offset = max(float(notes["onset_sec"].min()) - 0.1, 0.0) if len(notes) else 0.0
    inside = notes[(notes["onset_sec"] >= offset) & (notes["onset_sec"] < offset + seconds)].copy()
    inside["onset_sec"] -= offset
    inside["duration_sec"] = np.minimum(inside["duration_sec"], seconds - inside["onset_sec"])
    return inside, offset


def load_excerpt(path: Path, offset: float, seconds: float, sample_rate: int) -> Tensor:
    """Mono audio [seconds * sample_rate] from `offset` on; what a file lacks at the end is silence."""
    audio = load_audio(path, sample_rate).mean(dim=0)
    start, length = round(offset * sample_rate), round(seconds * sample_rate)
    audio = audio[start : start + length]
    return torch.nn.functional.pad(audio, (0, length - len(audio)))


def evaluate(pair: Pair, arguments: argparse.Namespace, transcriber: Transcriber | None) -> dict[str, float]:
    """Scores of one rendering; keys of `COLUMNS`."""
    rate, seconds = arguments.sample_rate, arguments.seconds
    # Transcribers are trained on notes that end when key and pedal are up.
    notes, offset = excerpt(extend_by_pedal(read_midi(pair.midi)).notes, arguments.offset, seconds)
    audio = load_excerpt(pair.audio, offset, seconds, rate)
    reference = None if pair.reference is None else load_excerpt(pair.reference, offset, seconds, rate)
    if arguments.through:
        reference = audio
        audio = load_vocoder(arguments.through, sample_rate=rate)(LogMel(rate)(audio[None])[0])[: len(audio)]
    scores: dict[str, float] = {"notes": len(notes)}
    if transcriber:
        scores |= functional.note_score(notes, transcriber(audio, rate)).as_dict()
        if reference is not None:
            scores["reference_f1"] = functional.note_score(notes, transcriber(reference, rate)).f1
    if len(notes):
        scores["struck"] = float((functional.onset_energy_rise(audio, rate, notes) >= STRUCK_DB).mean())
    if reference is not None:
        scores["log_spectral_distance"] = float(functional.log_spectral_distance(audio, reference))
        scores["spectral_convergence"] = float(functional.spectral_convergence(audio, reference))
        scores["loudness_correlation"] = functional.loudness_correlation(audio, reference, rate)
    return scores


def table(scores: dict[str, dict[str, float]]) -> str:
    """Scores by name of the file as text, with the means of all files below."""
    used = [key for key in COLUMNS if any(key in row for row in scores.values())]
    width = max(map(len, [*scores, "mean"]))
    lines = [" ".join([" " * width, *(COLUMNS[key].rjust(7) for key in used)])]
    for name, row in {**scores, "mean": mean(list(scores.values()))}.items():
        cells = [f"{row.get(key, math.nan):7.{0 if key == 'notes' else 3}f}" for key in used]
        lines.append(" ".join([name.ljust(width), *cells]))
    return "\n".join(lines)


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of every score over the files that have it."""
    keys = {key: None for row in rows for key in row}
    values = {key: [row[key] for row in rows if not math.isnan(row.get(key, math.nan))] for key in keys}
    return {key: float(np.mean(found)) if found else math.nan for key, found in values.items()}


def finite(row: dict[str, float]) -> dict[str, float]:
    """The scores that are defined: JSON has no NaN."""
    return {key: value for key, value in row.items() if math.isfinite(value)}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path, help="audio files, or folders of them")
    parser.add_argument("--midi", type=Path, help="folder of the MIDI files (default: beside the audio)")
    parser.add_argument("--reference", type=Path, help="folder of recordings of the same pieces")
    parser.add_argument("--through", help="score copies through this vocoder: griffin_lim or an .onnx file")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of the excerpts (default: %(default)s)")
    parser.add_argument(
        "--offset",
        type=lambda text: None if text == "auto" else float(text),
        help="start of the excerpts in seconds, or auto: just before the first note (default: auto)",
    )
    parser.add_argument(
        "--sample-rate", type=int, default=16000, help="audio is resampled to it (default: %(default)s)"
    )
    parser.add_argument("--no-transcriber", action="store_true", help="leave out the note scores")
    parser.add_argument("--json", type=Path, help="write the scores to this file as well")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        pairs = find_pairs(options.inputs, options.midi, options.reference)
        transcriber = None if options.no_transcriber else Transcriber()
        scores = {}
        for number, pair in enumerate(pairs, start=1):
            print(f"{number}/{len(pairs)} {pair.audio}", file=sys.stderr)
            scores[pair.audio.stem] = evaluate(pair, options, transcriber)
    except MidisynthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    print(table(scores))
    if options.json:
        result = {"mean": finite(mean(list(scores.values()))), "files": {name: finite(scores[name]) for name in scores}}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
