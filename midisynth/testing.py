"""The contract suite: what every model has to do, as tests that a plugin package runs in one line.

    from midisynth.testing import contract_suite
    TestSixth = contract_suite("sixth")

pytest collects the class. The tests use the preset `<name>/tiny` and small inputs that are generated here according to
what the model reads, so nothing but the installed package is needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import docstring_parser
import jsonargparse
import numpy as np
import pytest
import soundfile
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from midisynth import registry
from midisynth.audio.vocoder import Vocoder, VocoderStream
from midisynth.checkpoints import load_model
from midisynth.errors import MidisynthError
from midisynth.main import main
from midisynth.module import Item, MidiDataModule, MidiModule, Noise, Rendering
from midisynth.music.midi import read_midi
from midisynth.testing_inputs import example_inputs

ON_CPU = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false")
SILENCE = 1e-4  # peak below which a file counts as silent, -80 dB
BATCH_TOLERANCE = 1e-4


class ContractSuite:
    """The tests; `contract_suite` makes a subclass for one model.

    Attributes:
        name: Entry-point name of the model.
        arguments: What the command line of `fit` needs besides the preset.
    """

    name: ClassVar[str]
    arguments: ClassVar[tuple[str, ...]] = ()

    @pytest.fixture(scope="class")
    @classmethod
    def model_class(cls) -> type[MidiModule]:
        """The registered class."""
        return registry.load("models", cls.name)

    @pytest.fixture(scope="class")
    @classmethod
    def inputs(cls, model_class: type[MidiModule], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
        """Files that the model reads."""
        return example_inputs(model_class.reads, tmp_path_factory.mktemp("inputs"))

    @pytest.fixture(scope="class")
    @classmethod
    def checkpoint(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """What a fit of two batches saves; `EveryParameterLearns` watches it."""
        folder = tmp_path_factory.mktemp("fit")
        run(
            *("fit", f"--config={cls.name}/tiny", *cls.arguments, *ON_CPU),
            *("--trainer.max_steps=-1", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"),
            *(
                "--trainer.val_check_interval=1.0",
                "--trainer.check_val_every_n_epoch=1",
                "--trainer.limit_val_batches=1",
            ),
            f"--trainer.default_root_dir={folder}",
            "--trainer.callbacks+=midisynth.testing.EveryParameterLearns",
            *(
                "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
                f"--trainer.callbacks.dirpath={folder}",
            ),
            *("--trainer.callbacks.filename=contract", "--trainer.callbacks.every_n_train_steps=2"),
        )
        return folder / "contract.ckpt"

    def test_imports_without_gpu(self):
        """Every rank imports the plugin: without CUDA, without drawing random numbers, without writing files."""
        found = registry.entry("models", self.name)
        assert _imported(found.package)[self.name] == ""

    def test_is_registered(self, model_class: type[MidiModule]):
        """The model and its data module share a name, and say what the model reads and writes."""
        assert issubclass(model_class, MidiModule)
        assert issubclass(registry.load("data", self.name), MidiDataModule)
        assert model_class.writes.startswith(".")
        assert all(suffix.startswith(".") for suffix in model_class.reads)
        assert model_class.reads or not model_class.needs_input

    @pytest.mark.parametrize("group", ["models", "data"])
    def test_every_argument_is_documented(self, group: registry.Group):
        """The `Args:` of a class are the help of its options."""
        loaded = registry.load(group, self.name)
        texts = [base.__doc__ for base in loaded.__mro__ if base.__doc__]
        texts += [init.__doc__ for base in loaded.__mro__ if (init := vars(base).get("__init__")) and init.__doc__]
        parameters = [parameter for text in texts for parameter in docstring_parser.parse(text).params]
        documented = {parameter.arg_name for parameter in parameters if parameter.description}
        missing = set(inspect.signature(loaded).parameters) - documented
        assert not missing, f"{loaded.__name__}: undocumented: {', '.join(sorted(missing))}"

    def test_presets_build_and_round_trip(self, tmp_path: Path):
        """Every preset parses, prints a configuration that prints itself, and builds a model without memory."""
        presets = registry.presets(registry.entry("models", self.name))
        assert "tiny" in presets, f"there is no cfg/{self.name}/tiny.yaml"
        for preset in presets:
            printed = run("fit", f"--config={self.name}/{preset}", *self.arguments, "--print_config")
            (tmp_path / "printed.yaml").write_text(printed, encoding="utf-8")
            assert run("fit", f"--config={tmp_path / 'printed.yaml'}", "--print_config") == printed
            with torch.device("meta"):
                build_model(printed)

    def test_codec_is_a_function_of_the_file(self, inputs: list[Path]):
        """Encoding needs no training, draws nothing at random and gives the same twice."""
        codec = self._untrained().codec
        before = torch.get_rng_state()
        for path in inputs:
            encoded = codec.encode(path)
            assert isinstance(encoded, Mapping)
            assert same(encoded, codec.encode(path)), f"{path.name} is encoded differently the second time"
        assert torch.equal(before, torch.get_rng_state())

    def test_codec_inverts(self, inputs: list[Path]):
        """A codec that can decode gives the pitches back, in order, with their onsets within 20 ms."""
        codec = self._untrained().codec
        if not hasattr(codec, "decode"):
            pytest.skip("the codec has no decode()")
        for path in inputs:
            once = codec.decode(codec.encode(path)).notes
            notes = read_midi(path).notes
            wanted, got = (np.sort(n[["onset_sec", "pitch"]], order=["pitch", "onset_sec"]) for n in (notes, once))
            wanted = wanted[np.isin(wanted["pitch"], got["pitch"])]  # drums are no pitches to every codec
            np.testing.assert_array_equal(got["pitch"], wanted["pitch"])
            np.testing.assert_allclose(got["onset_sec"], wanted["onset_sec"], atol=0.02)

    def test_bad_input_is_an_error_for_users(self, model_class: type[MidiModule], tmp_path: Path):
        """Whatever is in a file, the codec raises nothing but `MidisynthError`."""
        codec = self._untrained().codec
        for suffix in model_class.reads:
            for content in (b"", b"<html>404</html>", b"MThd\x00\x00\x00\x06\x00\x01", bytes(range(256))):
                path = tmp_path / f"bad{suffix}"
                path.write_bytes(content)
                with pytest.raises(MidisynthError):
                    codec.encode(path)

    def test_fits(self, checkpoint: Path):
        """Two batches train with finite loss, every parameter gets a gradient, and a checkpoint is saved."""
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        assert saved["hyper_parameters"]["_class_path"]
        assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values() if tensor.is_floating_point())

    def test_checkpoint_restores_the_model(self, checkpoint: Path, model_class: type[MidiModule], tmp_path: Path):
        """A checkpoint alone gives the class, the options and the weights; saved again it is the same."""
        model = load_model(str(checkpoint))
        assert type(model) is model_class
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        assert same(dict(model.state_dict()), dict(saved["state_dict"]))
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
        trainer.strategy.connect(model)
        trainer.save_checkpoint(tmp_path / "again.ckpt", weights_only=True)
        assert same(dict(load_model(str(tmp_path / "again.ckpt")).state_dict()), dict(saved["state_dict"]))

    def test_predicts_the_same_twice(
        self, checkpoint: Path, inputs: list[Path], model_class: type[MidiModule], tmp_path: Path
    ):
        """From a checkpoint and a file to an output that is not silent; the same seed gives the same bytes."""
        words = [str(inputs[0])] if model_class.needs_input else ["--count=1"]
        for attempt in ("first", "second"):
            run("predict", *words, f"--ckpt_path={checkpoint}", f"--output={tmp_path / attempt}/", *ON_CPU)
        first, second = (
            sorted(path for path in (tmp_path / attempt).rglob(f"*{model_class.writes}"))
            for attempt in ("first", "second")
        )
        assert len(first) == len(second) == 1
        assert_sounds(first[0])
        assert first[0].read_bytes() == second[0].read_bytes()

    def test_batch_of_two_is_two_batches_of_one(
        self, checkpoint: Path, inputs: list[Path], monkeypatch: pytest.MonkeyPatch
    ):
        """What else is in the batch changes an output by no more than rounding."""
        model = load_model(str(checkpoint))
        if not model.needs_input:
            pytest.skip("a composer has no inputs to batch")
        part = model.part
        monkeypatch.setattr(
            model, "part", lambda name: ReadableVocoder(p) if isinstance(p := part(name), Vocoder) else p
        )
        chosen = inputs[:2]
        together = render(model, chosen)
        for position, path in enumerate(chosen):
            (alone,) = render(model, [path])
            assert_close(together[position], alone)

    def _untrained(self) -> MidiModule:
        return build_model(run("fit", f"--config={self.name}/tiny", *self.arguments, "--print_config"))


def contract_suite(name: str, *arguments: str) -> type[ContractSuite]:
    """Tests of one registered model and its data module.

    Args:
        name: Entry-point name.
        arguments: What `fit --config <name>/tiny` needs besides, such as a corpus that cannot ship with the plugin.

    Returns:
        A class for pytest; bind it to a name that starts with `Test`.
    """
    return type(f"Test_{name}", (ContractSuite,), {"name": name, "arguments": arguments})


class EveryParameterLearns(Callback):
    """Fails a fit in which the loss is not finite or a parameter never gets a gradient."""

    def __init__(self) -> None:
        self._without_gradient: set[str] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._without_gradient = {name for name, p in pl_module.named_parameters() if p.requires_grad}

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A branch behind a gate that starts at zero gets its first gradient in the second step.
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None and parameter.grad.abs().sum() > 0:
                self._without_gradient.discard(name)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if loss is not None and not torch.isfinite(loss):
            raise AssertionError(f"the loss of batch {batch_idx} is {float(loss)}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._without_gradient:
            raise AssertionError(f"no gradient in: {', '.join(sorted(self._without_gradient))}")


class ReadableVocoder(Vocoder):
    """Stands in for a vocoder when renderings are compared: its audio is the spectrogram, number for number.

    Griffin-Lim turns rounding errors of 1e-7 in a spectrogram into 1e-3 in the audio, so that audio cannot tell
    whether a model leaks from one item of a batch into another.

    Args:
        replaced: The vocoder whose place it takes.
    """

    def __init__(self, replaced: Vocoder):
        self.sample_rate, self.hop_samples, self.mels = replaced.sample_rate, replaced.hop_samples, replaced.mels

    def stream(self, seed: int = 0) -> VocoderStream:
        return _ReadableStream(self.hop_samples)


class _ReadableStream(VocoderStream):
    def __init__(self, hop_samples: int):
        self._hop_samples = hop_samples

    def push(self, mel: Tensor) -> Tensor:
        return torch.nn.functional.pad(mel, (0, self._hop_samples - mel.shape[1])).flatten()[None]

    def finish(self) -> Tensor:
        return torch.zeros(1, 0)


# What imports the models of a package, one after the other, says of each what is wrong with it.
IMPORT = """
import importlib, json, os, sys, torch
found = {}
for name, module, attribute in json.loads(sys.argv[1]):
    before = torch.get_rng_state()
    getattr(importlib.import_module(module), attribute)
    drawn = "" if torch.equal(before, torch.get_rng_state()) else "importing draws random numbers"
    cuda = "importing initialises CUDA" if torch.cuda.is_initialized() else ""
    found[name] = drawn or cuda or ("importing writes files" if os.listdir() else "")
