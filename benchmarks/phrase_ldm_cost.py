"""What a song costs at the published sizes, and what half precision does to the denoiser.

    python benchmarks/phrase_ldm_cost.py

The weights are random: neither cost nor rounding asks for trained ones. One step of the denoiser is timed as the
original runs it (diffusers' module with cross-attention to zeros, the rotary table built anew) and as it is run here,
in one process; a song is that times the steps. Decoding is timed per token. Precision is the error of one pass under
autocast, relative to float32: with all that autocast does to diffusers' module, as in the original, and as it is here.
Seconds are of one thread on a CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from midisynth.models.phrase_ldm.decoding import decode
from midisynth.models.phrase_ldm.ldm import PhraseDenoiser
from midisynth.models.phrase_ldm.network import PhraseAutoencoder

PUBLISHED_STEPS = 1000


def seconds(call: Callable[[], object], repeats: int) -> float:
    """CPU time of the fastest of some calls, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def stock_step(network: PhraseDenoiser, x: Tensor, t: Tensor) -> Tensor:
    """One step as the original makes it: the module of diffusers as it is."""
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    rotary = get_1d_rotary_pos_embed(16, x.shape[1] + 1, use_real=True, repeat_interleave_real=False)
    output = network.ldm(
        x.transpose(1, 2),
        t.expand(len(x)),
        encoder_hidden_states=x.new_zeros(len(x), 7, 128),
        global_hidden_states=x.new_zeros(len(x), 1, 128),
        rotary_embedding=rotary,
    ).sample
    return output.transpose(1, 2)


def song_costs(rows: int, steps: int, repeats: int, phrases: int, tokens: int) -> None:
    """Print seconds of a song."""
    network, x, t = PhraseDenoiser().eval(), torch.randn(1, rows, 64), torch.tensor([500])
    conditioning = network.condition(1)
    assert torch.allclose(stock_step(network, x, t), network(x, t, conditioning), atol=1e-3)
    published = seconds(lambda: stock_step(network, x, t), repeats)
    ours = seconds(lambda: network(x, t, conditioning), repeats)
    print(f"| one step, {rows} rows | {published:.3f} s | {ours:.3f} s |")
    print(f"| {PUBLISHED_STEPS} steps, {steps} steps | {PUBLISHED_STEPS * published:.0f} s | {steps * ours:.1f} s |")
    print(f"| compute for a song | 1 | {steps * ours / PUBLISHED_STEPS / published:.4f} |")
    vae = PhraseAutoencoder().eval()
    latents = torch.randn(phrases, 64)
    each = seconds(lambda: decode(vae, latents, tokens), 1) / phrases / (tokens - 1)
    print(f"| a token of {phrases} phrases at once | | {1e3 * each:.2f} ms |")


def half_precision(rows: int) -> None:
    """Print relative errors of one pass."""
    torch.manual_seed(0)
    network, x = PhraseDenoiser().eval(), torch.randn(2, rows, 64)
    conditioning = network.condition(2)
    for t in (20, 900):
        step = torch.tensor([t])
        exact = network(x, step, conditioning)
        moved = (network(x, step + 1, conditioning) - exact).norm() / exact.norm()
        for name, precision in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
            with torch.autocast("cpu", precision):
                original, ours = stock_step(network, x, step).float(), network(x, step, conditioning)
            errors = [float((output - exact).norm() / exact.norm()) for output in (original, ours)]
            print(f"| {name}, t = {t} | {errors[0]:.1e} | {errors[1]:.1e} | {float(moved):.1e} |")


@torch.no_grad()
def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512, help="latents of a song: 512, or fewer for a shorter one")
    parser.add_argument("--steps", type=int, default=30, help="steps of the solver")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of which the fastest counts")
    parser.add_argument("--phrases", type=int, default=256, help="phrases that are decoded at once")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| | original | here |\n| --- | --- | --- |")
    song_costs(options.rows, options.steps, options.repeats, options.phrases, options.tokens)
    print("\n| error of a pass | original | here | what one step changes |\n| --- | --- | --- | --- |")
    half_precision(min(options.rows, 128))


if __name__ == "__main__":
    main()
