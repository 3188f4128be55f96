"""The networks of PhraseVAE and PhraseLDM: sizes, conditions, precision, decoding, weights of others."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from midisynth.diffusion.inpainting import Known
from midisynth.diffusion.sampling import sample
from midisynth.diffusion.schedules import CosineSchedule, SquaredCosineSchedule
from midisynth.errors import CheckpointError, TensorMismatch, UsageError
from midisynth.models.phrase_ldm.checkpoint import is_autoencoder, is_denoiser, read_autoencoder, read_denoiser
from midisynth.models.phrase_ldm.conditions import LayoutEncoder, RowEncoder, SectionIds
from midisynth.models.phrase_ldm.decoding import Grammar, Shortcuts, decode
from midisynth.models.phrase_ldm.layouts import LayoutIds, parse_layout
from midisynth.models.phrase_ldm.ldm import PhraseDenoiser
from midisynth.models.phrase_ldm.network import EMBEDDING, TIED, PhraseAutoencoder
from midisynth.models.phrase_ldm.rows import EOS_ID, IGNORED, PAD_ID, labels, row
from midisynth.models.phrase_ldm.sampling import LatentDiffusion
from midisynth.models.phrase_ldm.sections import Section, parse_sections
from midisynth.models.phrase_ldm.texts import parse
from midisynth.models.phrase_ldm.units import is_unit
from midisynth.models.phrase_ldm.vocabulary import IDS, TOKENS, to_ids, to_text
from midisynth.tensor_files import load_state

SMALL_VAE: dict[str, Any] = {"dim": 32, "hidden_dim": 48, "layers": 2, "heads": 2, "head_dim": 8, "latent": 8}
SMALL_LDM: dict[str, Any] = {
    "latent": 8,
    "rows": 24,
    "layers": 2,
    "heads": 4,
    "head_dim": 8,
    "memory_heads": 2,
    "time_dim": 16,
    "token_dim": 16,
    "memory_dim": 16,
}
ALL_CONDITIONS: dict[str, Any] = {"length": True, "sections": (11, 32), "programs": 3, "slots": 4}
PHRASES = ["i-0 o-0 p-60 d-12 o-12 p-62 d-6", "i-25 o-3 p-72 d-3 p-64 d-3", "[INST]", "b-1", "[SEP]"]


def size(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels of all phrases."""
    rows, targets = [row(to_ids(text)) for text in PHRASES], [labels(to_ids(text)) for text in PHRASES]
    ids, wanted = torch.full((5, 16), PAD_ID), torch.full((5, 16), IGNORED)
    for index, (given, target) in enumerate(zip(rows, targets, strict=True)):
        ids[index, : len(given)], wanted[index, : len(target)] = torch.tensor(given), torch.tensor(target)
    return ids, ids != PAD_ID, wanted


@pytest.fixture(scope="module")
def trained() -> PhraseAutoencoder:
    """A small VAE that knows `PHRASES` by heart."""
    torch.manual_seed(0)
    network = PhraseAutoencoder(dropout=0.0, **SMALL_VAE)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    ids, mask, wanted = batch()
    for _ in range(60):
        optimizer.zero_grad()
        loss = network(ids, mask, wanted).losses(wanted, kl_weight=0.0)["loss"]
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def denoiser() -> PhraseDenoiser:
    torch.manual_seed(0)
    return PhraseDenoiser(**SMALL_LDM, **ALL_CONDITIONS).eval()


@pytest.mark.parametrize(
    ("options", "parameters"),
    [({}, 29_513_792), ({"length": True}, 29_530_176), ({"length": True, "sections": (11, 32)}, 32_396_736)],
    ids=["uncond", "lencond", "seccond"],
)
def test_published_denoisers_have_the_published_size(options, parameters):
    with torch.device("meta"):
        network = PhraseDenoiser(**options, memory_dim=256 if "sections" in options else 128)
    assert size(network) == parameters


def test_the_published_autoencoders_have_the_published_size():
    with torch.device("meta"):
        assert size(PhraseAutoencoder()) == 14_289_920
        codebook = 512 * 512  # that the earlier stages carried without using it
        assert size(PhraseAutoencoder(latent=None)) + codebook == pytest.approx(14.15e6, abs=5e3)


