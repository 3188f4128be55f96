"""The Trainer's commands: fit, validate, test, predict, and prepare, which shares their options.

One `LightningCLI` with `MidiModule` and `MidiDataModule` in subclass mode. `midisynth.arguments` has turned names into
class paths by the time its parser runs. Differences from plain LightningCLI: only the parser of the requested command
is built, a checkpoint never overrides the command line, and predict needs neither a configuration nor a data module.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NoReturn

import torch
import yaml
from jsonargparse import Namespace, get_loader, set_loader, set_parsing_settings
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info

import midisynth
from midisynth import arguments, checkpoints, registry, render
from midisynth.cli_errors import OptionError, key_in, missing_data, shorten
from midisynth.errors import UsageError
from midisynth.interrupts import Interrupts
from midisynth.module import MidiDataModule, MidiModule
from midisynth.progress import InterruptedCheckpoint, PlainProgress

DESCRIPTIONS = {
    "fit": "Train a model. Checkpoints, metrics and the complete configuration go to lightning_logs/.",
    "validate": "Run the validation loop of a checkpoint, or of a model as it is initialised.",
    "test": "Run the test loop of a checkpoint, or of a model as it is initialised.",
    "predict": "Render files, folders or patterns with a checkpoint; without one, with the model that ships.",
    "prepare": "Prepare the data of a configuration for training; a second run continues where the first stopped.",
}
SCORE_OPTIONS = ("embeddings", "transcribe", "renderers", "report", "pictures")
COMMANDS = ("fit", "validate", "test", "predict")
PARSER_MODE = "midisynth"
# Packages whose classes a configuration may name besides those of plugins and those the user names.
TRUSTED = {"midisynth", "torch", "lightning"}
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def run(command: str, tokens: Sequence[str], interrupts: Interrupts) -> int:
    """Run a Trainer command, or "prepare".

    Args:
        command: Its name.
        tokens: The command line after it.
        interrupts: Signals of this process.

    Returns:
        Exit code; 1 when some inputs of predict failed.

    Raises:
        midisynth.errors.MidisynthError: The command line, a checkpoint or data are wrong.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_without_advertising)
    # Lightning with torch 2.13: nothing that a user could do anything about.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    set_loader(PARSER_MODE, _load_yaml, exceptions=(yaml.YAMLError,))
    typed = arguments.Arguments.split(tokens)
    named = _named_packages(typed, command)
    # A configuration can name any function of any installed package as a class. What users write themselves, on the
    # command line or in their files, they may; the class path of a model can also come from a stranger's checkpoint.
    allowed = sorted(TRUSTED | registry.plugin_packages() | named)
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)
    complete = arguments.expand(
        typed,
        command,
        partial(checkpoints.trained_config, trusted=named),
        render.default_checkpoint,
        checkpoints.shipped_for,
    )
    try:
        return MidiCLI(command, complete, interrupts).exit_code
    finally:
        # Left to the end of the interpreter, gloo's threads sometimes abort the process (SIGABRT) after all is done.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _load_yaml(text: str) -> Any:
    return arguments.resolve_names(get_loader("yaml")(text), COMMANDS)


