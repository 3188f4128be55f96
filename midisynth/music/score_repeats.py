"""In which order the bars of a page are played: repeats, voltas, da capo, dal segno, coda, fine.

partitura unfolds parts too, but not beyond 52 stretches, and it goes on into a coda that follows a dal segno at once.
"""

from __future__ import annotations

import copy
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from partitura.score import Part

_JUMPS = ("Fine", "DaCapo", "DalSegno", "Segno", "ToCoda", "Coda")


def unfolded(parts: Sequence[Part]) -> list[Part]:
    """The parts with repeats, voltas and jumps played, all in the same order of bars.

    Programs write jumps (da capo, fine) above the top part alone, but every part has to make them. Notes of a part in
    which something is repeated get "-1", "-2" behind their ids, the others keep theirs.
    """
    if len(parts) > 1:
        _share_jumps(parts)
    return [_unfolded(part) for part in parts]


def _unfolded(part: Part) -> Part:
    from partitura.score import ScoreVariant
    from partitura.utils.music import update_note_ids_after_unfolding

    spans = played_spans(part)
    if spans == [(part.first_point.t, part.last_point.t)]:
        return part
    variant = ScoreVariant(part)
    for start, end in spans:
        variant.add_segment(part.get_or_add_point(start), part.get_or_add_point(end))
    played = variant.create_variant_part()
    update_note_ids_after_unfolding(played)
    return played


def _share_jumps(parts: Sequence[Part]) -> None:
    """Give every part the repeats, voltas and jumps of the part that has most of each."""
    from partitura import score

    for kind in (getattr(score, name) for name in ("Repeat", "Ending", *_JUMPS)):
        found = [list(part.iter_all(kind)) for part in parts]
        source = max(range(len(parts)), key=lambda index: len(found[index]))
        to_common = parts[source].quarter_map
        start = float(to_common(parts[source].first_point.t))
        for part, own in zip(parts, found, strict=True):
            if len(own) == len(found[source]):
                continue
            for mark in own:
                part.remove(mark)
            from_common, offset = part.inv_quarter_map, float(part.quarter_map(part.first_point.t)) - start
            last = part.last_point.t
            for mark in found[source]:
                times = [None if point is None else float(to_common(point.t)) for point in (mark.start, mark.end)]
                end = float(part.quarter_map(last)) - offset
                # A part that ends early makes the jumps that it reaches.
                placed = [None if t is None else round(float(from_common(min(t, end) + offset))) for t in times]
                twin = copy.copy(mark)
                twin.start = twin.end = None
                part.add(twin, *placed)


@dataclass
class _Volta:
    start: int
    end: int
    numbers: set[int]
    chain: int  # voltas that follow each other at once share one


def _voltas(part: Part) -> list[_Volta]:
    from partitura.score import Ending

    voltas: list[_Volta] = []
    marks = [mark for mark in part.iter_all(Ending) if mark.start is not None and mark.end is not None]
    for mark in sorted(marks, key=lambda mark: mark.start.t):
        numbers = {int(number) for number in re.findall(r"\d+", str(mark.number))} or {1}
        chain = voltas[-1].chain if voltas and voltas[-1].end == mark.start.t else len(voltas)
        voltas.append(_Volta(mark.start.t, mark.end.t, numbers, chain))
    return voltas


def played_spans(part: Part) -> list[tuple[int, int]]:
    """Stretches of a part in the order in which they are played, start and end in its divisions.

    All repeats are made, those after a jump too, and every jump once. A stretch that follows on the one before it in
    the part belongs to it.
    """
    return _Player(part).spans()


class _Player:
    """Goes through a part from line to line; a line is where something begins, ends or jumps."""

    def __init__(self, part: Part):
        from partitura import score

        self.first, self.last = part.first_point.t, part.last_point.t
        self.jumps = {
            name: sorted(mark.start.t for mark in part.iter_all(getattr(score, name)) if mark.start is not None)
            for name in _JUMPS
        }
        repeats = [mark for mark in part.iter_all(score.Repeat) if mark.start is not None and mark.end is not None]
        # Of several repeats that end together the shortest is the one that ends there.
        self.back = {mark.end.t: mark.start.t for mark in sorted(repeats, key=lambda mark: mark.start.t)}
        voltas = _voltas(part)
        self.volta_from = {volta.start: volta for volta in voltas}
        self.volta_to = {volta.end: volta for volta in voltas}
        self.highest: dict[int, int] = {}
        for volta in voltas:
            self.highest[volta.chain] = max(self.highest.get(volta.chain, 1), *volta.numbers)
        edges = {self.first, self.last, *self.back, *self.back.values(), *self.volta_from, *self.volta_to}
        self.lines = sorted(t for t in edges.union(*self.jumps.values()) if self.first <= t <= self.last)
        # How often was gone back from a line, or, under the key -1 - chain, from any volta of a chain; and from where
        # in the part, since a longer repeat makes the shorter ones in it anew.
        self.rounds: dict[int, tuple[int, int]] = {}
        self.jumped: set[int] = set()

    def spans(self) -> list[tuple[int, int]]:
        spans: list[tuple[int, int]] = []
        now = self.first
        while now < self.last:
            volta = self.volta_from.get(now)
            if volta and volta.end > now and self._rounds(-1 - volta.chain) + 1 not in volta.numbers:
                now = volta.end
                continue
            end = self.lines[bisect_right(self.lines, now)]
            if spans and spans[-1][1] == now:
                # One stretch: ties and slurs over a line that nobody jumps from or to are left alone.
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((now, end))
            now = self._after(end)
        return spans

    def _rounds(self, key: int) -> int:
        return self.rounds.get(key, (0, 0))[0]

    def _after(self, line: int) -> int:
        """Where to go on after a line; the end of the part for the end of the music."""
        volta = self.volta_to.get(line)
        key = line if volta is None else -1 - volta.chain
        most = 2 if volta is None else self.highest[volta.chain]
        if line in self.back and self._rounds(key) + 1 < most:
            to = self.back[line]
            self.rounds = {
                inner: value for inner, value in self.rounds.items() if inner == key or not to < value[1] < line
            }
            self.rounds[key] = (self._rounds(key) + 1, line)
            return to
        if self.jumped and line in self.jumps["Fine"]:
            return self.last
        if self.jumped and line in self.jumps["ToCoda"]:
            return next((coda for coda in self.jumps["Coda"] if coda > line), line)
        if line not in self.jumped and line in self.jumps["DaCapo"]:
            return self._jump(line, self.first)
        segnos = [segno for segno in self.jumps["Segno"] if segno < line]
        if line not in self.jumped and line in self.jumps["DalSegno"] and segnos:
            return self._jump(line, segnos[-1])
        return line

    def _jump(self, line: int, to: int) -> int:
        self.jumped.add(line)
        self.rounds = {}
        return to
