"""Entry points to classes and presets, and what stays usable when a package misbehaves."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import pytest

from midisynth import registry
from midisynth.errors import DataError, PluginError, UsageError


@pytest.mark.parametrize("name", ["toy_tones", "ToyTones", "toy-tones", "TOYTONES", "midisynth_toy.ToyTones"])
def test_every_spelling_finds_the_entry(name: str):
    assert registry.find("models", name) == "midisynth_toy.ToyTones"
    assert registry.entry("models", name).provenance == "midisynth-toy 1.2"


def test_the_path_that_a_checkpoint_writes_finds_the_entry():
    entry = registry.entries("models")[0]
    loaded = entry.load()
    written = f"{loaded.__module__}.{loaded.__qualname__}"
    assert written != entry.class_path, "take an entry whose class is re-exported"
    assert registry.entry("models", written) == entry


def test_looking_up_imports_nothing(install):
    install("midisynth-lazy", {"lazy_plugin": "raise SystemError"}, {"midisynth.models": {"lazy": "lazy_plugin:Lazy"}})
    assert registry.find("models", "lazy") == "lazy_plugin.Lazy"
    assert "lazy_plugin" not in sys.modules


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(PluginError, match=r"no model 'toy_tunes'; did you mean 'toy_tones'\? \(installed: .*toy_tones"):
        registry.find("models", "toy_tunes")


def test_ours_come_first_and_a_taken_name_keeps_its_owner(install, caplog: pytest.LogCaptureFixture):
    ours = registry.entries("models")[0]
    install("aaa-thief", {}, {"midisynth.models": {ours.name.upper(): "thief:Thief", "toy_tones": "thief:Toy"}})
    with caplog.at_level(logging.WARNING):
        assert registry.entry("models", ours.name) == ours
        assert registry.entries("models")[0] == ours
    assert f"of aaa-thief is ignored: the name belongs to {registry.DISTRIBUTION}" in caplog.text
    assert "model 'toy_tones' of midisynth-toy is ignored: the name belongs to aaa-thief" in caplog.text


@pytest.mark.parametrize("target", ["no module at all", "package.module", "package:"])
def test_a_malformed_target_is_left_out(install, caplog: pytest.LogCaptureFixture, target: str):
    install("malformed", {}, {"midisynth.models": {"odd": target}})
    names = [entry.name for entry in registry.entries("models")]
    assert "odd" not in names
    assert "toy_tones" in names
    assert f"model 'odd' of malformed is ignored: '{target}'" in caplog.text


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("raise RuntimeError('no\\n driver')", "cannot be imported: RuntimeError: no driver"),
        ("import a_module_that_is_missing", "cannot be imported: ModuleNotFoundError: No module named 'a_module"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("", "cannot be imported: AttributeError: module 'broken_plugin' has no attribute 'Broken'"),
        ("Broken = 3", "is not a subclass of MidiModule"),
        ("class Broken: pass", "is not a subclass of MidiModule"),
    ],
)
def test_a_broken_class_is_named_with_its_package(install, monkeypatch, source: str, cause: str):
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    install("fancy-models", {"broken_plugin": source}, {"midisynth.models": {"broken": "broken_plugin:Broken"}})
    with pytest.raises(PluginError) as error:
        registry.load("models", "broken")
    assert str(error.value).startswith("model 'broken' of fancy-models 0.3 (broken_plugin:Broken) " + cause)


def test_presets_lie_beside_the_class_or_beside_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = registry.preset("toy_tones/tiny")
    assert path.parts[-4:] == ("midisynth_toy", "cfg", "toy_tones", "tiny.yaml")

    # As in a clone that was installed with --editable: cfg/ is the sibling of the package.
    package = Path(shutil.copytree(path.parents[2], tmp_path / "midisynth_toy"))
    shutil.move(package / "cfg", tmp_path / "cfg")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "midisynth_toy", raising=False)
    assert registry.preset("toy_tones/tiny") == tmp_path / "cfg" / "toy_tones" / "tiny.yaml"


def test_a_missing_preset_lists_those_that_exist():
    with pytest.raises(UsageError, match=r"no preset 'tinny' of 'toy_tones'; did you mean 'tiny'\?.*toy_tones/tiny"):
        registry.preset("toy_tones/tinny")


def test_open_corpus(music: Path):
    corpus = registry.open_corpus("tones", {"root": str(music), "pattern": "[ab].mid"})
    assert {record.piece for record in corpus.records()} == {"a", "b"}
    with pytest.raises(UsageError, match=r"corpora.tones: no option 'patern'; did you mean 'pattern'\?"):
        registry.open_corpus("tones", {"root": str(music), "patern": "*"})
    with pytest.raises(UsageError, match=r"corpora.tones: root is missing"):
        registry.open_corpus("tones", {})
    with pytest.raises(DataError, match="no such folder"):
        registry.open_corpus("tones", {"root": str(music / "absent")})
