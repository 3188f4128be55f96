import math

import numpy as np
import pytest
import torch

from midisynth.music.rolls import KEYS as TABLE_KEYS
from midisynth.nn import note_rolls
from midisynth.nn.note_rolls import KEYS, NoteRollEncoder, TemplatePrior, note_roll, template_envelopes

HOP_SEC = 0.02


def table_of(*rows: tuple[float, float, int, float]) -> torch.Tensor:
    """One table of onset (s), end (s), key, velocity."""
    return torch.tensor([rows])


def roll_of(table: torch.Tensor, frames: int = 60) -> torch.Tensor:
    """[frames, keys, channels] of the first row."""
    return note_roll(table, frames, HOP_SEC)[0].unflatten(-1, (KEYS, note_rolls.ROLL_CHANNELS))


def test_tables_and_rolls_agree_on_the_keys():
    assert KEYS == TABLE_KEYS


@pytest.mark.parametrize("onset_frame", [10.0, 10.25, 10.5, 10.99])
def test_an_onset_is_shared_by_the_frames_that_see_it(onset_frame):
    struck = roll_of(table_of((onset_frame * HOP_SEC, 1.0, 40, 0.8)))[:, 40, 0]
    assert struck.sum() == pytest.approx(0.8, rel=1e-4)
    centre = (struck * torch.arange(1, 61)).sum() / struck.sum()  # frame i is centred at (i + 1) hops
    assert centre == pytest.approx(onset_frame, abs=1e-3)
    assert (struck > 0).sum() <= 2


def test_sounding_and_decays():
    velocity, onset, end = 0.5, 0.1, 0.7
    roll = roll_of(table_of((onset, end, 3, velocity)))
    assert (roll[:, torch.arange(KEYS) != 3] == 0).all()
    centre_sec = (torch.arange(60) + 1) * HOP_SEC
    inside = (centre_sec > onset + HOP_SEC) & (centre_sec < end - HOP_SEC)
    np.testing.assert_allclose(roll[inside, 3, 1], velocity, rtol=1e-5)
    for channel, decay in enumerate(note_rolls.ROLL_DECAYS_SEC):
        expected = velocity * torch.exp(-(centre_sec - onset) / decay)
        np.testing.assert_allclose(roll[inside, 3, 2 + channel], expected[inside], rtol=1e-4)
    outside = (centre_sec < onset - HOP_SEC) | (centre_sec > end + HOP_SEC)
    assert (roll[outside] == 0).all()


def test_time_since_the_onset_goes_on_across_a_border():
    """A stretch that starts inside a held note sees what the longer stretch shows there."""
    whole = table_of((0.1, 2.0, 5, 0.7), (0.3, 0.35, 9, 0.2))
    later = whole.clone()
    later[..., :2] -= 0.4
    for view in (note_roll, template_envelopes):
        torch.testing.assert_close(view(later, 40, HOP_SEC), view(whole, 60, HOP_SEC)[:, 20:], rtol=1e-3, atol=1e-6)


def test_padding_leaves_no_trace():
    table = table_of((0.1, 0.5, 7, 0.6))
    padded = torch.cat([table, torch.zeros(1, 3, 4)], dim=1)
    for view in (note_roll, template_envelopes):
        torch.testing.assert_close(view(padded, 30, HOP_SEC), view(table, 30, HOP_SEC), rtol=0, atol=0)


def test_envelope_follows_the_share_of_the_window_after_the_onset():
    onset_frame = 10.3
    envelopes = template_envelopes(table_of((onset_frame * HOP_SEC, 9.0, 0, 1.0)), 60, HOP_SEC)[0, :, :8]
    window = torch.hann_window(2000, periodic=False, dtype=torch.float64)
    for frame in (9, 10):
        share = window[round((onset_frame - frame) * 1000) :].sum() / window.sum()
        age_sec = max(0.0, frame + 1 - onset_frame) * HOP_SEC
        expected = share * math.exp(-age_sec / 3.0)  # the slowest decay
        assert envelopes[frame, -1] == pytest.approx(expected.item(), abs=2e-3)
    assert (envelopes[:9] == 0).all()


def test_released_notes_fade():
    envelopes = template_envelopes(table_of((0.0, 0.5, 0, 1.0)), 60, HOP_SEC)[0, :, 7]
    ratio = envelopes[40] / envelopes[35]  # both after the end
    assert ratio == pytest.approx(math.exp(-5 * HOP_SEC * (1 / 0.05 + 1 / 3.0)), rel=1e-3)


def test_loudness_laws():
    loud, soft = (template_envelopes(table_of((0.0, 1.0, 0, v)), 20, HOP_SEC)[0, 10, :8] for v in (1.0, 0.5))
    ratio = (loud / soft).view(4, 2)
    np.testing.assert_allclose(ratio[:, 0], 2**1.5, rtol=1e-4)
    np.testing.assert_allclose(ratio[:, 1], 2**3.0, rtol=1e-4)


def test_prior_without_notes_is_the_background():
    prior = TemplatePrior(mels=16, hop_sec=HOP_SEC)
    silent = prior(torch.zeros(2, 1, 4), frames=5)
    torch.testing.assert_close(silent, prior.log_background.expand(2, 5, 16))
    assert (prior(table_of((0.0, 1.0, 30, 1.0)), frames=5) > silent[:1]).all()


def test_batched_rows_are_independent():
    torch.manual_seed(0)
    tables = torch.rand(3, 6, 4) * torch.tensor([1.0, 2.0, 87.0, 1.0])
    encoder = NoteRollEncoder(dim=8, hop_sec=HOP_SEC)
    together = encoder(tables, 50)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], encoder(tables[row : row + 1], 50))
