"""Training the codebooks of a residual quantizer, which have no gradients, on any number of processes.

Codes move to the exponential mean of the vectors that chose them (van den Oord et al. 2017, arXiv 1711.00937, appendix
A.1); they start as the centres of k-means over the first batch, and codes that hardly anything chooses are put where
there are vectors (Zeghidour et al. 2021, SoundStream, arXiv 2107.03312, section III-C). All sums are over the vectors
of all processes, and what is drawn is drawn by the first of them, so every process has the same codes after each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.functional import mse_loss

#: Lloyd iterations of the first codes.
ITERATIONS = 10
#: What a code that was moved counts for, in multiples of the least that keeps it where it is.
GRACE = 2.0
#: Codes that count for less stay where they are: their means have lost their digits.
TINY = 1e-10


@dataclass(frozen=True)
class Quantized:
    """What a residual quantizer made of some vectors.

    Attributes:
        latents: Sums of the chosen codes, [batch, dim, frames]; their gradient goes to the vectors as it is.
        commitment: Mean squared distance of the vectors to the codes they chose, scalar; has a gradient to the vectors.
        perplexity: Of the codes of each codebook, [codebooks]: how many seem to be in use in this batch.
    """

    latents: Tensor
    commitment: Tensor
    perplexity: Tensor


class CodebookLearner:
    """Quantizes with `EncodecEuclideanCodebook`s of transformers, and lets them learn.

    Args:
        codebooks: One after the other, each of what those before it have left.
        decay: Share of the exponential means that stays at a step.
        dead_share: Codes that are chosen less often than this share of the mean are moved.
    """

    def __init__(self, codebooks: Sequence[nn.Module], decay: float = 0.99, dead_share: float = 0.1):
        self._codebooks = codebooks
        self._decay = decay
        self._dead_share = dead_share
        self._initialised = False

    @property
    def initialised(self) -> bool:
        """Whether there are codes. Without, vectors pass as they are."""
        # Once there are, nobody has to ask the device.
        self._initialised = self._initialised or all(bool(codebook.inited) for codebook in self._codebooks)
        return self._initialised

    def __call__(self, latents: Tensor, learn: bool) -> Quantized:
        """Quantize [batch, dim, frames].

        Args:
            latents: What the encoder made.
            learn: Update the codes, after making them from these vectors where there are none.
        """
        if not (learn or self.initialised):
            return Quantized(latents, latents.new_zeros(()), latents.new_zeros(len(self._codebooks)))
        with torch.autocast(latents.device.type, enabled=False):
            return self._quantize(latents.float(), learn)

    def _quantize(self, latents: Tensor, learn: bool) -> Quantized:
        vectors = latents.transpose(1, 2).flatten(0, 1)
        left, commitments, perplexities = vectors, [], []
        fresh = not self.initialised
        for codebook in self._codebooks:
            seen = left.detach()
            if fresh:
                self._initialise(codebook, seen)
            codes = codebook.quantize(seen)
            chosen = codebook.decode(codes)
            counts = seen.new_zeros(len(codebook.embed)).index_add_(0, codes, seen.new_ones(len(codes)))
            if learn:
                self._update(codebook, seen, codes, counts)
            commitments.append(mse_loss(left, chosen))
            shares = counts / len(codes)
            perplexities.append(torch.exp(-(shares * (shares + 1e-10).log()).sum()))
            left = left - chosen
        found = (vectors - left).detach()
        # The gradient passes once, not once a codebook.
        straight = vectors + (found - vectors).detach()
        return Quantized(
            straight.unflatten(0, (len(latents), -1)).transpose(1, 2),
            torch.stack(commitments).mean(),
            torch.stack(perplexities),
        )

    @torch.no_grad()
    def _update(self, codebook: nn.Module, vectors: Tensor, codes: Tensor, counts: Tensor) -> None:
        sums = torch.zeros_like(codebook.embed).index_add_(0, codes, vectors)
        counts, sums = _totals(counts, sums)
        codebook.cluster_size.lerp_(counts, 1 - self._decay)
        codebook.embed_avg.lerp_(sums, 1 - self._decay)
        least = self._dead_share * codebook.cluster_size.mean()
        dead = codebook.cluster_size < least
        # Moved codes count for more than the least, which gives vectors time to find them.
        start, drawn = GRACE * least, _drawn(vectors, len(codebook.embed))
        codebook.cluster_size.copy_(torch.where(dead, start, codebook.cluster_size))
        codebook.embed_avg.copy_(torch.where(dead[:, None], start * drawn, codebook.embed_avg))
        known = codebook.cluster_size[:, None] > TINY
        means = codebook.embed_avg / codebook.cluster_size.clamp(min=TINY)[:, None]
        codebook.embed.copy_(torch.where(known, means, codebook.embed))

    @torch.no_grad()
    def _initialise(self, codebook: nn.Module, vectors: Tensor) -> None:
        """Set codes to the centres of k-means over vectors [vectors, dim] of all processes."""
        bins = len(codebook.embed)
        codebook.embed.copy_(_drawn(vectors, bins))
        for _ in range(ITERATIONS):
            codes = codebook.quantize(vectors)
            counts = vectors.new_zeros(bins).index_add_(0, codes, vectors.new_ones(len(codes)))
            sums = torch.zeros_like(codebook.embed).index_add_(0, codes, vectors)
            counts, sums = _totals(counts, sums)
            found = counts[:, None] > 0
            codebook.embed.copy_(torch.where(found, sums / counts.clamp(min=1)[:, None], codebook.embed))
        codebook.cluster_size.copy_(counts.clamp(min=self._dead_share * counts.mean()))
        codebook.embed_avg.copy_(codebook.embed * codebook.cluster_size[:, None])
        codebook.inited.fill_(1)


def _drawn(vectors: Tensor, count: int) -> Tensor:
    """Some of the vectors [vectors, dim] at random, [count, dim], on every process those of the first.

    A vector is drawn twice only where there are too few.
    """
    repeats = -(-count // len(vectors))
    order = torch.cat([torch.randperm(len(vectors), device=vectors.device) for _ in range(repeats)])
    drawn = vectors[order[:count]].contiguous()
    if _distributed():
        torch.distributed.broadcast(drawn, src=0)
    return drawn


def _totals(counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [bins] and sums [bins, dim] over all processes."""
    if not _distributed():
        return counts, sums
    both = torch.cat([counts[:, None], sums], dim=1)
    torch.distributed.all_reduce(both)
    return both[:, 0], both[:, 1:]


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
