"""Plans of a song: which sections it has and how many bars each of them lasts.

People write `i4 A8 B8 A8 o4`, the annotation of POP909 `i4A8B8A8o4`, the authors' prompts `i-4 A-8 B-8 A-8 o-4`; all
three are read. A letter is a kind of section: upper case where there is singing, lower case where there is none; i is
an intro, o an outro, x and b lead from one section to another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from midisynth.errors import UsageError

#: Kinds of sections, in the order of their ids, which start at 1: 0 is padding. The original numbers them anew in every
#: process.
SECTION_TYPES = ("A", "B", "C", "D", "E", "X", "b", "c", "i", "o", "x")
#: Bars of the longest section, and number of sections, that a model takes.
MAX_SECTION_BARS, MAX_SECTIONS = 32, 30

_SECTION = re.compile(r"\s*([A-Za-z])-?(\d+)(?:[\s,]+|(?=[A-Za-z])|$)")


class Section(NamedTuple):
    """One section.

    Attributes:
        kind: A letter of `SECTION_TYPES`.
        bars: Its length.
    """

    kind: str
    bars: int


def parse_sections(text: str) -> list[Section]:
    """Sections of a plan, whatever their kinds and lengths.

    Raises:
        UsageError: It is no plan; the text tells where.
    """
    sections = []
    place = 0
    while place < len(text.rstrip()):
        match = _SECTION.match(text, place)
        if match is None or int(match[2]) == 0:
            raise UsageError(
                f"section plan '{text.strip()}': cannot read '{text[place:].strip()[:20]}'; write a letter and a "
                "number of bars for each section, such as i4 A8 B8 A8 o4"
            )
        sections.append(Section(match[1], int(match[2])))
        place = match.end()
    if not sections:
        raise UsageError("the section plan is empty: write a letter and a number of bars for each section, as i4 A8 o4")
    return sections


def check_sections(sections: Sequence[Section], max_bars: int) -> None:
    """Refuse a plan that a model cannot follow.

    Args:
        sections: The plan.
        max_bars: Longest song of the model.

    Raises:
        UsageError: Of its kinds, lengths or number.
    """
    plan = plan_text(sections)
    for section in sections:
        if section.kind not in SECTION_TYPES:
            raise UsageError(f"section plan '{plan}': '{section.kind}' is none of {' '.join(SECTION_TYPES)}")
        if not 1 <= section.bars <= MAX_SECTION_BARS:
            raise UsageError(
                f"section plan '{plan}': {section.kind}{section.bars} is not 1 to {MAX_SECTION_BARS} bars long; "
                "write a long section as several"
            )
    if len(sections) > MAX_SECTIONS:
        raise UsageError(f"section plan '{plan}': {len(sections)} sections, the model takes {MAX_SECTIONS}")
    if (total := bar_count(sections)) > max_bars:
        raise UsageError(f"section plan '{plan}': {total} bars, the model takes {max_bars}")


def bar_count(sections: Sequence[Section]) -> int:
    """Bars of all sections."""
    return sum(section.bars for section in sections)


def spans(sections: Sequence[Section]) -> list[tuple[str, int, int]]:
    """Kind, first bar and the bar after the last of each section."""
    found, start = [], 0
    for kind, bars in sections:
        found.append((kind, start, start + bars))
        start += bars
    return found


def plan_text(sections: Sequence[Section]) -> str:
    """A plan as people write it: `i4 A8 B8`."""
    return " ".join(f"{kind}{bars}" for kind, bars in sections)


def prompt(sections: Sequence[Section]) -> str:
    """A plan as the published models name it: `i-4 A-8 B-8`."""
    return " ".join(f"{kind}-{bars}" for kind, bars in sections)
