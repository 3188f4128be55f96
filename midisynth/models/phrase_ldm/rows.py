"""What PhraseVAE reads: rows of token ids.

A row is `[C0] .. [C3] [BOS] phrase [EOS]` and its labels are `phrase [EOS]`; stage 1 has no queries, and spans of the
bar are masked. Ids are plain lists until `collate` pads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from midisynth.models.phrase_ldm.grid import DRUMS, Compat, folded
from midisynth.models.phrase_ldm.vocabulary import BAR, IDS, INST, PITCH_IDS

PAD_ID, BOS_ID, EOS_ID, MASK_ID, SEP_ID = (IDS[f"[{name}]"] for name in ("PAD", "BOS", "EOS", "MASK", "SEP"))
INST_ID, BAR_ID = IDS[INST], IDS[BAR]
#: Label of what the loss leaves out.
IGNORED = -100
#: Longest row and longest labels of the published models (tokens).
MAX_TOKENS = 128
MASKED_SHARE, MEAN_SPAN = 0.3, 3

#: Ids of durations and velocities; the last of them in a row ends a note.
_NOTE_ENDS = range(IDS["d-0"], IDS["v-31"] + 1)


def query_ids(queries: int) -> list[int]:
    """Ids of the first query tokens, `[C0]` and so on."""
    return [IDS[f"[C{number}]"] for number in range(queries)]


def row(phrase: Sequence[int], queries: int = 4, max_tokens: int = MAX_TOKENS, compat: Compat = None) -> list[int]:
    """Ids that the encoder reads.

    Args:
        phrase: Ids of a phrase, `[INST]`, `b-1`, `[SEP]`, or a bar.
        queries: Number of query tokens.
        max_tokens: Longest row. A longer phrase loses notes at its end.
        compat: "published" cuts the row, which then has no `[EOS]`.
    """
    head = [*query_ids(queries), BOS_ID]
    if compat is not None:
        return [*head, *phrase, EOS_ID][:max_tokens]
    return [*head, *fitted(phrase, max_tokens - len(head) - 1), EOS_ID]


def labels(phrase: Sequence[int], queries: int = 4, max_tokens: int = MAX_TOKENS, compat: Compat = None) -> list[int]:
    """Ids that the decoder shall write; see `row`. What the encoder does not see is not asked for."""
    if compat is not None:
        return [*phrase, EOS_ID][:max_tokens]
    return [*fitted(phrase, max_tokens - queries - 2), EOS_ID]


def fitted(phrase: Sequence[int], limit: int) -> Sequence[int]:
    """The phrase up to its last whole note within `limit` tokens."""
    if len(phrase) <= limit:
        return phrase
    end = limit
    while end > 0 and not (phrase[end - 1] in _NOTE_ENDS and phrase[end] not in _NOTE_ENDS):
        end -= 1
    return phrase[:end]


def span_masked(
    tokens: Sequence[int],
    span_length: Callable[[], int],
    start_below: Callable[[int], int],
    share: float = MASKED_SHARE,
) -> list[int]:
    """Tokens with spans of them replaced by one `[MASK]` each (stage 1).

    Spans are drawn until their lengths add up to the share. An empty span inserts a mask; a span may cover earlier
    masks, and counts in full where the end of the bar cuts it.

    Args:
        tokens: Ids of a bar, with its end.
        span_length: Draws a length.
        start_below: Draws a start from 0 to its argument, exclusive.
        share: Of the tokens.
    """
    result = list(tokens)
    wanted, masked = share * len(result), 0
    while masked < wanted:
        length = span_length()
        masked += length
        start = start_below(len(result))
        result[start : min(start + length, len(result))] = [MASK_ID]
    return result


def random_span_masked(tokens: Sequence[int], generator: np.random.Generator) -> list[int]:
    """`span_masked` with lengths from a Poisson distribution of mean 3 and uniform starts."""
    return span_masked(
        tokens, lambda: int(generator.poisson(MEAN_SPAN)), lambda size: int(generator.integers(size)), MASKED_SHARE
    )


def transposed_ids(phrase: Sequence[int], semitones: int) -> list[int]:
    """A phrase in another key: its pitches shifted, by octaves more where they would leave MIDI's range; not drums."""
    ids = np.asarray(phrase, np.int64)
    first = PITCH_IDS[0]
    pitched = (ids >= first) & (ids < first + DRUMS)
    ids = np.where(pitched, first + folded(ids - first + semitones), ids)
    return ids.tolist()


def collate(rows: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Pad rows and labels to the longest of the batch.

    Returns:
        "tokens" [batch, tokens] int64, "mask" [batch, tokens] bool (True for a token), "labels" [batch, targets] int64
        with `IGNORED` for padding.
    """
    tokens = pad_sequence([torch.tensor(ids) for ids in rows], batch_first=True, padding_value=PAD_ID)
    padded = pad_sequence([torch.tensor(ids) for ids in targets], batch_first=True, padding_value=IGNORED)
    lengths = torch.tensor([len(ids) for ids in rows])
    mask = torch.arange(tokens.shape[1])[None] < lengths[:, None]
    return {"tokens": tokens, "mask": mask, "labels": padded}
