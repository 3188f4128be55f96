"""What is installed: models, data modules and corpora, as packages announce them through entry points.

Everything here reads package metadata; a plugin is imported only when it is asked for by name. A broken, slow or
hostile package can therefore neither delay nor stop a command that does not need it.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from midisynth.errors import PluginError, UsageError

if TYPE_CHECKING:
    from midisynth.datasets.corpus import Corpus

Group = Literal["models", "data", "corpora"]

DISTRIBUTION = "midisynth-lightning"
# What the entries of each group must be subclasses of, and what one of them is called in a message.
BASES: dict[Group, str] = {
    "models": "midisynth.module:MidiModule",
    "data": "midisynth.module:MidiDataModule",
    "corpora": "midisynth.datasets.corpus:Corpus",
}
NOUNS: dict[Group, str] = {"models": "model", "data": "data module", "corpora": "corpus"}

logger = logging.getLogger("midisynth.registry")


@dataclass(frozen=True)
class Entry:
    """One registered class and where it comes from.

    Attributes:
        group: Kind of class.
        name: The name users type.
        module: Module that defines or re-exports the class.
        attribute: Name of the class in that module.
        package: Distribution that registered it.
        version: Version of that distribution.
    """

    group: Group
    name: str
    module: str
    attribute: str
    package: str
    version: str

    @property
    def class_path(self) -> str:
        """Dotted path of the class."""
        return f"{self.module}.{self.attribute}"

    @property
    def target(self) -> str:
        """The class as its package's metadata spells it."""
        return f"{self.module}:{self.attribute}"

    @property
    def provenance(self) -> str:
        """Distribution and version."""
        return f"{self.package} {self.version}"

    def load(self) -> type:
        """Import the class.

        Raises:
            PluginError: It cannot be imported or is no subclass of the group's base class.
        """
        about = f"{NOUNS[self.group]} '{self.name}' of {self.provenance} ({self.target})"
        # A plugin may raise anything while it is imported, and some call sys.exit().
        try:
            loaded = _import(self.target)
        except (Exception, SystemExit) as error:
            raise PluginError(f"{about} cannot be imported: {type(error).__name__}: {_one_line(error)}") from error
        base = _import(BASES[self.group])
        if not (isinstance(loaded, type) and issubclass(loaded, base)):
            raise PluginError(f"{about} is not a subclass of {base.__name__}")
        return loaded


def entries(group: Group) -> tuple[Entry, ...]:
    """Every well-formed entry of a group, ours first, then by package and name.

    A malformed entry is left out and a name that is already taken keeps its first owner; both are logged as warnings,
    once.
    """
    return _scan(group, tuple(sys.path))


@cache
def _scan(group: Group, _search_path: tuple[str, ...]) -> tuple[Entry, ...]:
    found: dict[str, Entry] = {}
    for entry in sorted(_well_formed(group), key=lambda e: (e.package != DISTRIBUTION, e.package, e.name)):
        key = normalized(entry.name)
        if key in found:
            logger.warning(
                "%s '%s' of %s is ignored: the name belongs to %s",
                NOUNS[group],
                entry.name,
                entry.package,
                found[key].package,
            )
        else:
            found[key] = entry
    return tuple(found.values())


def _well_formed(group: Group) -> Iterator[Entry]:
    for point in entry_points(group=f"midisynth.{group}"):
        package = _normalized_distribution(point)
        # Asking a malformed entry point for its module raises, so the pattern is tried first.
        match = EntryPoint.pattern.match(point.value)
        if match is None or not match["attr"]:
            logger.warning(
                "%s '%s' of %s is ignored: '%s' is not of the form package.module:Class",
                NOUNS[group],
                point.name,
                package,
                point.value,
            )
            continue
        version = point.dist.version if point.dist is not None else "?"
        yield Entry(group, point.name, match["module"], match["attr"], package, version)


def _normalized_distribution(point: EntryPoint) -> str:
    if point.dist is None:
        return "?"
    return re.sub(r"[-_.]+", "-", point.dist.name).lower()


