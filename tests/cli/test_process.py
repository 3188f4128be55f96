"""What only a process of its own can show: CPU time, signals, an environment with nothing in it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy_files import PACKAGES, midi_file

COMMAND = [sys.executable, "-m", "midisynth"]
FIT = ["fit", "--config=toy_tones/tiny", "--data=tones", "--trainer.accelerator=cpu"]


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


@pytest.mark.parametrize("command", ["--help", "--version", "models", "data", "corpora"])
def test_light_commands_need_less_than_half_a_second(command: str, tmp_path: Path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*COMMAND, command], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert done.stdout.strip()
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_fit_saves_and_says_so(music: Path, tmp_path: Path, number: int, code: int):
    words = [*FIT, f"--data.root={music}", "--trainer.max_epochs=-1", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    process = subprocess.Popen([*COMMAND, *words], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("epoch=*.ckpt")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in err
    (saved,) = tmp_path.rglob("interrupted.ckpt")
    assert f"go on with --ckpt_path {saved}" in err
    assert torch.load(saved, weights_only=True)["global_step"] > 0


# Loaded by every interpreter that has this folder on its path.
NO_NETWORK = """
import socket

def refuse(*_, **__):
    raise OSError("no network in this test")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
"""


def test_without_home_network_locale_or_terminal(tmp_path: Path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    folder = tmp_path / "d\u00e9j\u00e0 vu"
    folder.mkdir()
    (folder / "\u00e9tude.mid").write_bytes(midi_file(60))
    paths = [site, PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])]
    bare = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(map(str, paths)), "LC_ALL": "C", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*COMMAND, "predict", folder, "--model=toy_tones", "--output=out", "--trainer.accelerator=cpu"],
        env=bare,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["\u00e9tude.wav"]
