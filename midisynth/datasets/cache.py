"""Prepared data: what training reads again and again, decoded once.

A record becomes two files: mono 16-bit audio at the model's rate, which is memory-mapped, and its notes. Each file
appears whole under its name or not at all, the notes last, so that a run that was killed continues where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from midisynth.datasets.corpus import Corpus, Record
from midisynth.datasets.files import replacing, usable_cores
from midisynth.errors import DataError, MidisynthError
from midisynth.music.notes import Performance

#: Raised when the form of the prepared files changes.
CACHE_VERSION = 1

#: Below so many records a pool of processes takes longer to start than it saves.
_ALONE = 8

#: Called with the number of finished records, the number of all, and the id of the last one.
Report = Callable[[int, int, str], None]

logger = logging.getLogger("midisynth.data")


@dataclass(frozen=True)
class Prepared:
    """A prepared record.

    Attributes:
        record: What it was made of.
        stem: Path of its files without suffix.
    """

    record: Record
    stem: Path

    @property
    def audio_path(self) -> Path:
        return self.stem.with_name(self.stem.name + ".npy")

    @property
    def notes_path(self) -> Path:
        return self.stem.with_name(self.stem.name + ".npz")

    def audio(self) -> np.ndarray:
        """Memory-mapped mono audio, [samples] int16."""
        return np.load(self.audio_path, mmap_mode="r")

    def performance(self) -> Performance:
        """Notes, controllers and clocks as the corpus gave them."""
        with np.load(self.notes_path, allow_pickle=False) as stored:
            values = {name: stored[name] for name in stored.files}
        scalars = json.loads(str(values.pop("_json")))
        return Performance(**values, **scalars)


@dataclass
class Outcome:
    """What `prepare` did.

    Attributes:
        made: How many records were made now; the others were there already.
        failures: Record id and reason of those that are broken.
    """

    made: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


def corpus_folder(
    cache_dir: Path, corpus: Corpus, name: str, options: Mapping[str, Any], sample_rate: int | None
) -> Path:
    """Where the records of a corpus are kept: the name tells everything that shapes them.

    Args:
        cache_dir: Folder of all caches.
        corpus: The reader.
        name: Its name.
        options: What it was opened with.
        sample_rate: Of the prepared audio (Hz); None where there is none.
    """
    shaping = {key: value for key, value in options.items() if key != "weight"} | {"root": str(corpus.root.resolve())}
    reader = f"{type(corpus).__module__}.{type(corpus).__qualname__}"
    key = json.dumps([CACHE_VERSION, reader, corpus.version, sample_rate, shaping], sort_keys=True, default=str)
    return cache_dir / f"{name}-{sample_rate or 'notes'}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def prepare(
    records: Sequence[Record],
    folder: Path,
    sample_rate: int | None,
    workers: int | None = None,
    on_error: Literal["skip", "stop"] = "skip",
    report: Report | None = None,
) -> Outcome:
    """Make the prepared files of those records that have none.

    Args:
        records: Of one corpus.
        folder: Where the files go; see `corpus_folder`.
        sample_rate: Of the prepared audio (Hz); None prepares notes alone.
        workers: Processes; None for one per available core.
        on_error: Leave out a broken record and say so, or stop at the first.
        report: Is told about progress.

    Raises:
        DataError: A record is broken and `on_error` is "stop", a worker was killed, or nothing could be prepared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.part"):
        leftover.unlink(missing_ok=True)
    entries = [Prepared(record, folder / _file_name(record)) for record in records]
    pending = [entry for entry in entries if not entry.notes_path.exists()]
    outcome = Outcome()
    for done, (entry, error) in enumerate(_work(pending, sample_rate, workers), start=1):
        if error is None:
            outcome.made += 1
        elif on_error == "stop":
            raise DataError(f"{entry.record.corpus}/{entry.record.id}: {error}")
        else:
            outcome.failures.append((entry.record.id, error))
            logger.warning("%s/%s is left out: %s", entry.record.corpus, entry.record.id, error)
        if report is not None:
            report(done, len(pending), entry.record.id)
    if records and len(outcome.failures) == len(records):
        raise DataError(f"{records[0].corpus}: none of {len(records)} records can be used; {outcome.failures[0][1]}")
    return outcome


def prepared(records: Sequence[Record], folder: Path) -> list[Prepared]:
    """Those records that `prepare` has made, in their order."""
    entries = [Prepared(record, folder / _file_name(record)) for record in records]
    return [entry for entry in entries if entry.notes_path.exists()]


def _file_name(record: Record) -> str:
    """Id of the record and a digest of the files behind it, so that a changed file is prepared again."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in (record.midi, record.audio) if path]
    return f"{record.id[:150]}-{hashlib.sha256(json.dumps([record.id, stats]).encode()).hexdigest()[:8]}"


def _work(
    pending: Sequence[Prepared], sample_rate: int | None, workers: int | None
) -> Iterator[tuple[Prepared, str | None]]:
    """Prepare entries and yield each with what is wrong with it, or None, as they are done."""
    workers = min(workers or usable_cores(), len(pending))
    alone = workers <= 1 or len(pending) <= _ALONE
    # The first one is always made here, for it may make what all others share, such as the notes of a piano.
    for entry in pending if alone else pending[:1]:
        yield entry, _prepare_one(entry, sample_rate)
    if alone:
        return
    # Forked children would inherit torch's thread pool in an unusable state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running: dict[Future[str | None], Prepared] = {}
        todo = iter(pending[1:])
        try:
            while True:
                while len(running) < 2 * workers and (entry := next(todo, None)) is not None:
                    running[pool.submit(_prepare_one, entry, sample_rate)] = entry
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    error = future.result()
                    yield running.pop(future), error
        except BrokenProcessPool as error:
            names = ", ".join(entry.record.id for entry in list(running.values())[:workers])
            raise DataError(f"a worker was killed, perhaps for want of memory, at one of: {names}") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare_one(entry: Prepared, sample_rate: int | None) -> str | None:
    """Write the files of one record.

    Returns:
        What is wrong with the record, or None.
    """
    try:
        performance = entry.record.performance()
        if sample_rate is not None:
            waveform = entry.record.waveform(sample_rate).numpy()
            with replacing(entry.audio_path) as file:
                np.save(file, np.rint(np.clip(waveform, -1, 1) * 32767).astype(np.int16))
    except MidisynthError as error:
        return str(error)
    arrays = {}
    scalars = {}
    for item in fields(Performance):
        value = getattr(performance, item.name)
        (arrays if isinstance(value, np.ndarray) else scalars)[item.name] = value
    with replacing(entry.notes_path) as file:
        np.savez(file, _json=np.array(json.dumps(scalars)), **arrays)
    return None
