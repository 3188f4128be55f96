"""What users type, turned into what jsonargparse needs, before it sees it.

Short names become class paths, presets become files, bare words become input files, a corpus becomes options of the
model's data module. jsonargparse knows only classes that are already imported, so this is done from metadata. Every
option is written as one word, `--key=value`, which leaves nothing to guess about what belongs to what.
"""

from __future__ import annotations

import json
import os
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from midisynth import registry
from midisynth.cli_errors import missing_model, shorten
from midisynth.errors import PluginError, UsageError

SHORT = {"-c": "config", "-o": "output", "-h": "help"}
ALIASES = {"ckpt": "ckpt_path", "songs": "count"}
# Options that take no value. A help option may take one, the class it is about.
FLAGS = {"help", "plot", "print_config", "repair", "skip_existing", "then_test", "transcribe"}
GROUP_OF: dict[str, registry.Group] = {"model": "models", "data": "data"}


@dataclass
class Arguments:
    """A command line in parts.

    Attributes:
        options: (key without dashes, value) in the order typed; the value is None where none was given.
        inputs: Input files: bare words and the values of `--inputs`.
    """

    options: list[tuple[str, str | None]] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)

    @classmethod
    def split(cls, tokens: Sequence[str]) -> Arguments:
        """Take a command line apart."""
        found = cls()
        position = 0
        while position < len(tokens):
            token = tokens[position]
            position += 1
            if token == "--":
                found.inputs += tokens[position:]
                break
            if not token.startswith("-") or token == "-":
                found.inputs.append(token)
                continue
            name, equals, inline = token.partition("=")
            key = _canonical(SHORT.get(name, name.lstrip("-")))
            value = inline if equals else None
            following = tokens[position] if position < len(tokens) else None
            takes_value = key not in FLAGS and following is not None and not _is_option(following)
            if value is None and takes_value:
                value = following
                position += 1
            if key == "inputs" and value is not None:
                found.inputs.append(value)
            else:
                found.options.append((key, value))
        return found

    def last(self, key: str) -> str | None:
        """The value of `key` that counts, or None."""
        return next((value for name, value in reversed(self.options) if name == key), None)

    def words(self) -> list[str]:
        """The command line again, for argparse."""
        words = [f"--{key}" if value is None else f"--{key}={value}" for key, value in self.options]
        return words + (["--inputs", *self.inputs] if self.inputs else [])


def _canonical(key: str) -> str:
    # Only the first part: further parts are parameters and names of other people.
    first, dot, rest = key.partition(".")
    first = first.replace("-", "_")
    return ALIASES.get(first, first) + dot + rest


def _is_option(token: str) -> bool:
    return token.startswith("--") or token.partition("=")[0] in SHORT


def class_path(group: registry.Group, value: str) -> str:
    """Class path of what a user wrote: a registered name, or a class path, which is returned as it is.

    Raises:
        PluginError: The name is not registered, or its class cannot be imported.
    """
    if "." in value or "/" in value:
        return value
    found = registry.entry(group, value)
    # Imported here because the message of the registry says whose class is broken; jsonargparse cannot know.
    found.load()
    return found.class_path


@dataclass(frozen=True)
class ConfigFile:
    """One configuration of the command line, as far as names matter here.

    Attributes:
        source: File, checkpoint, or "<inline>".
        content: Top level of the configuration, or of the part for the command.
    """

    source: str
    content: Mapping[str, Any]

    @classmethod
    def read(cls, value: str, command: str) -> ConfigFile | None:
        """Read what `--config` names; None for what only jsonargparse can complain about properly."""
        path = Path(value)
        # Unlike Path.is_file, this is False for an inline configuration that is longer than any path may be.
        is_file = os.path.isfile(value)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8") if is_file else value)
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return None
        if isinstance(content, dict) and isinstance(content.get(command), dict):
            content = content[command]
        return cls(value if is_file else "<inline>", content) if isinstance(content, dict) else None

    def class_of(self, key: str) -> str | None:
        """What the configuration says is the class of `model` or `data`."""
        value = self.content.get(key)
        if isinstance(value, dict):
            value = value.get("class_path")
        return value if isinstance(value, str) else None

    def check_names(self, parts: Iterable[str]) -> None:
        """Raise for a short name that nobody registered, naming the file.

        Args:
            parts: Out of "model" and "data".
        """
        for key in parts:
            group, name = GROUP_OF[key], self.class_of(key)
            if name is None:
                continue
            try:
                class_path(group, name)
            except PluginError as error:
                hint = ""
                if key == "data" and _is_registered("corpora", name):
                    hint = f"; {name} is a corpus: write it under data.init_args.corpora"
                raise PluginError(f"{self.source}: {key}: {error}{hint}") from error


