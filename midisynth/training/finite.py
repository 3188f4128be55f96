"""A watch for infinity and NaN that says where they come from."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from midisynth.errors import TrainingError

logger = logging.getLogger("midisynth.training")


class CheckFinite(Callback):
    """Finds the module whose output, or the gradient of it, is the first that is not finite.

    What it sees is collected on the device and looked at once a step, so that nothing waits in between. Half precision
    with loss scaling makes infinite gradients on purpose: there, check activations alone.

    Args:
        every_n_steps: Steps between those that are checked.
        gradients: Check the gradients of outputs and parameters as well.
        action: "stop" ends training, "warn" goes on.
    """

    def __init__(self, every_n_steps: int = 1, gradients: bool = True, action: Literal["stop", "warn"] = "stop"):
        self._every_n_steps, self._gradients, self._action = every_n_steps, gradients, action
        self._handles: list[RemovableHandle] = []
        self._seen: list[tuple[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self._every_n_steps:
            return
        for name, module in pl_module.named_modules():
            # The outermost one is called by its own methods, which no hook sees.
            if name:
                self._handles.append(module.register_forward_hook(self._hook(name)))

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            for tensor in _tensors(output):
                self._see(f"output of {name}", tensor)
                if self._gradients and tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self._see(f"gradient of the output of {name}", gradient))

        return hook

    def _see(self, what: str, values: Tensor) -> None:
        self._seen.append((what, values.detach().isfinite().all()))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._handles:
            return
        if self._gradients:
            for name, parameter in pl_module.named_parameters():
                if parameter.grad is not None:
                    self._see(f"gradient of the parameter {name}", parameter.grad)
        self._release()
        seen, self._seen = self._seen, []
        fine = torch.stack([finite for _, finite in seen]).tolist()
        broken = [what for (what, _), finite in zip(seen, fine, strict=True) if not finite]
        if not broken:
            return
        text = f"step {trainer.global_step}: the {broken[0]} is not finite"
        if len(broken) > 1:
            text += f", and {len(broken) - 1} after it"
        if self._action == "stop":
            raise TrainingError(f"{text}: lower the learning rate, or train in float32 or bf16")
        logger.warning(text)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _tensors(output: Any) -> list[Tensor]:
    """Tensors with fractions in what a module returned."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    return [tensor for entry in output for tensor in _tensors(entry)] if isinstance(output, list | tuple) else []
