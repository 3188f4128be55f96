"""What jsonargparse says about a wrong configuration, in one line: the key, the cause, the nearest valid name.

Its own messages restate types, unions and values at every level; the cause is one line in the middle.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Sequence

from jsonargparse import ArgumentParser

from midisynth.errors import UsageError
from midisynth.registry import did_you_mean, entries

NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:$|Given value|"
    r"Expected a <class 'NoneType'>|Expected a path but .* not accessible or invalid"
)
KEY = re.compile(r'Parser key "([^"]+)":\s*(.*)')
CLASS = re.compile(r"Problem with given class_path '([^']+)':")


class OptionError(UsageError):
    """An option or a key of a configuration is wrong.

    Args:
        key: Dotted key, as on the command line; empty when no single key is to blame.
        cause: What is wrong with it.
    """

    def __init__(self, key: str, cause: str):
        self.key = key
        super().__init__(f"{key}: {cause}" if key else cause)


def shorten(message: str, parser: ArgumentParser) -> OptionError:
    """The error that a message of jsonargparse amounts to.

    Args:
        message: What jsonargparse passed to `ArgumentParser.error`.
        parser: The parser that met it; its options are the candidates for a correction.
    """
    if found := re.match(r"unrecognized arguments: --([^\s=]+)|.*does not accept option '([^']+)'", message):
        return _unknown_option(found[1] or found[2], parser)
    if found := re.match(r"the following arguments are required: (?:fit|validate|test|predict)?\.?(\S+)", message):
        return OptionError("", missing_model()) if found[1] == "model" else OptionError(found[1], "missing")
    if message.startswith("Problems parsing config: "):
        return OptionError("", f"not valid YAML: {_joined(message.partition(': ')[2])}")

    keys, owner, causes = _walk(message)
    key, text = ".".join(keys), "; ".join(dict.fromkeys(causes)) or _joined(message)
    if found := re.fullmatch(r"the following arguments are required: (.+)", text):
        return OptionError(
            "", missing_data() if key == "data" and found[1] == "corpora" else f"{key}: {found[1]} missing"
        )
    if found := re.search(r"Option '([^']+)' is not accepted", text):
        nested = re.search(r"class_path='([\w.]+)'", text)
        owner = nested[1] if nested else owner
        hint = did_you_mean(found[1].split(".")[0], _parameters(owner))
        return OptionError(f"{key}.{found[1]}", f"{owner} has no such option{hint}")
    if found := re.search(r"Importing '([^']+)' is not allowed", text):
        return OptionError(
            key, f"class '{found[1]}' is not allowed: no installed plugin provides it, and you did not name it yourself"
        )
    if found := re.search(r"No module named '([^']+)'", text):
        return OptionError(key, f"no module named '{found[1]}'; install the package that provides it")
    if found := re.search(r"module '([^']+)' has no attribute '([^']+)'", text):
        hint = did_you_mean(found[2], [name for name in dir(importlib.import_module(found[1])) if name[0] != "_"])
        return OptionError(key, f"{found[1]} has no '{found[2]}'{hint}")
    return OptionError(key, _expectation(text, message))


def _unknown_option(option: str, parser: ArgumentParser) -> OptionError:
    names = [string.lstrip("-") for action in parser._actions for string in action.option_strings]
    first = option.partition(".")[0]
    if first in ("model", "data"):
        return OptionError(option, f"name the class first: --{first} NAME")
    # A misspelt first part hides what follows: `modl.class_path` is about `model`.
    hint = did_you_mean(option, names) or did_you_mean(first, names)
    return OptionError(option, f"no such option{hint}")


def _walk(message: str) -> tuple[list[str], str, list[str]]:
    """Keys from the outside in, the innermost class, and the lines that state a cause."""
    keys: list[str] = []
    causes: list[str] = []
    owner = ""
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if found := KEY.match(text):
            keys.append(found[1])
            text = found[2]
        if found := CLASS.match(text):
            owner = found[1]
        elif text and not NOISE.match(text):
            causes.append(text)
    return keys, owner, causes


def _expectation(text: str, message: str) -> str:
    """`Expected a <class 'int'>. Got value: x` in plain words."""
    found = re.findall(r"Expected an? (.+?)(?:\. Got value: (.*?))?(?:; (?=Expected)|$)", text)
    if not found:
        return text
    got = next((value for _, value in found if value), None)
    if got is None and (given := re.search(r"Given value: (?:NestedArg\(.*val='(.*)'\)|(.*))$", message)):
        got = given[1] or given[2]
    names: list[str] = []
    literals: list[str] = []
    for kind, _ in found:
        if literal := re.fullmatch(r"typing\.Literal\[(.*)\]", kind):
            literals += [text or number for text, number in re.findall(r"'([^']*)'|(-?\d+)", literal[1])]
        else:
            names.append(re.sub(r"<class '([^']+)'>", r"\1", kind))
    expected = " or ".join([f"one of {', '.join(literals)}"] * bool(literals) + names)
    return f"expected {expected}, got '{got}'{did_you_mean(got or '', literals)}"


def _parameters(class_path: str) -> Iterable[str]:
    module, _, name = class_path.rpartition(".")
    return inspect.signature(getattr(importlib.import_module(module), name)).parameters


def _joined(text: str) -> str:
    return " ".join(text.split())


def key_in(content: object, key: Sequence[str]) -> bool:
    """Whether a loaded configuration has a value at `key`, whose parts may skip `init_args`."""
    if not key:
        return True
    if not isinstance(content, dict):
        return False
    if key[0] in content:
        return key_in(content[key[0]], key[1:])
    return key_in(content.get("init_args"), key)


def missing_data() -> str:
    """Message for a command line that names no training data."""
    names = ", ".join(found.name for found in entries("corpora"))
    return f"name the data: --data CORPUS --data.root DIR (installed: {names})"


def missing_model() -> str:
    """Message for a command line that names no model."""
    names = ", ".join(found.name for found in entries("models"))
    return f"name a model: --model NAME, or --config MODEL/PRESET (installed: {names})"
