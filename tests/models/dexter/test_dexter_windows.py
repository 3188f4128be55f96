"""Windows of a piece: what they share fades from one into the next, and nothing is counted twice."""

from __future__ import annotations

import pytest
import torch

from midisynth.models.dexter.windows import Windows


@pytest.mark.parametrize(("notes", "length", "overlap"), [(1, 200, 50), (199, 200, 50), (201, 200, 50), (1007, 64, 0)])
def test_cut_and_joined_again_a_piece_is_itself(notes: int, length: int, overlap: int):
    windows = Windows(notes, length, overlap)
    piece = torch.randn(notes, 5)
    cut = windows.cut(piece)
    assert cut.shape == (len(windows), min(length, notes), 5)
    whole = windows.joined(cut, torch.zeros_like(piece))
    torch.testing.assert_close(whole, piece)
    in_turn = torch.zeros_like(piece)
    for index in range(len(windows)):
        chosen = slice(index, index + 1)
        in_turn = windows.joined(windows.cut(piece, chosen), in_turn, chosen)
    torch.testing.assert_close(in_turn, piece)


@pytest.mark.parametrize("notes", [200, 201, 349, 350, 351, 10_000])
def test_neighbours_share_what_they_are_told_to(notes: int):
    windows = Windows(notes, 200, 50)
    starts = windows.rows[:, 0]
    assert starts[0] == 0
    assert windows.rows[-1, -1] == notes - 1
    if len(windows) > 1:
        assert starts.diff().min() > 0
        assert starts.diff().max() <= 150


def test_windows_that_disagree_fade_into_each_other():
    """Constant windows of different height: the piece goes from one to the next without a step."""
    windows = Windows(500, 200, 50)
    heights = torch.arange(len(windows), dtype=torch.float32)[:, None, None].expand(-1, 200, 1)
    joined = windows.joined(heights, torch.zeros(500, 1))[:, 0]
    assert joined[0] == 0
    assert joined[-1] == len(windows) - 1
    assert joined.diff().min() >= -1e-6
    assert joined.diff().max() < 1.5 / 50
