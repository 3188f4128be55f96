"""Is a training step of the decoder cheaper than the layer loop that one would write first?

The loop brings conditioning to the rate of samples before its matrix acts on it, and adds a skip product for every
layer. Both have the same weights; losses and gradients are compared first. Forward and backward run in this process,
in turns; the first turn of each is not counted. On a CPU processor time is measured, which other programs disturb less.

    python benchmarks/midi2wave_training.py
    python benchmarks/midi2wave_training.py --accelerator cuda --batch-size 8 --seconds 2 --rounds 20

Sizes are those of the preset midi2wave/original.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from midisynth.models.midi2wave.heads import Categorical
from midisynth.models.midi2wave.network import WaveNet

SAMPLE_RATE = 16000


def plain_forward(net: WaveNet, codes: Tensor, conditioning: Tensor) -> Tensor:
    """The layers of a conditioned WaveNet written out, [batch, outputs, samples]."""
    x = F.embedding(codes, net.input.weight).transpose(1, 2)
    at_samples = conditioning.repeat_interleave(net.hop, dim=-1)[..., : codes.shape[-1]]
    added = F.conv1d(at_samples, net.conditioning.weight[..., None], net.conditioning.bias)
    added = added.unflatten(1, (len(net.dilations), -1))
    total = 0
    for layer, dilation in enumerate(net.dilations):
        past = F.pad(x, (dilation, 0))
        a = F.conv1d(past, net.dilated.weight[layer], net.dilated.bias[layer], dilation=dilation) + added[:, layer]
        tanh, sigmoid = a.chunk(2, dim=1)
        gated = torch.tanh(tanh) * torch.sigmoid(sigmoid)
        total = total + F.conv1d(gated, net.skip.weight[layer, :, :, None], net.skip.bias[layer])
        if layer < len(net.dilations) - 1:
            x = (x + F.conv1d(gated, net.residual.weight[layer, :, :, None], net.residual.bias[layer])) * net.gain
    y = F.conv1d(F.relu(total), net.hidden.weight[..., None])
    y = F.conv1d(F.relu(y), net.output.weight[..., None])
    return F.pad(y[..., :-1], (1, 0))


def difference(net: WaveNet, codes: Tensor, z: Tensor) -> float:
    """Largest difference of a gradient, relative to the largest gradient of its parameter or of the conditioning."""
    head, worst = Categorical(net.outputs), 0.0
    wanted = [*net.parameters(), z]
    ours = torch.autograd.grad(head.loss(net(codes, z), codes), wanted)
    plain = torch.autograd.grad(head.loss(plain_forward(net, codes, z), codes), wanted)
    for one, other in zip(ours, plain, strict=True):
        worst = max(worst, ((one - other).abs().max() / other.abs().max()).item())
    return worst


def timed(forward: Callable[[], Tensor], codes: Tensor) -> float:
    """Seconds of a loss and its gradients."""
    cuda = codes.is_cuda
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    with torch.autocast(codes.device.type, torch.bfloat16, enabled=cuda):
        logits = forward()
    F.cross_entropy(logits.float(), codes).backward()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="of audio in each example")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    net = WaveNet(conditioning=512, compat="seed").to(options.accelerator)
    samples = round(options.seconds * SAMPLE_RATE)
    codes = torch.randint(256, (options.batch_size, samples), device=options.accelerator)
    z = torch.randn(options.batch_size, 512, -(-samples // net.hop), device=options.accelerator, requires_grad=True)
    worst = difference(net, codes[:, : samples // 4], z)
    assert worst < 1e-4, f"gradients differ by {worst:.1e}: these are different networks"
    ways = {"midisynth": lambda: net(codes, z), "layer loop": lambda: plain_forward(net, codes, z)}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, forward in ways.items():
            seconds = timed(forward, codes)
            if turn:
                taken[name].append(seconds)
    heard = options.batch_size * options.seconds
    print("| forward and backward | best (s) | median (s) | audio a second, best (s) |\n|---|---|---|---|")
    for name, seconds in taken.items():
        print(f"| {name} | {min(seconds):.3f} | {statistics.median(seconds):.3f} | {heard / min(seconds):.2f} |")
    ratios = [f(taken["layer loop"]) / f(taken["midisynth"]) for f in (min, statistics.median)]
    print(f"\nThe loop takes {ratios[0]:.1f} times as long at its best, {ratios[1]:.1f} times in the median.", end=" ")
    print(f"Gradients differ by at most {worst:.0e} of the largest of each parameter.")


if __name__ == "__main__":
    main()
