"""Kills `midisynth predict` at random moments and checks what is left.

After every kill each file under a final name must be complete, equal byte for byte to that of an undisturbed run; in
the end `--skip_existing` must have completed the same set. Prints one line of JSON.

    python benchmarks/kill_predict.py --kills 50 -- examples/*.mid --model pluck
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from midisynth.main import main as midisynth


def content(folder: Path) -> dict[str, bytes]:
    """Files under final names."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def start(words: list[str], output: Path, *options: str) -> int:
    """Start a run in a fork of this process, so that its moments are those of rendering and not of imports."""
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os._exit(midisynth(["predict", *words, f"--output={output}/", *options]))
    return child


def run(words: list[str], output: Path) -> None:
    """Render into a folder, as far as it is not done yet."""
    _, status = os.waitpid(start(words, output, "--skip_existing"), 0)
    if status:
        raise SystemExit(f"predict ended with status {os.waitstatus_to_exitcode(status)}")


def run_and_kill(words: list[str], output: Path, after_sec: float) -> None:
    """The same, for a while."""
    child = start(words, output, "--skip_existing")
    time.sleep(after_sec)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def first_output_sec(words: list[str], output: Path) -> float:
    """Seconds until a run starts to write; earlier kills would test nothing."""
    child = start(words, output)
    started = time.monotonic()
    while not (output.is_dir() and any(output.iterdir())):
        time.sleep(0.005)
    seconds = time.monotonic() - started
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("words", nargs="+", metavar="WORD", help="inputs and options of predict")
    options = parser.parse_args()
    importlib.import_module("midisynth.cli")  # all that a run needs, once for all forks
    choose = random.Random(options.seed)
    partial, after_first_write, ended = set(), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        run(options.words, Path(scratch, "undisturbed"))
        whole_sec = time.monotonic() - started
        want = content(Path(scratch, "undisturbed"))
        earliest_sec = 0.9 * first_output_sec(options.words, Path(scratch, "probe"))
        output = Path(scratch, "out")
        for _ in range(options.kills):
            run_and_kill(options.words, output, choose.uniform(earliest_sec, whole_sec))
            after_first_write += any(output.rglob("*")) if output.exists() else False
            found = content(output) if output.exists() else {}
            partial |= {name for name, data in found.items() if want.get(name) != data}
            if len(found) == len(want):  # there would be nothing left to disturb
                ended += 1
                for path in output.rglob("*.*"):
                    path.unlink()
        run(options.words, output)
        complete = content(output) == want
    figures = {
        "kills": options.kills,
        "outputs": len(want),
        "after_first_write": after_first_write,
        "completed_sets": ended,
        "partial": sorted(partial),
        "completed_with_same_bytes": complete,
    }
    print(json.dumps(figures))
    return 0 if complete and not partial else 1


if __name__ == "__main__":
    sys.exit(main())
