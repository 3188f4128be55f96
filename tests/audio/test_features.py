"""Mel front end and scaling beyond what the parity fixtures cover."""

from __future__ import annotations

import math

import pytest
import torch

from midisynth.audio.features import LogMel, MelRange

INF = float("inf")


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 640, 1000, 16000])
def test_frame_counts(samples):
    audio = torch.randn(2, samples)
    assert LogMel()(audio).shape == (2, math.ceil(samples / 320), 128)
    if samples > 512:  # a reflection by 512 samples needs as many
        assert LogMel(framing="centered")(audio).shape == (2, samples // 320 + 1, 128)


def test_published_frames_see_their_own_samples_alone():
    audio = torch.zeros(1, 320 * 20)
    audio[:, 320 * 10 : 320 * 11] = torch.randn(320)
    sounding = LogMel()(audio)[0].amax(dim=-1) > math.log(1e-5)
    assert sounding.nonzero().flatten().tolist() == [9, 10]


def test_later_audio_changes_no_finished_frame():
    audio = torch.randn(1, 320 * 20)
    torch.testing.assert_close(LogMel()(audio)[:, :9], LogMel()(audio[:, : 320 * 10])[:, :9], atol=1e-5, rtol=0)


@pytest.mark.parametrize("framing", ["published", "centered"])
def test_tone_is_in_its_bin(framing):
    mel = LogMel(framing=framing)
    audio = torch.sin(2 * math.pi * 440 / 16000 * torch.arange(16000))[None]
    edges = torch.linspace(0, 2595 * math.log10(1 + 8000 / 700), 130)
    center = 700 * (10 ** (edges[1:-1] / 2595) - 1)
    assert abs(float(center[mel(audio)[0, 20].argmax()]) - 440) < 20


def test_constants_stay_out_of_checkpoints():
    assert not LogMel().state_dict()
    assert not MelRange().state_dict()
    assert set(MelRange(adaptive=True).state_dict()) == {"min", "max"}


def test_framing_is_checked():
    with pytest.raises(ValueError, match="published"):
        LogMel(framing="reflect")


def test_fixed_range_clips_one_way_only():
    scale = MelRange(-7.0, 4.0)
    mel = torch.tensor([-11.0, -7.0, -1.5, 4.0, 6.0])
    assert scale(mel).tolist() == [-1, -1, 0, 1, 1]
    assert scale.inverse(torch.tensor([-1.0, 0.0, 1.0, 2.0])).tolist() == [-7, -1.5, 4, 9.5]
    assert MelRange(-7.0, 4.0, clip=False)(mel)[-1] > 1


def test_adaptive_range_follows_training_batches():
    scale = torch.nn.Sequential(torch.nn.Identity(), MelRange(INF, -INF, adaptive=True, clip=False))
    first = scale(torch.tensor([-3.0, 1.0]))
    assert first.tolist() == [-1, 1]
    assert scale(torch.tensor([-5.0, 0.0])).tolist() == pytest.approx([-1, 2 / 3])  # maximum is still 1
    scale.eval()
    scale(torch.tensor([-100.0, 100.0]))
    assert {name: float(value) for name, value in scale.state_dict().items()} == {"1.min": -5, "1.max": 1}
    again = torch.nn.Sequential(torch.nn.Identity(), MelRange(INF, -INF, adaptive=True, clip=False)).eval()
    again.load_state_dict(scale.state_dict())
    assert again(torch.tensor([-2.0])).item() == 0


def _widen(rank: int, store: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    scale = MelRange(INF, -INF, adaptive=True, clip=False)
    scale(torch.tensor([[-2.0, 1.0], [-6.0, 0.5]][rank]))
    assert (float(scale.min), float(scale.max)) == (-6, 1), (rank, scale.min, scale.max)
    torch.distributed.destroy_process_group()


def test_adaptive_range_is_shared_by_processes(tmp_path):
    torch.multiprocessing.spawn(_widen, args=(str(tmp_path / "store"),), nprocs=2)
