"""PhraseLDM: forward passes, losses and whole runs of the original's sampler with recorded noise."""

from __future__ import annotations

from difflib import SequenceMatcher

import pytest
import torch
from phrase_ldm_files import Folder, autoencoder, denoiser, section_ids
from safetensors.torch import load_file
from torch import Tensor, nn

from midisynth.models.phrase_ldm.codec import published_text
from midisynth.models.phrase_ldm.decoding import decode
from midisynth.models.phrase_ldm.ldm import Conditioning, PhraseDenoiser
from midisynth.models.phrase_ldm.sampling import PUBLISHED_QUANTILE, LatentDiffusion
from midisynth.models.phrase_ldm.sections import parse_sections
from midisynth.models.phrase_ldm.vocabulary import to_text

#: Latents whose greedy decoding is closer to a tie than this may decode differently (manifest).
TIE = 1e-3


@pytest.fixture(scope="module", params=["uncond", "lencond", "seccond"])
def folder(request, parity_root) -> Folder:
    return Folder(parity_root("phrase_ldm") / f"ldm_{request.param}")


@pytest.fixture(scope="module")
def model(folder) -> tuple[PhraseDenoiser, LatentDiffusion, float]:
    return denoiser(folder)


@pytest.fixture(scope="module")
def conditioning(folder, model) -> Conditioning:
    network = model[0]
    sections = (folder["sec_type_ids"], folder["sec_len_ids"]) if network.has_sections else None
    with torch.no_grad():
        return network.condition(len(folder["timesteps"]), torch.tensor(folder.manifest["n_bars"]), sections)


def test_sizes_come_from_the_tensors(folder, model):
    config = folder.manifest["config"]
    network, diffusion, scale = model
    stored = {name: network.ldm.config[name] for name in config["model_config"]}
    assert stored == config["model_config"]
    assert (diffusion.steps, diffusion.clip, scale) == tuple(
        config[name] for name in ("diffusion_steps", "clip_range", "scale_factor")
    )
    assert network.has_length == config.get("length_control", "lencond" in folder.path.name)


@torch.no_grad()
def test_conditions(folder, model, conditioning):
    network = model[0]
    folder.assert_close(conditioning.token, "global_proj")
    if not network.has_sections:
        assert conditioning.memory is None
        return
    plans = [parse_sections(text) for text in folder.manifest["sections"]]
    types, lengths = section_ids(folder.manifest).encode(plans)
    assert torch.equal(types, folder["sec_type_ids"])
    assert torch.equal(lengths, folder["sec_len_ids"])
    encoded, mask = network.sec_encoder(types, lengths)
    folder.assert_close(encoded, "sec_embeds")
    folder.assert_close(mask.float(), "sec_mask")
    folder.assert_close(conditioning.memory, "cross_proj")


@torch.no_grad()
def test_forward(folder, model, conditioning):
    network = model[0]
    seen: dict[str, Tensor] = {}
    first = network.ldm.transformer_blocks[0]
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        for name, module in {
            "block0": first,
            "block0_self_attn": first.attn1,
            "block0_cross_attn": first.attn2,
            "block_last": network.ldm.transformer_blocks[-1],
        }.items()
    ]
    predicted = network(folder["noisy"], folder["timesteps"], conditioning)
    for hook in hooks:
        hook.remove()
    seen["block0_cross_attn"] = seen["block0_cross_attn"].expand_as(folder["block0_cross_attn"])
    for name, output in seen.items():
        folder.assert_close(output, name)
    folder.assert_close(predicted, "pred")
    features = network.time_features(folder["timesteps"])
    folder.assert_close(features, "time_fourier")
    folder.assert_close(network.ldm.timestep_proj(features), "time_embed")
    folder.assert_close(network.rotary_cos, "rope_cos")
    folder.assert_close(network.rotary_sin, "rope_sin")


@torch.no_grad()
def test_the_right_mask(folder, model, conditioning):
    if "pred_true_mask" not in folder.tensors:
        pytest.skip("this variant has no mask")
    right = Conditioning(conditioning.token, conditioning.memory, folder["sec_type_ids"] != 0)
    folder.assert_close(model[0](folder["noisy"], folder["timesteps"], right), "pred_true_mask")