# The autoencoder


def test_the_embedding_is_stored_once(trained):
    state = trained.state_dict()
    assert f"t5.{EMBEDDING}" in state
    assert not {f"t5.{name}" for name in TIED} & state.keys()
    other = PhraseAutoencoder(dropout=0.0, **SMALL_VAE)
    load_state(other, state, "itself")
    assert other.t5.lm_head.weight is other.t5.shared.weight
    ids, mask, wanted = batch()
    with torch.no_grad():
        assert torch.equal(other.eval()(ids, mask, wanted).logits, trained(ids, mask, wanted).logits)


def test_a_copy_shares_nothing_with_the_original_but_within_itself_the_embedding(trained):
    twin = copy.deepcopy(trained)
    assert twin.t5.lm_head.weight is twin.t5.shared.weight is not trained.t5.shared.weight


def test_padding_changes_nothing(trained):
    ids, mask, _ = batch()
    wide = torch.nn.functional.pad(ids, (0, 7), value=PAD_ID)
    with torch.no_grad():
        assert torch.allclose(trained.encode(ids, mask), trained.encode(wide, wide != PAD_ID), atol=1e-5)
        alone = trained.encode(ids[2:3, :7], mask[2:3, :7])
        assert torch.allclose(trained.encode(ids, mask)[2], alone[0], atol=1e-5)


@pytest.mark.parametrize(("queries", "latent"), [(0, None), (4, None), (4, 8)])
def test_every_parameter_of_a_stage_is_trained(queries, latent):
    network = PhraseAutoencoder(**{**SMALL_VAE, "latent": latent}, queries=queries)
    ids, mask, wanted = batch()
    epsilon = torch.randn(5, latent) if latent else None
    network(ids, mask, wanted, epsilon).losses(wanted, kl_weight=0.01)["loss"].backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_decoding_gives_back_what_was_learned(trained):
    ids, mask, _ = batch()
    decoded = decode(trained, trained.encode(ids, mask))
    assert [to_text(line, without=("[BOS]", "[EOS]", "[PAD]")) for line in decoded.tolist()] == PHRASES
    assert decoded.shape[1] == 9  # [BOS], the longest phrase, [EOS]


def test_rows_that_leave_the_batch_do_not_change_the_others(trained):
    torch.manual_seed(1)
    latents = 2 * torch.randn(40, 8)
    together = decode(trained, latents, 32)
    for index in range(0, 40, 7):
        alone = decode(trained, latents[index : index + 1], 32)[0]
        assert torch.equal(together[index, : len(alone)], alone)
        assert (together[index, len(alone) :] == PAD_ID).all()
        ends = (together[index] == EOS_ID).nonzero().flatten().tolist()
        assert ends in ([], [len(alone) - 1])


def test_no_latent_at_all(trained):
    assert decode(trained, torch.zeros(0, 8)).shape == (0, 1)


def test_shortcuts_say_what_the_decoder_says(trained):
    ids, mask, _ = batch()
    latents = trained.encode(ids, mask)
    known = Shortcuts(latents[2:], torch.tensor([IDS[text] for text in PHRASES[2:]]), radius=0.25)
    around = latents.repeat(20, 1) + 0.03 * torch.randn(100, 8)
    assert (known.find(around)[1].view(20, 5) == torch.tensor([False, False, True, True, True])).all()
    assert torch.equal(decode(trained, around), decode(trained, around, shortcuts=known))


