"""Is a training step at least as fast as a plain implementation of the same network?

The plain one is written as one would write it first: attention as two matrix products and an explicit softmax over a
mask of the full size, and one example of the batch after the other; "trimmed" takes the padding off each, which spares
it work that a batch cannot avoid. They have the same weights and give the same loss, which is checked. All run forward,
backward and AdamW in this process, in turns; the first turn of each is not counted. On a CPU processor time is
measured, which other programs disturb less.

    python benchmarks/training_step.py --output benchmarks/training_step.md
    python benchmarks/training_step.py --accelerator cuda --batch-size 32 --rounds 20 --output training_step_gpu.md
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion
from midisynth.nn.attention import Attention
from midisynth.nn.cache import KeyValue
from midisynth.testing import build_model, run

WAYS = ("midisynth", "plain", "plain, trimmed")


class PlainAttention(Attention):
    """Attention with all its steps written out."""

    def forward(self, x: Tensor, memory: KeyValue | None = None, mask: Tensor | None = None, **_: object) -> Tensor:
        key, value = self.project(x) if memory is None else memory
        query = self._split(self.query(x))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        allowed = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand_as(scores)
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1)
        weights = nn.functional.dropout(weights, self.dropout, self.training)
        return self.out((weights @ value).transpose(1, 2).flatten(-2))


def make_plain(model: SpectrogramDiffusion) -> None:
    """Replace the attention of a model; weights stay."""
    for module in model.modules():
        if type(module) is Attention:
            module.__class__ = PlainAttention


def make_batch(model: SpectrogramDiffusion, batch_size: int, tokens: int, device: str) -> dict[str, Tensor]:
    """A batch whose token sequences are between half as long as asked for and as long."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(tokens // 2, tokens, batch_size).long()
    ids = torch.randint(1, model.codec.table_rows, (batch_size, tokens), generator=generator)
    notes = torch.rand(batch_size, tokens // 4, 4, generator=generator) * torch.tensor([5.0, 5.0, 87.0, 1.0])
    notes[..., 1] += notes[..., 0]
    batch = {
        "tokens": ids * (torch.arange(tokens) < lengths[:, None]),
        "notes": notes,
        "audio": 0.1 * torch.randn(batch_size, model.codec.segment_samples, generator=generator),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def loss_of(model: SpectrogramDiffusion, batch: Mapping[str, Tensor], way: str) -> Tensor:
    """The training loss, with the same times and noise in every way of computing it."""
    size, device = len(batch["audio"]), batch["audio"].device
    generator = torch.Generator().manual_seed(1)
    t = torch.rand(size, generator=generator).to(device)
    epsilon = torch.randn(size, model.training_frames, model.hparams.mels, generator=generator).to(device)
    if way == "midisynth":
        return model.loss(batch, t, epsilon)
    losses = []
    for row in range(size):
        example = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        if way == "plain, trimmed":
            example["tokens"] = example["tokens"][:, : int((example["tokens"] != 0).sum())]
        losses.append(model.loss(example, t[row : row + 1], epsilon[row : row + 1]))
    return torch.stack(losses).mean()


def stepper(model: SpectrogramDiffusion, batch: Mapping[str, Tensor], way: str) -> Callable[[], float]:
    """A training step that returns its seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    device = batch["audio"].device.type
    clock = time.perf_counter if device == "cuda" else time.process_time

    def step() -> float:
        start = clock()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(model, batch, way)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    return step


def measure(options: argparse.Namespace) -> str:
    """Run both in turns; returns Markdown."""
    torch.set_num_threads(options.threads)
    words = [f"--config={options.preset}", "--data=folder", "--data.root=.", "--model.dropout=0"]
    config = run("fit", *words, "--print_config")
    torch.manual_seed(0)
    ours = build_model(config).to(options.accelerator).train()
    plain = build_model(config).to(options.accelerator).train()
    plain.load_state_dict(ours.state_dict())
    make_plain(plain)
    batch = make_batch(ours, options.batch_size, options.tokens, options.accelerator)
    with torch.no_grad():
        wanted = loss_of(ours, batch, "midisynth")
        difference = max(abs(loss_of(plain, batch, way) - wanted).item() for way in WAYS[1:])
    assert difference < 1e-4, f"the losses differ by {difference}: this compares different networks"
    steps = {way: stepper(ours if way == "midisynth" else plain, batch, way) for way in WAYS}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 1):
        for name, step in steps.items():
            seconds = step()
            if number:
                taken[name].append(seconds)
    lines = ["| step | best (s) | median (s) | worst (s) | examples a second, best |", "|---|---|---|---|---|"]
    for name, seconds in taken.items():
        best = min(seconds)
        lines.append(
            f"| {name} | {best:.3f} | {statistics.median(seconds):.3f} | {max(seconds):.3f} "
            f"| {options.batch_size / best:.2f} |"
        )
    ratio = min(taken["plain"]) / min(taken["midisynth"])
    lines += [
        "",
        f"{options.preset} on {options.accelerator}, {options.threads} threads, batch {options.batch_size}, up to "
        f"{options.tokens} tokens, {options.rounds} rounds: the plain step takes {ratio:.2f} times as long. "
        f"Losses differ by {difference:.1e}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="spectrogram_diffusion/small")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    table = measure(options)
    print(table)
    options.output.write_text(table)


if __name__ == "__main__":
    main()
