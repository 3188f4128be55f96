"""A third-party package on the path (`packages/midisynth_toy`), the command line in this process, invented plugins."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch  # noqa: F401  adds the handlers that `midisynth` looks for
import pytest
from toy_files import PACKAGES, midi_file

from midisynth.main import main


@dataclass(frozen=True)
class Result:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The line that says what went wrong; there must be exactly one, and no traceback."""
        lines = [line for line in self.err.splitlines() if line.startswith("midisynth: error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err, self.err
        return lines[0].removeprefix("midisynth: error: ")


@pytest.fixture(autouse=True)
def _toy_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PACKAGES)
    # Two ranks of a test of their own may be running; a run here is never distributed.
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.fixture
def midisynth(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run a command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*words: str | Path) -> Result:
        capfd.readouterr()
        # Lightning's handlers keep the stream that was standard error when it was imported.
        for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
            for handler in logging.getLogger(name).handlers:
                if type(handler) is logging.StreamHandler:
                    handler.stream = sys.stderr
        code = main([str(word) for word in words])
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Install a distribution: modules and entry points, as pip would leave them on disk."""

    def write(name: str, modules: Mapping[str, str], entry_points: Mapping[str, Mapping[str, str]]) -> Path:
        folder = tmp_path / f"site-{name}"
        info = folder / f"{name.replace('-', '_')}-0.3.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n")
        (info / "entry_points.txt").write_text(
            "\n".join(
                f"[{group}]\n" + "\n".join(f"{entry} = {target}" for entry, target in found.items())
                for group, found in entry_points.items()
            )
        )
        for module, source in modules.items():
            (folder / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(folder)
        return folder

    return write


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """A folder with four short MIDI files."""
    folder = tmp_path / "music"
    folder.mkdir()
    for name, pitch in (("a", 60), ("b", 64), ("c", 67), ("d", 72)):
        (folder / f"{name}.mid").write_bytes(midi_file(pitch))
    return folder
