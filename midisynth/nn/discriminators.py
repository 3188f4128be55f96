"""Discriminators of audio, and the losses of adversarial training.

Every discriminator takes audio of shape [batch, channels, samples], judges each channel by itself, and returns a
`Judgement`. `AudioDiscriminator` composes them and computes the losses of both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad
from torch.nn.utils.parametrizations import weight_norm

Objective = Literal["least_squares", "hinge"]


class Judgement(NamedTuple):
    """What discriminators say about audio.

    Attributes:
        logits: Of every sub-discriminator, a map of scores [batch, 1, height, width]; high means real.
        features: Of every sub-discriminator, the activations of its layers, [batch, channels, height, width] each.
    """

    logits: list[Tensor]
    features: list[list[Tensor]]


class _ConvStack(nn.Module):
    """Weight-normalised 2-D convolutions with leaky ReLU, and one without to a single channel.

    Args:
        layers: Input channels, output channels, kernel size and stride of every layer.
        final_kernel: Kernel size of the last one.
    """

    def __init__(
        self,
        layers: Iterable[tuple[int, int, tuple[int, int], tuple[int, int]]],
        final_kernel: tuple[int, int],
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(inputs, outputs, kernel, stride, _half(kernel)))
            for inputs, outputs, kernel, stride in layers
        )
        last = self.layers[-1].out_channels
        self.final = weight_norm(nn.Conv2d(last, 1, final_kernel, padding=_half(final_kernel)))

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[batch, channels, height, width] -> score map, features."""
        features = []
        for layer in self.layers:
            image = leaky_relu(layer(image), 0.1)
            features.append(image)
        return self.final(image), features


def _half(kernel: tuple[int, int]) -> tuple[int, int]:
    return kernel[0] // 2, kernel[1] // 2


class MultiPeriodDiscriminator(nn.Module):
    """Looks at every p-th sample for several periods p (Kong et al. 2020, HiFi-GAN, arXiv 2010.05646, section 2.3).

    Audio is folded to [samples / p, p], and the convolutions run along the first axis alone.

    Args:
        periods: Of the sub-discriminators (samples); prime, so that they overlap little.
        channels: Of the layers. The last one keeps the length, the others divide it by `stride`.
        kernel: Size of their kernels.
        stride: Of all layers but the last.
    """

    def __init__(
        self,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        channels: Sequence[int] = (32, 128, 512, 1024, 1024),
        kernel: int = 5,
        stride: int = 3,
    ):
        super().__init__()
        self.periods = tuple(periods)
        strides = [stride] * (len(channels) - 1) + [1]
        self.stacks = nn.ModuleList(
            _ConvStack(
                [
                    (inputs, outputs, (kernel, 1), (step, 1))
                    for inputs, outputs, step in zip((1, *channels), channels, strides, strict=False)
                ],
                final_kernel=(3, 1),
            )
            for _ in self.periods
        )

    def forward(self, audio: Tensor) -> Judgement:
        """Args: audio: [batch, channels, samples], longer than the longest period."""
        audio = audio.flatten(0, 1)[:, None]
        judged = []
        for period, stack in zip(self.periods, self.stacks, strict=True):
            missing = -audio.shape[-1] % period
            folded = pad(audio, (0, missing), "reflect").unflatten(-1, (-1, period))
            judged.append(stack(folded))
        return Judgement([logits for logits, _ in judged], [features for _, features in judged])


