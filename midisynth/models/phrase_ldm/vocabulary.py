"""The 1,000 tokens of REMI-z and their ids, as a plain dictionary.

Ids are those of the tokenizer that was published with PhraseVAE (J. Ou and Y. Wang, arXiv 2512.11348): special tokens
first, then the bar line and the numbered tokens of onset, instrument, pitch, duration, velocity, time signature and
tempo. A text is tokens with blanks between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from midisynth.errors import DataError

_SPECIAL = ("EOS", "BOS", "UNK", "CLS", "SEP", "PAD", "MASK", "HIST", "PITCH", "INST", "MELODY", "CHORD", "COMPRESS")
_QUERIES = tuple(f"C{number}" for number in range(10))
#: Letter of a numbered token, and how many there are.
_NUMBERED = {"o": 128, "i": 129, "p": 256, "d": 128, "v": 32, "s": 254, "t": 49}

BAR = "b-1"
BOS, EOS, PAD, MASK = "[BOS]", "[EOS]", "[PAD]", "[MASK]"
SEP = "[SEP]"  # the song is over
INST = "[INST]"  # a slot of a bar without a track

TOKENS: tuple[str, ...] = (
    *(f"[{name}]" for name in _SPECIAL + _QUERIES),
    BAR,
    *(f"{letter}-{number}" for letter, count in _NUMBERED.items() for number in range(count)),
)
IDS: dict[str, int] = {token: number for number, token in enumerate(TOKENS)}
SPECIAL_IDS = range(len(_SPECIAL) + len(_QUERIES))
UNKNOWN_ID = IDS["[UNK]"]
ONSET_IDS = range(IDS["o-0"], IDS["o-127"] + 1)
INSTRUMENT_IDS = range(IDS["i-0"], IDS["i-128"] + 1)
PITCH_IDS = range(IDS["p-0"], IDS["p-255"] + 1)
#: What phrases are made of: onsets, instruments, pitches, durations, velocities.
TRACK_IDS = range(IDS["o-0"], IDS["v-31"] + 1)

#: Time signatures by the number of their token: (numerator, denominator).
TIME_SIGNATURES: tuple[tuple[int, int], ...] = tuple(
    (numerator, 2**power) for power in range(7) for numerator in range(1, 2 * 2**power + 1)
)
_TIME_SIGNATURE_NUMBERS = {signature: number for number, signature in enumerate(TIME_SIGNATURES)}

_SLOWEST, _FASTEST = 16.0, 256.0  # beats a minute
_TEMPI_PER_OCTAVE = 12
#: MIDI velocities that share a token.
VELOCITY_STEP = 4


def to_ids(text: str, *, unknown: bool = False) -> list[int]:
    """Ids of a text.

    Args:
        text: Tokens with blanks between them.
        unknown: Give a token that is not in the vocabulary the id of [UNK] instead of refusing it.

    Raises:
        DataError: A token is not in the vocabulary.
    """
    words = text.split()
    if unknown:
        return [IDS.get(word, UNKNOWN_ID) for word in words]
    try:
        return [IDS[word] for word in words]
    except KeyError as error:
        raise DataError(f"'{error.args[0]}' is no token of REMI-z") from None


def to_text(ids: Iterable[int], *, without: Iterable[str] = ()) -> str:
    """Text of ids.

    Args:
        ids: Each 0 to 999.
        without: Tokens to leave out, such as [PAD].
    """
    left_out = frozenset(without)
    return " ".join(token for token in (TOKENS[number] for number in ids) if token not in left_out)


def time_signature_token(numerator: int, denominator: int) -> str:
    """Token of a time signature; denominators reach from 1 to 64, numerators to twice the denominator.

    Raises:
        DataError: There is none for it.
    """
    number = _TIME_SIGNATURE_NUMBERS.get((numerator, denominator))
    if number is None:
        raise DataError(f"REMI-z has no time signature {numerator}/{denominator}")
    return f"s-{number}"


def tempo_token(bpm: float) -> str:
    """Token of the nearest of 49 tempi, a twelfth of an octave apart (beats a minute)."""
    octaves = math.log2(min(max(bpm, _SLOWEST), _FASTEST) / _SLOWEST)
    return f"t-{round(octaves * _TEMPI_PER_OCTAVE)}"


def tempo_of(number: int) -> float:
    """Tempo of the token `t-NUMBER` (beats a minute)."""
    return _SLOWEST * 2 ** (number / _TEMPI_PER_OCTAVE)
