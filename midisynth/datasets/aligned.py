"""Records of corpora that match the notes of performances with those of scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from midisynth.datasets.corpus import Record
from midisynth.errors import DataError
from midisynth.music.alignment import AlignedPerformance, without_skipped_bars
from midisynth.music.alignment_files import read_alignment_table, read_match, read_parangonada
from midisynth.music.notes import Performance
from midisynth.music.score import read_score_notes


@dataclass(frozen=True)
class AlignedRecord(Record):
    """A performance with its score.

    Attributes:
        alignment: Match file, table of (n)ASAP (.tsv) or of Parangonada (.csv).
    """

    alignment: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file behind the record, besides its stems."""
        return super().files if self.alignment is None else (*super().files, self.alignment)

    def performance(self) -> Performance:
        """Notes and controllers: of the MIDI file, else of the match file.

        Raises:
            MidiError: The MIDI file cannot be read.
            AlignmentError: The match file cannot be read.
        """
        return super().performance() if self.midi is not None else read_match(self._alignment()).performance

    def aligned(self) -> AlignedPerformance:
        """Score, performance and which note plays which; passages that the player skipped are not in the score.

        Raises:
            DataError: The record has no alignment.
            MidiError: The MIDI file cannot be read.
            ScoreError: The score cannot be read.
            AlignmentError: The alignment cannot be read, or belongs to other files.
        """
        path = self._alignment()
        score = None if self.score is None else read_score_notes(self.score)
        if path.suffix == ".match":
            return without_skipped_bars(read_match(path, score))
        if score is None:
            raise DataError(f"{self.name} has no score")
        read = read_alignment_table if path.suffix == ".tsv" else read_parangonada
        return without_skipped_bars(read(path, score, self.performance()))

    def _alignment(self) -> Path:
        if self.alignment is None:
            raise DataError(f"{self.name} has no alignment")
        return self.alignment
