"""The command line as typed, and as jsonargparse gets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from midisynth.arguments import Arguments, expand, resolve_names
from midisynth.errors import UsageError
from midisynth.registry import preset

TOY = "midisynth_toy.ToyTones"
TOY_DATA = "midisynth_toy.ToyTonesData"


def expanded(*words: str, command: str = "fit", checkpoint: dict | None = None) -> Arguments:
    """The expansion, with a checkpoint whose configuration is `checkpoint`, where only a class `Shipped` ships."""
    return expand(
        Arguments.split(words),
        command,
        lambda _: checkpoint or {},
        lambda inputs: f"default for {inputs}",
        {"toy.Shipped": "toy_that_ships"}.get,
    )


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("--trainer.max_epochs 3", ["--trainer.max_epochs=3"]),
        ("--trainer.max_epochs=3", ["--trainer.max_epochs=3"]),
        ("-c a.yaml -o out/", ["--config=a.yaml", "--output=out/"]),
        ("--on-error stop --batch-size=2", ["--on_error=stop", "--batch_size=2"]),
        ("--ckpt m.ckpt --songs 4", ["--ckpt_path=m.ckpt", "--count=4"]),
        ("--model.gain-db -3", ["--model.gain-db=-3"]),
        ("--print_config --model toy", ["--print_config", "--model=toy"]),
        ("--print_config=skip_default", ["--print_config=skip_default"]),
        ("--model.help", ["--model.help"]),
        ("--model.help toy", ["--model.help=toy"]),
        ("--trainer.callbacks+ A --trainer.callbacks+=B", ["--trainer.callbacks+=A", "--trainer.callbacks+=B"]),
        ("--trainer.max_epochs --model toy", ["--trainer.max_epochs", "--model=toy"]),
        ("a.mid --skip-existing b.mid", ["--skip_existing", "--inputs", "a.mid", "b.mid"]),
        ("a.mid --seed 3 b.mid -o x c.mid", ["--seed=3", "--output=x", "--inputs", "a.mid", "b.mid", "c.mid"]),
        ("--inputs a.mid b.mid --seed 3", ["--seed=3", "--inputs", "a.mid", "b.mid"]),
        ("--seed 3 -- --odd.mid -o", ["--seed=3", "--inputs", "--odd.mid", "-o"]),
    ],
)
def test_split(typed: str, words: list[str]):
    assert Arguments.split(typed.split()).words() == words


def test_names_become_class_paths_and_are_copied_to_the_front():
    words = expanded("--trainer.max_epochs=3", "--model=toy-tones", "--data=ToyTones").words()
    both = [f"--model={TOY}", f"--data={TOY_DATA}"]
    assert words == [*both, "--trainer.max_epochs=3", *both]


def test_a_preset_becomes_its_file():
    assert expanded("--config=toy_tones/tiny").words() == [f"--config={preset('toy_tones/tiny')}"]


def test_an_existing_file_wins_over_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "toy_tones").mkdir()
    (tmp_path / "toy_tones" / "tiny").write_text("trainer: {}\n")
    monkeypatch.chdir(tmp_path)
    assert expanded("--config=toy_tones/tiny").words() == ["--config=toy_tones/tiny"]


@pytest.mark.parametrize("model", [["--model=toy_tones"], ["--config=toy_tones/tiny"], [f"--model={TOY}"]])
def test_a_corpus_becomes_an_option_of_the_models_data_module(model: list[str]):
    options = expanded(*model, "--data=tones", "--data.root=2024", "--data.batch_size=3", "--data.weight=2").options
    assert options.count(("data", TOY_DATA)) == 2
    corpora = [json.loads(value) for key, value in options if key == "data.corpora"]
    # The folder's name stays a string and the weight becomes a number, as the reader declares them.
    assert corpora == [{"tones": {"root": "2024", "weight": 2.0}}]
    assert ("data.batch_size", "3") in options
    assert not [key for key, _ in options if key in ("data.root", "data.weight")]


def test_options_of_several_corpora():
    words = expanded("--model=toy_tones", "--data.corpora.tones.root=x", "--data.corpora.rendered.root=y").words()
    assert '--data.corpora={"tones": {"root": "x"}, "rendered": {"root": "y"}}' in words
    # `--data` was not typed: the model has one.
    assert f"--data={TOY_DATA}" in words


def test_an_option_of_a_corpus_keeps_the_others_of_the_configuration(tmp_path: Path):
    config = tmp_path / "c.yaml"
    corpora = {"tones": {"root": "x", "weight": 2.0}, "rendered": "z"}
    data = {"class_path": TOY_DATA, "init_args": {"corpora": corpora}}
    config.write_text(json.dumps({"model": TOY, "data": data}))
    words = expanded(f"--config={config}", "--data.corpora.tones.root=y", "--data.corpora.rendered.clips=5").words()
    corpora = {"tones": {"root": "y", "weight": 2.0}, "rendered": {"root": "z", "clips": 5}}
    assert f"--data.corpora={json.dumps(corpora)}" in words
    for order in (1, -1):
        typed = ("--data.corpora.tones=null", "--data.corpora.rendered=a", "--data.corpora.rendered.clips=5")[::order]
        words = expanded(f"--config={config}", *typed).words()
        left = {"tones": None, "rendered": {"root": "a", "clips": 5}}
        assert f"--data.corpora={json.dumps(left)}" in words


def test_a_corpus_needs_a_model():
    with pytest.raises(UsageError, match="name a model"):
        expanded("--data=tones", "--data.root=x")


def test_a_checkpoints_configuration_comes_first_and_only_its_model_counts_for_predict():
    trained = {"model": {"class_path": TOY, "init_args": {"hidden_dim": 9}}, "data": {"class_path": "gone.Data"}}
    for command in ("validate", "test"):
        words = expanded("--ckpt=m.ckpt", "--model.dropout=0.5", command=command, checkpoint=trained).words()
        assert words == [f"--config={json.dumps(trained)}", "--ckpt_path=m.ckpt", "--model.dropout=0.5"]
    first, *_ = expanded("x.mid", "--ckpt=m.ckpt", command="predict", checkpoint=trained).words()
    assert json.loads(first.removeprefix("--config=")) == {"model": trained["model"]}
    assert "gone.Data" not in str(expanded("--ckpt_path=m.ckpt", "--model=toy_tones", checkpoint=trained).words())


def test_predict_without_model_or_checkpoint_takes_the_one_that_ships(tmp_path: Path):
    options = expanded("x.mid", command="predict", checkpoint={"model": {"class_path": TOY}}).options
    assert ("ckpt_path", "default for ['x.mid']") in options
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"inputs": ["y.mid"], "ckpt_path": None}))
    options = expanded(f"--config={config}", command="predict", checkpoint={"model": {"class_path": TOY}}).options
    assert ("ckpt_path", "default for ['y.mid']") in options
    assert "ckpt_path" not in dict(expanded("x.mid", "--model=toy_tones", command="predict").options)


def test_predict_with_a_model_takes_the_checkpoint_that_ships_of_it(tmp_path: Path):
    trained = {"model": {"class_path": "toy.Shipped"}}
    assert ("ckpt_path", "toy_that_ships") in expanded(
        "--model=toy.Shipped", command="predict", checkpoint=trained
    ).options
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(trained))
    assert "ckpt_path" not in dict(expanded(f"--config={config}", command="predict").options)


def test_a_checkpoint_may_be_named_in_a_configuration(tmp_path: Path):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"predict": {"ckpt_path": "m.ckpt"}}))
    trained = {"model": {"class_path": TOY}}
    first, *_ = expanded(f"--config={config}", command="predict", checkpoint=trained).words()
    assert json.loads(first.removeprefix("--config=")) == trained


@pytest.mark.parametrize("written", ["toy_tones", {"class_path": "ToyTones", "init_args": {"hidden_dim": 3}}])
def test_names_in_a_loaded_configuration(written):
    for loaded in ({"model": written}, {"fit": {"model": written}}):
        found = resolve_names(loaded, ("fit",))
        assert found.get("fit", found)["model"]["class_path"] == TOY
    # Any option's value passes through the loader as well.
    assert resolve_names({"model": "grand piano"}, ()) == {"model": "grand piano"}
    assert resolve_names([1, 2], ()) == [1, 2]
