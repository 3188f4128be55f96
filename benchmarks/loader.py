"""Does the loader keep up? Random crops per second, read and tokenised on the fly, against the training step.

Makes recordings as long and dense as MAESTRO's (9.3 minutes, 9.9 notes a second; noise, for speed does not depend on
what is heard), prepares them, and measures

- one example in this process, and what of it goes into audio, tokens and note tables;
- the loader for each batch size and number of workers, without a model;
- the training step of the preset: forward, backward and AdamW, on one batch size.

    python benchmarks/loader.py --output benchmarks/loader.md
    python benchmarks/loader.py --output benchmarks/loader.md --accelerator cuda --batch-sizes 8 32 --workers 0 4 8

What runs in one process on the CPU is measured in processor time, which other programs disturb less; the loader with
workers in real time. "x I/O" compares with reading such stretches of the prepared files and nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader, RandomSampler

from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion, SpectrogramDiffusionData
from midisynth.module import MidiModule
from midisynth.music.midi import write_midi
from midisynth.music.notes import NOTE_DTYPE, Performance
from midisynth.testing import build_model, run

MINUTES = 9.3
NOTES_PER_SEC = 9.9


def make_recordings(folder: Path, count: int, sample_rate: int) -> None:
    """Write pairs of .wav and .mid files for training, and one each for the other splits."""
    generator = np.random.default_rng(0)
    for split, pairs in (("train", count), ("validation", 1), ("test", 1)):
        (folder / split).mkdir(parents=True)
        for number in range(pairs):
            seconds = MINUTES * 60 if split == "train" else 12.0
            noise = generator.normal(0, 0.1, int(seconds * sample_rate)).astype(np.float32)
            soundfile.write(folder / split / f"{split}{number}.wav", noise, sample_rate)
            notes = np.zeros(int(seconds * NOTES_PER_SEC), NOTE_DTYPE)
            notes["onset_sec"] = np.sort(generator.uniform(0, seconds - 3, len(notes)))
            notes["duration_sec"] = generator.lognormal(-1.2, 0.8, len(notes)).clip(0.03, 3)
            notes["pitch"] = generator.normal(64, 12, len(notes)).round().clip(21, 108)
            notes["velocity"] = generator.integers(20, 110, len(notes))
            ticks = np.rint(notes["onset_sec"] * 960), np.rint(notes["duration_sec"] * 960)
            notes["onset_tick"], notes["duration_tick"] = ticks[0], np.maximum(ticks[1], 1)
            write_midi(Performance(notes=notes, track_names=[""]), folder / split / f"{split}{number}.mid")


def open_data(model: MidiModule, folder: Path) -> SpectrogramDiffusionData:
    """The data module over the recordings, prepared."""
    data = SpectrogramDiffusionData({"folder": str(folder / "pairs")}, cache_dir=str(folder / "cache"))
    data.connect(model)
    data.prepare(progress=False)
    data.setup("fit")
    return data


def per_second(work: Callable[[int], object], count: int, repeats: int) -> tuple[float, float]:
    """Calls per processor second, each with a number of its own: the best and the median of several rounds."""
    rates = []
    for repeat in range(repeats):
        start = time.process_time()
        for number in range(count):
            work(repeat * count + number)
        rates.append(count / (time.process_time() - start))
    return max(rates), statistics.median(rates)


def read_only(data: SpectrogramDiffusionData) -> Callable[[int], object]:
    """Reads a stretch at random from the prepared files."""
    files = [prepared.audio() for part in data.parts("train") for prepared in part.prepared]
    samples = data.codec.segment_samples

    def read(number: int) -> np.ndarray:
        generator = np.random.default_rng(number)
        audio = files[generator.integers(len(files))]
        start = generator.integers(len(audio) - samples)
        return audio[start : start + samples].astype(np.float32)

    return read


def pieces(model: MidiModule, data: SpectrogramDiffusionData) -> Iterator[tuple[str, Callable[[int], object]]]:
    """Name and work of what is measured in one process."""
    codec = model.codec
    prepared = data.parts("train")[0].prepared[0]
    performance = codec.apply_pedal(prepared.performance())
    starts = np.random.default_rng(0).integers(0, int(MINUTES * 60 / 0.02) - 256, 100_000) * 0.02
    yield "reading alone", read_only(data)
    yield "conditioning alone", lambda number: codec.encode_segment(performance, float(starts[number]))
    yield "whole example", data.dataset("train").__getitem__


def loader_rate(data: SpectrogramDiffusionData, batch_size: int, workers: int, batches: int) -> float:
    """Examples per second of a loader whose workers have started."""
    dataset = data.dataset("train")
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=data.collate,
        sampler=RandomSampler(dataset, replacement=True, num_samples=batch_size * (batches + 2 * max(workers, 1))),
    )
    loaded = iter(loader)
    for _ in range(2 * max(workers, 1)):
        next(loaded)
    start = time.perf_counter()
    for _ in range(batches):
        next(loaded)
    return batches * batch_size / (time.perf_counter() - start)


def step_rate(model: SpectrogramDiffusion, data: SpectrogramDiffusionData, batch_size: int, steps: int) -> float:
    """Examples per second of training on one batch that lies ready."""
    device = model.device
    batch = data.collate([data.dataset("train")[number] for number in range(batch_size)])
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    # There is no Trainer that it could log to.
    model.log = lambda *_, **__: None
    model.train()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    clock = time.perf_counter if device.type == "cuda" else time.process_time
    step()
    start = clock()
    for _ in range(steps):
        step()
    return steps * batch_size / (clock() - start)


def measure(options: argparse.Namespace) -> str:
    """Run everything; returns Markdown."""
    torch.set_num_threads(options.threads)
    model = build_model(run("fit", f"--config={options.preset}", "--data=folder", "--data.root=.", "--print_config"))
    model.to(options.accelerator)
    with tempfile.TemporaryDirectory() as folder:
        make_recordings(Path(folder, "pairs"), options.recordings, model.codec.sample_rate)
        data = open_data(model, Path(folder))
        lines = ["| one process | examples a second, best | median | ms each |", "|---|---|---|---|"]
        alone = {}
        for name, work in pieces(model, data):
            best, median = per_second(work, options.examples, options.repeats)
            alone[name] = best
            lines.append(f"| {name} | {best:.0f} | {median:.0f} | {1000 / best:.2f} |")
        lines += ["", "| batch | workers | examples a second | x I/O |", "|---|---|---|---|"]
        for batch_size in options.batch_sizes:
            for workers in options.workers:
                rate = loader_rate(data, batch_size, workers, max(options.examples // batch_size, 4))
                lines.append(f"| {batch_size} | {workers} | {rate:.0f} | {rate / alone['reading alone']:.2f} |")
        trained = step_rate(model, data, options.batch_sizes[0], options.steps)
    lines += [
        "",
        f"Training step of {options.preset} on {options.accelerator}, batch {options.batch_sizes[0]}, "
        f"{options.threads} threads: {trained:.2f} examples a second; one process loads "
        f"{alone['whole example'] / trained:.0f} times as many.",
    ]
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="spectrogram_diffusion/small")
    parser.add_argument("--recordings", type=int, default=8)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--examples", type=int, default=400, help="in each round")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="training steps that are measured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    table = measure(options)
    print(table)
    options.output.write_text(table)


if __name__ == "__main__":
    main()