def resolve_names(value: Any, commands: Sequence[str]) -> Any:
    """Short names of a loaded configuration as class paths.

    Args:
        value: What the YAML loader returned: a configuration, or the value of any option.
        commands: Commands whose configurations may be one level down.
    """
    if not isinstance(value, dict):
        return value
    result = dict(value)
    for command in commands:
        if isinstance(result.get(command), dict):
            result[command] = resolve_names(result[command], ())
    for key, group in GROUP_OF.items():
        options = result.get(key)
        options = {"class_path": options} if isinstance(options, str) else options
        name = options.get("class_path") if isinstance(options, dict) else None
        if isinstance(name, str) and "." not in name and _is_registered(group, name):
            result[key] = {**options, "class_path": registry.find(group, name)}
    return result


def _is_registered(group: registry.Group, name: str) -> bool:
    try:
        registry.entry(group, name)
    except PluginError:
        return False
    return True


def config_path(value: str) -> str:
    """The file that `--config` means: a preset `<entry>/<preset>`, or `value` itself.

    Raises:
        PluginError: No model of that name, for what can only be a preset.
        UsageError: The model has no such preset.
    """
    is_preset = value.count("/") == 1 and "\n" not in value and not value.endswith((".yaml", ".yml", ".json"))
    if not is_preset or os.path.exists(value) or value.startswith(("/", "{")):
        return value
    return str(registry.preset(value))


def expand(
    arguments: Arguments,
    command: str,
    read_checkpoint: Callable[[str], Mapping[str, Any]],
    default_checkpoint: Callable[[Sequence[str]], str],
    shipped_checkpoint: Callable[[str], str | None],
) -> Arguments:
    """Turn a command line as typed into one that is complete and in class paths.

    Args:
        arguments: As typed.
        command: The Trainer's method, or "prepare".
        read_checkpoint: Gives the configuration ("model", perhaps "data") that a checkpoint was trained with.
        default_checkpoint: Gives the checkpoint that ships for some input files.
        shipped_checkpoint: Gives the checkpoint that ships of a model, from its class path, if there is one.

    Raises:
        UsageError: Something cannot be resolved.
    """
    if arguments.inputs and command != "predict":
        raise UsageError(f"unexpected argument '{arguments.inputs[0]}': only predict takes input files")
    if command == "predict" and any(key.partition(".")[0] == "data" for key, _ in arguments.options):
        raise UsageError("data: predict reads the files you name and takes no data module")
    options = [(key, config_path(value) if key == "config" and value else value) for key, value in arguments.options]
    configs = [c for key, value in options if key == "config" and value and (c := ConfigFile.read(value, command))]
    parts = ("model",) if command == "predict" else ("model", "data")
    for config in configs:
        config.check_names(parts)
    options = _resolved(options, "model")

    front: list[tuple[str, str | None]] = []
    asks_help = any(key == "help" or key.endswith(".help") for key, _ in options)
    if command not in ("fit", "prepare") and not asks_help:
        checkpoint = Arguments(options).last("ckpt_path") or _from_configs("ckpt_path", configs)
        if command == "predict" and checkpoint is None and _stated("model", [], configs) is None:
            named = _stated("model", options, [])
            if named is None:
                checkpoint = default_checkpoint(arguments.inputs or _from_configs("inputs", configs) or [])
            else:
                checkpoint = shipped_checkpoint(named)
            if checkpoint is not None:
                options.append(("ckpt_path", checkpoint))
        if checkpoint is not None:
            # The data module of the training run may not even be installed where predict runs.
            trained = {part: config for part, config in read_checkpoint(checkpoint).items() if part in parts}
            configs.insert(0, ConfigFile(checkpoint, trained))
            front.append(("config", json.dumps(trained)))

    options = list(_expand_corpora(_expand_data(options, configs), configs))
    # A class in front lets a configuration that holds only its options be checked; the one in place still wins.
    front += [(key, value) for key, value in options if key in GROUP_OF and value]
    return Arguments(front + options, arguments.inputs)


def _names(key: str, part: str) -> bool:
    return key in (part, f"{part}.class_path", f"{part}.help")


def _resolved(options: Iterable[tuple[str, str | None]], part: str) -> list[tuple[str, str | None]]:
    group = GROUP_OF[part]
    return [(key, class_path(group, value) if _names(key, part) and value else value) for key, value in options]


def _from_configs(key: str, configs: Sequence[ConfigFile]) -> Any:
    return next((config.content[key] for config in reversed(configs) if config.content.get(key)), None)


def _stated(part: str, options: Sequence[tuple[str, str | None]], configs: Sequence[ConfigFile]) -> str | None:
    """The class of `model` or `data` that counts."""
    typed = [value for key, value in options if key in (part, f"{part}.class_path") and value]
    if typed:
        return typed[-1]
    return next((found for config in reversed(configs) if (found := config.class_of(part))), None)


