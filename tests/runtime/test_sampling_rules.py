"""Temperature, top-k, top-p and given uniform numbers."""

from __future__ import annotations

import pytest
import torch

from midisynth.errors import UsageError
from midisynth.generation import SamplingRules, filter_logits, inverse_cdf, sample


def kept(probabilities: list[float], **rules) -> list[bool]:
    return filter_logits(torch.tensor(probabilities).log(), SamplingRules(**rules)).isfinite().tolist()


def test_what_is_kept():
    assert kept([0.1, 0.4, 0.3, 0.2]) == [True] * 4
    assert kept([0.1, 0.4, 0.3, 0.2], top_k=2) == [False, True, True, False]
    assert kept([0.3, 0.3, 0.3, 0.1], top_k=2) == [True, True, True, False], "as likely as the last that is kept"
    assert kept([0.1, 0.4, 0.3, 0.2], top_k=9) == [True] * 4
    assert kept([0.1, 0.4, 0.3, 0.2], top_p=0.65) == [False, True, True, False]
    assert kept([0.1, 0.4, 0.3, 0.2], top_p=0.01) == [False, True, False, False]
    # Half the temperature squares probabilities: 0.16 of 0.3 is more than half.
    assert kept([0.1, 0.4, 0.3, 0.2], top_p=0.5, temperature=0.5) == [False, True, False, False]
    assert kept([0.1, 0.4, 0.3, 0.2], top_k=3, top_p=0.5) == [False, True, True, False], "shares of what top-k keeps"


def test_inverse_cdf():
    weights = torch.tensor([0.0, 1.0, 0.0, 2.0, 1.0, 0.0])
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-24])
    assert inverse_cdf(weights.expand(6, -1), uniforms).tolist() == [1, 1, 3, 3, 4, 4]
    # A sum that rounding makes the product with the largest uniform number.
    small = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 1e-3
    small[-500:] = 0
    assert inverse_cdf(small[None], torch.tensor([1 - 2**-24])).item() < 1500


def test_draws_are_distributed_as_the_probabilities():
    probabilities = torch.tensor([0.1, 0.4, 0.3, 0.2])
    uniforms = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    drawn = sample(probabilities.log().expand(20000, -1), uniforms, SamplingRules())
    torch.testing.assert_close(drawn.bincount() / 20000, probabilities, rtol=0, atol=0.01)
    warm = sample(probabilities.log().expand(20000, -1), uniforms, SamplingRules(temperature=2))
    flatter = probabilities.sqrt() / probabilities.sqrt().sum()
    torch.testing.assert_close(warm.bincount() / 20000, flatter, rtol=0, atol=0.01)


def test_greedy():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [-torch.inf, -5.0, -torch.inf, -6.0]])
    for rules in (SamplingRules(temperature=0), SamplingRules(top_k=1)):
        assert rules.greedy and sample(logits, None, rules).tolist() == [1, 1]
    assert not SamplingRules().greedy


@pytest.mark.parametrize("rules", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}])
def test_impossible_rules_are_refused(rules):
    with pytest.raises(UsageError, match="expected"):
        SamplingRules(**rules)