print(json.dumps(found))
"""


@functools.cache
def _imported(package: str) -> dict[str, str]:
    """What goes wrong when the models of a distribution are imported in a process of their own, by entry; "" nothing.

    One process for all of them: its start takes longer than the imports.
    """
    entries = [(one.name, one.module, one.attribute) for one in registry.entries("models") if one.package == package]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", IMPORT, json.dumps(entries)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def run(*words: str) -> str:
    """Run a command of the command line in this process.

    Args:
        words: The command and its options.

    Returns:
        What it printed.
    """
    printed, complaints = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaints):
        code = main([*words, "--debug"])
    assert code == 0, f"midisynth {' '.join(words)}: exit code {code}\n{printed.getvalue()}{complaints.getvalue()}"
    return printed.getvalue()


def build_model(config: str) -> MidiModule:
    """Build the model of a configuration as `--print_config` writes it."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MidiModule, "model")
    return parser.instantiate(parser.parse_object({"model": yaml.safe_load(config)["model"]})).model


def render(model: MidiModule, paths: Sequence[Path], seed: int = 0) -> list[list[Rendering]]:
    """Render files as one batch, in this process and without writing.

    Args:
        model: In evaluation mode.
        paths: Input files.
        seed: The user's seed.

    Returns:
        The chunks of each file.
    """
    noise = Noise([Item(path, path.with_suffix(model.writes), path.name) for path in paths], seed)
    chunks: list[list[Rendering]] = [[] for _ in paths]
    with torch.inference_mode():
        for position, chunk in model.render(model.collate([model.codec.encode(path) for path in paths]), noise):
            chunks[position].append(chunk)
    return chunks


