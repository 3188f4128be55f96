"""Published checkpoints: their layout, their hyper-parameters, and files that must not be trusted."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from midisynth.errors import CheckpointError, TensorMismatch
from midisynth.models.dexter import DExter
from midisynth.models.dexter.checkpoint import PUBLISHED_MEAN, PUBLISHED_STD, build_network, read_published
from midisynth.models.dexter.features import PUBLISHED

MEANS, STDS = [0.6, 0.5, 0.0, -0.4, 0.2], [0.3, 0.2, 0.1, 0.9, 0.4]
SIZES = {
    "diffwave": {"channels": 6, "layers": 3, "kernel_size": 3, "midlevel_features": 0, "normalise_score": True},
    "unet": {"dim": 4, "multipliers": [1, 2]},
}

#: Hyper-parameters as the original's Lightning module keeps them.
SETTINGS = {
    "timesteps": 500,
    "beta_start": 1e-4,
    "beta_end": 0.2,
    "loss_type": "l2",
    "seg_len": 100,
    "cond_dropout": 0.2,
    "training": {"mode": "x_0", "target": "transfer"},
    "sampling": {"type": "cfdg_ddpm", "w": 3},
    "dataset_means": MEANS,
    "dataset_stds": STDS,
    "loss_weight": [1, 1, 1, 1, 1],
    "dilation_base": 2,
    "dilation_bound": 3,
}

#: Writes a checkpoint whose hyper-parameters are nodes of a module that exists in that process alone, in the structure
#: of the real one: containers keep nodes in `_content`, and these their values in `_val` and their container.
WRITER = """
import sys, types
import torch

library = types.ModuleType("omegaconf")
sys.modules["omegaconf"] = library


class Node:
    def __init__(self, parent, **fields):
        self.__dict__.update(fields, _metadata=Metadata(), _parent=parent, _flags_cache=None)


class Metadata:
    def __init__(self):
        self.__dict__.update(ref_type=dict, object_type=object, optional=True, key=None, flags={})


class DictConfig(Node):
    pass


class ListConfig(Node):
    pass


class AnyNode(Node):
    pass


for cls in (Metadata, DictConfig, ListConfig, AnyNode):
    cls.__module__ = "omegaconf"
    setattr(library, cls.__name__, cls)


def node(value, parent=None):
    if isinstance(value, dict):
        made = DictConfig(parent, _content={})
        made._content.update({key: node(item, made) for key, item in value.items()})
    elif isinstance(value, list):
        made = ListConfig(parent, _content=[])
        made._content.extend(node(item, made) for item in value)
    else:
        made = AnyNode(parent, _val=value)
    return made


for path in sys.argv[1:]:
    content = torch.load(path)
    # Plain values and nodes, as Lightning keeps them.
    content["hyper_parameters"] = {
        key: value if isinstance(value, (int, float, str)) else node(value)
        for key, value in content["hyper_parameters"].items()
    }
    torch.save(content, path)