class MultiResolutionDiscriminator(nn.Module):
    """Looks at STFT magnitudes of several resolutions (Jang et al. 2021, UnivNet, arXiv 2106.07889, section 2.2).

    As in Vocos (Siuzdak 2023, arXiv 2306.00814), the convolutions halve frequency and keep time. Hops are a quarter of
    the FFT sizes.

    Args:
        fft_sizes: Of the sub-discriminators (samples).
        channels: Of the layers. The first and the last one keep the size, the others halve frequency.
    """

    def __init__(self, fft_sizes: Sequence[int] = (512, 1024, 2048), channels: Sequence[int] = (32, 32, 32, 32, 32)):
        super().__init__()
        self.fft_sizes = tuple(fft_sizes)
        count = len(channels)
        kernels = [(9, 3)] * (count - 1) + [(3, 3)]
        strides = [(1, 1)] + [(2, 1)] * (count - 2) + [(1, 1)] * (count > 1)
        self.stacks = nn.ModuleList(
            _ConvStack(zip((1, *channels), channels, kernels, strides, strict=False), final_kernel=(3, 3))
            for _ in self.fft_sizes
        )

    def forward(self, audio: Tensor) -> Judgement:
        """Args: audio: [batch, channels, samples]."""
        audio = audio.flatten(0, 1)
        judged = [
            stack(self._magnitude(audio, n_fft)[:, None])
            for n_fft, stack in zip(self.fft_sizes, self.stacks, strict=True)
        ]
        return Judgement([logits for logits, _ in judged], [features for _, features in judged])

    @staticmethod
    def _magnitude(audio: Tensor, n_fft: int) -> Tensor:
        # There is no FFT in half precision, and what autocast makes of one loses the quiet bins.
        with torch.autocast(audio.device.type, enabled=False):
            window = torch.hann_window(n_fft, device=audio.device)
            spectrum = torch.stft(
                audio.float(), n_fft, n_fft // 4, window=window, pad_mode="constant", return_complex=True
            )
            return spectrum.abs()


class AudioDiscriminator(nn.Module):
    """Several discriminators as one, with the losses of both sides.

    Losses are means over all sub-discriminators, so their weights need not change with the number of these.

    Args:
        parts: For example a `MultiPeriodDiscriminator` and a `MultiResolutionDiscriminator`.
        objective: "least_squares" (Mao et al. 2017, arXiv 1611.04076; HiFi-GAN) or "hinge" (Lim and Ye 2017, arXiv
            1705.02894; Vocos).

    Raises:
        ValueError: `objective` is neither.
    """

    def __init__(self, parts: Iterable[nn.Module], objective: Objective = "least_squares"):
        super().__init__()
        if objective not in ("least_squares", "hinge"):
            raise ValueError(f"objective is {objective!r}; choose 'least_squares' or 'hinge'")
        self.parts = nn.ModuleList(parts)
        self.objective = objective

    def forward(self, audio: Tensor) -> Judgement:
        """Args: audio: [batch, channels, samples]."""
        judgements = [part(audio) for part in self.parts]
        return Judgement(
            [logits for judged in judgements for logits in judged.logits],
            [features for judged in judgements for features in judged.features],
        )

    def discriminator_loss(self, real: Judgement, fake: Judgement) -> Tensor:
        """What the discriminators minimise: to give real audio high scores and generated audio low ones; scalar."""
        return _mean(
            self._real_loss(wanted.float()) + self._fake_loss(other.float())
            for wanted, other in zip(real.logits, fake.logits, strict=True)
        )

    def generator_loss(self, fake: Judgement) -> Tensor:
        """What the generator minimises: scores of its audio that are far from real; scalar."""
        if self.objective == "hinge":
            # The hinge is the discriminator's alone: the generator always has a gradient.
            return _mean(-logits.float().mean() for logits in fake.logits)
        return _mean(self._real_loss(logits.float()) for logits in fake.logits)

    def feature_loss(self, real: Judgement, fake: Judgement) -> Tensor:
        """Feature matching (HiFi-GAN, section 2.4): mean absolute differences, summed over layers; scalar.

        The gradient goes to `fake` alone.
        """
        return _mean(
            torch.stack(
                [
                    (one.float() - wanted.detach().float()).abs().mean()
                    for one, wanted in zip(layers, wanted_layers, strict=True)
                ]
            ).sum()
            for layers, wanted_layers in zip(fake.features, real.features, strict=True)
        )

    def _real_loss(self, logits: Tensor) -> Tensor:
        return (1 - logits).relu().mean() if self.objective == "hinge" else (1 - logits).square().mean()

    def _fake_loss(self, logits: Tensor) -> Tensor:
        return (1 + logits).relu().mean() if self.objective == "hinge" else logits.square().mean()


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
