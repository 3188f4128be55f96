"""predict in this process: from a checkpoint alone, over files, folders and patterns, with some of them bad."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import soundfile
import torch
import yaml

ON_CPU = ("--trainer.accelerator=cpu", "--trainer.enable_model_summary=false")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint that was written from Python, not by the command line."""
    from lightning.pytorch import Trainer
    from midisynth_toy import ToyTones

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    trainer.strategy.connect(ToyTones(hidden_dim=6))
    trainer.save_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    return tmp_path / "m.ckpt"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_and_a_checkpoint_are_enough(midisynth, music: Path, checkpoint: Path):
    result = midisynth("predict", music / "a.mid", "--ckpt", checkpoint, *ON_CPU)
    assert result.code == 0, result.err
    assert soundfile.info(music / "a.wav").frames == 2000
    last = result.out.splitlines()[-1]
    assert last.startswith("1 written, 0 skipped, 0 failed; 0.2 s of audio in ")
    assert last.endswith("x real time)")
    assert not (checkpoint.parent / "lightning_logs").exists()
    assert not (checkpoint.parent / "checkpoints").exists()


@pytest.mark.parametrize("inputs", [["{music}"], ["{music}/*.mid"], ["{music}/a.mid", "{music}/[bcd].mid"]])
def test_folders_and_patterns(midisynth, music: Path, checkpoint: Path, tmp_path: Path, inputs: list[str]):
    words = [name.format(music=music) for name in inputs]
    result = midisynth("predict", *words, "--ckpt", checkpoint, "-o", tmp_path / "out/", *ON_CPU)
    assert result.code == 0, result.err
    assert names(tmp_path / "out") == {"a.wav", "b.wav", "c.wav", "d.wav"}


def test_some_bad_inputs(midisynth, music: Path, checkpoint: Path, tmp_path: Path):
    (music / "b.mid").write_bytes(b"MThd, but no more")
    words = ("predict", music, "absent.mid", "--ckpt", checkpoint, "--output", tmp_path / "out", *ON_CPU)
    result = midisynth(*words)
    assert result.code == 1
    assert names(tmp_path / "out") == {"a.wav", "c.wav", "d.wav"}
    assert "b.mid: failed: " in result.out
    assert "absent.mid: failed: " in result.out
    assert "3 written, 0 skipped, 2 failed" in result.out
    assert "Traceback" not in result.out + result.err

    again = midisynth(*words, "--skip-existing")
    assert again.code == 1
    assert "0 written, 3 skipped, 2 failed" in again.out


def test_stopping_at_the_first_bad_input(midisynth, music: Path, checkpoint: Path, tmp_path: Path):
    (music / "a.mid").write_bytes(b"nothing")
    result = midisynth("predict", music, "--ckpt", checkpoint, "-o", tmp_path / "out", "--on-error=stop", *ON_CPU)
    assert result.code == 1
    assert "1 failed" in result.out
    assert len(names(tmp_path / "out") if (tmp_path / "out").exists() else ()) < 3


