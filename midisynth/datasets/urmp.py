"""Corpus `urmp`: 44 chamber pieces for winds and strings, each part recorded alone.

B. Li, X. Liu, K. Dinesh, Z. Duan, G. Sharma, "Creating a Multitrack Classical Music Performance Dataset for Multimodal
Music Analysis: Challenges, Insights, and Applications", IEEE Transactions on Multimedia 21(2), 2019. The split is that
of J. Gardner et al., "MT3: Multi-Task Multitrack Music Transcription", ICLR 2022.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from midisynth.datasets.corpus import Corpus, Record, chosen
from midisynth.datasets.labels import PITCHED_CHANNELS, from_labels
from midisynth.datasets.splits import Splits, validated_on_test, with_validation, without_held_out
from midisynth.datasets.stems import subsets
from midisynth.errors import DataError
from midisynth.music.midi import read_midi
from midisynth.music.notes import Performance

HELD_OUT = frozenset(["01", "02", "12", "13", "24", "25", "31", "38", "39"])

#: General MIDI programs of the codes in the names of folders.
PROGRAMS = {
    "tpt": 56,
    "tbn": 57,
    "tba": 58,
    "hn": 60,
    "sax": 64,
    "ob": 68,
    "bn": 70,
    "cl": 71,
    "fl": 73,
    "vn": 40,
    "va": 41,
    "vc": 42,
    "db": 43,
}

Notes = Literal["played", "score"]

_FOLDER = re.compile(r"(?P<number>\d\d)_(?P<piece>[^_]+)_(?P<codes>[a-z]+(_[a-z]+)*)")


@dataclass(frozen=True)
class UrmpRecord(Record):
    """A piece, or some of its parts.

    Attributes:
        notes: Tables of the notes as they were played, in the order of `parts`; none where the score is read.
        programs: General MIDI program of each part of the piece.
        parts: Which parts sound, counted from 0.
    """

    notes: tuple[Path, ...] = ()
    programs: tuple[int, ...] = ()
    parts: tuple[int, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        return (*super().files, *self.notes)

    def performance(self) -> Performance:
        """Notes of the parts, each on a track and a channel of its own, with the program of its instrument.

        Raises:
            DataError: A table is damaged, or the score has not as many parts as the folder's name.
            MidiError: The score cannot be read.
        """
        if self.notes:
            return read_played(self.notes, [self.programs[part] for part in self.parts])
        return clean_score(self.midi, self.programs, self.parts)


class Urmp(Corpus):
    """URMP as it is unpacked: in `01_Jupiter_vn_vc` the files `AuMix_*.wav`, `Sco_*.mid` and, for each part,
    `AuSep_1_vn_*.wav` and `Notes_1_vn_*.txt`.

    The MIDI files are scores without instruments. Their programs are set here, from the codes in the name of the
    folder.

    Args:
        root: Folder of the pieces, or the one above it with its `Dataset`.
        notes: "played": the annotated notes, which are where the sound is. "score": the MIDI file, as the PyTorch
            re-implementation of spectrogram diffusion read it.
        submixes: Random choices of some of the parts that are trained on beside each whole piece; audio is then the
            sum of the parts.
        saxophone: General MIDI program of the saxophones: 64 is the soprano, as published; the re-implementation used
            65, the alto.
        splits: "published": nine pieces serve for validation and for testing. "separate": they are for testing alone,
            other arrangements of them are left out, and a tenth of the other pieces is for validation.
        seed: Of the choice of parts.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    version: ClassVar[int] = 1

    def __init__(
        self,
        root: str,
        notes: Notes = "played",
        submixes: int = 0,
        saxophone: int = PROGRAMS["sax"],
        splits: Splits = "separate",
        seed: int = 0,
        weight: float = 1.0,
    ):
        super().__init__(root, weight)
        self.notes: Notes = chosen("urmp.notes", notes, Notes)
        self.submixes = submixes
        self.programs = {**PROGRAMS, "sax": saxophone}
        self.splits: Splits = chosen("urmp.splits", splits, Splits)
        self.seed = seed

    def records(self) -> list[Record]:
        """One record for each piece, and those of its parts for training.

        Raises:
            DataError: There are no pieces, or one lacks a file.
        """
        root = self.root / "Dataset" if (self.root / "Dataset").is_dir() else self.root
        folders = {path: match for path in sorted(root.iterdir()) if (match := _FOLDER.fullmatch(path.name))}
        if not folders:
            raise DataError(f"urmp: no folder such as 01_Jupiter_vn_vc in {root}")
        pieces = [self._piece(folder, match) for folder, match in folders.items()]
        arranged = (
            validated_on_test(pieces) if self.splits == "published" else with_validation(without_held_out(pieces))
        )
        chosen = [mix for piece in arranged if piece.split == "train" for mix in self._submixes(piece)]
        return sorted([*arranged, *chosen], key=lambda record: record.id)

    def _piece(self, folder: Path, name: re.Match[str]) -> UrmpRecord:
        codes = name["codes"].split("_")
        unknown = [code for code in codes if code not in self.programs]
        if unknown:
            raise DataError(f"urmp: {folder}: unknown instrument '{unknown[0]}' (known: {', '.join(self.programs)})")
        played = self.notes == "played"
        return UrmpRecord(
            "urmp",
            id=folder.name,
            piece=name["piece"],
            split="test" if name["number"] in HELD_OUT else "train",
            midi=None if played else _only(folder, "Sco_*.mid"),
            audio=_only(folder, "AuMix_*.wav"),
            notes=tuple(_only(folder, f"Notes_{i}_{code}_*.txt") for i, code in enumerate(codes, 1)) if played else (),
            programs=tuple(self.programs[code] for code in codes),
            parts=tuple(range(len(codes))),
            metadata={"instruments": codes},
        )

    def _submixes(self, piece: UrmpRecord) -> Iterator[UrmpRecord]:
        """The piece with some of its parts."""
        codes = piece.metadata["instruments"]
        for parts in subsets(range(len(codes)), 1, len(codes) - 1, self.submixes, f"{self.seed}:{piece.id}"):
            folder = piece.audio.parent
            yield replace(
                piece,
                id=f"{piece.id}-{'-'.join(str(part + 1) for part in parts)}",
                audio=None,
                stems=tuple(_only(folder, f"AuSep_{part + 1}_{codes[part]}_*.wav") for part in parts),
                notes=tuple(piece.notes[part] for part in parts) if piece.notes else (),
                parts=parts,
            )


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"urmp: {folder} has {len(found) or 'no'} files {pattern}, where one belongs")
    return found[0]


