"""Segments that are decoded with caches, together, in static shapes: the same codes as one by one without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import PurePosixPath

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from midisynth.errors import CheckpointError, RenderError
from midisynth.generation import SamplingRules
from midisynth.models.midi_valle.checkpoint import own_name, read_language_models
from midisynth.models.midi_valle.decoding import decode_first, generate
from midisynth.models.midi_valle.frames import FrameDecoder, FrameLimits, FrameLoop, Padded
from midisynth.models.midi_valle.losses import NarDraw
from midisynth.models.midi_valle.network import ValleNetwork

CPU = torch.device("cpu")
GREEDY = SamplingRules(temperature=0)
CHANCE = SamplingRules(temperature=0.9, top_k=12, top_p=0.95)
VOCABULARIES, NOTE_DIMS = (12, 10, 20, 14, 9, 7), (4, 3, 6, 5, 4, 2)
BINS = 20
VARIANTS = {
    "vall_e": {},
    "vall_f": {"architecture": "vall_f"},
    "prenet, post-norm": {"prenet": True, "norm_first": False},
    "start, no prefix": {"prepend_bos": True, "prefix_mode": 0},
    "prefix from elsewhere": {"prefix_mode": 2, "share_embedding": False, "nar_scale": 0.5},
    "one codebook": {"codebooks": 1},
}


def network(**options) -> ValleNetwork:
    torch.manual_seed(3)
    sizes = {"dim": 16, "heads": 2, "layers": 2, "codebooks": 3, "bins": BINS}
    built = ValleNetwork(**{**sizes, "vocabularies": VOCABULARIES, "note_dims": NOTE_DIMS, **options})
    with torch.no_grad():
        # As initialised, layers hardly change their input: greedy codes would repeat themselves.
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return built.eval()


def segments(codebooks: int = 3) -> tuple[list[Tensor], list[Tensor], list[FrameLimits], list[Tensor]]:
    """Three segments whose notes, prompts and lengths differ."""
    generator = torch.Generator().manual_seed(5)
    most = torch.tensor(VOCABULARIES)
    rows = [(torch.rand(length, 6, generator=generator) * most).long() for length in (5, 9, 7)]
    prompts = [torch.randint(BINS, (length, codebooks), generator=generator) for length in (4, 6, 3)]
    limits = [FrameLimits.exactly(6), FrameLimits.exactly(11), FrameLimits(2, 9)]
    return rows, prompts, limits, [torch.rand(limit.longest, generator=generator) for limit in limits]


def decoder_of(built: ValleNetwork, rows: list[Tensor], prompts: list[Tensor], frames: int) -> FrameDecoder:
    text = Padded.of(rows, CPU)
    first = Padded.of([prompt[:, 0] for prompt in prompts], CPU)
    return FrameDecoder(built.ar, built.embed_notes(text.values), text.mask, first, frames)


def uncached(built: ValleNetwork, row: Tensor, prompt: Tensor, codes: Tensor) -> Tensor:
    """Logits [frames, bins + 1] of the frames after a prompt, by the forward of training."""
    text = built.ar.embed_text(built.embed_notes(row[None]), None)
    known = torch.cat([prompt[:, 0], codes])[None]
    step = built.ar.targets(known, torch.ones_like(known, dtype=torch.bool))
    mask = torch.ones(1, len(row), dtype=torch.bool)
    return built.ar(text, mask, step.inputs, step.mask)[0, -len(codes) - 1 : -1]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_together_with_a_cache_as_alone_without(variant):
    built = network(**VARIANTS[variant]).double()
    rows, prompts, limits, uniforms = segments(built.codebooks)
    notes = [2, 3, 1]
    for rules in (GREEDY, CHANCE):
        together = generate(built, rows, prompts, limits, rules, uniforms, notes)
        for index, codes in enumerate(together):
            chosen = slice(index, index + 1)
            (alone,) = generate(
                built, rows[chosen], prompts[chosen], limits[chosen], rules, uniforms[chosen], notes[chosen]
            )
            assert codes.equal(alone)
            if rules is GREEDY and index < 2:
                logits = uncached(built, rows[index], prompts[index], codes[:, 0])
                assert logits[:, :BINS].argmax(dim=-1).equal(codes[:, 0])
    assert [len(codes) for codes in together[:2]] == [6, 11] and 2 <= len(together[2]) <= 9


@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_logits_are_those_without_a_cache(static):
    built = network()
    rows, prompts, _, _ = segments()
    codes = torch.randint(BINS, (3, 12))
    decoder = decoder_of(built, rows, prompts, 12)
    if static:
        decoder.make_static()
    logits = torch.stack([decoder.logits, *(decoder.step(code) for code in codes[:, :-1].T)], dim=1)
    for index in range(3):
        expected = uncached(built, rows[index], prompts[index], codes[index])
        torch.testing.assert_close(logits[index], expected, rtol=0, atol=1e-5)


class Watch(TorchDispatchMode):
    """Notes the shapes of all that is computed, and whether the host asked for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple] = []
        self.waited: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero"):
            self.waited.append(name)
        result = func(*args, **(kwargs or {}))
        self.shapes.append((name, tuple(result.shape) if isinstance(result, Tensor) else None))
        return result


