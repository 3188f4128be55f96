"""Can a transcriber guide a model that has never heard of notes?

Trains, for a stated processor time each, an unconditional denoiser of log-mel spectrograms and two transcribers of
them (onset and sounding for each of 88 keys; same network, other random numbers). Then samples held-out segments with
classifier guidance (Dhariwal and Nichol 2021, algorithm 2): the noise estimate is moved against the gradient of the
first transcriber's log-likelihood of the wanted notes,

    epsilon' = epsilon - scale * sigma * grad_z log p(notes | x0(z, t)).

Scored are the notes that each transcriber finds (onset F1 within 50 ms; the second one took no part in guiding) and the
mel error against the recording, beside the recording itself, samples without guidance, and a conditional model.

    python benchmarks/transcription_guidance.py --output table.md

needs the data of the preset spectrogram_diffusion/demo, as docs/training.md lays it out, below the working directory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from midisynth.checkpoints import load_model
from midisynth.diffusion.objectives import add_noise
from midisynth.diffusion.sampling import sample
from midisynth.diffusion.schedules import CosineSchedule
from midisynth.metrics.functional import mel_error, note_score
from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion, SpectrogramDiffusionData
from midisynth.models.spectrogram_diffusion.network import Denoiser
from midisynth.music.notes import NOTE_DTYPE
from midisynth.testing import run

KEYS, LOWEST_KEY = 88, 21
SCHEDULE = CosineSchedule()
DIFFUSION_STEPS = 50


class Transcriber(nn.Module):
    """Log-mel spectrogram -> logits of onset and sounding of every key.

    Args:
        mels: Mel bins.
        dim: Channels.
    """

    def __init__(self, mels: int, dim: int = 256):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(mels, dim, 5, padding=2), nn.GELU(), nn.Conv1d(dim, dim, 5, padding=2), nn.GELU()
        )
        self.out = nn.Conv1d(dim, 2 * KEYS, 3, padding=1)

    def forward(self, mel: Tensor) -> Tensor:
        """[batch, frames, mels] scaled -> [batch, frames, 2, 88]."""
        return self.out(self.layers(mel.transpose(1, 2))).transpose(1, 2).unflatten(2, (2, KEYS))


def note_targets(notes: Tensor, frames: int, hop_sec: float) -> Tensor:
    """Note tables [batch, notes, 4] -> [batch, frames, 2, 88] in {0, 1}: onset in the frame or the next, sounding."""
    targets = torch.zeros(len(notes), frames, 2, KEYS)
    for row, table in enumerate(notes):
        for onset, end, key, velocity in table.tolist():
            if velocity == 0:
                continue
            # The centre of frame i is at (i + 1) hops.
            first, last = round(onset / hop_sec) - 1, max(round(end / hop_sec) - 1, round(onset / hop_sec))
            if first >= 0:
                targets[row, first : first + 2, 0, int(key)] = 1
            targets[row, max(first, 0) : max(last, 0), 1, int(key)] = 1
    return targets


def log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Of independent onsets and sounding keys, a sum for each row, [batch]."""
    return -F.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(1).sum(1)


def found_notes(logits: Tensor, hop_sec: float) -> np.ndarray:
    """Notes of one segment [frames, 2, 88]: peaks of the onset probability above one half."""
    onset = logits[:, 0].sigmoid()
    padded = F.pad(onset.T, (2, 2))
    peak = (F.max_pool1d(padded, 5, 1) == onset.T) & (onset.T > 0.5)
    keys, frames = peak.nonzero(as_tuple=True)
    notes = np.zeros(len(keys), NOTE_DTYPE)
    notes["onset_sec"], notes["duration_sec"] = (frames.numpy() + 1.5) * hop_sec, 0.1
    notes["pitch"], notes["velocity"] = keys.numpy() + LOWEST_KEY, 64
    return notes


def wanted_notes(table: Tensor) -> np.ndarray:
    """Notes that begin in a segment, from its table [notes, 4]."""
    table = table[(table[:, 3] > 0) & (table[:, 0] >= 0)]
    notes = np.zeros(len(table), NOTE_DTYPE)
    notes["onset_sec"], notes["pitch"] = table[:, 0].numpy(), table[:, 2].numpy() + LOWEST_KEY
    notes["duration_sec"], notes["velocity"] = 0.1, 64
    return notes


