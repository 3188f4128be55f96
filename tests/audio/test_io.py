"""Audio files: good and bad ones to read, and what can go wrong while one is written."""

from __future__ import annotations

import csv
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from midisynth.audio.io import AudioWriter, audio_seconds, load_audio, resample, stream_audio
from midisynth.errors import AudioError, RenderError

DATA = Path(__file__).parent / "data"
CASES = {row["path"]: row["wanted"] for row in csv.DictReader((DATA / "manifest.csv").open())}
REFUSED = {
    "nan_inf.wav": "NaN",
    "no_samples.wav": "no samples",
    "header_only.wav": "no samples",
    "sr_1hz.wav": "1 Hz",
    "channels_zero.wav": "Channel count",
    "riff_but_avi.wav": "Format not recognised",
    "text.wav": "Format not recognised",
    "empty.flac": "Format not recognised",
    "truncated.flac": "lost sync",
}


@pytest.mark.parametrize("name", CASES)
def test_reading(name):
    if name in REFUSED:
        assert "reject" in CASES[name]
        with pytest.raises(AudioError, match=REFUSED[name]) as caught:
            load_audio(DATA / name, 16000)
        assert str(caught.value).startswith(str(DATA / name))
        return
    assert "accept" in CASES[name]
    audio = load_audio(DATA / name, 16000)
    info = soundfile.info(DATA / name)
    assert audio.dtype == torch.float32
    assert audio.shape == (info.channels, -(-info.frames * 16000 // info.samplerate))
    assert torch.isfinite(audio).all()


def test_values_are_those_of_the_file():
    name = "ok_tone_16k.wav"
    wanted, rate = soundfile.read(DATA / name, dtype="float32")
    assert np.array_equal(load_audio(DATA / name)[0].numpy(), wanted)
    assert np.array_equal(load_audio(DATA / name, rate)[0].numpy(), wanted)
    assert load_audio(DATA / "float_over_one.wav").abs().max() > 2


def test_missing_file():
    with pytest.raises(AudioError, match="no such file"):
        load_audio(DATA / "nowhere.wav")


# 44101 and 16000 have no common factor: a table of all their phases would take gigabytes.
@pytest.mark.parametrize("rate", [8000, 44100, 44101])
def test_resampling_keeps_a_tone(rate):
    def tone(sample_rate):
        return torch.sin(2 * torch.pi * 440 * torch.arange(2 * sample_rate, dtype=torch.float64) / sample_rate).float()

    converted = resample(tone(rate)[None], rate, 16000)[0]
    assert len(converted) == 32000
    assert (converted - tone(16000))[4000:-4000].abs().max() < 5e-3


def test_resampling_removes_what_would_fold_back():
    tone = torch.sin(2 * torch.pi * 12000 * torch.arange(44101) / 44101)[None]
    assert resample(tone, 44101, 16000)[:, 1000:-1000].abs().max() < 2e-2


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_blocks_make_one_file(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    audio = 0.5 * torch.sin(torch.arange(150000) * torch.tensor([[0.05], [0.07]]))
    with AudioWriter(path, 16000, channels=2) as writer:
        for block in audio.split(70001, dim=1):
            writer.write(block)
            assert not path.exists()
        writer.write(torch.zeros(2, 0))
    assert load_audio(path).shape == audio.shape
    assert (load_audio(path) - audio).abs().max() < (0.05 if suffix == ".ogg" else 1e-4)
    assert writer.report.seconds == 150000 / 16000
    assert writer.report.clipped_samples == 0
    assert writer.report.peak == pytest.approx(0.5, abs=1e-3)
    assert os.listdir(tmp_path) == [path.name]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with AudioWriter(tmp_path / "out.wav", 16000) as writer:
            writer.write(torch.zeros(1, 10))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.wav").stat().st_mode) == 0o640


def test_the_file_grows_while_it_is_written(tmp_path):
    with AudioWriter(tmp_path / "out.wav", 16000) as writer:
        sizes = []
        for _ in range(3):
            writer.write(torch.randn(1, 16000))
            sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
    assert sizes[0] < sizes[1] < sizes[2]


def test_clipping_is_counted_and_does_not_wrap(tmp_path):
    with AudioWriter(tmp_path / "out.wav", 16000) as writer:
        writer.write(torch.tensor([[0.0, 1.0, -1.0, 1.5, -2.4, 0.5]]))
    assert writer.report.clipped_samples == 2
    assert writer.report.peak == pytest.approx(2.4)
    written = load_audio(tmp_path / "out.wav")[0]
    assert written.tolist() == pytest.approx([0, 1, -1, 1, -1, 0.5], abs=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_is_never_written(tmp_path, value):
    path = tmp_path / "out.wav"
    path.write_bytes(b"an earlier result")
    with pytest.raises(RenderError, match="NaN or infinite"), AudioWriter(path, 16000) as writer:
        writer.write(torch.zeros(1, 1000))
        writer.write(torch.tensor([[0.0, value]]))
    assert path.read_bytes() == b"an earlier result"
    assert os.listdir(tmp_path) == ["out.wav"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), AudioWriter(tmp_path / "out.flac", 16000) as writer:
        writer.write(torch.zeros(1, 1000))
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_long_names_work(tmp_path):
    path = tmp_path / ("ü" * 125 + "x.wav")
    assert len(os.fsencode(path.name)) == 255
    with AudioWriter(path, 16000) as writer:
        writer.write(torch.zeros(1, 10))
    assert path.exists()


def test_wrong_targets(tmp_path):
    with pytest.raises(AudioError, match=r"choose \.wav, \.flac, \.ogg"):
        AudioWriter(tmp_path / "out.mp3", 16000)
    with pytest.raises(AudioError, match="cannot hold PCM_16"):
        AudioWriter(tmp_path / "out.ogg", 16000, subtype="PCM_16")
    with pytest.raises(AudioError, match="No such file or directory"), AudioWriter(tmp_path / "no" / "out.wav", 16000):
        pass
    # /proc is read-only even for root, whom permissions do not stop.
    with pytest.raises(AudioError, match="cannot be written"), AudioWriter("/proc/out.wav", 16000):
        pass
    with pytest.raises(AudioError, match="cannot be written"), AudioWriter(tmp_path / "out.flac", 10**7):
        pass
    with pytest.raises(AudioError, match="300 channels"):
        AudioWriter(tmp_path / "out.ogg", 16000, channels=300)
    with pytest.raises(ValueError, match=r"expected \[2, samples\]"), AudioWriter(tmp_path / "a.wav", 16000, 2) as file:
        file.write(torch.zeros(1, 10))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_folder_without_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(AudioError, match="Permission denied"), AudioWriter(tmp_path / "locked" / "out.wav", 16000):
        pass


LIMITED = """
import os, resource, sys, torch
from midisynth.audio.io import AudioWriter
from midisynth.errors import AudioError

def write(path):
    torch.manual_seed(0)
    with AudioWriter(path, 16000) as writer:
        for _ in range(5):
            writer.write(torch.randn(1, 4000).clamp(-1, 1))

path, whole = sys.argv[1:]
write(whole)
size = os.stat(whole).st_size
for limit in (20, size // 2, size - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write(path)
    except AudioError as error:
        print(error)
"""


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_full_disk(tmp_path, suffix):
    """The disk is full at the header, in the middle, or when the last byte is written on closing."""
    path, whole = tmp_path / f"out{suffix}", tmp_path / f"whole{suffix}"
    path.write_bytes(b"an earlier result")
    code = [sys.executable, "-c", LIMITED, str(path), str(whole)]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    assert done.stdout == 3 * f"{path}: cannot be written (File too large)\n"
    assert done.stderr == ""
    assert path.read_bytes() == b"an earlier result"
    assert sorted(os.listdir(tmp_path)) == [path.name, whole.name]


def test_memory_is_constant(tmp_path):
    def write(blocks):
        with AudioWriter(tmp_path / "out.flac", 16000) as writer:
            for _ in range(blocks):
                writer.write(torch.zeros(1, 160000))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    small = write(5)
    assert write(100) < small + 20_000  # kB; the audio itself is 64 MB


# Streams


@pytest.mark.parametrize("rate", [16000, 44100, 48000, 11025, 44101])
def test_blocks_of_a_stream_are_the_file(tmp_path, rate):
    """Resampled block by block it is what it is as a whole; nothing is lost, doubled or bent where blocks meet."""
    path = tmp_path / "noise.wav"
    for samples in (10, rate // 2, 5 * rate + 1):
        noise = np.random.default_rng(0).standard_normal((samples, 2)) * 0.1
        soundfile.write(path, noise, rate, subtype="FLOAT")
        blocks = list(stream_audio(path, 16000, block_sec=0.7))
        whole = load_audio(path, 16000)
        tolerance = 1e-5 if rate != 44101 else 0.02  # resampled over the whole file, whose ends ring
        torch.testing.assert_close(torch.cat(blocks, dim=1), whole, rtol=0, atol=tolerance)
        assert max(block.shape[1] for block in blocks) < 3 * 16000
    assert audio_seconds(path) == pytest.approx(5.0, abs=1e-3)


def test_damage_in_a_stream(tmp_path):
    path = tmp_path / "nan.wav"
    soundfile.write(path, np.r_[np.zeros(40000), np.nan], 16000, subtype="FLOAT")
    stream = stream_audio(path, 16000, block_sec=1.0)
    assert next(stream).shape == (1, 16000)
    with pytest.raises(AudioError, match="NaN or infinite"):
        list(stream)
    soundfile.write(path, np.zeros(0), 16000)
    with pytest.raises(AudioError, match="no samples"):
        list(stream_audio(path, 16000))