def assert_close(one: Sequence[Rendering], other: Sequence[Rendering]) -> None:
    """Two renderings of an item differ by rounding alone, however they are cut into chunks."""
    audio = [[chunk.audio for chunk in chunks if chunk.audio is not None] for chunks in (one, other)]
    assert bool(audio[0]) == bool(audio[1])
    if audio[0]:
        torch.testing.assert_close(torch.cat(audio[0], 1), torch.cat(audio[1], 1), rtol=0, atol=BATCH_TOLERANCE)
    notes = [[chunk.performance.notes for chunk in chunks if chunk.performance is not None] for chunks in (one, other)]
    for got, wanted in zip(*notes, strict=True):
        np.testing.assert_array_equal(got["pitch"], wanted["pitch"])
        np.testing.assert_allclose(got["onset_sec"], wanted["onset_sec"], atol=BATCH_TOLERANCE)


def assert_sounds(path: Path) -> None:
    """An audio file holds finite samples that are not silence; a MIDI file holds notes."""
    if path.suffix in (".mid", ".midi"):
        assert len(read_midi(path).notes), f"{path.name} holds no notes"
        return
    audio, sample_rate = soundfile.read(path)
    assert len(audio) and np.isfinite(audio).all()
    assert np.abs(audio).max() > SILENCE, f"{path.name} is silent ({len(audio) / sample_rate:.1f} s)"


def same(one: Any, other: Any) -> bool:
    """Equality of nested dataclasses, mappings and sequences of tensors, arrays and plain values."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        alike = isinstance(other, np.ndarray) and (one.dtype, one.shape) == (other.dtype, other.shape)
        # Bytes, because NaN in a field of a structured array is not equal to itself.
        return alike and one.tobytes() == other.tobytes()
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return type(one) is type(other) and same(vars(one), vars(other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and not isinstance(one, str | bytes):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))