def onset_f1(transcriber: Transcriber, mels: Tensor, notes: Tensor, hop_sec: float) -> float:
    """Mean over segments."""
    with torch.no_grad():
        logits = transcriber(mels)
    pairs = zip(notes, logits, strict=True)
    return float(np.mean([note_score(wanted_notes(table), found_notes(row, hop_sec)).f1 for table, row in pairs]))


@dataclass
class Data:
    """Scaled spectrograms and note tables.

    Attributes:
        model: Conditional model, which also says what a segment is.
        train: Random segments for ever.
        test: [batch, ...] held-out segments with notes.
    """

    model: SpectrogramDiffusion
    train: Iterator[Mapping[str, Tensor]]
    test: Mapping[str, Tensor]


def open_data(options: argparse.Namespace) -> Data:
    """The data of the demo preset, fewer clips of them, in the segments of the conditional model."""
    model = load_model(options.conditional)
    words = ["--config=spectrogram_diffusion/demo", f"--data.corpora.rendered.clips={options.clips}"]
    settings = yaml.safe_load(run("fit", *words, "--print_config"))["data"]["init_args"]
    data = SpectrogramDiffusionData({"rendered": settings["corpora"]["rendered"]}, cache_dir=options.cache_dir)
    data.connect(model)
    data.prepare()
    for stage in ("fit", "test"):
        data.setup(stage)
    train, test = data.dataset("train"), data.dataset("test")

    def batches() -> Iterator[Mapping[str, Tensor]]:
        number = 0
        while True:
            yield data.collate([train[number + row] for row in range(options.batch_size)])
            number += options.batch_size

    examples = [test[int(index)] for index in np.linspace(0, len(test) - 1, 3 * options.segments)]
    dense = sorted(examples, key=lambda example: -int((example["notes"][:, 0] >= 0).sum()))[: options.segments]
    return Data(model, batches(), data.collate(dense))


