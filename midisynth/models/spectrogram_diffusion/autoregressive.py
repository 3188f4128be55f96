"""`SpectrogramAutoregressive`: the same front end and the same tokens, but one frame after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MetricCollection

from midisynth.diffusion.sampling import NoiseSource
from midisynth.evaluation import Renditions
from midisynth.metrics.scores import MelConvergence, MelError
from midisynth.models.spectrogram_diffusion.checkpoint import read_published
from midisynth.models.spectrogram_diffusion.codec import SpectrogramDiffusionCodec
from midisynth.models.spectrogram_diffusion.evaluation import evaluate_batch
from midisynth.models.spectrogram_diffusion.network import AutoregressiveNetwork
from midisynth.models.spectrogram_diffusion.rendering import SpectrogramModule
from midisynth.models.spectrogram_diffusion.tokens import PADDING
from midisynth.module import Published
from midisynth.nn.cache import KeyValue


class SpectrogramAutoregressive(SpectrogramModule):
    """MIDI -> audio: log-mel frames predicted one after the other, then a vocoder.

    The baseline of the paper: faster than diffusion with many steps, and less clear. The defaults are the sizes
    published as "small" with corrected behaviour.

    Args:
        sample_rate: Of the audio (Hz).
        n_fft: FFT size (samples).
        win_length: Length of the Hann window (samples).
        hop_length: Distance of frames (samples).
        f_min: Lower edge of the lowest mel filter (Hz).
        f_max: Upper edge of the highest mel filter (Hz).
        mels: Mel bins.
        mel_min: Log magnitude that becomes -1; what is below is clipped.
        mel_max: Log magnitude that becomes 1; what is above is clipped.
        segment_frames: Frames of a segment.
        overlap_frames: Frames in which a segment is faded into the next one.
        margin_frames: Frames at both ends of a segment that are generated and not used, besides those of the fade.
        tail_sec: What is rendered after the end of the last note (seconds).
        velocity_bins: Loudness classes of the tokens; 1 is on or off.
        shift_ids: Token ids for time shifts; null: two more than a segment has steps, as published.
        max_tokens: Longest token sequence of a segment.
        dim: Width of the network.
        hidden_dim: Width inside the feed-forwards.
        heads: Attention heads.
        head_dim: Width of one head.
        layers: Layers of the encoder, and of the decoder.
        dropout: Dropout probability.
        dither: Deviation of the noise that is added to every generated frame before the next one is predicted from it.
        causal: Generate as it was trained; false repeats the fault of the re-implementation, whose frames attend to
            later ones, and is much slower.
        segments_per_batch: Segments that are generated together.
        vocoder: Mel spectrogram to waveform: "griffin_lim", the path of an .onnx file, or a checkpoint of a vocoder.
        compat: "seed" reproduces the PyTorch re-implementation: centred frames, a mel range learned from the data,
            unmasked padding in training, notes and pedals as note_seq reads them.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds a learning-rate schedule from the optimizer; it advances once a step.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int = 1024,
        win_length: int = 640,
        hop_length: int = 320,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        mels: int = 128,
        mel_min: float = math.log(1e-5),
        mel_max: float = 4.0,
        segment_frames: int = 256,
        overlap_frames: int = 16,
        margin_frames: int = 0,
        tail_sec: float = 1.0,
        velocity_bins: int = 1,
        shift_ids: int | None = None,
        max_tokens: int = 3000,
        dim: int = 512,
        hidden_dim: int = 1024,
        heads: int = 6,
        head_dim: int = 64,
        layers: int = 8,
        dropout: float = 0.1,
        dither: float = 0.0,
        causal: bool = True,
        segments_per_batch: int = 8,
        vocoder: str = "griffin_lim",
        compat: Literal["seed"] | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(optimizer, lr_scheduler)
        seed = compat == "seed"
        self.codec = SpectrogramDiffusionCodec(
            sample_rate=sample_rate,
            hop_length=hop_length,
            win_length=win_length,
            segment_frames=segment_frames,
            overlap_frames=overlap_frames,
            margin_frames=margin_frames,
            tail_sec=tail_sec,
            tokens=True,
            tables=False,
            velocity_bins=velocity_bins,
            shift_ids=shift_ids,
            max_tokens=max_tokens,
            framing="centered" if seed else "published",
            note_seq=seed,
        )
        self.set_up_spectrogram()
        self.network = AutoregressiveNetwork(
            mels=mels,
            frames=self.training_frames,
            dim=dim,
            hidden_dim=hidden_dim,
            heads=heads,
            head_dim=head_dim,
            layers=layers,
            dropout=dropout,
            vocab_size=self.codec.table_rows,
            max_tokens=max_tokens,
        )
        self.test_metrics = MetricCollection(
            {"mel_error": MelError(), "mel_convergence": MelConvergence()}, prefix="test/"
        )

    # Training

    def condition(self, tokens: Tensor, sampling: bool = False) -> tuple[list[KeyValue], Tensor | None]:
        """Token ids [batch, tokens] -> projected memory of each layer, and its mask [batch, 1, 1, tokens].

        Args:
            tokens: Padded to the longest.
            sampling: Mask padding whatever was trained.
        """
        # The re-implementation attends to padding in training, but never pads when it renders.
        mask = (tokens != PADDING)[:, None, None] if sampling or self.hparams.compat != "seed" else None
        return self.network.decoder.project(self.network.encode_tokens(tokens, mask)), mask

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error of every frame, predicted from the true ones before it.

        Args:
            batch: From `codec.collate`, with "audio" [batch, samples].
        """
        wanted = self.scaled_mel(batch["audio"])
        past = F.pad(wanted, (0, 0, 1, 0))[:, :-1]
        memory, mask = self.condition(batch["tokens"])
        return F.mse_loss(self.network(past, memory, mask).float(), wanted)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["audio"]))
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), prog_bar=True, batch_size=len(batch["audio"]), sync_dist=True)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> Renditions:
        return evaluate_batch(self, batch)

    # Rendering

    @torch.no_grad()
    def sample_segments(self, batch: Mapping[str, Tensor], noise: NoiseSource) -> Tensor:
        """Generate segments, see `SpectrogramModule.sample_segments`."""
        options = self.hparams
        memory, mask = self.condition(batch["tokens"].to(self.device), sampling=True)
        dither = options.dither * noise(0) if options.dither else None
        return self.mel_range.inverse(
            self.network.generate(memory, mask, options.segment_frames, dither, options.causal)
        )

    @classmethod
    def read_published(cls, path: Path) -> Published:
        """Read weights of the PyTorch re-implementation, see `checkpoint.py`."""
        return read_published(cls, path, autoregressive=True)
