"""What a test measures of the autoencoder: which tokens and notes of held-out phrases come back, by instrument."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from midisynth.evaluation import PREDICTION
from midisynth.metrics.phrases import grid_score
from midisynth.models.phrase_ldm.decoding import decode
from midisynth.models.phrase_ldm.grid import DRUMS
from midisynth.models.phrase_ldm.remiz import bar_length
from midisynth.models.phrase_ldm.rows import BOS_ID, EOS_ID, IGNORED, PAD_ID
from midisynth.models.phrase_ldm.texts import parse
from midisynth.models.phrase_ldm.vocabulary import to_text
from midisynth.music.midi import program_name
from midisynth.summaries import Summary

if TYPE_CHECKING:
    from midisynth.models.phrase_ldm.vae import PhraseVae

#: Phrases of a token or two: empty slots, bar lines, the end of a song. They are no part of the means.
SPECIAL = "without notes"
#: Positions of the rolls on which notes are compared: two bars of 4/4, so that no metre of pop music is cut.
POSITIONS = 2 * bar_length(4, 4)
COLUMNS = {
    "token_accuracy": "tokens",
    "op": "onset+pitch",
    "opd": "+duration",
    "iopd": "+instrument",
    "exact": "exact",
    "phrases": "phrases",
}


class PhraseScore(NamedTuple):
    """How one phrase, or bar, came back.

    Attributes:
        instrument: Its program; -1 without notes.
        tokens: How many it has, its end among them.
        right: How many of them are the likeliest after those before and given the bottleneck.
        op: F1 of its notes by onset and pitch; NaN where nothing was decoded.
        opd: By duration as well.
        iopd: By instrument as well.
        exact: Whether every token came back.
        dropped: Decoded tokens that say nothing.
        decoded: Decoded tokens.
    """

    instrument: int
    tokens: int
    right: int
    op: float
    opd: float
    iopd: float
    exact: float
    dropped: int
    decoded: int


@torch.no_grad()
def score_phrases(model: PhraseVae, batch: Mapping[str, Tensor]) -> list[PhraseScore]:
    """Put phrases through the bottleneck, without noise.

    Args:
        model: In evaluation mode.
        batch: As for training. A model without a bottleneck is only asked for tokens.

    Returns:
        A score for each.
    """
    labels = batch["labels"]
    likeliest = model.network(batch["tokens"], batch["mask"], labels).logits.argmax(dim=-1)
    wanted = labels != IGNORED
    tokens, right = wanted.sum(1).tolist(), ((likeliest == labels) & wanted).sum(1).tolist()
    phrases = [ids[ids != IGNORED].tolist() for ids in labels]
    decoded: list[list[int] | None] = [None] * len(phrases)
    if model.queries:
        latents = model.network.encode(batch["tokens"], batch["mask"])
        decoded = decode(model.network, latents, model.hparams.max_tokens, grammar=model.grammar).tolist()
    return [_score(*row) for row in zip(phrases, decoded, tokens, right, strict=True)]


def _score(phrase: Sequence[int], decoded: Sequence[int] | None, tokens: int, right: int) -> PhraseScore:
    reference, _ = _notes(phrase)
    instrument = next(iter(reference), -1)
    if decoded is None:
        return PhraseScore(instrument, tokens, right, math.nan, math.nan, math.nan, math.nan, 0, 0)
    written = [number for number in decoded if number not in (BOS_ID, PAD_ID)]
    estimate, dropped = _notes(written)
    score = grid_score(reference, estimate, POSITIONS)
    exact = float(written == list(phrase))
    return PhraseScore(instrument, tokens, right, score.op, score.opd, score.iopd, exact, dropped, len(written))


def _notes(ids: Sequence[int]) -> tuple[dict[int, np.ndarray], int]:
    """Notes of a phrase by program, as `grid_score` takes them, and how many of its tokens say nothing."""
    parsed = parse(to_text(number for number in ids if number != EOS_ID))
    notes: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for bar in parsed.bars:
        for track in bar.tracks:
            notes[track.program] += [(note.onset, note.pitch, note.duration) for note in track.notes]
    return {program: np.array(rows) for program, rows in notes.items()}, sum(parsed.dropped.values())


def summarize(scores: Sequence[PhraseScore]) -> Summary:
    """Means over phrases with notes, over those of each instrument, and over the others."""
    groups: dict[str, list[PhraseScore]] = {PREDICTION: [one for one in scores if one.instrument >= 0]}
    for program in sorted({one.instrument for one in scores}, key=lambda number: number % (DRUMS + 1)):
        name = SPECIAL if program < 0 else "drums" if program == DRUMS else f"{program} {program_name(program)}"
        groups[name] = [one for one in scores if one.instrument == program]
    groups[SPECIAL] = groups.pop(SPECIAL, [])
    rows = {name: _means(group) for name, group in groups.items() if group}
    decoded, dropped = sum(one.decoded for one in scores), sum(one.dropped for one in scores)
    remarks = [f"tokens that say nothing, and are dropped: {dropped} of {decoded}"] if decoded else []
    return Summary(
        f"{len(groups[PREDICTION])} held-out phrases",
        rows,
        {"tokens told those before them; F1 of decoded notes": COLUMNS},
        tuple(name for name in COLUMNS if name != "phrases"),
        remarks=remarks,
        details={"dropped_tokens": dropped, "decoded_tokens": decoded},
    )


def _means(group: Sequence[PhraseScore]) -> dict[str, float]:
    means = {name: float(np.mean([getattr(one, name) for one in group])) for name in ("op", "opd", "iopd", "exact")}
    accuracy = sum(one.right for one in group) / sum(one.tokens for one in group)
    return {"token_accuracy": accuracy, **means, "phrases": len(group)}
