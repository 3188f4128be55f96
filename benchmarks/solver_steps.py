"""Quality against solver steps: how the default `solver` and `sample_steps` of a checkpoint are chosen.

Every solver and number of steps renders the same segments of the same recordings from the same noise, and is compared
with them: mel error (nats), mel convergence, and, after the vocoder, log spectral distance (nats). The real-time factor
is seconds of audio per second of processor time, for the spectrogram alone and with the vocoder.

    python benchmarks/solver_steps.py CHECKPOINT --pairs FOLDER --output benchmarks/solver_steps

writes OUTPUT.json and OUTPUT.md. FOLDER holds recordings and MIDI files of the same names (corpus `folder`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from midisynth.audio.vocoder import Vocoder
from midisynth.checkpoints import load_model
from midisynth.datasets.folder import Folder
from midisynth.metrics.functional import log_spectral_distance, mel_convergence, mel_error
from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion


@dataclass(frozen=True)
class Result:
    """One line of the table; quality is the mean over recordings."""

    solver: str
    steps: int
    mel_error: float
    mel_convergence: float
    log_spectral_distance: float
    mel_real_time: float
    real_time: float


@dataclass(frozen=True)
class Recording:
    """Segments one after the other, and what they ought to become.

    Attributes:
        segments: From `SpectrogramDiffusionCodec.encode_segment`.
        audio: [segments, samples].
        mel: [segments, frames, mels] natural log, clipped to the model's range.
    """

    segments: list[dict[str, Tensor]]
    audio: Tensor
    mel: Tensor


def read_recordings(model: SpectrogramDiffusion, folder: Path, seconds: float) -> list[Recording]:
    """Cut the first `seconds` of every pair into segments without overlap."""
    codec = model.codec
    hop = codec.segment_frames * codec.hop_length
    recordings = []
    for record in Folder(str(folder)).records():
        audio = record.waveform(codec.sample_rate)
        count = int(min(len(audio), seconds * codec.sample_rate) - codec.segment_samples) // hop + 1
        performance = codec.apply_pedal(record.performance())
        cut = torch.stack([audio[i * hop : i * hop + codec.segment_samples] for i in range(count)])
        mel = model.mel_range.inverse(model.scaled_mel(cut))[:, : codec.segment_frames]
        segments = [codec.encode_segment(performance, i * hop / codec.sample_rate) for i in range(count)]
        recordings.append(Recording(segments, cut[:, :hop], mel))
    return recordings


def measure(
    model: SpectrogramDiffusion, vocoder: Vocoder, recordings: Sequence[Recording]
) -> tuple[list[float], list[float]]:
    """Quality of every recording, and processor seconds of spectrograms and vocoder."""
    quality, sampled, vocoded = [], 0.0, 0.0
    for recording in recordings:
        generators = [torch.Generator().manual_seed(i) for i in range(len(recording.segments))]
        start = time.process_time()
        mels = model.sample_segments(model.codec.collate(recording.segments), model.noise_source(generators))
        middle = time.process_time()
        audio = vocoder(mels.flatten(0, 1))
        sampled, vocoded = sampled + middle - start, vocoded + time.process_time() - middle
        quality.append(
            [
                mel_error(mels, recording.mel).item(),
                mel_convergence(mels, recording.mel).item(),
                log_spectral_distance(audio, recording.audio.flatten()).item(),
            ]
        )
    return torch.tensor(quality).mean(dim=0).tolist(), sampled, vocoded


@torch.inference_mode()
def sweep(
    model: SpectrogramDiffusion, recordings: Sequence[Recording], solvers: Sequence[str], steps: Sequence[int]
) -> list[Result]:
    """Measure every solver with every number of steps."""
    vocoder = model.part("vocoder")
    seconds = sum(recording.audio.numel() for recording in recordings) / model.hparams.sample_rate
    results = []
    for solver in solvers:
        model.hparams.solver, model.hparams.sample_steps = solver, steps[0]
        measure(model, vocoder, recordings[:1])  # imports and first calls are not what is measured
        for count in steps:
            model.hparams.solver, model.hparams.sample_steps = solver, count
            quality, sampled, vocoded = measure(model, vocoder, recordings)
            results.append(Result(solver, count, *quality, seconds / sampled, seconds / (sampled + vocoded)))
            print(results[-1], flush=True)
    return results


def table(results: Sequence[Result]) -> str:
    """Markdown."""
    lines = [
        "| solver | steps | mel error | mel convergence | log spectral distance | x real time: mel | with vocoder |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.solver} | {r.steps} | {r.mel_error:.3f} | {r.mel_convergence:.3f} | {r.log_spectral_distance:.3f} "
        f"| {r.mel_real_time:.1f} | {r.real_time:.1f} |"
        for r in results
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="anything that --ckpt takes")
    parser.add_argument("--pairs", type=Path, required=True, help="folder of recordings with their MIDI files")
    parser.add_argument("--seconds", type=float, default=20.0, help="how much of every recording")
    parser.add_argument("--solvers", nargs="+", default=["ddim", "dpm_solver", "ddpm"])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--output", type=Path, required=True, help="where .json and .md go, without suffix")
    options = parser.parse_args()

    torch.set_num_threads(1)
    model = load_model(options.checkpoint)
    recordings = read_recordings(model, options.pairs, options.seconds)
    results = sweep(model, recordings, options.solvers, options.steps)
    facts = {
        "checkpoint": options.checkpoint,
        "recordings": len(recordings),
        "seconds": sum(r.audio.numel() for r in recordings) / model.hparams.sample_rate,
        "threads": torch.get_num_threads(),
        "results": [asdict(result) for result in results],
    }
    options.output.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(table(results))


if __name__ == "__main__":
    main()
