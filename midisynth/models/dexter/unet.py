"""The second denoiser: a U-Net over an image of notes and features (Zhang et al. 2024; blocks after Ho et al. 2020).

The condition runs through layers of its own, in which neither the noisy parameters nor the step have a part: they are
computed once for all steps of a sampling run, half of the published work.

20 tensors of the published network reach no output. They exist with `compat` alone, for its checkpoints, and are frozen
there: distributed training waits for the gradients of all that is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.errors import UsageError
from midisynth.models.dexter.network import CHANNELS, Compat, Conditioned, Denoiser, both_branches
from midisynth.nn.positions import sinusoids_at

#: Heads of attention, and their width.
HEADS, HEAD_DIM = 4, 32

#: Masks are [rows, 1, notes, 1], 0 for padding; None if there is none.
Mask = Tensor | None


class UNetDenoiser(Denoiser):
    """U-Net that sees the notes' parameters, and a condition with a path of its own, as images [channels, notes, dim].

    Args:
        dim: Width of the image, and its channels at the first level; halved at every further level.
        multipliers: Channels of every level, in units of `dim`; the first is 1.
        score_features: As in `Denoiser`, like the rest.
        midlevel_features: See there.
        normalise_score: See there.
        null: See there.
        null_notes: See there.
        compat: See there; windows must then be a multiple of 2^(levels - 1) notes long.

    Raises:
        UsageError: The sizes do not fit each other.
    """

    def __init__(
        self,
        dim: int = 48,
        multipliers: Sequence[int] = (1, 2, 4),
        score_features: int = 4,
        midlevel_features: int = 7,
        normalise_score: bool = False,
        null: float | Literal["learned"] = -1.0,
        null_notes: int = 1,
        compat: Compat | None = None,
    ):
        super().__init__(score_features, midlevel_features, normalise_score, null, null_notes, compat)
        levels = len(multipliers)
        self.granularity = 2 ** (levels - 1)
        if multipliers[0] != 1 or dim % self.granularity:
            sizes = f"got {list(multipliers)} and {dim}"
            raise UsageError(f"multipliers must start with 1, and dim be a multiple of {self.granularity}: {sizes}")
        step_dim = 4 * dim
        widths = [dim * multiplier for multiplier in multipliers]
        self.init_conv = nn.Conv2d(1, dim, 7, padding=3)
        self.init_fc = nn.Linear(CHANNELS, dim)
        self.condition_init_conv = nn.Conv2d(1, dim, 7, padding=3)
        self.condition_init_fc = nn.Linear(self.conditions, dim)
        self.time_mlp = nn.Sequential(
            Sinusoids(dim), nn.Linear(dim, step_dim), nn.GELU(), nn.Linear(step_dim, step_dim)
        )
        self.downs = nn.ModuleList(
            DownLevel(inputs, outputs, step_dim, last=index == levels - 1)
            for index, (inputs, outputs) in enumerate(zip([dim, *widths[:-1]], widths, strict=True))
        )
        self.mid_block1 = Block(widths[-1], widths[-1], step_dim)
        self.mid_attn = Residual(PreNorm(widths[-1], ImageAttention(widths[-1])))
        self.mid_block2 = Block(widths[-1], widths[-1], step_dim)
        # What follows the last block that hears the condition is of no use to it.
        self.ups = nn.ModuleList(
            UpLevel(widths[index], widths[index - 1], step_dim, dead_end=index == 1 and not compat)
            for index in range(levels - 1, 0, -1)
        )
        self.final_block = Block(dim, dim, None, hears=bool(compat), passes_on=bool(compat))
        self.final_conv = nn.Conv2d(dim, 1, 1)
        self.final_fc = nn.Linear(dim, CHANNELS)
        if compat:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(not name.startswith(self._unused()))

    def _unused(self) -> tuple[str, ...]:
        """Beginnings of the names of published tensors that reach no output."""
        last = f"ups.{len(self.ups) - 1}."
        return f"{last}1.cond_net.", f"{last}4.", "final_block.cond_"

    def denoise(self, x: Tensor, t: Tensor, conditioned: Conditioned) -> Tensor:
        """See `Denoiser.denoise`."""
        notes = x.shape[1]
        x, t = both_branches(x, t, conditioned.rows)
        x, masks = self._pad(x, conditioned.mask)
        step = self.time_mlp(t.to(x.dtype))
        maps = iter(conditioned.maps)
        x = self.init_fc(self.init_conv(masked(x[:, None], masks[0])))
        skips = []
        for level, mask in zip(self.downs, masks, strict=True):
            x = level[0](x, next(maps), step, mask)
            x = level[1](x, next(maps), step, mask)
            x = level[2](x, mask)
            skips.append(x)
            x = level[3](masked(x, mask))
        x = self.mid_block1(x, next(maps), step, masks[-1])
        x = self.mid_attn(x, masks[-1])
        x = self.mid_block2(x, next(maps), step, masks[-1])
        for level, mask in zip(self.ups, masks[:0:-1], strict=True):
            x = torch.cat([x, skips.pop(), next(maps)], dim=1)
            x = level[0](x, next(maps), step, mask)
            x = level[1](x, next(maps), step, mask)
            x = level[3](masked(level[2](x, mask), mask))
        x = self.final_conv(self.final_block(x, None, None, masks[0]))
        return self.final_fc(x)[:, 0, :notes]

    def _maps(self, rows: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
        rows, masks = self._pad(rows, mask)
        condition = self.condition_init_fc(self.condition_init_conv(masked(rows[:, None], masks[0])))
        skips = []
        for level, mask in zip(self.downs, masks, strict=True):
            for block in (level[0], level[1]):
                heard, condition = block.condition(condition, mask)
                yield heard
            skips.append(condition)
            condition = level[4](masked(condition, mask))
        for block in (self.mid_block1, self.mid_block2):
            heard, condition = block.condition(condition, masks[-1])
            yield heard
        for level, mask in zip(self.ups, masks[:0:-1], strict=True):
            yield skips.pop()
            heard, condition = level[0].condition(condition, mask)
            yield heard
            heard = level[1].hear(condition, mask)
            yield heard
            if level is not self.ups[-1]:
                condition = level[4](masked(level[1].cond_net(heard, mask), mask))

    def _pad(self, rows: Tensor, mask: Tensor | None) -> tuple[Tensor, list[Mask]]:
        """Fill up [rows, notes, features] until the notes can be halved at every level; that, and all levels' masks."""
        notes = rows.shape[1]
        missing = -notes % self.granularity
        if missing and self.compat:
            raise UsageError(f"windows of the published U-Net are a multiple of {self.granularity} notes, not {notes}")
        if not missing and mask is None:
            return rows, [None] * len(self.downs)
        if mask is None:
            mask = rows.new_ones(1, notes, dtype=torch.bool)
        masks = [F.pad(mask, (0, missing)).to(rows.dtype)[:, None, :, None]]
        for _ in self.downs[1:]:
            masks.append(F.max_pool2d(masks[-1], (2, 1)))
        return F.pad(rows, (0, 0, 0, missing)), masks


