"""Prepared data: what training reads again and again, decoded once.

A record becomes two files: mono 16-bit audio at the model's rate, which is memory-mapped, and its notes; or one file of
the arrays that a model's own `Encoder` makes of it. Each file appears whole under its name or not at all, the audio
first, so that a run that was killed continues where it was.

Stems are kept one by one and added up when they are read: the many mixes that can be made of a song's stems cost no
more room than these.
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
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch

from midisynth.datasets.corpus import Corpus, Record, mono_audio
from midisynth.datasets.files import replacing, usable_cores
from midisynth.errors import DataError, MidisynthError
from midisynth.music.notes import Performance

#: Raised when the form of the prepared files changes.
CACHE_VERSION = 1

#: Below so many records a pool of processes takes longer to start than it saves.
_ALONE = 8

#: Called with the number of finished records, the number of all, and the id of the last one.
Report = Callable[[int, int, str], None]

T = TypeVar("T")

logger = logging.getLogger("midisynth.data")


class Encoder(Protocol):
    """Makes what is kept of a record where audio and notes are not what a model trains on, such as codes or latents.

    It is pickled and sent to other processes.

    Attributes:
        key: Plain values that shape the result, a version among them: other values are another cache.
    """

    key: Mapping[str, Any]

    def __call__(self, record: Record) -> Mapping[str, np.ndarray]:
        """Arrays of one record by name.

        Raises:
            MidisynthError: The record is broken.
        """
        ...


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
        """Of the notes, or of the arrays of an `Encoder`."""
        return self.stem.with_name(self.stem.name + ".npz")

    @property
    def audio_paths(self) -> tuple[Path, ...]:
        """Files that sound together: one for each stem, or the one of the record."""
        if not self.record.stems:
            return (self.audio_path,)
        return tuple(self.stem.with_name(_stem_name(path)) for path in self.record.stems)

    def audio(self) -> np.ndarray | Mix:
        """Memory-mapped audio, int16 [samples], or [samples, 2] if the record is stereo; or stems that add up to it."""
        return Mix(self.audio_paths) if self.record.stems else np.load(self.audio_path, mmap_mode="r")

    def performance(self) -> Performance:
        """Notes, controllers and clocks as the corpus gave them."""
        values = self.arrays()
        scalars = json.loads(str(values.pop("_json")))
        return Performance(**values, **scalars)

    def arrays(self) -> dict[str, np.ndarray]:
        """What the `Encoder` returned for the record."""
        with np.load(self.notes_path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}


class Mix:
    """Prepared stems that sound together; reads like an array of mono audio.

    Args:
        paths: Their files.
    """

    def __init__(self, paths: Sequence[Path]):
        self._paths = paths

    def __len__(self) -> int:
        return max(len(_mapped(path)) for path in self._paths)

    def __getitem__(self, window: slice) -> np.ndarray:
        """The sum within a window, [samples] int32: many stems may be louder than 16 bits can say."""
        parts = [_mapped(path)[window] for path in self._paths]
        total = np.zeros(max(len(part) for part in parts), np.int32)
        for part in parts:
            total[: len(part)] += part
        return total


# Every mix of a song reads the same stems, and a process can map a limited number of files.
@lru_cache(maxsize=1024)
def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


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
    cache_dir: Path,
    corpus: Corpus,
    name: str,
    options: Mapping[str, Any],
    sample_rate: int | None,
    encode: Encoder | None = None,
) -> Path:
    """Where the records of a corpus are kept: the name tells everything that shapes them.

    Args:
        cache_dir: Folder of all caches.
        corpus: The reader.
        name: Its name.
        options: What it was opened with.
        sample_rate: Of the prepared audio (Hz); None where there is none.
        encode: Makes what is kept; None keeps audio and notes.
    """
    shaping = {key: value for key, value in options.items() if key != "weight"} | {"root": str(corpus.root.resolve())}
    reader = f"{type(corpus).__module__}.{type(corpus).__qualname__}"
    parts = [CACHE_VERSION, reader, corpus.version, sample_rate, shaping]
    kind: int | str = sample_rate or "notes"
    if encode is not None:
        kind = type(encode).__name__.lower()
        parts += [f"{type(encode).__module__}.{type(encode).__qualname__}", dict(encode.key)]
    key = json.dumps(parts, sort_keys=True, default=str)
    return cache_dir / f"{name}-{kind}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def prepare(
    records: Sequence[Record],
    folder: Path,
    sample_rate: int | None,
    workers: int | None = None,
    on_error: Literal["skip", "stop"] = "skip",
    report: Report | None = None,
    encode: Encoder | None = None,
) -> Outcome:
    """Make the prepared files of those records that have none.

    Args:
        records: Of one corpus.
        folder: Where the files go; see `corpus_folder`.
        sample_rate: Of the prepared audio (Hz); None prepares notes alone.
        workers: Processes; None for one per available core.
        on_error: Leave out a broken record and say so, or stop at the first.
        report: Is told about progress.
        encode: Makes what is kept; None keeps audio and notes.

    Raises:
        DataError: A record is broken and `on_error` is "stop", a worker was killed, or nothing could be prepared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.part"):
        leftover.unlink(missing_ok=True)
    entries = [Prepared(record, folder / _file_name(record)) for record in records]
    pending = [entry for entry in entries if not entry.notes_path.exists()]
    stems = _missing_stems(pending) if sample_rate is not None else {}
    total = len(stems) + len(pending)
    write = partial(_prepare_stem, sample_rate=sample_rate)
    # A stem that cannot be read is met again by its records, which then say so.
    for done, ((_, source), _) in enumerate(_work(list(stems.items()), write, workers, _source_name), start=1):
        if report is not None:
            report(done, total, source.name)
    outcome = Outcome()
    write = partial(_prepare_one, sample_rate=sample_rate) if encode is None else partial(_encode_one, encode=encode)
    for done, (entry, error) in enumerate(_work(pending, write, workers, _record_name), start=len(stems) + 1):
        if error is None:
            outcome.made += 1
        elif on_error == "stop":
            raise DataError(f"{entry.record.name}: {error}")
        else:
            outcome.failures.append((entry.record.id, error))
            logger.warning("%s/%s is left out: %s", entry.record.corpus, entry.record.id, error)
        if report is not None:
            report(done, total, entry.record.id)
    if records and len(outcome.failures) == len(records):
        raise DataError(f"{records[0].corpus}: none of {len(records)} records can be used; {outcome.failures[0][1]}")
    return outcome


