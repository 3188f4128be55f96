"""Corpus `pop909_sections`: POP909 cut into sections, as J. Zhao and G. Xia share it with AccoMontage (ISMIR 2021).

It is what the published models of whole songs were trained on. Each section is a file of matrices on sixteenths.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from midisynth.datasets.corpus import Corpus, Record, split_by_hash
from midisynth.datasets.pop909 import PROGRAMS, on_grid
from midisynth.errors import DataError, UsageError
from midisynth.music.notes import NOTE_DTYPE, Performance

#: Velocity of all notes: the matrices hold lengths alone.
VELOCITY = 64
_SIXTEENTHS_PER_BAR = 16
_NAME = re.compile(r"(\d+)_([A-Za-z])(\d+)$")


@dataclass(frozen=True)
class Pop909SectionsRecord(Record):
    """A song in sections.

    Attributes:
        sections: Their files in order.
        tempo: Beats a minute.
    """

    sections: tuple[Path, ...] = ()
    tempo: float = 90.0

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of the sections."""
        return self.sections

    def performance(self) -> Performance:
        """Notes of all sections in bars of 4/4.

        Raises:
            DataError: A file is damaged, or is not as long as its name says.
        """
        tables, bars = [], 0
        for path in self.sections:
            length = int(_NAME.search(path.stem)[3])
            tables += [_notes(path, name, length, bars) for name in PROGRAMS]
            bars += length
        table = np.concatenate(tables)
        notes = np.zeros(len(table), NOTE_DTYPE)
        notes["pitch"], notes["program"], notes["velocity"] = table[:, 1], table[:, 3], VELOCITY
        return on_grid(notes, table[:, 0], table[:, 2], 4, self.tempo)


class Pop909Sections(Corpus):
    """Folders such as `001` with one file for each section: `1_i4.npz`, `2_A8.npz` and so on.

    Args:
        root: Folder of these folders.
        tempo: Of all songs, as the files state none (beats a minute).
        validation: Share of the songs for validation.
        test: Share of the songs for testing.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    version: ClassVar[int] = 1
    content: ClassVar[frozenset[str]] = frozenset({"midi"})

    def __init__(
        self,
        root: str,
        tempo: float = 90.0,
        validation: float = 0.1,
        test: float = 0.1,
        weight: float = 1.0,
    ):
        super().__init__(root, weight)
        if not 10 <= tempo <= 400:
            raise UsageError(f"pop909_sections.tempo: {tempo} is not 10 to 400 beats a minute")
        self.tempo = tempo
        self.validation = validation
        self.test = test

    def records(self) -> list[Record]:
        """One record for each song, in the same split as in `pop909` with the same shares.

        Raises:
            DataError: There are none.
        """
        songs: dict[str, list[tuple[int, Path]]] = {}
        for path in self.root.glob("*/*.npz"):
            if match := _NAME.search(path.stem):
                songs.setdefault(path.parent.name, []).append((int(match[1]), path))
        if not songs:
            raise DataError(f"pop909_sections: no files such as {self.root / '001' / '1_i4.npz'}")
        return [self._record(song, [path for _, path in sorted(songs[song])]) for song in sorted(songs)]

    def _record(self, song: str, sections: list[Path]) -> Pop909SectionsRecord:
        return Pop909SectionsRecord(
            "pop909_sections",
            id=song,
            piece=song,
            split=split_by_hash(song, self.validation, self.test),
            sections=tuple(sections),
            tempo=self.tempo,
            metadata={"sections": " ".join(path.stem.partition("_")[2] for path in sections)},
        )


def _notes(path: Path, name: str, bars: int, first_bar: int) -> np.ndarray:
    """Notes of a track of a section: onset (sixteenths from the start of the song), pitch, length, program.

    Args:
        path: File of the section.
        name: Of the track, in capitals.
        bars: Length of the section.
        first_bar: Where it begins.

    Returns:
        [notes, 4] int64.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            matrix = stored[name.lower()]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as a section with a matrix '{name.lower()}' ({error})") from error
    if matrix.shape != (bars * _SIXTEENTHS_PER_BAR, 128):
        raise DataError(f"{path}: {name.lower()} has the shape {list(matrix.shape)}, its name says {bars} bars")
    onset, pitch = np.nonzero(matrix > 0)
    length = matrix[onset, pitch]
    table = np.stack(
        [onset + first_bar * _SIXTEENTHS_PER_BAR, pitch, length, np.full(len(onset), PROGRAMS[name])], axis=1
    )
    return table.astype(np.int64)
