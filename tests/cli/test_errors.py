"""What users read when a command line or a configuration is wrong: one line, exit code 2, the cause and the cure."""

from __future__ import annotations

from pathlib import Path

import pytest

CASES = {
    "misspelt option of a model": (
        ["--model.hiden_dim=3"],
        "model.hiden_dim: midisynth_toy.ToyTones has no such option; did you mean 'hidden_dim'?",
    ),
    "wrong type": (["--model.hidden_dim=x"], "model.hidden_dim: expected int, got 'x'"),
    "wrong choice": (
        ["--model.activation=tan"],
        "model.activation: expected one of relu, tanh, got 'tan'; did you mean 'tanh'?",
    ),
    "misspelt option of the Trainer": (
        ["--trainer.acelerator=cpu"],
        "trainer.acelerator: no such option; did you mean 'trainer.accelerator'?",
    ),
    "wrong type for the Trainer": (["--trainer.max_epochs=x"], "trainer.max_epochs: expected int, got 'x'"),
    "unknown optimizer": (
        ["--model.optimizer=torch.optim.Adan"],
        "model.optimizer: torch.optim has no 'Adan'; did you mean 'Adam'?",
    ),
    "misspelt option of the optimizer": (
        ["--model.optimizer=torch.optim.Adam", "--model.optimizer.lrr=3"],
        "model.optimizer.lrr: torch.optim.Adam has no such option; did you mean 'lr'?",
    ),
    "misspelt option of a corpus": (
        ["--data=tones", "--data.rot=x"],
        "data.rot: tones has no such option; did you mean 'root'? (known: root, weight, pattern)",
    ),
    "wrong type for a corpus": (["--data=tones", "--data.weight=x"], "data.weight: expected float, got 'x'"),
    "missing file": (["--config=absent.yaml"], "config: File does not exist: '{cwd}/absent.yaml'"),
    "bare word": (["song.mid"], "unexpected argument 'song.mid': only predict takes input files"),
    "no data": (["--trainer.accelerator=cpu"], "name the data: --data CORPUS --data.root DIR (installed: {corpora})"),
}


@pytest.mark.parametrize("case", CASES)
def test_typed(midisynth, tmp_path: Path, case: str):
    from midisynth import registry

    words, expected = CASES[case]
    result = midisynth("fit", "--model", "toy_tones", *words)
    corpora = ", ".join(entry.name for entry in registry.entries("corpora"))
    assert result.error == expected.format(cwd=tmp_path, corpora=corpora)
    assert result.code == 2


FILES = {
    "misspelt option of a model": (
        "model:\n  class_path: toy_tones\n  init_args:\n    hiden_dim: 3\n",
        "my.yaml: model.hiden_dim: midisynth_toy.ToyTones has no such option; did you mean 'hidden_dim'?",
    ),
    "misspelt name of a model": (
        "model: toy_tons\n",
        "my.yaml: model: no model 'toy_tons'; did you mean 'toy_tones'? (installed: {models})",
    ),
    "misspelt section": (
        "model: toy_tones\ntrainr:\n  max_epochs: 3\n",
        "my.yaml: trainr.max_epochs: no such option; did you mean 'trainer.max_epochs'?",
    ),
    "key of another model": (
        "model:\n  class_path: toy_tones\n  init_args:\n    segment_frames: 256\n",
        "my.yaml: model.segment_frames: midisynth_toy.ToyTones has no such option",
    ),
    "wrong type": (
        "model: toy_tones\ntrainer:\n  max_epochs: many\n",
        "my.yaml: trainer.max_epochs: expected int, got 'many'",
    ),
    "corpus in the place of a data module": (
        "model: toy_tones\ndata: tones\n",
        "my.yaml: data: no data module 'tones'; did you mean 'toy_tones'? (installed: {data}); tones is a corpus: "
        "write it under data.init_args.corpora",
    ),
    "no model": (
        "trainer:\n  max_epochs: 3\n",
        "name a model: --model NAME, or --config MODEL/PRESET (installed: {models})",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_in_a_file(midisynth, tmp_path: Path, case: str):
    from midisynth import registry

    content, expected = FILES[case]
    (tmp_path / "my.yaml").write_text(content)
    result = midisynth("fit", "--config=my.yaml")
    installed = {group: ", ".join(entry.name for entry in registry.entries(group)) for group in ("models", "data")}
    assert result.error == expected.format(**installed)
    assert result.code == 2


def test_the_later_of_two_files_is_blamed_only_for_its_own_keys(midisynth, tmp_path: Path):
    (tmp_path / "one.yaml").write_text("model:\n  class_path: toy_tones\n  init_args:\n    hiden_dim: 3\n")
    (tmp_path / "two.yaml").write_text("trainer:\n  max_epochs: 3\n")
    assert midisynth("fit", "--config=one.yaml", "--config=two.yaml").error.startswith("one.yaml: model.hiden_dim: ")


def test_bad_yaml_names_file_and_line(midisynth, tmp_path: Path):
    (tmp_path / "my.yaml").write_text("model:\n  class_path: [\n")
    result = midisynth("fit", "--config=my.yaml")
    assert result.error.startswith("my.yaml: not valid YAML: ")
    assert "line 3" in result.error
    assert result.code == 2


def test_python_tags_are_refused(midisynth, tmp_path: Path):
    marker = tmp_path / "marker"
    (tmp_path / "my.yaml").write_text(f"model: !!python/object/apply:os.system ['touch {marker}']\n")
    result = midisynth("fit", "--config=my.yaml")
    assert result.code == 2
    assert result.error.startswith("my.yaml: not valid YAML: could not determine a constructor")
    assert not marker.exists()


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "builtins.exec"])
def test_functions_of_the_standard_library_are_no_models(midisynth, target: str):
    result = midisynth("fit", "--model", target)
    assert result.error.startswith(f"model: class '{target}' is not allowed")
    assert result.code == 2


def test_plugin_that_is_gone(midisynth):
    result = midisynth("fit", "--model", "departed_package.Model")
    assert result.error == "model: no module named 'departed_package'; install the package that provides it"


def test_unknown_preset_and_command(midisynth):
    assert midisynth("fit", "--config=toy_tones/tinny").error == (
        "no preset 'tinny' of 'toy_tones'; did you mean 'tiny'? (available: toy_tones/tiny)"
    )
    result = midisynth("predct")
    assert result.error.startswith("no command 'predct'; did you mean 'predict'? (commands: predict, fit")
    assert result.code == 2


def test_a_bug_is_one_line_unless_debugging(midisynth, music: Path, monkeypatch: pytest.MonkeyPatch):
    import midisynth_toy

    def fail(*_):
        raise ZeroDivisionError("by\n accident")

    monkeypatch.setattr(midisynth_toy.ToyTones, "training_step", fail)
    words = ["fit", "--config=toy_tones/tiny", "--data=tones", f"--data.root={music}", "--trainer.fast_dev_run=true"]
    result = midisynth(*words)
    assert result.error == "ZeroDivisionError: by accident (--debug shows where)"
    assert result.code == 1
    with pytest.raises(ZeroDivisionError):
        midisynth(*words, "--debug")
