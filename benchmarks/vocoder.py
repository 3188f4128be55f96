"""Which head and which rate a vocoder should have: short trainings of the same processor time, compared with a table.

    python benchmarks/vocoder.py --minutes 3

Every candidate of `cfg/vocoder/demo.yaml` with another head or rate is trained for so many minutes of one core on the
same clips of sampled piano, and then resynthesises excerpts of held-out pieces from their 16 kHz spectrograms. The
reference is the piano at 44.1 kHz. Log spectral distance (nats) counts twice: up to 8 kHz, which is what the
spectrogram shows, and up to 22 kHz, where a lower rate has nothing. Griffin-Lim and, with --checkpoint, trained
vocoders are rows of the same table. Needs data/midi and data/salamander, see docs/training.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from midisynth.audio.features import LogMel
from midisynth.audio.io import resample
from midisynth.audio.vocoder import GriffinLim, Vocoder
from midisynth.checkpoints import load_model
from midisynth.metrics.functional import log_spectral_distance, mel_error, spectral_convergence
from midisynth.models.vocoder import NeuralVocoder, VocoderData
from midisynth.models.vocoder.network import OscillatorHead
from midisynth.training.schedules import WarmupCosine

ROOT = Path(__file__).resolve().parent.parent
REFERENCE_RATE = 44100
MEL_RATE = 16000

#: Head and rate (Hz). The noise of a frame must divide it.
CANDIDATES: tuple[dict[str, Any], ...] = (
    {"head": "oscillators", "sample_rate": 16000},
    {"head": "oscillators", "sample_rate": 32000},
    {"head": "oscillators", "sample_rate": 44100, "noise_steps": 6},
    {"head": "istft", "sample_rate": 32000},
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: Of the vocoder.
        oscillators: How many it has.
        parameters: How many it has (millions).
        steps: Of its training.
        scores: See `score`.
    """

    name: str
    oscillators: int
    parameters: float
    steps: int
    scores: dict[str, float]


def data_of(model: NeuralVocoder, options: argparse.Namespace, clips: int) -> VocoderData:
    """The data module of the preset with another number of clips, for a model."""
    preset = yaml.safe_load((ROOT / "cfg/vocoder/demo.yaml").read_text())["data"]["init_args"]
    midi, samples = f"{options.data}/midi", f"{options.data}/salamander"
    preset["corpora"]["rendered"] |= {"clips": clips, "root": midi, "sound": samples}
    data = VocoderData(**{**preset, "piano": samples, "cache_dir": options.cache})
    data.connect(model)
    return data


def train(options: argparse.Namespace, candidate: dict[str, Any]) -> tuple[NeuralVocoder, int]:
    """A candidate after so many minutes of processor time, and the number of its steps."""
    torch.manual_seed(0)
    model = NeuralVocoder(**candidate)
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  there is no trainer
    data = data_of(model, options, options.clips)
    data.prepare(splits=("train",))
    data.setup("fit")
    examples = data.dataset("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.8, 0.99))
    # A step takes about as long as the first few; what is left of the schedule is not missed.
    schedule, step, start = None, 0, time.process_time()
    while time.process_time() - start < 60 * options.minutes:
        batch = model.codec.collate([examples[step * data.batch_size + row] for row in range(data.batch_size)])
        loss = model.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        step += 1
        if step == 20:
            total = round(20 * 60 * options.minutes / (time.process_time() - start))
            schedule = WarmupCosine(optimizer, total, warmup_steps=0, final=0.02)
        elif schedule is not None:
            schedule.step()
    return model.eval(), step


def references(options: argparse.Namespace) -> list[Tensor]:
    """The first seconds of every held-out piece at 44.1 kHz, [samples] each."""
    data = data_of(NeuralVocoder(sample_rate=REFERENCE_RATE, noise_steps=6), options, 1)
    data.prepare(splits=("test",))
    data.setup("test")
    samples = round(options.seconds * REFERENCE_RATE)
    return [
        torch.from_numpy(record.audio()[:samples].astype("float32")) / 32767
        for part in data.parts("test")
        for record in part.prepared
    ]


@torch.inference_mode()
def score(vocoder: Vocoder, excerpts: Sequence[Tensor]) -> dict[str, float]:
    """Means over excerpts: distances up to 8 and 22 kHz, spectral convergence, mel error, and speed on one core."""
    log_mel = LogMel()
    totals: dict[str, float] = {}
    audio_sec = cpu_sec = 0.0
    for excerpt in excerpts:
        wanted = resample(excerpt, REFERENCE_RATE, MEL_RATE)
        mel = log_mel(wanted[None])[0]
        start = time.process_time()
        audio = vocoder(mel).mean(dim=0)
        cpu_sec += time.process_time() - start
        audio_sec += len(excerpt) / REFERENCE_RATE
        low = resample(audio, vocoder.sample_rate, MEL_RATE)[: len(wanted)]
        full = resample(audio, vocoder.sample_rate, REFERENCE_RATE)[: len(excerpt)]
        scores = {
            "distance_8k": log_spectral_distance(low, wanted),
            "distance_22k": log_spectral_distance(full, excerpt[: len(full)]),
            "convergence": spectral_convergence(low, wanted),
            "mel_error": mel_error(log_mel(low[None])[0], mel),
        }
        for name, value in scores.items():
            totals[name] = totals.get(name, 0.0) + float(value) / len(excerpts)
    return {**totals, "real_time": audio_sec / cpu_sec}


def row_of(name: str, vocoder: Vocoder, steps: int, excerpts: Sequence[Tensor]) -> Row:
    """Score a vocoder for the table."""
    network = vocoder.network if isinstance(vocoder, NeuralVocoder) else None
    head = network.head if network is not None else None
    oscillators = len(head.frequencies) if isinstance(head, OscillatorHead) else 0
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6 if network is not None else 0.0
    vocoder(torch.zeros(50, vocoder.mels))  # first calls are not what is measured
    return Row(name, oscillators, parameters, steps, score(vocoder, excerpts))


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| vocoder | oscillators | parameters (M) | steps | distance to 8 kHz | to 22 kHz | convergence | mel error | "
        "x real time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        s = row.scores
        lines.append(
            f"| {row.name} | {row.oscillators or ''} | {row.parameters:.2f} | {row.steps or ''} | "
            f"{s['distance_8k']:.3f} | {s['distance_22k']:.3f} | {s['convergence']:.3f} | {s['mel_error']:.3f} | "
            f"{s['real_time']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", help="folder with midi and salamander")
    parser.add_argument("--cache", help="folder for rendered clips; the user's cache folder by default")
    parser.add_argument("--minutes", type=float, default=3.0, help="processor minutes of each training")
    parser.add_argument("--clips", type=int, default=60, help="training clips of 30 seconds")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the excerpts")
    parser.add_argument("--checkpoint", nargs="*", default=[], help="trained vocoders to compare with")
    parser.add_argument("--out", type=Path, help="file to write as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    excerpts = references(options)
    rows = [row_of("Griffin-Lim", GriffinLim(), 0, excerpts)]
    for candidate in CANDIDATES if options.minutes > 0 else ():
        model, steps = train(options, candidate)
        rows.append(row_of(f"{candidate['head']}, {candidate['sample_rate'] / 1000:g} kHz", model, steps, excerpts))
        print(rows[-1], flush=True)
    for reference in options.checkpoint:
        vocoder = load_model(reference)
        assert isinstance(vocoder, Vocoder), f"{reference} is no vocoder"
        rows.append(row_of(Path(reference).name, vocoder, 0, excerpts))
    text = table(rows)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
