"""The joiners of the original, by which pieces lose time."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from midisynth.models.midi_valle.joining import join_as_published


def test_every_joint(parity_root):
    root = parity_root("midi_valle")
    if not (root / "join.safetensors").is_file():
        pytest.skip("join.safetensors does not ship; MIDISYNTH_PARITY names the folder of all fixtures")
    manifest, tensors = json.loads((root / "join.json").read_text()), load_file(root / "join.safetensors")
    tolerance = float(re.search(r"abs (\S+)", manifest["tolerance"])[1])
    count = sum(name.startswith("in.") for name in tensors)
    pieces = [tensors[f"in.{number}"] for number in range(count)]
    assert len(manifest["modes"]) == 4
    for mode in manifest["modes"]:
        torch.testing.assert_close(join_as_published(pieces, mode), tensors[f"out.{mode}"], rtol=0, atol=tolerance)
