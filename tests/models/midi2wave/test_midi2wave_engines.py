"""Every engine against the parallel network, for all that a decoder may be; streams, prompts, segments, nv-wavenet."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from midisynth.errors import CheckpointError, UsageError
from midisynth.models.midi2wave import engines, generation, nv_wavenet
from midisynth.models.midi2wave.engines import ENGINES, Packed, TorchEngine, choose, kernels, numba_engine
from midisynth.models.midi2wave.generation import Piece, generate, generate_in_segments
from midisynth.models.midi2wave.heads import Categorical, Head, LogisticMixture
from midisynth.models.midi2wave.network import Direct, WaveNet, WaveNetAutoencoder

HOP, ROWS, LEVELS = 4, 5, 16
SMALL: dict[str, Any] = {
    "inputs": LEVELS,
    "outputs": LEVELS,
    "layers": 5,
    "max_dilation": 4,
    "residual": 6,
    "skip": 9,
    "hidden": 7,
    "conditioning": 3,
    "hop": HOP,
}
#: Options of the decoder, and of drawing.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "as published": ({}, {}),
    "shared": (
        {"shared_conditioning": True, "conditioning_softsign": True, "gain": 0.7, "input_softsign": True},
        {"temperature": 0.7, "top_p": 0.8},
    ),
    "no convolution": ({"conditioning": 60, "conditioning_conv": False, "dilated_bias": False}, {"temperature": 0.0}),
    "upsampled": ({"upsampling_window": 6, "attributes": {"year": 3}, "compat": "seed"}, {}),
    "no residual": ({"residual_conv": False, "skip_bias": False, "residual_bias": False, "gain": 0.9}, {}),
    "no skips": ({"skips": False, "residual": LEVELS}, {"top_p": 0.5}),
    "on the roll": ({"conditioning": ROWS, "conditioning_bias": False}, {}),
    "alone": ({"conditioning": 0, "attributes": {"year": 3}}, {}),
    "mixture": (
        {"kind": "scalar", "inputs": 256, "outputs": 9, "input_bias": True},
        {"temperature": 0.5, "top_p": 0.7},
    ),
    "modes": ({"inputs": 256, "outputs": 9}, {"temperature": 0.0}),
}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.gpu if name == "cuda" else ()) for name in ENGINES])
def engine(request) -> str:
    if request.param == "numba":
        pytest.importorskip("numba")
    return request.param


def build(**options: Any) -> tuple[WaveNetAutoencoder, Head]:
    """A network with weights large enough to matter, and its head."""
    decoder = WaveNet(**SMALL | options)
    encoder: WaveNet | Direct | None = None
    if decoder.conditioning_channels == ROWS:
        encoder = Direct(ROWS)
    elif decoder.conditioning_channels:
        encoder = WaveNet(
            inputs=ROWS,
            kind="rows",
            outputs=decoder.conditioning_channels,
            layers=3,
            max_dilation=2,
            residual=4,
            skip=5,
        )
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    head = Categorical(LEVELS) if decoder.outputs == LEVELS else LogisticMixture(3, scale="clamp", min_log_scale=-3.0)
    return WaveNetAutoencoder(decoder, encoder, lookahead=2).eval(), head


def pieces(network: WaveNetAutoencoder, head: Head, lengths: Sequence[int]) -> list[Piece]:
    """Music for each length; the second piece has a prompt, and one that has attributes knows them."""
    return [
        Piece(
            roll=torch.rand(ROWS, length // HOP + 9) if network.encoder is not None else None,
            samples=length,
            noise=torch.rand(length, head.draws),
            teacher=torch.randint(head.levels, (length // 3,)) if index == 1 else None,
            attributes=torch.randn(3) if network.decoder.global_cond is not None else None,
            start=index,
        )
        for index, length in enumerate(lengths)
    ]


def collected(count: int, blocks) -> list[Tensor]:
    """The blocks of each of so many pieces, joined."""
    found: list[list[Tensor]] = [[] for _ in range(count)]
    for position, block in blocks:
        found[position].append(block)
    return [torch.cat(own) for own in found]


def parallel(
    network: WaveNetAutoencoder, head: Head, piece: Piece, codes: Tensor, guidance: float = 1.0, **drawing: float
) -> Tensor:
    """What the parallel network makes of the past of every sample but the first."""
    logits = outputs(network, piece, codes, piece.attributes)
    if guidance != 1:
        unknown = outputs(network, piece, codes, None)
        logits = guidance * logits + (1 - guidance) * unknown
    return head.sample(logits, piece.noise[:-1], **drawing)


def outputs(network: WaveNetAutoencoder, piece: Piece, codes: Tensor, attributes: Tensor | None) -> Tensor:
    """What the parallel network says of every sample but the first, [samples - 1, outputs]."""
    past = codes.clone()
    if piece.teacher is not None:
        past[: len(piece.teacher)] = piece.teacher
    weight = network.decoder.dilated.weight
    attributes = None if attributes is None else attributes[None].to(weight)
    z = None
    if network.encoder is not None:
        # A transposed convolution reaches back to the tick before.
        z = network.encode(piece.roll[None].to(weight), attributes)
        if network.decoder.upsampling is None:
            z = z[..., piece.start :]
    if network.decoder.upsampling is not None:
        added = network.decoder.layer_conditioning(z, attributes)[..., piece.start * HOP :][..., : piece.samples]
        logits = network.decoder._layers(network.decoder.input(past[None]), added)[..., :-1]
    else:
        logits = network.decode(past[None], z, attributes)[..., 1:]
    return logits[0].T


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_engine_draws_what_the_parallel_network_says(engine, variant, monkeypatch):
    options, drawing = VARIANTS[variant]
    network, head = build(**options)
    wanted = pieces(network, head, [38, 61, 1])
    # Blocks, and what the encoder reads at once, are shorter than the pieces.
    monkeypatch.setattr(generation, "BLOCK_TICKS", 4)
    monkeypatch.setattr(generation, "ENCODER_TICKS", 7)
    monkeypatch.setattr(generation, "UPSAMPLED_COLUMNS", 3 * HOP)
    network = network.cuda() if engine == "cuda" else network
    chosen = choose(network.decoder, head, name=engine, **drawing)
    made = collected(len(wanted), generate(network, chosen, wanted))
    network = network.cpu()
    for piece, codes in zip(wanted, made, strict=True):
        assert len(codes) == piece.samples
        assert codes[0] == head.levels // 2
        expected = parallel(network, head, piece, codes, **drawing)
        if isinstance(head, Categorical):
            assert codes[1:].equal(expected)
        else:  # rounding to a code may go either way
            assert ((codes[1:] - expected).abs() <= 1).all()
            assert (codes[1:] == expected).float().mean().nan_to_num(1) > 0.95


@torch.no_grad()
@pytest.mark.parametrize(
    ("told", "options"), [(False, {}), (True, {"upsampling_window": 6}), (False, {"skips": False, "residual": LEVELS})]
)
def test_guidance_goes_from_unknown_attributes_beyond_the_chosen_ones(engine, told, options, monkeypatch):
    """Of decoders, and of encoders that are told, too; against both networks in double precision."""
    network, head = build(attributes={"year": 3}, **options)
    if told:
        network.encoder = WaveNet(
            inputs=ROWS, kind="rows", outputs=3, layers=2, residual=4, skip=5, attributes={"year": 3}
        ).eval()
        torch.nn.init.normal_(network.encoder.global_cond["year"].weight)
    wanted = pieces(network, head, [38, 61, 25, 1])
    wanted[2] = dataclasses.replace(wanted[2], attributes=None)
    monkeypatch.setattr(generation, "BLOCK_TICKS", 4)
    monkeypatch.setattr(generation, "ENCODER_TICKS", 7)
    monkeypatch.setattr(generation, "UPSAMPLED_COLUMNS", 3 * HOP)
    if engine == "numba":
        torch.set_num_threads(2)
    network = network.cuda() if engine == "cuda" else network
    drawing = {"temperature": 0.9, "top_p": 0.95}
    guided, plain = (choose(network.decoder, head, name=engine, guidance=g, **drawing) for g in (2.0, 1.0))
    assert (guided.passes, plain.passes) == (2, 1)
    made = collected(4, generate(network, guided, wanted))
    unguided = collected(4, generate(network, plain, wanted))
    network = network.cpu().double()
    for piece, codes in zip(wanted, made, strict=True):
        assert len(codes) == piece.samples
        assert codes[1:].equal(parallel(network, head, piece, codes, guidance=2.0, **drawing))
    assert not made[0].equal(unguided[0]) and not made[1].equal(unguided[1])
    assert made[2].equal(unguided[2]), "nothing is known of it that could be exaggerated"


def test_blocks_batches_threads_and_runs_do_not_matter(engine, monkeypatch):
    network, head = build()
    if engine == "cuda":
        network.cuda()
    wanted = pieces(network, head, [50, 70, 30])
    chosen = choose(network.decoder, head, name=engine)
    first = collected(3, generate(network, chosen, wanted))
    if engine == "numba":
        torch.set_num_threads(2)
    monkeypatch.setattr(generation, "BLOCK_TICKS", 3)
    second = [collected(1, generate(network, chosen, [piece]))[0] for piece in wanted]
    third = collected(3, generate(network, chosen, wanted))
    assert all(a.equal(b) and a.equal(c) for a, b, c in zip(first, second, third, strict=True))


def test_streams_that_are_carried_along_after_their_end(monkeypatch):
    network, head = build(upsampling_window=6)
    wanted = pieces(network, head, [30, 70, 1])
    wanted[0] = dataclasses.replace(wanted[0], roll=wanted[0].roll[:, :8])
    chosen = choose(network.decoder, head, name="torch")
    expected = collected(3, generate(network, chosen, wanted))
    monkeypatch.setattr(chosen, "flat", True)
    monkeypatch.setattr(generation, "UPSAMPLED_COLUMNS", 3 * HOP)
    made = collected(3, generate(network, chosen, wanted))
    assert all(a.equal(b) for a, b in zip(made, expected, strict=True))


def test_noise_of_a_generator_does_not_depend_on_blocks(monkeypatch):
    network, head = build()
    (piece,) = pieces(network, head, [60])
    made = []
    for ticks in (500, 4):
        monkeypatch.setattr(generation, "BLOCK_TICKS", ticks)
        seeded = Piece(piece.roll, piece.samples, torch.Generator().manual_seed(1))
        made += collected(1, generate(network, choose(network.decoder, head, name="torch"), [seeded]))
    assert made[0].equal(made[1])
    assert len(made[0].unique()) > 2


def test_the_prompt_itself_is_output_where_that_is_wanted():
    network, head = build()
    wanted = pieces(network, head, [50, 70])
    chosen = choose(network.decoder, head, name="torch")
    own, kept = (collected(2, generate(network, chosen, wanted, keep))[1] for keep in (False, True))
    given = len(wanted[1].teacher)
    assert kept[:given].equal(wanted[1].teacher)
    assert not own[:given].equal(kept[:given])
    assert own[given:].equal(kept[given:])


def test_a_roll_that_ends_too_early_is_refused():
    network, head = build()
    chosen = choose(network.decoder, head, name="torch")
    with pytest.raises(ValueError, match="14 samples need 4 ticks of the roll, not 3"):
        list(generate(network, chosen, [Piece(torch.zeros(ROWS, 3), 14, torch.rand(14, 1))]))


@pytest.mark.parametrize("samples", [3, 40, 110])
def test_segments(samples):
    network, head = build()
    chosen = choose(network.decoder, head, name="torch")
    whole = Piece(torch.rand(ROWS, 40), samples, torch.rand(samples, 1), teacher=torch.arange(5))
    options = {"segment": 7, "warmup": 3, "overlap": 2}

    def noise(segment: int) -> torch.Generator:
        return torch.Generator().manual_seed(segment)

    made = [
        torch.cat(list(generate_in_segments(network, chosen, whole, noise, lambda c: c.float(), streams=n, **options)))
        for n in (2, 64)
    ]
    assert made[0].equal(made[1])
    assert made[0].shape == (samples,)
    (first,) = collected(1, generate(network, chosen, [Piece(whole.roll, samples, noise(0), whole.teacher)]))
    assert made[0][: 7 * HOP].equal(first[: 7 * HOP].float())
    if samples > 9 * HOP:
        # The second one starts at tick 4, hears what the encoder has read, and is alone from the end of the fade on.
        start, alone = 4 * HOP, slice(9 * HOP, min(14 * HOP, samples))
        (second,) = collected(
            1, generate(network, chosen, [Piece(whole.roll, alone.stop - start, noise(1), None, None, start=4)])
        )
        assert made[0][alone].equal(second[alone.start - start : alone.stop - start].float())


def test_the_wait_for_numba_is_told_once(monkeypatch, capsys):
    numba = pytest.importorskip("numba")
    network, head = build()

    def compiling(*arguments: Any) -> None:
        """Carries out the kernels, and compiles something, as numba does when it finds nothing on disk."""
        numba.njit(lambda x: x)(1)
        kernels.run(*arguments)

    monkeypatch.setattr(numba_engine, "_compiled", lambda: compiling)
    numba_engine._tell_of_compilation.cache_clear()
    engine = numba_engine.NumbaEngine(Packed.of(network.decoder), head)
    assert capsys.readouterr().err.count("numba compiles") == 1
    engine.run(engine.start(1), torch.zeros(1, 1, 5, 12), 1, torch.zeros(1, 1, 1))
    assert not capsys.readouterr().err


@torch.no_grad()
def test_half_precision_reaches_no_sample(engine):
    """Steps are those of single precision under autocast; and a model in half precision plays at all."""
    for options in ({"conditioning": 0}, {"conditioning": 0, "kind": "scalar", "inputs": 65536}):
        network, head = build(**options)
        network = network.cuda() if engine == "cuda" else network
        wanted = pieces(network, head, [40])
        (expected,) = collected(1, generate(network, choose(network.decoder, head, name=engine), wanted))
        with torch.autocast("cuda" if engine == "cuda" else "cpu", torch.bfloat16):
            (made,) = collected(1, generate(network, choose(network.decoder, head, name=engine), wanted))
        assert made.equal(expected)
    network, head = build()
    network = network.to("cuda" if engine == "cuda" else "cpu", torch.bfloat16)
    torch.set_default_dtype(torch.bfloat16)
    try:
        piece = Piece(torch.rand(ROWS, 60), 200, torch.Generator().manual_seed(0))
        (made,) = collected(1, generate(network, choose(network.decoder, head, name=engine), [piece]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(made.unique()) > 2


def test_the_kernels_without_numba(monkeypatch):
    network, head = build()
    wanted = pieces(network, head, [9, 9])
    monkeypatch.setattr(numba_engine, "_compiled", lambda: kernels.run)
    monkeypatch.setattr(numba_engine.NumbaEngine, "_compile", lambda self: None)
    plain = numba_engine.NumbaEngine(Packed.of(network.decoder), head, 0.9, 0.9)
    made = collected(2, generate(network, plain, wanted))
    expected = collected(2, generate(network, choose(network.decoder, head, 0.9, 0.9, "torch"), wanted))
    assert all(a.equal(b) for a, b in zip(made, expected, strict=True))


def test_the_choice_is_told_once(monkeypatch, capsys):
    network, head = build()
    monkeypatch.setattr(engines, "is_installed", lambda: False)
    engines._tell.cache_clear()
    for _ in range(2):
        assert isinstance(choose(network.decoder, head), TorchEngine)
    told = capsys.readouterr().err
    assert told.count("the torch engine makes the samples, on cpu; pip install numba") == 1
    for name in ("numba", "cuda"):
        with pytest.raises(UsageError, match=name):
            choose(network.decoder, head, name=name)


@pytest.mark.parametrize(
    "options",
    [
        {"gain": 0.6, "input_softsign": True},
        {"gain": 0.6, "residual_conv": False, "dilated_bias": False, "skip_bias": False, "conditioning": 0},
        {"residual_bias": False, "compat": "seed", "upsampling_window": 6, "hidden": LEVELS},
    ],
)
def test_what_nv_wavenet_is_given_plays_the_same(options, tmp_path):
    network, head = build(**options)
    decoder = network.decoder
    z = None if network.encoder is None else torch.randn(2, 3, 10)
    nv_wavenet.export(decoder, tmp_path / "nv.safetensors")
    foreign = nv_wavenet.load(tmp_path / "nv.safetensors")
    assert foreign.gain == 1
    noise = torch.rand(2, 10 * HOP, 1)
    added = nv_wavenet.conditioning_array(decoder, z, 10 * HOP).expand(-1, -1, 2, -1).permute(2, 0, 1, 3)
    codes = []
    for net in (decoder, foreign):
        engine = TorchEngine(Packed.of(net), head)
        codes.append(engine.run(engine.start(2), added, 1, noise))
    assert codes[0].equal(codes[1])


def test_what_nv_wavenet_cannot_take(tmp_path):
    network, _ = build(outputs=9, inputs=256)
    with pytest.raises(UsageError, match="categorical"):
        nv_wavenet.arrays(network.decoder)
    network, _ = build(hidden=LEVELS + 1)
    with pytest.raises(UsageError, match=r"decoder\.hidden is 17"):
        nv_wavenet.export(network.decoder, tmp_path / "nv.safetensors")
    assert not list(tmp_path.iterdir())
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(CheckpointError, match="max_dilation"):
        nv_wavenet.load(other)
    with pytest.raises(CheckpointError, match="not the weights of an nv-wavenet"):
        nv_wavenet.load(other, 4)
