"""Instruments of files that are other ones than those which a model knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from midisynth.errors import DataError, UsageError
from midisynth.music.notes import Performance, is_drum


@dataclass
class Instruments:
    """What a file plays in place of programs that a model knows.

    Attributes:
        programs: Program that the model knows -> program of the file.
        transpose: Program that the model knows -> semitones that the file adds to its notes.
        optional: A file that does not play them is read as it is; else it is refused.
    """

    programs: Mapping[int, int] = field(default_factory=dict)
    transpose: Mapping[int, int] = field(default_factory=dict)
    optional: bool = False

    @classmethod
    def of_input(cls, programs: Mapping[int | str, int]) -> Instruments:
        """From program of the input -> program that the model takes it for.

        Args:
            programs: Keys may be text, which is what the command line and JSON make of them.

        Raises:
            UsageError: Two stand for the same one, or they are no programs.
        """
        if len(set(programs.values())) < len(programs):
            raise UsageError("instruments: two programs of the input cannot be taken for the same one")
        found = {known: int(played) for played, known in programs.items()}
        if any(not 0 <= program <= 127 for program in (*found, *found.values())):
            raise UsageError("instruments: programs are 0 to 127")
        return cls(found)

    def known(self, program: int) -> int:
        """What the model calls a program of the file."""
        return next((known for known, played in self.programs.items() if played == program), program)

    def played(self, program: int) -> int:
        """What the file has in place of a program of the model."""
        return self.programs.get(program, program)

    def fits(self, performance: Performance) -> bool:
        """Whether a file can be read with these: it plays them, and none of those that they stand for.

        Raises:
            DataError: It cannot, and they are not optional.
        """
        notes = performance.notes[~is_drum(performance.notes)]
        present = {int(program) for program in np.unique(notes["program"])}
        for known, played in self.programs.items():
            if played not in present:
                listed = ", ".join(map(str, sorted(present))) or "none"
                fault = f"instruments: the song has no program {played}; it has {listed}"
            elif known in present - set(self.programs.values()):
                fault = f"instruments: the song plays program {known} as well as {played}: name another for {known}"
            elif (notes["pitch"][notes["program"] == played] < self.transpose.get(known, 0)).any():
                fault = f"instruments: program {played} plays too low for {known}"
            else:
                continue
            if not self.optional:
                raise DataError(fault)
            return False
        return True

    def undone(self, performance: Performance) -> Performance:
        """The music with the programs that the model knows."""
        notes = performance.notes.copy()
        for known, played in self.programs.items():
            chosen = (performance.notes["program"] == played) & ~is_drum(performance.notes)
            notes["program"][chosen] = known
            notes["pitch"][chosen] -= self.transpose.get(known, 0)
        return replace(performance, notes=notes)
