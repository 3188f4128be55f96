"""The small commands, which need no Trainer: models, data, corpora, import, demo."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from midisynth import registry
from midisynth.errors import FileError, MidisynthError, PluginError, TensorMismatch, UsageError

if TYPE_CHECKING:
    from midisynth.datasets.corpus import Record
    from midisynth.module import MidiModule

logger = logging.getLogger("midisynth.corpora")


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
    if command == "demo":
        return _demo(tokens)
    if command == "corpora" and tokens and not tokens[0].startswith("-"):
        return _corpus(tokens[0], tokens[1:])
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


def _corpus(name: str, tokens: Sequence[str]) -> int:
    """Say what is in a corpus, and write its notes as MIDI files."""
    from jsonargparse import ArgumentParser

    from midisynth.cli_errors import shorten
    from midisynth.datasets.corpus import SPLITS

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise shorten(message, self) from ex

    reader = registry.entry("corpora", name).load()
    parser = Parser(prog=f"midisynth corpora {name}", description="Say what is in a corpus, and write its notes.")
    parser.add_argument("--midi", type=Path | None, help="folder for the notes of every record, as MIDI files")
    parser.add_class_arguments(reader)
    options = parser.parse_args(list(tokens)).as_dict()
    folder: Path | None = options.pop("midi")
    records = registry.open_corpus(name, options).records()
    for split in SPLITS:
        found = [record for record in records if record.split == split]
        print(f"{split:<12}{len(found):6} records of {len({record.piece for record in found})} pieces")
    return 0 if folder is None else _write_notes(records, folder)


def _write_notes(records: Sequence[Record], folder: Path) -> int:
    """Write the notes of records that can be read; 1 if some cannot."""
    from midisynth.music.midi import write_midi

    folder.mkdir(parents=True, exist_ok=True)
    broken = 0
    for record in records:
        try:
            write_midi(record.performance(), folder / f"{record.id}.mid")
        except MidisynthError as error:
            logger.warning("%s/%s is left out: %s", record.corpus, record.id, error)
            broken += 1
    print(f"{folder}: {len(records) - broken} MIDI files")
    return int(broken > 0)


def _import(tokens: Sequence[str]) -> int:
    parser = _Parser(
        prog="midisynth import", description="Turn weights as their authors published them into a checkpoint."
    )
    parser.add_argument("model", metavar="MODEL", help="name of the model")
    parser.add_argument("file", metavar="FILE", type=Path, help="published weights")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("-o", "--output", type=Path, help="checkpoint to write")
    task.add_argument("--check", action="store_true", help="list missing and unexpected tensors, and write nothing")
    options = parser.parse_args(tokens)
    if not options.file.exists():
        raise FileError(options.file, "no such file")
    entry = registry.entry("models", options.model)
    load: Callable[[Path], MidiModule] = entry.load().load_published
    try:
        model = load(options.file)
    except TensorMismatch as error:
        if not options.check:
            raise
        for what, names in (("missing", error.missing), ("unexpected", error.unexpected)):
            print(f"{len(names)} {what}", *names, sep="\n  ")
        return 1
    size = f"{entry.name}, {sum(p.numel() for p in model.parameters()):,} parameters"
    if options.check:
        print(f"{options.file}: {size}; no tensor is missing or unexpected")
        return 0

    from lightning.pytorch import Trainer

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(model)
    unfinished = options.output.with_name(f".{options.output.name}.{os.getpid()}")
    try:
        trainer.save_checkpoint(unfinished, weights_only=True)
        os.replace(unfinished, options.output)
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"{options.output}: {size}")
    return 0


def _demo(tokens: Sequence[str]) -> int:
    options = demo_options(tokens)

    from midisynth.demo import serve

    serve(options.port, options.ckpt_path)
    return 0


def demo_options(tokens: Sequence[str]) -> argparse.Namespace:
    """The options of `midisynth demo`.

    Raises:
        UsageError: The command line is wrong.
    """
    parser = _Parser(
        prog="midisynth demo", description="Serve a page on this machine, for this machine, that plays MIDI files."
    )
    parser.add_argument("--port", type=_port, default=7860, help="of 127.0.0.1 (default: %(default)s)")
    parser.add_argument(
        "--ckpt_path", "--ckpt", metavar="CKPT", help="checkpoint to offer beside those that ship (as in predict)"
    )
    return parser.parse_args(tokens)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 65535, got '{text}'")
    return int(text)
