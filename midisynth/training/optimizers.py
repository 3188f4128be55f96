"""Optimizers that torch has not ready-made: ScaledAdam and Eve, both of the speech recognisers of icefall."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

#: How far ahead the second moment of Adam is trusted without correction of its start.
_CORRECTED_BELOW = 0.99


class ScaledAdam(Optimizer):
    """Adam with steps in proportion to the size of each tensor, which learns that size as well (Yao et al. 2023,
    "Zipformer", arXiv 2310.11230, section 3.5).

    Rates are relative: 0.05 moves a tensor by up to 5 % of its root mean square. Scaling a loss changes nothing.

    Args:
        params: Parameters or groups of them.
        lr: Rate.
        betas: Decay of the momentum and of the second moment.
        eps: Keeps denominators from 0.
        clipping_scale: Gradients whose norm is more than so many times the median of the norms before are scaled down
            to it, each tensor's weighted with its root mean square; null does not clip.
        clipping_update_period: Steps that a median is taken of.
        clipped: What is computed of the clipped gradient: "all", or "scale": the size alone, as published.
        scalar_lr_scale: Rate of sizes and of tensors of one element, relative to `lr`.
        min_rms: Tensors whose root mean square is less move as if it were this, and shrink no further.
        max_rms: Tensors whose root mean square is more shrink.
        scalar_max: Largest absolute value of a tensor of one element before its step.
        size_update_period: Steps between those of the sizes.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        clipping_scale: float | None = 2.0,
        clipping_update_period: int = 1000,
        clipped: Literal["all", "scale"] = "all",
        scalar_lr_scale: float = 0.1,
        min_rms: float = 1e-5,
        max_rms: float = 3.0,
        scalar_max: float = 10.0,
        size_update_period: int = 4,
    ):
        defaults = {name: value for name, value in locals().items() if name not in ("self", "params", "__class__")}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make one step; `closure`, if there is one, computes the gradients and returns the loss."""
        loss = _evaluated(closure)
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if not self.state[parameter]:
                    self._start(parameter, group)
            if not parameters:
                continue
            factor = self._clipping_factor(parameters, group)
            for parameter in parameters:
                state, gradient = self.state[parameter], parameter.grad
                clipped = gradient if factor is None else gradient * factor
                state["delta"].mul_(group["betas"][0])
                whole = clipped if group["clipped"] == "all" else gradient
                if parameter.numel() > 1:
                    self._learn_size(parameter, clipped, state, group)
                    self._step_tensor(parameter, whole, state, group)
                else:
                    self._step_scalar(parameter, whole, state, group)
                state["step"] += 1
        return loss

    def _start(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        state["step"] = 0
        state["delta"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
        if parameter.numel() > 1:
            state["rms"] = _rms(parameter)
            state["size_exp_avg_sq"] = torch.zeros_like(state["rms"])
            state["size_gradients"] = parameter.new_zeros(group["size_update_period"])

    def _clipping_factor(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> Tensor | None:
        """What gradients are multiplied by, a scalar on their device; None before there is a median."""
        # The norms lie with one parameter, which may be without a gradient now.
        known = (self.state[parameter] for parameter in group["params"] if "norms" in self.state.get(parameter, ()))
        first = next(known, self.state[parameters[0]])
        step, period = first["step"], group["clipping_update_period"]
        if group["clipping_scale"] is None or step == 0:
            return None
        sizes = [p.grad if p.numel() == 1 else p.grad * self.state[p]["rms"] for p in parameters]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(sizes)))
        norms = first.setdefault("norms", norm.new_zeros(period))
        norms[step % period] = norm
        if step % period == 0:
            median = norms.sort().values[min(period // 4 * 2, period - 1)]
            first["threshold"] = group["clipping_scale"] * median
        return (first["threshold"] / (norm + 1e-20)).clamp(max=1.0) if step >= period else None

    @staticmethod
    def _learn_size(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Collect the gradient of the size, and after every few steps let the size move."""
        period, step = group["size_update_period"], state["step"]
        gradients = state["size_gradients"]
        gradients[step % period] = (parameter * gradient).sum()
        if step % period != period - 1:
            return
        state["rms"].copy_(_rms(parameter))
        if step == 0:
            return
        beta1, beta2 = group["betas"]
        decay = beta2**period
        state["size_exp_avg_sq"].mul_(decay).add_(gradients.square().mean(), alpha=1 - decay)
        correction = (1 - decay ** ((step + 1) // period)) ** 0.5
        rate = group["lr"] * group["scalar_lr_scale"]
        change = -rate * correction * gradients.sum() / (state["size_exp_avg_sq"].sqrt() + group["eps"])
        change = change.masked_fill(state["rms"] < group["min_rms"], 0.0)
        change = change.masked_fill(state["rms"] > group["max_rms"], -rate * period)
        state["delta"].add_(parameter * change, alpha=1 - beta1)

    @staticmethod
    def _step_tensor(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction = 1 - beta2 ** (state["step"] + 1)
        if correction < _CORRECTED_BELOW:
            second = second / correction
        size = state["rms"].clamp(min=group["min_rms"])
        state["delta"].add_(gradient / (second.sqrt() + group["eps"]) * size, alpha=-group["lr"] * (1 - beta1))
        parameter.add_(state["delta"])

    @staticmethod
    def _step_scalar(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        second = second / (1 - beta2 ** (state["step"] + 1))
        rate = group["lr"] * group["scalar_lr_scale"]
        state["delta"].add_(gradient / (second.sqrt() + group["eps"]), alpha=-rate * (1 - beta1))
        parameter.clamp_(-group["scalar_max"], group["scalar_max"]).add_(state["delta"])


class Eve(Optimizer):
    """Adam whose weight decay stops where a tensor is small enough, so that sizes stay where they are useful.

    Args:
        params: Parameters or groups of them.
        lr: Rate.
        betas: Decay of the two moments.
        eps: Keeps denominators from 0.
        weight_decay: Share that a tensor loses at each step while its root mean square is above `target_rms`; not
            multiplied by the rate.
        target_rms: Root mean square below which nothing decays.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 1e-3,
        target_rms: float = 0.1,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "target_rms": target_rms}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make one step; `closure`, if there is one, computes the gradients and returns the loss."""
        loss = _evaluated(closure)
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"] += 1
                first = state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
                second = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                denominator = (second / (1 - beta2 ** state["step"])).sqrt() + group["eps"]
                if parameter.numel() > 1:
                    parameter.mul_(1 - group["weight_decay"] * (_rms(parameter) > group["target_rms"]))
                parameter.addcdiv_(first, denominator, value=-group["lr"] / (1 - beta1 ** state["step"]))
        return loss


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
