"""Runs of `predict`: what is written, what fails alone, what is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import Trainer
from midisynth_sines import Octaves, Scales, Sines

import midisynth
from midisynth.errors import UsageError
from midisynth.music.midi import read_midi
from midisynth.outputs import UNFINISHED
from midisynth.render import predict

MUSIC_DATA = Path(__file__).parents[1] / "music" / "data"
BAD_PITCH = 99


def quiet_trainer(**options: object) -> Trainer:
    fixed = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    return Trainer(**{**fixed, "enable_progress_bar": False, **options})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


@pytest.fixture
def songs(tmp_path: Path, write_notes: Callable[..., Path]) -> Path:
    """Five songs, the third of which contains the pitch that makes a faulty model fail."""
    for number in range(5):
        pitches = [60 + number, BAD_PITCH if number == 2 else 64, 67]
        write_notes(tmp_path / "songs" / f"{number}.mid", pitches, 0.25 + 0.05 * number)
    return tmp_path / "songs"


def test_a_file_becomes_audio_with_its_notes(tmp_path: Path, write_notes: Callable[..., Path]):
    source = write_notes(tmp_path / "a.mid", [69, 81], 0.5)
    report = midisynth.predict(Sines(harmonics=1), source)
    (written,) = report.written
    assert written.output == tmp_path / "a.wav"
    audio, rate = soundfile.read(written.output)
    assert len(audio) == rate and written.audio.seconds == report.audio_sec == 1.0
    for half, hz in zip(np.split(audio, 2), (440, 880), strict=True):
        assert np.abs(np.fft.rfft(half)).argmax() * 2 == hz
    assert report.real_time_factor > 0
    assert report.text().splitlines()[0] == str(written.output)
    assert "1 written, 0 skipped, 0 failed; 1.0 s of audio in" in report.text().splitlines()[-1]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_hundred_files_of_which_seven_are_bad(batch_size: int, tmp_path: Path, write_notes: Callable[..., Path]):
    for number in range(93):
        write_notes(tmp_path / "in" / f"{number:02}.mid", [40 + number % 50], 0.05)
    bad = ("empty", "header_cut.mid", "png_image.mid", "text_file.mid", "note_off_only.mid", "track_length_short.mid")
    for name in bad[1:]:
        (tmp_path / "in" / f"bad_{name}").write_bytes((MUSIC_DATA / "midi_bad" / name).read_bytes())
    (tmp_path / "in" / "bad_empty.mid").write_bytes(b"")
    inputs = [tmp_path / "in", tmp_path / "bad_missing.mid"]
    report = predict(Sines(), inputs, tmp_path / "out", batch_size=batch_size, trainer=quiet_trainer())
    assert len(report.written) == len(names(tmp_path / "out")) == 93
    assert len(report.failed) == 7
    assert all(outcome.reason and outcome.source.name.startswith("bad_") for outcome in report.failed)
    text = report.text()
    assert all(f"{outcome.source}: failed: {outcome.reason}" in text for outcome in report.failed)
    assert text.splitlines()[-1].startswith("93 written, 0 skipped, 7 failed")


def test_on_error_stop_ends_at_the_first_failure(songs: Path, tmp_path: Path):
    model = Sines(fault="raise", fault_pitch=BAD_PITCH)
    report = predict(model, songs, tmp_path / "out", on_error="stop", trainer=quiet_trainer())
    assert names(tmp_path / "out") == ["0.wav", "1.wav"]
    assert [outcome.source.name for outcome in report.failed] == ["2.mid"]
    assert "stopped after the first failure" in report.text()
    report = predict(Sines(), [tmp_path / "no.mid", songs], tmp_path / "none", on_error="stop", trainer=quiet_trainer())
    assert len(report.failed) == 1 and not report.written


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nan", "the model produced NaN or infinite samples"),
        ("inf", "the model produced NaN or infinite samples"),
        ("nothing", "the model made nothing to write"),
        ("raise", "ZeroDivisionError: the model divides by zero"),
    ],
)
def test_an_item_fails_alone(batch_size: int, fault: str, reason: str, songs: Path, tmp_path: Path):
    fine = predict(Sines(), songs, tmp_path / "fine", trainer=quiet_trainer())
    assert len(fine.written) == 5
    model = Sines(fault=fault, fault_pitch=BAD_PITCH)
    report = predict(model, songs, tmp_path / "out", batch_size=batch_size, trainer=quiet_trainer())
    (failed,) = report.failed
    assert failed.source.name == "2.mid" and reason in failed.reason
    assert names(tmp_path / "out") == ["0.wav", "1.wav", "3.wav", "4.wav"]
    assert not unfinished(tmp_path)
    for name in names(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fine" / name).read_bytes()


@pytest.mark.parametrize(("fault", "warning"), [("loud", "samples were clipped; the peak was"), ("silent", "silent")])
def test_clipping_and_silence_are_reported(fault: str, warning: str, songs: Path, tmp_path: Path):
    model = Sines(fault=fault, fault_pitch=BAD_PITCH)
    report = predict(model, songs, tmp_path / "out", trainer=quiet_trainer())
    (warned,) = [outcome for outcome in report.written if outcome.warnings]
    assert warned.source.name == "2.mid" and warning in warned.warnings[0]
    assert f"{warned.output}: warning:" in report.text()
    if fault == "loud":
        assert warned.audio.clipped_samples > 0 and warned.audio.peak > 1


def test_a_failure_leaves_the_earlier_output(songs: Path, tmp_path: Path):
    predict(Sines(), songs, tmp_path / "out", trainer=quiet_trainer())
    before = (tmp_path / "out" / "2.wav").read_bytes()
    predict(Sines(fault="nan", fault_pitch=BAD_PITCH), songs, tmp_path / "out", trainer=quiet_trainer())
    assert (tmp_path / "out" / "2.wav").read_bytes() == before


def test_skip_existing_renders_what_is_missing(songs: Path, tmp_path: Path):
    predict(Sines(), songs, tmp_path / "out", trainer=quiet_trainer())
    (tmp_path / "out" / "1.wav").write_bytes(b"mine")
    (tmp_path / "out" / "3.wav").unlink()
    report = predict(Sines(), songs, tmp_path / "out", skip_existing=True, trainer=quiet_trainer())
    assert [outcome.output.name for outcome in report.written] == ["3.wav"]
    assert len(report.skipped) == 4
    assert (tmp_path / "out" / "1.wav").read_bytes() == b"mine"
    report = predict(Sines(), songs, tmp_path / "out", skip_existing=True, trainer=quiet_trainer())
    assert not report.written and len(report.skipped) == 5


def test_the_same_seed_gives_the_same_bytes_in_any_order_and_batch(songs: Path, tmp_path: Path):
    """The noise of an item depends on its content, the copy and the seed alone."""
    paths = sorted(songs.iterdir())
    runs = {
        "one": predict(Sines(), paths, tmp_path / "one", trainer=quiet_trainer()),
        "again": predict(Sines(), paths, tmp_path / "again", trainer=quiet_trainer()),
        "batch": predict(Sines(), paths[::-1], tmp_path / "batch", batch_size=3, trainer=quiet_trainer()),
        "workers": predict(Sines(), paths, tmp_path / "workers", workers=2, trainer=quiet_trainer()),
    }
    assert all(len(report.written) == 5 for report in runs.values())
    for name in names(tmp_path / "one"):
        first = (tmp_path / "one" / name).read_bytes()
        assert all((tmp_path / run / name).read_bytes() == first for run in runs)
    predict(Sines(), paths, tmp_path / "other", seed=1, trainer=quiet_trainer())
    assert (tmp_path / "other" / "0.wav").read_bytes() != (tmp_path / "one" / "0.wav").read_bytes()


def test_a_renamed_file_sounds_the_same_and_copies_differ(songs: Path, tmp_path: Path):
    (songs / "renamed.mid").write_bytes((songs / "0.mid").read_bytes())
    predict(Sines(), [songs / "0.mid", songs / "renamed.mid"], tmp_path, count=2, trainer=quiet_trainer())
    content = {name: (tmp_path / f"{name}.wav").read_bytes() for name in ("0-1", "0-2", "renamed-1", "renamed-2")}
    assert content["0-1"] == content["renamed-1"] and content["0-2"] == content["renamed-2"]
    assert content["0-1"] != content["0-2"]


def test_a_composer_needs_no_input(tmp_path: Path):
    report = predict(Scales(), (), tmp_path / "out", count=3, batch_size=2, trainer=quiet_trainer())
    assert [outcome.output.name for outcome in report.written] == ["scales-1.wav", "scales-2.wav", "scales-3.wav"]
    assert len({outcome.output.read_bytes() for outcome in report.written}) == 3
    with pytest.raises(UsageError, match="Scales takes no input files"):
        predict(Scales(), "a.mid")
    with pytest.raises(UsageError, match=r"name input files: Sines reads .mid, .midi"):
        predict(Sines())


def test_a_model_that_writes_midi(songs: Path, tmp_path: Path):
    report = predict(Octaves(), songs, tmp_path / "out", trainer=quiet_trainer())
    assert names(tmp_path / "out") == sorted(f"{n}.mid{s}" for n in range(5) for s in ("", ".json"))
    assert read_midi(tmp_path / "out" / "0.mid").notes["pitch"].tolist() == [72, 76, 79]
    assert json.loads((tmp_path / "out" / "0.mid.json").read_text()) == {"notes": 3} == dict(report.written[0].report)


def test_longer_than_allowed_is_refused(songs: Path, tmp_path: Path):
    report = predict(Sines(), songs, tmp_path / "out", max_duration_sec=1.0, trainer=quiet_trainer())
    assert [outcome.source.name for outcome in report.failed] == ["2.mid", "3.mid", "4.mid"]
    assert all("over the limit of 1 s" in outcome.reason for outcome in report.failed)


@pytest.mark.parametrize(("repair", "written"), [(False, 0), (True, 1)])
def test_damaged_files_are_read_only_on_request(repair: bool, written: int, tmp_path: Path):
    damaged = MUSIC_DATA / "midi_bad" / "truncated_50pct.mid"
    report = predict(Sines(), damaged, tmp_path / "out", repair=repair, trainer=quiet_trainer())
    assert len(report.written) == written
    assert all("cut off" in outcome.reason for outcome in report.failed)


def test_the_model_is_left_as_it_was(songs: Path, tmp_path: Path):
    model = Sines().train()
    state = torch.get_rng_state()
    trainer = quiet_trainer()
    callbacks = list(trainer.callbacks)
    predict(model, songs, tmp_path / "out", trainer=trainer)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert trainer.callbacks == callbacks


def test_progress_is_told_in_lines_where_there_is_no_terminal(
    songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("midisynth.render_progress.LINE_INTERVAL_SEC", 0.0)
    monkeypatch.setenv("COLUMNS", "200")
    predict(Sines(block_sec=0.25), songs, tmp_path / "out", trainer=quiet_trainer(enable_progress_bar=True))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rendering: ")]
    shares = [int(line.split("%")[0].removeprefix("rendering: ")) for line in lines]
    assert shares == sorted(shares) and shares[-1] == 100
    assert shares[0] < 20  # the first piece of five is shown while it is being made
    assert lines[-1].endswith("0 s left") and "5/5 batches" in lines[-1]


def test_half_written_files_of_dead_runs_go_and_those_of_others_stay(songs: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    dead, alive, fresh = (out / f".{digit * 16}.part" for digit in "abc")
    (out / ".notes.part").write_bytes(b"of somebody else")
    for path in (dead, alive, fresh):
        path.write_bytes(b"half")
    for path in (dead, alive):
        os.utime(path, (time.time() - 3600,) * 2)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX);"
         "print('locked', flush=True); sys.stdin.read()", str(alive)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout.readline() == b"locked\n"
    predict(Sines(), songs, out, trainer=quiet_trainer())
    holder.communicate()
    assert set(unfinished(out)) == {alive, fresh, out / ".notes.part"}


def test_two_runs_into_one_folder_never_mix(songs: Path, tmp_path: Path):
    """Every file is at the end, and at every moment, all of one run or all of the other."""
    want = {}
    for seed in (0, 1):
        predict(Sines(block_sec=0.05), songs, tmp_path / str(seed), seed=seed, trainer=quiet_trainer())
        for name in names(tmp_path / str(seed)):
            want.setdefault(name, set()).add((tmp_path / str(seed) / name).read_bytes())
    runs = [
        threading.Thread(
            target=predict,
            args=(Sines(pause_sec=0.002, block_sec=0.05), songs, tmp_path / "both"),
            kwargs={"seed": seed, "trainer": quiet_trainer()},
        )
        for seed in (0, 1)
    ]
    for run in runs:
        run.start()
    while any(run.is_alive() for run in runs):
        for name in names(tmp_path / "both"):
            if not UNFINISHED.fullmatch(name):
                assert (tmp_path / "both" / name).read_bytes() in want[name]
        time.sleep(0.005)
    assert names(tmp_path / "both") == sorted(want)


def test_a_file_in_place_of_the_folder(songs: Path, tmp_path: Path):
    (tmp_path / "out").write_bytes(b"a file")
    report = predict(Sines(), songs, tmp_path / "out", trainer=quiet_trainer())
    assert len(report.failed) == 5 and (tmp_path / "out").read_bytes() == b"a file"
    assert all("its folder cannot be made (File exists)" in outcome.reason for outcome in report.failed)


def test_a_folder_in_place_of_the_file(songs: Path, tmp_path: Path):
    (tmp_path / "out" / "2.wav").mkdir(parents=True)
    report = predict(Sines(), songs, tmp_path / "out", trainer=quiet_trainer())
    (failed,) = report.failed
    assert failed.source.name == "2.mid" and "Is a directory" in failed.reason
    assert len(report.written) == 4 and not unfinished(tmp_path / "out")


LIMITED = """
import resource, signal, sys
from midisynth_sines import Sines
from midisynth.render import predict
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
predict(Sines(), sys.argv[1] + "/4.mid", sys.argv[2] + "/")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
report = predict(Sines(), sys.argv[1], sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
print(report.text())
"""


def test_a_full_disk_fails_items_and_keeps_earlier_outputs(songs: Path, tmp_path: Path, environment: dict[str, str]):
    """A file-size limit between the lengths of the songs stands for a disk that gets full."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", LIMITED, str(songs), str(out), "20000"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "2 written, 0 skipped, 3 failed" in done.stdout
    assert done.stdout.count("cannot be written (File too large)") == 3
    # The last song was rendered before, when there was room.
    assert names(out) == ["0.wav", "1.wav", "4.wav"]
    assert all(soundfile.info(out / name).frames >= 8000 for name in names(out))


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs the right to mount a small disk")
def test_a_disk_that_is_really_full(songs: Path, tmp_path: Path):
    out = tmp_path / "disk"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(out)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        report = predict(Sines(), songs, out, trainer=quiet_trainer())
        assert 1 <= len(report.written) < 5 and len(report.written) + len(report.failed) == 5
        assert all("No space left on device" in outcome.reason for outcome in report.failed)
        assert not unfinished(out)
    finally:
        subprocess.run(["umount", str(out)], check=True)
