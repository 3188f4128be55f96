"""What a test measures of the autoencoder: which tokens and notes of held-out phrases come back, by instrument.

Of an autoencoder of bars or positions it measures these. An instrument of a bar is scored by its track; positions name
their instrument only where it begins, so that they are not told apart.
"""

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
from midisynth.models.phrase_ldm.units import Unit
from midisynth.models.phrase_ldm.vocabulary import INSTRUMENT_IDS, TRACK_IDS, to_text
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
}


class PhraseScore(NamedTuple):
    """How one phrase, bar or position came back.

    Attributes:
        instrument: Its program, or the first of its programs; -1 without notes.
        tokens: How many it has, its end among them.
        right: How many of them are the likeliest after those before and given the bottleneck.
        op: F1 of its notes by onset and pitch; NaN where nothing was decoded.
        opd: By duration as well.
        iopd: By instrument as well.
        exact: Whether every token came back.
        dropped: Decoded tokens that say nothing.
        decoded: Decoded tokens.
        tracks: Of a bar, the same for each of its phrases.
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
    tracks: tuple[PhraseScore, ...] = ()


@torch.no_grad()
def score_phrases(model: PhraseVae, batch: Mapping[str, Tensor]) -> list[PhraseScore]:
    """Put phrases, bars or positions through the bottleneck, without noise.

    Args:
        model: In evaluation mode.
        batch: As for training. A model without a bottleneck is only asked for tokens.

    Returns:
        A score for each.
    """
    labels = batch["labels"]
    likeliest = model.network(batch["tokens"], batch["mask"], labels).logits.argmax(dim=-1)
    wanted = labels != IGNORED
    phrases = [ids[ids != IGNORED].tolist() for ids in labels]
    right = [row[kept].tolist() for row, kept in zip(likeliest == labels, wanted, strict=True)]
    decoded: list[list[int] | None] = [None] * len(phrases)
    if model.queries:
        latents = model.network.encode(batch["tokens"], batch["mask"])
        decoded = decode(model.network, latents, model.hparams.max_tokens, grammar=model.grammar).tolist()
    return [phrase_score(*one, model.unit == "bar") for one in zip(phrases, decoded, right, strict=True)]


def phrase_score(
    phrase: Sequence[int], decoded: Sequence[int] | None, right: Sequence[bool], by_track: bool = False
) -> PhraseScore:
    """How ids came back. `decoded` is what they were decoded to, `right` which of them are the likeliest."""
    reference, _ = _notes(phrase)
    instrument, tokens = next(iter(reference), -1), (len(phrase), sum(right))
    tracks = _track_scores(phrase, decoded, right) if by_track else ()
    if decoded is None:
        return PhraseScore(instrument, *tokens, math.nan, math.nan, math.nan, math.nan, 0, 0, tracks)
    written = [number for number in decoded if number not in (BOS_ID, PAD_ID)]
    estimate, dropped = _notes(written)
    score = grid_score(reference, estimate, POSITIONS)
    exact = float(written == list(phrase))
    return PhraseScore(instrument, *tokens, score.op, score.opd, score.iopd, exact, dropped, len(written), tracks)


def _track_scores(bar: Sequence[int], decoded: Sequence[int] | None, right: Sequence[bool]) -> tuple[PhraseScore, ...]:
    """Scores of the phrases of a bar, each against what was decoded for its instrument."""
    found = {} if decoded is None else _tracks(decoded)
    scores = []
    for program, places in _tracks(bar).items():
        estimate = None if decoded is None else [decoded[place] for place in found.get(program, ())]
        scores.append(phrase_score([bar[place] for place in places], estimate, [right[place] for place in places]))
    return tuple(scores)


def _tracks(bar: Sequence[int]) -> dict[int, list[int]]:
    """Places of the tokens of every instrument of a bar, by its id."""
    tracks: dict[int, list[int]] = {}
    current: list[int] = []
    for place, number in enumerate(bar):
        if number in INSTRUMENT_IDS:
            current = tracks.setdefault(number, [])
        if number in TRACK_IDS:
            current.append(place)
    return tracks


def _notes(ids: Sequence[int]) -> tuple[dict[int, np.ndarray], int]:
    """Notes of a phrase by program, as `grid_score` takes them, and how many of its tokens say nothing."""
    parsed = parse(to_text(number for number in ids if number != EOS_ID))
    notes: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for bar in parsed.bars:
        for track in bar.tracks:
            notes[track.program] += [(note.onset, note.pitch, note.duration) for note in track.notes]
    return {program: np.array(rows) for program, rows in notes.items()}, sum(parsed.dropped.values())


def summarize(scores: Sequence[PhraseScore], unit: Unit = "phrase") -> Summary:
    """Means over what has notes, over phrases of each instrument, and over what has none.

    Args:
        scores: Of all that were tested.
        unit: What they are of.
    """
    several = f"{unit}s"
    phrases = {"phrase": scores, "bar": [track for one in scores for track in one.tracks], "position": ()}[unit]
    groups: dict[str, list[PhraseScore]] = {PREDICTION: [one for one in scores if one.instrument >= 0]}
    for program in sorted({one.instrument for one in phrases if one.instrument >= 0}):
        name = "drums" if program == DRUMS else f"{program} {program_name(program)}"
        groups[name] = [one for one in phrases if one.instrument == program]
    groups[SPECIAL] = [one for one in scores if one.instrument < 0]
    rows = {name: {**_means(group), several: len(group)} for name, group in groups.items() if group}
    decoded, dropped = sum(one.decoded for one in scores), sum(one.dropped for one in scores)
    remarks = [f"tokens that say nothing, and are dropped: {dropped} of {decoded}"] if decoded else []
    if unit == "bar":
        remarks.append("rows of instruments are of the bars in which they play, and of their notes alone")
    return Summary(
        f"{len(groups[PREDICTION])} held-out {several}",
        rows,
        {"tokens told those before them; F1 of decoded notes": {**COLUMNS, several: several}},
        tuple(COLUMNS),
        remarks=remarks,
        details={"unit": unit, "dropped_tokens": dropped, "decoded_tokens": decoded},
    )


def _means(group: Sequence[PhraseScore]) -> dict[str, float]:
    means = {name: float(np.mean([getattr(one, name) for one in group])) for name in ("op", "opd", "iopd", "exact")}
    return {"token_accuracy": sum(one.right for one in group) / sum(one.tokens for one in group), **means}
