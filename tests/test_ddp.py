"""Two gloo processes do what one does: fit, test, predict; and a job whose rank dies ends soon, and not with status 0.

The model is the one of the example plugin: its loss draws nothing at random, so that equal means equal.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from midisynth import registry

ROOT = Path(__file__).resolve().parent.parent
MUSIC = ROOT / "examples" / "plugin" / "midisynth_pluck" / "music"
OURS = registry.DISTRIBUTION
TWO_PROCESSES = ["--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--trainer.devices=2"]
ONE_PROCESS = ["--trainer.accelerator=cpu", "--trainer.devices=1"]
GLOBAL_BATCH = 4
STEPS = 6
LONGEST_END_SEC = 90  # 60 from the death on, and the start of the processes


def midisynth(environment: dict[str, str], folder: Path, *words: str) -> str:
    """Run a command in processes of its own, insist that it succeeds, and return what it printed."""
    command = [sys.executable, "-m", "midisynth", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def fit(environment: dict[str, str], folder: Path, processes: int) -> Path:
    """Train `STEPS` steps with the same global batch on any number of processes; returns the folder of the run."""
    folder.mkdir()
    words = [f"--data.batch_size={GLOBAL_BATCH // processes}", f"--trainer.max_steps={STEPS}"]
    words += ["--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=null"]
    midisynth(
        environment, folder, "fit", "--config=pluck/tiny", *words, *(TWO_PROCESSES if processes == 2 else ONE_PROCESS)
    )
    return folder


@pytest.fixture(scope="module")
def runs(plugin_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of the same training with one and with two processes."""
    folder = tmp_path_factory.mktemp("fit")
    return {processes: fit(plugin_environment, folder / str(processes), processes) for processes in (1, 2)}


def checkpoint(folder: Path) -> Path:
    (saved,) = folder.rglob("last.ckpt")
    return saved


def test_fit_learns_the_same(runs: dict[int, Path]):
    saved = {n: torch.load(checkpoint(folder), weights_only=True) for n, folder in runs.items()}
    assert saved[1]["global_step"] == saved[2]["global_step"] == STEPS
    torch.testing.assert_close(saved[1]["state_dict"], saved[2]["state_dict"], rtol=0, atol=1e-5)
    losses = {}
    for processes, folder in runs.items():
        (metrics,) = folder.rglob("metrics.csv")
        losses[processes] = [float(row["val/loss"]) for row in csv.DictReader(metrics.open()) if row.get("val/loss")]
    assert len(losses[1]) == STEPS // 2
    assert losses[1] == pytest.approx(losses[2], abs=1e-5)
    assert losses[1][0] != losses[1][-1]


def test_test_of_103_samples_measures_the_same(
    plugin_environment: dict[str, str], runs: dict[int, Path], tmp_path: Path
):
    """103 is odd: a sampler that repeats samples to give every rank as many would change the mean."""
    seconds = 0.235  # of a clip; divides the test piece of the plugin into 103
    count = (
        "from midisynth_pluck import KarplusStrong as K\n"
        f"print(sum(len(r.waveform(8000)) // {round(8000 * seconds)} for r in K().records() if r.split == 'test'))"
    )
    done = subprocess.run([sys.executable, "-c", count], env=plugin_environment, capture_output=True, text=True)
    assert done.stdout.strip() == "103", done.stderr
    words = ["test", "--config=pluck/tiny", f"--ckpt_path={checkpoint(runs[1])}", "--data.batch_size=4"]
    words.append(f"--model.segment_seconds={seconds}")
    tables = [midisynth(plugin_environment, tmp_path, *words, *where) for where in (ONE_PROCESS, TWO_PROCESSES)]
    one, two = (float(re.search(r"test/loss\D+([\d.]+(?:e-?\d+)?)", table)[1]) for table in tables)
    assert one == pytest.approx(two, abs=1e-6)


# Tests one model after the other in one process, or in each of two: what takes longest is to start.
EVERY_TEST = """
import os, sys
from midisynth.main import main
# Each command makes a process group of its own, which cannot meet where the one before did.
os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
where, *entries = sys.argv[1:]
for entry, folder, *words in (words.split("|") for words in entries):
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    if os.environ["RANK"] == "0":
        print(f"tested: {entry}", flush=True)
    words += ["--data.batch_size=1", f"--report={folder}", *where.split()]
    status = main(["test", f"--config={entry}/tiny", *words])
    assert status == 0, entry
"""