def train(
    name: str, network: nn.Module, data: Data, loss: Callable[[Tensor, Mapping[str, Tensor]], Tensor], seconds: float
) -> str:
    """Train for some processor time; returns a line about it."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.98))
    start, steps, losses = time.process_time(), 0, []
    while (spent := time.process_time() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min((steps + 1) / 50, 1.0) * (1 - 0.95 * spent / seconds)
        batch = next(data.train)
        with torch.no_grad():
            x0 = data.model.scaled_mel(batch["audio"])
        value = loss(x0, batch)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        steps += 1
        losses.append(value.item())
    network.eval().requires_grad_(False)
    size = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    line = f"{name}: {size:.1f} M parameters, {steps} steps, loss {np.mean(losses[-50:]):.4f}"
    print(line, flush=True)
    return line


def train_transcriber(data: Data, seed: int, seconds: float) -> tuple[Transcriber, str]:
    """A transcriber that also hears the blur of early estimates: clean data with a little noise."""
    torch.manual_seed(seed)
    network = Transcriber(data.model.hparams.mels)
    hop_sec = data.model.hparams.hop_length / data.model.hparams.sample_rate

    def loss(x0: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        noisy = x0 + 0.1 * torch.rand(len(x0), 1, 1) * torch.randn_like(x0)
        targets = note_targets(batch["notes"], x0.shape[1], hop_sec)
        return F.binary_cross_entropy_with_logits(network(noisy), targets, pos_weight=torch.tensor(3.0))

    return network, train(f"transcriber {seed}", network, data, loss, seconds)


def train_prior(data: Data, seconds: float) -> tuple[Denoiser, str]:
    """An unconditional denoiser that predicts x0, in the size of the demo preset."""
    torch.manual_seed(0)
    options = data.model.hparams
    network = Denoiser(
        mels=options.mels,
        frames=options.segment_frames,
        hop_sec=options.hop_length / options.sample_rate,
        dim=128,
        hidden_dim=256,
        heads=4,
        head_dim=32,
        layers=4,
        dropout=0.0,
        vocab_size=None,
        max_tokens=1,
        note_roll=False,
        prior_range=None,
    )
    nothing = network.condition(options.segment_frames)

    def loss(x0: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        t = (torch.rand(1) + torch.arange(len(x0)) / len(x0)) % 1
        alpha, sigma = SCHEDULE.alpha(t)[:, None, None], SCHEDULE.sigma(t)[:, None, None]
        z = add_noise(x0, torch.randn_like(x0), alpha, sigma)
        # The mean of what may be there, where the median of an L1 loss would prefer silence.
        return F.mse_loss(network(z, t, nothing), x0)

    return network, train("prior", network, data, loss, seconds)


def guided(
    prior: Denoiser, transcriber: Transcriber, targets: Tensor, scale: float, until: float, shape: torch.Size
) -> Tensor:
    """Samples [batch, frames, mels] whose notes the transcriber should find, guided from the time `until` on."""
    generator = torch.Generator().manual_seed(0)
    nothing = prior.condition(shape[1])

    def denoise(z: Tensor, t: float) -> Tensor:
        time_ = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = SCHEDULE.alpha(time_).item(), SCHEDULE.sigma(time_).item()
        with torch.enable_grad():
            steered = scale > 0 and t <= until
            z = z.detach().requires_grad_(steered)
            x0 = prior(z, torch.tensor([t]), nothing)
            if not steered:
                return x0.clamp(-1, 1)
            (gradient,) = torch.autograd.grad(log_likelihood(transcriber(x0), targets).sum(), z)
        # epsilon' in terms of the x0 that the solver takes: (z - sigma epsilon') / alpha.
        return (x0 + scale * sigma**2 / alpha * gradient).detach().clamp(-1, 1)

    return sample(denoise, lambda _: torch.randn(shape, generator=generator), SCHEDULE, "ddim", DIFFUSION_STEPS)


def measure(options: argparse.Namespace) -> str:
    """Train, sample, score; returns Markdown."""
    torch.set_num_threads(1)
    data = open_data(options)
    judges, lines = [], []
    for seed in (1, 2):
        transcriber, line = train_transcriber(data, seed, options.transcriber_seconds)
        judges.append(transcriber)
        lines.append(f"- {line}")
    prior, line = train_prior(data, options.prior_seconds)
    lines.append(f"- {line}")
    model = data.model
    test = {name: values for name, values in data.test.items() if isinstance(values, Tensor)}
    hop_sec = model.hparams.hop_length / model.hparams.sample_rate
    x0, notes = model.scaled_mel(test["audio"]), test["notes"]
    targets = note_targets(notes, x0.shape[1], hop_sec)
    with torch.no_grad():
        generators = [torch.Generator().manual_seed(row) for row in range(len(x0))]
        conditional = model.mel_range(model.sample_segments(test, model.noise_source(generators)))
    rows = {"the recording": x0, f"conditional model ({options.conditional})": conditional}
    rows["prior, no guidance"] = guided(prior, judges[0], targets, 0.0, 1.0, x0.shape)
    for until in options.until:
        for scale in options.scales:
            name = f"prior, guidance {scale:g} from t = {until:g}"
            rows[name] = guided(prior, judges[0], targets, scale, until, x0.shape)
    lines += ["", "| | onset F1, guiding transcriber | onset F1, the other | mel error (nats) |", "|---|---|---|---|"]
    for name, mels in rows.items():
        scores = [onset_f1(judge, mels, notes, hop_sec) for judge in judges]
        error = mel_error(model.mel_range.inverse(mels), model.mel_range.inverse(x0)).item()
        lines.append(f"| {name} | {scores[0]:.3f} | {scores[1]:.3f} | {error:.3f} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conditional", default="spectrogram_diffusion_piano", help="anything that --ckpt_path takes")
    parser.add_argument("--clips", type=int, default=40, help="training clips of 30 s")
    parser.add_argument("--cache_dir", default=None, help="folder for prepared data")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--segments", type=int, default=8, help="held-out, the densest of 3 x as many")
    parser.add_argument("--transcriber-seconds", type=float, default=120.0, help="processor time")
    parser.add_argument("--prior-seconds", type=float, default=360.0, help="processor time")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0])
    parser.add_argument(
        "--until", type=float, nargs="+", default=[1.0, 0.7], help="diffusion times from which on samples are guided"
    )
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    table = measure(options)
    options.output.write_text(table)


if __name__ == "__main__":
    main()