def test_the_grammar_leaves_whole_notes_alone(trained):
    grammar = Grammar()
    ids, mask, _ = batch()
    latents = trained.encode(ids, mask)
    assert torch.equal(decode(trained, latents, grammar=grammar), decode(trained, latents))
    torch.manual_seed(0)
    wild = PhraseAutoencoder(**SMALL_VAE).eval()
    latents = 3 * torch.randn(30, 8)
    found = decode(wild, latents, 40, grammar=grammar)
    assert torch.equal(decode(wild, latents, 40, grammar=grammar, rows_at_once=7), found)
    follower = {"i": "o", "o": "p", "p": "d"}
    repeated = 0
    for line in found.tolist():
        tokens = [TOKENS[number].partition("-") for number in line if number != PAD_ID]
        kinds = [kind for kind, _, _ in tokens]
        assert all(second == follower.get(first, second) for first, second in itertools.pairwise(kinds))
        onsets = [int(number) for kind, _, number in tokens if kind == "o"]
        assert onsets == sorted(set(onsets)), "onsets rise"
        for _, group in itertools.groupby(tokens, key=lambda token: token[0] == "o"):
            pitches = [int(number) for kind, _, number in group if kind == "p"]
            assert pitches == sorted(set(pitches), reverse=True), "pitches fall within an onset"
        repeated += len(onsets) > 1
    assert repeated, "some phrase has several onsets"


def test_the_grammar_of_bars_and_positions():
    """Greedy walks over random scores: what the grammar allows is music, and what it is of."""
    torch.manual_seed(0)
    tracks, said = Grammar(unit="bar"), Grammar(unit="bar").begin(1)
    for number in to_ids("i-13 o-40 p-60 d-3 i-0"):
        said = tracks.after(torch.tensor([number]), *said)
    onsets = tracks.allowed(torch.tensor([IDS["i-0"]]), *said)[0, [IDS["o-0"], IDS["o-40"]]]
    assert onsets.all(), "every track begins anew"
    bars = positions = 0
    for velocity, unit in ((False, "bar"), (True, "position")):
        grammar = Grammar(velocity, unit)
        last, said, texts = torch.full((32,), IDS["[BOS]"]), grammar.begin(32), [[] for _ in range(32)]
        for _ in range(40):
            scores = torch.rand(32, len(TOKENS)).masked_fill(~grammar.allowed(last, *said), -1)
            scores[:, IDS["b-1"]] *= 3
            last = scores.argmax(dim=1)
            said = grammar.after(last, *said)
            for text, number in zip(texts, last.tolist(), strict=True):
                text.append(TOKENS[number])
        for text in texts:
            if "[EOS]" not in text:
                continue
            words = text[: text.index("[EOS]")]
            assert is_unit(to_ids(" ".join(words)), unit)
            parsed = parse(words)
            # Onsets are drawn without regard to the length of a bar.
            assert not parsed.dropped.keys() - {"o", "p", "d", "v"}
            programs = [word for word in words if word.startswith("i-")]
            bars += len(programs) > 1
            positions += unit == "position" and words[0].startswith("o-")
    assert bars and positions


# The denoiser


def conditions(songs: int = 2) -> dict[str, Any]:
    plans = [parse_sections("i1 A2 B2"), parse_sections("A4 o2")][:songs]
    bars = torch.tensor([sum(section.bars for section in plan) for plan in plans])
    layout = torch.stack([LayoutIds().encode([(13, 0)] * int(count), 4, 24) for count in bars])
    return {"bars": bars, "sections": SectionIds().encode(plans), "layout": layout}


def test_every_parameter_of_the_denoiser_is_trained_even_if_all_conditions_are_dropped(denoiser):
    network = copy.deepcopy(denoiser).train()
    for keep in (None, torch.zeros(2, dtype=torch.bool)):
        network.zero_grad(set_to_none=True)
        conditioning = network.condition(2, **conditions(), keep=keep)
        x0 = torch.randn(2, 24, 8)
        LatentDiffusion().loss(network, x0, conditioning, torch.tensor([3, 900]), torch.randn_like(x0)).backward()
        idle = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
        assert idle == []
        assert not network.ldm.time_proj.weight.requires_grad


