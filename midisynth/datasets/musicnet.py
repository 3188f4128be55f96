"""Corpus `musicnet`: chamber music and piano, 330 recordings with aligned notes.

J. Thickstun, Z. Harchaoui, S. Kakade, "Learning Features of Music from Scratch", ICLR 2017. The split is that of
J. Gardner et al., "MT3: Multi-Task Multitrack Music Transcription", ICLR 2022, which the published models used.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from midisynth.datasets.corpus import Corpus, Record, Split, chosen
from midisynth.datasets.labels import from_labels
from midisynth.datasets.splits import Splits, without_held_out
from midisynth.errors import DataError
from midisynth.music.notes import Performance

VALIDATION = (2336, 2466, 2160, 1818, 1733, 1765, 2198, 2300, 2308, 2477, 2611, 2289, 1790, 2315, 2504)
TEST = (2118, 2501, 1813, 1729, 1893, 2296, 1776, 2487, 2537, 2186, 2431, 2432, 2497, 2621, 2507)

METADATA = "musicnet_metadata.csv"
#: The rate at which labels count time, whatever that of the audio is (Hz).
LABEL_RATE = 44100
_COLUMNS = ("start_time", "end_time", "instrument", "note")


@dataclass(frozen=True)
class MusicNetRecord(Record):
    """A recording whose notes may be in a table."""

    def performance(self) -> Performance:
        """Notes of the label table, else of the MIDI file.

        Raises:
            DataError: The table is not what it should be.
            MidiError: The MIDI file cannot be read.
        """
        return super().performance() if self.labels is None else read_labels(self.labels)


class MusicNet(Corpus):
    """MusicNet as it is unpacked: `train_data/1727.wav` with `train_labels/1727.csv`, `test_data` and `test_labels`.

    Where there is no table, `train_labels_midi/1727.mid` is read. The folders say nothing about the split here.

    Args:
        root: Folder of these folders and of `musicnet_metadata.csv`.
        splits: "published": the lists of MT3, with every other recording for training. "separate": the same, but
            without the training recordings of a movement that is held out in another recording.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    version: ClassVar[int] = 1

    def __init__(self, root: str, splits: Splits = "separate", weight: float = 1.0):
        super().__init__(root, weight)
        self.splits: Splits = chosen("musicnet.splits", splits, Splits)

    def records(self) -> list[Record]:
        """One record for each recording.

        Raises:
            DataError: There are none, one has no notes, or the table of pieces is needed and missing.
        """
        audio = sorted(path for part in ("train", "test") for path in (self.root / f"{part}_data").glob("*.wav"))
        if not audio:
            raise DataError(f"musicnet: no train_data/*.wav or test_data/*.wav in {self.root}")
        table = self._metadata()
        records = sorted((self._record(path, table) for path in audio), key=lambda record: record.id)
        return records if self.splits == "published" else without_held_out(records)

    def _metadata(self) -> Mapping[str, Mapping[str, str]]:
        """Rows of the table of pieces, by the number of the recording; none where it is missing and not needed."""
        path = self.root / METADATA
        if not path.is_file() and self.splits == "published":
            return {}
        try:
            with open(path, encoding="utf-8", newline="") as file:
                return {row["id"]: row for row in csv.DictReader(file)}
        except OSError as error:
            raise DataError(
                f"musicnet: {path} is missing: it tells which recordings are of one piece. Fetch it from the page of"
                " the data set, or set splits to published"
            ) from error
        except (KeyError, ValueError) as error:
            raise DataError(f"musicnet: {path} has no column 'id'; fetch it again") from error

    def _record(self, audio: Path, table: Mapping[str, Mapping[str, str]]) -> MusicNetRecord:
        number = audio.stem
        part = audio.parent.name.removesuffix("_data")
        labels = self.root / f"{part}_labels" / f"{number}.csv"
        midi = self.root / f"{part}_labels_midi" / f"{number}.mid"
        if not labels.is_file() and not midi.is_file():
            raise DataError(f"musicnet: {audio} has no notes: neither {labels} nor {midi} is there")
        row = table.get(number, {})
        if table and not row:
            raise DataError(f"musicnet: {self.root / METADATA} has no recording {number}")
        return MusicNetRecord(
            "musicnet",
            id=number,
            piece=" - ".join([row["composer"], row["catalog_name"], row["movement"]]) if row else number,
            split=split_of(number),
            midi=None if labels.is_file() else midi,
            labels=labels if labels.is_file() else None,
            audio=audio,
            metadata={name: row[name] for name in ("composer", "composition", "movement", "ensemble") if name in row},
        )


def split_of(number: str) -> Split:
    """Split of a recording by the lists of MT3."""
    if number in map(str, VALIDATION):
        return "validation"
    return "test" if number in map(str, TEST) else "train"


def read_labels(path: Path) -> Performance:
    """Notes of a table of MusicNet.

    Times count samples at 44,100 Hz. Instruments are General MIDI programs counted from 1: 1 is the piano, 41 the
    violin.

    Raises:
        DataError: The table cannot be read.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [[int(row[name]) for name in _COLUMNS] for row in csv.DictReader(file)]
    except KeyError as error:
        raise DataError(f"{path}: no column {error}; columns are {', '.join(_COLUMNS)}") from error
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as a table of notes ({error})") from error
    if not rows:
        raise DataError(f"{path}: has no notes")
    start, end, instrument, pitch = np.array(rows).T
    programs, part = np.unique(instrument - 1, return_inverse=True)
    if programs[0] < 0 or programs[-1] > 127 or pitch.min() < 0 or pitch.max() > 127:
        raise DataError(f"{path}: instruments are 1 to 128 and notes 0 to 127; fetch it again")
    return from_labels(start / LABEL_RATE, end / LABEL_RATE, pitch, programs.tolist(), part)
