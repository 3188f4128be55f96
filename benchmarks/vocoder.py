"""Which head and which rate a vocoder should have: equal short trainings, compared with a table.

    python benchmarks/vocoder.py --pieces reserve/ --steps 300 --transcribe 5 --output heads/
    python benchmarks/vocoder.py --pieces reserve/ --steps 0 --checkpoint vocoder_piano --output shipped/

Every candidate, `cfg/vocoder/demo.yaml` with another head or rate, is trained on one core for as many steps as the
others, on the same clips of sampled piano, and then resynthesises excerpts of pieces from their 16 kHz spectrograms.
The reference is the piano at 44.1 kHz. Log spectral distance (nats) counts three times: up to 8 kHz, which is what the
spectrogram shows, up to 22 kHz, and from 8 to 16 kHz, where a rate of 16 kHz has nothing. Griffin-Lim and, with
--checkpoint, trained vocoders are rows of the same table, and with --transcribe the recording is, too. Needs data/midi
and data/salamander, see docs/training.md.

OUTPUT keeps the weights of every candidate and scores.json what was measured: a run leaves out what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chain
import evaluate
import numpy as np
import tables
import torch
import yaml
from torch import Tensor

from midisynth.audio.features import LogMel
from midisynth.audio.io import load_audio, resample
from midisynth.audio.spectrum import log_spectrum
from midisynth.audio.vocoder import Vocoder
from midisynth.checkpoints import save_weights
from midisynth.datasets.files import replacing
from midisynth.errors import MidisynthError
from midisynth.metrics import functional
from midisynth.models.vocoder import NeuralVocoder, VocoderData
from midisynth.models.vocoder.network import OscillatorHead
from midisynth.music.midi import read_midi
from midisynth.music.pedal import extend_by_pedal
from midisynth.training.schedules import WarmupCosine
from midisynth.vocoders import load_vocoder

ROOT = Path(__file__).resolve().parent.parent
REFERENCE_RATE = 44100
MEL_RATE = 16000
#: What only higher rates can have (Hz), and the FFT in which it is compared (samples at the reference's rate).
UPPER_BAND, UPPER_FFT = (8000, 16000), 2048

#: By name: head and rate (Hz). The noise of a frame must divide it.
CANDIDATES: dict[str, dict[str, Any]] = {
    "oscillators-16": {"head": "oscillators", "sample_rate": 16000},
    "oscillators-32": {"head": "oscillators", "sample_rate": 32000},
    "oscillators-44": {"head": "oscillators", "sample_rate": 44100, "noise_steps": 6},
    "istft-16": {"head": "istft", "sample_rate": 16000},
    "istft-32": {"head": "istft", "sample_rate": 32000},
}
GRIFFIN_LIM, RECORDING = "griffin_lim", "recording"


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a piece.

    Attributes:
        audio: As the sampled piano plays it, [samples] at `REFERENCE_RATE`.
        notes: That it has, [notes] of `NOTE_DTYPE`.
    """

    audio: Tensor
    notes: np.ndarray


def preset_data() -> dict[str, Any]:
    """Options of the preset's data module."""
    return yaml.safe_load((ROOT / "cfg/vocoder/demo.yaml").read_text())["data"]["init_args"]


def data_of(model: NeuralVocoder, options: argparse.Namespace) -> VocoderData:
    """The data module of the preset with another number of clips, for a model."""
    preset = preset_data()
    midi, samples = f"{options.data}/midi", f"{options.data}/salamander"
    preset["corpora"]["rendered"] |= {"clips": options.clips, "root": midi, "sound": samples}
    data = VocoderData(**{**preset, "piano": samples, "cache_dir": options.cache})
    data.connect(model)
    return data


