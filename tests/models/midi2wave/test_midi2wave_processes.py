"""Two processes train together: every parameter learns, both come to the same decisions, and a checkpoint has them."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[3]


def test_two_processes_train(tmp_path: Path):
    words = ["fit", "--config=midi2wave/tiny", "--data.batch_size=1", f"--trainer.default_root_dir={tmp_path}"]
    words += ["--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.max_steps=4"]
    words += ["--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=null"]
    words += ["--trainer.limit_val_batches=2", "--model.aggressive={criterion: loss, window: 2, threshold: 0.0}"]
    words += ["--trainer.callbacks+=midisynth.testing.EveryParameterLearns"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "midisynth", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["global_step"] == 4
    assert saved["scheduled"]["phase"] == "done"
    assert math.isclose(saved["scheduled"]["kept"][0], 0.1)
    assert saved["aggressive"]["aggressive"] and saved["aggressive"]["_steps"] == 4
    assert saved["hyper_parameters"]["attributes"] == {"year": ["1999"], "piano": ["maestro"]}
    (metrics,) = tmp_path.rglob("metrics.csv")
    validated = [row for row in csv.DictReader(metrics.open()) if row["val/loss"]]
    assert len(validated) == 2
    for row in validated:
        assert all(math.isfinite(float(row[name])) for name in ("val/loss", "val/bits", "val/sensitivity"))
