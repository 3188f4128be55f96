"""The console script `midisynth`.

This module answers help, version and the lists of what is installed from package metadata alone; torch and Lightning
are imported when a command that needs them starts.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence

import midisynth
from midisynth.errors import MidisynthError, UsageError
from midisynth.interrupts import Interrupts
from midisynth.registry import did_you_mean

TRAINER_COMMANDS = {
    "predict": "turn MIDI files, scores or nothing at all into music",
    "fit": "train a model",
    "validate": "run the validation loop of a checkpoint",
    "test": "run the test loop of a checkpoint",
}
SMALL_COMMANDS = {
    "prepare": "prepare training data: parallel, resumable",
    "import": "turn published weights into a checkpoint",
    "demo": "a web page on this machine that plays MIDI files",
    "models": "list the installed models",
    "data": "list the installed data modules",
    "corpora": "list the installed corpus readers, or what is in one",
}

HELP = f"""\
usage: midisynth COMMAND [options]
       midisynth --help | --version

Neural MIDI models, trained, tested and used in one way.

commands:
{{commands}}

examples:
  midisynth predict song.mid                             the model that ships -> song.wav
  midisynth predict midi/ --output renders/              every file of a folder
  midisynth predict song.mid --ckpt my.ckpt              your own checkpoint, no config needed
  midisynth fit --config MODEL/PRESET --data CORPUS --data.root DIR
  midisynth fit --model.help MODEL                       options of a model

`midisynth COMMAND --help` lists the options of a command; --debug shows tracebacks.
version {midisynth.__version__}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of this process when None.

    Returns:
        Exit code: 0; 1 when a run or some of its inputs failed; 2 for wrong usage; 130 and 143 after SIGINT and
        SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    with _log_on_stderr(debug), Interrupts() as interrupts:
        try:
            return _run(arguments, interrupts)
        except KeyboardInterrupt:
            return 130
        except SystemExit as stop:
            # Lightning leaves with status 1 after Ctrl+C and 0 after SIGTERM; schedulers need to know better.
            if interrupts.received is not None:
                return 128 + interrupts.received
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except MidisynthError as error:
            if debug:
                raise
            print(f"midisynth: error: {error}", file=sys.stderr)
            return 2 if isinstance(error, UsageError) else 1
        except Exception as error:
            if debug:
                raise
            text = " ".join(str(error).split())
            print(f"midisynth: error: {type(error).__name__}: {text} (--debug shows where)", file=sys.stderr)
            return 1


def _run(arguments: list[str], interrupts: Interrupts) -> int:
    if not arguments:
        print(_help(), file=sys.stderr)
        return 2
    command, *rest = arguments
    if command in ("-h", "--help", "help"):
        print(_help())
        return 0
    if command in ("-V", "--version"):
        print(f"midisynth {midisynth.__version__}")
        return 0
    if command in SMALL_COMMANDS and command != "prepare":
        from midisynth import commands

        return commands.run(command, rest)
    if command in TRAINER_COMMANDS or command == "prepare":
        from midisynth import cli

        return cli.run(command, rest, interrupts)
    known = {**TRAINER_COMMANDS, **SMALL_COMMANDS}
    raise UsageError(f"no command '{command}'{did_you_mean(command, known)} (commands: {', '.join(known)})")


def _help() -> str:
    known = {**TRAINER_COMMANDS, **SMALL_COMMANDS}
    return HELP.format(commands="\n".join(f"  {name:<10}{text}" for name, text in known.items()))


@contextlib.contextmanager
def _log_on_stderr(debug: bool) -> Iterator[None]:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("midisynth: %(levelname)s: %(message)s"))
    logger = logging.getLogger("midisynth")
    level = logger.level
    logger.addHandler(handler)
    if debug:
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
