"""One name for a composition, whatever a corpus calls it, so that no composition is in two splits.

Corpora write "Etudes_op_10_3", "12 Études, Op.10: No. 3 in E Major" or "Chopin_op10_no3"; the name is composer and
catalogue number: "chopin op 10 no 3". Movements of a sonata share a name.
"""

from __future__ import annotations

import difflib
import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from midisynth.datasets.corpus import Record, split_by_hash

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)

# Which catalogue counts where there are several, most specific first. Others: opus numbers.
_CATALOGUES = {"bach": "bwv", "mozart": "kv?", "schubert": "d", "liszt": "s", "haydn": "hob"}
_OPUS = "op|woo"

# Works that corpora number within their genre: catalogue numbers in the order of the genre's numbers.
_BEETHOVEN = (
    "2/1 2/2 2/3 7 10/1 10/2 10/3 13 14/1 14/2 22 26 27/1 27/2 28 31/1 31/2 31/3 49/1 49/2 53 54 57 78 79 81a 90 101 "
    "106 109 110 111"
)
_MOZART = "279 280 281 282 283 284 309 310 311 330 331 332 333 457 533 545 570 576"
_GENRES = {
    ("beethoven", "sonata"): ("op", _BEETHOVEN),
    ("mozart", "sonata"): ("k", _MOZART),
    ("haydn", "sonata"): ("hob", " ".join(map(str, range(1, 63)))),
    ("chopin", "ballade"): ("op", "23 38 47 52"),
    ("chopin", "scherzo"): ("op", "20 31 39 54"),
    ("chopin", "sonata"): ("op", "4 35 58"),
    ("liszt", "paganini"): ("s", " ".join(f"141/{number}" for number in range(1, 7))),
    ("liszt", "transcendental"): ("s", " ".join(f"139/{number}" for number in range(1, 13))),
    ("schubert", "moment"): ("d", " ".join(f"780/{number}" for number in range(1, 7))),
    ("schumann", "kreisleriana"): ("op", " ".join(f"16/{number}" for number in range(1, 9))),
}


def piece_name(composer: str, title: str) -> str:
    """The name of a composition, the same in every corpus.

    Args:
        composer: Full name or last name.
        title: With a catalogue number if it has one, else the name is made of its words.
    """
    composer = _plain(composer).split()[-1] if _plain(composer) else "unknown"
    words = _plain(title)
    numbered = _catalogue_number(composer, words) or _genre_number(composer, words)
    return f"{composer} {numbered or words}".strip()


def _plain(text: str) -> str:
    """Lower-case ASCII words and numbers, separated by single spaces."""
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower().replace("'", "")
    text = re.sub(r"\d+(st|nd|rd|th)(?![a-z])", " ", text)  # numbers of movements
    return " ".join(re.findall(r"\d+[a-z]?(?![a-z])|[a-z]+|\d+", text))


def _catalogue_number(composer: str, words: str) -> str:
    for catalogue in (_CATALOGUES.get(composer), _OPUS):
        found = catalogue and re.search(rf"\b({catalogue}) (?:(?:xvi|no) )?(\d+[a-z]?)(?: (no )?(\d+))?", words)
        if found:
            # A bare number behind that of a sonata is a movement, behind that of a collection a piece.
            single = found[3] or ("sonata" not in words and "suite" not in words)
            part = f" no {found[4]}" if found[4] and single else ""
            return f"{found[1].replace('kv', 'k')} {found[2]}{part}"
    return ""


def _genre_number(composer: str, words: str) -> str:
    for (author, genre), (catalogue, numbers) in _GENRES.items():
        found = re.search(rf"\b{genre}\w*(?: [a-z]+)* (\d+)", words) if author == composer else None
        if found and 1 <= int(found[1]) <= len(numbers.split()):
            return f"{catalogue} {numbers.split()[int(found[1]) - 1]}".replace("/", " no ")
    return ""


def split_pieces(
    records: Sequence[R], test_pieces: Sequence[str] | None = None, validation_pieces: Sequence[str] | None = None
) -> list[R]:
    """Give every record the split of its piece.

    Args:
        records: Any.
        test_pieces: Pieces for testing; None: a tenth of all, by the hash of their names.
        validation_pieces: Pieces for validation; likewise.
    """
    known = {record.piece for record in records}
    for name in (*(test_pieces or ()), *(validation_pieces or ())):
        if _plain(name) not in known:
            close = difflib.get_close_matches(_plain(name), known, n=1)
            hint = f"; the nearest is '{close[0]}'" if close else ""
            logger.warning("%s has no piece '%s'%s", records[0].corpus if records else "the corpus", name, hint)
    chosen = {"test": test_pieces, "validation": validation_pieces}

    def split(piece: str):
        for name, pieces in chosen.items():
            if pieces is not None and piece in {_plain(p) for p in pieces}:
                return name
        drawn = split_by_hash(piece)
        return "train" if chosen.get(drawn) is not None else drawn

    return [replace(record, split=split(record.piece)) for record in records]


def by_composers(records: Sequence[R], composers: Sequence[str] | None) -> list[R]:
    """The records of some composers, given by their last names; None keeps all."""
    if composers is None:
        return list(records)
    wanted = {_plain(name).split()[-1] for name in composers if _plain(name)}
    return [record for record in records if record.piece.split()[0] in wanted]
