"""How many samples a second the engines of midi2wave make, and how many times that is what a plain loop makes.

    python benchmarks/midi2wave_speed.py

The decoder has the published size and random weights. The plain loop is Fast WaveNet (Le Paine et al. 2016) as it is
usually written in PyTorch, and was in the original: for every sample and layer, modules of convolutions, one of which
reads a queue that is a tensor. A second one keeps the queues as lists and convolves the two columns that matter.
Conditioning is computed beforehand for all. Everything runs in one process on one thread; CPU time is measured, and the
best of some rounds, in which all take turns, is taken. All draw from the same uniforms, and that they draw the same
codes is checked. Guided engines take two passes for each stream; here they are given the same conditioning for both, so
that these codes are the same, too. On a machine with a GPU, `--device cuda` measures wall time of the engine there, by
number of streams.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.errors import MidisynthError
from midisynth.models.midi2wave.engines import ENGINES, Engine, choose
from midisynth.models.midi2wave.heads import Categorical
from midisynth.models.midi2wave.network import WaveNet

#: Channels that the published encoder gives the decoder.
CONDITIONING = 512
#: Samples of a round, by engine and streams.
SAMPLES = {
    ("plain loop", 1): 128,
    ("loop with lists", 1): 256,
    ("torch", 1): 1024,
    ("torch", 8): 256,
    ("numba", 1): 8192,
    ("numba", 8): 2048,
    ("torch, guided", 1): 1024,
    ("torch, guided", 8): 256,
    ("numba, guided", 1): 8192,
    ("numba, guided", 8): 2048,
}
CUDA_STREAMS = (1, 8, 64, 256)


class Plain(nn.Module):
    """The decoder as it is usually written, step by step.

    Args:
        decoder: Its weights are used.
        lists: Queues are lists of columns, and not tensors.
    """

    def __init__(self, decoder: WaveNet, lists: bool = False):
        super().__init__()
        self.decoder, self.lists = decoder, lists
        self.dilated, self.residual, self.skip = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for layer, dilation in enumerate(decoder.dilations):
            taps = decoder.dilated.weight[layer], decoder.dilated.bias[layer]
            self.dilated.append(convolution(*taps, dilation=1 if lists else dilation))
            # One bias of the sum is enough.
            bias = decoder.skip.bias[0] if layer == 0 else torch.zeros_like(decoder.skip.bias[0])
            self.skip.append(convolution(decoder.skip.weight[layer][..., None], bias))
            if layer < len(decoder.dilations) - 1:
                self.residual.append(
                    convolution(decoder.residual.weight[layer][..., None], decoder.residual.bias[layer])
                )
        self.hidden = convolution(decoder.hidden.weight[..., None])
        self.output = convolution(decoder.output.weight[..., None])

    @torch.no_grad()
    def forward(self, added: Tensor, noise: Tensor) -> Tensor:
        """Codes [samples] from what the layers add [columns, layers, 2R] and uniforms [samples, 1]."""
        channels, head = self.decoder.residual_channels, Categorical(self.decoder.outputs)
        past = [torch.zeros(1, channels, dilation) for dilation in self.decoder.dilations]
        self.queues: list[Any] = [list(queue.split(1, dim=2)) for queue in past] if self.lists else past
        code, codes = torch.tensor([self.decoder.levels // 2]), []
        for sample, uniforms in enumerate(noise):
            x, skips = self.decoder.input(code[None]), 0
            for layer, column in enumerate(added[sample // self.decoder.hop]):
                sums = self.dilated[layer](self.pushed(layer, x)) + column[None, :, None]
                gated = torch.tanh(sums[:, :channels]) * torch.sigmoid(sums[:, channels:])
                skips = skips + self.skip[layer](gated)
                if layer < len(self.residual):
                    x = x + self.residual[layer](gated)
            logits = self.output(F.relu(self.hidden(F.relu(skips))))
            code = head.sample(logits[..., 0], uniforms[None])
            codes.append(code)
        return torch.cat(codes)

    def pushed(self, layer: int, x: Tensor) -> Tensor:
        """Put a column [1, R, 1] into a queue; returns what the layer's convolution reads."""
        if self.lists:
            self.queues[layer].append(x)
            return torch.cat([self.queues[layer].pop(0), x], dim=2)
        read = torch.cat([self.queues[layer], x], dim=2)
        self.queues[layer] = read[..., 1:]
        return read


