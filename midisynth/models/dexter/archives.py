"""The prepared data of the original: HDF5 archives with windows of 100, 300 or 1,000 notes."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from midisynth.datasets.corpus import Corpus, Record
from midisynth.datasets.splits import with_validation
from midisynth.errors import DataError
from midisynth.models.dexter.expression import CHANNELS
from midisynth.models.dexter.features import PUBLISHED
from midisynth.models.dexter.midlevel import MIDLEVEL
from midisynth.music.alignment import AlignedPerformance

if TYPE_CHECKING:
    import h5py

_ARRAYS = {"p_codec": len(CHANNELS), "s_codec": len(PUBLISHED), "c_codec": len(MIDLEVEL)}
_TEXTS = ("piece_name", "score_path", "split")
_MIXUP = "_mixup"


@dataclass(frozen=True)
class ArchivedPerformance:
    """One group of an archive: a performance, or the mean of two.

    Attributes:
        name: Of the group.
        piece: Name of the piece.
        score: Path of the score where the archive was made; equal for performances of one score.
        split: "train" or "test".
        is_mix: Whether it is the mean of two performances.
        values: [notes, 5] float32, as of compat "2024"; notes that were not played have the mean of the others.
        features: [notes, 4] float32, the "published" features.
        midlevel: [notes, 7] float32; zeros where they were not known.
    """

    name: str
    piece: str
    score: str
    split: str
    is_mix: bool
    values: np.ndarray
    features: np.ndarray
    midlevel: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """As `DExterCodec.encode_performance` returns them for compat "2024" and published features.

        An archive knows nothing of beats and of notes that were not played: "onset" counts divisions, all notes are
        matched, and "written" is zero.
        """
        notes = np.ascontiguousarray(self.features[:, :3]).astype(np.int64)
        return {
            "values": self.values,
            "score": self.features,
            "midlevel": self.midlevel,
            "written": np.zeros_like(self.midlevel),
            "matched": np.ones(len(self.values), bool),
            "onset": self.features[:, 0].astype(np.float64),
            "score_hash": np.frombuffer(hashlib.sha256(notes.tobytes()).digest(), np.uint8),
        }


def read_archive(path: Path, only: str | None = None) -> Iterator[ArchivedPerformance]:
    """Read an archive, windows joined and padding removed.

    Groups that hold the error of their preparation are left out, with one warning for all.

    Args:
        path: The file.
        only: Name of the performance that is wanted; None: all.

    Raises:
        DataError: h5py is not installed, or the file is no such archive.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError('HDF5 archives need h5py: pip install "midisynth-lightning[archives]"') from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not an HDF5 file: {error}") from None
    with file:
        failed = 0
        found = False
        groups = file.items() if only is None else [(name := only.rpartition("/")[0], file[name])]
        for name, group in groups:
            if isinstance(group, h5py.Group) and "error" in group:
                failed += 1
                continue
            found = True
            yield from (one for one in _read_group(path, name, group) if only in (None, one.name))
        if not found:
            raise DataError(f"{path}: it has no prepared performances")
        if failed:
            warnings.warn(f"{path}: {failed} performances that the original could not prepare left out", stacklevel=2)


def _read_group(path: Path, name: str, group: h5py.Group) -> Iterator[ArchivedPerformance]:
    absent = [key for key in (*_ARRAYS, *_TEXTS) if key not in group]
    if absent:
        raise DataError(f"{path}: group {name!r} has no {absent[0]!r}")
    arrays = {key: np.asarray(group[key]) for key in _ARRAYS}
    texts = {key: [_text(value) for value in np.atleast_1d(group[key][()])] for key in _TEXTS}
    windows, length = arrays["p_codec"].shape[:2]
    for key, channels in _ARRAYS.items():
        if arrays[key].shape != (windows, length, channels):
            raise DataError(f"{path}: {key} of group {name!r} has shape {arrays[key].shape}")
    if any(len(column) != windows for column in texts.values()):
        raise DataError(f"{path}: group {name!r} names not every window")
    # A group holds a performance, and after it its mixes, piece by piece of as many windows each.
    is_mix = np.char.endswith(texts["piece_name"], _MIXUP)
    onset = arrays["s_codec"][:, 0, 0]
    begins = np.flatnonzero(np.append(True, (np.diff(onset) <= 0) | np.diff(is_mix)))
    for number, (first, end) in enumerate(zip(begins, np.append(begins[1:], windows), strict=True)):
        rows = slice(first, end)
        # Pitch is 0 nowhere but in padding.
        notes = arrays["s_codec"][rows, :, PUBLISHED.index("pitch")].reshape(-1) > 0
        values, features, midlevel = (
            arrays[key][rows].reshape(-1, channels)[notes].astype(np.float32) for key, channels in _ARRAYS.items()
        )
        yield ArchivedPerformance(
            name=f"{name}/{number}",
            piece=texts["piece_name"][first].removesuffix(_MIXUP),
            score=texts["score_path"][first],
            split=texts["split"][first],
            is_mix=bool(is_mix[first]),
            values=values,
            features=features,
            midlevel=midlevel,
        )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class ArchivedRecord(Record):
    """A performance of an archive, which is its file of labels.

    Attributes:
        performance_name: Of the performance in the archive.
    """

    performance_name: str = ""

    def arrays(self) -> dict[str, np.ndarray]:
        """See `ArchivedPerformance.arrays`."""
        assert self.labels is not None
        return next(read_archive(self.labels, self.performance_name)).arrays()

    def aligned(self) -> AlignedPerformance:
        """Fails: an archive has neither notes nor times.

        Raises:
            DataError: Always.
        """
        raise DataError(f"{self.labels}: an archive is for training; performances are tested with a corpus")


class DExterArchives(Corpus):
    """The prepared data of the original: a folder of HDF5 archives (`codec_N=200_mixup.hdf5`), for compat "2024".

    A tenth of the training pieces are for validation.

    Args:
        root: Folder of the archives.
        mixes: Take the means of two performances, too, if an archive has some.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    version: ClassVar[int] = 1
    content: ClassVar[frozenset[str]] = frozenset({"score", "alignment"})

    def __init__(self, root: str, mixes: bool = True, weight: float = 1.0):
        super().__init__(root, weight)
        self.mixes = mixes

    def records(self) -> list[ArchivedRecord]:
        """One record for each performance of each archive.

        Raises:
            DataError: There is no archive, or one cannot be read.
        """
        paths = sorted((*self.root.glob("*.hdf5"), *self.root.glob("*.h5")))
        if not paths:
            raise DataError(f"dexter_archives: no *.hdf5 in {self.root}")
        records = [
            ArchivedRecord(
                "dexter_archives",
                id=re.sub(r"[^\w.-]+", "_", f"{path.stem}-{found.name}"),
                piece=found.score,
                split="train" if found.split == "train" else "test",
                labels=path,
                performance_name=found.name,
            )
            for path in paths
            for found in read_archive(path)
            if self.mixes or not found.is_mix
        ]
        return with_validation(records)
