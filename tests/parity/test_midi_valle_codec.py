"""EnCodec under the names of audiocraft, and the file that it exports."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import pytest
import torch
import yaml
from safetensors.torch import load_file

from midisynth.audio.neural_codec import AudiocraftCodec, audiocraft_options, renamed
from midisynth.errors import UsageError
from midisynth.models.midi_valle import PianoCodec
from midisynth.tensor_files import load_state, read_checkpoint

EXPORT = "codec_export.bin"


@pytest.fixture(scope="module")
def root(parity_root):
    folder = parity_root("midi_valle")
    if not (folder / "codec.json").is_file():
        pytest.skip("codec.json does not ship; MIDISYNTH_PARITY names the folder of all fixtures")
    return folder


@pytest.fixture(scope="module")
def manifest(root):
    return json.loads((root / "codec.json").read_text())


@pytest.fixture(scope="module")
def tensors(root):
    return load_file(root / "codec.safetensors")


def state_of(case, tensors):
    prefix = f"{case['name']}.w."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def compare(model, case, tensors, tolerance):
    for run in case["runs"]:
        wanted = {
            name: tensors[f"{case['name']}.T{run['samples']}.{name}"]
            for name in ("wav", "emb", "codes", "latent", "decoded")
        }
        audio = wanted["wav"][:, 0]
        with torch.no_grad():
            codes = model.encode(audio)
            decoded = model.decode(codes)
            assert torch.equal(codes, wanted["codes"].transpose(1, 2))
            assert codes.shape[1] == run["frames"]
            assert decoded.shape[1] == run["decoded_samples"] == run["frames"] * model.hop
            torch.testing.assert_close(decoded, wanted["decoded"][:, 0], rtol=0, atol=tolerance)
            latents = model.latents(audio)
            torch.testing.assert_close(latents, wanted["latent"].transpose(1, 2), rtol=0, atol=tolerance)
            if isinstance(model, PianoCodec):
                torch.testing.assert_close(model.network.analyse(audio), wanted["emb"], rtol=0, atol=tolerance)


def exported(manifest):
    """The case that the exported file holds."""
    name = re.search(r"holds case '(\w+)'", manifest[EXPORT])[1]
    return next(case for case in manifest["cases"] if case["name"] == name)


def tolerance_of(manifest) -> float:
    return float(re.search(r"floats (\S+)", manifest["tolerance"])[1])


def test_cases(manifest, tensors):
    """Every way of padding, odd lengths, and every tensor under its new name."""
    for case in manifest["cases"]:
        state = state_of(case, tensors)
        assert {name: renamed(name) for name in state} == case["key_map"]
        options = audiocraft_options(yaml.safe_dump(case["config"]), case["name"])
        model = PianoCodec(**asdict(options)).eval()
        own = model.network.network.config.to_dict()
        for name, value in case["hf_config"].items():
            if name != "target_bandwidths":
                assert own[name] == value, name
        load_state(model, {f"network.network.{renamed(name)}": tensor for name, tensor in state.items()}, case["name"])
        compare(model, case, tensors, tolerance_of(manifest))


def test_exported_file(root, manifest, tensors):
    case = exported(manifest)
    model = PianoCodec.load_published(root / EXPORT).eval()
    assert model.sample_rate == case["config"]["sample_rate"]
    assert model.hparams.pad_mode == case["config"]["seanet"]["pad_mode"]
    compare(model, case, tensors, tolerance_of(manifest))


def test_audiocraft_itself(root, manifest, tensors):
    """Where it is installed; otherwise its adapter says how to install it."""
    content = read_checkpoint(root / EXPORT)
    try:
        model = AudiocraftCodec(content["xp.cfg"], content["best_state"])
    except UsageError as error:
        pytest.skip(str(error))
    case = exported(manifest)
    compare(model, case, tensors, tolerance_of(manifest))
