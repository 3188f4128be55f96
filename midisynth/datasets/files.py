"""Files that are either whole or absent, and where prepared ones are kept."""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from midisynth.errors import DataError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of `path` when the block ends well, and vanishes otherwise."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_table(path: Path, columns: Sequence[str], hint: str = "") -> list[dict[str, str]]:
    """Rows of a CSV file with a line of names.

    Args:
        path: The file.
        columns: Names that it must have.
        hint: Follows the text of an error about columns.

    Raises:
        DataError: It cannot be read, has no rows, or lacks a column.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is damaged ({error}); fetch it again") from error
    check_columns(path, rows, columns, hint)
    return rows


def check_columns(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], hint: str = "") -> None:
    """Raise `DataError` for a table without rows, or without one of the columns; see `read_table`."""
    if not rows:
        raise DataError(f"{path}: has no rows")
    absent = [name for name in columns if name not in rows[0]]
    if absent:
        raise DataError(f"{path}: has no column '{absent[0]}'{hint}")


def cache_folder() -> Path:
    """Where prepared data is kept unless the user names a folder: the cache of the user, as the system defines it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "midisynth")


def usable_cores() -> int:
    """Processor cores that this process may use."""
    # Not every system lets processes choose their cores.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
