"""REMI-z, the text: bars to tokens, and whatever a decoder writes back to bars.

A phrase is `i-P`, then for every onset `o-X` once and for every note `p-Y d-Z` (and `v-W` where velocities are
written); a bar is its phrases and `b-1`. Pitches of drums are written 128 higher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from midisynth.models.phrase_ldm.grid import DRUMS, Compat
from midisynth.models.phrase_ldm.remiz import Bar, Note, Track, sort_notes, sort_tracks
from midisynth.models.phrase_ldm.vocabulary import (
    BAR,
    IDS,
    TIME_SIGNATURES,
    VELOCITY_STEP,
    tempo_of,
    tempo_token,
    time_signature_token,
)

#: Velocity of notes whose text says none.
DEFAULT_VELOCITY = 96
_DRUM_OFFSET = 128


def phrase_text(track: Track, *, velocity: bool = False, compat: Compat = None) -> str:
    """Text of a track.

    Args:
        track: With its notes in order.
        velocity: Write velocities, in steps of `VELOCITY_STEP`.
        compat: "published" writes velocities as they are, for most of which the vocabulary has no token.
    """
    tokens = [f"i-{track.program}"]
    onset = -1
    offset = _DRUM_OFFSET if track.program == DRUMS else 0
    for note in track.notes:
        if note.onset != onset:
            onset = note.onset
            tokens.append(f"o-{onset}")
        tokens += (f"p-{note.pitch + offset}", f"d-{note.duration}")
        if velocity:
            tokens.append(f"v-{note.velocity if compat else note.velocity // VELOCITY_STEP}")
    return " ".join(tokens)


def phrases(bar: Bar, *, drums: bool = False, velocity: bool = False, compat: Compat = None) -> list[str]:
    """Texts of the tracks of a bar; those of drums only if asked for."""
    return [
        phrase_text(track, velocity=velocity, compat=compat) for track in bar.tracks if drums or track.program != DRUMS
    ]


def bar_text(
    bar: Bar,
    *,
    time_signature: bool = False,
    tempo: bool = False,
    drums: bool = False,
    velocity: bool = False,
    compat: Compat = None,
) -> str:
    """Text of a bar, with its end.

    Args:
        bar: The bar.
        time_signature: Begin with `s-K`.
        tempo: Begin with `t-K`, after the time signature.
        drums: Write drum tracks.
        velocity: See `phrase_text`.
        compat: See `phrase_text`.
    """
    head = [time_signature_token(*bar.time_signature)] if time_signature else []
    if tempo:
        head.append(tempo_token(bar.tempo))
    return " ".join([*head, *phrases(bar, drums=drums, velocity=velocity, compat=compat), BAR])


@dataclass
class Parsed:
    """What a text says.

    Attributes:
        bars: The bars.
        dropped: Tokens that say nothing where they stand, by their letter (`p` without `d`, `o` without a note, a
            note outside of its bar) or, for words that are no tokens, under "unknown".
    """

    bars: list[Bar]
    dropped: Counter[str] = field(default_factory=Counter)


def parse(text: str | Iterable[str], *, merge_bars: bool = False, compat: Compat = None) -> Parsed:
    """Read a text, whatever it is.

    A note is made when its last token comes (`v-`, or `d-` in a text without velocities) and onset, pitch and duration
    are known. Onset and instrument hold until others come or the bar ends; an instrument that comes again goes on.
    Without an instrument it is 0. Special tokens are passed over.

    Args:
        text: Tokens with blanks between them, or the tokens.
        merge_bars: Read repeated ends of bars as one.
        compat: "published" loses what follows the last end of a bar unless there is none, keeps notes beyond the end of
            their bar, and reads velocities as they are.
    """
    words = text.split() if isinstance(text, str) else list(text)
    *ended, rest = _split(words, merge_bars)
    has_velocity = any(word.startswith("v-") for word in words)
    result = Parsed([])
    for chunk in ended:
        result.bars.append(_parse_bar(chunk, has_velocity, result.dropped, compat))
    if compat is None or not ended:
        last = _parse_bar(rest, has_velocity, result.dropped, compat)
        result.bars += [last] if last.tracks or compat else []
    result.dropped = +result.dropped  # without those that never were
    return result


def _split(words: Sequence[str], merge_bars: bool) -> list[list[str]]:
    """Words of each bar, and those after the last end of a bar."""
    chunks: list[list[str]] = [[]]
    previous = None
    for word in words:
        if word != BAR:
            chunks[-1].append(word)
        elif not (merge_bars and previous == BAR):
            chunks.append([])
        previous = word
    return chunks


def _parse_bar(words: Sequence[str], has_velocity: bool, dropped: Counter[str], compat: Compat) -> Bar:
    """One bar; what says nothing is added to `dropped`."""
    bar = Bar()
    tracks: dict[int, list[Note]] = {}
    program = 0
    last = "v" if has_velocity else "d"
    values: dict[str, int] = {}  # of the note that is being read
    idle_onset = False
    for word in words:
        if word.startswith("s-") and word in IDS:
            bar.time_signature = TIME_SIGNATURES[int(word[2:])]
    for word in words:
        letter, _, digits = word.partition("-")
        if word.startswith("["):
            continue
        if word not in IDS and not (compat and letter == "v" and digits.isdecimal() and int(digits) <= 127):
            dropped["unknown"] += 1
            continue
        number = int(digits)
        if letter == "s":
            continue
        if letter == "t":
            bar.tempo = round(tempo_of(number), 2)
        elif letter == "i":
            program = number
        elif letter == "o":
            dropped["o"] += idle_onset
            values["o"], idle_onset = number, True
        else:
            dropped[letter] += letter in values
            values[letter] = number
        if letter != last:
            continue
        if {"o", "p", "d"} <= values.keys() and (compat is not None or values["o"] < bar.length):
            tracks.setdefault(program, []).append(_note(values, compat))
            idle_onset = False
        else:
            dropped.update(values.keys() - {"o"})
        values = {"o": values["o"]} if "o" in values else {}
    dropped["o"] += idle_onset
    dropped.update(values.keys() - {"o"})
    bar.tracks = sort_tracks([Track(key, sort_notes(notes)) for key, notes in tracks.items()])
    return bar


def _note(values: Mapping[str, int], compat: Compat) -> Note:
    """The note that tokens tell: their numbers by letter."""
    pitch = values["p"] - _DRUM_OFFSET if values["p"] >= _DRUM_OFFSET else values["p"]
    if "v" not in values:
        velocity = DEFAULT_VELOCITY
    else:
        # The middle of the step.
        velocity = values["v"] if compat else values["v"] * VELOCITY_STEP + VELOCITY_STEP // 2
    return Note(values["o"], pitch, max(1, values["d"]), velocity)
