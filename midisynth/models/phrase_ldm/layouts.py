"""Instruments of the slots of a song: which of them play in every bar, from the highest to the lowest.

People write `0*4 13+0*8 13+25+0`: four bars of the piano alone, eight of melody and piano, one of all three.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from midisynth.errors import UsageError
from midisynth.models.phrase_ldm.vocabulary import BAR, IDS, INST, TOKENS

#: Order of the instruments of POP909 in the original's ids of slots: melody, piano, bridge.
PUBLISHED_PROGRAMS = (13, 0, 25)
#: Id of the end of a bar.
END_OF_BAR = 0

#: Programs of every bar.
Layout = Sequence[Sequence[int]]

_BARS = re.compile(r"(\d+(?:\+\d+)*|-)(?:\*(\d+))?")


@dataclass(frozen=True)
class LayoutIds:
    """How slots are numbered by what plays in them: first the end of a bar, then the programs.

    Attributes:
        programs: In the order of their ids, from 1.
    """

    programs: tuple[int, ...] = PUBLISHED_PROGRAMS

    @property
    def unknown(self) -> int:
        """Id of slots of which nothing is known, and of what follows the end of a song."""
        return len(self.programs) + 1

    @property
    def empty(self) -> int:
        """Id of slots in which nothing plays; the original leaves them out."""
        return len(self.programs) + 2

    def encode(self, layout: Layout, slots: int, rows: int) -> Tensor:
        """Ids of the slots of a song, [rows] int64; all unknown without bars.

        Args:
            layout: Programs of every bar.
            slots: Rows of a bar.
            rows: Longest song.

        Raises:
            UsageError: A program has no id, or a bar or the song has too many.
        """
        if len(layout) * slots > rows:
            raise UsageError(f"layout: {len(layout)} bars, the model takes {rows // slots}")
        ids = torch.full((rows,), self.unknown)
        for bar, programs in enumerate(layout):
            if missing := set(programs) - set(self.programs):
                known = ", ".join(map(str, self.programs))
                raise UsageError(f"layout: the model knows no program {min(missing)}; it knows {known}")
            if len(programs) >= slots:
                raise UsageError(f"layout: bar {bar + 1} has {len(programs)} programs, the model takes {slots - 1}")
            told = [self.programs.index(program) + 1 for program in programs]
            told += [self.empty] * (slots - 1 - len(told)) + [END_OF_BAR]
            ids[bar * slots : (bar + 1) * slots] = torch.tensor(told)
        return ids

    def of_tokens(self) -> np.ndarray:
        """Id of a slot by the first token of its phrase, [vocabulary] int64; -1 for programs without id."""
        ids = np.full(len(TOKENS), self.unknown, np.int64)
        for number, token in enumerate(TOKENS):
            if token.startswith("i-"):
                program = int(token[2:])
                ids[number] = self.programs.index(program) + 1 if program in self.programs else -1
            elif token == BAR or token.startswith("s-"):
                ids[number] = END_OF_BAR
        ids[IDS[INST]] = self.empty
        return ids


def parse_layout(text: str) -> list[tuple[int, ...]]:
    """Programs of every bar of a layout; `-` is a bar in which nothing plays.

    Raises:
        UsageError: It is none; the text tells where.
    """
    bars: list[tuple[int, ...]] = []
    for word in text.split():
        match = _BARS.fullmatch(word)
        if match is None or match[2] == "0":
            raise UsageError(
                f"layout '{text.strip()}': cannot read '{word}'; write programs with + between them, and * for a "
                "number of bars, such as 0*4 13+0*8"
            )
        programs = () if match[1] == "-" else tuple(map(int, match[1].split("+")))
        if len(set(programs)) < len(programs):
            raise UsageError(f"layout '{text.strip()}': '{word}' has a program twice")
        bars += [programs] * int(match[2] or 1)
    if not bars:
        raise UsageError("the layout is empty: write the programs of every bar, such as 0*4 13+0*8")
    return bars
