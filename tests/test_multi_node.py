"""docs/multi_node.md: two nodes of one process each, as torchrun and as SLURM start them, learn what one process does.

The "nodes" are two sets of processes on this machine that find each other over the loopback address.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

STEPS = 3
OPTIONS = [
    *("--config=pluck/tiny", f"--trainer.max_steps={STEPS}", "--trainer.limit_val_batches=0"),
    *("--trainer.accelerator=cpu", "--trainer.devices=1"),
]
NODES = ["--trainer.num_nodes=2", "--trainer.strategy=ddp", "--data.batch_size=2"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (saved,) = folder.rglob("last.ckpt")
    checkpoint = torch.load(saved, weights_only=True)
    assert checkpoint["global_step"] == STEPS
    return checkpoint["state_dict"]


def run_together(commands: Sequence[list[str]], environments: Sequence[dict[str, str]], folder: Path) -> None:
    """Start the processes of all nodes and insist that each succeeds."""
    with ExitStack() as stack:
        logs = [stack.enter_context(open(folder / f"node{number}.log", "w+")) for number in range(len(commands))]
        jobs = [
            subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
            for command, environment, log in zip(commands, environments, logs, strict=True)
        ]
        for job in jobs:
            stack.callback(job.kill)
        codes = [job.wait(timeout=300) for job in jobs]
    assert codes == [0] * len(jobs), "\n".join((folder / f"node{n}.log").read_text() for n in range(len(jobs)))


@pytest.fixture(scope="module")
def environment(plugin_environment: dict[str, str]) -> dict[str, str]:
    """Of processes that nobody has started in a distributed way yet."""
    starters = ("SLURM", "TORCHELASTIC", "MASTER_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "NODE_RANK")
    return {name: value for name, value in plugin_environment.items() if not name.startswith(starters)}


@pytest.fixture(scope="module")
def alone(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What one process learns from batches as large as those of both nodes; it prepares the data, too."""
    folder = tmp_path_factory.mktemp("alone")
    run_together([[sys.executable, "-m", "midisynth", "fit", *OPTIONS, "--data.batch_size=4"]], [environment], folder)
    return weights(folder)


def test_torchrun(environment: dict[str, str], alone: dict[str, torch.Tensor], tmp_path: Path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    torchrun += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    commands = [[*torchrun, f"--node_rank={n}", "-m", "midisynth", "fit", *OPTIONS, *NODES] for n in range(2)]
    run_together(commands, [environment, environment], tmp_path)
    torch.testing.assert_close(weights(tmp_path), alone, rtol=0, atol=1e-5)


def test_slurm(environment: dict[str, str], alone: dict[str, torch.Tensor], tmp_path: Path):
    """With the variables that srun sets; there is no SLURM here to set them."""
    job = {
        **environment,
        "SLURM_JOB_ID": "10007",
        "SLURM_JOB_NAME": "midisynth",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2",
        "SLURM_LOCALID": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    tasks = [{**job, "SLURM_PROCID": str(n), "SLURM_NODEID": str(n)} for n in range(2)]
    run_together([[sys.executable, "-m", "midisynth", "fit", *OPTIONS, *NODES]] * 2, tasks, tmp_path)
    torch.testing.assert_close(weights(tmp_path), alone, rtol=0, atol=1e-5)
