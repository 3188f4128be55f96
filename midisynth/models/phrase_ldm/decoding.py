"""Greedy decoding of many phrases at once: keys and values are kept, and rows leave the batch when they end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from midisynth.models.phrase_ldm.network import PhraseAutoencoder
from midisynth.models.phrase_ldm.rows import BOS_ID, EOS_ID, PAD_ID
from midisynth.models.phrase_ldm.vocabulary import EOS, INST, SEP, TOKENS

#: Finished rows leave the batch once they are this share of it: taking them out copies what is kept of the others.
FINISHED_SHARE = 0.25


@dataclass(frozen=True)
class Shortcuts:
    """Phrases of one token, such as an empty slot, which more than half of the latents of a song stand for.

    A latent closer to theirs than `radius` is not decoded.

    Attributes:
        latents: [phrases, latent].
        ids: [phrases] the token of each.
        radius: Euclidean distance; at most half of that between two of them.
    """

    latents: Tensor
    ids: Tensor
    radius: float

    def find(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [batch, latent] -> token of the nearest phrase [batch], and whether it is near enough [batch]."""
        distance, nearest = torch.cdist(latents.float(), self.latents.to(latents).float()).min(dim=1)
        return self.ids.to(latents.device)[nearest], distance < self.radius


def grammar(velocity: bool = False) -> Tensor:
    """Which token may follow which in a phrase, [1000, 1000] bool: no note without an onset, a pitch and a duration.

    Args:
        velocity: Whether notes have velocities.
    """
    names = [token.partition("-")[0] for token in TOKENS]
    ends_note = "v" if velocity else "d"
    followers = {
        "[BOS]": {"i", "s", "b", INST, SEP},
        "s": {"b"},
        "i": {"o"},
        "o": {"p"},
        "p": {"d"},
        "d": {"v"},
        ends_note: {"o", "p", EOS},
    }
    return torch.tensor([[second in followers.get(first, {EOS}) for second in names] for first in names])


@torch.no_grad()
def decode(
    network: PhraseAutoencoder,
    latents: Tensor,
    max_tokens: int = 128,
    shortcuts: Shortcuts | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """The likeliest token at every step.

    Args:
        network: In evaluation mode.
        latents: [batch, latent], or without a Gaussian the bottleneck [batch, queries, dim] itself.
        max_tokens: Longest phrase, with the start and the end.
        shortcuts: Phrases that need no decoder.
        allowed: [vocabulary, vocabulary] bool: which token may follow which, such as `grammar` says; None: any.

    Returns:
        [batch, tokens] ids: [BOS], the phrase, [EOS] unless `max_tokens` came first, then [PAD].
    """
    ids = torch.full((len(latents), max_tokens), PAD_ID, device=latents.device)
    ids[:, 0] = BOS_ID
    rows = torch.arange(len(latents), device=latents.device)
    if shortcuts is not None:
        token, short = shortcuts.find(latents)
        ids[short, 1], ids[short, 2] = token[short], EOS_ID
        rows = rows[~short]
    if len(rows):
        memory = network.memory(latents[rows]) if network.latent is not None else latents[rows]
        _decode_rows(network, memory, rows, ids, allowed)
    lengths = (ids != PAD_ID).sum(dim=1)
    return ids[:, : int(lengths.max()) if len(lengths) else 1]


def _decode_rows(network: PhraseAutoencoder, memory: Tensor, rows: Tensor, ids: Tensor, allowed: Tensor | None) -> None:
    """Fill `rows` of `ids` [all rows, tokens] with what `memory` [rows, queries, dim] decodes to."""
    last = torch.full_like(rows, BOS_ID)
    going = torch.ones_like(rows, dtype=torch.bool)
    cache = None
    for position in range(1, ids.shape[1]):
        output = network.t5(
            encoder_outputs=(memory,), decoder_input_ids=last[:, None], past_key_values=cache, use_cache=True
        )
        cache, logits = output.past_key_values, output.logits[:, -1].float()
        if allowed is not None:
            logits = logits.masked_fill(~allowed[last], -torch.inf)
        last = logits.argmax(dim=-1)
        ids[rows[going], position] = last[going]
        going &= last != EOS_ID
        remaining = int(going.sum())
        if remaining == 0:
            return
        if remaining <= (1 - FINISHED_SHARE) * len(rows):
            kept = going.nonzero().flatten()
            rows, last, going, memory = rows[kept], last[kept], going[kept], memory[kept]
            cache.batch_select_indices(kept)
