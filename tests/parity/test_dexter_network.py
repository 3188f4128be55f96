"""DExter's published networks and losses against tensors of the original program, through the importer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from dexter_network_files import NetworkFixture, Part, assert_close, tolerance
from safetensors.torch import load_file
from torch import Tensor, nn

from midisynth.diffusion.schedules import LinearSchedule
from midisynth.models.dexter.checkpoint import build_network, published_network
from midisynth.models.dexter.losses import (
    RECONSTRUCTIONS,
    denoising_losses,
    published_losses,
    published_x0,
    swap_pairs,
)
from midisynth.models.dexter.network import min_max, step_table
from midisynth.models.dexter.published_sampling import PublishedDiffusion

MODES, TARGETS = ("epsilon", "x_0", "ex_0"), ("gen_noise", "transfer")


@pytest.fixture(scope="module")
def root(parity_root) -> Path:
    return parity_root("dexter")


@pytest.fixture(scope="module", params=["diffwave", "unet"])
def fixture(root, request) -> NetworkFixture:
    return NetworkFixture(root, request.param)


# Schedule


def test_schedule(root):
    manifest = json.loads((root / "schedule.manifest.json").read_text())
    tensors = load_file(root / "schedule.safetensors")
    allowed = tolerance(manifest["tolerance"])
    for steps in {int(re.match(r"T(\d+)\.", name).group(1)) for name in tensors}:
        schedule = LinearSchedule(steps)
        constants = PublishedDiffusion(schedule)
        known = {
            "betas": constants.betas,
            "alphas": constants.alphas,
            "sqrt_alphas_cumprod": constants.signal,
            "sqrt_one_minus_alphas_cumprod": constants.noise,
            "posterior_variance": constants.posterior_variance,
            "sqrt_recip_alphas": (1 / constants.alphas).sqrt(),
        }
        for name, values in known.items():
            assert_close(values, tensors[f"T{steps}.{name}"], allowed)
        # The schedule that other samplers use is the same one, in continuous time.
        time = torch.arange(steps, dtype=torch.float64) / steps
        assert_close(schedule.alpha(time), tensors[f"T{steps}.sqrt_alphas_cumprod"], allowed)
        assert_close(schedule.sigma(time), tensors[f"T{steps}.sqrt_one_minus_alphas_cumprod"], allowed)


def test_step_table(root):
    manifest = json.loads((root / "schedule.manifest.json").read_text())
    rows = [int(row) for row in re.search(r"are rows ([\d,]+)", manifest["what"]).group(1).split(",")]
    expected = load_file(root / "schedule.safetensors")["T1000.embedding_table_rows"]
    assert_close(step_table(1000)[rows], expected, tolerance(manifest["tolerance"], "table"))


# Networks


def squeezed(batch: Tensor) -> Tensor:
    return batch.squeeze(1)


def outputs(network: nn.Module, names: set[str], run) -> dict[str, Tensor]:
    """What the modules of some names return while something runs."""
    seen: dict[str, Tensor] = {}
    modules = dict(network.named_modules())
    hooks = [
        modules[name].register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
        for name in names
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seen


def test_forward(fixture):
    part, network = fixture["forward"], fixture.network()
    out = network(squeezed(part["x_t"]), part["t"], *fixture.conditions("forward"))
    assert_close(out, squeezed(part["out"]), part.tolerance())


def test_condition(fixture):
    """Guidance in one batch; both null conditions."""
    part, network = fixture["forward"], fixture.network()
    x = squeezed(part["x_t"])
    for null, name in ((0.0, "out_null_zero"), (-1.0, "out_null_minus1")):
        conditioned = network.condition(*fixture.conditions("forward"), unconditional=True, null=null)
        assert_close(
            network.denoise(x, part["t"], conditioned),
            torch.cat([squeezed(part["out"]), squeezed(part[name])]),
            part.tolerance(),
        )


def test_dropped_conditions(fixture):
    part, network = fixture["forward"], fixture.network().train()
    keep_score, keep_midlevel = part["drop_mask_s"] == 0, part["drop_mask_c"] == 0
    out = network(squeezed(part["x_t"]), part["t"], *fixture.conditions("forward"), None, keep_score, keep_midlevel)
    assert_close(out, squeezed(part["drop_out"]), part.tolerance())


def test_layers(fixture):
    """Every layer on the way; of blocks, what goes to the next one, and of U-Net blocks the condition that does."""
    part, network = fixture["forward"], fixture.network()
    expected = {name.removeprefix("inter."): tensor for name, tensor in part.tensors.items() if "inter." in name}
    sources = {}
    for name in expected:
        module, element = re.fullmatch(r"(.*)\.out(\d?)", name).groups()
        condition_of_block = fixture.kind == "unet" and element == "1"
        sources[name] = f"{module}.cond_net" if condition_of_block else module
    x, t, conditions = squeezed(part["x_t"]), part["t"], fixture.conditions("forward")

    def run():
        network(x, t, *conditions)
        if fixture.kind == "unet":
            # What comes of the condition in the end, which nothing but the original's second return value shows.
            assert_close(
                dead_end(network, seen_condition(network, conditions))[: len(part["cond_out"])],
                part["cond_out"],
                part.tolerance(),
            )

    seen = outputs(network, set(sources.values()), run)
    for name, tensor in expected.items():
        output = seen[sources[name]]
        if isinstance(output, tuple):
            output = output[int(name[-1])]
        assert_close(output[: len(tensor)], tensor, part.tolerance())


def seen_condition(network: nn.Module, conditions: tuple[Tensor, Tensor]) -> Tensor:
    """What the last block on the way up hears of the condition."""
    return list(network.condition(*conditions).maps)[-1]


def dead_end(network: nn.Module, heard: Tensor) -> Tensor:
    """The published path of the condition after that block, which reaches no output."""
    last = network.ups[-1]
    return network.final_block.condition(last[4](last[1].cond_net(heard, None)), None)[1]


def test_step_embedding(root):
    part = NetworkFixture(root, "diffwave")["forward"]
    network = NetworkFixture(root, "diffwave").network()
    assert_close(network.diffusion_embedding.table, part["embedding_table"], part.tolerance())
    assert_close(network.diffusion_embedding(part["t_float"].flatten()), part["embed_float"], part.tolerance())


def test_normalised_score(root):
    part = NetworkFixture(root, "diffwave")["forward"]
    assert_close(min_max(part["s_codec"].float(), None).transpose(1, 2), part["cond_out"], part.tolerance())


def test_published_layouts(root):
    """All names and shapes of the published checkpoints, which are large, on a device without memory."""
    for name, layout in json.loads((root / "published_state_dict_keys.json").read_text()).items():
        with torch.device("meta"):
            tensors = {key: torch.empty(shape) for key, shape in layout["keys"].items()}
            network = build_network(*published_network(tensors, {}, name))
        assert {key: list(tensor.shape) for key, tensor in network.state_dict().items()} == layout["keys"]
        assert sum(parameter.numel() for parameter in network.parameters()) == layout["n_params"]


# Losses


def noised(fixture: NetworkFixture, target: str) -> tuple[Part, dict[str, Tensor], Tensor | None]:
    """Loss fixture, the arguments of a loss for a target but for the output, and mid-level rows."""
    part = fixture["loss"]
    x0, t = part["p_codec"], part["t"]
    midlevel = fixture.conditions("loss")[1]
    epsilon = squeezed(part["noise"])
    if target == "transfer":
        epsilon = swap_pairs(x0)
        midlevel = None if midlevel is None else swap_pairs(midlevel) - midlevel
    constants = PublishedDiffusion(fixture.schedule)
    z = constants.add_noise(x0, t, epsilon)
    alpha, sigma = constants.signal[t][:, None, None], constants.noise[t][:, None, None]
    return part, {"x0": x0, "epsilon": epsilon, "z": z, "alpha": alpha, "sigma": sigma}, midlevel


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mode", MODES)
def test_losses(fixture, mode, target):
    part, known, midlevel = noised(fixture, target)
    output = fixture.network()(known["z"], part["t"], part["s_codec"], midlevel)
    losses = published_losses(
        mode,
        output,
        **known,
        channel_weights=fixture.config["loss_weight"],
        recon_weight=fixture.config["recon_loss_weight"],
    )
    expected = part.manifest["loss_values"][f"{mode}/{target}"]
    for name in ("diffusion", *RECONSTRUCTIONS):
        assert_close(losses[name], torch.tensor(expected[f"{name}_loss"]), part.tolerance("loss"))
    assert_close(losses["total"], torch.tensor(expected["total"]), part.tolerance("loss"))
    estimate = output if mode == "x_0" else published_x0(known["z"], output, known["alpha"], known["sigma"])
    assert_close(estimate, squeezed(part[f"{mode}.{target}.pred_pcodec"]), fixture["forward"].tolerance())


def test_noise_and_estimates(fixture):
    part, known, _ = noised(fixture, "gen_noise")
    allowed = fixture["forward"].tolerance()
    assert_close(known["z"], squeezed(part["x_t"]), allowed)
    output = squeezed(part["eps_pred"])
    coefficients = known["alpha"], known["sigma"]
    assert_close(published_x0(known["z"], output, *coefficients), squeezed(part["x0_original_clamped"]), allowed)
    # What the correct losses take for the data: their reconstruction error is that of the correct estimate.
    losses = denoising_losses("epsilon", output, **known, channel_weights=[1, 0, 0, 0, 0], recon_weight=1.0)
    error = known["alpha"] * (squeezed(part["x0_correct_unclamped"]) - known["x0"])
    assert_close(losses["recon_tempo"], error[..., 0].square().mean(), {"atol": 1e-6, "rtol": 1e-4})


@pytest.mark.parametrize("norm", ["l1", "l2", "huber"])
def test_norms(fixture, norm):
    part, known, _ = noised(fixture, "gen_noise")
    loss = published_losses("epsilon", known["x0"], **known, norm=norm)["diffusion"]
    assert_close(loss, torch.tensor(part.manifest["loss_values"][f"p_losses/{norm}"]), part.tolerance("loss"))


def test_gradients(fixture):
    part, known, midlevel = noised(fixture, "gen_noise")
    network = fixture.network()
    output = network(known["z"], part["t"], part["s_codec"], midlevel)
    weights = {"channel_weights": fixture.config["loss_weight"], "recon_weight": fixture.config["recon_loss_weight"]}
    published_losses("epsilon", output, **known, **weights)["total"].backward()
    norms = {name: p.grad.norm() for name, p in network.named_parameters() if p.grad is not None}
    expected = part.manifest["grad_norms_epsilon_gen_noise"]
    allowed = part.tolerance("gradient")
    # Biases before a normalisation over everything have gradients that only rounding keeps from 0.
    floor = 1e-5 * max(expected.values())
    for name, value in expected.items():
        assert_close(norms[name], torch.tensor(value), {**allowed, "atol": floor})
    without = sorted(name for name, parameter in network.named_parameters() if parameter.grad is None)
    assert without == sorted(part.manifest["parameters_without_gradient"])
    assert without == sorted(name for name, parameter in network.named_parameters() if not parameter.requires_grad)
