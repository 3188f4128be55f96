"""Griffin-Lim and ONNX vocoders: what they sound like, where blocks join, and what they say when they cannot."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from midisynth.audio.backend import transforms
from midisynth.audio.features import LogMel
from midisynth.audio.io import load_audio
from midisynth.audio.vocoder import GriffinLim, OnnxVocoder, load_vocoder
from midisynth.errors import CheckpointError
from midisynth.metrics.functional import log_spectral_distance, onset_energy_rise, spectral_convergence
from midisynth.music.midi import read_midi

DATA = Path(__file__).parent / "data"
RATE, HOP = 16000, 320


@pytest.fixture(scope="module")
def piano():
    """Ten seconds of sampled piano, [samples]."""
    return load_audio(DATA / "piano.flac", RATE)[0]


@pytest.fixture(scope="module")
def mel(piano):
    return LogMel()(piano[None])[0]


@pytest.fixture(scope="module")
def rendered(mel):
    """What Griffin-Lim makes of it, [samples]."""
    return GriffinLim()(mel)[0]


def test_length(mel):
    for frames in (1, 2, 3, 17, 144, 145, 500):
        assert GriffinLim(iterations=2)(mel[:frames]).shape == (1, frames * HOP)
    assert GriffinLim()(mel[:0]).shape == (1, 0)


def test_quality(piano, mel, rendered):
    """Better than textbook Griffin-Lim from the same magnitudes, and close to the recording."""
    textbook = transforms.GriffinLim(1024, 32, 640, HOP, power=1.0, momentum=0.9)
    audio = textbook(GriffinLim().linear_magnitude(mel).T)  # torchaudio centres frame i on sample i * HOP of its output
    length = len(audio)
    assert spectral_convergence(audio, piano[HOP:][:length]) > 0.35
    assert spectral_convergence(rendered, piano) < 0.3
    wanted = piano[HOP:][:length]
    assert log_spectral_distance(rendered[HOP:][:length], wanted) < log_spectral_distance(audio, wanted) - 0.02
    assert (LogMel()(rendered[None])[0] - mel).abs().mean() < 0.2


def test_notes_are_where_they_were(piano, rendered):
    notes = read_midi(DATA / "piano.midi").notes
    notes = notes[notes["onset_sec"] > 0.1]
    rises, wanted = (onset_energy_rise(audio, RATE, notes) for audio in (rendered, piano))
    assert (wanted > 3).mean() > 0.95
    assert (rises > 3).mean() > 0.9
    late = notes.copy()
    late["onset_sec"] += 0.2
    assert (onset_energy_rise(rendered, RATE, late) > 3).mean() < 0.3


def test_no_lag(piano, rendered):
    """The loudness curves agree best without a shift, in steps of 2 ms."""
    hop = 32
    first, second = (audio.unfold(0, 128, hop).square().mean(dim=1).sqrt() for audio in (piano, rendered))
    shifts = range(-10, 11)
    products = [float((first[10:-10] * second[10 + shift : len(second) - 10 + shift]).sum()) for shift in shifts]
    assert abs(shifts[products.index(max(products))]) <= 2


@pytest.mark.parametrize("sizes", [[1], [37], [128], [499, 1], [0, 300]])
def test_sizes_of_pushes_do_not_matter(mel, rendered, sizes):
    stream, done, start = GriffinLim().stream(), [], 0
    while start < len(mel):
        for size in sizes:
            done.append(stream.push(mel[start : start + size]))
            start += size
    done.append(stream.finish())
    assert torch.equal(torch.cat(done, dim=1)[0], rendered)


def test_seed_decides(mel):
    vocoder = GriffinLim(iterations=2)
    assert torch.equal(vocoder(mel[:100], seed=3), vocoder(mel[:100], seed=3))
    assert not torch.equal(vocoder(mel[:100], seed=3), vocoder(mel[:100], seed=4))


def level(audio, start, stop):
    return 10 * audio[start:stop].square().mean().clamp(min=1e-12).log10()


@pytest.mark.parametrize("block_frames", [16, 50, 128])
def test_joints_cannot_be_heard(mel, block_frames):
    vocoder = GriffinLim(block_frames=block_frames)
    audio = vocoder(mel)[0]
    step = audio.diff().abs()
    ms = RATE // 1000
    for joint in range(block_frames * HOP, (len(mel) - vocoder.lookahead_frames) * HOP, block_frames * HOP):
        jump = step[joint - 1]  # between the last sample of a block and the first of the next
        around = torch.cat([step[joint - 65 : joint - 1], step[joint : joint + 64]])
        assert jump <= 2 * around.max()
        neighbours = torch.stack([level(audio, joint - 30 * ms, joint), level(audio, joint, joint + 30 * ms)])
        across = level(audio, joint - 10 * ms, joint + 10 * ms)
        assert neighbours.min() - 3 <= across <= neighbours.max() + 3


def test_blocks_are_as_good_as_one(piano, mel):
    whole = GriffinLim(block_frames=1000)(mel)[0]
    for block_frames in (16, 128):
        blocked = GriffinLim(block_frames=block_frames)(mel)[0]
        assert spectral_convergence(blocked, piano) < spectral_convergence(whole, piano) + 0.02


def test_silence_is_silent():
    silence = torch.full((300, 128), -11.5129)
    assert GriffinLim()(silence).abs().max() < 1e-4


def test_autocast_and_inference_mode_change_nothing(mel, rendered):
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(GriffinLim()(mel)[0], rendered)


def test_memory_is_constant(mel):
    def peak(repeats):
        stream = GriffinLim(iterations=1).stream()
        for _ in range(repeats):
            stream.push(mel)
        stream.finish()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    small = peak(2)
    assert peak(20) < small + 20_000  # kB; the magnitudes of these three minutes are 41 MB


@pytest.mark.parametrize("sizes", [(640, 320), (1024, 256), (800, 200)])
def test_other_framings(sizes):
    window, hop = sizes
    tone = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(22050) / 22050)
    features = LogMel(22050, 1024, window, hop, 0, 11025, 80)
    vocoder = load_vocoder(
        "griffin_lim", sample_rate=22050, n_fft=1024, win_length=window, hop_length=hop, f_max=11025.0, mels=80
    )
    audio = vocoder(features(tone[None])[0])[0]
    assert len(audio) == -(-22050 // hop) * hop
    assert spectral_convergence(audio[:22050], tone) < 0.35
    assert vocoder.sample_rate == 22050 and vocoder.hop_samples == hop and vocoder.mels == 80


def test_framing_that_cannot_be_halved():
    with pytest.raises(ValueError, match="multiple of half"):
        GriffinLim(win_length=700)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """A decoder with the interface of the published one: a convolution over time of width 5, 320 samples a frame."""
    weight = torch.randn(HOP, 128, 5, generator=torch.Generator().manual_seed(0)).mul(0.01).numpy()
    nodes = [
        helper.make_node("Transpose", ["input_features"], ["channels_first"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["channels_first", "weight"], ["pieces"], pads=[2, 2]),
        helper.make_node("Transpose", ["pieces"], ["pieces_last"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["pieces_last", "shape"], ["audio"]),
    ]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("input_features", TensorProto.FLOAT, [1, "frames", 128])],
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, [1, "samples"])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(torch.tensor([1, -1]).numpy(), "shape"),
        ],
    )
    path = tmp_path_factory.mktemp("onnx") / "decoder.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_onnx_in_blocks_equals_one_run(onnx_file, mel):
    vocoder = OnnxVocoder(onnx_file, block_frames=32, context_frames=4)
    whole = vocoder.decode(mel)
    assert whole.shape == (1, len(mel) * HOP)
    torch.testing.assert_close(vocoder(mel), whole, atol=1e-5, rtol=0)
    stream = vocoder.stream()
    done = [stream.push(part) for part in mel.split(7)] + [stream.finish()]
    torch.testing.assert_close(torch.cat(done, dim=1), whole, atol=1e-5, rtol=0)
    assert OnnxVocoder(onnx_file)(mel[:0]).shape == (1, 0)


def test_onnx_by_reference_and_from_bytes(onnx_file, mel):
    by_path = load_vocoder(str(onnx_file))
    embedded = load_vocoder("gone/decoder.onnx", content=onnx_file.read_bytes())
    assert torch.equal(by_path(mel[:50]), embedded(mel[:50]))


def test_what_is_no_vocoder(onnx_file, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"choose griffin_lim or the path of an \.onnx file"):
        load_vocoder("hifigan")
    with pytest.raises(CheckpointError, match=r"nowhere\.onnx: no such"):
        load_vocoder("nowhere.onnx")
    (tmp_path / "html.onnx").write_text("<!DOCTYPE html>")
    with pytest.raises(CheckpointError, match=r"html\.onnx: not an ONNX model"):
        load_vocoder(str(tmp_path / "html.onnx"))
    with pytest.raises(CheckpointError, match="samples a frame"):
        load_vocoder(str(onnx_file), hop_length=256)(torch.zeros(10, 128))
    model = onnx.load(onnx_file)
    model.graph.input[0].name = model.graph.node[0].input[0] = "mel"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match=r"expected the one input 'input_features', found \['mel'\]"):
        load_vocoder(str(tmp_path / "other.onnx"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CheckpointError, match="pip install onnxruntime"):
        load_vocoder(str(onnx_file))
