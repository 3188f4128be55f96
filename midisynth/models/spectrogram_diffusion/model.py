"""`SpectrogramDiffusion`: training, and rendering of pieces of any length."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MetricCollection

from midisynth.audio.crossfade import CrossFade
from midisynth.audio.features import LogMel, MelRange
from midisynth.audio.vocoder import Vocoder, load_vocoder
from midisynth.diffusion.guidance import guide
from midisynth.diffusion.objectives import Objective, add_noise, target, to_x0
from midisynth.diffusion.sampling import NoiseSource, Solver, sample
from midisynth.diffusion.schedules import CosineSchedule
from midisynth.errors import UsageError
from midisynth.metrics.scores import MelConvergence, MelError
from midisynth.models.spectrogram_diffusion.codec import PADDING, SpectrogramDiffusionCodec
from midisynth.models.spectrogram_diffusion.network import Conditioning, Denoiser
from midisynth.module import MidiModule, Noise, Rendering
from midisynth.nn.conditioning import draw_kept

#: The template prior starts far from any spectrum and has few parameters: it learns this much faster than the rest.
PRIOR_LEARNING_RATE_FACTOR = 10.0


class SpectrogramDiffusion(MidiModule):
    """MIDI -> audio: diffusion of log-mel spectrogram segments, then a vocoder.

    The defaults are the sizes published as "small" (without context) with corrected behaviour.

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
        segment_frames: Frames that are generated at once.
        overlap_frames: Frames in which a segment is faded into the next one.
        tail_sec: What is rendered after the end of the last note (seconds).
        tokens: Condition on note tokens.
        velocity_bins: Loudness classes of the tokens; 1 is on or off.
        shift_ids: Token ids for time shifts; null: two more than a segment has steps, as published.
        max_tokens: Longest token sequence of a segment.
        note_roll: Condition every frame on a note roll.
        template_prior: Start from a sum of learned note spectra; needs the objective "x0".
        dim: Width of the network.
        hidden_dim: Width inside the feed-forwards.
        heads: Attention heads.
        head_dim: Width of one head.
        layers: Layers of the encoder, and of the decoder.
        dropout: Dropout probability.
        objective: What the network predicts: the noise, the spectrogram, or the velocity between them.
        cfg_dropout: Probability of training a segment without condition.
        guidance_scale: Weight of classifier-free guidance; 1 is none, and halves the cost.
        solver: "ddpm" (as published), "ddim" or "dpm_solver" (DPM-Solver++).
        sample_steps: Calls of the network per segment.
        segments_per_batch: Segments that are generated together.
        vocoder: Mel spectrogram to waveform: "griffin_lim", or the path of an .onnx file.
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
        tail_sec: float = 1.0,
        tokens: bool = True,
        velocity_bins: int = 1,
        shift_ids: int | None = None,
        max_tokens: int = 3000,
        note_roll: bool = False,
        template_prior: bool = False,
        dim: int = 512,
        hidden_dim: int = 1024,
        heads: int = 6,
        head_dim: int = 64,
        layers: int = 8,
        dropout: float = 0.1,
        objective: Objective = "epsilon",
        cfg_dropout: float = 0.1,
        guidance_scale: float = 2.0,
        solver: Solver = "dpm_solver",
        sample_steps: int = 25,
        segments_per_batch: int = 8,
        vocoder: str = "griffin_lim",
        compat: Literal["seed"] | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(optimizer, lr_scheduler)
        self._check_options()
        seed = compat == "seed"
        framing: Literal["published", "centered"] = "centered" if seed else "published"
        self.codec = SpectrogramDiffusionCodec(
            sample_rate=sample_rate,
            hop_length=hop_length,
            win_length=win_length,
            segment_frames=segment_frames,
            overlap_frames=overlap_frames,
            tail_sec=tail_sec,
            tokens=tokens,
            tables=note_roll or template_prior,
            velocity_bins=velocity_bins,
            shift_ids=shift_ids,
            max_tokens=max_tokens,
            framing=framing,
            note_seq=seed,
        )
        spectrogram: dict[str, Any] = {
            "sample_rate": sample_rate,
            "n_fft": n_fft,
            "win_length": win_length,
            "hop_length": hop_length,
            "f_min": f_min,
            "f_max": f_max,
            "mels": mels,
        }
        self.declare_part("vocoder", partial(load_vocoder, **spectrogram))
        self.log_mel = LogMel(**spectrogram, framing=framing)
        self.mel_range = (
            MelRange(math.inf, -math.inf, adaptive=True, clip=False) if seed else MelRange(mel_min, mel_max)
        )
        self.network = Denoiser(
            mels=mels,
            # Centred frames are one more than hops fit into the segment, and the re-implementation trains on them all.
            frames=segment_frames + 1 if seed else segment_frames,
            hop_sec=hop_length / sample_rate,
            dim=dim,
            hidden_dim=hidden_dim,
            heads=heads,
            head_dim=head_dim,
            layers=layers,
            dropout=dropout,
            vocab_size=len(self.codec.vocabulary) if tokens else None,
            max_tokens=max_tokens,
            note_roll=note_roll,
            prior_range=(mel_min, mel_max) if template_prior else None,
        )
        self.schedule = CosineSchedule()
        self.test_metrics = MetricCollection(
            {"mel_error": MelError(), "mel_convergence": MelConvergence()}, prefix="test/"
        )

    def _check_options(self) -> None:
        options = self.hparams
        if not (options.tokens or options.note_roll or options.template_prior):
            raise UsageError("tokens, note_roll and template_prior are all off: the model would not know the notes")
        if options.template_prior and options.objective != "x0":
            raise UsageError(
                f"template_prior is added to a predicted spectrogram: set objective to x0 (it is {options.objective})"
            )
        if options.compat == "seed" and (options.note_roll or options.template_prior or options.velocity_bins != 1):
            raise UsageError("compat seed has no note_roll, no template_prior and one velocity bin: unset one of them")
        if not 0 <= options.overlap_frames <= options.segment_frames // 2:
            raise UsageError(
                f"overlap_frames is {options.overlap_frames}: it must be at most half of segment_frames "
                f"({options.segment_frames})"
            )

    # Training

    def scaled_mel(self, audio: Tensor) -> Tensor:
        """Audio [batch, samples] -> training target [batch, frames, mels] in [-1, 1]."""
        # Half precision would drown the quiet bins before the logarithm.
        with torch.autocast(audio.device.type, enabled=False):
            return self.mel_range(self.log_mel(audio)[:, : len(self.network.frame_positions)])

    def condition(
        self, batch: Mapping[str, Tensor], frames: int, keep: Tensor | None = None, sampling: bool = False
    ) -> Conditioning:
        """What the network may know of the notes; `batch` from `codec.collate`, the rest as in `Denoiser.condition`."""
        tokens = batch.get("tokens")
        # The re-implementation attends to padding in training, but never pads when it renders.
        masked = tokens is not None and (sampling or self.hparams.compat != "seed")
        return self.network.condition(
            frames,
            tokens,
            tokens != PADDING if masked else None,
            batch.get("notes"),
            keep=keep,
            unconditional=sampling and self.hparams.guidance_scale != 1,
        )

    def loss(self, batch: Mapping[str, Tensor], t: Tensor, epsilon: Tensor, keep: Tensor | None = None) -> Tensor:
        """Mean absolute error of the prediction.

        Args:
            batch: From `codec.collate`, with "audio" [batch, samples].
            t: [batch] diffusion times.
            epsilon: [batch, frames, mels] standard normal noise.
            keep: [batch] bool, False for rows that are trained without condition.
        """
        x0 = self.scaled_mel(batch["audio"])
        alpha, sigma = self.schedule.alpha(t)[:, None, None], self.schedule.sigma(t)[:, None, None]
        z = add_noise(x0, epsilon, alpha, sigma)
        output = self.network(z, t, self.condition(batch, x0.shape[1], keep))
        return F.l1_loss(output.float(), target(self.hparams.objective, x0, epsilon, alpha, sigma))

    def _spectrogram_shape(self, audio: Tensor) -> tuple[int, int, int]:
        frames = min(self.log_mel.frames(audio.shape[1]), len(self.network.frame_positions))
        return len(audio), frames, self.hparams.mels

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        audio = batch["audio"]
        # Every time is uniform in [0, 1), but a batch covers the range evenly, which makes the gradient less noisy.
        t = (torch.rand(1, device=self.device) + torch.arange(len(audio), device=self.device) / len(audio)) % 1
        epsilon = torch.randn(self._spectrogram_shape(audio), device=self.device)
        loss = self.loss(batch, t, epsilon, draw_kept(len(audio), self.hparams.cfg_dropout, self.device))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(audio))
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        audio = batch["audio"]
        generators = _content_generators(audio)
        t = torch.cat([torch.rand(1, generator=g) for g in generators]).to(self.device)
        _, frames, mels = self._spectrogram_shape(audio)
        epsilon = torch.stack([torch.randn(frames, mels, generator=g) for g in generators]).to(self.device)
        self.log("val/loss", self.loss(batch, t, epsilon), prog_bar=True, batch_size=len(audio), sync_dist=True)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        wanted = self.mel_range.inverse(self.scaled_mel(batch["audio"]))[:, : self.hparams.segment_frames]
        mels = self.sample_segments(batch, self.noise_source(_content_generators(batch["audio"])))
        self.test_metrics.update(mels, wanted)
        self.log_dict(self.test_metrics, batch_size=len(mels))

    def build_optimizer(self, build: OptimizerCallable) -> torch.optim.Optimizer:
        if self.network.prior is None:
            return super().build_optimizer(build)
        prior = list(self.network.prior.parameters())
        rest = [p for p in self.parameters() if all(p is not q for q in prior)]
        # Decay would pull the log spectra of rare keys to 0, which is loud.
        optimizer = build([{"params": rest}, {"params": prior, "weight_decay": 0.0}])
        optimizer.param_groups[1]["lr"] *= PRIOR_LEARNING_RATE_FACTOR
        return optimizer

    # Rendering

    @torch.no_grad()
    def sample_segments(self, batch: Mapping[str, Tensor], noise: NoiseSource) -> Tensor:
        """Generate segments.

        Args:
            batch: Conditioning of the segments, from `codec.collate`.
            noise: Draw number -> standard normal [segments, segment_frames, mels]; the only randomness.

        Returns:
            Natural log of mel magnitude, [segments, segment_frames, mels] float32.
        """
        options = self.hparams
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        frames = options.segment_frames
        conditioning = self.condition(batch, frames, sampling=True)
        guided = options.guidance_scale != 1

        def denoise(z: Tensor, t: float) -> Tensor:
            rows = torch.cat([z, z]) if guided else z
            output = self.network(rows, torch.tensor([t], device=z.device), conditioning).float()
            if guided:
                output = guide(output, options.guidance_scale)
            time = torch.tensor(t, dtype=torch.float64)
            x0 = to_x0(options.objective, output, z, self.schedule.alpha(time).item(), self.schedule.sigma(time).item())
            return x0.clamp(-1, 1)

        scaled = sample(denoise, noise, self.schedule, options.solver, options.sample_steps)
        return self.mel_range.inverse(scaled)

    def noise_source(self, generators: Sequence[torch.Generator]) -> NoiseSource:
        """Successive draws from one CPU generator for each segment."""
        shape = self.hparams.segment_frames, self.hparams.mels
        return lambda _: torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Any:
        """Pad segments to a batch for training; whole pieces stay apart, because `render` batches their segments."""
        return list(examples) if "segments" in examples[0] else self.codec.collate(examples)

    def duration_sec(self, example: Mapping[str, Any]) -> float:
        """Length of the audio of one piece (seconds)."""
        return example["samples"] / self.hparams.sample_rate

    def render(self, batch: Sequence[Mapping[str, Any]], noise: Noise) -> Iterator[tuple[int, Rendering]]:
        """Generate the segments of each piece, join them and hand them to the vocoder as they come.

        Segments are batched within a piece, never across pieces: matrix products round differently in batches of other
        shapes, and an iterative vocoder turns that last bit into another sound. So a piece comes out the same to the
        byte, whatever is rendered beside it.

        Args:
            batch: What `codec.encode` returned for each piece.
            noise: The only source of randomness.

        Yields:
            Position of a piece in the batch, and the next chunk of its audio, [1, samples].
        """
        vocoder = self.part("vocoder")
        for position, piece in enumerate(batch):
            segments = piece["segments"]
            output = _PieceOutput(self, vocoder, piece, noise.generator(position).initial_seed())
            for first in range(0, len(segments), self.hparams.segments_per_batch):
                chosen = segments[first : first + self.hparams.segments_per_batch]
                generators = [noise.generator(position, first + index) for index in range(len(chosen))]
                for index, mel in enumerate(
                    self.sample_segments(self.codec.collate(chosen), self.noise_source(generators))
                ):
                    audio = output.push(mel, last=first + index + 1 == len(segments))
                    if audio.shape[-1]:
                        yield position, Rendering(audio=audio, sample_rate=self.hparams.sample_rate)

    @classmethod
    def load_published(cls, path: Path) -> SpectrogramDiffusion:
        """Read a checkpoint of the PyTorch re-implementation, see `checkpoint.py`."""
        from midisynth.models.spectrogram_diffusion.checkpoint import load_published

        return load_published(path)


