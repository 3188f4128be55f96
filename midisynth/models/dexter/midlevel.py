"""Mid-level features: what a user wants of them, and what was heard in recordings.

`descriptors` computes them from notes.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from midisynth.errors import DataError, UsageError
from midisynth.models.dexter.descriptors import MIDLEVEL, describe, describe_aligned, describe_score, played_onsets
from midisynth.music.score_notes import Score

__all__ = [
    "MIDLEVEL",
    "HeardFeatures",
    "describe",
    "describe_aligned",
    "describe_score",
    "find_heard_features",
    "parse_steer",
    "played_onsets",
    "read_heard_features",
]

_FILES = (".yaml", ".yml", ".json", ".csv")


def parse_steer(option: Mapping[str, Any] | str, score: Score) -> np.ndarray:
    """Offsets of the mid-level features that a user asks for.

    Args:
        option: Features, each with an offset for the whole piece or a curve of [bar, offset] points, or a file with
            that: YAML or JSON, or CSV with a column `bar` and one for each feature. Offsets are standard deviations of
            the corpus; between points they change in a line, outside they stay. Bars count from 1 as they are played.
        score: What is played.

    Returns:
        [notes, 7] float32, in the order of `MIDLEVEL`.

    Raises:
        UsageError: It names an unknown feature, a bar that the score has not, or no numbers.
    """
    wanted = _read(option) if isinstance(option, str) else option
    if not isinstance(wanted, Mapping):
        raise UsageError(f"steer: {wanted!r} is no mapping; write features and offsets as {{articulation: 1.0}}")
    notes = score.notes
    place = notes["bar"] + 1 + notes["bar_beat"] / np.maximum(notes["bar_beats"], 1e-9)
    bars = int(notes["bar"].max()) + 1
    offsets = np.zeros((len(notes), len(MIDLEVEL)), np.float32)
    for name, curve in wanted.items():
        if name not in MIDLEVEL:
            close = get_close_matches(str(name), MIDLEVEL, 1, 0.75)
            hint = f"; did you mean {close[0]}?" if close else f" (features: {', '.join(MIDLEVEL)})"
            raise UsageError(f"steer: no feature {name!r}{hint}")
        points = _points(name, curve, bars)
        offsets[:, MIDLEVEL.index(name)] = np.interp(place, *points.T)
    return offsets


def _points(name: str, curve: Any, bars: int) -> np.ndarray:
    """[points, 2] of bar and offset, in the order of bars."""
    if isinstance(curve, Sequence) and not isinstance(curve, str):
        pairs = [list(point) if isinstance(point, Sequence) and not isinstance(point, str) else [] for point in curve]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise UsageError(f"steer: {name} is {curve!r}; a curve is a list of [bar, offset]")
    else:
        pairs = [[1, curve]]
    for value in (value for pair in pairs for value in pair):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UsageError(f"steer: {name} is {curve!r}; {value!r} is not a number")
    points = np.array(sorted(pairs, key=lambda pair: pair[0]), np.float64)
    for bar in points[:, 0].tolist():
        if not 1 <= bar < bars + 1:
            raise UsageError(f"steer: {name} names bar {bar:g}; the score has bars 1 to {bars}")
    return points


def _read(path: str) -> Any:
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    if suffix not in _FILES:
        raise UsageError(f"steer: {path!r} is neither a mapping nor a file ({', '.join(_FILES)})")
    try:
        text = file.read_text("utf-8-sig")
        if suffix == ".csv":
            return _read_table(path, text)
        if suffix == ".json":
            return json.loads(text)
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"steer: {path} is not YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UsageError(f"steer: {path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"steer: {path} cannot be read: {error}") from None


def _read_table(path: str, text: str) -> dict[str, list[list[float]]]:
    """Curves from a table; an empty cell is no point."""
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    if not rows.fieldnames or "bar" not in rows.fieldnames:
        raise UsageError(f"steer: {path} has no column 'bar'")
    curves: dict[str, list[list[float]]] = {name: [] for name in rows.fieldnames if name != "bar"}
    for number, row in enumerate(rows, 2):
        for name, curve in curves.items():
            if row[name] is None or not row[name].strip():
                continue
            try:
                curve.append([float(row["bar"]), float(row[name])])
            except ValueError:
                raise UsageError(f"steer: {path}, line {number}: bar and {name} must be numbers") from None
    return {name: curve for name, curve in curves.items() if curve}


@dataclass(frozen=True)
class HeardFeatures:
    """Mid-level features that a network heard in a recording, frame by frame.

    Attributes:
        starts: Of the frames (seconds), ascending, [frames].
        values: [frames, 7], in the order of `MIDLEVEL`.
    """

    starts: np.ndarray
    values: np.ndarray

    def at(self, times: np.ndarray, compat: str | None = None) -> np.ndarray:
        """Features of the last frame that has begun at some times (seconds), [times, 7].

        Before the first frame its features hold; in compat "2024", where notes that were not played stand at -1, those
        of the last one do.
        """
        frame = np.searchsorted(self.starts, times, side="right") - 1
        return self.values[frame if compat else np.maximum(frame, 0)]


def find_heard_features(performance: Path) -> Path | None:
    """The table of a performance (MIDI or match file) where the original's corpora have it; None if it is not there."""
    beside = performance.with_name(f"{performance.stem}_cep_features.csv")
    apart = performance.parent.parent / "cep_features" / f"{performance.stem}.csv"
    return next((path for path in (beside, apart) if path.is_file()), None)


def read_heard_features(path: Path) -> HeardFeatures:
    """Read a table of the published features: `frame_start_time` and seven columns.

    Columns go by the names of `MIDLEVEL` where the file has them, else by place.

    Raises:
        DataError: It is no such table.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = [row for row in csv.reader(file) if row]
        table = np.array([[float(cell) for cell in row] for row in rows])
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: not a table of mid-level features: {error}") from None
    names = [name.strip() for name in header]
    if "frame_start_time" not in names or table.ndim != 2 or table.shape[1] != len(names):
        raise DataError(f"{path}: not a table of mid-level features: it needs frame_start_time and 7 columns")
    if not np.isfinite(table).all():
        raise DataError(f"{path}: a mid-level feature is not a finite number")
    time = names.index("frame_start_time")
    if set(MIDLEVEL) <= set(names):
        chosen = [names.index(name) for name in MIDLEVEL]
    else:
        # The first column may be a counter of rows without a name.
        chosen = [column for column, name in enumerate(names) if column != time and name]
    if len(chosen) != len(MIDLEVEL):
        raise DataError(f"{path}: {len(chosen)} mid-level features instead of {len(MIDLEVEL)}")
    order = np.argsort(table[:, time], kind="stable")
    return HeardFeatures(table[order, time], table[order][:, chosen])
