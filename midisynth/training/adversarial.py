"""Adversarial training of any LightningModule: a generator, and an adversary that learns to tell its output from real.

    class Synthesizer(AdversarialStep, MidiModule):
        def __init__(self, adversarial_from: int | None = None, optimizer=..., lr_scheduler=...):
            super().__init__(optimizer, lr_scheduler)
            self.network = ...
            if adversarial_from is not None:
                adversary = AudioDiscriminator([MultiPeriodDiscriminator(), MultiResolutionDiscriminator()])
                self.use_adversary(adversary, optimizer, lr_scheduler, start_step=adversarial_from)

        def training_step(self, batch, batch_idx):
            audio = self.network(batch["mel"])
            loss = reconstruction(audio, batch["audio"])
            self.log("train/loss", loss)
            return self.adversarial_step(loss, audio, batch["audio"], batch_idx)

Without `use_adversary` the model trains as any other: `adversarial_step` hands the loss back. With it the module
optimises by hand. What there is to know:

- Steps are the generator's: `max_steps`, `every_n_train_steps`, `global_step` and the step of logged values count them
  (`log_every_n_steps` counts batches). The adversary's step is none of its own. Each schedule advances once per step of
  its optimizer, so the adversary's begins at `start_step`.
- Until `start_step` the generator trains alone and the adversary is not even run.
- Both sides are judged with the weights from before the step, then both step. So accumulated batches give the step that
  one large batch would give, and the adversary judges the real audio once instead of twice.
- The trainer's `gradient_clip_val` and `accumulate_grad_batches` do not exist for manual optimisation, nor do 16-mixed
  precision, other strategies than ddp, and saving by time: they are refused with a word on what takes their place.
- On several processes gradients are averaged here, once per step, over the parameters that step. DDP's own reduction
  expects a gradient for every parameter after every backward pass, which here there never is.
- A resumed run continues bit by bit. Of batches that were accumulated for a step that was not yet made, a checkpoint
  knows nothing: save at steps or at the ends of epochs, which always make one.
- Parameters of `adversary` are in the state dict and in weight averages as those of any other child.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import do_nothing_closure
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from midisynth.errors import UsageError


class Adversary(Protocol):
    """What `use_adversary` takes; `midisynth.nn.discriminators.AudioDiscriminator` is one. A judgement is its own."""

    def __call__(self, audio: Tensor) -> Any:
        """Audio, [batch, channels, samples] -> judgement."""
        ...

    def discriminator_loss(self, real: Any, fake: Any) -> Tensor:
        """What the adversary minimises, from its judgements of real and of generated audio."""
        ...

    def generator_loss(self, fake: Any) -> Tensor:
        """What the generator minimises, from the judgement of its audio."""
        ...

    def feature_loss(self, real: Any, fake: Any) -> Tensor:
        """Distance of the activations for both, with a gradient to `fake` alone."""
        ...


@dataclass(frozen=True)
class _Options:
    """Arguments of `use_adversary`."""

    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None
    start_step: int
    adversarial_weight: float
    feature_weight: float
    gradient_clip_val: float | None
    accumulate_grad_batches: int


class AdversarialStep(LightningModule):
    """Mixin, to be named before the base class; see the module's text for its use and its rules.

    A base class that is no `MidiModule` builds its optimizer from `generator_parameters()`.
    """

    adversary: nn.Module

    def use_adversary(
        self,
        adversary: nn.Module,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        *,
        start_step: int = 0,
        adversarial_weight: float = 1.0,
        feature_weight: float = 1.0,
        gradient_clip_val: float | None = None,
        accumulate_grad_batches: int = 1,
    ) -> None:
        """Train against an adversary, by manual optimisation.

        Args:
            adversary: An `Adversary`; it becomes the child `adversary`.
            optimizer: Builds the adversary's optimizer from its parameters.
            lr_scheduler: Builds the schedule of that optimizer.
            start_step: First step (of the generator) at which there is an adversary.
            adversarial_weight: Of `generator_loss` in the generator's loss.
            feature_weight: Of `feature_loss` in the generator's loss.
            gradient_clip_val: Largest gradient norm, of generator and adversary each; None does not clip.
            accumulate_grad_batches: Batches of one step. The last step of an epoch may have fewer, with the weight that
                they have in all others.
        """
        self.adversary = adversary
        self.automatic_optimization = False
        self._adversarial = _Options(
            optimizer,
            lr_scheduler,
            start_step,
            adversarial_weight,
            feature_weight,
            gradient_clip_val,
            accumulate_grad_batches,
        )

    def generator_parameters(self) -> list[nn.Parameter]:
        """All parameters but the adversary's."""
        if self.automatic_optimization:
            return list(self.parameters())
        others = set(self.adversary.parameters())
        return [parameter for parameter in self.parameters() if parameter not in others]

    def adversarial_step(self, loss: Tensor, audio: Tensor, reference: Tensor, batch_idx: int) -> Tensor:
        """What `training_step` returns: backward passes and, when enough batches are together, the step.

        Logs `train/adversarial`, `train/features` and `train/discriminator`, the losses without their weights.

        Args:
            loss: The generator's other losses, scalar.
            audio: What the generator made, [batch, channels, samples].
            reference: What it should be like, same shape.
            batch_idx: As `training_step` got it.

        Returns:
            The generator's whole loss; without an adversary `loss` itself, for the trainer to minimise.
        """
        if self.automatic_optimization:
            return loss
        options = self._adversarial
        share = 1 / options.accumulate_grad_batches
        judged = self.global_step >= options.start_step
        with self._unreduced():
            if judged:
                real = self.adversary(reference)
                discriminator_loss = self.adversary.discriminator_loss(real, self.adversary(audio.detach()))
                self.manual_backward(discriminator_loss * share)
                with _frozen(self.adversary):
                    fake = self.adversary(audio)
                adversarial_loss = self.adversary.generator_loss(fake)
                feature_loss = self.adversary.feature_loss(real, fake)
                loss = loss + options.adversarial_weight * adversarial_loss + options.feature_weight * feature_loss
                self.log("train/discriminator", discriminator_loss)
                self.log("train/adversarial", adversarial_loss)
                self.log("train/features", feature_loss)
            self.manual_backward(loss * share)
        if (batch_idx + 1) % options.accumulate_grad_batches == 0 or self.trainer.is_last_batch:
            generator, discriminator = self.optimizers()
            self._step(generator.optimizer, generator.step)
            if judged:
                # Stepping as the generator's does, but through the wrapper it would be counted as another step.
                self._step(
                    discriminator.optimizer,
                    lambda: self.trainer.strategy.optimizer_step(discriminator.optimizer, do_nothing_closure),
                )
        self._log_step()
        return loss.detach()

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        if self.automatic_optimization:
            return configured
        generator, schedules = _unpacked(configured)
        of_generator = {parameter for group in generator.param_groups for parameter in group["params"]}
        if of_generator & set(self.adversary.parameters()):
            raise ValueError("the generator's optimizer holds parameters of the adversary: use generator_parameters()")
        discriminator = self._adversarial.optimizer(self.adversary.parameters())
        if self._adversarial.lr_scheduler is not None:
            schedules = [*schedules, self._adversarial.lr_scheduler(discriminator)]
        return [generator, discriminator], schedules

    def build_optimizer(self, build: OptimizerCallable) -> Optimizer:
        """The generator's optimizer (`MidiModule.configure_optimizers` asks for it)."""
        return build(self.generator_parameters())

    def configure_callbacks(self) -> Any:
        # The one hook that is called before the trainer itself rejects its options, and without saying what to do.
        if self.trainer.training and not self.automatic_optimization:
            self._check_trainer()
        return super().configure_callbacks()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        # `ModelCheckpoint` would rather save the weights from before the step, beside the optimizers from after it.
        warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if not self.automatic_optimization and self.trainer.state.fn == TrainerFn.FITTING:
            self._log_step()

    def _check_trainer(self) -> None:
        """Refuse what the trainer cannot do here.

        Raises:
            UsageError: With what to use instead.
        """
        trainer = self.trainer
        name = type(self).__name__
        for option, unset in (("gradient_clip_val", (None, 0)), ("accumulate_grad_batches", (1,))):
            if getattr(trainer, option) not in unset:
                raise UsageError(
                    f"trainer.{option}: does not work in adversarial training: leave it out, and set the option of "
                    f"{name} that takes its place"
                )
        if trainer.precision == "16-mixed":
            raise UsageError("trainer.precision: adversarial training scales no losses: use bf16-mixed or 32-true")
        if any(isinstance(one, ModelCheckpoint) and one._train_time_interval for one in trainer.callbacks):
            raise UsageError(
                "ModelCheckpoint.train_time_interval: saves nothing in adversarial training: use every_n_train_steps"
            )
        if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
            raise UsageError("trainer.strategy: adversarial training runs on one device or with ddp")

    def _unreduced(self) -> AbstractContextManager:
        """Backward passes in it leave gradients to their process."""
        model = self.trainer.strategy.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def _step(self, optimizer: Optimizer, step: Callable[[], Any]) -> None:
        """One step of an optimizer and its schedules, from the mean gradient of all processes."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self.trainer.world_size > 1:
            self._average_gradients(parameters)
        if self._adversarial.gradient_clip_val is not None:
            clip_grad_norm_(parameters, self._adversarial.gradient_clip_val)
        step()
        optimizer.zero_grad()
        for schedule in _listed(self.lr_schedulers()):
            if schedule.optimizer is optimizer:
                schedule.step()

    def _average_gradients(self, parameters: list[nn.Parameter]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.trainer.strategy.reduce(torch.cat([gradient.flatten() for gradient in gradients]))
        means = flat.split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def _log_step(self) -> None:
        # The trainer numbers logged values by batches of manual optimisation; a metric of this name takes precedence.
        if self._adversarial.accumulate_grad_batches > 1:
            self.log("step", float(self.global_step))


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """What is computed in it has no gradient to the module's parameters, but one through the module."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _unpacked(configured: Any) -> tuple[Optimizer, list[LRScheduler]]:
    """The optimizer and schedules of what `configure_optimizers` returns for one optimizer."""
    if isinstance(configured, Optimizer):
        return configured, []
    if "lr_scheduler" not in configured:
        return configured["optimizer"], []
    schedule = configured["lr_scheduler"]
    return configured["optimizer"], [schedule["scheduler"] if isinstance(schedule, dict) else schedule]


def _listed(schedules: Any) -> list[LRScheduler]:
    if schedules is None:
        return []
    return schedules if isinstance(schedules, list) else [schedules]
