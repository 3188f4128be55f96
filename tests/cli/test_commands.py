"""The small commands and the help texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import midisynth as package
from midisynth import registry
from midisynth.main import SMALL_COMMANDS, TRAINER_COMMANDS

PRESETS = [f"{entry.name}/{name}" for entry in registry.entries("models") for name in registry.presets(entry)]


def test_help_names_every_command(midisynth):
    result = midisynth("--help")
    assert result.code == 0
    for command in [*TRAINER_COMMANDS, *SMALL_COMMANDS]:
        assert f"\n  {command}" in result.out
    assert midisynth().code == 2
    assert midisynth("--version").out == f"midisynth {package.__version__}\n"


@pytest.mark.parametrize("command", [*TRAINER_COMMANDS, *SMALL_COMMANDS])
def test_every_command_has_help(midisynth, command: str):
    result = midisynth(command, "--help")
    assert result.code == 0, result.err
    assert result.out.startswith(f"usage: midisynth {command}")


def test_help_of_predict_begins_with_its_own_options(midisynth):
    out = midisynth("predict", "--help").out
    options = ["--inputs", "--output", "--count", "--seed", "--batch_size", "--skip_existing", "--on_error"]
    positions = [out.index(f"\n  {option}") if f"\n  {option}" in out else out.index(option) for option in options]
    assert max(positions) < out.index("--trainer")
    assert "--data" not in out


def test_help_of_a_model_by_its_short_name(midisynth):
    for words in (["--model.help", "toy_tones"], ["--model.help=ToyTones"]):
        result = midisynth("fit", *words)
        assert result.code == 0, result.err
        assert "Width of the bottleneck." in result.out
        assert "--model.optimizer" in result.out


@pytest.mark.parametrize(("command", "entry"), [("models", "toy_tones"), ("data", "toy_tones"), ("corpora", "tones")])
def test_lists_tell_where_things_come_from(midisynth, command: str, entry: str):
    result = midisynth(command)
    assert result.code == 0
    (line,) = [line for line in result.out.splitlines() if line.startswith(f"{entry} ")]
    assert "midisynth-toy 1.2 midisynth_toy:" in " ".join(line.split())
    assert midisynth(command, "--chek").error.startswith("unrecognized arguments: --chek (usage: midisynth ")


def test_import_writes_a_checkpoint_that_predicts(midisynth, music: Path, tmp_path: Path):
    from midisynth_toy import ToyTones

    published = ToyTones(hidden_dim=3)
    save_file(published.network.state_dict(), tmp_path / "published.safetensors")
    result = midisynth("import", "toy_tones", "published.safetensors", "--output", "m.ckpt")
    assert result.code == 0, result.err
    assert result.out == "m.ckpt: toy_tones, 899 parameters\n"
    saved = torch.load(tmp_path / "m.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[key], value) for key, value in published.state_dict().items())
    words = ("--ckpt=m.ckpt", "--trainer.accelerator=cpu", "--trainer.enable_model_summary=false")
    assert midisynth("predict", music / "a.mid", *words).code == 0


def test_import_of_something_else_leaves_nothing(midisynth, tmp_path: Path):
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    result = midisynth("import", "toy_tones", "other.safetensors", "--output=m.ckpt")
    assert (result.code, result.error) == (1, "other.safetensors: not the published layout: 0.weight is missing")
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]
    assert midisynth("import", "toy_tones", "absent", "--output=m.ckpt").error == "absent: no such file"
    assert midisynth("import", "toy_tones", "absent").code == 2


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_parses(midisynth, preset: str):
    options = ["--data.corpora.folder.root=somewhere"] if "data:" in registry.preset(preset).read_text() else []
    result = midisynth("fit", f"--config={preset}", *options, "--print_config")
    assert result.code == 0, result.err
    # A part of a model, such as its neural codec, may have its preset beside the model's.
    folder, _, name = preset.partition("/")
    entry = f"{folder}_{name}" if f"{folder}_{name}" in {one.name for one in registry.entries("models")} else folder
    assert yaml.safe_load(result.out)["model"]["class_path"] == registry.find("models", entry)