def train(options: argparse.Namespace, candidate: Mapping[str, Any], folder: Path) -> None:
    """Train a candidate and keep its weights, and what they cost as training.json."""
    torch.manual_seed(0)
    model = NeuralVocoder(**candidate)
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  there is no trainer
    data = data_of(model, options)
    data.prepare(splits=("train",))
    data.setup("fit")
    examples = data.dataset("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.8, 0.99))
    schedule = WarmupCosine(optimizer, options.steps, warmup_steps=options.steps // 20, final=0.02)
    start = time.process_time()
    for step in range(options.steps):
        batch = model.codec.collate([examples[step * data.batch_size + row] for row in range(data.batch_size)])
        loss = model.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    cost = {"steps": options.steps, "clips": options.clips, "cpu_sec": time.process_time() - start}
    save_weights(model.eval(), folder)
    write(cost, folder / "training.json")


def excerpts(options: argparse.Namespace) -> list[Excerpt]:
    """The first seconds of every piece, played by the piano of the preset."""
    pieces = chain.cut_pieces(options.pieces, options.seconds, options.output / "pieces")
    sound = {"layers": preset_data()["corpora"]["rendered"]["layers"]}
    samples_folder, output = Path(options.data, "salamander"), options.output / "piano"
    played = chain.play(samples_folder, pieces, output, REFERENCE_RATE, sound)
    samples = round(options.seconds * REFERENCE_RATE)
    return [
        Excerpt(
            load_audio(audio).mean(dim=0)[:samples],
            evaluate.excerpt(extend_by_pedal(read_midi(piece)).notes, 0.0, options.seconds)[0],
        )
        for piece, audio in zip(pieces, played, strict=True)
    ]


@torch.inference_mode()
def score(vocoder: Vocoder, pieces: Sequence[Excerpt], hear: evaluate.Hear, heard: int) -> dict[str, float]:
    """Means over excerpts: distances up to 8 and 22 kHz, notes of the first `heard`; speed on one core."""
    log_mel = LogMel()
    vocoder(torch.zeros(50, vocoder.mels))  # first calls are not what is measured
    rows, audio_sec, cpu_sec = [], 0.0, 0.0
    for number, piece in enumerate(pieces):
        wanted = resample(piece.audio, REFERENCE_RATE, MEL_RATE)
        mel = log_mel(wanted[None])[0]
        start = time.process_time()
        audio = vocoder(mel).mean(dim=0)
        cpu_sec += time.process_time() - start
        audio_sec += len(piece.audio) / REFERENCE_RATE
        low = resample(audio, vocoder.sample_rate, MEL_RATE)[: len(wanted)]
        full = resample(audio, vocoder.sample_rate, REFERENCE_RATE)[: len(piece.audio)]
        row = {
            "distance_8k": float(functional.log_spectral_distance(low, wanted)),
            "distance_22k": float(functional.log_spectral_distance(full, piece.audio[: len(full)])),
            "distance_8k_16k": upper_distance(full, piece.audio[: len(full)]),
            "convergence": float(functional.spectral_convergence(low, wanted)),
            "mel_error": float(functional.mel_error(log_mel(low[None])[0], mel)),
        }
        rows.append(row | note_scores(piece, audio, vocoder.sample_rate, hear) if number < heard else row)
    return evaluate.mean(rows) | {"real_time": audio_sec / cpu_sec}


def upper_distance(audio: Tensor, wanted: Tensor) -> float:
    """Mean difference of log magnitudes from 8 to 16 kHz (nats), [samples] each at `REFERENCE_RATE`."""
    spectra = [log_spectrum(sound, UPPER_FFT) for sound in (audio, wanted)]
    low, high = (round(hertz * UPPER_FFT / REFERENCE_RATE) for hertz in UPPER_BAND)
    return float((spectra[0] - spectra[1])[low:high].abs().mean())


def note_scores(piece: Excerpt, audio: Tensor, rate: int, hear: evaluate.Hear) -> dict[str, float]:
    """What a transcriber hears of an excerpt in audio [samples] at a rate (Hz)."""
    heard = hear(audio, rate)
    _, others = functional.false_onsets(piece.notes, heard)
    return {"onset_f1": functional.note_score(piece.notes, heard).f1, "other_false_onsets": others}


def facts(vocoder: Vocoder, folder: Path) -> dict[str, Any]:
    """What is known of a vocoder before it is heard: its size, and its training if it was trained here."""
    found: dict[str, Any] = {"rate": vocoder.sample_rate}
    if isinstance(vocoder, NeuralVocoder):
        head = vocoder.network.head
        found["oscillators"] = len(head.frequencies) if isinstance(head, OscillatorHead) else 0
        found["parameters"] = sum(parameter.numel() for parameter in vocoder.network.parameters())
    training = folder / "training.json"
    return found | (json.loads(training.read_text()) if training.is_file() else {})


def write(content: Any, path: Path) -> None:
    with replacing(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Train and score what is missing; scores by name."""
    chosen = options.candidates if options.steps else []
    for name in chosen:
        if not (options.output / name / "training.json").is_file():
            train(options, CANDIDATES[name], options.output / name)
            print(f"{name}: trained", file=sys.stderr, flush=True)
    path = options.output / "scores.json"
    about = {key: str(getattr(options, key)) for key in ("pieces", "seconds", "transcribe")}
    found = json.loads(path.read_text()) if path.is_file() else {**about, "vocoders": {}}
    if any(found[key] != value for key, value in about.items()):
        raise MidisynthError(f"{path}: is of other excerpts; delete it, or name another --output")
    references = [GRIFFIN_LIM, *(str(options.output / name) for name in chosen), *options.checkpoint]
    missing = {Path(text).name: text for text in references if Path(text).name not in found["vocoders"]}
    pieces = excerpts(options) if missing else []
    hear = evaluate.RememberingTranscriber(options.output / "heard")
    if options.transcribe and RECORDING not in found["vocoders"]:
        heard = [note_scores(piece, piece.audio, REFERENCE_RATE, hear) for piece in pieces[: options.transcribe]]
        found["vocoders"][RECORDING] = {"rate": REFERENCE_RATE} | evaluate.mean(heard)
    for name, reference in missing.items():
        vocoder = load_vocoder(reference)
        found["vocoders"][name] = facts(vocoder, Path(reference)) | score(vocoder, pieces, hear, options.transcribe)
        write(found, path)
        print(f"{name}: measured", file=sys.stderr, flush=True)
    return found["vocoders"]


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown."""
    columns = {
        "rate": ("rate (Hz)", "{:.0f}"),
        "oscillators": ("oscillators", "{:.0f}"),
        "parameters": ("parameters", "{:,.0f}"),
        "steps": ("steps", "{:.0f}"),
        "cpu_sec": ("CPU s", "{:.0f}"),
        "distance_8k": ("distance to 8 kHz", "{:.3f}"),
        "distance_22k": ("to 22 kHz", "{:.3f}"),
        "distance_8k_16k": ("8 to 16 kHz", "{:.3f}"),
        "convergence": ("convergence", "{:.3f}"),
        "mel_error": ("mel error", "{:.3f}"),
        "onset_f1": ("onset F1", "{:.3f}"),
        "other_false_onsets": ("other false onsets", "{:.1f}"),
        "real_time": ("x real time", "{:.0f}"),
    }
    used = {key: column for key, column in columns.items() if any(row.get(key) for row in rows.values())}
    cells = [
        [name, *(tables.number(form, row.get(key)) for key, (_, form) in used.items())] for name, row in rows.items()
    ]
    return tables.markdown(["vocoder", *(title for title, _ in used.values())], cells)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder with midi and salamander (default: %(default)s)")
    parser.add_argument("--cache", help="folder for rendered clips; the user's cache folder by default")
    parser.add_argument("--pieces", type=Path, required=True, help="folder of MIDI files that no training saw")
    parser.add_argument("--seconds", type=float, default=10.0, help="of every piece (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="of each training (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=60, help="training clips of 30 seconds (default: %(default)s)")
    parser.add_argument("--candidates", nargs="*", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--checkpoint", nargs="*", default=[], help="trained vocoders to compare with")
    parser.add_argument(
        "--transcribe", type=int, default=0, help="score the notes of so many pieces: a CPU second for each of audio"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for weights and scores")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        print(table(compare(options)))
    except MidisynthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