def _content_generators(audio: Tensor) -> list[torch.Generator]:
    """One CPU generator for each row of [batch, samples], seeded from the samples.

    So validation and test draw the same numbers for an item in every epoch and on whichever process it is.
    """
    digests = [hashlib.sha256(row.float().numpy().tobytes()).digest() for row in audio.detach().cpu()]
    return [torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")) for digest in digests]


class _PieceOutput:
    """Joins the segments of one piece and turns them into audio; what it holds does not grow with the piece.

    Args:
        model: For its options.
        vocoder: Spectrogram to waveform.
        piece: From `SpectrogramDiffusionCodec.encode`.
        seed: For whatever is random in the vocoder.
    """

    def __init__(self, model: SpectrogramDiffusion, vocoder: Vocoder, piece: Mapping[str, Any], seed: int):
        self._join = CrossFade(model.hparams.overlap_frames)
        self._stream = vocoder.stream(seed)
        # Centred frame i + 1 is what a vocoder knows as frame i: without this the audio would be one hop late.
        self._skip_frames = 1 if model.log_mel.framing == "centered" else 0
        self._frames_left = piece["frames"]
        self._samples_left = piece["samples"]

    def push(self, mel: Tensor, last: bool) -> Tensor:
        """Take one segment [segment_frames, mels]; return the audio [1, samples] that is final by now."""
        frames = self._join.push(mel)
        if last:
            frames = torch.cat([frames, self._join.finish()])
        frames = frames[self._skip_frames :]
        self._skip_frames = 0
        frames = frames[: self._frames_left]
        self._frames_left -= len(frames)
        audio = self._stream.push(frames)
        if last:
            audio = torch.cat([audio, self._stream.finish()])
        audio = audio[: self._samples_left]
        self._samples_left -= len(audio)
        return audio.unsqueeze(0)
