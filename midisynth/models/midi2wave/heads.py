"""What the decoder's outputs say about the next sample: losses, and how samples are drawn.

`Categorical` gives each code a probability. `LogisticMixture` is a mixture of logistic distributions cut into as many
bins as there are codes (Salimans et al. 2017, arXiv 1701.05517, section 2.1), which also does for 16 bits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

#: Uniforms from which logistics are drawn stay this far from 0 and 1.
LOGISTIC_EDGE = 1e-5


class Head(ABC):
    """Distribution of a code, given the outputs of the decoder.

    Attributes:
        levels: Number of codes.
        outputs: Channels that the decoder must have.
        draws: Uniforms that one sample takes.
    """

    levels: int
    outputs: int
    draws: int

    @abstractmethod
    def nll(self, logits: Tensor, codes: Tensor) -> Tensor:
        """Negative log likelihood (nats) of codes [batch, samples] under [batch, outputs, samples]; float32 or more."""

    @abstractmethod
    def sample(self, logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
        """Draw codes.

        Args:
            logits: [batch, outputs].
            uniforms: [batch, draws] in [0, 1).
            temperature: Below 1 samples keep to what is probable; 0 takes the most probable.
            top_p: Only the most probable codes that have this probability together are drawn.

        Returns:
            [batch] int64.
        """

    def loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        """Mean negative log likelihood (nats per sample) over batch and samples; arguments as in `nll`."""
        return self.nll(logits, codes).mean()


class Categorical(Head):
    """A probability for each code.

    Args:
        levels: Number of codes.
    """

    draws = 1

    def __init__(self, levels: int = 256):
        self.levels = self.outputs = levels

    def nll(self, logits: Tensor, codes: Tensor) -> Tensor:
        return F.cross_entropy(_precise(logits), codes, reduction="none")

    def sample(self, logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
        """The first code whose cumulative probability exceeds the uniform."""
        if temperature == 0:
            return logits.argmax(dim=1)
        probability = F.softmax(_precise(logits) / temperature, dim=1)
        if top_p < 1:
            probability = _nucleus(probability, top_p)
        return _inverse_cdf(probability, uniforms[:, 0])


class LogisticMixture(Head):
    """A mixture of discretised logistics over codes, which stand for amplitudes from -1 to 1 in equal steps.

    Outputs are the logits of the components, their means before a tanh, and their scales, each [components].

    Args:
        components: Logistics in the mixture.
        levels: Number of codes; 65536 for 16 bit.
        min_log_scale: Smallest natural logarithm of a scale; None for that of the original, -7 with 256 levels, and as
            small a part of a level with others: at -7 no 16-bit audio is less noisy than -56 dB.
        scale: What keeps it there. "sigmoid": it lies between this and 0. "clamp": it is cut off there and has no
            upper end, as in the paper.
        compat: "seed" gives the loss of the original: at the outermost codes probabilities stand where their
            logarithms should, likelihoods below 1e-8 have no gradient, and items of a batch add up.
    """

    draws = 2

    def __init__(
        self,
        components: int = 10,
        levels: int = 256,
        min_log_scale: float | None = None,
        scale: Literal["sigmoid", "clamp"] = "sigmoid",
        compat: Literal["seed"] | None = None,
    ):
        self.components, self.levels, self.outputs = components, levels, 3 * components
        self.min_log_scale = -7 - math.log((levels - 1) / 255) if min_log_scale is None else min_log_scale
        self.scale, self.compat = scale, compat

    def nll(self, logits: Tensor, codes: Tensor) -> Tensor:
        return -(self._published_log_prob if self.compat else self._log_prob)(_precise(logits), codes)

    def loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        nll = self.nll(logits, codes)
        return nll.sum() / nll.shape[1] if self.compat else nll.mean()

    def sample(self, logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
        """A component from the first uniform, a logistic from the second; the temperature scales the logistic."""
        weights, means, log_scales = self._parameters(_precise(logits)[..., None])
        if temperature == 0:
            component = weights.argmax(dim=1)
        else:
            probability = F.softmax(weights, dim=1)[..., 0]
            if top_p < 1:
                probability = _nucleus(probability, top_p)
            component = _inverse_cdf(probability, uniforms[:, 0])[:, None]
        chosen = component[:, None]
        x = means.gather(1, chosen)[:, 0, 0]
        if temperature != 0:
            u = uniforms[:, 1].to(x.dtype).clamp(LOGISTIC_EDGE, 1 - LOGISTIC_EDGE)
            x = x + temperature * log_scales.gather(1, chosen)[:, 0, 0].exp() * (u.log() - torch.log1p(-u))
        return ((x.clamp(-1, 1) + 1) * ((self.levels - 1) / 2)).round().long()

    def _parameters(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, means and log scales of the components, each [batch, components, samples]."""
        weights, means, scales = logits.chunk(3, dim=1)
        if self.scale == "clamp":
            return weights, means.tanh(), scales.clamp(min=self.min_log_scale)
        return weights, means.tanh(), self.min_log_scale * scales.sigmoid()

    def _bins(self, logits: Tensor, codes: Tensor) -> tuple[Tensor, ...]:
        """Logits of the components, their log scales, and middle and half the width of the bin, in scales."""
        weights, means, log_scales = self._parameters(logits)
        inverse = torch.exp(-log_scales)
        half = inverse / (self.levels - 1)
        amplitude = codes.to(logits.dtype) * (2 / (self.levels - 1)) - 1
        middle = inverse * (amplitude[:, None] - means)
        return weights, log_scales, middle, half

    def _log_prob(self, logits: Tensor, codes: Tensor) -> Tensor:
        """[batch, samples]. F(b) - F(a) = F(b) F(-a) (1 - e^(a - b)), which never cancels."""
        weights, _, middle, half = self._bins(logits, codes)
        first, last = codes[:, None] == 0, codes[:, None] == self.levels - 1
        below_upper = torch.where(last, 0, F.logsigmoid(middle + half))
        above_lower = torch.where(first, 0, F.logsigmoid(half - middle))
        # Not upper minus lower end: with 65,536 levels their difference is in the last bits.
        width = torch.where(first | last, 0, torch.log(-torch.expm1(-2 * half)))
        return torch.logsumexp(F.log_softmax(weights, dim=1) + below_upper + above_lower + width, dim=1)

    def _published_log_prob(self, logits: Tensor, codes: Tensor) -> Tensor:
        """[batch, samples], as the original has it."""
        weights, log_scales, middle, half = self._bins(logits, codes)
        above, below = (middle + half).sigmoid(), (middle - half).sigmoid()
        inside = above - below
        density = middle - log_scales - 2 * F.softplus(middle) - math.log((self.levels - 1) / 2)
        log_prob = torch.where(inside > 1e-5, inside.clamp(min=1e-8).log(), density)
        log_prob = torch.where(codes[:, None] == self.levels - 1, below, log_prob)
        log_prob = torch.where(codes[:, None] == 0, above, log_prob)
        return (F.softmax(weights, dim=1) * log_prob.exp()).sum(dim=1).clamp(min=1e-8).log()


def _precise(logits: Tensor) -> Tensor:
    """At least float32, whatever autocast made of the network."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _inverse_cdf(probability: Tensor, uniform: Tensor) -> Tensor:
    """The first of [batch, values] whose cumulative probability exceeds [batch] uniforms: [batch] int64."""
    cumulative = probability.cumsum(dim=1)
    # Which ends a little beside 1: without this a uniform beyond it would draw the last value, a click at full scale.
    total = cumulative[:, -1:]
    return ((cumulative <= uniform[:, None] * total) & (cumulative < total)).sum(dim=1)


def _nucleus(probability: Tensor, top_p: float) -> Tensor:
    """Keep the most probable values that have `top_p` together (Holtzman et al. 2020): [batch, values], sums of 1."""
    ordered, order = probability.sort(dim=1, descending=True)
    kept = ordered.cumsum(dim=1) - ordered < top_p
    chosen = torch.zeros_like(probability).scatter(1, order, ordered * kept)
    return chosen / chosen.sum(dim=1, keepdim=True)