def test_seed_count_and_duration(midisynth, music: Path, checkpoint: Path, tmp_path: Path):
    words = ("predict", music / "a.mid", "--ckpt", checkpoint, *ON_CPU)
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        assert midisynth(*words, "--output", tmp_path / f"{name}.wav", "--seed", seed).code == 0
    one, two, three = ((tmp_path / f"{name}.wav").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three

    assert midisynth(*words, "--output", tmp_path / "copies/", "--count=3").code == 0
    assert len({path.read_bytes() for path in (tmp_path / "copies").iterdir()}) == 3


def test_the_command_line_wins_over_the_checkpoint(midisynth, music: Path, checkpoint: Path):
    words = ("predict", music / "a.mid", f"--ckpt_path={checkpoint}", *ON_CPU)
    config = yaml.safe_load(midisynth(*words, "--model.dropout=0.5", "--print_config").out)
    assert config["model"]["init_args"]["dropout"] == 0.5
    assert config["model"]["init_args"]["hidden_dim"] == 6
    assert config["inputs"] == [str(music / "a.mid")]
    # Another size does not fit the weights, and that is said.
    result = midisynth(*words, "--model.hidden_dim=7")
    assert result.code == 1
    assert "network.0.weight" in result.error


def test_a_printed_configuration_does_the_same(midisynth, music: Path, checkpoint: Path, tmp_path: Path):
    words = ("predict", music / "a.mid", "--ckpt", checkpoint, "-o", tmp_path / "x.wav", *ON_CPU)
    (tmp_path / "c.yaml").write_text(midisynth(*words, "--print_config").out)
    assert midisynth("predict", "--config=c.yaml").code == 0
    assert (tmp_path / "x.wav").is_file()


def test_a_configuration_for_training_may_be_given(midisynth, music: Path, checkpoint: Path, tmp_path: Path):
    """Its data module is left alone, even one that is not installed here; so are its logger and its callbacks."""
    config = {
        "data": {"class_path": "departed_package.Data", "init_args": {"root": "x"}},
        "trainer": {
            "logger": True,
            "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {}}],
        },
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    result = midisynth("predict", music / "a.mid", "--config=c.yaml", "--ckpt", checkpoint, *ON_CPU)
    assert result.code == 0, result.err
    assert (music / "a.wav").is_file()
    assert not (tmp_path / "lightning_logs").exists()


def test_data_options_are_refused(midisynth, music: Path, checkpoint: Path):
    result = midisynth("predict", music / "a.mid", "--ckpt", checkpoint, "--data=tones")
    assert result.error == "data: predict reads the files you name and takes no data module"
    assert result.code == 2


def test_no_inputs(midisynth, checkpoint: Path):
    result = midisynth("predict", "--ckpt", checkpoint, *ON_CPU)
    assert result.code == 2
    assert ".mid" in result.error


def test_a_checkpoint_that_is_none(midisynth, music: Path, tmp_path: Path):
    result = midisynth("predict", music / "a.mid", "--ckpt=absent.ckpt")
    assert result.code == 1
    assert result.error.startswith("absent.ckpt: no such checkpoint")
    (tmp_path / "page.ckpt").write_text("<!doctype html><html>not here</html>")
    result = midisynth("predict", music / "a.mid", "--ckpt=page.ckpt")
    assert result.code == 1
    assert result.error.startswith("page.ckpt: ")


class Gadget:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return shutil.copyfile, (__file__, str(self.marker))


@pytest.mark.parametrize("command", ["predict", "validate", "test", "fit"])
@pytest.mark.parametrize("attack", ["class path", "nested class path", "data class path", "instantiator", "pickle"])
def test_a_checkpoint_cannot_name_what_it_likes(
    midisynth, music: Path, checkpoint: Path, tmp_path: Path, command: str, attack: str
):
    """Nothing that the file names is called, whatever the command."""
    marker = tmp_path / "marker"
    (tmp_path / "evil_module.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Model: pass\n")
    content = torch.load(checkpoint, weights_only=True)
    if attack == "class path":
        content["hyper_parameters"]["_class_path"] = "evil_module.Model"
    elif attack == "nested class path":
        content["hyper_parameters"]["hidden_dim"] = {"class_path": "evil_module.Model", "init_args": {}}
    elif attack == "data class path":
        content["datamodule_hyper_parameters"] = {"_class_path": "evil_module.Model", "corpora": {}}
    elif attack == "instantiator":
        content["hyper_parameters"]["_instantiator"] = "evil_module.Model"
    else:
        content["extra"] = Gadget(marker)
    torch.save(content, checkpoint)

    words = {"predict": [music / "a.mid"]}.get(command, ["--model=toy_tones", "--data=tones", f"--data.root={music}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        result = midisynth(command, *words, f"--ckpt_path={checkpoint}", "--trainer.max_steps=1", *ON_CPU)
    assert not marker.exists()
    # What predict does not look at and fit does not call may pass; everything else is refused.
    harmless = (command, attack) in {("predict", "data class path")} or (command == "fit" and "class path" in attack)
    if not harmless:
        assert result.code in (1, 2)
        assert "--debug" not in result.error


def test_a_class_of_ones_own_with_its_checkpoint(midisynth, music: Path, tmp_path: Path, monkeypatch):
    """What users name themselves is trusted, in their checkpoints too."""
    (tmp_path / "own_module.py").write_text(
        "from midisynth_toy import ToyTones\nclass Own(ToyTones):\n    '''Own.'''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ("--data=midisynth_toy.ToyTonesData", f"--data.corpora.tones.root={music}", "--trainer.max_steps=1")
    assert midisynth("fit", "--model=own_module.Own", *words, "--trainer.default_root_dir=run", *ON_CPU).code == 0
    (saved,) = tmp_path.rglob("last.ckpt")
    result = midisynth("predict", music / "a.mid", "--model=own_module.Own", f"--ckpt={saved}", *ON_CPU)
    assert result.code == 0, result.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing_half_written(
    midisynth, music: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
):
    import midisynth_toy

    render = midisynth_toy.ToyTones.render
    begun = []

    def interrupted(self, batch, noise):
        for chunk in render(self, batch, noise):
            yield chunk
            begun.append(1)
            if len(begun) == 2:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(midisynth_toy.ToyTones, "render", interrupted)
    result = midisynth("predict", music, "--ckpt", checkpoint, "-o", tmp_path / "out", *ON_CPU)
    assert result.code == code
    assert "Traceback" not in result.out + result.err
    assert names(tmp_path / "out") == {"a.wav"}
    # The handlers of this process are back.
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_model_that_draws_nothing_is_not_asked_to(midisynth, music: Path, checkpoint: Path):
    result = midisynth("predict", music, f"--ckpt_path={checkpoint}", "--plot")
    assert result.code != 0
    assert "plot: ToyTones draws nothing; leave the option out" in result.err
    assert not list(music.glob("*.wav"))


def test_a_model_that_is_named_plays_with_the_weights_that_ship(midisynth, tmp_path: Path):
    score = Path(__file__).parents[2] / "examples" / "bach_minuet.musicxml"
    result = midisynth("predict", score, "--model", "dexter", "-o", tmp_path / "out.mid", *ON_CPU)
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out.mid.json").read_text())
    assert report["notes"] == 408
    assert 60 < report["mean_tempo_bpm"] < 240, "untrained weights play at the limits of the codec"
    assert not report["warnings"]


def test_a_model_that_is_named_and_has_no_weights_is_refused(midisynth, tmp_path: Path):
    song = Path(__file__).parents[2] / "examples" / "bach.mid"
    result = midisynth("predict", song, "--model", "midi2wave", "-o", tmp_path / "out", *ON_CPU)
    assert result.code == 2
    assert "no checkpoint ships for Midi2Wave; name one: --ckpt_path FILE" in result.err
    assert not (tmp_path / "out").exists() or not names(tmp_path / "out")