@pytest.mark.parametrize("rules", [GREEDY, CHANCE])
@torch.no_grad()
def test_a_frame_has_static_shapes_and_asks_the_device_for_nothing(rules):
    built = network()
    rows, prompts, limits, uniforms = segments()
    decoder = decoder_of(built, rows, prompts, 11)
    loop = FrameLoop(decoder, built.ar.end, limits, rules, Padded.of(uniforms, CPU).values)
    decoder.make_static()
    watched = []
    for _ in range(10):
        with Watch() as watch:
            loop.advance()
        assert not watch.waited
        watched.append(watch.shapes)
    assert all(shapes == watched[0] for shapes in watched)
    expected = decode_first(built, rows, [prompt[:, 0] for prompt in prompts], limits, rules, uniforms)
    for codes, length, wanted in zip(loop.codes, loop.lengths, expected, strict=True):
        assert codes[:length].equal(wanted)


@pytest.mark.parametrize(("scale", "shortest", "longest", "found"), [(50, 3, 9, 3), (50, 0, 9, 0), (-50, 3, 9, 9)])
@torch.no_grad()
def test_the_end_comes_neither_too_early_nor_too_late(scale, shortest, longest, found):
    built = network()
    rows, prompts, _, _ = segments()
    # All states have a positive first entry, the end alone listens to it.
    built.ar.decoder.norm.weight[0], built.ar.decoder.norm.bias[0] = 0, 1
    built.ar.predict_layer.weight[:, 0] = 0
    built.ar.predict_layer.weight[BINS] = 0
    built.ar.predict_layer.weight[BINS, 0] = scale
    limits = [FrameLimits(shortest, longest)] * 3
    first = decode_first(built, rows, [prompt[:, 0] for prompt in prompts], limits, GREEDY)
    assert [len(codes) for codes in first] == [found] * 3
    assert max([int(codes.max()) for codes in first if len(codes)], default=0) < BINS
    if found == 0:
        with pytest.raises(RenderError, match="before its first frame"):
            generate(built, rows, prompts, limits, GREEDY)


def test_rows_without_a_place_are_refused():
    rows, prompts, limits, _ = segments()
    rows[1][2, 5] = VOCABULARIES[5]
    with pytest.raises(RenderError, match="too long together"):
        generate(network(), rows, prompts, limits, GREEDY)


@torch.no_grad()
def test_bfloat16_under_autocast():
    built = network()
    rows, prompts, limits, uniforms = segments()
    with torch.autocast("cpu", torch.bfloat16):
        codes = generate(built, rows, prompts, limits, CHANCE, uniforms)
    assert [len(one) for one in codes[:2]] == [6, 11]
    assert built.ar.predict_layer.weight.dtype == torch.float32


def losses(built: ValleNetwork, rows: list[Tensor], codes: list[Tensor], prefix: int = 2):
    text, frames = Padded.of(rows, CPU), Padded.of(codes, CPU)
    padded = frames.values.masked_fill(~frames.mask[..., None], 10**6)
    return built(text.values, text.lengths, padded, frames.lengths, NarDraw(1, prefix))


@pytest.mark.parametrize("prenet", [False, True])
@torch.no_grad()
def test_losses_do_not_depend_on_padding(prenet):
    rows, codes, _, _ = segments()
    built = network(prenet=prenet).double()
    alone = [losses(built, [row], [one], prefix=0).total for row, one in zip(rows, codes, strict=True)]
    torch.testing.assert_close(losses(built, rows, codes, prefix=0).total, sum(alone))
    built.count_padding = True
    assert losses(built, rows, codes, prefix=0).total > sum(alone) + 0.1


