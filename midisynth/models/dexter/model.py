"""`DExter`: training, and performances of whole scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from midisynth.diffusion.guidance import guide
from midisynth.diffusion.objectives import Objective, add_noise, to_x0
from midisynth.diffusion.sampling import Grid, Solver
from midisynth.diffusion.schedules import LinearSchedule
from midisynth.errors import UsageError
from midisynth.interpretations import Interpretations
from midisynth.models.dexter.checkpoint import PUBLISHED_MEAN, PUBLISHED_STD, read_published
from midisynth.models.dexter.codec import DExterCodec
from midisynth.models.dexter.evaluation import play_pieces
from midisynth.models.dexter.expression import CHANNELS
from midisynth.models.dexter.features import feature_count
from midisynth.models.dexter.levels import ExpectedLevels, as_channels, level_columns
from midisynth.models.dexter.losses import Norm, denoising_losses, published_losses
from midisynth.models.dexter.network import Conditioned, Denoiser, DiffWaveDenoiser
from midisynth.models.dexter.predictor import FEATURES, LearnedPrior, SymbolicPrior
from midisynth.models.dexter.rendering import perform
from midisynth.models.dexter.unet import UNetDenoiser
from midisynth.models.dexter.validation import CurveCorrelations, fixed_noise, sample_windows
from midisynth.module import MidiModule, Noise, Published, Rendering

#: Shares of the training windows whose mid-level features are those of the performance, and those predicted from the
#: score; for the rest they are not known.
TEACHER, PREDICTED = 0.5, 0.4

#: Published name of each objective.
PUBLISHED_MODES: dict[str, Literal["epsilon", "x_0"]] = {"epsilon": "epsilon", "x0": "x_0"}


class DExter(MidiModule):
    """Score -> expressive performance: diffusion of tempo, velocity, timing, articulation and pedal of every note.

    The defaults are the published sizes with corrected behaviour.

    Args:
        denoiser: "diffwave": dilated convolutions over notes; "unet": an image of notes and features.
        channels: Width of the DiffWave.
        layers: Residual layers of the DiffWave.
        kernel_size: Notes under each convolution of the DiffWave; odd.
        dilation_base: Dilations of the DiffWave are the powers of this number, 1 first.
        dilation_cycle: They start again after so many layers.
        dropout: Probability that an activation of the DiffWave is dropped in training.
        dim: Width of the U-Net.
        multipliers: Channels of every level of the U-Net, in units of `dim`.
        features: What the network reads of a note of the score: "published": onset, duration, pitch and voice; "rich":
            metre, marks, harmony and more, see `features.py`.
        midlevel: Mid-level features as a second condition, and where those of a score come from: "symbolic":
            descriptors of the page; "learned": a network that is trained along; null: there are none.
        objective: What the network predicts: the noise, the parameters, or the velocity between them.
        target: "gen_noise": performances begin as noise; "transfer": as another performance of the same score.
        diffusion_steps: Steps of the noise schedule.
        beta_start: Variance of the noise that the first of them adds.
        beta_end: Variance of the noise that the last of them adds.
        norm: Error of the prediction: "l1", "l2" or "huber".
        recon_weight: Weight of the squared error of the parameters beside it.
        cfg_dropout: Probability of training a window without condition.
        null: What takes the place of a dropped condition: "fixed": -1 everywhere; "learned": learned values, in compat
            for every note of a window.
        window: Notes in a window.
        overlap: Notes that neighbouring windows of a piece share at least.
        windows_per_batch: Windows that go through the network together.
        solver: "ddpm", "ddim" or "dpm_solver" (DPM-Solver++).
        sample_steps: Calls of the network.
        grid: Times that the solver visits, see `midisynth.diffusion.sampling`: "closed": evenly spaced ones;
            "quadratic": more where there is little noise; "steps": the nearest steps of the schedule. Null: "steps" for
            compat 2024, whose networks know no time in between, else "quadratic".
        guidance: Weight of classifier-free guidance; 1 is none, and halves the cost.
        temperature: Scale of the noise that a performance starts from; less is closer to the average performance.
        repeats: Play the repeats of a score.
        tempo: Mean tempo of the performance (quarter notes a minute); null: the model chooses.
        dynamics: Mean loudness of the performance, a mark ("ppp" to "fff") or a MIDI velocity; null: the model chooses.
        steer: Offsets of mid-level features in standard deviations of human performances: a mapping of features to
            numbers or to lists of [bar, number], or a file that holds one.
        source: Performance of the same score to start from: a match file, or a MIDI file that is aligned with it.
        sample_steps_frac: Share of the noise schedule that `source` is taken back by, from 0, not at all, to 1.
        keep: Channels to take from `source` as they are, out of beat_period, velocity, timing, articulation and pedal.
        bars: Bars of the score to play anew, such as "1-8,17"; all others are taken from `source`.
        validate_samples: Sample the windows of validation, too, and log how tempo and velocity follow the performance:
            `val/tempo_correlation`, `val/velocity_correlation`, and `val/correlation`, the mean of both.
        compat: "2024" reproduces the published program: its codec, its network, and what it minimises.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds a learning-rate schedule from the optimizer; it advances once a step.
    """

    reads: ClassVar[tuple[str, ...]] = (".musicxml", ".xml", ".mxl", ".mei", ".mid", ".midi")
    writes: ClassVar[str] = ".mid"
    draws: ClassVar[bool] = True
    codec: DExterCodec

    mean: Tensor
    std: Tensor
    midlevel_mean: Tensor
    midlevel_std: Tensor
    measured: Tensor

    def __init__(
        self,
        denoiser: Literal["diffwave", "unet"] = "diffwave",
        channels: int = 768,
        layers: int = 12,
        kernel_size: int = 3,
        dilation_base: int = 2,
        dilation_cycle: int = 4,
        dropout: float = 0.0,
        dim: int = 48,
        multipliers: tuple[int, ...] = (1, 2, 4),
        features: Literal["rich", "published"] = "rich",
        midlevel: Literal["symbolic", "learned"] | None = "symbolic",
        objective: Objective = "epsilon",
        target: Literal["gen_noise", "transfer"] = "gen_noise",
        diffusion_steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        norm: Norm = "l1",
        recon_weight: float = 0.2,
        cfg_dropout: float = 0.1,
        null: Literal["fixed", "learned"] = "fixed",
        window: int = 200,
        overlap: int = 50,
        windows_per_batch: int = 8,
        solver: Solver = "dpm_solver",
        sample_steps: int = 25,
        grid: Literal["closed", "quadratic", "steps"] | None = None,
        guidance: float = 1.2,
        temperature: float = 1.0,
        repeats: bool = True,
        tempo: float | None = None,
        dynamics: str | int | None = None,
        steer: dict[str, Any] | str | None = None,
        source: str | None = None,
        sample_steps_frac: float = 0.5,
        keep: list[str] | None = None,
        bars: str | None = None,
        validate_samples: bool = True,
        compat: Literal["2024"] | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(optimizer, lr_scheduler)
        self._check_options()
        self.codec = DExterCodec(features=features, repeats=repeats, source=source, compat=compat)
        self.schedule = LinearSchedule(diffusion_steps, beta_start, beta_end)
        self.network = self._network()
        self.prior = None
        if midlevel == "learned":
            self.prior = LearnedPrior(feature_count(features), features == "published")
        elif midlevel == "symbolic":
            self.prior = SymbolicPrior()
        # The published models learn tempo and loudness as they are.
        self.levels = None if compat else ExpectedLevels(level_columns(features))
        self.correlations = CurveCorrelations()
        for name, size in (("mean", len(CHANNELS)), ("midlevel_mean", FEATURES)):
            self.register_buffer(name, torch.zeros(size))
        for name, size in (("std", len(CHANNELS)), ("midlevel_std", FEATURES)):
            self.register_buffer(name, torch.ones(size))
        # Statistics that came with weights are those that the weights were trained with.
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))
        if compat:
            self.mean.copy_(torch.tensor(PUBLISHED_MEAN))
            self.std.copy_(torch.tensor(PUBLISHED_STD))

    def _check_options(self) -> None:
        options = self.hparams
        if not 0 <= options.overlap < options.window:
            raise UsageError(f"overlap is {options.overlap}: it must be less than window ({options.window})")
        if options.target == "transfer" and options.solver == "ddpm":
            raise UsageError(
                "target transfer starts from a performance and adds no noise: take solver ddim or dpm_solver"
            )
        if not 0 <= options.sample_steps_frac <= 1:
            raise UsageError(f"sample_steps_frac is {options.sample_steps_frac}: it is a share, from 0 to 1")
        if unknown := set(options.keep or ()) - set(CHANNELS):
            raise UsageError(f"keep: no channel {sorted(unknown)[0]!r} (channels: {', '.join(CHANNELS)})")
        if options.source is None and (options.keep or options.bars):
            raise UsageError("keep and bars say what to take from a performance: name it with source")
        if options.compat and options.midlevel and options.denoiser == "diffwave":
            raise UsageError("the DiffWave of compat 2024 has no mid-level features: set midlevel to null")
        if options.compat and (options.features != "published" or options.objective not in PUBLISHED_MODES):
            raise UsageError("compat 2024 has features published and objective epsilon or x0: set them")

    def _network(self) -> Denoiser:
        options = self.hparams
        learned = options.null == "learned"
        # The published U-Net has mid-level rows, the published DiffWave has none.
        with_midlevel = options.denoiser == "unet" if options.compat else options.midlevel is not None
        common: dict[str, Any] = {
            "score_features": feature_count(options.features),
            "midlevel_features": FEATURES if with_midlevel else 0,
            "null": "learned" if learned else -1.0,
            "null_notes": options.window if learned and options.compat else 1,
            "compat": options.compat,
        }
        if options.denoiser == "unet":
            # The published U-Net takes divisions as they are.
            normalise = options.features == "published" and not options.compat
            return UNetDenoiser(options.dim, options.multipliers, normalise_score=normalise, **common)
        return DiffWaveDenoiser(
            options.channels,
            options.layers,
            options.kernel_size,
            dilation_base=options.dilation_base,
            dilation_cycle=options.dilation_cycle,
            dropout=options.dropout,
            normalise_score=options.features == "published",
            steps=options.diffusion_steps,
            **common,
        )

    # Statistics

    def set_statistics(
        self, values: Tensor, performed: Tensor, written: Tensor, levels: Tensor, summaries: Tensor
    ) -> None:
        """Take the scales of what is learned from training data, unless they came with weights.

        Args:
            values: [notes, 5] parameters of matched notes less the levels of their performances; in compat the
                published constants stay.
            performed: [notes, 7] their mid-level features.
            written: [notes, 7] those of the scores as written.
            levels: [performances, 2], see `levels.py`.
            summaries: [performances, features] means of the features of the scores.
        """
        if self.measured:
            return
        if self.levels is not None:
            self.mean.copy_(values.mean(dim=0))
            self.std.copy_(values.std(dim=0, correction=0).clamp(min=1e-3))
            self.levels.fit(summaries, levels)
        self.midlevel_mean.copy_(performed.mean(dim=0))
        self.midlevel_std.copy_(performed.std(dim=0, correction=0).clamp(min=1e-3))
        if isinstance(self.prior, SymbolicPrior):
            self.prior.fit(self.standardised(written), self.standardised(performed))
        self.measured.fill_(True)

    def normalised(self, values: Tensor, level: Tensor) -> Tensor:
        """Parameters [..., notes, 5] of performances with the levels [..., 2] -> z-scores of what is beside the level;
        in compat of the parameters as they are."""
        if self.levels is not None:
            values = values - as_channels(level)
        return (values - self.mean) / self.std

    def denormalised(self, z: Tensor, level: Tensor) -> Tensor:
        """The inverse of `normalised`."""
        values = z * self.std + self.mean
        return values if self.levels is None else values + as_channels(level)

    def standardised(self, midlevel: Tensor) -> Tensor:
        """Mid-level features [..., 7] -> z-scores."""
        return (midlevel - self.midlevel_mean) / self.midlevel_std

    # Training

    def draw_midlevel(self, batch: Mapping[str, Tensor], x0: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Mid-level features for a training batch: of the performance, or as the score alone lets expect, or none.

        Args:
            batch: From `DExterData`.
            x0: [batch, notes, 5] z-scores.

        Returns:
            [batch, notes, 7] z-scores, [batch] bool, False where they are not known, and the loss of the prior.
        """
        nothing = x0.new_zeros(())
        if self.prior is None:
            return None, None, nothing
        performed = self.standardised(batch["midlevel"])
        draw = torch.rand(len(x0), device=x0.device)
        if self.hparams.target == "transfer":
            return performed - self.standardised(batch["source_midlevel"]), draw < TEACHER + PREDICTED, nothing
        if isinstance(self.prior, LearnedPrior):
            nothing, mean, sigma = self.prior.loss(batch["score"], x0, performed, batch["mask"])
        else:
            mean, sigma = self.prior(self.standardised(batch["written"]))
        # What is wrong with a prediction is wrong for long stretches: it follows from windows of many notes.
        predicted = mean + sigma * torch.randn(len(x0), 1, FEATURES, device=x0.device)
        midlevel = torch.where((draw < TEACHER)[:, None, None], performed, predicted)
        return midlevel, draw < TEACHER + PREDICTED, nothing

    def loss(
        self,
        batch: Mapping[str, Tensor],
        t: Tensor,
        epsilon: Tensor,
        midlevel: Tensor | None,
        keep_score: Tensor | None = None,
        keep_midlevel: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of the denoiser by name, "total" among them.

        Args:
            batch: From `DExterData`.
            t: [batch] diffusion steps, whole numbers.
            epsilon: [batch, notes, 5] standard normal noise, or what takes its place in transfer.
            midlevel: [batch, notes, 7] z-scores.
            keep_score: [batch] bool, False for rows that are trained without score.
            keep_midlevel: The same for the mid-level features.
        """
        options = self.hparams
        x0 = self.normalised(batch["values"], batch["level"])
        time = t / options.diffusion_steps
        alpha, sigma = self.schedule.alpha(time)[:, None, None], self.schedule.sigma(time)[:, None, None]
        z = add_noise(x0, epsilon, alpha, sigma)
        output = self.network(z, t, batch["score"], midlevel, batch["mask"], keep_score, keep_midlevel).float()
        if options.compat:
            mode = PUBLISHED_MODES[options.objective]
            return published_losses(
                mode, output, x0, epsilon, z, alpha, sigma, options.norm, recon_weight=options.recon_weight
            )
        return denoising_losses(
            options.objective,
            output,
            x0,
            epsilon,
            z,
            alpha,
            sigma,
            batch["matched"],
            options.norm,
            recon_weight=options.recon_weight,
        )

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        options, size = self.hparams, len(batch["values"])
        # Every step is as likely as any other, but a batch covers the range evenly: the gradient is less noisy.
        share = (torch.rand(1, device=self.device) + torch.arange(size, device=self.device) / size) % 1
        t = (share * options.diffusion_steps).floor()
        x0 = self.normalised(batch["values"], batch["level"])
        is_transfer = options.target == "transfer"
        epsilon = self.normalised(batch["source"], batch["source_level"]) if is_transfer else torch.randn_like(x0)
        midlevel, known, prior_loss = self.draw_midlevel(batch, x0)
        keep = torch.rand(size, device=self.device) >= options.cfg_dropout
        losses = self.loss(batch, t, epsilon, midlevel, keep, None if known is None else keep & known)
        loss = losses["total"] + prior_loss
        self.log("train/loss", losses["total"], prog_bar=True, batch_size=size)
        if isinstance(self.prior, LearnedPrior):
            self.log("train/midlevel", prior_loss, batch_size=size)
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        size = len(batch["values"])
        steps, noise = fixed_noise(self, batch)
        source = self.normalised(batch["source"], batch["source_level"]) if self.hparams.target == "transfer" else None
        midlevel = self.expected_midlevel(batch)
        loss = self.loss(batch, steps, noise if source is None else source, midlevel)["total"]
        self.log("val/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        if self.hparams.validate_samples:
            self.correlations.compare(self, batch, sample_windows(self, batch, midlevel, source))
            for name, metric in self.correlations.items():
                self.log(f"val/{name}", metric, prog_bar=name == "correlation", batch_size=size)

    def test_step(self, batch: Sequence[Mapping[str, Any]], batch_idx: int) -> Interpretations:
        return play_pieces(self, batch)

    def expected_midlevel(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """What rendering knows of the mid-level features of windows: [batch, notes, 7] z-scores, from their score."""
        if self.prior is None:
            return None
        if self.hparams.target == "transfer":
            return self.standardised(batch["midlevel"]) - self.standardised(batch["source_midlevel"])
        if isinstance(self.prior, SymbolicPrior):
            return self.prior(self.standardised(batch["written"]))[0]
        unseen = torch.zeros(len(batch["score"]), dtype=torch.bool, device=self.device)
        return self.prior(batch["score"], torch.zeros_like(batch["values"]), unseen, batch["mask"])[0]

    # Rendering

    @property
    def grid(self) -> Grid:
        """Times that the solver visits."""
        return self.hparams.grid or ("steps" if self.hparams.compat else "quadratic")

    def estimate(self, z: Tensor, t: float, conditioned: Conditioned) -> Tensor:
        """Guided estimate of the data, x0 in the shape of `z` [batch, notes, 5], at a time in [0, 1]."""
        options = self.hparams
        step = torch.tensor([t * options.diffusion_steps], device=z.device, dtype=torch.float32)
        output = self.network.denoise(z, step, conditioned).float()
        if conditioned.rows != len(z):
            output = guide(output, options.guidance)
        time = torch.tensor(t, dtype=torch.float64)
        return to_x0(options.objective, output, z, self.schedule.alpha(time).item(), self.schedule.sigma(time).item())

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Scores stay apart: what is rendered beside a score must not change a bit of it."""
        return list(examples)

    def render(self, batch: Sequence[Mapping[str, Any]], noise: Noise) -> Iterator[tuple[int, Rendering]]:
        """Play each score, see `rendering.perform`.

        Args:
            batch: What `codec.encode` returned for each score.
            noise: The only source of randomness.

        Yields:
            Position of a score in the batch, and its performance.
        """
        for position, piece in enumerate(batch):
            yield position, perform(self, piece, lambda draw, shape, at=position: noise.normal(at, draw, shape))

    @classmethod
    def read_published(cls, path: Path) -> Published:
        """Read a checkpoint of the published program, see `checkpoint.py`."""
        return read_published(path)