def test_what_is_skipped_is_not_trained():
    network = PhraseDenoiser(**SMALL_LDM)
    x0 = torch.randn(2, 24, 8)
    LatentDiffusion().loss(network, x0, network.condition(2), torch.tensor([3, 900]), torch.randn_like(x0)).backward()
    assert [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    assert any("attn2" in name and not p.requires_grad for name, p in network.named_parameters())


@torch.no_grad()
def test_skipped_cross_attention_is_attention_to_zeros(denoiser):
    x, t = torch.randn(2, 24, 8), torch.tensor([100, 700])
    skipped = denoiser.condition(2)
    assert skipped.memory is None
    dropped = denoiser.condition(2, **conditions(), keep=torch.zeros(2, dtype=torch.bool))
    assert dropped.memory is not None
    assert torch.allclose(denoiser(x, t, skipped), denoiser(x, t, dropped), atol=1e-5)


@torch.no_grad()
def test_guidance_appends_rows_that_know_nothing(denoiser):
    x, t = torch.randn(2, 24, 8), torch.tensor([500])
    both = denoiser(torch.cat([x, x]), t, denoiser.condition(2, **conditions(), unconditional=True))
    assert torch.allclose(both[:2], denoiser(x, t, denoiser.condition(2, **conditions())), atol=1e-5)
    assert torch.allclose(both[2:], denoiser(x, t, denoiser.condition(2)), atol=1e-5)


@pytest.mark.parametrize("changed", ["bars", "sections", "layout", "order"])
@torch.no_grad()
def test_every_condition_is_seen(denoiser, changed):
    torch.manual_seed(0)
    x, t, given = torch.randn(1, 24, 8), torch.tensor([500]), conditions(1)
    before = denoiser(x, t, denoiser.condition(1, **given))
    types, lengths = given["sections"]
    given |= {
        "bars": {"bars": torch.tensor([60])},
        "sections": {"sections": (types.where(types == 0, 3), lengths)},
        "layout": {"layout": given["layout"].clone().masked_fill_(given["layout"] == 1, 3)},
        "order": {"sections": tuple(ids[:, [1, 0, *range(2, 30)]] for ids in given["sections"])},
    }[changed]
    assert (denoiser(x, t, denoiser.condition(1, **given)) - before).abs().max() > 1e-3


@torch.no_grad()
def test_published_sections_have_no_order():
    network = PhraseDenoiser(**SMALL_LDM, sections=(11, 32), published=True).eval()
    x, t = torch.randn(1, 24, 8), torch.tensor([500])
    types, lengths = conditions(1)["sections"]
    swapped = tuple(ids[:, [1, 0, *range(2, 30)]] for ids in (types, lengths))
    outputs = [network(x, t, network.condition(1, sections=plan)) for plan in ((types, lengths), swapped)]
    assert torch.allclose(*outputs, atol=1e-5)


def test_rows_know_their_place():
    encoder = RowEncoder(4, 2, 11, 32, 8)
    types, lengths = SectionIds().encode([parse_sections("A2 B1"), []])
    told = encoder.sections(types, lengths, 16)
    kinds, since, until = encoder.kind.weight, encoder.since.weight, encoder.until.weight
    assert torch.allclose(told[0, 0], kinds[1] + since[0] + until[2])
    assert torch.allclose(told[0, 3], kinds[1] + since[1] + until[1])
    assert torch.allclose(told[0, 4], kinds[2] + since[0] + until[1])
    assert not told[0, 6:].any()
    assert not told[1].any()
    length = encoder.length(torch.tensor([3, 0]), 16)
    assert torch.equal(length[0, ::2], encoder.remaining.weight[[3, 2, 1, 0, 0, 0, 0, 0]])
    assert not length[1].any()


@pytest.mark.parametrize(
    ("plan", "word"),
    [([Section("Z", 4)], "'Z'"), ([Section("A", 33)], "33 bars"), ([Section("A", 1)] * 31, "31 sections")],
)
def test_plans_that_have_no_ids(plan, word):
    with pytest.raises(UsageError, match=word):
        SectionIds().encode([plan])


def test_layouts_become_ids_of_slots():
    ids = LayoutIds((13, 0))
    layout = parse_layout("0*2 13+0 -")
    assert layout == [(0,), (0,), (13, 0), ()]
    told = ids.encode(layout, 3, 15).view(5, 3).tolist()
    assert told == [[2, ids.empty, 0]] * 2 + [[1, 2, 0], [ids.empty] * 2 + [0], [ids.unknown] * 3]
    table = ids.of_tokens()
    tokens = [IDS[token] for token in ("i-13", "i-0", "i-25", "[INST]", "b-1", "s-8", "[SEP]")]
    assert table[tokens].tolist() == [1, 2, -1, ids.empty, 0, 0, ids.unknown]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("40", "no program 40"),
        ("13+0+25+13", "twice"),
        ("0*", "cannot read"),
        ("13+0+25", "3 programs"),
        ("0*9", "9 ba"),
    ],
)
def test_layouts_that_cannot_be_asked_for(text, word):
    with pytest.raises(UsageError, match=word):
        LayoutIds().encode(parse_layout(text), 3, 24)


