"""The small commands, which need no Trainer: models, data, corpora, import."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from midisynth import registry
from midisynth.errors import FileError, PluginError, UsageError

if TYPE_CHECKING:
    from midisynth.module import MidiModule


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.format_usage().strip()})")


def run(command: str, tokens: Sequence[str]) -> int:
    """Run one of the small commands.

    Args:
        command: Its name.
        tokens: The command line after it.

    Returns:
        Exit code.

    Raises:
        midisynth.errors.MidisynthError: The command line or a file is wrong.
    """
    if command == "import":
        return _import(tokens)
    return _list(command, tokens)


LISTS: dict[str, str] = {
    "models": "List the installed models and the packages they come from.",
    "data": "List the installed data modules and the packages they come from.",
    "corpora": "List the installed corpus readers and the packages they come from.",
}


def _list(group: registry.Group, tokens: Sequence[str]) -> int:
    parser = _Parser(prog=f"midisynth {group}", description=LISTS[group])
    parser.add_argument("--check", action="store_true", help="import each and say what is wrong with it")
    options = parser.parse_args(tokens)
    found = registry.entries(group)
    rows = [(entry.name, entry.provenance, entry.target) for entry in found]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    broken = False
    for entry, row in zip(found, rows, strict=True):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        if not options.check:
            print(line.rstrip())
            continue
        seconds, error = registry.check(entry)
        broken |= error is not None
        state = _about(entry) if error is None else f"BROKEN {_cause(error)}"
        print(f"{line}  {state}  ({seconds:.1f} s)", flush=True)
    return int(broken)


def _cause(error: PluginError) -> str:
    cause = error.__cause__
    return str(error) if cause is None else f"{type(cause).__name__}: {' '.join(str(cause).split())}"


def _about(entry: registry.Entry) -> str:
    if entry.group != "models":
        return "ok"
    model: type[MidiModule] = entry.load()
    reads = " ".join(model.reads) if model.needs_input else "nothing"
    return f"ok  {reads} -> {model.writes}"


def _import(tokens: Sequence[str]) -> int:
    parser = _Parser(
        prog="midisynth import", description="Turn weights as their authors published them into a checkpoint."
    )
    parser.add_argument("model", metavar="MODEL", help="name of the model")
    parser.add_argument("file", metavar="FILE", type=Path, help="published weights")
    parser.add_argument("-o", "--output", type=Path, required=True, help="checkpoint to write")
    options = parser.parse_args(tokens)
    if not options.file.exists():
        raise FileError(options.file, "no such file")
    entry = registry.entry("models", options.model)
    load: Callable[[Path], MidiModule] = entry.load().load_published
    model = load(options.file)

    from lightning.pytorch import Trainer

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(model)
    unfinished = options.output.with_name(f".{options.output.name}.{os.getpid()}")
    try:
        trainer.save_checkpoint(unfinished, weights_only=True)
        os.replace(unfinished, options.output)
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"{options.output}: {entry.name}, {sum(p.numel() for p in model.parameters()):,} parameters")
    return 0