@torch.no_grad()
def test_a_prefix_from_within_is_not_predicted():
    """It is heard with all codebooks: its frames count as little as padding."""
    rows, codes, _, _ = segments()
    built = network(prefix_mode=2)
    text, frames = Padded.of(rows, CPU), Padded.of(codes, CPU)
    draw = NarDraw(1, 2, starts=torch.tensor([1, 3, 0]))
    notes = built.nar.embed_text(built.embed_notes(text.values), text.mask)
    logits, targets = built.nar(notes, text.mask, frames.values, frames.mask, draw)
    counted = frames.mask.clone()
    for row, start in zip(counted, draw.starts.tolist(), strict=True):
        row[start : start + 2] = False
    assert logits.shape[:2] == targets.shape
    assert targets.equal(frames.values[..., 1].masked_fill(~counted, built.nar.ignored))


def test_published_size():
    with torch.device("meta"):
        built = ValleNetwork()
    parameters = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in built.named_children()}
    assert round(sum(parameters.values()), 2) == 371.02
    assert round(parameters["notes"], 2) == 0.43
    sizes = {name: part.numel() / 1e6 for name, part in built.named_parameters()}
    assert round(sum(size for name, size in sizes.items() if name.startswith("ar.decoder")), 2) == 151.16
    assert round(sum(size for name, size in sizes.items() if name.startswith("nar.decoder")), 2) == 203.64


def test_stages_train_the_tables_of_notes_once():
    built = network()
    everything, first, second = ({id(p) for p in built.stage_parameters(stage)} for stage in (0, 1, 2))
    assert first | second == everything and not first & second
    assert {id(p) for p in built.notes.parameters()} <= first
    assert id(built.nar.audio_position.alpha) not in everything


def published_names(built: ValleNetwork) -> Iterator[tuple[str, Tensor]]:
    """The state of a small network as the original names and shares it."""
    for name, tensor in built.state_dict().items():
        table = name.startswith("notes.") or "_embedding." in name.replace("text_", "") or "_embeddings." in name
        name = name.replace("notes.", "feat_emb.", 1) if name.startswith("notes.") else name.replace("ar.", "ar_", 1)
        yield (name.replace(".weight", ".word_embeddings.weight") if table and "text" not in name else name), tensor
    for head in range(built.codebooks - 2):
        yield f"nar_predict_layers.{head}.weight", built.nar.audio_embeddings[head + 2].weight.detach()


def test_published_files_load_bare_and_nested(tmp_path):
    built = network()
    state = dict(published_names(built))
    assert len(state) == len(built.state_dict()) + 1
    assert {own_name(name) for name in state} >= built.state_dict().keys()
    halved = {name: tensor / 2 for name, tensor in state.items()}
    files = {
        "bare": state,
        "nested": {"model": state, "optimizer": {"state": {}}, "exp_dir": PurePosixPath("/tmp/run")},
        "averaged": {"model": halved, "model_avg": state, "manifest_dir": PurePosixPath("/tmp")},
        "parallel": {"model": {f"module.{name}": tensor for name, tensor in state.items()}, "model_avg": None},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pt")
        published = read_language_models(tmp_path / f"{name}.pt", heads=2)
        loaded = ValleNetwork(**published.options)
        loaded.load_state_dict(published.state)
        for tensor, own in zip(loaded.state_dict().values(), built.state_dict().values(), strict=True):
            assert tensor.equal(own)
        assert published.options["share_embedding"] and published.options["count_padding"]
    latest = read_language_models(tmp_path / "averaged.pt", heads=2, averaged=False)
    assert latest.state["ar.predict_layer.weight"].equal(halved["ar_predict_layer.weight"])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"model": {"weights": 3}}, "expected a state dict"),
        ({"some.weight": torch.zeros(2)}, "it has no tensor ar.audio_embedding.weight"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, complaint):
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=complaint):
        read_language_models(tmp_path / "foreign.pt")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@torch.no_grad()
def test_captured_frames_equal_those_of_the_cpu(dtype):
    half = dtype == torch.bfloat16
    built = network() if half else network().to(dtype)
    rows, prompts, limits, uniforms = segments()
    expected = [generate(built, rows, prompts, limits, rules, uniforms) for rules in (GREEDY, CHANCE)]
    built = built.cuda()
    with torch.autocast("cuda", dtype) if half else nullcontext():
        found = [generate(built, rows, prompts, limits, rules, uniforms) for rules in (GREEDY, CHANCE)]
    for codes, wanted in zip(found, expected, strict=True):
        for one, other in zip(codes[:2], wanted[:2], strict=True):
            assert one.shape == other.shape
            assert dtype != torch.float64 or one.cpu().equal(other)
