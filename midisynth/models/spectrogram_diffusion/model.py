"""`SpectrogramDiffusion`: training, and rendering of pieces of any length."""

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

from midisynth.diffusion.guidance import guide
from midisynth.diffusion.inpainting import Known
from midisynth.diffusion.objectives import Objective, add_noise, target, to_x0
from midisynth.diffusion.sampling import Grid, NoiseSource, Solver, content_generators, sample
from midisynth.diffusion.schedules import CosineSchedule, SquaredCosineSchedule
from midisynth.errors import UsageError
from midisynth.evaluation import Renditions
from midisynth.metrics.scores import LogSpectralDistance, MelConvergence, MelError
from midisynth.models.spectrogram_diffusion.checkpoint import read_published
from midisynth.models.spectrogram_diffusion.codec import SpectrogramDiffusionCodec
from midisynth.models.spectrogram_diffusion.evaluation import evaluate_batch, vocode
from midisynth.models.spectrogram_diffusion.network import Conditioning, Denoiser
from midisynth.models.spectrogram_diffusion.rendering import SpectrogramModule
from midisynth.models.spectrogram_diffusion.t5_checkpoint import FILES, is_official
from midisynth.models.spectrogram_diffusion.t5_tokens import Programs
from midisynth.models.spectrogram_diffusion.tokens import PADDING
from midisynth.module import Published
from midisynth.nn.conditioning import draw_kept

#: The template prior starts far from any spectrum and has few parameters: it learns this much faster than the rest.
PRIOR_LEARNING_RATE_FACTOR = 25.0


