"""Greedy decoding of many phrases at once: keys and values are kept, and rows leave the batch when they end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from midisynth.models.phrase_ldm.network import PhraseAutoencoder
from midisynth.models.phrase_ldm.rows import BOS_ID, EOS_ID, PAD_ID
from midisynth.models.phrase_ldm.units import Unit
from midisynth.models.phrase_ldm.vocabulary import EOS, INST, INSTRUMENT_IDS, SEP, TOKENS

#: Finished rows leave the batch once they are this share of it: taking them out copies what is kept of the others.
FINISHED_SHARE = 0.25
#: Whether all rows are finished is asked every so many tokens: the answer makes a GPU wait for it.
ASKED_EVERY = 4
#: Higher than any onset or pitch.
_ABOVE = 1000


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


class Grammar:
    """What a phrase can say next: no note without an onset, a pitch and a duration; onsets that rise, and pitches that
    fall within an onset, as REMI-z writes them. A decoder that is kept to it cannot say the same note for ever.

    Args:
        velocity: Whether notes have velocities.
        unit: What is decoded. A bar is one track after the other and its end; a position may lack its instrument, and
            the end of a bar is one by itself.
        device: Where its tables are.

    Attributes:
        followers: [vocabulary, vocabulary] bool: which token may follow which, whatever came before.
        onsets: [vocabulary] int64: number of a token of an onset; of others more than any.
        pitches: [vocabulary] int64: number of a token of a pitch; of others -1.
    """

    def __init__(self, velocity: bool = False, unit: Unit = "phrase", device: torch.device | str = "cpu"):
        names, _, numbers = zip(*(token.partition("-") for token in TOKENS), strict=True)
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
        if unit == "bar":
            followers["[BOS]"] = {"i", "s", "b", SEP}
            followers[ends_note] = {"o", "p", "i", "s", "b"}
        elif unit == "position":
            followers["[BOS]"] = {"i", "o", "s", "b", SEP}
            followers[ends_note] = {"p", EOS}
        table = [[second in followers.get(first, {EOS}) for second in names] for first in names]
        self.followers = torch.tensor(table, device=device)
        numbered = list(zip(names, numbers, strict=True))
        self.onsets = torch.tensor([int(number) if name == "o" else _ABOVE for name, number in numbered], device=device)
        self.pitches = torch.tensor([int(number) if name == "p" else -1 for name, number in numbered], device=device)

    def begin(self, phrases: int) -> tuple[Tensor, Tensor]:
        """Last onset and last pitch of phrases that say nothing yet, [phrases] int64 each."""
        return self.onsets.new_full((phrases,), -1), self.pitches.new_full((phrases,), _ABOVE)

    def allowed(self, last: Tensor, onset: Tensor, pitch: Tensor) -> Tensor:
        """[phrases, vocabulary] bool.

        Args:
            last: [phrases] ids of the last tokens.
            onset: [phrases] last onsets.
            pitch: [phrases] last pitches of these onsets.
        """
        later, lower = self.onsets > onset[:, None], self.pitches < pitch[:, None]
        return self.followers[last] & later & lower

    def after(self, token: Tensor, onset: Tensor, pitch: Tensor) -> tuple[Tensor, Tensor]:
        """Last onset and last pitch [phrases] after one more token each."""
        starts = self.onsets[token] != _ABOVE
        track = (token >= INSTRUMENT_IDS[0]) & (token <= INSTRUMENT_IDS[-1])
        onset = torch.where(starts, self.onsets[token], onset).masked_fill(track, -1)
        pitch = torch.where(self.pitches[token] >= 0, self.pitches[token], pitch)
        return onset, pitch.masked_fill(starts | track, _ABOVE)


@torch.no_grad()
def decode(
    network: PhraseAutoencoder,
    latents: Tensor,
    max_tokens: int = 128,
    shortcuts: Shortcuts | None = None,
    grammar: Grammar | None = None,
    rows_at_once: int = 256,
) -> Tensor:
    """The likeliest token at every step.

    Args:
        network: In evaluation mode.
        latents: [batch, latent], or without a Gaussian the bottleneck [batch, queries, dim] itself.
        max_tokens: Longest phrase, with the start and the end.
        shortcuts: Phrases that need no decoder.
        grammar: What may follow what, on the device of the latents; None: anything.
        rows_at_once: Phrases that the decoder works on together, besides those of `shortcuts`: what is kept of each
            takes memory.

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
    for part in rows.split(rows_at_once) if len(rows) else ():
        memory = network.memory(latents[part]) if network.latent is not None else latents[part]
        _decode_rows(network, memory, part, ids, grammar)
    lengths = (ids != PAD_ID).sum(dim=1)
    return ids[:, : int(lengths.max()) if len(lengths) else 1]


def _decode_rows(
    network: PhraseAutoencoder, memory: Tensor, rows: Tensor, ids: Tensor, grammar: Grammar | None
) -> None:
    """Fill `rows` of `ids` [all rows, tokens] with what `memory` [rows, queries, dim] decodes to."""
    last = torch.full_like(rows, BOS_ID)
    going = torch.ones_like(rows, dtype=torch.bool)
    said = None if grammar is None else grammar.begin(len(rows))
    cache = None
    for position in range(1, ids.shape[1]):
        output = network.t5(
            encoder_outputs=(memory,), decoder_input_ids=last[:, None], past_key_values=cache, use_cache=True
        )
        cache, logits = output.past_key_values, output.logits[:, -1].float()
        if grammar is not None:
            logits = logits.masked_fill(~grammar.allowed(last, *said), -torch.inf)
        last = logits.argmax(dim=-1)
        if grammar is not None:
            said = grammar.after(last, *said)
        ids[rows, position] = last.where(going, PAD_ID)
        going &= last != EOS_ID
        if position % ASKED_EVERY:
            continue
        remaining = int(going.sum())
        if remaining == 0:
            return
        if remaining <= (1 - FINISHED_SHARE) * len(rows):
            kept = going.nonzero().flatten()
            rows, last, going, memory = rows[kept], last[kept], going[kept], memory[kept]
            said = None if said is None else (said[0][kept], said[1][kept])
            cache.batch_select_indices(kept)
