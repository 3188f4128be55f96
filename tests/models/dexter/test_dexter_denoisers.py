"""Both denoisers where they differ from the published ones; that they compute the same is shown in tests/parity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from midisynth.diffusion.guidance import guide
from midisynth.errors import UsageError
from midisynth.models.dexter.losses import denoising_losses, published_losses, swap_pairs
from midisynth.models.dexter.network import Denoiser, DiffWaveDenoiser
from midisynth.models.dexter.published_sampling import cut_windows, stitch_windows
from midisynth.models.dexter.unet import UNetDenoiser

SCORE, MIDLEVEL, CHANNELS = 6, 7, 5


def build(kind: str, **options) -> Denoiser:
    """A small denoiser with no weight that is 0."""
    sizes = {"score_features": SCORE, "midlevel_features": MIDLEVEL} | options
    network = (
        UNetDenoiser(8, (1, 2, 2), **sizes) if kind == "unet" else DiffWaveDenoiser(8, 5, dilation_cycle=3, **sizes)
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.fixture(params=["diffwave", "unet"])
def kind(request) -> str:
    return request.param


def batch(notes: int, size: int = 3) -> dict[str, Tensor]:
    return {
        "x": torch.randn(size, notes, CHANNELS),
        "t": torch.rand(size) * 999,
        "score": torch.randn(size, notes, SCORE),
        "midlevel": torch.randn(size, notes, MIDLEVEL),
    }


def padded(known: dict[str, Tensor], missing: int) -> dict[str, Tensor]:
    """The same with notes behind, which are noise, and a mask."""
    notes = known["x"].shape[1]
    mask = torch.arange(notes + missing) < notes
    more = {
        name: rows if name == "t" else torch.cat([rows, 50 * torch.randn(len(rows), missing, rows.shape[2])], dim=1)
        for name, rows in known.items()
    }
    return more | {"mask": mask.expand(len(known["x"]), -1)}


def calls(layer: torch.nn.Module) -> list[None]:
    """Grows by one at every call of a layer from now on."""
    seen: list[None] = []
    layer.register_forward_hook(lambda *_: seen.append(None))
    return seen


@pytest.mark.parametrize("notes", [1, 13, 16])
@pytest.mark.parametrize("normalise", [False, True])
def test_padding_does_not_reach_notes(kind, notes, normalise):
    network = build(kind, normalise_score=normalise)
    known = batch(notes)
    alone = network(**known)
    assert alone.shape == (3, notes, CHANNELS)
    for missing in (3, 8, 20):
        torch.testing.assert_close(network(**padded(known, missing))[:, :notes], alone, rtol=1e-4, atol=1e-4)


def test_padding_has_no_gradient(kind):
    """Neither do parameters learn from it."""
    network = build(kind)
    known = batch(9)
    network(**known).square().sum().backward()
    alone = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    network(**padded(known, 7))[:, :9].square().sum().backward()
    for parameter, expected in zip(network.parameters(), alone, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-3 * (1 + expected.abs().max().item()))


def test_published_networks_see_padding(kind):
    """Compat reproduces this: the mask changes nothing."""
    network = build(kind, compat="2024")
    known = batch(12)
    with_padding = padded(known, 4)
    seen = network(**with_padding)[:, :12]
    torch.testing.assert_close(seen, network(**{**with_padding, "mask": None})[:, :12])
    assert (seen - network(**known)).abs().max() > 1e-3


def test_every_parameter_has_a_gradient(kind):
    """With what training passes, on every process: distributed training waits for all gradients."""
    network = build(kind, null="learned")
    known = batch(12)
    everything = torch.ones(3, dtype=torch.bool)
    # Not even dropped conditions may take a parameter out of the graph.
    for keep in (everything, ~everything):
        network.zero_grad(set_to_none=True)
        network(**known, keep_score=keep, keep_midlevel=keep).sum().backward()
        assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_guidance_is_one_batch_of_two(kind):
    network = build(kind, null="learned").eval()
    known = padded(batch(12), 4)
    x, t = known["x"], known["t"]
    conditions = known["score"], known["midlevel"], known["mask"]
    seen = calls(network.init_conv if kind == "unet" else network.input_projection)
    both = network.denoise(x, t, network.condition(*conditions, unconditional=True))
    assert len(seen) == 1
    nothing = torch.zeros(3, dtype=torch.bool)
    conditional = network(x, t, *conditions)
    unconditional = network(x, t, *conditions, nothing, nothing)
    real = known["mask"]
    torch.testing.assert_close(both[:3][real], conditional[real], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[3:][real], unconditional[real], rtol=1e-4, atol=1e-4)
    assert (conditional - unconditional)[real].abs().max() > 1e-3
    torch.testing.assert_close(guide(both, 1.0)[real], conditional[real], rtol=1e-4, atol=1e-4)


def test_a_step_for_all_rows(kind):
    network = build(kind)
    known = batch(8)
    conditioned = network.condition(known["score"], known["midlevel"], unconditional=True)
    one = network.denoise(known["x"], torch.tensor([417.25]), conditioned)
    each = network.denoise(known["x"], torch.full((3,), 417.25), conditioned)
    torch.testing.assert_close(one, each, rtol=1e-4, atol=1e-4)


def test_a_condition_serves_all_steps(kind):
    network = build(kind)
    known = batch(8)
    layer = network.condition_init_conv if kind == "unet" else network.residual_layers[0].conditioner_projection
    seen = calls(layer)
    conditioned = network.condition(known["score"], known["midlevel"])
    for t in (torch.tensor([999.0]), torch.tensor([3.5])):
        network.denoise(known["x"], t, conditioned)
    assert len(seen) == 1
    for t in (torch.tensor([999.0]), torch.tensor([3.5])):
        torch.testing.assert_close(
            network.denoise(known["x"], t, conditioned),
            network(known["x"], t.expand(3), known["score"], known["midlevel"]),
            rtol=1e-4,
            atol=1e-4,
        )


def test_unknown_midlevel_is_dropped(kind):
    network = build(kind, null=-1.0)
    known = batch(8)
    dropped = network(**known, keep_midlevel=torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(network(known["x"], known["t"], known["score"]), dropped)
    assert (network(**known) - dropped).abs().max() > 1e-3


def test_conditions_are_dropped_by_row(kind):
    network = build(kind)
    known = batch(8)
    keep = torch.tensor([True, False, True])
    out, all_kept = network(**known, keep_score=keep), network(**known)
    torch.testing.assert_close(out[keep], all_kept[keep])
    changed = {**known, "score": torch.where(keep[:, None, None], known["score"], 7.0)}
    torch.testing.assert_close(network(**changed, keep_score=keep), out)


def test_steps_in_between(kind):
    """Solvers visit fractional steps, where the output is between those of the neighbours."""
    network = build(kind)
    known = batch(8)
    at = {step: network(**{**known, "t": torch.full((3,), step)}) for step in (500.0, 500.01, 501.0)}
    assert (at[500.01] - at[500.0]).abs().max() < 0.05 * (at[501.0] - at[500.0]).abs().max()


def test_mixed_precision_is_close(kind):
    network = build(kind).eval()
    known = padded(batch(12), 4)
    with torch.no_grad():
        full = network(**known)[known["mask"]]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(**known).float()[known["mask"]]
    assert 0 < (mixed - full).square().mean().sqrt() < 0.1 * full.std()


def test_windows_of_the_published_unet():
    network = build("unet", compat="2024")
    with pytest.raises(UsageError, match="multiple of 4 notes, not 10"):
        network(**batch(10))


@pytest.mark.parametrize(("dim", "multipliers"), [(8, (2, 4)), (6, (1, 2, 4))])
def test_sizes_of_the_unet(dim, multipliers):
    with pytest.raises(UsageError, match="start with 1, and dim be a multiple"):
        UNetDenoiser(dim, multipliers)


# Losses


def loss_inputs() -> dict[str, Tensor]:
    x0, epsilon = torch.randn(2, 4, 7, CHANNELS)
    alpha = torch.linspace(0.1, 0.9, 4)[:, None, None]
    sigma = (1 - alpha**2).sqrt()
    return {"x0": x0, "epsilon": epsilon, "z": alpha * x0 + sigma * epsilon, "alpha": alpha, "sigma": sigma}


@pytest.mark.parametrize("objective", ["epsilon", "x0", "v"])
def test_perfect_predictions_have_no_loss(objective):
    known = loss_inputs()
    perfect = {
        "epsilon": known["epsilon"],
        "x0": known["x0"],
        "v": known["alpha"] * known["epsilon"] - known["sigma"] * known["x0"],
    }
    losses = denoising_losses(objective, perfect[objective], **known)
    assert all(loss < 1e-6 for loss in losses.values())
    assert denoising_losses(objective, perfect[objective] + 1, **known)["total"] > 0.5
    # The published estimate of x0 is wrong even then.
    if objective == "epsilon":
        assert published_losses("epsilon", perfect[objective], **known)["total"] > 0.1


def test_masked_losses_ignore_what_is_masked():
    known = loss_inputs()
    output = torch.randn_like(known["x0"])
    mask = torch.rand(4, 7) < 0.6
    by_channel = mask[..., None].repeat(1, 1, CHANNELS)
    by_channel[..., 3] &= torch.rand(4, 7) < 0.5
    for kept in (mask, by_channel):
        losses = denoising_losses("x0", output, **known, mask=kept)
        changed = {**known, "x0": torch.where(kept if kept.ndim == 3 else kept[..., None], known["x0"], 99.0)}
        for name, loss in denoising_losses("x0", output, **changed, mask=kept).items():
            torch.testing.assert_close(loss, losses[name])
    expected = (output - known["x0"])[mask].abs().mean()
    torch.testing.assert_close(denoising_losses("x0", output, **known, mask=mask)["diffusion"], expected)


def test_weights_of_the_channels():
    known = loss_inputs()
    output = torch.randn_like(known["x0"])
    losses = denoising_losses("x0", output, **known, channel_weights=[0, 3, 1, 0, 0], recon_weight=0.4)
    error = (output - known["x0"]).square().mean(dim=(0, 1))
    assert losses["recon_tempo"] == 0
    torch.testing.assert_close(losses["recon_velocity"], 0.3 * error[1])
    torch.testing.assert_close(losses["total"], losses["diffusion"] + 0.3 * error[1] + 0.1 * error[2])


def test_pairs():
    assert swap_pairs(torch.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]


# Published windows


@pytest.mark.parametrize("notes", [1, 5, 17, 20, 33, 57])
def test_published_windows_give_the_piece_back(notes):
    piece = torch.randn(notes, 3)
    windows = cut_windows(piece, 20, 5)
    assert windows.shape[1:] == (20, 3)
    torch.testing.assert_close(stitch_windows(windows, notes, 5), piece)
