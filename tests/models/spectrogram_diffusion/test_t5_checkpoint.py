"""The official weights in their layouts, with random numbers in them: a folder of diffusers, of T5X, an .npz file."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from midisynth import checkpoints
from midisynth.errors import CheckpointError
from midisynth.main import main
from midisynth.models.spectrogram_diffusion import SpectrogramDiffusion
from midisynth.models.spectrogram_diffusion.t5_checkpoint import FILES, names

HEADS, HEAD_DIM, LAYERS = 2, 8, 2


@pytest.fixture
def model(build) -> SpectrogramDiffusion:
    return build(compat="t5x", context=True, overlap_frames=0, max_tokens=2048, mels=32).eval()


def published(model: SpectrogramDiffusion) -> dict[str, Tensor]:
    """Tensors of a model under the names of diffusers."""
    state, tensors = model.state_dict(), {}
    for name in names(LAYERS, model.hparams.context):
        tensor = state[name.ours]
        if ".value_gate." in name.ours:
            tensor = tensor.chunk(2)[0 if ".wi_1." in name.diffusers else 1]
        tensors[name.diffusers] = tensor.clone()
    return tensors


def t5x(model: SpectrogramDiffusion, heads: bool = False) -> dict[str, np.ndarray]:
    """Arrays of a model under the names of T5X; with the heads of attention apart, as some versions store them."""
    tensors, arrays = published(model), {}
    for name in names(LAYERS, model.hparams.context):
        array = tensors[name.diffusers].numpy()
        if name.t5x.endswith(".kernel"):
            array = array.T
            if heads and name.t5x.endswith((".query.kernel", ".key.kernel", ".value.kernel")):
                array = array.reshape(len(array), HEADS, HEAD_DIM)
            elif heads and name.t5x.endswith(".out.kernel"):
                array = array.reshape(HEADS, HEAD_DIM, -1)
        arrays[f"target.{name.t5x}"] = np.ascontiguousarray(array)
    return arrays


def write_diffusers(model: SpectrogramDiffusion, folder: Path, pickled: bool = True) -> Path:
    """A repository in diffusers' layout."""
    for component in ("notes_encoder", "continuous_encoder", "decoder"):
        (folder / component).mkdir(parents=True)
        prefix = f"{component}."
        tensors = {n.removeprefix(prefix): t for n, t in published(model).items() if n.startswith(prefix)}
        if pickled:
            torch.save(tensors, folder / component / "diffusion_pytorch_model.bin")
        else:
            save_file(tensors, folder / component / "diffusion_pytorch_model.safetensors")
        config = {"d_kv": HEAD_DIM, "dropout_rate": 0.1, "max_decoder_noise_time": 20000.0}
        (folder / component / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "SpectrogramDiffusionPipeline"}))
    return folder