def entry(group: Group, name: str) -> Entry:
    """The entry that `name` means.

    Args:
        group: Kind of class.
        name: Entry-point name or class name; case, `_` and `-` do not matter. A dotted class path works as well when
            it belongs to an entry.

    Raises:
        PluginError: There is none; the message names the nearest and lists all.
    """
    available = entries(group)
    wanted = normalized(name)
    for spelling in (lambda e: e.name, lambda e: e.attribute):
        for candidate in available:
            if normalized(spelling(candidate)) == wanted:
                return candidate
    for candidate in available:
        if _is_class(candidate, name):
            return candidate
    names = [candidate.name for candidate in available]
    raise PluginError(
        f"no {NOUNS[group]} '{name}'{did_you_mean(name, names)} (installed: {', '.join(names) or 'none'})"
    )


def _is_class(found: Entry, path: str) -> bool:
    """Whether a dotted path means the class of an entry: as it was registered, or as checkpoints write it."""
    if found.class_path == path:
        return True
    if path.partition(".")[0] != found.module.partition(".")[0] or path.rpartition(".")[2] != found.attribute:
        return False
    loaded = found.load()
    return f"{loaded.__module__}.{loaded.__qualname__}" == path


def find(group: Group, name: str) -> str:
    """Dotted class path of a registered name; see `entry`."""
    return entry(group, name).class_path


def load(group: Group, name: str) -> type:
    """Class of a registered name.

    Raises:
        PluginError: Unknown name, or the class cannot be used.
    """
    return entry(group, name).load()


def open_corpus(name: str, options: Mapping[str, Any]) -> Corpus:
    """Open a corpus.

    Args:
        name: Registered name.
        options: Constructor arguments of its reader, `root` among them.

    Raises:
        PluginError: Unknown or broken corpus.
        UsageError: The reader does not take these options.
        midisynth.errors.DataError: The folder is not what the reader expects.
    """
    import inspect

    reader = load("corpora", name)
    accepted = inspect.signature(reader).parameters
    for option in options:
        if option not in accepted:
            raise UsageError(
                f"corpora.{name}: no option '{option}'{did_you_mean(option, accepted)} (known: {', '.join(accepted)})"
            )
    missing = [p.name for p in accepted.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise UsageError(f"corpora.{name}: {', '.join(missing)} is missing")
    return reader(**options)


def check(found: Entry) -> tuple[float, PluginError | None]:
    """Import one entry and say how long that took (seconds) and what is wrong with it, if anything."""
    started = time.perf_counter()
    try:
        found.load()
    except PluginError as error:
        return time.perf_counter() - started, error
    return time.perf_counter() - started, None


def plugin_packages() -> set[str]:
    """Top-level packages of everything registered."""
    return {found.module.partition(".")[0] for group in BASES for found in entries(group)}


def presets(found: Entry) -> dict[str, Path]:
    """Preset configurations of an entry, by name."""
    # Only parent packages are imported by find_spec, and for the top package there is none.
    spec = find_spec(found.module.partition(".")[0])
    folders = [Path(place) for place in (spec.submodule_search_locations if spec else None) or []]
    # The wheel carries the presets inside the package; in a clone they are in its sibling cfg/.
    for folder in [f / "cfg" / found.name for f in folders] + [f.parent / "cfg" / found.name for f in folders]:
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def preset(name: str) -> Path:
    """File of the preset `<entry>/<preset>`.

    Raises:
        PluginError: No such model.
        UsageError: The model has no such preset; the message lists those it has.
    """
    model, _, wanted = name.partition("/")
    found = entry("models", model)
    available = presets(found)
    if wanted not in available:
        raise UsageError(
            f"no preset '{wanted}' of '{found.name}'{did_you_mean(wanted, available)}"
            f" (available: {', '.join(f'{found.name}/{p}' for p in available) or 'none'})"
        )
    return available[wanted]


def normalized(name: str) -> str:
    """`name` without what does not matter when names are compared."""
    return name.replace("_", "").replace("-", "").lower()


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Ready-made part of a message: the candidate nearest to `name`, or nothing."""
    spellings = {normalized(candidate): candidate for candidate in candidates}
    nearest = difflib.get_close_matches(normalized(name), spellings, n=1)
    return f"; did you mean '{spellings[nearest[0]]}'?" if nearest else ""


def _import(target: str) -> Any:
    module, _, attribute = target.partition(":")
    loaded: Any = importlib.import_module(module)
    for part in attribute.split("."):
        loaded = getattr(loaded, part)
    return loaded


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
