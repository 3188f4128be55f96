"""Corpus `maps`: piano pieces on two real pianos and seven sampled ones.

V. Emiya, R. Badeau, B. David, "Multipitch estimation of piano sounds using a new probabilistic spectral smoothness
principle", IEEE TASLP 18(6), 2010. The split is that of S. Sigtia, E. Benetos, S. Dixon, "An End-to-End Neural Network
for Polyphonic Piano Music Transcription", IEEE/ACM TASLP 24(5), 2016 ("configuration 2").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from midisynth.datasets.corpus import Corpus, Record, chosen
from midisynth.datasets.labels import from_labels
from midisynth.datasets.splits import Splits, with_validation, without_held_out
from midisynth.errors import DataError
from midisynth.music.notes import Performance

_NAME = re.compile(r"MAPS_MUS-(?P<piece>.+)_(?P<piano>[^_]+)")

#: Yamaha Disklavier, from near and from afar: the real ones.
REAL_PIANOS = ("ENSTDkCl", "ENSTDkAm")


@dataclass(frozen=True)
class MapsRecord(Record):
    """A recording whose notes may be in a table."""

    def performance(self) -> Performance:
        """Notes of the MIDI file, or of the table.

        Raises:
            DataError: The table is not what it should be.
            MidiError: The MIDI file cannot be read.
        """
        return super().performance() if self.labels is None else read_table(self.labels)


class Maps(Corpus):
    """The music of MAPS (not its chords and single notes), in one of two layouts.

    As it is unpacked: `ENSTDkCl/MUS/MAPS_MUS-chpn-p19_ENSTDkCl.wav` with `.mid` and `.txt` beside it; the MIDI file is
    read, or the table where there is none. As it is passed around with transcribers:
    `flac/MAPS_MUS-chpn-p19_ENSTDkCl.flac` with `tsv/matched/MAPS_MUS-chpn-p19_ENSTDkCl.tsv`.

    The real pianos are held out for testing.

    Args:
        root: Searched with its sub-folders.
        splits: "published": all recordings of sampled pianos are for training. "separate": those of a piece that is
            played on the real piano are left out, and a tenth of the other pieces is for validation.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    version: ClassVar[int] = 1

    def __init__(self, root: str, splits: Splits = "separate", weight: float = 1.0):
        super().__init__(root, weight)
        self.splits: Splits = chosen("maps.splits", splits, Splits)

    def records(self) -> list[Record]:
        """One record for each recording.

        Raises:
            DataError: There are none, or one has no notes.
        """
        audio = sorted(path for path in self.root.rglob("MAPS_MUS-*") if path.suffix.lower() in (".wav", ".flac"))
        if not audio:
            raise DataError(f"maps: no PIANO/MUS/MAPS_MUS-*.wav and no flac/MAPS_MUS-*.flac in {self.root}")
        records = sorted((self._record(path) for path in audio), key=lambda record: record.id)
        return records if self.splits == "published" else with_validation(without_held_out(records))

    def _record(self, audio: Path) -> MapsRecord:
        match = _NAME.fullmatch(audio.stem)
        if match is None:
            raise DataError(f"maps: {audio} is not named MAPS_MUS-PIECE_PIANO")
        midi = audio.with_suffix(".mid")
        tables = (audio.with_suffix(".txt"), audio.parent.parent / "tsv" / "matched" / f"{audio.stem}.tsv")
        labels = next((path for path in tables if path.is_file()), None)
        if not midi.is_file() and labels is None:
            raise DataError(f"maps: {audio} has no notes: {midi.name} is not beside it, nor is there {tables[1]}")
        return MapsRecord(
            "maps",
            id=audio.stem,
            piece=match["piece"],
            split="test" if match["piano"] in REAL_PIANOS else "train",
            midi=midi if midi.is_file() else None,
            labels=None if midi.is_file() else labels,
            audio=audio,
            metadata={"piano": match["piano"]},
        )


def read_table(path: Path) -> Performance:
    """Notes of a table with a line of names and the columns onset (s), offset (s), key and, in some, velocity.

    Offsets are those of the sound: the pedal has been applied.

    Raises:
        DataError: It cannot be read.
    """
    try:
        table = np.loadtxt(path, skiprows=1, ndmin=2)
        onset, offset, pitch = table[:, :3].T
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a table of onset, offset and key ({error})") from error
    if table.shape[1] > 3:
        return from_labels(onset, offset, pitch, programs=[0], velocity=table[:, 3])
    return from_labels(onset, offset, pitch, programs=[0])