def masked(x: Tensor, mask: Mask) -> Tensor:
    """Zero the padding of an image."""
    return x if mask is None else x * mask


class Sinusoids(nn.Module):
    """Diffusion steps [batch] -> [batch, dim] sinusoids."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        return sinusoids_at(t, self.dim)


class MaskedGroupNorm(nn.GroupNorm):
    """Normalisation over everything but padding, which becomes 0."""

    def __init__(self, channels: int):
        super().__init__(1, channels)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """Image [rows, channels, notes, width] and its mask -> normalised image."""
        if mask is None:
            return super().forward(x)
        count = mask.sum(dim=(1, 2, 3), keepdim=True) * x.shape[1] * x.shape[3]
        mean = (x * mask).sum(dim=(1, 2, 3), keepdim=True) / count
        centred = (x - mean) * mask
        variance = centred.square().sum(dim=(1, 2, 3), keepdim=True) / count
        scaled = centred * torch.rsqrt(variance + self.eps)
        return (scaled * self.weight[:, None, None] + self.bias[:, None, None]) * mask


class BlockNet(nn.ModuleList):
    """Norm, convolution, GELU, norm, convolution."""

    def __init__(self, inputs: int, outputs: int):
        hidden = 2 * outputs
        super().__init__(
            [
                MaskedGroupNorm(inputs),
                nn.Conv2d(inputs, hidden, 3, padding=1),
                nn.GELU(),
                MaskedGroupNorm(hidden),
                nn.Conv2d(hidden, outputs, 3, padding=1),
            ]
        )

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """[rows, inputs, notes, width] -> [rows, outputs, notes, width]."""
        norm, widen, activation, wide_norm, narrow = self
        return narrow(wide_norm(activation(widen(norm(x, mask))), mask))


class Block(nn.Module):
    """A ConvNeXt block (Liu et al. 2022) with a second path for the condition.

    Args:
        inputs: Channels of its input.
        outputs: Channels of its output.
        step_dim: Width of the step embedding; None for a block that hears neither step nor condition.
        condition_inputs: Channels of the condition, if they are others than those of the input.
        hears: Whether the condition's first layer exists.
        passes_on: Whether the rest of its layers, for the block after it, exist.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        step_dim: int | None,
        condition_inputs: int | None = None,
        hears: bool = True,
        passes_on: bool = True,
    ):
        super().__init__()
        if step_dim is not None:
            self.mlp = nn.Sequential(nn.GELU(), nn.Linear(step_dim, inputs))
        self.ds_conv = nn.Conv2d(inputs, inputs, 7, padding=3, groups=inputs)
        if hears:
            channels, groups = (inputs, inputs) if condition_inputs is None else (condition_inputs, 1)
            self.cond_ds_conv = nn.Conv2d(channels, inputs, 7, padding=3, groups=groups)
        self.net = BlockNet(inputs, outputs)
        if passes_on:
            self.cond_net = BlockNet(inputs, outputs)
        self.res_conv = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def hear(self, condition: Tensor, mask: Mask) -> Tensor:
        """Condition [rows, condition inputs, notes, width] -> what this block adds to its own input."""
        return self.cond_ds_conv(masked(condition, mask))

    def condition(self, condition: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """What this block adds to its own input, and the condition of the next block."""
        heard = self.hear(condition, mask)
        return heard, self.cond_net(heard, mask)

    def forward(self, x: Tensor, heard: Tensor | None, step: Tensor | None, mask: Mask) -> Tensor:
        """One step through the network.

        Args:
            x: [rows, inputs, notes, width].
            heard: From `hear`; None for a block that hears nothing, like the next.
            step: [rows or 1, step_dim].
            mask: Of this level.

        Returns:
            [rows, outputs, notes, width].
        """
        h = self.ds_conv(masked(x, mask))
        if heard is not None:
            h = h + heard + self.mlp(step)[:, :, None, None]
        return self.net(h, mask) + self.res_conv(x)


class DownLevel(nn.ModuleList):
    """Two blocks, attention, and halving of the image and of the condition.

    Args:
        inputs: Channels of its input.
        outputs: Channels of its output.
        step_dim: Width of the step embedding.
        last: There is nothing below, so that nothing is halved.
    """

    def __init__(self, inputs: int, outputs: int, step_dim: int, last: bool):
        super().__init__(
            [Block(inputs, outputs, step_dim), Block(outputs, outputs, step_dim), linear_attention(outputs)]
        )
        self.extend(nn.Identity() if last else nn.Conv2d(outputs, outputs, 4, 2, 1) for _ in range(2))


class UpLevel(nn.ModuleList):
    """Two blocks, attention, and doubling of the image and of the condition.

    Args:
        inputs: Channels of its input, and of each of the two images that come from the way down.
        outputs: Channels of its output.
        step_dim: Width of the step embedding.
        dead_end: The condition goes no further.
    """

    def __init__(self, inputs: int, outputs: int, step_dim: int, dead_end: bool):
        super().__init__(
            [
                Block(3 * inputs, outputs, step_dim, condition_inputs=inputs),
                Block(outputs, outputs, step_dim, passes_on=not dead_end),
                linear_attention(outputs),
            ]
        )
        self.extend(nn.ConvTranspose2d(outputs, outputs, 4, 2, 1) for _ in range(1 if dead_end else 2))


class Residual(nn.Module):
    """Adds to an image what is made of it."""

    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        return x + self.fn(x, mask)


class PreNorm(nn.Module):
    """Normalises an image before something is made of it."""

    def __init__(self, channels: int, fn: nn.Module):
        super().__init__()
        self.fn = fn
        self.norm = MaskedGroupNorm(channels)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        return self.fn(self.norm(x, mask), mask)


class ImageAttention(nn.Module):
    """Attention between all positions of an image, in time that is quadratic in their number.

    Args:
        channels: Of the image.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.to_qkv = nn.Conv2d(channels, 3 * HEADS * HEAD_DIM, 1, bias=False)
        self.to_out = nn.Conv2d(HEADS * HEAD_DIM, channels, 1)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """[rows, channels, notes, width] -> the same."""
        # [rows, heads, positions, head dim]
        query, key, value = self._project(x).transpose(-1, -2).chunk(3, dim=1)
        seen = None if mask is None else self._positions(x, mask) > 0
        mixed = F.scaled_dot_product_attention(query, key, value, seen)
        return self.to_out(mixed.transpose(-1, -2).reshape(len(x), -1, *x.shape[2:]))

    def _project(self, x: Tensor) -> Tensor:
        """Queries, keys and values below each other, [rows, 3 * heads, head dim, positions]."""
        return self.to_qkv(x).reshape(len(x), 3 * HEADS, HEAD_DIM, -1)

    @staticmethod
    def _positions(x: Tensor, mask: Tensor) -> Tensor:
        """A level's mask -> [rows or 1, 1, 1, positions]."""
        return mask.expand(-1, -1, -1, x.shape[3]).reshape(len(mask), 1, 1, -1)


class LinearAttention(ImageAttention):
    """Attention in time that is linear in the number of positions (Shen et al. 2021).

    Args:
        channels: Of the image.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.to_out = nn.ModuleList([self.to_out, MaskedGroupNorm(channels)])

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """[rows, channels, notes, width] -> the same."""
        query, key, value = self._project(x).chunk(3, dim=1)
        if mask is not None:
            key = key.masked_fill(self._positions(x, mask) == 0, -torch.inf)
        context = key.softmax(dim=-1) @ value.transpose(-1, -2)
        mixed = context.transpose(-1, -2) @ (query.softmax(dim=-2) * HEAD_DIM**-0.5)
        project, norm = self.to_out
        return norm(project(mixed.reshape(len(x), -1, *x.shape[2:])), mask)


def linear_attention(channels: int) -> Residual:
    """Linear attention with what is around it."""
    return Residual(PreNorm(channels, LinearAttention(channels)))
