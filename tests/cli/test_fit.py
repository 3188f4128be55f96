"""fit, validate, test and prepare in this process."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import pytest
import torch
import yaml

ON_CPU = ("--trainer.accelerator=cpu", "--trainer.enable_model_summary=false")


def printed(result) -> dict:
    assert result.code == 0, result.err
    return yaml.safe_load(result.out)


@pytest.fixture
def fitted(midisynth, music: Path, tmp_path: Path) -> Path:
    """A checkpoint of the toy model."""
    result = midisynth(
        *("fit", "--config=toy_tones/tiny", "--data=tones", f"--data.root={music}", "--model.hidden_dim=5"),
        *("--trainer.default_root_dir", tmp_path, *ON_CPU),
    )
    assert result.code == 0, result.err
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    return checkpoint


def test_fit_logs_to_csv_and_saves_config_and_checkpoint(fitted: Path):
    folder = fitted.parents[1]
    assert folder.name == "version_0"
    assert "val/loss" in (folder / "metrics.csv").read_text()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["class_path"] == "midisynth_toy.ToyTones"
    assert config["model"]["init_args"]["hidden_dim"] == 5
    saved = torch.load(fitted, weights_only=True)
    assert saved["hyper_parameters"]["hidden_dim"] == 5
    assert saved["hyper_parameters"]["_class_path"] == "midisynth_toy.ToyTones"


def test_fit_shows_plain_lines_without_a_terminal_and_no_advertising(midisynth, music: Path):
    words = ("fit", "--config=toy_tones/tiny", "--data=tones", f"--data.root={music}", "--trainer.max_steps=1")
    result = midisynth(*words, *ON_CPU)
    assert "stopped at step 1: " in result.err
    assert "\x1b" not in result.out + result.err
    assert "Tip" not in result.out + result.err
    assert "tensorboard" not in (result.out + result.err).lower()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_print_config_round_trip(midisynth, music: Path, tmp_path: Path, command: str):
    inputs = ["a.mid", "b c.mid"] if command == "predict" else []
    data = [] if command == "predict" else ["--data=tones", f"--data.root={music}"]
    words = ("--config=toy_tones/tiny", *data, "--model.lr_scheduler")
    first = midisynth(
        *(command, *inputs, *words, "torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=3"),
        "--print_config",
    )
    assert printed(first)["model"]["init_args"]["lr_scheduler"]["init_args"]["step_size"] == 3
    (tmp_path / "c.yaml").write_text(first.out)
    second = midisynth(command, "--config=c.yaml", "--print_config")
    assert list(difflib.unified_diff(first.out.splitlines(), second.out.splitlines())) == []
    assert first.out == second.out


def test_order_of_model_and_config_does_not_matter(midisynth, tmp_path: Path):
    (tmp_path / "x.yaml").write_text("model:\n  init_args:\n    hidden_dim: 7\n")
    one = midisynth("fit", "--model", "toy_tones", "--config", "x.yaml", "--print_config")
    two = midisynth("fit", "--config", "x.yaml", "--model", "toy_tones", "--print_config")
    assert printed(one)["model"]["init_args"]["hidden_dim"] == 7
    assert one.out == two.out


def test_the_command_line_overrides_a_preset(midisynth):
    config = printed(midisynth("fit", "--config=toy_tones/tiny", "--model.hidden_dim=9", "--print_config"))
    assert config["model"] | {"init_args": None} == {"class_path": "midisynth_toy.ToyTones", "init_args": None}
    assert config["model"]["init_args"]["hidden_dim"] == 9
    assert config["data"]["init_args"]["batch_size"] == 2


def test_a_corpus_on_the_command_line_replaces_those_of_a_configuration(midisynth, tmp_path: Path):
    data = {"class_path": "toy_tones", "init_args": {"corpora": {"folder": {"root": "x"}, "tones": {"weight": 3}}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": data}))
    words = ("fit", "--config=toy_tones/tiny", "--data=tones", "--config=c.yaml", "--data.root=y", "--print_config")
    assert printed(midisynth(*words))["data"]["init_args"]["corpora"] == {"tones": {"root": "y"}}


def test_optimizer_and_schedule_are_used(midisynth, music: Path, tmp_path: Path):
    result = midisynth(
        *("fit", "--config=toy_tones/tiny", "--data=tones", f"--data.root={music}", *ON_CPU),
        *("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.25", "--trainer.default_root_dir", tmp_path),
        *("--model.lr_scheduler=torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=1"),
    )
    assert result.code == 0, result.err
    saved = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)
    # Two batches of two files: the schedule advanced once a step, not once an epoch.
    assert saved["global_step"] == 2
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.25 * 0.1**2)
    assert "optimizer" not in saved["hyper_parameters"]


def test_fit_goes_on_from_a_checkpoint(midisynth, fitted: Path, music: Path, tmp_path: Path):
    words = ("fit", "--config=toy_tones/tiny", "--data=tones", f"--data.root={music}", f"--ckpt_path={fitted}", *ON_CPU)
    again = midisynth(*words, "--model.hidden_dim=5", "--trainer.max_epochs=2", "--trainer.default_root_dir=again")
    assert again.code == 0, again.err
    (saved,) = (tmp_path / "again").rglob("last.ckpt")
    assert torch.load(saved, weights_only=True)["global_step"] == 4
    # Other sizes than the checkpoint's are refused before any data is read.
    other = midisynth(*words, "--model.hidden_dim=6", f"--data.root={tmp_path / 'absent'}")
    assert other.code == 1
    assert str(fitted) in other.error
    assert "network.0.weight" in other.error


def test_fit_then_test(midisynth, music: Path, tmp_path: Path):
    """Steps that are too large make each epoch worse than the one before: the best checkpoint is not the last."""
    options = [{"monitor": "val/loss", "filename": "best"}, {"filename": "end"}]
    saved = [{"class_path": "ModelCheckpoint", "init_args": chosen} for chosen in options]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": saved}}))
    words = ("--config=toy_tones/tiny", "--config=c.yaml", "--data=tones", f"--data.root={music}", *ON_CPU)
    words += ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1000", "--trainer.max_epochs=3")
    result = midisynth("fit", *words, "--then_test", "--pictures=0")
    assert result.code == 0, result.err
    (checkpoint,), (end,) = tmp_path.rglob("best.ckpt"), tmp_path.rglob("end.ckpt")
    assert re.search(r"testing .*best.ckpt$", result.err, re.MULTILINE)

    def loss(text: str) -> str:
        return next(line for line in text.splitlines() if "test/loss" in line)

    # The configuration that was saved is that of the training alone, so that other commands can read it.
    config = f"--config={checkpoint.parents[1] / 'config.yaml'}"
    assert loss(result.out) == loss(midisynth("test", config, f"--ckpt={checkpoint}").out)
    assert loss(result.out) != loss(midisynth("test", config, f"--ckpt={end}").out)
    useless = midisynth("fit", *words, "--report=r.json")
    assert (useless.code, useless.error) == (2, "report: fit tests nothing without --then_test")


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_alone_is_enough(midisynth, fitted: Path, tmp_path: Path, command: str):
    before = set(tmp_path.rglob("*.*")) - set((tmp_path / "cache").rglob("*"))
    result = midisynth(command, f"--ckpt={fitted}", *ON_CPU)
    assert result.code == 0, result.err
    assert {"validate": "val/loss", "test": "test/loss"}[command] in result.out
    # No logger, no checkpoints.
    assert set(tmp_path.rglob("*.*")) - set((tmp_path / "cache").rglob("*")) == before


def test_the_command_line_wins_over_a_checkpoint(midisynth, fitted: Path):
    config = printed(midisynth("test", f"--ckpt={fitted}", "--model.dropout=0.5", "--print_config"))
    assert config["model"]["init_args"]["dropout"] == 0.5
    assert config["model"]["init_args"]["hidden_dim"] == 5
    assert config["data"]["class_path"] == "midisynth_toy.ToyTonesData"


def test_a_configuration_for_fit_serves_test(midisynth, music: Path, tmp_path: Path):
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback], "logger": True}}))
    result = midisynth(
        "test", "--config=toy_tones/tiny", "--config=c.yaml", "--data=tones", f"--data.root={music}", *ON_CPU
    )
    assert result.code == 0, result.err
    assert not (tmp_path / "lightning_logs").exists()


def test_prepare_builds_no_weights(midisynth, music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import midisynth_toy

    seen = []
    connect = midisynth_toy.ToyTonesData.connect
    monkeypatch.setattr(
        midisynth_toy.ToyTonesData,
        "connect",
        lambda self, model: (seen.extend(p.device.type for p in model.parameters()), connect(self, model)),
    )
    result = midisynth("prepare", "--config=toy_tones/tiny", "--data=tones", f"--data.root={music}", "--workers=1")
    assert result.code == 0, result.err
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 12
    assert set(seen) == {"meta"}


def test_a_class_of_ones_own_needs_no_registration(midisynth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text("from midisynth_toy import ToyTones\nclass Mine(ToyTones):\n    '''Mine.'''\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert printed(midisynth("fit", "--model=mine.Mine", "--print_config"))["model"]["class_path"] == "mine.Mine"


def test_lightning_has_not_lost_the_hook(midisynth, fitted: Path):
    """`_parse_ckpt_path` is private: without it Lightning merges the checkpoint over the command line."""
    from lightning.pytorch.cli import LightningCLI

    assert callable(LightningCLI._parse_ckpt_path)
    config = printed(midisynth("validate", f"--ckpt={fitted}", "--model.activation=relu", "--print_config"))
    assert config["model"]["init_args"]["activation"] == "relu"
