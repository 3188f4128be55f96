"""What a song can be asked for: a number of bars, a plan of sections, an instrument for every slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from midisynth.errors import UsageError
from midisynth.models.phrase_ldm.sections import MAX_SECTION_BARS, MAX_SECTIONS, SECTION_TYPES, Section
from midisynth.nn.positions import sinusoids_at


@dataclass(frozen=True)
class SectionIds:
    """How sections are numbered; 0 stands for none.

    The published model was trained with the order of a Python set, which differs from process to process and was not
    stored: for its weights the order has to be supplied.

    Attributes:
        types: Letters in the order of their ids, from 1.
        lengths: Lengths (bars) in the order of their ids, from 1.
    """

    types: tuple[str, ...] = SECTION_TYPES
    lengths: tuple[int, ...] = tuple(range(1, MAX_SECTION_BARS + 1))

    def knows(self, plan: Sequence[Section]) -> bool:
        """Whether `encode` takes a plan."""
        return len(plan) <= MAX_SECTIONS and all(s.kind in self.types and s.bars in self.lengths for s in plan)

    def encode(self, plans: Sequence[Sequence[Section]]) -> tuple[Tensor, Tensor]:
        """Ids of types and of lengths, [plans, MAX_SECTIONS] each.

        Raises:
            UsageError: A plan has too many sections, or one that has no id.
        """
        types, lengths = torch.zeros(2, len(plans), MAX_SECTIONS, dtype=torch.long)
        for row, plan in enumerate(plans):
            if len(plan) > MAX_SECTIONS:
                raise UsageError(f"section plan: {len(plan)} sections; at most {MAX_SECTIONS} are known: join some")
            for column, section in enumerate(plan):
                if section.kind not in self.types:
                    raise UsageError(f"section plan: no kind {section.kind!r}; known: {' '.join(sorted(self.types))}")
                if section.bars not in self.lengths:
                    raise UsageError(f"section plan: {section.bars} bars; 1 to {max(self.lengths)} are known: split it")
                types[row, column] = self.types.index(section.kind) + 1
                lengths[row, column] = self.lengths.index(section.bars) + 1
        return types, lengths


class LengthEncoder(nn.Module):
    """Number of bars -> vector.

    Args:
        dim: Width.
        bucket: Bars that are told as one (10 as published).
        rows: Size of the table; longer songs share the last row.
    """

    def __init__(self, dim: int, bucket: int = 10, rows: int = 128):
        super().__init__()
        self.bucket = bucket
        self.length_embedding = nn.Embedding(rows, dim)

    def forward(self, bars: Tensor) -> Tensor:
        """[batch] -> [batch, dim]; zeros where the length is 0: any."""
        bucket = (bars // self.bucket).clamp(max=self.length_embedding.num_embeddings - 1)
        return self.length_embedding(bucket) * (bars > 0)[:, None]


def _encoder(dim: int, dropout: float) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(dim, 8, 4 * dim, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


class SectionEncoder(nn.Module):
    """Plan of sections -> memory for cross-attention.

    Args:
        dim: Width, a multiple of 8.
        types: Number of section types.
        lengths: Number of lengths.
        dropout: Probability.
        published: Without positions, so that the order of the sections cannot be seen, and with padding visible.
    """

    def __init__(self, dim: int, types: int, lengths: int, dropout: float = 0.1, published: bool = False):
        super().__init__()
        self.type_embed = nn.Embedding(types + 1, dim // 2)
        self.len_embed = nn.Embedding(lengths + 1, dim // 2)
        self.sec_encoder = _encoder(dim, dropout)
        self.published = published

    def forward(self, types: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode plans.

        Args:
            types: [batch, sections] ids, 0 after the last section.
            lengths: [batch, sections] ids; without `published` they are bars.

        Returns:
            Memory [batch, sections, dim], and its mask [batch, sections], True where there is a section.
        """
        x = torch.cat([self.type_embed(types), self.len_embed(lengths)], dim=-1)
        mask = types != 0
        if self.published:
            return self.sec_encoder(x), mask
        starts = lengths.cumsum(dim=1) - lengths
        x = x + sinusoids_at(starts.flatten(), x.shape[-1]).view_as(x)
        # Without any section attention would have no key: what it then sees is dropped by who asked.
        seen = mask | ~mask.any(dim=1, keepdim=True)
        return self.sec_encoder(x, src_key_padding_mask=~seen), mask


