"""The door to a piano transcriber: audio -> notes, as a judge of renderings.

transkun (Yan and Duan 2024, MIT) brings its weights in its package. Its command needs packages that are gone from new
installs, so its model class is used directly.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import warnings

import numpy as np
import torch
from torch import Tensor

from midisynth.audio.backend import functional
from midisynth.errors import MidisynthError
from midisynth.music.notes import NOTE_DTYPE


class Transcriber:
    """transkun 2.0 with the weights of its package.

    Args:
        device: Where it runs. It takes about 3 CPU seconds a second of audio.

    Raises:
        MidisynthError: transkun is not installed.
    """

    def __init__(self, device: str = "cpu"):
        if importlib.util.find_spec("transkun") is None:
            raise MidisynthError("transcription needs transkun; install it with: pip install transkun")
        import moduleconf

        folder = importlib.resources.files("transkun") / "pretrained"
        with importlib.resources.as_file(folder / "2.0.conf") as path:
            entry = moduleconf.parseFromFile(str(path))["Model"]
        with importlib.resources.as_file(folder / "2.0.pt") as path:
            weights = torch.load(path, map_location=device, weights_only=True)
        self._model = entry.module.TransKun(conf=entry.config).to(device).eval()
        self._model.load_state_dict(weights["state_dict"])
        self._device = device

    @torch.no_grad()
    def __call__(self, audio: Tensor, sample_rate: int) -> np.ndarray:
        """Transcribe [samples] at `sample_rate` Hz: [notes] of `NOTE_DTYPE` in order of onset, seconds only."""
        audio = functional.resample(audio.detach().cpu().float(), sample_rate, self._model.fs)
        seconds = len(audio) / self._model.fs
        segment = self._model.segmentSizeInSecond
        # Overlapping segments analyse everything twice, and silence around it; what fits into one needs neither.
        step = segment if seconds <= segment else self._model.segmentHopSizeInSecond
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its use of gradient checkpointing, which does not concern us
            events = self._model.transcribe(
                audio[:, None].to(self._device), stepInSecond=step, segmentSizeInSecond=segment
            )
        events = [event for event in events if event.pitch >= 0]  # pedals are events of negative pitch
        notes = np.zeros(len(events), NOTE_DTYPE)
        notes["onset_sec"] = [event.start for event in events]
        notes["duration_sec"] = [event.end - event.start for event in events]
        notes["pitch"] = [event.pitch for event in events]
        notes["velocity"] = [event.velocity for event in events]
        return notes[np.argsort(notes["onset_sec"], kind="stable")]