def prepared(records: Sequence[Record], folder: Path) -> list[Prepared]:
    """Those records that `prepare` has made, in their order."""
    entries = [Prepared(record, folder / _file_name(record)) for record in records]
    return [entry for entry in entries if entry.notes_path.exists()]


def _file_name(record: Record) -> str:
    """Id of the record and a digest of the files behind it, so that a changed file is prepared again."""
    return f"{record.id[:150]}-{_digest([*record.files, *record.stems], record.id)[:8]}"


def _stem_name(path: Path) -> str:
    return f"stem-{path.stem[:100]}-{_digest([path])[:16]}.npy"


def _digest(paths: Sequence[Path], *more: str) -> str:
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([*more, stats]).encode()).hexdigest()


def _missing_stems(pending: Sequence[Prepared]) -> dict[Path, Path]:
    """Prepared file to recording of every stem that has not been prepared, each once."""
    stems = {
        target: source
        for entry in pending
        if entry.record.stems
        for target, source in zip(entry.audio_paths, entry.record.stems, strict=True)
    }
    return {target: source for target, source in stems.items() if not target.exists()}


def _record_name(entry: Prepared) -> str:
    return entry.record.id


def _source_name(stem: tuple[Path, Path]) -> str:
    return str(stem[1])


def _work(
    items: Sequence[T], task: Callable[[T], str | None], workers: int | None, name: Callable[[T], str]
) -> Iterator[tuple[T, str | None]]:
    """Carry out a task for every item and yield each with what is wrong with it, or None, as they are done."""
    workers = min(workers or usable_cores(), len(items))
    alone = workers <= 1 or len(items) <= _ALONE
    # The first one is always made here, for it may make what all others share, such as the notes of a piano.
    for item in items if alone else items[:1]:
        yield item, task(item)
    if alone:
        return
    # Forked children would inherit torch's thread pool in an unusable state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running: dict[Future[str | None], T] = {}
        todo = iter(items[1:])
        try:
            while True:
                while len(running) < 2 * workers and (item := next(todo, None)) is not None:
                    running[pool.submit(task, item)] = item
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    error = future.result()
                    yield running.pop(future), error
        except BrokenProcessPool as error:
            names = ", ".join(name(item) for item in list(running.values())[:workers])
            raise DataError(f"a worker was killed, perhaps for want of memory, at one of: {names}") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare_stem(stem: tuple[Path, Path], sample_rate: int) -> str | None:
    """Write one stem, given as prepared file and recording.

    Returns:
        What is wrong with the recording, or None.
    """
    target, source = stem
    try:
        _write_audio(target, mono_audio(source, sample_rate))
    except MidisynthError as error:
        return str(error)
    return None


def _write_audio(path: Path, waveform: torch.Tensor) -> None:
    with replacing(path) as file:
        # Time comes first, so that a stretch of it is one stretch of the file.
        np.save(file, np.ascontiguousarray(np.rint(np.clip(waveform.numpy().T, -1, 1) * 32767), np.int16))


def _prepare_one(entry: Prepared, sample_rate: int | None) -> str | None:
    """Write the files of one record.

    Returns:
        What is wrong with the record, or None.
    """
    try:
        performance = entry.record.performance()
        if sample_rate is not None and entry.record.stems:
            for stem in _missing_stems([entry]).items():
                if error := _prepare_stem(stem, sample_rate):
                    return error
        elif sample_rate is not None:
            _write_audio(entry.audio_path, entry.record.waveform(sample_rate))
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


def _encode_one(entry: Prepared, encode: Encoder) -> str | None:
    """Write what an encoder makes of one record.

    Returns:
        What is wrong with the record, or None.
    """
    try:
        arrays = encode(entry.record)
    except MidisynthError as error:
        return str(error)
    with replacing(entry.notes_path) as file:
        np.savez(file, **arrays)
    return None
