import pytest
import torch

from midisynth.models.spectrogram_diffusion.network import Denoiser

FRAMES, MELS, VOCAB = 20, 12, 50


def denoiser(
    tokens: bool = True,
    roll: bool = True,
    prior: bool = True,
    dropout: float = 0.0,
    context: bool = True,
    t5: bool = False,
) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(
        mels=MELS,
        frames=FRAMES,
        hop_sec=0.02,
        dim=16,
        hidden_dim=24,
        heads=3,
        head_dim=4,
        layers=2,
        dropout=dropout,
        vocab_size=VOCAB if tokens else None,
        max_tokens=30,
        note_roll=roll,
        prior_range=(-7.0, 4.0) if prior else None,
        context=context,
        t5=t5,
    )


def inputs(batch: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    notes = torch.rand(batch, 5, 4, generator=generator) * torch.tensor([0.3, 0.4, 87.0, 1.0])
    return {
        "tokens": torch.randint(1, VOCAB, (batch, 9), generator=generator),
        "notes": notes,
        "context": torch.randn(batch, FRAMES, MELS, generator=generator),
    }


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("t5", [False, True])
@pytest.mark.parametrize(("tokens", "roll", "prior"), [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1)])
def test_every_parameter_has_a_gradient(tokens, roll, prior, context, t5):
    network = denoiser(bool(tokens), bool(roll), bool(prior), context=context, t5=t5)
    conditioning = network.condition(FRAMES, **inputs(), keep=torch.tensor([True, False, True]))
    output = network(torch.randn(3, FRAMES, MELS), torch.rand(3), conditioning)
    assert output.shape == (3, FRAMES, MELS)
    output.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_every_parameter_has_a_gradient_when_all_conditions_are_dropped():
    """Otherwise distributed training would wait for the missing ones."""
    network = denoiser()
    conditioning = network.condition(FRAMES, **inputs(), keep=torch.zeros(3, dtype=torch.bool))
    network(torch.randn(3, FRAMES, MELS), torch.rand(3), conditioning).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@torch.no_grad()
def test_dropped_rows_know_nothing_of_the_notes():
    network = denoiser().eval()
    z, t = torch.randn(3, FRAMES, MELS), torch.rand(3)
    dropped = torch.zeros(3, dtype=torch.bool)
    one, other = inputs(), {name: tensor.flip(0) for name, tensor in inputs().items()}
    first = network(z, t, network.condition(FRAMES, **one, keep=dropped))
    torch.testing.assert_close(first, network(z, t, network.condition(FRAMES, **other, keep=dropped)))
    assert (first - network(z, t, network.condition(FRAMES, **one))).abs().max() > 1e-3


@torch.no_grad()
def test_rows_for_guidance_equal_dropped_rows():
    network = denoiser().eval()
    z, t = torch.randn(3, FRAMES, MELS), torch.tensor([0.3])
    both = network(torch.cat([z, z]), t, network.condition(FRAMES, **inputs(), unconditional=True))
    torch.testing.assert_close(both[:3], network(z, t, network.condition(FRAMES, **inputs())), rtol=1e-5, atol=1e-6)
    dropped = network.condition(FRAMES, **inputs(), keep=torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(both[3:], network(z, t, dropped), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_masked_padding_leaves_no_trace():
    network = denoiser().eval()
    z, t = torch.randn(3, FRAMES, MELS), torch.rand(3)
    plain = inputs()
    padded = {**plain, "tokens": torch.nn.functional.pad(plain["tokens"], (0, 4))}
    masked = network.condition(FRAMES, **padded, token_mask=padded["tokens"] != 0)
    torch.testing.assert_close(
        network(z, t, masked), network(z, t, network.condition(FRAMES, **plain)), rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
def test_one_time_for_all_rows():
    network = denoiser().eval()
    z = torch.randn(3, FRAMES, MELS)
    conditioning = network.condition(FRAMES, **inputs())
    torch.testing.assert_close(
        network(z, torch.tensor([0.4]), conditioning), network(z, torch.full((3,), 0.4), conditioning)
    )


def test_dropout_is_for_training_alone():
    network = denoiser(dropout=0.5)
    z, t = torch.randn(3, FRAMES, MELS), torch.rand(3)

    def twice() -> float:
        outputs = [network(z, t, network.condition(FRAMES, **inputs())) for _ in range(2)]
        return (outputs[0] - outputs[1]).abs().max().item()

    assert twice() > 0
    network.eval()
    assert twice() == 0