def convolution(weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> nn.Conv1d:
    """A module with these weights [outputs, inputs, kernel] and [outputs]."""
    module = nn.Conv1d(weight.shape[1], weight.shape[0], weight.shape[2], dilation=dilation, bias=bias is not None)
    module.weight.data = weight
    if bias is not None:
        module.bias.data = bias
    return module


def inputs(decoder: WaveNet, streams: int, samples: int) -> tuple[Tensor, Tensor]:
    """What the layers add [streams, columns, layers, 2R], and uniforms [streams, samples, 1]."""
    generator = torch.Generator().manual_seed(0)
    columns = -(-samples // decoder.hop)
    z = torch.randn(streams, CONDITIONING, columns, generator=generator)
    added = decoder.layer_conditioning(z).permute(0, 3, 1, 2)
    return added, torch.rand(streams, samples, 1, generator=generator)


def rate(run: Callable[[], Any], samples: int, clock: Callable[[], float]) -> float:
    """Samples per second."""
    started = clock()
    run()
    return samples / (clock() - started)


def measure(decoder: WaveNet, engines: dict[str, Engine], rounds: int) -> dict[tuple[str, int], float]:
    """The best rates of loops and engines on a CPU, by name and streams."""
    loops = {"plain loop": Plain(decoder), "loop with lists": Plain(decoder, lists=True)}
    check(decoder, loops, engines)
    best: dict[tuple[str, int], float] = {}
    for _ in range(rounds):
        for (name, streams), samples in SAMPLES.items():
            added, noise = inputs(decoder, streams, samples)
            if name in engines:
                added = added.repeat_interleave(engines[name].passes, dim=0)

            def run(name=name, streams=streams, added=added, noise=noise) -> Tensor:
                if name in loops:
                    return loops[name](added[0], noise[0])
                return engines[name].run(engines[name].start(streams), added, decoder.hop, noise)

            if name in loops or name in engines:
                found = rate(run, streams * samples, time.process_time)
                best[name, streams] = max(found, best.get((name, streams), 0.0))
    return best


def check(decoder: WaveNet, loops: dict[str, Plain], engines: dict[str, Engine]) -> None:
    """Compare the codes of all."""
    added, noise = inputs(decoder, 1, 64)
    codes = {name: loop(added[0], noise[0]) for name, loop in loops.items()}
    for name, engine in engines.items():
        codes[name] = engine.run(engine.start(1), added.expand(engine.passes, -1, -1, -1), decoder.hop, noise)[0]
    for name, found in codes.items():
        if not found.equal(codes["plain loop"]):
            raise SystemExit(f"{name} draws other codes than the plain loop")


def measure_cuda(decoder: WaveNet) -> None:
    """Print the rates on a GPU, in wall time; the first run records the graph."""
    engine = choose(decoder.cuda(), Categorical(), name="cuda")
    for streams in CUDA_STREAMS:
        added, noise = inputs(decoder.cpu(), streams, 16 * decoder.hop)
        state = engine.start(streams)

        def run(state=state, added=added, noise=noise) -> Tensor:
            return engine.run(state, added, decoder.hop, noise)

        run()
        found = max(rate(run, noise.shape[:2].numel(), time.perf_counter) for _ in range(3))
        print(f"cuda, {streams} streams: {found:,.0f} samples/s")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="of which the best counts")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    decoder = WaveNet(conditioning=CONDITIONING).eval().requires_grad_(False)
    try:
        if options.device == "cuda":
            measure_cuda(decoder)
            return 0
        engines = {name: choose(decoder, Categorical(), name=name) for name in ENGINES if name != "cuda"}
        engines |= {f"{name}, guided": choose(decoder, Categorical(), name=name, guidance=2.0) for name in engines}
    except MidisynthError as error:
        print(error, file=sys.stderr)
        return 1
    best = measure(decoder, engines, options.rounds)
    plain = best["plain loop", 1]
    print("| engine | streams | samples/s | times the plain loop |\n| --- | ---: | ---: | ---: |")
    for (name, streams), found in best.items():
        print(f"| {name} | {streams} | {found:,.0f} | {found / plain:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