def _without_advertising(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


def _named_packages(typed: arguments.Arguments, command: str) -> set[str]:
    """Top-level packages that users themselves name on the command line and in their configuration files."""
    named: set[str] = set()
    for key, value in typed.options:
        if value is not None:
            named |= _packages(value)
        if key == "config" and value is not None:
            config = arguments.ConfigFile.read(arguments.config_path(value), command)
            named |= _packages(config.content) if config is not None else set()
    return named - sys.stdlib_module_names - {"jsonargparse"}


def _packages(value: Any) -> set[str]:
    """Top-level packages of everything in `value` that looks like a dotted path."""
    if isinstance(value, str):
        return {value.partition(".")[0]} if DOTTED.fullmatch(value) else set()
    if isinstance(value, Mapping):
        value = list(value.values())
    return set().union(*map(_packages, value)) if isinstance(value, list) else set()


class Parser(LightningArgumentParser):
    """Parser whose errors are one cause long."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise shorten(message, parser) from ex


class TrainingConfig(SaveConfigCallback):
    """Saves the configuration of a training, which every command can read."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any):
        config = config.clone()
        for name in ("then_test", *SCORE_OPTIONS):
            config.pop(name, None)
        super().__init__(parser, config, **kwargs)


class MidiCLI(LightningCLI):
    """One run of one command.

    Args:
        command: The Trainer's method, or "prepare".
        complete: Its command line, from `midisynth.arguments.expand`.
        interrupts: Signals of this process.

    Attributes:
        exit_code: What the process should return.
    """

    def __init__(self, command: str, complete: arguments.Arguments, interrupts: Interrupts):
        self.command = command
        self.exit_code = 0
        self._complete = complete
        self._words = complete.words()
        self._interrupts = interrupts
        defaults: dict[str, Any] = {"use_distributed_sampler": False}
        if command != "fit":
            defaults |= {"logger": False, "enable_checkpointing": False}
        parser_options = {
            "parser_mode": PARSER_MODE,
            "dump_header": [f"midisynth=={midisynth.__version__}"],
            "usage": f"midisynth {command} {'[FILE ...] ' if command == 'predict' else ''}[options]",
            "description": DESCRIPTIONS[command],
        }
        super().__init__(
            MidiModule,
            MidiDataModule,
            save_config_callback=TrainingConfig if command == "fit" else None,
            save_config_kwargs={"overwrite": True},
            trainer_defaults=defaults,
            # Rendering seeds each item by itself.
            seed_everything_default=0 if command in ("fit", "validate", "test") else False,
            # The keys of a Trainer's command go to its own parser.
            parser_kwargs={"prog": "midisynth", **parser_options}
            | ({} if command == "prepare" else {command: dict(parser_options)}),
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=command != "prepare",
            auto_configure_optimizers=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The requested command alone; building the others would cost time and gain nothing."""
        skipped = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
        # Checkpoints are never unpickled, and predictions go to files.
        return {self.command: skipped | {"weights_only", "return_predictions"}} if self.command != "prepare" else {}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """As in LightningCLI, but without requiring data: a model may have its own, and predict needs none."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in self.trainer_defaults.items()})
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=True)
        if self.command == "predict":
            # A configuration for training may have it. The module may be missing here, or lack a corpus: no matter.
            parser.add_argument("--data", type=Any, default=None, help=SUPPRESS)
        else:
            parser.add_lightning_class_args(self._datamodule_class, "data", subclass_mode=True, required=False)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that the Trainer does not know, before its own, so that help shows them first."""
        super().add_default_arguments_to_parser(parser)
        if self.command == "prepare":
            parser.add_argument("--workers", type=int | None, default=None, help="processes; all cores when not given")
        if self.command in ("fit", "test"):
            self._add_score_options(parser)
        if self.command != "predict":
            return
        group = parser.add_argument_group("Inputs and outputs")
        group.add_argument(
            "--inputs", type=str, nargs="+", help="files, folders or patterns; `--inputs` may be left out"
        )
        group.add_argument(
            "-o", "--output", type=str | None, default=None, help="output file, or folder; beside the input by default"
        )
        group.add_argument("--count", type=int, default=1, help="outputs for each input, or pieces to compose")
        group.add_argument("--plot", action="store_true", help="draw a picture beside each output")
        group.add_argument("--seed", type=int, default=0, help="the same seed gives the same output")
        group.add_argument(
            "--batch_size",
            type=int | None,
            default=None,
            help="inputs or pieces that are made together; 1, or more for models that compose, when not given",
        )
        group.add_argument("--skip_existing", action="store_true", help="leave finished outputs alone")
        group.add_argument(
            "--on_error", type=Literal["continue", "stop"], default="continue", help="what to do when an input fails"
        )
        group.add_argument("--repair", action="store_true", help="read what is left of damaged files")
        group.add_argument(
            "--max_duration", type=float, default=7200.0, help="longest input that is accepted (seconds)"
        )

    def _add_score_options(self, parser: LightningArgumentParser) -> None:
        fitting = self.command == "fit"
        condition = ", with --then_test" if fitting else ""
        # What belongs to a test has no place in the configuration of a training, which other commands read as well.
        absent = SUPPRESS if fitting else None
        if fitting:
            parser.add_argument(
                "--then_test",
                action="store_true",
                default=SUPPRESS,
                help="test the best checkpoint, or the last weights where nothing is monitored, with the next options",
            )
        group = parser.add_argument_group(f"Scores of audio{condition}")
        group.add_argument(
            "--embeddings",
            type=dict[str, str | None] | None,
            default=absent,
            help="networks for Frechet distances, by name: --embeddings.vggish FILE, --embeddings.NAME FILE.onnx",
        )
        group.add_argument(
            "--transcribe",
            action="store_true",
            default=SUPPRESS if fitting else False,
            help="score the notes that a transcriber hears",
        )
        group = parser.add_argument_group(f"Scores of performances{condition}")
        group.add_argument(
            "--renderers",
            type=dict[str, str] | None,
            default=absent,
            help="folders of MIDI files by other renderers, named after the pieces: --renderers.NAME FOLDER",
        )
        group = parser.add_argument_group(f"Scores{condition}")
        group.add_argument("--report", type=str | None, default=absent, help="JSON file for the scores")
        group.add_argument(
            "--pictures",
            type=int | None,
            default=absent,
            help="clips or pieces to draw; 3 where matplotlib is installed",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the prepared command line."""
        try:
            self.config = parser.parse_args(self._words if self.command == "prepare" else [self.command, *self._words])
        except OptionError as error:
            source = self._source(error.key)
            raise UsageError(f"{source}: {error}" if source else str(error)) from error

    def _source(self, key: str) -> str | None:
        """The configuration file that a wrong key comes from, or for no key one that is no YAML; None for neither."""
        options = self._complete.options
        if key and any(key == name or key.startswith(f"{name}.") for name, _ in options):
            return None  # typed
        configs = [value for name, value in reversed(options) if name == "config" and value]
        # Unlike Path.is_file, this is False for an inline configuration that is longer than any path may be.
        for file in filter(os.path.isfile, configs):
            config = arguments.ConfigFile.read(file, self.command)
            if key_in(config.content, key.split(".")) if key and config else not (key or config):
                return file
        return None

    def _parse_ckpt_path(self) -> None:
        # The hyper-parameters of a checkpoint are the first configuration on the command line already. Lightning would
        # merge them again, over what the user typed.
        return

    def instantiate_classes(self) -> None:
        """Build model, data module and Trainer, as far as the command needs them."""
        try:
            self._instantiate()
        except ValueError as error:
            # What jsonargparse makes of an exception of a constructor.
            raise shorten(str(error), self.parser) from error

    def _instantiate(self) -> None:
        if self.command == "predict":
            self.config.predict.data = None
        if self.command == "prepare":
            # Preparation asks the model for its codec alone, which needs no weights.
            self.config.trainer = Namespace()
            with torch.device("meta"):
                self.config_init = self.parser.instantiate_classes(self.config)
            self.model, self.datamodule = self._get(self.config_init, "model"), self._get(self.config_init, "data")
            return
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with our defaults where the configuration asks for Lightning's."""
        config = self._get(self.config_init, "trainer")
        fitting = self.command == "fit"
        callbacks = config.get("callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        if config.get("logger") in (None, True):
            config["logger"] = CSVLogger(save_dir=config.get("default_root_dir") or ".") if fitting else False
        if not fitting:
            # A configuration that was written for fit.
            config["enable_checkpointing"] = False
            callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
        elif config.get("enable_checkpointing") in (None, True):
            if not any(isinstance(callback, Checkpoint) for callback in callbacks):
                # Lightning's own, with one name that is always there to go on from.
                callbacks.append(ModelCheckpoint(save_last=True))
            callbacks.append(InterruptedCheckpoint(self._interrupts))
        if config.get("enable_progress_bar") in (None, True) and not any(isinstance(c, ProgressBar) for c in callbacks):
            # For predict, rendering puts its own in the place of this one.
            callbacks.append(RichProgressBar() if sys.stdout.isatty() else PlainProgress())
        if self.command == "test" or self._tests_later:
            callbacks += self._evaluations()
        config["callbacks"] = callbacks
        return super().instantiate_trainer(**kwargs)

    @property
    def _tests_later(self) -> bool:
        """Whether fit shall end with a test.

        Raises:
            UsageError: It shall not, but has options for one.
        """
        if self.command != "fit":
            return False
        if self.config.fit.get("then_test"):
            return True
        if given := [name for name in SCORE_OPTIONS if name in self.config.fit]:
            raise UsageError(f"{given[0]}: fit tests nothing without --then_test")
        return False

    def _evaluations(self) -> list[Callback]:
        from midisynth.evaluation import AudioEvaluation
        from midisynth.interpretations import InterpretationEvaluation
        from midisynth.summaries import SummaryEvaluation

        options = {name: self.config[self.command].get(name) for name in SCORE_OPTIONS}
        where = {"report": options["report"], "pictures": options["pictures"]}
        return [
            AudioEvaluation(options["embeddings"], bool(options["transcribe"]), **where),
            InterpretationEvaluation(options["renderers"], **where),
            SummaryEvaluation(**where),
        ]

    def after_fit(self) -> None:
        """Test what was trained, if that was asked for; training that was interrupted does not come here."""
        if not self._tests_later:
            return
        saved = self.trainer.checkpoint_callback
        best = saved.best_model_path if isinstance(saved, ModelCheckpoint) and saved.monitor is not None else ""
        if best:
            checkpoints.load_weights(self.model, best)
        rank_zero_info(f"testing {best or 'the weights at the end of training'}")
        self.trainer.test(self.model, datamodule=self.datamodule)

    def after_instantiate_classes(self) -> None:
        """Introduce the data module to the model and load the weights."""
        if self.datamodule is not None:
            self.datamodule.connect(self.model)
        elif self.command == "prepare" or (self.command == "fit" and not is_overridden("train_dataloader", self.model)):
            raise UsageError(missing_data())
        checkpoint = self._get(self.config, "ckpt_path")
        if self.command == "fit" and checkpoint is not None and checkpoint.endswith(".ckpt"):
            # Anything else is one of Lightning's words, such as "last".
            checkpoints.check_resumable(self.model, checkpoint)
        # Who gives a configuration may want to hear what an untrained model does, and a plugin's need no training.
        untold = checkpoint is None and not self._get(self.config, "config")
        if self.command == "predict" and untold and type(self.model).__module__.startswith("midisynth."):
            raise UsageError(
                f"no checkpoint ships for {type(self.model).__name__}; name one: --ckpt_path FILE (`midisynth fit` "
                "trains one, `midisynth import` makes one of published weights)"
            )
        if checkpoint is not None and self.command != "fit":
            checkpoints.load_weights(self.model, checkpoint)
            # Only fit goes on from where a checkpoint stopped; the others want the weights.
            self.config_init[self.command].ckpt_path = None
        if self.command == "prepare":
            self.datamodule.prepare(workers=self.config.workers)

    def predict(self, model: MidiModule, **_: Any) -> None:
        """Render the inputs and report what became of each."""
        options = self.config.predict
        report = render.predict(
            model,
            options.inputs or [],
            options.output,
            count=options.count,
            plot=options.plot,
            seed=options.seed,
            batch_size=options.batch_size,
            skip_existing=options.skip_existing,
            on_error=options.on_error,
            max_duration_sec=options.max_duration,
            repair=options.repair,
            trainer=self.trainer,
        )
        if self.trainer.is_global_zero:
            print(report.text())
        self.exit_code = int(bool(report.failed))
