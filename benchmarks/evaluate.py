"""How well do renderings play their notes?

    python benchmarks/evaluate.py renders/ --midi pieces/ --reference soundfont/ --seconds 12 --json scores.json
    python benchmarks/evaluate.py pairs/ --through griffin_lim

Every audio file is scored against the MIDI file of the same name: what a piano transcriber hears in it (onset
precision, recall and F1 within 50 ms, F1 with note ends, correlation of velocities, false onsets), by how much the
energy rises at the onsets, and, where there is a reference recording of the same name, how far the sound is from it.
A perfect renderer reaches an onset F1 of 0.98 to 0.99: compare with the score of the reference, which is printed beside
it. With --through the audio files are recordings, and what is scored is their copy through mel spectrogram and vocoder.

The transcriber hears every file at its own rate; sounds are compared at --sample-rate. It needs transkun and mir_eval
(`pip install 'midisynth-lightning[eval]'`) and about ten CPU seconds for an excerpt of twelve seconds;
--no-transcriber leaves it out. `judge.py` renders pieces with a checkpoint and scores them in the same way.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from midisynth.audio.features import LogMel
from midisynth.audio.io import FORMATS, load_audio, resample
from midisynth.datasets.files import replacing
from midisynth.errors import MidisynthError, UsageError
from midisynth.metrics import functional
from midisynth.metrics.transcription import Transcriber
from midisynth.music.midi import read_midi
from midisynth.music.pedal import extend_by_pedal
from midisynth.vocoders import load_vocoder

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
    "false_re_onsets": "again",
    "other_false_onsets": "other",
    "struck": "struck",
    "reference_f1": "ref F1",
    "log_spectral_distance": "LSD",
    "spectral_convergence": "SC",
    "flux_ratio": "flux",
    "held_flux_ratio": "held",
    "loudness_correlation": "loud r",
}
COUNTS = ("notes", "false_re_onsets", "other_false_onsets")

#: Rate (Hz) and distance of frames (seconds) of the mel spectrograms that are compared.
MEL_RATE, HOP_SEC = 16000, 0.02
#: They are clipped to what a piano makes audible (natural log of magnitude).
AUDIBLE = (-7.0, 4.0)

#: Audio [samples] and its rate (Hz) -> the notes in it, [notes] of `NOTE_DTYPE`.
Hear = Callable[[Tensor, int], np.ndarray]


class RememberingTranscriber:
    """A transcriber that hears nothing twice: what it heard is kept by the content of the audio.

    Args:
        folder: Where transcriptions are kept.
        load: Loads the transcriber, when it is needed for the first time.
    """

    def __init__(self, folder: Path, load: Callable[[], Hear] = Transcriber):
        self._folder = folder
        self._load = load
        self._transcriber: Hear | None = None

    def __call__(self, audio: Tensor, sample_rate: int) -> np.ndarray:
        """As `Transcriber.__call__`."""
        digest = hashlib.sha256(audio.contiguous().numpy().tobytes() + str(sample_rate).encode()).hexdigest()[:24]
        path = self._folder / f"{digest}.npy"
        if not path.is_file():
            self._transcriber = self._transcriber or self._load()
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                np.save(file, self._transcriber(audio, sample_rate))
        return np.load(path)


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


def load_excerpt(path: Path, offset: float, seconds: float) -> tuple[Tensor, int]:
    """Mono audio [samples] from `offset` on, and its rate (Hz); what a file lacks at the end is silence."""
    audio, rate = load_audio(path).mean(dim=0), soundfile.info(path).samplerate
    start, length = round(offset * rate), round(seconds * rate)
    audio = audio[start : start + length]
    return torch.nn.functional.pad(audio, (0, length - len(audio))), rate


def evaluate(
    pair: Pair, hear: Hear | None, *, seconds: float, offset: float | None, sample_rate: int, through: str | None = None
) -> dict[str, float]:
    """Scores of one rendering; keys of `COLUMNS`.

    Args:
        pair: What to compare.
        hear: The transcriber; None leaves out what needs one.
        seconds: Length of the excerpt (seconds).
        offset: Its start (seconds); None: just before the first note.
        sample_rate: Sounds are compared at this rate (Hz).
        through: Score a copy of the audio through this vocoder, with the audio as reference.
    """
    # Transcribers are trained on notes that end when key and pedal are up.
    notes, offset = excerpt(extend_by_pedal(read_midi(pair.midi)).notes, offset, seconds)
    audio, rate = load_excerpt(pair.audio, offset, seconds)
    reference, reference_rate = audio, rate
    if through:
        audio, rate = copy_through(audio, rate, through)
    elif pair.reference is not None:
        reference, reference_rate = load_excerpt(pair.reference, offset, seconds)
    scores: dict[str, float] = {"notes": len(notes)}
    if hear:
        heard = hear(audio, rate)
        scores |= functional.note_score(notes, heard).as_dict()
        scores["false_re_onsets"], scores["other_false_onsets"] = functional.false_onsets(notes, heard)
        if reference is not audio:
            scores["reference_f1"] = functional.note_score(notes, hear(reference, reference_rate)).f1
    audio = resample(audio, rate, sample_rate)
    if len(notes):
        scores["struck"] = float((functional.onset_energy_rise(audio, sample_rate, notes) >= STRUCK_DB).mean())
    if through or pair.reference is not None:
        scores |= distances(audio, resample(reference, reference_rate, sample_rate), sample_rate, notes)
    return scores


def copy_through(audio: Tensor, rate: int, vocoder: str) -> tuple[Tensor, int]:
    """Audio [samples] as a vocoder makes it from its mel spectrogram, of the same length in seconds, and its rate."""
    part = load_vocoder(vocoder)
    copy = part(LogMel()(resample(audio, rate, MEL_RATE)[None])[0]).mean(dim=0)
    return copy[: round(len(audio) / rate * part.sample_rate)], part.sample_rate


def distances(audio: Tensor, reference: Tensor, sample_rate: int, notes: np.ndarray) -> dict[str, float]:
    """How far a sound is from another of the same notes, [samples] each, at one rate (Hz)."""
    mels = LogMel()(resample(torch.stack([audio, reference]), sample_rate, MEL_RATE))
    return {
        "log_spectral_distance": float(functional.log_spectral_distance(audio, reference)),
        "spectral_convergence": float(functional.spectral_convergence(audio, reference)),
        "loudness_correlation": functional.loudness_correlation(audio, reference, sample_rate),
        **flux_ratios(mels[0], mels[1], notes),
    }


def flux_ratios(mel: Tensor, reference: Tensor, notes: np.ndarray) -> dict[str, float]:
    """Spectral flux relative to that of a reference, [frames, mels] each: in all, and between onsets."""
    mel, reference = mel.clamp(*AUDIBLE), reference.clamp(*AUDIBLE)
    held = functional.held_steps(notes, len(mel), HOP_SEC)
    return {
        "flux_ratio": float(functional.spectral_flux(mel) / functional.spectral_flux(reference)),
        "held_flux_ratio": float(functional.spectral_flux(mel, held) / functional.spectral_flux(reference, held)),
    }


def table(scores: dict[str, dict[str, float]]) -> str:
    """Scores by name of the file as text, with the means of all files below."""
    used = [key for key in COLUMNS if any(key in row for row in scores.values())]
    width = max(map(len, [*scores, "mean"]))
    lines = [" ".join([" " * width, *(COLUMNS[key].rjust(7) for key in used)])]
    for name, row in {**scores, "mean": mean(list(scores.values()))}.items():
        cells = [f"{row.get(key, math.nan):7.{1 if key in COUNTS else 3}f}" for key in used]
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
    parser.add_argument("--through", help="score copies through this vocoder, a name or a file")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of the excerpts (default: %(default)s)")
    parser.add_argument(
        "--offset",
        type=lambda text: None if text == "auto" else float(text),
        help="start of the excerpts in seconds, or auto: just before the first note (default: auto)",
    )
    parser.add_argument(
        "--sample-rate", type=int, default=16000, help="sounds are compared at this rate (default: %(default)s)"
    )
    parser.add_argument("--no-transcriber", action="store_true", help="leave out the note scores")
    parser.add_argument("--cache", type=Path, help="folder of transcriptions, so that nothing is heard twice")
    parser.add_argument("--json", type=Path, help="write the scores to this file as well")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        pairs = find_pairs(options.inputs, options.midi, options.reference)
        hear = (
            None
            if options.no_transcriber
            else (RememberingTranscriber(options.cache) if options.cache else Transcriber())
        )
        scores = {}
        for number, pair in enumerate(pairs, start=1):
            print(f"{number}/{len(pairs)} {pair.audio}", file=sys.stderr)
            scores[pair.audio.stem] = evaluate(
                pair,
                hear,
                seconds=options.seconds,
                offset=options.offset,
                sample_rate=options.sample_rate,
                through=options.through,
            )
    except MidisynthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    print(table(scores))
    if options.json:
        result = {
            "mean": finite(mean(list(scores.values()))),
            "pieces": {name: finite(scores[name]) for name in scores},
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
