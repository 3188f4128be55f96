"""What a song costs at the published sizes, and what half precision does to the denoiser.

    python benchmarks/phrase_ldm_cost.py --pop909 POP909-Dataset

Both sides run in one process: the denoiser with a step of the solver, as the original runs them (diffusers' module with
cross-attention to zeros, the rotary table built anew, DDPMScheduler) and as they are run here; and the decoder, in the
original with all rows until the longest phrase ends, here with those of a song that are neither over nor told by their
vector. Of each a few steps are timed, at the beginning, in the middle and at the end, and the rest lies between them.
Phrases are as long as those of a real song; weights are random: neither cost nor rounding asks for trained ones.

Precision is the error of one pass under autocast, relative to float32: with all that autocast does to diffusers'
module, as in the original, and as it is here. Seconds are of one thread on a CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from midisynth.datasets.pop909 import Pop909
from midisynth.models.phrase_ldm.codec import PhraseCodec, phrases_of
from midisynth.models.phrase_ldm.decoding import Grammar
from midisynth.models.phrase_ldm.ldm import PhraseDenoiser
from midisynth.models.phrase_ldm.network import PhraseAutoencoder
from midisynth.models.phrase_ldm.sampling import LatentDiffusion

PUBLISHED_STEPS, PUBLISHED_ROWS, PUBLISHED_TOKENS = 1000, 512, 128
#: Where steps are timed, as shares of the way.
TIMED = (0.0, 0.5, 1.0)


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


def denoising(steps: int, repeats: int) -> tuple[float, float]:
    """Seconds of the denoiser for a song, in the original and here."""
    from diffusers import DDPMScheduler

    network, x = PhraseDenoiser().eval(), torch.randn(1, PUBLISHED_ROWS, 64)
    conditioning, diffusion = network.condition(1), LatentDiffusion()
    assert torch.allclose(
        stock_step(network, x, torch.tensor([500])), network(x, torch.tensor([500]), conditioning), atol=1e-3
    )
    scheduler = DDPMScheduler(PUBLISHED_STEPS, beta_schedule="squaredcos_cap_v2", clip_sample_range=diffusion.clip)

    def original(t: int) -> None:
        scheduler.step(stock_step(network, x, torch.tensor([t])), t, x)

    published = np.mean(
        [seconds(lambda t=t: original(t), repeats) for t in (PUBLISHED_STEPS - 1, PUBLISHED_STEPS // 2, 0)]
    )
    few = seconds(lambda: diffusion.sample(network, conditioning, lambda number: x, steps=len(TIMED)), repeats)
    return PUBLISHED_STEPS * float(published), steps * few / len(TIMED)


def decoding_step(vae: PhraseAutoencoder, rows: int, position: int, grammar: Grammar | None, repeats: int) -> float:
    """Seconds of one token of some phrases that have said `position` tokens."""
    memory, said = vae.memory(torch.randn(rows, 64)), torch.randint(100, 500, (rows, position + 1))

    def kept() -> object:
        if position == 0:
            return None
        return vae.t5(encoder_outputs=(memory,), decoder_input_ids=said[:, :-1], use_cache=True).past_key_values

    times = []
    for _ in range(repeats):
        cache = kept()
        start = time.process_time()
        logits = vae.t5(
            encoder_outputs=(memory,), decoder_input_ids=said[:, -1:], past_key_values=cache, use_cache=True
        ).logits[:, -1]
        if grammar is not None:
            logits = logits.masked_fill(~grammar.allowed(said[:, -1], *grammar.begin(rows)), -torch.inf)
        logits.argmax(dim=-1)
        times.append(time.process_time() - start)
    return min(times)


def decoding(lengths: Sequence[int], repeats: int) -> tuple[float, float]:
    """Seconds of the decoder for a song whose phrases have so many tokens, in the original and here."""
    vae, longest = PhraseAutoencoder().eval(), min(max(lengths) + 1, PUBLISHED_TOKENS - 1)
    places = [round(share * (longest - 1)) for share in TIMED]
    # Empty slots, bar lines and the end are told by their vectors.
    decoded = [length for length in lengths if length > 1]
    found = []
    for rows_at, grammar in (
        (lambda position: PUBLISHED_ROWS, None),
        (lambda position: sum(length >= position for length in decoded), Grammar()),
    ):
        each = [decoding_step(vae, rows_at(place), place, grammar, repeats) / rows_at(place) for place in places]
        rows = [rows_at(position) for position in range(longest)]
        found.append(float(np.dot(np.interp(range(longest), places, each), rows)))
    return found[0], found[1]


def song_costs(lengths: Sequence[int], steps: int, repeats: int) -> None:
    """Print seconds of a song whose phrases have so many tokens."""
    parts = {f"denoiser: {PUBLISHED_STEPS} and {steps} steps": denoising(steps, repeats)}
    parts["decoder"] = decoding(lengths, repeats)
    parts["a song"] = tuple(map(sum, zip(*parts.values(), strict=True)))
    for name, (published, ours) in parts.items():
        print(f"| {name} | {published:.1f} s | {ours:.1f} s | {published / ours:.0f} |")


def phrase_lengths(root: str, bars: int) -> list[int]:
    """Tokens of the phrases of the first song of POP909 that is long enough, cut to a number of bars."""
    codec = PhraseCodec()
    for record in Pop909(root).records():
        lengths = [len(phrase) for phrase in phrases_of(codec(record))]
        if len(lengths) >= bars * codec.slots:
            return lengths[: bars * codec.slots]
    raise SystemExit(f"no song has {bars} bars")


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
    parser.add_argument("--pop909", required=True, help="folder of POP909, for the lengths of phrases")
    parser.add_argument("--bars", type=int, default=64, help="of the song")
    parser.add_argument("--steps", type=int, default=30, help="steps of the solver")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of which the fastest counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lengths = phrase_lengths(options.pop909, options.bars)
    decoded = [length for length in lengths if length > 1]
    print(
        f"{len(lengths)} phrases, {len(decoded)} of more than one token; these have {np.mean(decoded):.0f} on average\n"
    )
    print("| | original | here | times less |\n| --- | --- | --- | --- |")
    song_costs(lengths, options.steps, options.repeats)
    print("\n| error of a pass | original | here | what one step changes |\n| --- | --- | --- | --- |")
    half_precision(128)


if __name__ == "__main__":
    main()