class LayoutEncoder(nn.Module):
    """Instrument of every slot -> memory for cross-attention, as the original's switch `inst_conf_condition` has it.

    It knows no positions, and attention within it sees padding. `RowEncoder` tells slots more plainly.

    Args:
        dim: Width, a multiple of 8.
        programs: Number of programs.
        dropout: Probability.
    """

    def __init__(self, dim: int, programs: int, dropout: float = 0.1):
        super().__init__()
        self.embed = nn.Embedding(programs + 2, dim)
        self.encoder = _encoder(dim, dropout)

    def forward(self, layout: Tensor) -> tuple[Tensor, Tensor]:
        """Ids of slots [batch, rows], see `LayoutIds` -> memory [batch, rows, dim] and its mask [batch, rows]."""
        padding = self.embed.num_embeddings - 1
        # Slots without instrument are left out, padding follows the last of the others.
        order = (layout >= padding).long().argsort(dim=1, stable=True)
        layout = layout.gather(1, order).clamp(max=padding)
        return self.encoder(self.embed(layout)), layout != padding


class RowEncoder(nn.Module):
    """What is known of every row of a song, to be added to it (not in the original).

    Cross-attention has to learn which bars a section covers from rotations of queries and keys alone. Here every row is
    told: its slot, how far from the end of the song it is, of its section the kind and how far from both ends, and the
    instrument.

    Args:
        dim: Width.
        slots: Rows of a bar.
        types: Number of section types; 0: sections are not known.
        lengths: Number of lengths.
        bars: Longest song; 0: the length of a song is not known.
        programs: Number of programs; 0: instruments are not known.
    """

    def __init__(self, dim: int, slots: int, types: int, lengths: int, bars: int, programs: int = 0):
        super().__init__()
        self.slots, self.bars = slots, bars
        self.slot = nn.Embedding(slots, dim)
        if bars:
            self.remaining = nn.Embedding(bars + 1, dim)
        if types:
            self.kind = nn.Embedding(types + 1, dim)
            self.since = nn.Embedding(lengths + 1, dim)
            self.until = nn.Embedding(lengths + 1, dim)
        if programs:
            self.program = nn.Embedding(programs + 3, dim)
        for embedding in self.children():
            nn.init.normal_(embedding.weight, std=0.2)

    def always(self, rows: int) -> Tensor:
        """What needs no condition: [rows, dim]."""
        return self.slot(torch.arange(rows, device=self.slot.weight.device) % self.slots)

    def length(self, bars: Tensor, rows: int) -> Tensor:
        """Lengths [batch] -> [batch, rows, dim]; after the end no bar remains. Zeros where the length is 0: any."""
        bar = torch.arange(rows, device=bars.device) // self.slots
        return self.remaining((bars[:, None] - bar).clamp(0, self.bars)) * (bars > 0)[:, None, None]

    def sections(self, types: Tensor, lengths: Tensor, rows: int) -> Tensor:
        """Plans, ids of types and bars [batch, sections] each -> [batch, rows, dim]; after the last section zeros."""
        bar = torch.arange(rows, device=types.device) // self.slots
        ends = lengths.cumsum(dim=1)
        # How many sections are over. Padding has no bars: it is over when the last section is.
        index = (bar[None, :, None] >= ends[:, None]).sum(dim=2)
        inside = index < types.shape[1]
        index = index.clamp(max=types.shape[1] - 1)
        end, bars, kind = (values.gather(1, index) for values in (ends, lengths, types))
        until = (end - bar).clamp(min=0)
        told = self.kind(kind) + self.until(until) + self.since((bars - until).clamp(min=0))
        return told * inside[..., None]

    def layout(self, layout: Tensor) -> Tensor:
        """Ids of slots [batch, rows], see `LayoutIds` -> [batch, rows, dim]; zeros where nothing is known."""
        return self.program(layout) * (layout != self.program.num_embeddings - 2)[..., None]
