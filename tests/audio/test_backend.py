"""The torchaudio door opens on every install: whole, built for another CUDA, or with a library missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

# torchaudio itself is real; its compiled extension behaves as on the three kinds of installs.
PRELUDE = """
import importlib.abc, importlib.machinery, sys

class Extension(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    attempts = 0

    def find_spec(self, name, path=None, target=None):
        if name == "torchaudio._extension":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        Extension.attempts += 1
        {behaviour}

sys.meta_path.insert(0, Extension())
"""

CHECK = """
import torch
from midisynth.audio.backend import functional, transforms

assert Extension.attempts == 1, Extension.attempts
assert sys.modules["torchaudio"].functional is functional
filters = functional.melscale_fbanks(65, 0.0, 4000.0, 8, 8000)
assert filters.shape == (65, 8) and filters.sum() > 1
tone = torch.sin(torch.arange(4000) * 0.2)
assert torch.allclose(functional.resample(tone, 8000, 16000)[400:7600:2], tone[200:3800], atol=1e-2)
assert transforms.MelSpectrogram(8000, n_fft=128, n_mels=8)(tone).shape[0] == 8
functional.lfilter(tone, torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.0]))
print(type(sys.modules["torchaudio._extension"]).__name__)
"""

SITUATIONS = {
    "works": (
        "module._IS_TORCHAUDIO_EXT_AVAILABLE = False; module.fail_if_no_align = lambda function: function",
        "module",
    ),
    "other CUDA": (
        "raise RuntimeError('Detected that PyTorch and TorchAudio were compiled with different CUDA versions.')",
        "_NoExtension",
    ),
    "missing library": ("raise OSError('Could not load this library: libtorchaudio.so')", "_NoExtension"),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_opens(situation):
    behaviour, extension = SITUATIONS[situation]
    code = PRELUDE.replace("{behaviour}", behaviour) + CHECK
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == extension


def test_other_failures_are_not_hidden():
    code = PRELUDE.replace("{behaviour}", "raise ImportError('broken install')")
    code += "import midisynth.audio.backend"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "broken install" in done.stderr