def test_metrics_of_the_models_that_come_with_us(plugin_environment: dict[str, str], tmp_path: Path):
    """Their noise belongs to the example, not to the process; an odd number of examples is left to each metric."""
    # The example data have one song for testing, and every process needs one.
    for split, count in {"train": 2, "validation": 1, "test": 3}.items():
        (tmp_path / "songs" / split).mkdir(parents=True)
        for number in range(count):
            shutil.copy(ROOT / "examples" / "bach.mid", tmp_path / "songs" / split / f"{split}{number}.mid")
    entries = []
    for name in (entry.name for entry in registry.entries("models") if entry.package == OURS):
        more = [f"--data.corpora.folder.root={tmp_path / 'songs'}"] if name == "phrase_ldm" else []
        entries.append("|".join([name, f"{tmp_path / name}.json", *more]))
    (tmp_path / "every_test.py").write_text(EVERY_TEST)
    scores = []
    for processes, where in ((1, ONE_PROCESS), (2, TWO_PROCESSES)):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += [str(tmp_path / "every_test.py"), " ".join(where), *entries]
        done = subprocess.run(command, cwd=ROOT, env=plugin_environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        tables = re.split(r"^tested: (\w+)$", done.stdout, flags=re.MULTILINE)[1:]
        found = {}
        for entry, table in zip(tables[::2], tables[1::2], strict=True):
            for name, value in re.findall(r"(test/\w+)\W+([-\d.]+(?:e-?\d+)?)", table):
                found[entry, name] = float(value)
            found.pop((entry, "test/real_time"), None)  # speed depends on who else is running
        scores.append(found)
    one, two = scores
    assert sorted(one) == sorted(two)
    assert {entry for entry, _ in one} == {entry.split("|")[0] for entry in entries}
    assert one == pytest.approx(two, rel=1e-6, abs=1e-6)


def test_predict_makes_every_file_once(plugin_environment: dict[str, str], runs: dict[int, Path], tmp_path: Path):
    inputs = tmp_path / "in"
    inputs.mkdir()
    for number, source in enumerate(
        ["tune.mid", "mozart.mid", "tune.mid", "tune.mid", "mozart.mid", "tune.mid", "tune.mid"]
    ):
        shutil.copy(MUSIC / source, inputs / f"{number}.mid")
    written = {}
    for name, where in (("one", ONE_PROCESS), ("two", TWO_PROCESSES)):
        words = ["predict", str(inputs), f"--ckpt_path={checkpoint(runs[1])}", f"--output={tmp_path / name}/"]
        midisynth(plugin_environment, tmp_path, *words, *where)
        written[name] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert sorted(written["one"]) == [f"{number}.wav" for number in range(7)]
    assert written["one"] == written["two"]


KILLER = """
import os, pathlib, signal
from lightning.pytorch import Callback
class Killer(Callback):
    def __init__(self, rank: int): self.rank = rank
    def _strike(self, trainer):
        if trainer.global_rank == self.rank:
            pathlib.Path(__file__).with_name("struck").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    def on_train_batch_start(self, trainer, *args): self._strike(trainer)
    def on_predict_batch_start(self, trainer, *args): self._strike(trainer)
"""


@pytest.mark.parametrize(("command", "rank"), [("fit", 0), ("fit", 1), ("predict", 1)])
def test_a_rank_that_dies_ends_the_job(
    command: str, rank: int, plugin_environment: dict[str, str], runs: dict[int, Path], tmp_path: Path
):
    (tmp_path / "killer.py").write_text(KILLER)
    environment = dict(plugin_environment)
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
    words = [command, *TWO_PROCESSES, "--trainer.callbacks+=killer.Killer", f"--trainer.callbacks.rank={rank}"]
    if command == "fit":
        words += ["--config=pluck/tiny"]
    else:
        words += [str(MUSIC), f"--ckpt_path={checkpoint(runs[1])}", f"--output={tmp_path / 'out'}/"]
    started = time.monotonic()
    with open(tmp_path / "log", "w") as log:
        # In a session of its own, so that children that outlive their parent can be found.
        job = subprocess.Popen(
            [sys.executable, "-m", "midisynth", *words],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        assert job.wait(timeout=LONGEST_END_SEC) != 0
        assert (tmp_path / "struck").exists(), (tmp_path / "log").read_text()
        while any_process(job.pid):
            assert time.monotonic() - started < LONGEST_END_SEC, "a rank outlives the job"
            time.sleep(0.5)
    finally:
        if any_process(job.pid):
            os.killpg(job.pid, signal.SIGKILL)


def any_process(group: int) -> bool:
    """Whether a process group still has members."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
