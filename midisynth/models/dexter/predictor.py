"""Mid-level features of a score that nobody has played: what a performance of it can be expected to sound like.

The features are those of performances, so that a score alone has none. Two ways to expect some, both in z-scores of
the training performances, with the standard deviation of what is left:

- `SymbolicPrior`: the same descriptors of the score as it is written, moved to where performances are;
- `LearnedPrior`: a network that reads the score, and if there is one, the performance.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.models.dexter.network import CHANNELS, min_max
from midisynth.nn.positions import sinusoids
from midisynth.nn.transformer import Encoder

#: Mid-level features of a note.
FEATURES = 7

#: Added to the variance of a descriptor of the page (in those of the performances): what hardly varies tells little.
RIDGE = 0.1

#: Weight of the correlation loss beside the likelihood.
CORRELATION_WEIGHT = 0.1
#: Share of the training windows of which the performance is not shown.
UNSEEN = 0.5
#: Log variances are kept within these bounds: what is constant must not make the likelihood infinite.
LOG_VARIANCE = (-6.0, 4.0)


class SymbolicPrior(nn.Module):
    """A line for every feature, from the descriptor of the score as written to that of its performances.

    Notation knows harmony and metre as well as a performance does, but neither tempo nor touch: articulation, for one,
    is 0 everywhere on the page. A line of small slope then gives what performances have on average.
    """

    slope: Tensor
    offset: Tensor
    sigma: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slope", torch.ones(FEATURES))
        self.register_buffer("offset", torch.zeros(FEATURES))
        self.register_buffer("sigma", torch.full((FEATURES,), 0.5))

    def fit(self, written: Tensor, performed: Tensor) -> None:
        """Ridge regression, a feature at a time.

        Args:
            written: [notes, 7] z-scores of the scores' descriptors.
            performed: [notes, 7] z-scores of the performances'.
        """
        centred = written - written.mean(dim=0)
        variance = centred.square().mean(dim=0)
        covariance = (centred * (performed - performed.mean(dim=0))).mean(dim=0)
        self.slope.copy_(covariance / (variance + RIDGE))
        self.offset.copy_(performed.mean(dim=0) - self.slope * written.mean(dim=0))
        self.sigma.copy_((performed - self(written)[0]).std(dim=0, correction=0))

    def forward(self, written: Tensor) -> tuple[Tensor, Tensor]:
        """Z-scores of the score's descriptors -> mean and standard deviation of the performances'; all [..., 7]."""
        return self.slope * written + self.offset, self.sigma.expand_as(written)


class LearnedPrior(nn.Module):
    """A transformer that reads all notes of a window and predicts a Gaussian for every feature of every note.

    Args:
        score_features: Features of a note of the score.
        normalise_score: Bring every score feature of every window to 0..1 first.
        dim: Width.
        layers: Layers.
        heads: Attention heads.
        max_notes: Longest window.
    """

    positions: Tensor

    def __init__(
        self,
        score_features: int,
        normalise_score: bool,
        dim: int = 128,
        layers: int = 4,
        heads: int = 4,
        max_notes: int = 1000,
    ):
        super().__init__()
        self.normalise_score = normalise_score
        self.input = nn.Linear(score_features + CHANNELS + 1, dim)
        self.encoder = Encoder(layers, dim, heads, dim // heads, 2 * dim)
        self.output = nn.Linear(dim, 2 * FEATURES)
        self.register_buffer("positions", sinusoids(max_notes, dim), persistent=False)

    def forward(self, score: Tensor, values: Tensor, seen: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the features of a window.

        Args:
            score: [batch, notes, score_features].
            values: [batch, notes, 5] normalised performance parameters.
            seen: [batch] bool, False where the performance is not to be known.
            mask: [batch, notes] bool, False for padding.

        Returns:
            Mean and standard deviation, in z-scores, [batch, notes, 7] each.
        """
        score = min_max(score.float(), mask) if self.normalise_score else score
        flag = seen[:, None, None].to(values.dtype).expand(*values.shape[:2], 1)
        x = self.input(torch.cat([score, values * flag, flag], dim=-1)) + self.positions[: score.shape[1]]
        mean, log_variance = self.output(self.encoder(x, mask[:, None, None])).float().chunk(2, dim=-1)
        return mean, (log_variance.clamp(*LOG_VARIANCE) / 2).exp()

    def loss(self, score: Tensor, values: Tensor, wanted: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gaussian negative log-likelihood and correlation loss of a batch, of half of it without its performance.

        Args:
            score: As in `forward`, like the next one and `mask`.
            values: See there.
            wanted: [batch, notes, 7] z-scores of the performances.
            mask: See there.

        Returns:
            The loss, and mean and standard deviation from the score alone, detached.
        """
        seen = torch.rand(len(score), device=score.device) >= UNSEEN
        mean, sigma = self(score, values, seen, mask)
        likelihood = F.gaussian_nll_loss(mean[mask], wanted[mask], sigma[mask].square())
        with torch.no_grad():
            unseen = self(score, values, torch.zeros_like(seen), mask)
        return likelihood + CORRELATION_WEIGHT * _decorrelation(mean[mask], wanted[mask]), *unseen


def _decorrelation(predicted: Tensor, wanted: Tensor) -> Tensor:
    """1 minus the correlation over all notes, mean over the features; [notes, features] each."""
    a, b = predicted - predicted.mean(dim=0), wanted - wanted.mean(dim=0)
    scale = (a.square().sum(dim=0) * b.square().sum(dim=0)).sqrt()
    return 1 - ((a * b).sum(dim=0) / (scale + math.sqrt(torch.finfo(torch.float32).eps))).mean()
