"""What `predict` is asked to read, and where each result goes.

The name of an output depends on the names of the inputs alone, not on their order or on the process that renders them.
No two outputs share a name, also where the file system ignores case or composes accents, and none lies outside the
output folder.
"""

from __future__ import annotations

import glob
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from midisynth.errors import FileError, UsageError

#: Longer names are shortened. File systems take 255, and copies and companion files add some.
MAX_NAME_BYTES = 200


@dataclass(frozen=True)
class Source:
    """An input file.

    Attributes:
        path: The file, as the user or the search named it.
        folder: Where its output goes, relative to the output folder: the place in the folder that was searched.
    """

    path: Path
    folder: str = ""


@dataclass(frozen=True)
class Task:
    """One output to make.

    Attributes:
        source: The input file; None for a composer.
        output: Where the result goes.
        copy: Number of the output among those of the same input, from 0.
    """

    source: Path | None
    output: Path
    copy: int = 0


def expand_inputs(inputs: Sequence[str], reads: Sequence[str]) -> tuple[list[Source], list[FileError]]:
    """Find the files that are meant.

    Folders are searched to the bottom, each real folder once, and give the files with a suffix in `reads`; patterns
    (`*`, `?`, `[`, `**`) likewise. A file that comes up twice counts once.

    Args:
        inputs: Files, folders and patterns.
        reads: Suffixes the model takes.

    Returns:
        The files, in the order of `inputs`, sorted within folders; and what is wrong with the rest.

    Raises:
        UsageError: All of it are files of a kind the model does not read.
    """
    found: dict[str, Source] = {}
    errors: list[FileError] = []
    foreign = 0
    for text in inputs:
        try:
            for source in _expand(Path(text).expanduser(), reads):
                found.setdefault(os.path.abspath(source.path), source)
        except _ForeignFileError as error:
            foreign += 1
            errors.append(error)
        except FileError as error:
            errors.append(error)
    if inputs and foreign == len(inputs):
        raise UsageError(str(errors[0]))
    return list(found.values()), errors


class _ForeignFileError(FileError):
    """The file is of a kind that the model does not read."""


def _expand(path: Path, reads: Sequence[str]) -> Iterator[Source]:
    try:
        if path.is_dir():
            yield from _nonempty(_search(path, reads), path, reads)
        elif path.is_file():
            if path.suffix.lower() not in reads:
                raise _ForeignFileError(path, f"is not read by this model, which reads {', '.join(reads)}")
            yield Source(path)
        elif path.exists():
            raise FileError(path, "is not a file")
        elif glob.has_magic(str(path)):
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            sources = [Source(match) for match in matches if match.is_file() and match.suffix.lower() in reads]
            yield from _nonempty(sources, path, reads)
        else:
            raise FileError(path, "no such file")
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise FileError(path, f"cannot be read ({error.strerror})") from error


def _nonempty(sources: Sequence[Source], path: Path, reads: Sequence[str]) -> Sequence[Source]:
    if not sources:
        raise FileError(path, f"no files with the suffix {' or '.join(reads)} there")
    return sources


def _search(root: Path, reads: Sequence[str]) -> list[Source]:
    """Files below a folder; links to folders are followed, but no folder is entered twice."""
    sources, seen = [], set()
    for folder, names, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        names.sort()
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix.lower() in reads and not name.startswith(".") and path.is_file():
                sources.append(Source(path, os.path.relpath(folder, root)))
    return sources


def plan(
    sources: Sequence[Source], output: str | os.PathLike[str] | None, writes: str, suffixes: Sequence[str], count: int
) -> list[Task]:
    """Decide where the results go.

    Args:
        sources: Input files.
        output: A file, if there is one output and its suffix is one that can be written; else a folder. None puts each
            output beside its input.
        writes: Suffix of the outputs.
        suffixes: Suffixes that a file named as `output` may have.
        count: Outputs for each input.

    Raises:
        UsageError: Several outputs cannot go into one file, or the suffix is wrong.
    """
    target = None if output is None else Path(output).expanduser()
    inputs = {_folded(source.path) for source in sources}
    if target is not None and _is_file_name(os.fspath(output or ""), target, suffixes):
        if len(sources) * count != 1:
            raise UsageError(f"--output {output}: {len(sources) * count} outputs need a folder, not a file")
        if _folded(target) in inputs:
            raise UsageError(f"--output {output}: that is the input, which would be lost")
        return [Task(source.path, target) for source in sources]
    outputs = [path.with_name(path.name + writes) for path in _unique_names(sources, target)]
    # A model that writes what it reads.
    outputs = [path.with_stem(f"{path.stem}-rendered") if _folded(path) in inputs else path for path in outputs]
    tasks = []
    for source, path in zip(sources, outputs, strict=True):
        for copy in range(count):
            tasks.append(Task(source.path, path if count == 1 else numbered(path, copy), copy))
    return tasks


