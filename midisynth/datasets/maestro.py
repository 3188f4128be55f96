"""Corpus `maestro`: piano performances with recordings, and anything else with a table of the same columns.

C. Hawthorne et al., "Enabling Factorized Piano Music Modeling and Generation with the MAESTRO Dataset", ICLR 2019.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

from midisynth.datasets.corpus import Corpus, Record, Split
from midisynth.datasets.files import check_columns, read_table
from midisynth.errors import DataError

COLUMNS = ("canonical_composer", "canonical_title", "split", "midi_filename", "audio_filename")


class Maestro(Corpus):
    """MAESTRO, versions 1 to 3, with its official splits.

    The table is `maestro-v*.json` (a list of records in versions 1 and 2, a table of columns in version 3), else
    `maestro-v*.csv`, else `metadata.csv`. Of several versions the latest is taken.

    Args:
        root: Folder of the table; the names in it are relative to this folder.
        table: Name of the table, if it is not one of those.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    version: ClassVar[int] = 1

    def __init__(self, root: str, table: str | None = None, weight: float = 1.0):
        super().__init__(root, weight)
        self.table = self._find_table() if table is None else self.root / table

    def records(self) -> list[Record]:
        """One record for each row.

        Raises:
            DataError: The table is not what it should be, or files that it names are missing.
        """
        rows = self._rows()
        records = [self._record(row, number) for number, row in enumerate(rows, start=1)]
        missing = [path for r in records for path in (r.midi, r.audio) if path is not None and not path.is_file()]
        if missing:
            raise DataError(
                f"maestro: {missing[0]} is missing ({len(missing)} of the {2 * len(records)} files in "
                f"{self.table.name} are): complete the download, or remove their rows"
            )
        return sorted(records, key=lambda record: record.id)

    def _find_table(self) -> Path:
        for pattern in ("maestro-v*.json", "maestro-v*.csv", "metadata.csv"):
            found = sorted(self.root.glob(pattern))
            if found:
                return found[-1]
        raise DataError(f"maestro: no maestro-v*.json, maestro-v*.csv or metadata.csv in {self.root}")

    def _rows(self) -> list[Mapping[str, Any]]:
        if self.table.suffix.lower() == ".csv":
            return read_table(self.table, COLUMNS)
        try:
            with open(self.table, encoding="utf-8") as file:
                rows = _json_rows(json.load(file))
        except OSError as error:
            raise DataError(f"maestro: {self.table} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise DataError(f"maestro: {self.table} is damaged ({error}); fetch it again") from error
        check_columns(self.table, rows, COLUMNS)
        return rows

    def _record(self, row: Mapping[str, Any], number: int) -> Record:
        if row["split"] not in get_args(Split):
            choices = ", ".join(get_args(Split))
            raise DataError(f"maestro: {self.table}, row {number}: split '{row['split']}' is none of {choices}")
        audio = self.root / row["audio_filename"]
        return Record(
            "maestro",
            id="_".join(Path(row["audio_filename"]).with_suffix("").parts),
            piece=f"{row['canonical_composer']} - {row['canonical_title']}",
            split=row["split"],
            midi=self.root / row["midi_filename"],
            audio=audio,
            metadata={"composer": row["canonical_composer"], "title": row["canonical_title"], "year": row.get("year")},
        )


def _json_rows(table: Any) -> list[Mapping[str, Any]]:
    """Rows of a list of records, or of columns that are keyed by row."""
    if isinstance(table, list):
        return table
    if not isinstance(table, dict) or not all(isinstance(column, dict) for column in table.values()):
        raise ValueError("neither a list of records nor a table of columns")
    keys = next(iter(table.values()), {})
    return [{name: column.get(key) for name, column in table.items()} for key in keys]