def write_zarr(arrays: Mapping[str, np.ndarray], folder: Path, compressed: bool) -> Path:
    """A T5X checkpoint, its matrices in four chunks each."""
    for name, array in arrays.items():
        path = folder / name
        path.mkdir(parents=True)
        chunks = [(size + 1) // 2 for size in array.shape]
        head = {
            "zarr_format": 2,
            "shape": array.shape,
            "chunks": chunks,
            "dtype": "<f4",
            "compressor": {"id": "gzip", "level": 1} if compressed else None,
            "fill_value": None,
            "filters": None,
            "order": "C",
        }
        (path / ".zarray").write_text(json.dumps(head))
        for index in np.ndindex(*(-(-size // chunk) for size, chunk in zip(array.shape, chunks, strict=True))):
            chunk = np.zeros(chunks, "<f4")
            part = array[tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))]
            chunk[tuple(map(slice, part.shape))] = part
            data = chunk.tobytes()
            (path / ".".join(map(str, index))).write_bytes(gzip.compress(data) if compressed else data)
    (folder / "checkpoint").write_bytes(b"the index, which is not needed")
    return folder


def write_npz(arrays: Mapping[str, np.ndarray], path: Path) -> Path:
    np.savez(path, **{name.replace(".", "/"): array for name, array in arrays.items()})
    return path


def assert_same(read: SpectrogramDiffusion, model: SpectrogramDiffusion) -> None:
    state = read.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert tensor.equal(state[name]), name


@pytest.mark.parametrize("pickled", [True, False])
def test_a_folder_of_diffusers(model, tmp_path, pickled):
    folder = write_diffusers(model, tmp_path / "published", pickled)
    read = SpectrogramDiffusion.load_published(folder)
    assert_same(read, model)
    assert (read.hparams.heads, read.hparams.head_dim, read.hparams.layers) == (HEADS, HEAD_DIM, LAYERS)
    assert read.hparams.vocoder == "griffin_lim"
    # `predict` takes it as it is, and options on top.
    loaded = checkpoints.load_model(folder, sample_steps=3)
    assert_same(loaded, model)
    assert loaded.hparams.sample_steps == 3
    config = checkpoints.trained_config(folder)["model"]
    assert config["class_path"] == SpectrogramDiffusion.class_path() and config["init_args"]["context"] is True


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize(
    "write",
    [
        lambda arrays, path: write_npz(arrays, path / "base.npz"),
        lambda arrays, path: write_zarr(arrays, path / "checkpoint_500000", compressed=True),
        lambda arrays, path: write_zarr(arrays, path / "checkpoint_500000", compressed=False),
    ],
)
def test_t5x(build, tmp_path, write, heads, monkeypatch):
    model = build(compat="t5x", context=True, overlap_frames=0, max_tokens=2048, mels=32, heads=1, head_dim=64)
    monkeypatch.setattr(f"{__name__}.HEADS", 1)
    monkeypatch.setattr(f"{__name__}.HEAD_DIM", 64)
    assert_same(SpectrogramDiffusion.load_published(write(t5x(model, heads), tmp_path)), model)


def test_a_model_without_context(build, tmp_path):
    model = build(compat="t5x", overlap_frames=0, max_tokens=2048, mels=32, heads=1, head_dim=64)
    arrays = t5x(model)
    assert "target.encoder.encoder_norm.scale" in arrays
    read = SpectrogramDiffusion.load_published(write_npz(arrays, tmp_path / "small.npz"))
    assert_same(read, model)
    assert read.hparams.context is False


def test_predict_takes_a_repository_of_the_hub(model, tmp_path, monkeypatch, excerpts):
    """A folder stands in for the download, which brings what the patterns allow."""
    repository = write_diffusers(model, tmp_path / "repository")
    (repository / "training_data.bin").write_bytes(b"of no use")
    cache = tmp_path / "cache"
    asked: list[str] = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (name, revision) == ("owner/music-spectrogram-diffusion", None)
        asked.extend(allow_patterns)
        for pattern in allow_patterns:
            for file in repository.glob(pattern):
                (cache / file.relative_to(repository)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / file.relative_to(repository))
        return str(cache)

    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    output = tmp_path / "song.wav"
    command = ["predict", str(excerpts[1]), "--ckpt_path", "hf://owner/music-spectrogram-diffusion"]
    assert main([*command, "--output", str(output), "--model.sample_steps", "1"]) == 0
    assert output.stat().st_size > 16000
    assert not (cache / "training_data.bin").exists()
    assert set(FILES) <= set(asked)


def test_the_vocoder_beside_the_weights_is_the_default(model, tmp_path):
    folder = write_diffusers(model, tmp_path / "published")
    (folder / "melgan").mkdir()
    (folder / "melgan" / "model.onnx").write_bytes(b"of 60 MB")
    read = checkpoints.load_model(folder)
    assert read.hparams.vocoder == str(folder / "melgan" / "model.onnx")
    assert checkpoints.load_model(folder, vocoder="griffin_lim").hparams.vocoder == "griffin_lim"
    # An import carries its bytes, so that the checkpoint alone is enough.
    assert bytes(read.parts_state()["vocoder"]["data"].numpy()) == b"of 60 MB"


def change_config(folder: Path) -> None:
    (folder / "decoder" / "config.json").write_text('{"max_decoder_noise_time": 2000.0}')


def change_tensors(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        path = folder / "decoder" / "diffusion_pytorch_model.bin"
        tensors = torch.load(path)
        change(tensors)
        torch.save(tensors, path)

    return changed


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (change_config, "max_decoder_noise_time is 2000.0"),
        (lambda folder: (folder / "decoder" / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "decoder" / "diffusion_pytorch_model.bin").unlink(), "download it again"),
        (
            change_tensors(lambda t: t.pop("decoder_norm.weight")),
            r"1 tensors are missing: decoder\.decoder_norm\.weight",
        ),
        (change_tensors(lambda t: t.update(extra=torch.ones(1))), r"1 tensors are unknown: decoder\.extra"),
        (change_tensors(lambda t: t.pop("spec_out.weight")), r"there is no tensor decoder\.spec_out\.weight"),
    ],
)
def test_damage_is_one_line(model, tmp_path, change, text):
    folder = write_diffusers(model, tmp_path / "published")
    change(folder)
    with pytest.raises(CheckpointError, match=rf"published.*{text}") as caught:
        checkpoints.load_model(folder)
    assert "\n" not in str(caught.value)


def test_check_lists_every_tensor_that_does_not_fit(model, tmp_path, capsys):
    folder = write_diffusers(model, tmp_path / "published")
    command = ["import", "spectrogram_diffusion", str(folder), "--check"]
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("parameters; no tensor is missing or unexpected\n")

    path = folder / "continuous_encoder" / "diffusion_pytorch_model.bin"
    tensors = torch.load(path)
    moved = {f"renamed.{name}" if ".layer.1." in name else name: tensor for name, tensor in tensors.items()}
    torch.save(moved, path)
    assert main(command) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{4 * LAYERS} missing" and f"{4 * LAYERS} unexpected" in lines
    assert "  continuous_encoder.renamed.encoders.0.layer.1.layer_norm.weight" in lines
    assert len(lines) == 2 + 8 * LAYERS


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda folder: (folder / "0.0").unlink(), "damaged: expected a zarr array"),
        (lambda folder: (folder / "0.0").write_bytes(b"x" * 7), "damaged: expected a zarr array"),
        (lambda folder: (folder / ".zarray").write_text('{"zarr_format": 3}'), "damaged: expected a zarr array"),
        (
            lambda folder: (folder / ".zarray").write_text(
                (folder / ".zarray").read_text().replace('"dtype": "<f4"', '"dtype": "bfloat16"')
            ),
            "is bfloat16 compressed with gzip",
        ),
    ],
)
def test_damaged_arrays_are_one_line(model, tmp_path, change, text):
    folder = write_zarr(t5x(model), tmp_path / "checkpoint_1", compressed=True)
    change(folder / "target.decoder.spec_out_dense.kernel")
    with pytest.raises(CheckpointError, match=text) as caught:
        SpectrogramDiffusion.load_published(folder)
    assert "\n" not in str(caught.value)


def test_a_broken_npz_is_one_line(tmp_path):
    path = tmp_path / "base.npz"
    np.savez(path, pickled=np.array([{"code": 1}], dtype=object))
    with pytest.raises(CheckpointError, match=r"base\.npz: cannot be read as an .npz file of plain arrays"):
        SpectrogramDiffusion.load_published(path)
