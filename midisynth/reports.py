"""What a test leaves behind: a table on screen, the same as JSON, and every single score as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer

from midisynth.datasets.files import replacing

Part = TypeVar("Part")


def gathered(part: Part) -> list[Part]:
    """What each process of a run has of something, in the order of their ranks; every process has to ask."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [part]
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, part)
    return parts


def block(title: str, scores: Mapping[str, Mapping[str, float]], columns: Mapping[str, str]) -> str:
    """Some scores as text, a line for each row that has any of them; "" if none has.

    Args:
        title: First line.
        scores: Row -> name of the score -> value; NaN is shown as "-".
        columns: Name of the score -> heading. Names that end with "_frames" are counts.
    """
    rows = {name: values for name, values in scores.items() if any(key in values for key in columns)}
    if not rows:
        return ""
    width = max(map(len, rows))
    lines = [title, " ".join([" " * width, *(label.rjust(12) for label in columns.values())])]
    for name, values in rows.items():
        cells = [_cell(values.get(key, math.nan), key) for key in columns]
        lines.append(" ".join([name.ljust(width), *cells]))
    return "\n".join(lines)


def _cell(value: float, key: str) -> str:
    if math.isnan(value):
        return "-".rjust(12)
    return f"{value:12.0f}" if key.endswith("_frames") else f"{value:12.4g}"


def report_path(trainer: Trainer, report: str | None) -> Path:
    """Where the report of a test goes: to the file that the user named, or a new one beside the logs.

    Every process has to ask, because the loggers talk to each other.
    """
    logs = trainer.log_dir if trainer.loggers else Path(trainer.default_root_dir, "lightning_logs")
    return Path(report) if report else _unused(Path(logs))


def _unused(folder: Path) -> Path:
    number = 0
    while (folder / f"test_{number}.json").exists():
        number += 1
    return folder / f"test_{number}.json"


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write a report, with null for numbers that JSON does not have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write((json.dumps(finite(result), indent=2, ensure_ascii=False) + "\n").encode())


def write_csv(path: Path, heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, with empty cells for NaN."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row] for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def finite(value: Any) -> Any:
    """The value with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
