"""Heads: probabilities that sum to one at any number of levels, gradients where the model is wrong, sampling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from midisynth.models.midi2wave.heads import Categorical, Head, LogisticMixture


@pytest.mark.parametrize("levels", [2, 256, 65536])
@pytest.mark.parametrize("scale", ["sigmoid", "clamp"])
def test_probabilities_sum_to_one(levels, scale):
    head = LogisticMixture(3, levels, scale=scale)
    logits = (2 * torch.randn(1, 9, 1)).double().expand(-1, -1, levels)
    probability = head.nll(logits, torch.arange(levels)[None]).neg().exp()
    torch.testing.assert_close(probability.sum(), torch.ones((), dtype=torch.float64), atol=1e-9, rtol=0)
    # Even single precision tells codes of 16 bit apart.
    single = head.nll(logits.float(), torch.arange(levels)[None])
    torch.testing.assert_close(single.double(), -probability.log(), atol=2e-3, rtol=1e-3)


def test_the_tightest_logistic_is_a_small_part_of_a_level():
    """At -7, which is right for 256 levels, 16-bit audio would hiss at -56 dB."""
    assert LogisticMixture(1).min_log_scale == -7
    head = LogisticMixture(1, 65536)
    codes = head.sample(torch.tensor([[0.0, 0.3, 99.0]]).expand(1000, -1), torch.rand(1000, 2))
    assert codes.max() - codes.min() <= 2


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}])
def test_the_largest_uniform_draws_nothing_impossible(options: dict[str, float]):
    """Sums of probabilities in single precision end beside 1; what lies beyond must not become the last code."""
    logits = 2 * torch.randn(500, 256)
    logits[:, 200:] = -60
    largest = torch.full((500, 1), 1 - 2**-24)
    assert (Categorical(256).sample(logits, largest, **options) < 200).all()


def test_gradients_where_the_model_is_wrong():
    """A tight logistic far from the code: the original's loss stops at 18.42 nats and has no gradient there."""
    logits = torch.tensor([4.0, -1.0, 9.0])[None, :, None]
    codes, slopes = torch.tensor([[250]]), []
    for compat in (None, "seed"):
        given = logits.clone().requires_grad_()
        loss = LogisticMixture(1, compat=compat).loss(given, codes)
        (slope,) = torch.autograd.grad(loss, given)
        slopes.append(slope[0, 1:].abs().max().item())
        assert loss.isfinite() and (loss > 1000) == (compat is None)
    assert slopes[0] > 1 and slopes[1] == 0


@pytest.mark.parametrize("head", [Categorical(64), LogisticMixture(2, 64)], ids=["categorical", "mixture"])
def test_samples_follow_the_distribution(head: Head):
    logits = torch.randn(1, head.outputs)
    every = torch.arange(head.levels)[None]
    wanted = head.nll(logits[..., None].expand(-1, -1, head.levels), every).neg().exp()[0]
    count = 15_000

    def drawn(**options: float) -> Tensor:
        codes = head.sample(logits.expand(count, -1), torch.rand(count, head.draws), **options)
        return torch.bincount(codes, minlength=head.levels) / count

    assert (drawn() - wanted).abs().sum() < 0.12
    cold = drawn(temperature=0.0)
    assert cold.max() == 1
    entropy = [torch.special.entr(drawn(temperature=t)).sum() for t in (0.3, 1.0)]
    assert entropy[0] < entropy[1]
    if isinstance(head, Categorical):
        assert cold.argmax() == wanted.argmax()
        ordered = wanted.sort(descending=True).values.cumsum(0)
        kept = int((ordered < 0.5).sum()) + 1
        chosen = drawn(top_p=0.5)
        assert set(chosen.nonzero()[:, 0].tolist()) == set(wanted.topk(kept).indices.tolist())


def test_losses_are_single_precision_under_autocast():
    logits, codes = torch.randn(2, 30, 16), torch.randint(256, (2, 16))
    with torch.autocast("cpu", torch.bfloat16):
        for head, given in ((LogisticMixture(10), logits), (Categorical(30), logits)):
            rounded = given.bfloat16()
            loss = head.loss(rounded, codes % head.levels)
            assert loss.dtype == torch.float32
            assert torch.equal(loss, head.loss(rounded.float(), codes % head.levels))