@torch.no_grad()
def test_loss(folder, model, conditioning):
    network, diffusion, _ = model
    clean, t, noise = folder["latent_scaled"], folder["timesteps"], folder["noise"]
    folder.assert_close(diffusion.noisy(clean, t, noise), "noisy")
    folder.assert_close(diffusion.loss(network, clean, conditioning, t, noise)[None], "loss")


@pytest.fixture(scope="module")
def sampled(folder, model) -> tuple[Tensor, Tensor]:
    """Samples after each step [steps, songs, rows, latent], and what the network predicted in each."""
    network, diffusion, _ = model
    wanted = folder.manifest["sampling"]
    songs = wanted["n_sample"]
    sections = None
    if wanted["sec_cond"] is not None:
        sections = section_ids(folder.manifest).encode([parse_sections(wanted["sec_cond"])] * songs)
    bars = None if wanted["n_bars"] is None else torch.full((songs,), wanted["n_bars"])
    given: list[Tensor] = []
    predicted: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        given.append(arguments[0])
        predicted.append(output)

    hook = network.register_forward_hook(keep)
    with torch.no_grad():
        conditioning = network.condition(songs, bars, sections)
        noise = [folder["init_noise"], *folder["step_noise"]]
        last = diffusion.sample_published(network, conditioning, noise.__getitem__)
    hook.remove()
    return torch.stack([*given[1:], last]), torch.stack(predicted)


def test_sampling(folder, model, sampled):
    after, predicted = sampled
    folder.assert_close(after, "x_per_step")
    # The network's inputs are off by as much as is allowed of `x_per_step`.
    tolerance = folder.manifest["tolerance"]["x_per_step_abs"]
    torch.testing.assert_close(predicted, folder["eps_per_step"], atol=tolerance, rtol=1e-3)
    torch.testing.assert_close(after[-1] * model[2], folder["final_latent_vae_scale"], atol=tolerance, rtol=1e-3)


def test_decoded_texts(folder, model, sampled):
    vae = autoencoder(folder.path.parent / "vae")
    songs = zip(sampled[0][-1], folder.manifest["decoded_text"], folder.manifest["decode_margins"], strict=True)
    for latents, expected, margins in songs:
        text = published_text([to_text(ids) for ids in decode(vae, latents * model[2]).tolist()])
        if min(margins) >= TIE:
            assert text == expected
        else:
            assert SequenceMatcher(None, text.split(), expected.split(), autojunk=False).ratio() > 0.9


@pytest.fixture(scope="module")
def schedule(parity_root) -> dict[str, Tensor]:
    return load_file(parity_root("phrase_ldm") / "schedule.safetensors")


def test_schedule(schedule):
    stored = schedule["alphas_cumprod"].double()
    ours = LatentDiffusion(steps=len(stored)).schedule
    alpha = ours.alpha(torch.arange(len(stored), dtype=torch.float64) / len(stored))
    torch.testing.assert_close(alpha**2, stored, atol=0, rtol=1e-6)
    torch.testing.assert_close(ours.betas(), schedule["betas"], atol=0, rtol=1e-6)


def test_single_steps(schedule):
    diffusion = LatentDiffusion(len(schedule["timesteps"]), clip=PUBLISHED_QUANTILE)
    for row, t in enumerate(schedule["step_t"].tolist()):
        x, epsilon, noise = (schedule[f"step_{name}"][row] for name in ("x", "eps", "noise"))
        time = torch.tensor(t / diffusion.steps, dtype=torch.float64)
        alpha, sigma = diffusion.schedule.alpha(time).item(), diffusion.schedule.sigma(time).item()
        x0 = ((x - sigma * epsilon) / alpha).clamp(-diffusion.clip, diffusion.clip)
        torch.testing.assert_close(x0, schedule["step_x0"][row], atol=1e-4, rtol=0)
        stepped = diffusion.published_step(x, x0, t, noise) if t else x0
        torch.testing.assert_close(stepped, schedule["step_prev"][row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
def test_time_features_in_every_precision(schedule, precision):
    weight = schedule["fourier_weight"]
    network = PhraseDenoiser(8, 8, 1, 2, 8, 2, 2 * len(weight), 8, 8)
    with torch.no_grad():
        network.ldm.time_proj.weight.copy_(weight)
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        features = network.time_features(schedule["fourier_t"])
    torch.testing.assert_close(features, schedule["fourier_exact"].float(), atol=1e-4, rtol=0)
