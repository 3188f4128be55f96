"""WaveNets and their autoencoder: causality, cost, gradients, sizes, attributes; the bottleneck."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from midisynth.errors import UsageError
from midisynth.models.midi2wave.bottleneck import ArgmaxBottleneck, diversity
from midisynth.models.midi2wave.conditioning import Vocabulary
from midisynth.models.midi2wave.heads import Categorical
from midisynth.models.midi2wave.network import WaveNet, WaveNetAutoencoder

SMALL = {"layers": 5, "max_dilation": 4, "residual": 6, "skip": 10, "hidden": 9, "hop": 4}
ENCODER = {**SMALL, "inputs": 88, "kind": "rows", "outputs": 7, "hop": 1}


def plain_forward(net: WaveNet, codes: Tensor, z: Tensor) -> Tensor:
    """The network sample by sample and layer by layer, from the definition."""
    table, columns = net.input_table(), []
    histories = [[torch.zeros_like(table[codes[:, 0]])] * d for d in net.dilations]
    matrix, bias = net.conditioning.weight, net.conditioning.bias
    for t in range(codes.shape[1]):
        x, total = table[codes[:, t]], net.skip.bias.sum(0)
        added = (z[..., t // net.hop] @ matrix.T + bias).unflatten(1, (len(net.dilations), -1))
        for layer, history in enumerate(histories):
            past, weight = history[-net.dilations[layer]], net.dilated.weight[layer]
            history.append(x)
            a = past @ weight[..., 0].T + x @ weight[..., 1].T + net.dilated.bias[layer] + added[:, layer]
            tanh, sigmoid = a.chunk(2, dim=1)
            gated = tanh.tanh() * sigmoid.sigmoid()
            total = total + gated @ net.skip.weight[layer].T
            if layer < len(histories) - 1:
                x = (x + gated @ net.residual.weight[layer].T + net.residual.bias[layer]) * net.gain
        columns.append((total.relu() @ net.hidden.weight.T).relu() @ net.output.weight.T)
    return torch.stack([torch.zeros_like(columns[0]), *columns[:-1]], dim=-1)


@pytest.mark.parametrize("samples", [24, 22])
def test_gradients_are_those_of_the_plain_loop(samples):
    net = WaveNet(**SMALL, conditioning=7, gain=math.sqrt(0.5)).double()
    codes, z = torch.randint(256, (2, samples)), torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    wanted = [*net.parameters(), z]
    losses = [Categorical(256).loss(forward, codes) for forward in (net(codes, z), plain_forward(net, codes, z))]
    ours, plain = (torch.autograd.grad(loss, wanted) for loss in losses)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)
        assert other.abs().max() > 0


def test_published_sizes():
    decoder = WaveNet(conditioning=512, compat="seed")
    encoder = WaveNet(
        inputs=88, kind="rows", outputs=512, layers=12, max_dilation=64, residual=256, skip=512, hidden=512,
        dilated_bias=False, residual_conv=False, compat="seed",
    )  # fmt: skip
    assert (decoder.receptive_field, encoder.receptive_field) == (5119, 159)
    counts = [sum(p.numel() for p in net.parameters()) for net in (decoder, encoder)]
    # The encoder of the original has 6144 weights of a conditioning that it does not get.
    assert counts == [1_035_424, 5_277_696 - 6144]
    # One bias of the skip sum does for all layers.
    assert sum(p.numel() for p in WaveNet(conditioning=512).parameters()) == 1_035_424 - 21 * 128


def test_columns_see_the_past_alone():
    """Double shift of the specification: a note at tick k reaches sample hop * (k + 1) + 1 and none before."""
    model = WaveNetAutoencoder(WaveNet(**SMALL, conditioning=7), WaveNet(**ENCODER), lookahead=0).eval()
    early = WaveNetAutoencoder(model.decoder, model.encoder, lookahead=2).eval()
    roll, codes = torch.rand(1, 88, 10), torch.randint(256, (1, 40))
    changed = roll.clone()
    changed[..., 5] += 1
    for net, first in ((model, 4 * 6 + 1), (early, 4 * 4 + 1)):
        with torch.no_grad():
            moved = (net(changed, codes).logits - net(roll, codes).logits).abs().amax(dim=(0, 1)) > 0
        assert moved.nonzero()[0].item() == first
    other = codes.clone()
    other[:, 17] = (other[:, 17] + 1) % 256
    moved = (model(roll, other).logits - model(roll, codes).logits).abs().amax(dim=(0, 1)) > 0
    assert moved.nonzero()[0].item() == 18
    reach = model.decoder.receptive_field
    assert moved.nonzero()[-1].item() == min(17 + reach, 39)


@pytest.mark.parametrize("compat", [None, "seed"])
def test_every_parameter_has_a_gradient(compat):
    sizes = {"year": 3, "composer": 2}
    options = {"compat": compat, "attributes": sizes, "dropout": 0.1, "output_dropout": 0.1}
    bottleneck = ArgmaxBottleneck("gumbel", compat=compat)
    model = WaveNetAutoencoder(
        WaveNet(**SMALL, **options, conditioning=7, upsampling_window=5), WaveNet(**ENCODER, **options), bottleneck
    )
    out = model(torch.rand(2, 88, 6), torch.randint(256, (2, 24)), torch.tensor([[0, 1, 0, 0, 1.0]]).expand(2, -1))
    (Categorical(256).loss(out.logits, torch.randint(256, (2, 24))) + diversity(out.usage)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    bare = WaveNet(**SMALL, skips=False)
    bare(torch.randint(256, (1, 9))).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in bare.parameters())


def test_dropout_does_not_touch_the_residual_stream():
    """With everything dropped, inputs reach the end unchanged; in compat they vanish."""
    for compat, left in ((None, 1.0), ("seed", 0.0)):
        net = WaveNet(**SMALL, skips=False, residual_bias=False, dilated_bias=False, dropout=1.0, compat=compat)
        codes = torch.randint(256, (1, 9))
        expected = net.input_table()[codes].transpose(1, 2) * left
        torch.testing.assert_close(net(codes)[..., 1:], expected[..., :-1])


def test_scalar_inputs():
    net = WaveNet(**SMALL, inputs=65536, kind="scalar", outputs=30, input_bias=True, input_softsign=True).eval()
    codes = torch.tensor([[0, 65535, 32768, 7]])
    amplitudes = codes / 32767.5 - 1
    line = amplitudes[..., None] * net.input.weight[:, 0] + net.input.bias
    torch.testing.assert_close(net.input_table()[codes], torch.nn.functional.softsign(line))
    assert net(codes).shape == (1, 30, 4)


def test_attributes():
    vocabulary = Vocabulary({"year": ["2004", "2018"], "composer": ["Bach"]})
    net = WaveNet(**SMALL, conditioning=7, attributes=vocabulary.sizes).eval()
    codes, z = torch.randint(256, (2, 24)), torch.randn(2, 7, 6)
    rows = torch.stack([vocabulary.row({"year": 2018}), vocabulary.row({})])
    assert rows.tolist() == [[0, 0, 1, 1, 0], [1, 0, 0, 1, 0]]
    assert torch.equal(net(codes, z, rows), net(codes, z))
    with torch.no_grad():
        for table in net.global_cond.values():
            table.weight.normal_()
    told, untold = net(codes, z, rows), net(codes, z)
    assert not torch.allclose(told[0], untold[0])
    torch.testing.assert_close(told[1], untold[1])
    # The same as a one-hot beside the conditioning of every tick.
    wide = WaveNet(**SMALL, conditioning=12).eval()
    state = net.state_dict()
    tables = torch.cat([state.pop(f"global_cond.{name}.weight") for name in vocabulary.sizes])
    state["conditioning.weight"] = torch.cat([state["conditioning.weight"], tables.T], dim=1)
    wide.load_state_dict(state)
    beside = torch.cat([z, rows[..., None].expand(-1, -1, 6)], dim=1)
    torch.testing.assert_close(wide(codes, beside), told, atol=1e-5, rtol=1e-4)
    between = vocabulary.row({"year": {"2004": 0.25, "2018": 0.75}})
    assert between.tolist() == [0, 0.25, 0.75, 1, 0]
    assert vocabulary.drop(rows, 1.0).tolist() == [[1, 0, 0, 1, 0]] * 2
    assert vocabulary.drop(rows, 0.0).tolist() == rows.tolist()
    assert vocabulary.row({"year": "1999"}).tolist() == [1, 0, 0, 1, 0]
    for chosen, error in (({"year": "1999"}, "2004, 2018"), ({"hall": "x"}, "year, composer")):
        with pytest.raises(UsageError, match=error):
            vocabulary.row(chosen, strict=True)


def test_bottleneck():
    z = torch.randn(3, 5, 40, requires_grad=True)
    bottleneck = ArgmaxBottleneck("gumbel", temperature=0.5)
    sharp = torch.zeros(1, 5, 4000)
    sharp[:, 2] = 1
    # Where the channels are certain, drawing keeps the code; from q itself (compat) it would hardly.
    assert (bottleneck(sharp).codes[:, 2].detach() == 1).float().mean() > 0.99
    published = ArgmaxBottleneck(compat="seed")
    assert (published(sharp).codes[:, 2].detach() == 1).float().mean() < 0.6
    bottleneck.eval()
    codes, usage, perplexity = bottleneck(z)
    assert torch.equal(codes.detach(), torch.nn.functional.one_hot(z.relu().argmax(1), 5).mT.float())
    assert 4 < perplexity <= 5 and diversity(torch.full((5,), 0.2)) < 1e-10
    (gradient,) = torch.autograd.grad((codes * torch.randn_like(codes)).sum() + diversity(usage), z)
    assert ((gradient != 0) == (z > 0)).float().mean() > 0.99
    # Items of a batch do not meet.
    alone = bottleneck(z[1:2]).codes
    torch.testing.assert_close(alone, codes[1:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_bias": True}, "input_bias"),
        ({"conditioning": 7, "conditioning_conv": False}, "needs 60"),
        ({"conditioning": 7, "upsampling_window": 3}, "at least hop"),
    ],
)
def test_contradictions(options, message):
    with pytest.raises(UsageError, match=message):
        WaveNet(**SMALL, **options)
    with pytest.raises(UsageError, match="decoder wants"):
        WaveNetAutoencoder(WaveNet(**SMALL), WaveNet(**ENCODER))
