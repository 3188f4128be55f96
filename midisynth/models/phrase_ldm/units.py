"""How much of a song one vector holds: a phrase, all of a bar, or what begins at one position of one track."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from midisynth.models.phrase_ldm.grid import Compat
from midisynth.models.phrase_ldm.rows import BAR_ID, INST_ID
from midisynth.models.phrase_ldm.vocabulary import BAR, INSTRUMENT_IDS, ONSET_IDS

Unit = Literal["phrase", "bar", "position"]


def units_of_bars(
    slots: Sequence[np.ndarray], slots_per_bar: int, unit: Unit, compat: Compat = None
) -> list[list[np.ndarray]]:
    """Units of each bar of a song in their order. One after the other they are the song, without its empty slots.

    Args:
        slots: Ids of every slot, [tokens] each, see `codec.phrases_of`.
        slots_per_bar: Phrases in a bar, its end among them.
        unit: "phrase": a slot, empty ones left out; "bar": all slots of a bar; "position": of a phrase the notes of one
            onset, which begin with the instrument if they are its first; the end of a bar is one more.
        compat: "published" cuts the bar in place of its phrases: an instrument stands at the end of the position before
            its first one, in which it does not play.

    Returns:
        [bars][units] ids [tokens].
    """
    bars = []
    for start in range(0, len(slots), slots_per_bar):
        *phrases, line = slots[start : start + slots_per_bar]
        phrases = [ids for ids in phrases if ids[0] != INST_ID]
        if unit == "bar":
            bars.append([np.concatenate([*phrases, line])])
        elif unit == "phrase":
            bars.append([*phrases, line])
        else:
            tracks = [np.concatenate(phrases)] if compat and phrases else phrases
            bars.append([*(part for ids in tracks for part in at_onsets(ids)), line])
    return bars


def at_onsets(ids: np.ndarray) -> list[np.ndarray]:
    """Tokens [tokens] cut before every onset but the first."""
    onsets = np.flatnonzero((ids >= ONSET_IDS[0]) & (ids <= ONSET_IDS[-1]))
    return np.split(ids, onsets[1:])


def as_slots(texts: Sequence[str]) -> tuple[str, str]:
    """Notes of a bar and its end, from the texts of its units."""
    *notes, last = texts
    words = last.split()
    end = next((place for place, word in enumerate(words) if word == BAR or word.startswith("s-")), len(words))
    return " ".join([*notes, *words[:end]]), " ".join(words[end:])


def is_unit(ids: Iterable[int], unit: Unit) -> bool:
    """Whether ids can be one unit: a phrase has one instrument and no bar line, a bar ends in one, and a position has
    one onset. What has no notes, such as the end of a song, can be any."""
    ids = list(ids)
    onsets = sum(number in ONSET_IDS for number in ids)
    if unit == "position":
        return onsets <= 1
    if unit == "bar":
        return onsets == 0 or ids[-1] == BAR_ID
    return onsets == 0 or (BAR_ID not in ids and sum(number in INSTRUMENT_IDS for number in ids) <= 1)
