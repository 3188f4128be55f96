"""Decoding with a cache computes what decoding without one does."""

from __future__ import annotations

import pytest
import torch

from midisynth.nn.transformer import Decoder


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("blocks", [[1] * 12, [5, 1, 6], [12]])
@torch.no_grad()
def test_cached_equals_uncached(dtype, tolerance, blocks):
    torch.manual_seed(0)
    decoder = Decoder(3, 16, 2, 8, 32, None).to(dtype).eval()
    x, memory = torch.randn(2, 12, 16, dtype=dtype), decoder.project(torch.randn(2, 7, 16, dtype=dtype))
    whole = decoder(x, memory=memory, causal=True)
    caches = decoder.caches(12)
    parts = [decoder(block, memory=memory, causal=True, caches=caches) for block in x.split(blocks, dim=1)]
    assert caches[0].length == 12
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=tolerance)


@torch.no_grad()
def test_causal_positions_do_not_see_later_ones():
    decoder = Decoder(2, 16, 2, 8, 32, None, cross_attention=False).eval()
    x = torch.randn(1, 9, 16)
    changed = x.clone()
    changed[:, 5:] = torch.randn(1, 4, 16)
    before, after = decoder(x, causal=True), decoder(changed, causal=True)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (decoder(x)[:, :5] - decoder(changed)[:, :5]).abs().max() > 1e-3