"""


def tensors(kind: str, **sizes) -> dict[str, Tensor]:
    """State dict of a small published network."""
    network = build_network(kind, SIZES[kind] | sizes)
    return {name: torch.randn_like(tensor) for name, tensor in network.state_dict().items()}


def write(folder: Path, state: dict[str, Tensor], **more) -> Path:
    """A checkpoint as Lightning 1.9 writes it."""
    folder.mkdir(exist_ok=True)
    path = folder / "last.ckpt"
    content = {"epoch": 3, "global_step": 40, "pytorch-lightning_version": "1.9.0", "state_dict": state, "loops": {}}
    moments = {0: {"step": torch.tensor(40.0), "exp_avg": torch.zeros(3)}}
    optimizer = {"state": moments, "param_groups": [{"lr": 5e-5, "betas": (0.9, 0.999), "params": [0]}]}
    torch.save({**content, "optimizer_states": [optimizer], "lr_schedulers": [], **more}, path)
    return path


def assert_read(path: Path, kind: str, state: dict[str, Tensor]) -> None:
    """The file holds `SETTINGS`."""
    published = read_published(path)
    options = published.options
    assert options["compat"] == "2024"
    assert options["denoiser"] == kind
    assert (options["diffusion_steps"], options["beta_end"], options["window"]) == (500, 0.2, 100)
    assert (options["objective"], options["target"], options["norm"]) == ("x0", "transfer", "l2")
    assert (options["guidance"], options["cfg_dropout"]) == (3.0, 0.2)
    if kind == "diffwave":
        assert (options["channels"], options["layers"], options["kernel_size"]) == (6, 3, 3)
        assert options["dilation_cycle"] == 3
    else:
        assert (options["dim"], options["multipliers"]) == (4, [1, 2])
    assert published.state["mean"].tolist() == pytest.approx(MEANS)
    assert published.state["std"].tolist() == pytest.approx(STDS)
    for name, tensor in state.items():
        assert published.state[f"network.{name}"].equal(tensor), name


@pytest.mark.parametrize("kind", ["diffwave", "unet"])
def test_reads_plain_settings(tmp_path, kind):
    state = tensors(kind)
    assert_read(write(tmp_path, state, hyper_parameters=SETTINGS), kind, state)


def test_reads_settings_in_nodes(tmp_path):
    states = {kind: tensors(kind) for kind in SIZES}
    paths = {kind: write(tmp_path / kind, state, hyper_parameters=SETTINGS) for kind, state in states.items()}
    done = subprocess.run([sys.executable, "-c", WRITER, *paths.values()], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for kind, path in paths.items():
        with pytest.raises(pickle.UnpicklingError, match="omegaconf"):
            torch.load(path, weights_only=True)
        assert_read(path, kind, states[kind])
    assert "omegaconf" not in sys.modules


@pytest.mark.parametrize("kind", ["diffwave", "unet"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_tensors_alone_have_the_published_settings(tmp_path, kind, suffix):
    state = {name: tensor.bfloat16() for name, tensor in tensors(kind).items()}
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    published = read_published(path)
    assert (published.options["diffusion_steps"], published.options["guidance"]) == (1000, 1.2)
    assert published.state["mean"].tolist() == pytest.approx(PUBLISHED_MEAN)
    assert published.state["std"].tolist() == pytest.approx(PUBLISHED_STD)
    assert all(published.state[f"network.{name}"].equal(tensor.float()) for name, tensor in state.items())


@pytest.mark.parametrize("kind", ["diffwave", "unet"])
@pytest.mark.parametrize("null", ["fixed", "learned"])
def test_models_are_complete(tmp_path, kind, null):
    state = tensors(kind, **({"null": "learned", "null_notes": 100} if null == "learned" else {}))
    model = DExter.load_published(write(tmp_path, state, hyper_parameters=SETTINGS))
    for name, tensor in model.network.state_dict().items():
        assert tensor.equal(state[name]), name
    assert model.hparams.null == null
    assert model.mean.tolist() == pytest.approx(MEANS)
    # Statistics of other data would not be those that the weights know.
    model.set_statistics(
        torch.ones(4, 5), torch.ones(4, 7), torch.ones(4, 7), torch.ones(2, 2), torch.ones(2, len(PUBLISHED))
    )
    assert model.mean.tolist() == pytest.approx(MEANS)


def test_constants_that_were_left_out(tmp_path):
    """Newer versions of the original keep them elsewhere and write null."""
    path = write(
        tmp_path, tensors("diffwave"), hyper_parameters=SETTINGS | {"dataset_means": None, "dataset_stds": None}
    )
    assert read_published(path).state["mean"].tolist() == pytest.approx(PUBLISHED_MEAN)


@pytest.mark.parametrize("kind", ["diffwave", "unet"])
def test_learned_nulls(tmp_path, kind):
    state = tensors(kind, null="learned", null_notes=100)
    published = read_published(write(tmp_path, state, hyper_parameters=SETTINGS))
    assert published.options["null"] == "learned"
    assert published.state["network.trainable_parameters"].equal(state["trainable_parameters"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s, h: s.pop("input_projection.bias"), "1 missing: input_projection.bias"),
        (lambda s, h: s.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (
            lambda s, h: s.update({"skip_projection.bias": torch.zeros(7)}),
            r"skip_projection.bias \[7\] instead of \[6\]",
        ),
        (lambda s, h: s.pop("input_projection.weight"), "not a published DExter model"),
        (lambda s, h: s.update(epoch=3), "expected a state dict"),
        (lambda s, h: h.update(timesteps="many"), "hyper-parameter timesteps: expected a value of type int"),
        (lambda s, h: h["training"].update(mode="y"), "training.mode: expected one of epsilon, ex_0, x_0, not y"),
        (lambda s, h: h.update(dataset_stds=[1.0, 2.0]), "dataset_stds: expected 5 numbers"),
        (lambda s, h: h.update(beta_start=0.01), "beta_start is 0.01; all published models have 0.0001"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, text):
    state, settings = tensors("diffwave"), SETTINGS | {"training": dict(SETTINGS["training"])}
    change(state, settings)
    with pytest.raises(CheckpointError, match=text) as caught:
        read_published(write(tmp_path, state, hyper_parameters=settings))
    assert "last.ckpt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mismatches_are_listed(tmp_path):
    state = tensors("unet")
    del state["mid_attn.fn.norm.bias"], state["final_fc.bias"]
    with pytest.raises(TensorMismatch) as caught:
        read_published(write(tmp_path, state | {"more": torch.zeros(2)}))
    assert caught.value.missing == ("final_fc.bias", "mid_attn.fn.norm.bias")
    assert caught.value.unexpected == ("more",)


class Hostile:
    """Writes a file when it is unpickled as pickles are."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


class Shell(Hostile):
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(("kind", "loads"), [(Hostile, True), (Shell, False)])
def test_nothing_is_executed(tmp_path, kind, loads):
    """Calls become records of what would have been called; those of the system itself are refused."""
    trace = tmp_path / "trace"
    path = write(tmp_path, tensors("diffwave"), hyper_parameters=SETTINGS | {"sampling": kind(trace)})
    if loads:
        assert read_published(path).options["guidance"] == 1.2
    else:
        with pytest.raises(CheckpointError, match="refused"):
            read_published(path)
    assert not trace.exists()
