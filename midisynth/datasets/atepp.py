"""Corpus `atepp`: transcribed recordings of pianists, with alignments by parangonar.

H. Zhang et al., "ATEPP: A Dataset of Automatically Transcribed Expressive Piano Performance", ISMIR 2022 (CC BY 4.0).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, get_args

from midisynth.datasets.aligned import AlignedRecord
from midisynth.datasets.corpus import Corpus, Record, Split
from midisynth.datasets.files import read_table
from midisynth.datasets.folder import AUDIO_SUFFIXES
from midisynth.datasets.pieces import by_composers, piece_name, split_pieces
from midisynth.errors import DataError

logger = logging.getLogger(__name__)

_COLUMNS = ("composer", "track", "midi_path")
_SCORES = (".musicxml", ".mxl", ".xml", ".mei")


class Atepp(Corpus):
    """ATEPP with alignments: a table `ATEPP-metadata-1.1.csv` or the like and the folders that its `midi_path` names.

    `Composer/Work/Movement/00001.mid` has its alignment in `00001/align.csv` beside it, and its score where the
    column `score_path` says, else it is the first score in the folder. Performances without both are left out.

    ATEPP has no audio, but says which recordings were transcribed: with `audio`, the folder of those that you have, it
    is a corpus of recordings and MIDI, in which alignments and scores count for nothing.

    Args:
        root: Folder of the table.
        audio: Folder of recordings, below it at the places of the MIDI files (`Composer/Work/Movement/00001.flac`), or
            all in one (`00001.flac`); performances without one are left out.
        table: Name of the table, for other editions; the last of `ATEPP*.csv` when null. With `audio`, its column
            `split` is followed if there is one.
        min_match_ratio: Leave out performances with a smaller share of matches among matches, insertions and
            deletions (0..1); not with `audio`.
        test_pieces: Pieces for testing, such as "scriabin op 6"; without, a tenth of them, by their names.
        validation_pieces: Pieces for validation; likewise.
        composers: Only these, by their last names.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    version: ClassVar[int] = 1
    content = frozenset({"midi", "score", "alignment"})

    def __init__(
        self,
        root: str,
        audio: str | None = None,
        table: str | None = None,
        min_match_ratio: float = 0.5,
        test_pieces: list[str] | None = None,
        validation_pieces: list[str] | None = None,
        composers: list[str] | None = None,
        weight: float = 1.0,
    ):
        super().__init__(root, weight)
        self.audio = None if audio is None else Path(audio).expanduser()
        if self.audio is not None:
            if not self.audio.is_dir():
                raise DataError(f"atepp.audio: no such folder: {self.audio}")
            self.content = frozenset({"midi", "audio"})
        self.table = table
        self.min_match_ratio = min_match_ratio
        self.test_pieces = test_pieces
        self.validation_pieces = validation_pieces
        self.composers = composers

    def records(self) -> list[Record]:
        """One record for each performance with a score and a good alignment, or with audio.

        Raises:
            DataError: The table is not what it should be, or no performance is usable.
        """
        rows = read_table(self._table(), _COLUMNS)
        if self.audio is not None:
            return self._recordings(rows)
        complete = [record for record in map(self._record, rows) if record is not None]
        found = [record for record in complete if match_ratio(record.alignment) >= self.min_match_ratio]
        if not found:
            raise DataError(
                f"atepp: of {len(rows)} performances in {self.root}, {len(complete)} have MIDI, score and "
                f"NNNNN/align.csv, and none a match ratio of {self.min_match_ratio:g}"
            )
        logger.info("atepp: %d of %d performances are usable", len(found), len(rows))
        records = sorted(by_composers(found, self.composers), key=lambda record: record.id)
        return split_pieces(records, *self._held_out)

    def _table(self) -> Path:
        if self.table is not None:
            return self.root / self.table
        tables = sorted(self.root.glob("ATEPP*.csv"))
        if not tables:
            raise DataError(f"atepp: no ATEPP*.csv in {self.root}")
        return tables[-1]

    def _recordings(self, rows: Sequence[Mapping[str, str]]) -> list[Record]:
        files = (path for path in self.audio.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        audio = {path.relative_to(self.audio).with_suffix(""): path for path in files}
        found = []
        for row in rows:
            midi = Path(row["midi_path"])
            recording = audio.get(midi.with_suffix("")) or audio.get(Path(midi.stem))
            if recording is not None and (self.root / midi).is_file():
                found.append(
                    Record(
                        "atepp",
                        id=midi.stem,
                        piece=piece_name(row["composer"], row["track"]),
                        split=_split(row),
                        midi=self.root / midi,
                        audio=recording,
                        metadata=_metadata(row),
                    )
                )
        if not found:
            raise DataError(
                f"atepp: none of {len(rows)} performances has its MIDI in {self.root} and a recording such as "
                f"{Path(rows[0]['midi_path']).stem}.flac in {self.audio}"
            )
        logger.info("atepp: %d of %d performances have a recording", len(found), len(rows))
        records = sorted(by_composers(found, self.composers), key=lambda record: record.id)
        named = self.test_pieces is not None or self.validation_pieces is not None
        return records if "split" in rows[0] and not named else split_pieces(records, *self._held_out)

    @property
    def _held_out(self) -> tuple[list[str] | None, list[str] | None]:
        return self.test_pieces, self.validation_pieces

    def _record(self, row: Mapping[str, str]) -> AlignedRecord | None:
        midi = self.root / row["midi_path"]
        alignment = midi.with_suffix("") / "align.csv"
        score = self._score(row, midi.parent)
        if score is None or not (midi.is_file() and alignment.is_file()):
            return None
        return AlignedRecord(
            "atepp",
            id=midi.stem,
            piece=piece_name(row["composer"], row["track"]),
            split="train",
            midi=midi,
            score=score,
            alignment=alignment,
            metadata=_metadata(row),
        )

    def _score(self, row: Mapping[str, str], folder: Path) -> Path | None:
        named = self.root / row["score_path"] if row.get("score_path") else None
        if named is not None and named.is_file():
            return named
        scores = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SCORES)
        return scores[0] if scores else None


def _metadata(row: Mapping[str, str]) -> dict[str, str | None]:
    return {
        "composer": row["composer"],
        "title": row["track"],
        "performer": row.get("artist"),
        "quality": row.get("quality") or None,
    }


def _split(row: Mapping[str, str]) -> Split:
    """What the table says; "train" where it says nothing, which is decided later.

    Raises:
        DataError: It is no split.
    """
    split = row.get("split", "train")
    if split not in get_args(Split):
        raise DataError(f"atepp: {row['midi_path']}: split '{split}' is none of {', '.join(get_args(Split))}")
    return split


def match_ratio(alignment: Path) -> float:
    """Share of matches among matches, deletions and insertions of a table of Parangonada (0..1)."""
    kinds = Counter(row["matchtype"] for row in read_table(alignment, ["matchtype"]))
    return kinds["0"] / max(kinds.total(), 1)
