"""`NeuralVocoder`: training, and resynthesis of spectrograms and audio files of any length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from midisynth.audio.features import LogMel
from midisynth.audio.io import FORMATS, resample, stream_audio
from midisynth.audio.losses import MelLoss, MultiResolutionStftLoss
from midisynth.audio.vocoder import ContextStream, GriffinLim, Vocoder, VocoderStream
from midisynth.errors import UsageError
from midisynth.evaluation import Renditions
from midisynth.metrics.scores import LogSpectralDistance
from midisynth.models.vocoder.codec import VocoderCodec
from midisynth.models.vocoder.evaluation import renditions
from midisynth.models.vocoder.network import MEL_RATE, HeadName, OscillatorHead, VocoderNetwork
from midisynth.module import MidiModule, Noise, Rendering
from midisynth.nn.discriminators import AudioDiscriminator, MultiPeriodDiscriminator, MultiResolutionDiscriminator
from midisynth.training.adversarial import AdversarialStep

#: The spectrogram that it turns into audio, which is the one of the published mel decoder.
MEL_HOP = 320
MELS = 128
MEL_EDGES = 0.0, 8000.0

#: FFT sizes (samples) and mel bins of the mel loss. Long windows tell the lowest strings apart, which are a small part
#: of the bins of the other loss.
MEL_RESOLUTIONS = (1024, 2048, 4096, 8192), (80, 128, 192, 256)

#: Row of a test that is always there.
GRIFFIN_LIM = "griffin_lim"

#: Samples of a random gain are multiplied by e to a number in this range.
LOG_GAIN = -1.0, 0.3
#: Random time origins of training batches (frames): about 11 hours.
MAX_ORIGIN = 2_000_000


class NeuralVocoder(AdversarialStep, MidiModule, Vocoder):
    """Mel spectrogram -> audio. As a model of its own it resynthesises audio files; other models use it as a part.

    Args:
        sample_rate: Of the audio (Hz): a multiple of 50.
        head: "oscillators": sines at the partials of a piano, and noise; "istft": short-time spectra.
        mel_min: Log magnitude that counts as silence.
        mel_max: Log magnitude that becomes 1; what is above is clipped.
        segment_frames: Frames of a training example.
        dim: Width of the network.
        hidden_dim: Width inside the feed-forwards.
        layers: ConvNeXt blocks.
        steps: Amplitude steps of the oscillators in a frame of 20 ms.
        noise_steps: Steps of the noise in a frame of 20 ms.
        noise_bands: Bands of the noise.
        mel_passes: How often the audio is made to agree with the spectrogram, see `MelConsistency`; free to change when
            it renders.
        mel_smoothing: Most that a training spectrogram is smoothed over time and frequency, as predicted ones are: the
            share of a bin that goes to either neighbour.
        mel_noise: Standard deviation of the noise that is added to a training spectrogram (nats).
        stft_weight: Weight of the multi-resolution STFT loss.
        mel_weight: Weight of the mel loss.
        adversarial: Train against discriminators of periods and of spectra as well. The trainer must then not clip.
        adversarial_from: Step from which there are discriminators.
        adversarial_weight: Weight of the discriminators' judgement.
        feature_weight: Weight of the distance of their activations.
        adversarial_clip: Largest gradient norm of either side in adversarial training.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds a learning-rate schedule from the optimizer; it advances once a step.
    """

    reads: ClassVar[tuple[str, ...]] = tuple(FORMATS)
    writes: ClassVar[str] = ".wav"
    codec: VocoderCodec

    #: Frames that are rendered at a time: 10 seconds, of which context takes a tenth more.
    BLOCK_FRAMES = 500

    def __init__(
        self,
        sample_rate: int = 32000,
        head: HeadName = "oscillators",
        mel_min: float = -7.0,
        mel_max: float = 4.0,
        segment_frames: int = 64,
        dim: int = 256,
        hidden_dim: int = 768,
        layers: int = 6,
        steps: int = 2,
        noise_steps: int = 4,
        noise_bands: int = 64,
        mel_passes: int = 2,
        mel_smoothing: float = 0.2,
        mel_noise: float = 0.02,
        stft_weight: float = 1.0,
        mel_weight: float = 1.5,
        adversarial: bool = False,
        adversarial_from: int = 0,
        adversarial_weight: float = 1.0,
        feature_weight: float = 2.0,
        adversarial_clip: float = 5.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(optimizer, lr_scheduler)
        hop, rest = divmod(sample_rate * MEL_HOP, MEL_RATE)
        for name, count in (("steps", steps), ("noise_steps", noise_steps)):
            if rest or hop % count:
                raise UsageError(f"{name} is {count}: a frame has {hop} samples at {sample_rate} Hz, take a divisor")
        self.sample_rate = sample_rate
        self.hop_samples = hop
        self.mels = MELS
        self.codec = VocoderCodec(sample_rate, hop, segment_frames)
        self.log_mel = LogMel()
        self.network = VocoderNetwork(
            head,
            sample_rate=sample_rate,
            hop=hop,
            mels=MELS,
            f_min=MEL_EDGES[0],
            f_max=MEL_EDGES[1],
            mel_min=mel_min,
            mel_max=mel_max,
            dim=dim,
            hidden_dim=hidden_dim,
            layers=layers,
            steps=steps,
            noise_steps=noise_steps,
            noise_bands=noise_bands,
            mel_passes=mel_passes,
        )
        self.stft_loss = MultiResolutionStftLoss(log_weight=0.5)
        self.mel_loss = MelLoss(sample_rate, *MEL_RESOLUTIONS)
        self.validation_distance = LogSpectralDistance()
        # Not modules of this one: their weights have no place in its checkpoints.
        self._rivals: dict[str, Vocoder] = {}
        if adversarial:
            self.use_adversary(
                AudioDiscriminator([MultiPeriodDiscriminator(), MultiResolutionDiscriminator()]),
                optimizer,
                lr_scheduler,
                start_step=adversarial_from,
                adversarial_weight=adversarial_weight,
                feature_weight=feature_weight,
                gradient_clip_val=adversarial_clip,
            )

    def tune(self, frequencies: np.ndarray) -> None:
        """Move the oscillators to other partials, as `partials.measured_partials` finds them [partials] (Hz)."""
        head = self.network.head
        if isinstance(head, OscillatorHead):
            head.frequencies.copy_(torch.from_numpy(frequencies))
            head.retuned()

    def compare_with(self, vocoders: Mapping[str, Vocoder]) -> None:
        """Have tests compare with other vocoders of the same spectrogram, by name, besides Griffin-Lim."""
        self._rivals = dict(vocoders)

    # Training

    def spectrogram(self, audio: Tensor) -> Tensor:
        """Audio [batch, samples] at the output rate -> log mel [batch, frames, mels] of its 16 kHz version."""
        with torch.autocast(audio.device.type, enabled=False):
            return self.log_mel(resample(audio, self.sample_rate, MEL_RATE))

    def _disturbed(self, mel: Tensor) -> Tensor:
        """What a model might have predicted in the place of [batch, frames, mels]: a smoother, inexact version."""
        options = self.hparams
        if options.mel_smoothing:
            for dim in (1, 2):
                share = options.mel_smoothing * torch.rand(len(mel), 1, 1, device=mel.device)
                share = share * (torch.rand(len(mel), 1, 1, device=mel.device) < 0.5)
                padded = F.pad(mel[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
                inner = padded[:, 1:-1] if dim == 2 else padded[:, :, 1:-1]
                length = mel.shape[dim]
                neighbours = inner.narrow(dim, 0, length) + inner.narrow(dim, 2, length)
                mel = (1 - 2 * share) * mel + share * neighbours
        strength = options.mel_noise * torch.rand(len(mel), 1, 1, device=mel.device)
        return mel + strength * torch.randn_like(mel)

    def loss(self, audio: Tensor, reference: Tensor) -> Tensor:
        """Spectral distance of [batch, samples]; the first frame, which fades in, does not count."""
        audio, reference = audio[:, self.hop_samples :], reference[:, self.hop_samples :]
        stft, mel = self.stft_loss(audio, reference), self.mel_loss(audio, reference)
        return self.hparams.stft_weight * stft + self.hparams.mel_weight * mel

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        reference = batch["audio"]
        low, high = LOG_GAIN
        reference = reference * (low + (high - low) * torch.rand(len(reference), 1, device=self.device)).exp()
        origin = int(torch.randint(MAX_ORIGIN, ()))
        audio = self.network(self._disturbed(self.spectrogram(reference)), origin, origin)
        loss = self.loss(audio, reference)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(reference))
        start = self.hop_samples
        return self.adversarial_step(loss, audio[:, None, start:], reference[:, None, start:], batch_idx)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        reference = batch["audio"]
        audio = self.network(self.spectrogram(reference))
        self.validation_distance.update(audio[:, self.hop_samples :], reference[:, self.hop_samples :])
        size = len(reference)
        self.log("val/loss", self.loss(audio, reference), prog_bar=True, batch_size=size, sync_dist=True)
        self.log("val/lsd", self.validation_distance, batch_size=size)

    def on_test_start(self) -> None:
        for vocoder in self._rivals.values():
            if isinstance(vocoder, torch.nn.Module):
                vocoder.to(self.device)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> Renditions:
        size = len(batch["audio"])
        return renditions(
            self,
            {GRIFFIN_LIM: GriffinLim(), **self._rivals},
            self.log_mel,
            batch["audio"],
            batch["notes"],
            batch.get("name"),
            lambda name, value: self.log(name, value, batch_size=size, sync_dist=True),
        )

    # Rendering

    def stream(self, seed: int = 0) -> VocoderStream:
        """Start on a new spectrogram; `seed` chooses the noise."""

        def decode(mel: Tensor, position: int) -> Tensor:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                return self.network(mel.to(self.device)[None], position, seed % MAX_ORIGIN).cpu()

        return ContextStream(decode, self, self.BLOCK_FRAMES, self.network.reach)

    def forward(self, mel: Tensor, seed: int = 0) -> Tensor:
        """Whole spectrogram [frames, mels] (natural log of magnitude) -> audio [channels, frames * hop_samples]."""
        stream = self.stream(seed)
        return torch.cat([stream.push(mel), stream.finish()], dim=-1)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Files stay apart."""
        return list(examples)

    def duration_sec(self, example: Mapping[str, Any]) -> float:
        """Length of the output of one file (seconds)."""
        return example["samples"] / self.sample_rate

    def render(self, batch: Sequence[Mapping[str, Any]], noise: Noise) -> Iterator[tuple[int, Rendering]]:
        """Resynthesise audio files from their spectrograms, block by block.

        Args:
            batch: What `codec.encode` returned for each file.
            noise: Chooses the noise in the output.

        Yields:
            Position of a file in the batch, and the next chunk of its audio, [1, samples].
        """
        for position, example in enumerate(batch):
            stream = self.stream(noise.generator(position).initial_seed())
            left = example["samples"]
            for mel in self._mel_blocks(Path(example["path"])):
                audio = stream.push(mel)[:, :left]
                left -= audio.shape[1]
                if audio.shape[1]:
                    yield position, Rendering(audio=audio, sample_rate=self.sample_rate)
            yield position, Rendering(audio=stream.finish()[:, :left], sample_rate=self.sample_rate)

    def _mel_blocks(self, path: Path) -> Iterator[Tensor]:
        """Consecutive frames [frames, mels] of the spectrogram of an audio file, mixed to mono."""
        waiting = torch.zeros(0)
        for block in stream_audio(path, MEL_RATE):
            waiting = torch.cat([waiting, block.mean(dim=0)])
            complete = max((len(waiting) - self.log_mel.win_length) // MEL_HOP + 1, 0)
            if complete:
                seen = waiting[: (complete - 1) * MEL_HOP + self.log_mel.win_length]
                yield self.log_mel(seen[None].to(self.device))[0, :complete]
                waiting = waiting[complete * MEL_HOP :]
        if len(waiting):
            yield self.log_mel(waiting[None].to(self.device))[0]