@torch.no_grad()
def test_the_published_layout_encoder_leaves_empty_slots_out():
    """It then knows less than the rows do: a bar's instruments follow each other, wherever its slots are."""
    torch.manual_seed(0)
    encoder, ids = LayoutEncoder(16, 3).eval(), LayoutIds()
    layout = ids.encode([(13,), (0, 25)], 4, 12)
    memory, mask = encoder(layout[None])
    assert mask.tolist() == [[True] * 5 + [False] * 7]
    packed = torch.tensor([[1, 0, 2, 3, 0] + [4] * 7])
    assert torch.allclose(memory, encoder(packed)[0], atol=1e-6)
    network = PhraseDenoiser(**SMALL_LDM, programs=3, published=True).eval()
    x, t, told = torch.randn(1, 24, 8), torch.tensor([500]), conditions(1)["layout"]
    assert (network(x, t, network.condition(1, layout=told)) - network(x, t, network.condition(1))).abs().max() > 1e-4


# Precision


@pytest.mark.parametrize(("precision", "error"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("t", [5, 500, 990])
@torch.no_grad()
def test_half_precision_is_as_good_at_every_noise_level(precision, error, t):
    torch.manual_seed(0)
    network = PhraseDenoiser(32, 32, 3, 4, 16, 2, 128, 32, 32, length=True).eval()
    x, step, bars = torch.randn(2, 32, 32), torch.tensor([t]), torch.tensor([8, 6])
    exact = network(x, step, network.condition(2, bars))
    with torch.autocast("cpu", precision):
        rough = network(x, step, network.condition(2, bars))
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < error
    # What a step changes is far above that: noise levels stay apart.
    other = network(x, step + 1, network.condition(2, bars))
    with torch.autocast("cpu", precision):
        moved = network(x, step + 1, network.condition(2, bars)) - rough
    assert torch.cosine_similarity(moved.flatten(), (other - exact).flatten(), dim=0) > 0.9


# Sampling


def perfect(x0: Tensor, diffusion: LatentDiffusion) -> PhraseDenoiser:
    """Answers with the noise that is in its input, given that the data are `x0`."""

    class Perfect(torch.nn.Module):
        asked: list[int]

        def forward(self, z: Tensor, t: Tensor, conditioning: object) -> Tensor:
            assert not t.is_floating_point()
            self.asked.append(int(t))
            alpha, sigma = diffusion._levels(t)
            return (z - alpha * x0) / sigma

    network = Perfect()
    network.asked = []
    return network  # type: ignore[return-value]


@pytest.mark.parametrize(("solver", "steps"), [("ddpm", 40), ("ddim", 20), ("dpm_solver", 20)])
def test_samplers_find_the_data_at_whole_steps(solver, steps):
    torch.manual_seed(0)
    diffusion, x0 = LatentDiffusion(200), torch.randn(2, 6, 3)
    network = perfect(x0, diffusion)
    found = diffusion.sample(network, None, lambda draw: torch.randn(2, 6, 3), solver, steps)
    assert torch.allclose(found, x0, atol=1e-2)
    assert len(set(network.asked)) == steps
    assert network.asked == sorted(network.asked, reverse=True)


def test_all_steps_are_the_published_steps():
    diffusion, x0 = LatentDiffusion(50), torch.randn(1, 6, 3)
    network = perfect(x0, diffusion)
    noise = torch.randn(50, 1, 6, 3)
    general = diffusion.sample(network, None, noise.__getitem__, "ddpm", 50)
    published = diffusion.sample_published(network, None, noise.__getitem__)
    assert network.asked == [*range(49, -1, -1)] * 2
    assert torch.allclose(general, published, atol=1e-3)


def test_too_many_steps_are_refused():
    diffusion = LatentDiffusion(50)
    with pytest.raises(UsageError, match="50"):
        diffusion.sample(perfect(torch.zeros(1), diffusion), None, lambda draw: torch.zeros(1), "dpm_solver", 51)
    with pytest.raises(UsageError, match="has steps"):
        sample(lambda z, t: z, lambda draw: torch.zeros(1), CosineSchedule(), "ddim", 4, grid="steps")


@pytest.mark.parametrize("solver", ["ddpm", "dpm_solver"])
@torch.no_grad()
def test_known_latents_stay(denoiser, solver):
    diffusion, x0 = LatentDiffusion(100), torch.randn(2, 24, 8).clamp(-2, 2)
    mask = torch.zeros(1, 24, 1, dtype=torch.bool)
    mask[:, ::4] = True  # the first slot of every bar: a melody
    conditioning = denoiser.condition(2, **conditions())
    made = diffusion.sample(
        denoiser, conditioning, lambda draw: torch.randn(2, 24, 8), solver, 10, known=Known(x0, mask)
    )
    assert torch.allclose(made[:, ::4], x0[:, ::4], atol=1e-5)
    assert not torch.allclose(made, x0, atol=0.1)


def test_variation_stays_closer_the_later_it_starts():
    torch.manual_seed(0)
    diffusion, x0 = LatentDiffusion(), torch.randn(1, 24, 8)
    network = PhraseDenoiser(**SMALL_LDM).eval()
    distances = []
    for start in (0.1, 0.4, 1.0):
        noised = diffusion.start_from(x0, torch.randn(1, 24, 8), steps=10, start=start)
        made = diffusion.sample(network, network.condition(1), lambda draw, z=noised: z, steps=10, start=start)
        distances.append(float((made - x0).norm()))
    assert distances == sorted(distances)
    assert distances[0] < 0.5 * distances[2]


def test_the_default_clip_is_in_the_scale_of_the_denoiser():
    assert LatentDiffusion().clip == pytest.approx(4.03742, abs=1e-5)
    assert LatentDiffusion().schedule == SquaredCosineSchedule(1000)


# Weights of others


def hub(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("queries", "latent"), [(0, None), (4, None), (4, 8)])
def test_autoencoders_from_hub_and_lightning(tmp_path, queries, latent):
    network = PhraseAutoencoder(**{**SMALL_VAE, "latent": latent}, queries=queries).eval()
    full = {**network.state_dict(), **{f"t5.{name}": network.t5.shared.weight for name in TIED}}
    prefix = "model." if latent else ""
    folder = hub(
        tmp_path / "hub",
        {
            **{prefix + name: tensor for name, tensor in network.state_dict().items()},
            "vq.embedding.weight": torch.ones(2),
        },
        t5_config={},
        n_compress_tokens=queries,
        lit_ckpt=True,
        pretrained="/home/somebody/last.ckpt",
    )
    assert is_autoencoder(folder) and not is_denoiser(folder)
    lightning = tmp_path / "last.ckpt"
    state = {f"model.{name}": tensor for name, tensor in full.items()}
    torch.save({"state_dict": state, "hyper_parameters": {"n_compress_tokens": queries}}, lightning)
    inside = tmp_path / "song.ckpt"
    torch.save({"state_dict": {f"vae.{name}": t for name, t in state.items()} | {"model.proj_in.weight": torch.ones(1)},
                "hyper_parameters": {"n_compress_tokens": queries}}, inside)  # fmt: skip
    ids, mask, wanted = batch()
    for path in (folder, folder / "model.safetensors", lightning, inside):
        published = read_autoencoder(path)
        other = PhraseAutoencoder(**published.options)
        load_state(other, published.state, str(path))
        with torch.no_grad():
            assert torch.equal(other.eval()(ids, mask, wanted).logits, network(ids, mask, wanted).logits)


def test_denoisers_from_hub_and_lightning(tmp_path):
    network = PhraseDenoiser(**SMALL_LDM, length=True, sections=(11, 32), published=True).eval()
    state = network.state_dict()
    small = {"attention_head_dim": 8, "sample_size": 24}
    common = {"model_config": small, "scale_factor": 0.5, "clip_range": 2.0, "diffusion_steps": 100}
    folder = hub(tmp_path / "hub", state, **common)
    assert is_denoiser(folder) and not is_autoencoder(folder)
    names = {f"length_encoder.length_embedding.{kind}": f"length_embedding.{kind}" for kind in ("weight",)}
    renamed = {names.get(name, name.replace("ldm.", "model.", 1) if name.startswith("ldm.") else name): tensor
               for name, tensor in state.items()}  # fmt: skip
    lightning = tmp_path / "last.ckpt"
    torch.save({"state_dict": {**renamed, "vae.t5.x": torch.ones(1)}, "hyper_parameters": common}, lightning)
    x, t, plan = torch.randn(1, 24, 8), torch.tensor([7]), conditions(1)["sections"]
    for path in (folder, lightning):
        with pytest.warns(UserWarning, match="sec_type_to_id"):
            options = read_denoiser(path).options
        assert (options["steps"], options["scale"], options["clip"]) == (100, 0.5, 2.0)
        published = read_denoiser(path, SectionIds())
        kept = {name: value for name, value in published.options.items()
                if name not in ("steps", "scale", "clip", "section_types", "section_lengths")}  # fmt: skip
        other = PhraseDenoiser(**kept).eval()
        load_state(other, published.state, str(path))
        with torch.no_grad():
            outputs = [n(x, t, n.condition(1, torch.tensor([5]), plan)) for n in (network, other)]
        assert torch.equal(*outputs)


def test_the_numbering_of_sections_can_be_supplied(tmp_path):
    network = PhraseDenoiser(**SMALL_LDM, sections=(2, 3), published=True)
    numbering = {"sec_type_to_id": {"o": 1, "A": 2}, "sec_len_to_id": {"8": 1, "2": 3, "4": 2}}
    folder = hub(tmp_path, network.state_dict(), model_config={"attention_head_dim": 8}, **numbering)
    options = read_denoiser(folder).options
    assert (options["section_types"], options["section_lengths"]) == (["o", "A"], [8, 4, 2])
    with pytest.raises(CheckpointError, match="2 kinds and 3 lengths"):
        read_denoiser(folder, SectionIds())


def test_damaged_and_other_weights_are_refused(tmp_path, trained):
    state = {f"model.{name}": tensor for name, tensor in trained.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"proj_in\.weight"):
        read_denoiser(hub(tmp_path / "vae", state, t5_config={}))
    denoiser = PhraseDenoiser(**SMALL_LDM).state_dict()
    with pytest.raises(CheckpointError, match="embedding of a T5"):
        read_autoencoder(hub(tmp_path / "ldm", denoiser, scale_factor=1.0, clip_range=1.0))
    with pytest.raises(CheckpointError, match="n_compress_tokens"):
        read_autoencoder(hub(tmp_path / "ae", {k: v for k, v in state.items() if ".t5." in k}, t5_config={}))
    for value in ("32", -1, 0, True):
        with pytest.raises(CheckpointError, match="attention_head_dim"):
            read_denoiser(hub(tmp_path / "number", denoiser, model_config={"attention_head_dim": value}))
    untied = {**state, "model.t5.lm_head.weight": torch.zeros(1000, 32)}
    with pytest.raises(CheckpointError, match="lm_head"):
        read_autoencoder(hub(tmp_path / "untied", untied, t5_config={}))
    lost = "t5.decoder.block.1.layer.2.layer_norm.weight"
    published = read_autoencoder(
        hub(
            tmp_path / "lost",
            {k: v for k, v in state.items() if k != f"model.{lost}"} | {"model.t5.odd": torch.ones(1)},
        )
    )
    with pytest.raises(TensorMismatch) as caught:
        load_state(PhraseAutoencoder(**published.options), published.state, "lost")
    assert (caught.value.missing, caught.value.unexpected) == ((lost,), ("t5.odd",))


def test_noise_of_the_levels_is_float32():
    alpha, sigma = LatentDiffusion()._levels(torch.tensor([0, 999]))
    assert alpha.dtype == sigma.dtype == torch.float32
    assert 0 < float(alpha[1]) < 1e-4 < 1 - np.finfo(np.float32).eps < float(alpha[0] ** 2 + sigma[0] ** 2) + 1e-6