def _expand_data(
    options: Sequence[tuple[str, str | None]], configs: Sequence[ConfigFile]
) -> list[tuple[str, str | None]]:
    """Resolve the names of `--data`, a corpus among them; without any, take the data module of the model."""
    named = _stated("data", options, [])
    if named is None:
        needs_class = any(key.startswith("data.") for key, _ in options) and _stated("data", [], configs) is None
        return [("data", _data_module(_stated("model", options, configs))), *options] if needs_class else list(options)
    if "." in named or _is_registered("data", named):
        return _resolved(options, "data")
    if _is_registered("corpora", named):
        return _expand_corpus(named, options, _data_module(_stated("model", options, configs)))
    names = dict.fromkeys(found.name for found in (*registry.entries("data"), *registry.entries("corpora")))
    hint = registry.did_you_mean(named, names)
    raise UsageError(f"data: no corpus or data module '{named}'{hint} (installed: {', '.join(names)})")


def _expand_corpus(corpus: str, options: Sequence[tuple[str, str | None]], module: str) -> list[tuple[str, str | None]]:
    """`--data CORPUS --data.root DIR` as options of the data module at class path `module`."""
    parameters = signature(registry.load("data", module)).parameters
    structure = {"class_path", "init_args", "help", *parameters}
    has_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    reader = registry.entry("corpora", corpus)
    readers_own = set(signature(reader.load()).parameters) - structure
    chosen: dict[str, str | None] = {}
    kept: list[tuple[str, str | None]] = []
    for key, value in options:
        owner, _, option = key.partition(".")
        first = option.partition(".")[0]
        # What neither knows goes to the reader, whose complaint is the more helpful one.
        if owner == "data" and first and (first in {corpus, *readers_own} or not (has_more or first in structure)):
            chosen[option.removeprefix(f"{corpus}.")] = value
        elif not (_names(key, "data") and value == corpus):
            kept.append((key, value))
    # Last, so that a corpus on the command line replaces those of a configuration.
    return [*kept, ("data", module), ("data.corpora", json.dumps({reader.name: _corpus_options(reader, chosen)}))]


def _expand_corpora(
    options: Iterable[tuple[str, str | None]], configs: Sequence[ConfigFile]
) -> Iterator[tuple[str, str | None]]:
    """Join `--data.corpora.NAME value` and `.NAME.OPTION value` into the one mapping of all corpora that jsonargparse
    takes.

    It replaces the mapping of a configuration, so it starts with what is there.
    """
    whole: dict[str, Any] = {}
    chosen: dict[str, dict[str, str | None]] = {}
    corpora = _configured_corpora(configs)
    for key, value in options:
        parts = key.split(".", 3)
        if len(parts) == 4 and parts[:2] == ["data", "corpora"]:
            chosen.setdefault(parts[2], {})[parts[3]] = value
            continue
        if len(parts) == 3 and parts[:2] == ["data", "corpora"] and value is not None:
            loaded = yaml.safe_load(value)
            whole[parts[2]] = loaded if loaded is None or isinstance(loaded, dict) else value
            continue
        if key == "data.corpora" and isinstance(typed := yaml.safe_load(value or ""), dict):
            corpora = typed
        yield key, value
    corpora |= whole
    for name, values in chosen.items():
        known = corpora.get(name) or {}
        known = {"root": known} if isinstance(known, str) else known
        corpora[name] = known | _corpus_options(registry.entry("corpora", name), values)
    if chosen or whole:
        yield "data.corpora", json.dumps(corpora)


def _configured_corpora(configs: Sequence[ConfigFile]) -> dict[str, Any]:
    """The corpora of the last configuration that has some."""
    for config in reversed(configs):
        place: Any = config.content
        for key in ("data", "init_args", "corpora"):
            place = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, dict):
            return dict(place)
    return {}


def _corpus_options(reader: registry.Entry, typed: Mapping[str, str | None]) -> dict[str, Any]:
    """Values of a corpus' options, in the types that its reader declares."""
    hints = get_type_hints(reader.load().__init__)
    parser = ArgumentParser(exit_on_error=False)
    for option in typed:
        if option not in hints:
            hint = registry.did_you_mean(option, hints)
            raise UsageError(f"data.{option}: {reader.name} has no such option{hint} (known: {', '.join(hints)})")
        parser.add_argument(f"--{option}", type=hints[option])
    words = [f"--{option}" if value is None else f"--{option}={value}" for option, value in typed.items()]
    try:
        values = parser.parse_args(words)
    except ArgumentError as error:
        raise UsageError(f"data.{shorten(str(error), parser)}") from error
    return {option: values[option] for option in typed}


def _data_module(model: str | None) -> str:
    """Class path of the data module that belongs to a model (same entry-point name)."""
    if model is None:
        raise UsageError(missing_model())
    return registry.find("data", registry.entry("models", model).name)
