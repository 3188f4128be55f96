"""What holds for every test: fixed seeds, one thread, no network, nothing left behind, fixtures found in one way."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
CACHES = {"__pycache__", ".pytest_cache", ".hypothesis", ".ruff_cache", ".mypy_cache", ".git"}

# Subprocesses of the tests inherit these. No library may look for files on a hub, and two ranks share two cores.
os.environ.update({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, torch sees none"))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data goes to a folder of this session, in subprocesses too."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sockets reach this machine alone."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address):
        local = self.family == socket.AF_UNIX or str(address[0]) in ("localhost", "127.0.0.1", "::1")
        if not local:
            raise OSError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture(autouse=True)
def _leaves_no_files() -> Iterator[None]:
    """Fail a test that writes into the checkout."""
    before = _files()
    yield
    left = _files() - before
    assert not left, f"the test left {sorted(left)[:5]} in {ROOT}; use tmp_path"


def _files() -> set[str]:
    found = set()
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in CACHES]
        found.update(os.path.join(folder, name) for name in files)
    return found


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the data sets that may not ship (environment variable MIDISYNTH_DATA)."""
    folder = os.environ.get("MIDISYNTH_DATA")
    if not folder:
        pytest.skip("MIDISYNTH_DATA is not set: it names the folder of data sets that may not be given away")
    assert Path(folder).is_dir(), f"MIDISYNTH_DATA={folder} is no folder"
    return Path(folder)


@pytest.fixture(scope="session")
def parity_root() -> Callable[[str], Path]:
    """Folder of a model's parity fixtures, by name: under MIDISYNTH_PARITY, else the copies in the tests."""

    def folder(model: str) -> Path:
        root = Path(os.environ.get("MIDISYNTH_PARITY") or ROOT / "tests" / "parity" / "fixtures") / model
        if not root.is_dir():
            pytest.skip(f"no parity fixtures in {root}; MIDISYNTH_PARITY names their folder")
        return root

    return folder


@pytest.fixture(scope="session")
def plugin_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of processes that have the example plugin installed; it is built and installed without network."""
    folder = tmp_path_factory.mktemp("plugin")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(folder / "site")]
    # hatchling must not see a checkout above the package: what is installed is what a stranger would publish.
    shutil.copytree(ROOT / "examples" / "plugin", folder / "source")
    done = subprocess.run([*pip, *offline, str(folder / "source")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # The tests may run from a checkout that is not installed.
    search_path = os.pathsep.join([str(folder / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": search_path.rstrip(os.pathsep), "PYTHONWARNINGS": "ignore"}