def read_played(tables: tuple[Path, ...], programs: list[int]) -> Performance:
    """Notes of `Notes_*.txt` tables with the columns onset (s), frequency (Hz) and duration (s), one table a part.

    Raises:
        DataError: One cannot be read.
    """
    parts = []
    for path in tables:
        try:
            onset, frequency, duration = np.loadtxt(path, ndmin=2, usecols=(0, 1, 2)).T
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as onset, frequency and duration ({error})") from error
        if len(onset) == 0 or frequency.min() <= 0:
            raise DataError(f"{path}: has no notes, or one without a frequency")
        parts.append((onset, onset + duration, 69 + 12 * np.log2(frequency / 440)))
    onset, end, pitch = np.concatenate(parts, axis=1)
    return from_labels(onset, end, pitch, programs, np.repeat(np.arange(len(parts)), [len(p[0]) for p in parts]))


def clean_score(path: Path, programs: Sequence[int], parts: Sequence[int]) -> Performance:
    """A score with the program of each instrument, on a channel of its own, and without controllers.

    Args:
        path: MIDI file in which every track that has notes is a part.
        programs: General MIDI programs of all parts.
        parts: Which parts are wanted.

    Raises:
        DataError: There are not as many tracks with notes as programs.
        MidiError: It cannot be read.
    """
    score = read_midi(path)
    tracks, part = np.unique(score.notes["track"], return_inverse=True)
    if len(tracks) != len(programs):
        raise DataError(f"{path}: has {len(tracks)} tracks with notes for {len(programs)} instruments")
    notes = score.notes.copy()
    notes["program"] = np.asarray(programs)[part]
    notes["channel"] = np.take(PITCHED_CHANNELS, part)
    empty = Performance()
    return replace(score, notes=notes[np.isin(part, parts)], controls=empty.controls, bends=empty.bends)
