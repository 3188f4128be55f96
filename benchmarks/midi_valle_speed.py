"""What a segment costs with MIDI-VALLE, against the loop of the original, which keeps nothing from frame to frame.

    python benchmarks/midi_valle_speed.py
    python benchmarks/midi_valle_speed.py --device cuda --segments 16 --precision bfloat16

A segment of 17.5 s at the published size with random weights: 120 note rows, a prompt of 3 s, 875 frames. Ours is
decoded as `midisynth predict` does. The other loop runs the same network over notes, prompt and all frames so far for
each frame; it is timed at a few frames, and a parabola through these times is summed over all frames. Passes over the
other codebooks and the neural codec are counted the same for both, although the original's cost no less. On a CPU
processor time of one thread is measured, which other programs disturb less; on CUDA time on the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from midisynth.audio.neural_codec import EncodecCodec, EncodecOptions
from midisynth.generation import SamplingRules, sample
from midisynth.models.midi_valle.decoding import decode_first, refine
from midisynth.models.midi_valle.frames import FrameLimits, FrameLoop
from midisynth.models.midi_valle.network import ValleNetwork

FRAMES_PER_SEC = 50
#: Frames whose mean cost is compared at the start and at the end.
WINDOW = 100


class Clock:
    """Seconds of processor time on a CPU, of time on the clock elsewhere."""

    def __init__(self, device: torch.device):
        self._device = device

    def __call__(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def of(self, action: Callable[[], object]) -> tuple[object, float]:
        """What an action returns, and its seconds."""
        start = self()
        result = action()
        return result, self() - start


def uncached_frame(network: ValleNetwork, rows: Tensor, known: Tensor, uniforms: Tensor) -> Tensor:
    """The next frame [batch] of known ones [batch, frames], from nothing but the notes [batch, rows, features]."""
    ar = network.ar
    text = ar.embed_text(network.embed_notes(rows), None)
    audio = ar.place_audio(ar.audio_embedding(known))
    masks = (torch.ones(part.shape[:2], dtype=torch.bool, device=part.device) for part in (text, audio))
    hidden = ar.attend(text, audio, *masks, causal=True)
    return sample(ar.predict_layer(hidden[:, -1]), uniforms, SamplingRules())


@contextmanager
def frame_costs(clock: Clock) -> Iterator[list[float]]:
    """Collect the seconds of each frame that is decoded meanwhile."""
    costs: list[float] = []
    advance = FrameLoop.advance

    def timed(loop: FrameLoop) -> None:
        costs.append(clock.of(lambda: advance(loop))[1])

    FrameLoop.advance = timed
    yield costs
    FrameLoop.advance = advance


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each part, for all segments together, and what follows from them."""
    device = torch.device(options.device)
    clock = Clock(device)
    torch.manual_seed(0)
    with device:
        network = ValleNetwork(options.dim, options.heads, options.layers).eval()
        codec = EncodecCodec(EncodecOptions()).eval()
        rows = [torch.randint(4, 20, (options.rows, 6)) for _ in range(options.segments)]
        prompts = [torch.randint(2048, (options.prompt, 4)) for _ in range(options.segments)]
        uniforms = [torch.rand(options.frames) for _ in range(options.segments)]
    limits = [FrameLimits.exactly(options.frames)] * options.segments

    def first() -> list[Tensor]:
        return decode_first(network, rows, [prompt[:, 0] for prompt in prompts], limits, SamplingRules(), uniforms)

    if device.type == "cuda":
        first()  # kernels are chosen and loaded at the first call
        codes, ar_sec = clock.of(first)
        flatness = {}  # a frame is one and the same graph
    else:
        with frame_costs(clock) as costs:
            codes, ar_sec = clock.of(first)
        early, late = statistics.median(costs[:WINDOW]), statistics.median(costs[-WINDOW:])
        flatness = {"first_frames_sec": early, "last_frames_sec": late, "last_to_first": late / early}
    refined, nar_sec = clock.of(lambda: refine(network, rows, prompts, codes))
    _, codec_sec = clock.of(lambda: [codec.decode(one[None]) for one in refined])
    at = np.linspace(0, options.frames - 1, options.positions).round()
    sampled = []
    for position in at:
        known = torch.randint(2048, (options.segments, options.prompt + int(position)), device=device)
        drawn = torch.rand(options.segments, device=device)
        start = clock()
        uncached_frame(network, torch.stack(rows), known, drawn)
        sampled.append(clock() - start)
    parabola = np.polynomial.Polynomial.fit(at, sampled, 2)
    uncached_sec = float(parabola(np.arange(options.frames)).sum())
    audio_sec = options.segments * options.frames / FRAMES_PER_SEC
    both = nar_sec + codec_sec
    return {
        "audio_sec": audio_sec,
        "ar_sec": ar_sec,
        "nar_sec": nar_sec,
        "codec_sec": codec_sec,
        "sec_per_audio_sec": (ar_sec + both) / audio_sec,
        "uncached_ar_sec": uncached_sec,
        **{f"uncached_frame_{int(position)}_sec": sec for position, sec in zip(at, sampled, strict=True)},
        "ar_speedup": uncached_sec / ar_sec,
        "ar_nar_speedup": (uncached_sec + nar_sec) / (ar_sec + nar_sec),
        "speedup": (uncached_sec + both) / (ar_sec + both),
        **flatness,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--segments", type=int, default=1, help="in one batch")
    parser.add_argument("--frames", type=int, default=875)
    parser.add_argument("--prompt", type=int, default=150, help="frames")
    parser.add_argument("--rows", type=int, default=120, help="notes, with the first and the last row")
    parser.add_argument("--positions", type=int, default=5, help="frames at which the uncached loop is timed")
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    half = options.precision == "bfloat16"
    with torch.inference_mode(), torch.autocast(options.device, torch.bfloat16) if half else nullcontext():
        print(json.dumps({**vars(options), **measure(options)}, indent=2))


if __name__ == "__main__":
    main()