class SpectrogramDiffusion(SpectrogramModule):
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
        margin_frames: Frames at both ends of a segment that are generated and not used, besides those of the fade.
        continuation: How a segment follows the one before: "crossfade" generates it by itself, "inpaint" is given the
            frames that both share, which makes the segments of a piece wait for each other.
        inpaint_repeats: How often "inpaint" makes each step of the solver, see RePaint; 1 is once. Not for
            "dpm_solver".
        tail_sec: What is rendered after the end of the last note (seconds).
        tokens: Condition on note tokens.
        tokenizer: "events", the published tokens; the name of a MidiTok class, such as "REMI", "TSD" or "MIDILike"; the
            path of a tokenizer.json of MidiTok; or a mapping with "tokenization", the name of the class, and options of
            miditok.TokenizerConfig.
        velocity_bins: Loudness classes of the tokens; 1 is on or off.
        shift_ids: Token ids for time shifts; null: two more than a segment has steps, as published.
        max_tokens: Longest token sequence of a segment.
        context: Condition on the spectrogram of the segment before. In training it is that of the recording, in
            rendering the generated one, so that the segments of a piece wait for each other.
        note_roll: Condition every frame on a note roll.
        template_prior: Start from a sum of learned note spectra; needs the objective "x0".
        prior_loss: Weight of the template prior's own error in the loss. It makes the prior learn what notes sound
            like, instead of whatever the network likes best to correct.
        dim: Width of the network.
        hidden_dim: Width inside the feed-forwards.
        heads: Attention heads.
        head_dim: Width of one head.
        layers: Layers of each encoder, and of the decoder.
        dropout: Dropout probability.
        objective: What the network predicts: the noise, the spectrogram, or the velocity between them.
        cfg_dropout: Probability of training a segment without condition.
        guidance_scale: Weight of classifier-free guidance; 1 is none, and halves the cost.
        solver: "ddpm" (as published), "ddim" or "dpm_solver" (DPM-Solver++).
        sample_steps: Calls of the network per segment.
        grid: Times that the solver visits: "closed", "intervals" or, with diffusers' noise schedule and "ddpm" alone,
            "leading"; see `midisynth.diffusion.sampling`. Null: as published, "intervals" for compat t5x, else
            "closed".
        variance: Of the noise that "ddpm" adds, from 0, the least, to 1, the most. Null: as published, 1 for compat
            t5x, else 0.
        segments_per_batch: Segments that are generated together, if they do not wait for each other.
        pieces_per_batch: Pieces whose segments are generated together, if those wait. More than 1 is faster, but then
            the last bits of a piece depend on what is rendered beside it.
        vocoder: Mel spectrogram to waveform: "griffin_lim", the path of an .onnx file, or a checkpoint of a vocoder.
        validate_audio: Render the segments of validation, too, and log how far they are from the recording: the mean
            log-spectral distance `val/lsd` (nats). It follows the ear better than `val/loss`, and costs as much as
            `predict`.
        compat: "seed" reproduces the PyTorch re-implementation: centred frames, a mel range learned from the data,
            unmasked padding in training, notes and pedals as note_seq reads them. "t5x" reproduces the official
            models: layers of T5, official tokens, notes and pedals as note_seq reads them.
        programs: How finely tokens of compat t5x tell instruments: "full", "slakh", "midi_class" or "flat". Null:
            "slakh", as diffusers' pipeline.
        faulty_ties: Repeat two faults of the tokens of compat t5x: notes that never end after the last event, or
            because they have no length.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds a learning-rate schedule from the optimizer; it advances once a step.
    """

    published_files = FILES

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
        continuation: Literal["crossfade", "inpaint"] = "crossfade",
        inpaint_repeats: int = 1,
        tail_sec: float = 1.0,
        tokens: bool = True,
        tokenizer: str | dict[str, Any] = "events",
        velocity_bins: int = 1,
        shift_ids: int | None = None,
        max_tokens: int = 3000,
        context: bool = False,
        note_roll: bool = False,
        template_prior: bool = False,
        prior_loss: float = 0.5,
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
        grid: Grid | None = None,
        variance: float | None = None,
        segments_per_batch: int = 8,
        pieces_per_batch: int = 1,
        vocoder: str = "griffin_lim",
        validate_audio: bool = False,
        compat: Literal["seed", "t5x"] | None = None,
        programs: Programs | None = None,
        faulty_ties: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(optimizer, lr_scheduler)
        self._check_options()
        seed, t5 = compat == "seed", compat == "t5x"
        self.codec = SpectrogramDiffusionCodec(
            sample_rate=sample_rate,
            hop_length=hop_length,
            win_length=win_length,
            segment_frames=segment_frames,
            overlap_frames=overlap_frames,
            margin_frames=margin_frames,
            tail_sec=tail_sec,
            tokens=tokens,
            tables=note_roll or template_prior,
            velocity_bins=velocity_bins,
            shift_ids=shift_ids,
            max_tokens=max_tokens,
            framing="centered" if seed else "published",
            note_seq=seed or t5,
            context=context,
            t5=t5,
            programs=programs or "slakh",
            faulty_ties=faulty_ties,
            miditok=tokenizer if tokens and tokenizer != "events" else None,
        )
        if self.codec.miditok is not None:
            # All of it, so that a checkpoint needs neither the file nor MidiTok's defaults of the day.
            self.hparams.tokenizer = self.codec.miditok.content
        self.set_up_spectrogram()
        self.network = Denoiser(
            mels=mels,
            frames=self.training_frames,
            hop_sec=hop_length / sample_rate,
            dim=dim,
            hidden_dim=hidden_dim,
            heads=heads,
            head_dim=head_dim,
            layers=layers,
            dropout=dropout,
            vocab_size=self.codec.table_rows if tokens else None,
            max_tokens=max_tokens,
            note_roll=note_roll,
            prior_range=(mel_min, mel_max) if template_prior else None,
            context=context,
            shared_input=seed,
            t5=t5,
        )
        self.schedule = CosineSchedule()
        self.validation_distance = LogSpectralDistance()
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
        if options.compat is not None and options.tokenizer != "events":
            raise UsageError(f"compat {options.compat} has its own tokens: leave tokenizer at events")
        if options.compat != "t5x" and (options.programs is not None or options.faulty_ties):
            raise UsageError("programs and faulty_ties belong to the tokens of compat t5x: unset them, or set compat")
        if options.compat == "t5x" and options.shift_ids is not None:
            raise UsageError("the tokens of compat t5x have their own number of shifts: unset shift_ids")
        if options.grid == "leading" and options.solver != "ddpm":
            raise UsageError(f"grid leading goes with solver ddpm (it is {options.solver})")
        shared = options.overlap_frames + 2 * options.margin_frames
        if min(options.overlap_frames, options.margin_frames) < 0 or shared > options.segment_frames // 2:
            raise UsageError(
                f"overlap_frames ({options.overlap_frames}) and twice margin_frames ({options.margin_frames}) are "
                f"{shared}: together they must be at most half of segment_frames ({options.segment_frames})"
            )
        if options.continuation == "inpaint":
            if options.overlap_frames + options.margin_frames == 0:
                raise UsageError("continuation inpaint is given the frames that segments share: raise overlap_frames")
            if options.inpaint_repeats < 1 or (options.inpaint_repeats > 1 and options.solver == "dpm_solver"):
                raise UsageError(
                    f"inpaint_repeats is {options.inpaint_repeats}: it must be at least 1, and more than that needs "
                    f"solver ddim or ddpm (it is {options.solver})"
                )

    # Training

    def condition(
        self, batch: Mapping[str, Tensor], frames: int, keep: Tensor | None = None, sampling: bool = False
    ) -> Conditioning:
        """What the network may know, see `Denoiser.condition`.

        Args:
            batch: From `codec.collate`, and with context what `spectrograms` adds.
            frames: Number of frames of the segments.
            keep: [batch] bool, False for rows whose condition is dropped; None keeps all.
            sampling: Mask padding whatever was trained, and add unconditional rows if there is guidance.
        """
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
            context=batch.get("context"),
            context_mask=batch.get("context_mask"),
        )

    def loss(self, batch: Mapping[str, Tensor], t: Tensor, epsilon: Tensor, keep: Tensor | None = None) -> Tensor:
        """Mean absolute error of the prediction.

        Args:
            batch: From `codec.collate`, with "audio" [batch, samples].
            t: [batch] diffusion times.
            epsilon: [batch, frames, mels] standard normal noise.
            keep: [batch] bool, False for rows that are trained without condition.
        """
        x0, context = self.spectrograms(batch)
        return self.denoising_loss(x0, {**batch, **context}, t, epsilon, keep)

    def denoising_loss(
        self, x0: Tensor, batch: Mapping[str, Tensor], t: Tensor, epsilon: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """As `loss`, for a scaled spectrogram `x0` [batch, frames, mels] and a `batch` as `condition` takes it."""
        alpha, sigma = self.schedule.alpha(t)[:, None, None], self.schedule.sigma(t)[:, None, None]
        z = add_noise(x0, epsilon, alpha, sigma)
        conditioning = self.condition(batch, x0.shape[1], keep)
        output = self.network(z, t, conditioning)
        loss = F.l1_loss(output.float(), target(self.hparams.objective, x0, epsilon, alpha, sigma))
        if conditioning.prior is not None:
            loss = loss + self.hparams.prior_loss * F.l1_loss(conditioning.prior.float(), x0)
        return loss

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
        generators = content_generators(audio)
        t = torch.cat([torch.rand(1, generator=g) for g in generators]).to(self.device)
        _, frames, mels = self._spectrogram_shape(audio)
        epsilon = torch.stack([torch.randn(frames, mels, generator=g) for g in generators]).to(self.device)
        self.log("val/loss", self.loss(batch, t, epsilon), prog_bar=True, batch_size=len(audio), sync_dist=True)
        if self.hparams.validate_audio:
            generated = self.sample_segments(batch, self.noise_source(content_generators(audio)))
            sound = vocode(self, generated, [generator.initial_seed() for generator in generators])
            self.validation_distance.update(sound, audio[:, : sound.shape[1]].cpu())
            self.log("val/lsd", self.validation_distance, prog_bar=True, batch_size=len(audio))

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> Renditions:
        return evaluate_batch(self, batch)

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
        """Generate segments, see `SpectrogramModule.sample_segments`."""
        options = self.hparams
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        if self.has_context and "context" not in batch:
            batch |= self.spectrograms(batch)[1]
        frames = options.segment_frames
        published = ("intervals", 1.0) if options.compat == "t5x" else ("closed", 0.0)
        grid = published[0] if options.grid is None else options.grid
        variance = published[1] if options.variance is None else options.variance
        schedule = SquaredCosineSchedule() if grid == "leading" else self.schedule
        conditioning = self.condition(batch, frames, sampling=True)
        guided = options.guidance_scale != 1

        def denoise(z: Tensor, t: float) -> Tensor:
            rows = torch.cat([z, z]) if guided else z
            output = self.network(rows, torch.tensor([t], device=z.device), conditioning).float()
            if guided:
                output = guide(output, options.guidance_scale)
            time = torch.tensor(t, dtype=torch.float64)
            x0 = to_x0(options.objective, output, z, schedule.alpha(time).item(), schedule.sigma(time).item())
            return x0.clamp(-1, 1)

        known = None
        if "known" in batch:
            given = batch["known"].shape[1]
            x0 = F.pad(batch["known"], (0, 0, 0, frames - given))
            known = Known(x0, torch.arange(frames, device=x0.device)[:, None] < given, options.inpaint_repeats)
        scaled = sample(denoise, noise, schedule, options.solver, options.sample_steps, known, grid, variance)
        return self.mel_range.inverse(scaled)

    @classmethod
    def is_published(cls, path: Path) -> bool:
        """Whether a folder holds the official weights."""
        return is_official(path)

    @classmethod
    def read_published(cls, path: Path) -> Published:
        """Read weights of the PyTorch re-implementation or of the official models, see `checkpoint.py`."""
        return read_published(cls, path)
