import math

import numpy as np
import pytest
import torch

from midisynth.music.rolls import KEYS as TABLE_KEYS
from midisynth.nn import note_rolls
from midisynth.nn.note_rolls import AGE_STEPS_SEC, KEYS, AgeTable, NoteRollEncoder, TemplatePrior, note_roll

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


def uneven_prior(mels: int = 6) -> TemplatePrior:
    """A prior whose spectra differ from key to key, age to age and bin to bin, on a low background."""
    torch.manual_seed(0)
    prior = TemplatePrior(mels, HOP_SEC)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        prior.log_background.fill_(-12.0)
    return prior


@pytest.mark.parametrize("view", ["roll", "prior"])
def test_time_since_the_onset_goes_on_across_a_border(view):
    """A stretch that starts inside a held note sees what the longer stretch shows there."""
    whole = table_of((0.1, 2.0, 5, 0.7), (0.3, 0.35, 9, 0.2))
    later = whole.clone()
    later[..., :2] -= 0.4
    prior = uneven_prior()
    see = prior if view == "prior" else lambda table, frames: note_roll(table, frames, HOP_SEC)
    torch.testing.assert_close(see(later, 40), see(whole, 60)[:, 20:], rtol=1e-3, atol=2e-4)


def test_padding_leaves_no_trace():
    table = table_of((0.1, 0.5, 7, 0.6))
    padded = torch.cat([table, torch.zeros(1, 3, 4)], dim=1)
    torch.testing.assert_close(note_roll(padded, 30, HOP_SEC), note_roll(table, 30, HOP_SEC), rtol=0, atol=0)
    prior = uneven_prior()
    torch.testing.assert_close(prior(padded, 30), prior(table, 30), rtol=0, atol=0)


def test_ages_are_found_between_rows_of_the_table():
    table = AgeTable(mels=1, start=0.0)
    ages = table.ages
    assert ages[0] == -AGE_STEPS_SEC[0][1]
    assert ages[-1] == pytest.approx(AGE_STEPS_SEC[-1][0])
    assert (ages.diff() > 0).all()
    wanted = torch.tensor([-0.02, 0.0, 0.013, 1.31, 5.0, 10.24, 60.0])
    row, share = table.locate(torch.full((7,), 3), wanted)
    row = row - 3 * len(ages)
    torch.testing.assert_close(torch.lerp(ages[row], ages[row + 1], share), wanted.clamp(max=10.24))


def test_a_smooth_curve_passes_through_its_nodes():
    table = AgeTable(mels=2, start=0.0)
    with torch.no_grad():
        table.nodes.copy_(torch.arange(8.0)[:, None].expand(KEYS, 8, 2))
    curve = table().view(KEYS, len(table.ages), 2)[40, :, 0]
    position = torch.log1p(table.ages.clamp(min=0) / 0.02)
    torch.testing.assert_close(curve, 7 * position / position[-1], rtol=1e-4, atol=1e-4)


def reference_prior(prior: TemplatePrior, table: torch.Tensor, frames: int) -> torch.Tensor:
    """The formula of `TemplatePrior`, note by note and frame by frame, for one table."""
    window = torch.hann_window(2000, periodic=False, dtype=torch.float64)
    spectra = prior.spectra().view(KEYS, -1, len(prior.log_background)).double()
    slopes = prior.slopes().view(KEYS, -1, len(prior.log_background)).double()
    ages = prior.spectra.ages.double()
    power = torch.exp(2 * prior.log_background.double()).repeat(frames, 1)
    for onset, end, key, velocity in table[0].double().tolist():
        for frame in range(frames):
            centre = (frame + 1) * HOP_SEC
            start = round((onset / HOP_SEC - frame) * 1000)
            share = window[max(start, 0) :].sum() / window.sum() if start < 2000 else torch.tensor(0.0)
            gain = share.log() - max(centre - end, 0) / prior.log_release[int(key)].exp()
            if velocity == 0 or gain < -note_rolls.SILENT_NEPERS:
                continue
            after = int((ages <= centre - onset + 1e-9).sum())
            weight = (centre - onset - ages[after - 1]) / (ages[after] - ages[after - 1])
            spectrum, slope = (torch.lerp(*t[int(key), after - 1 : after + 1], weight) for t in (spectra, slopes))
            power[frame] += torch.exp(2 * (spectrum + math.log(velocity) * slope + gain))
    return torch.log(power) / 2


def test_prior_is_the_power_sum_of_its_notes():
    prior = uneven_prior()
    table = table_of((0.093, 0.4, 5, 0.7), (0.3, 0.9, 5, 0.2), (-0.512, 0.21, 60, 1.0), (0.31, 2.0, 87, 0.5))
    torch.testing.assert_close(prior(table, 40)[0], reference_prior(prior, table, 40).float(), rtol=1e-3, atol=5e-3)


def test_released_notes_fade():
    prior = TemplatePrior(mels=4, hop_sec=HOP_SEC)
    with torch.no_grad():
        prior.spectra.nodes.fill_(0.0)
        prior.log_background.fill_(-20.0)
    level = prior(table_of((0.0, 0.5, 0, 1.0)), 40)[0, :, 0]
    torch.testing.assert_close(level[30] - level[25], torch.tensor(-5 * HOP_SEC / note_rolls.RELEASE_SEC))


def test_prior_without_notes_is_the_background():
    prior = TemplatePrior(mels=16, hop_sec=HOP_SEC)
    silent = prior(torch.zeros(2, 1, 4), frames=5)
    torch.testing.assert_close(silent, prior.log_background.expand(2, 5, 16))
    assert (prior(table_of((0.0, 1.0, 30, 1.0)), frames=5) > silent[:1]).all()


def test_every_parameter_of_the_prior_learns():
    prior = TemplatePrior(mels=3, hop_sec=HOP_SEC)
    prior(table_of((0.0, 0.1, 30, 0.5)), frames=10).sum().backward()
    for name, parameter in prior.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_batched_rows_are_independent():
    torch.manual_seed(0)
    tables = torch.rand(3, 6, 4) * torch.tensor([1.0, 2.0, 87.0, 1.0])
    encoder = NoteRollEncoder(dim=8, hop_sec=HOP_SEC)
    together = encoder(tables, 50)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], encoder(tables[row : row + 1], 50))
