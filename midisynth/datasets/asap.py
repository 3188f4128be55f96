"""Corpus `asap`: piano scores with human performances, (n)ASAP version 2.

F. Foscarin et al., "ASAP: a Dataset of Aligned Scores and Performances for Piano Transcription", ISMIR 2020; S. D.
Peter et al., "Automatic Note-Level Score-to-Performance Alignments in the ASAP Dataset", TISMIR 6(1), 2023
(CC BY-NC-SA 4.0).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from midisynth.datasets.aligned import AlignedRecord
from midisynth.datasets.corpus import Corpus
from midisynth.datasets.files import read_table
from midisynth.datasets.pieces import by_composers, piece_name, split_pieces
from midisynth.errors import DataError

logger = logging.getLogger(__name__)

TABLE = "metadata.csv"
_COLUMNS = ("composer", "title", "xml_score", "midi_performance", "note_alignments", "match_file")


class Asap(Corpus):
    """(n)ASAP as it is cloned: `metadata.csv`, and folders of a score, performances and their alignments.

    Performances without an alignment are left out; a match file stands in for a table that is missing.

    Args:
        root: Folder of `metadata.csv`.
        robust_only: Leave out performances whose alignment the authors do not call robust.
        test_pieces: Pieces for testing, such as "beethoven op 31 no 2"; without, a tenth of them, by their names.
        validation_pieces: Pieces for validation; likewise.
        composers: Only these, by their last names.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    version: ClassVar[int] = 1
    content: ClassVar[frozenset[str]] = frozenset({"midi", "score", "alignment"})

    def __init__(
        self,
        root: str,
        robust_only: bool = False,
        test_pieces: list[str] | None = None,
        validation_pieces: list[str] | None = None,
        composers: list[str] | None = None,
        weight: float = 1.0,
    ):
        super().__init__(root, weight)
        self.robust_only = robust_only
        self.test_pieces = test_pieces
        self.validation_pieces = validation_pieces
        self.composers = composers

    def records(self) -> list[AlignedRecord]:
        """One record for each performance that has an alignment.

        Raises:
            DataError: The table is not what it should be, or scores or performances that it names are missing.
        """
        rows = read_table(self.root / TABLE, _COLUMNS, ": it is not (n)ASAP of version 2")
        found = [record for record in map(self._record, rows) if record is not None]
        missing = [path for record in found for path in (record.midi, record.score) if not path.is_file()]
        if missing:
            raise DataError(
                f"asap: {missing[0]} is missing ({len(missing)} files of {TABLE} are): complete the download, or "
                "remove their rows"
            )
        if not found:
            raise DataError(f"asap: no performance in {self.root} has a note alignment: version 2 of the data has them")
        if len(found) < len(rows):
            logger.info("asap: %d of %d performances have no usable alignment", len(rows) - len(found), len(rows))
        records = sorted(by_composers(found, self.composers), key=lambda record: record.id)
        return split_pieces(records, self.test_pieces, self.validation_pieces)

    def _record(self, row: Mapping[str, str]) -> AlignedRecord | None:
        robust = row.get("robust_note_alignment") in ("1", "1.0")
        alignment = self._alignment(row)
        if alignment is None or (self.robust_only and not robust):
            return None
        midi = Path(row["midi_performance"])
        return AlignedRecord(
            "asap",
            id="_".join(midi.with_suffix("").parts),
            piece=piece_name(row["composer"], row["title"]),
            split="train",
            midi=self.root / midi,
            score=self.root / row["xml_score"],
            alignment=alignment,
            metadata={"composer": row["composer"], "title": row["title"], "performer": midi.stem, "robust": robust},
        )

    def _alignment(self, row: Mapping[str, str]) -> Path | None:
        """The table of a performance, else its match file."""
        paths = [self.root / row[name] for name in ("note_alignments", "match_file") if row[name]]
        return next((path for path in paths if path.is_file()), None)