def plan_pieces(
    output: str | os.PathLike[str] | None, name: str, writes: str, suffixes: Sequence[str], count: int
) -> list[Task]:
    """Decide where the pieces of a composer go; arguments as in `plan`.

    Args:
        output: A file or a folder; None is the working directory.
        name: What the pieces are called.
        writes: Suffix of the outputs.
        suffixes: Suffixes that a file named as `output` may have.
        count: Number of pieces.
    """
    target = Path(output or ".").expanduser()
    if _is_file_name(os.fspath(output or ""), target, suffixes):
        if count != 1:
            raise UsageError(f"--output {output}: {count} outputs need a folder, not a file")
        return [Task(None, target)]
    return [Task(None, numbered(target / (name + writes), copy), copy) for copy in range(count)]


def is_below(path: Path, folder: Path) -> bool:
    """Whether a file would really lie in a folder, or a link in its path leads elsewhere."""
    return Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(folder))


def numbered(path: Path, copy: int) -> Path:
    """Name of one of several outputs: `song.wav` -> `song-1.wav`."""
    return path.with_name(f"{path.stem}-{copy + 1}{path.suffix}")


def _is_file_name(text: str, target: Path, suffixes: Sequence[str]) -> bool:
    if text.endswith(os.sep) or target.is_dir() or not target.suffix:
        return False
    if target.suffix.lower() in suffixes:
        return True
    # A folder called "v1.2" is fine; "song.mp3" was meant as a file.
    if target.suffix.lower() in {".mp3", ".ogg", ".wav", ".flac", ".mid", ".midi", ".musicxml", ".m4a", ".aac"}:
        raise UsageError(f"--output {text}: this model writes {', '.join(suffixes)}, not {target.suffix}")
    return False


def _unique_names(sources: Sequence[Source], target: Path | None) -> list[Path]:
    """Paths of the outputs without suffix. Where names clash, more of the inputs' own paths goes into them."""
    shared = _common_parent(sources)

    def base(source: Source) -> Path:
        return source.path.parent if target is None else target / source.folder

    ways: tuple[Callable[[Source], Path], ...] = (
        lambda source: base(source) / source.path.stem,
        lambda source: (base(source) if target is None else target / _below(source, shared)) / source.path.stem,
        lambda source: (base(source) if target is None else target / _below(source, shared)) / source.path.name,
        lambda source: base(source) / f"{source.path.name}-{_digest(os.path.abspath(source.path))}",
    )
    paths = [_shortened(ways[0](source)) for source in sources]
    for way in ways[1:]:
        taken = Counter(_folded(path) for path in paths)
        for index, source in enumerate(sources):
            if taken[_folded(paths[index])] > 1:
                paths[index] = _shortened(way(source))
    return paths


def _below(source: Source, shared: str) -> str:
    return os.path.relpath(os.path.dirname(os.path.abspath(source.path)), shared)


def _common_parent(sources: Sequence[Source]) -> str:
    folders = [os.path.dirname(os.path.abspath(source.path)) for source in sources]
    return os.path.commonpath(folders) if folders else ""


def _folded(path: Path) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFC", os.path.join(os.path.realpath(path.parent), path.name)).casefold()


def _shortened(path: Path) -> Path:
    encoded = os.fsencode(path.name)
    if len(encoded) <= MAX_NAME_BYTES:
        return path
    start = encoded[: MAX_NAME_BYTES - 13].decode("utf-8", "ignore")
    return path.with_name(f"{start}-{_digest(path.name)}")


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:12]
