"""The model: a loss on spectra of several resolutions, and rendering half a second at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from midisynth.module import MidiModule, Noise, Rendering
from midisynth_pluck.codec import TAIL_SEC, PluckCodec
from midisynth_pluck.network import StringNetwork, pluck


class Pluck(MidiModule):
    """A plucked string that learns its harmonics.

    Args:
        sample_rate: Of the audio (Hz).
        harmonics: Harmonics of a string.
        dim: Width of the hidden layers.
        segment_seconds: Length of a training clip.
        fft_sizes: Windows of the spectra that are compared (samples).
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds a learning-rate schedule from the optimizer; it advances once a step.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        harmonics: int = 16,
        dim: int = 64,
        segment_seconds: float = 0.5,
        fft_sizes: tuple[int, ...] = (256, 1024, 2048),
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(optimizer, lr_scheduler)
        self.codec = PluckCodec(sample_rate, round(segment_seconds * sample_rate))
        self.network = StringNetwork(harmonics, dim)
        self.fft_sizes = tuple(fft_sizes)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pad the notes with silent ones: `notes` [batch, notes, 4]; stack `audio` [batch, samples] if there is any."""
        notes = torch.nn.utils.rnn.pad_sequence([example["notes"] for example in examples], batch_first=True)
        if "audio" not in examples[0]:
            return {"notes": notes}
        return {"notes": notes, "audio": torch.stack([example["audio"] for example in examples])}

    def forward(self, notes: Tensor) -> Tensor:
        """Audio of whole training clips, [batch, samples], from note rows [batch, notes, 4]."""
        strings = self.network(notes[..., 2], notes[..., 3])
        phases = torch.zeros_like(strings.level)
        codec = self.codec
        clips = range(len(notes))
        return torch.stack(
            [pluck(notes[i], strings[i], phases[i], 0, codec.segment_samples, codec.sample_rate) for i in clips]
        )

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean distance of the log magnitudes over all resolutions (nats)."""
        made, target = self(batch["notes"]), batch["audio"]
        distances = [
            (_log_magnitude(made, size) - _log_magnitude(target, size)).abs().mean() for size in self.fft_sizes
        ]
        return torch.stack(distances).mean()

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, batch_size=len(batch["notes"]))
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), batch_size=len(batch["notes"]), sync_dist=True, prog_bar=True)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch), batch_size=len(batch["notes"]), sync_dist=True)

    def duration_sec(self, example: Mapping[str, Tensor]) -> float:
        """Length of the audio of one piece (seconds), for the time left."""
        return int((example["notes"][:, 0] + example["notes"][:, 1]).max()) / self.codec.sample_rate + TAIL_SEC

    def render(self, batch: Mapping[str, Tensor], noise: Noise) -> Iterator[tuple[int, Rendering]]:
        """Play each piece in blocks of half a second; only the notes that sound in a block cost memory."""
        rate = self.codec.sample_rate
        block, tail = rate // 2, round(TAIL_SEC * rate)
        for position, rows in enumerate(batch["notes"]):
            notes = rows[rows[:, 3] > 0]
            strings = self.network(notes[:, 2], notes[:, 3])
            phases = 2 * math.pi * torch.rand(strings.level.shape, generator=noise.generator(position)).to(notes.device)
            gone = notes[:, 0] + notes[:, 1] + tail
            for start in range(0, int(gone.max()), block):
                sounding = (notes[:, 0] < start + block) & (gone > start)
                audio = pluck(notes[sounding], strings[sounding], phases[sounding], start, block, rate)
                yield position, Rendering(audio=audio.unsqueeze(0), sample_rate=rate)


def _log_magnitude(audio: Tensor, size: int) -> Tensor:
    """[batch, samples] -> [batch, bins, frames]; the floor lies 60 dB under a loud note."""
    window = torch.hann_window(size, device=audio.device)
    spectrum = torch.stft(audio, size, size // 4, window=window, return_complex=True, normalized=True)
    return torch.log(spectrum.abs() + 1e-3)
