"""Corpus `vienna4x22`: four piano excerpts, each played by 22 pianists.

W. Goebl, "The Vienna 4x22 Piano Corpus", 1999, doi 10.21939/4X22 (CC BY 4.0).
"""

from __future__ import annotations

from typing import ClassVar

from midisynth.datasets.aligned import AlignedRecord
from midisynth.datasets.corpus import Corpus
from midisynth.datasets.pieces import by_composers, piece_name, split_pieces
from midisynth.errors import DataError


class Vienna4x22(Corpus):
    """The Vienna 4x22 Piano Corpus: `match/Chopin_op38_p01.match`, `musicxml/Chopin_op38.musicxml`, `midi/`.

    By default one of the pieces is for testing, one for validation.

    Args:
        root: Folder of these folders.
        test_pieces: Pieces for testing instead, such as "mozart k 331"; of "chopin op 10 no 3", "chopin op 38",
            "mozart k 331" and "schubert d 783 no 15".
        validation_pieces: Pieces for validation instead.
        composers: Only these, by their last names.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    version: ClassVar[int] = 1
    content: ClassVar[frozenset[str]] = frozenset({"midi", "score", "alignment"})

    def __init__(
        self,
        root: str,
        test_pieces: list[str] | None = None,
        validation_pieces: list[str] | None = None,
        composers: list[str] | None = None,
        weight: float = 1.0,
    ):
        super().__init__(root, weight)
        self.test_pieces = test_pieces
        self.validation_pieces = validation_pieces
        self.composers = composers

    def records(self) -> list[AlignedRecord]:
        """One record for each match file.

        Raises:
            DataError: There are none, or the score of one is missing.
        """
        matches = sorted((self.root / "match").glob("*_p[0-9][0-9].match"))
        if not matches:
            raise DataError(f"vienna4x22: no match/*_p01.match in {self.root}")
        records = []
        for match in matches:
            stem, _, player = match.stem.rpartition("_p")
            score = self.root / "musicxml" / f"{stem}.musicxml"
            if not score.is_file():
                raise DataError(f"vienna4x22: {score} is missing, the score of {match.name}")
            midi = self.root / "midi" / f"{match.stem}.mid"
            composer, _, title = stem.partition("_")
            records.append(
                AlignedRecord(
                    "vienna4x22",
                    id=match.stem,
                    piece=piece_name(composer, title),
                    split="train",
                    midi=midi if midi.is_file() else None,
                    score=score,
                    alignment=match,
                    metadata={"composer": composer, "title": title, "performer": f"p{player}"},
                )
            )
        return split_pieces(by_composers(records, self.composers), self.test_pieces, self.validation_pieces)
