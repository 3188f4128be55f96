"""The denoiser of songs: diffusers' StableAudioDiT over the latents of a song's phrases, and its conditions.

"PhraseVAE and PhraseLDM" (Ou and Wang 2025, arXiv 2512.11348, section 4). The layers are those of diffusers; what is
between them is computed here, for two reasons. First, the time features: their angles reach thousands of radians, and
diffusers multiplies them out in whatever precision the network runs in. In 16 bits neighbouring noise levels become
one, and training fails. Second, the residual stream is as precise as what enters it: with float32 projections at both
ends autocast still runs every large product in 16 bits.

Names in the state dict are the published ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from midisynth.models.phrase_ldm.conditions import LayoutEncoder, LengthEncoder, RowEncoder, SectionEncoder


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser knows of the songs of a batch; serves all noise levels.

    Attributes:
        token: [batch, 1, width] first row of the sequence, to which the time is added.
        memory: [batch, items, cross_dim] projected memory of the cross-attention; None skips it.
        mask: [batch, items] bool, or float that is added to the logits as published; None if there is no memory.
        rows: [batch, rows, width] what is added to the rows; None adds nothing.
    """

    token: Tensor
    memory: Tensor | None = None
    mask: Tensor | None = None
    rows: Tensor | None = None


class PhraseDenoiser(nn.Module):
    """Predicts the noise in the latents of a song. The defaults are the published sizes, 29,513,792 parameters.

    Args:
        latent: Size of a latent.
        rows: Longest song (latents).
        layers: Transformer blocks.
        heads: Attention heads.
        head_dim: Width of one head; the network is `heads * head_dim` wide.
        memory_heads: Heads of keys and values of the cross-attention.
        time_dim: Number of time features.
        token_dim: Width of what is known of a song as a whole.
        memory_dim: Width of what is known of its sections or slots.
        cross_dim: Width of the same after projection; None: the same.
        length: Condition on the number of bars.
        length_bucket: Bars that are told as one.
        sections: Condition on a plan of sections: number of types and of lengths; None: do not.
        programs: Condition on the instrument of every slot: how many there are; None: do not.
        slots: Rows of a bar, for every row to be told its slot and, where they are conditions, the end of the song,
            its section and its instrument; None: rows know nothing of themselves, as published.
        dropout: Probability in the encoders of sections and slots.
        published: Encode and mask sections as the original does, and instruments for the cross-attention.
    """

    def __init__(
        self,
        latent: int = 64,
        rows: int = 512,
        layers: int = 6,
        heads: int = 16,
        head_dim: int = 32,
        memory_heads: int = 8,
        time_dim: int = 128,
        token_dim: int = 128,
        memory_dim: int = 128,
        cross_dim: int | None = None,
        length: bool = False,
        length_bucket: int = 10,
        sections: tuple[int, int] | None = None,
        programs: int | None = None,
        slots: int | None = None,
        dropout: float = 0.1,
        published: bool = False,
    ):
        super().__init__()
        # diffusers imports transformers, that torchaudio, and that may only be there because this door opens it.
        import midisynth.audio.backend  # noqa: F401, I001

        # Importing diffusers takes seconds; only who builds the network pays for it.
        from diffusers.models.embeddings import get_1d_rotary_pos_embed
        from diffusers.models.transformers.stable_audio_transformer import StableAudioDiTModel

        self.ldm = StableAudioDiTModel(
            sample_size=rows,
            in_channels=latent,
            out_channels=latent,
            num_layers=layers,
            attention_head_dim=head_dim,
            num_attention_heads=heads,
            num_key_value_attention_heads=memory_heads,
            cross_attention_dim=memory_dim if cross_dim is None else cross_dim,
            time_proj_dim=time_dim,
            global_states_input_dim=token_dim,
            cross_attention_input_dim=memory_dim,
        )
        self.rows, self.token_dim, self.published = rows, token_dim, published
        if length:
            self.length_encoder = LengthEncoder(token_dim, length_bucket)
        if sections is not None:
            self.sec_encoder = SectionEncoder(memory_dim, *sections, dropout, published)
        if programs is not None and published:
            self.layout_encoder = LayoutEncoder(memory_dim, programs, dropout)
        self.row_encoder = None
        if slots is not None:
            longest = -(-rows // slots) if length else 0
            self.row_encoder = RowEncoder(heads * head_dim, slots, *(sections or (0, 0)), longest, programs or 0)
        self.has_length, self.has_sections, self.has_layout = length, sections is not None, programs is not None
        for block in self.ldm.transformer_blocks:
            block.attn2.set_processor(_CrossAttention(block.attn2.processor))
            if not self.has_sections and not (self.has_layout and published):
                # Skipped layers have no gradient, which DDP would wait for.
                nn.ModuleList([self.ldm.cross_attention_proj, block.norm2, block.attn2]).requires_grad_(False)
        # Half of the channels of a head are rotated; the token is at position 0.
        cos, sin = get_1d_rotary_pos_embed(head_dim // 2, rows + 1, use_real=True, repeat_interleave_real=False)
        self.register_buffer("rotary_cos", cos, persistent=False)
        self.register_buffer("rotary_sin", sin, persistent=False)

    def time_features(self, t: Tensor) -> Tensor:
        """Steps [batch], integers -> [batch, time_dim] float32: cosines, then sines, of 2 pi t w.

        Whole turns are taken off in float64: in float32 an angle of 2 pi 999 |w| is off by up to 2e-3.
        """
        turns = t.double()[:, None] * self.ldm.time_proj.weight.double()
        angles = 2 * math.pi * (turns - turns.round())
        return torch.cat([angles.cos(), angles.sin()], dim=-1).float()

    def condition(
        self,
        batch: int,
        bars: Tensor | None = None,
        sections: tuple[Tensor, Tensor] | None = None,
        layout: Tensor | None = None,
        keep: Tensor | None = None,
        unconditional: bool = False,
    ) -> Conditioning:
        """Work out everything that does not depend on the noise level.

        Args:
            batch: Number of songs.
            bars: [batch] lengths, 0 where any will do; None: everywhere.
            sections: Ids of types and of lengths [batch, sections] each, 0 after the last; None: any. Rows of zeros
                are songs of which nothing is known.
            layout: [batch, rows] ids of slots, see `LayoutIds`; None: any.
            keep: [batch] bool, False for rows whose condition is dropped; None keeps all. Dropped rows are computed
                nevertheless, so that every parameter has a gradient on every process.
            unconditional: Append as many rows without condition, for guidance.
        """
        weight = self.ldm.proj_in.weight
        with torch.autocast(weight.device.type, enabled=False):
            known = weight.new_zeros(batch, self.token_dim)
            if self.has_length and bars is not None:
                known = self.length_encoder(bars)
            if keep is not None:
                known = known * keep[:, None]
            if unconditional:
                known = torch.cat([known, torch.zeros_like(known)])
            token = self.ldm.global_proj(known)[:, None]
            rows = self._rows(batch, bars, sections, layout, keep, unconditional)
        encoded: list[tuple[Tensor, Tensor]] = []
        if self.has_sections and sections is not None:
            encoded.append(self.sec_encoder(*sections))
        if self.has_layout and self.published and layout is not None:
            encoded.append(self.layout_encoder(layout))
        if not encoded:
            return Conditioning(token, rows=rows)
        memory, mask = (torch.cat(parts, dim=1) for parts in zip(*encoded, strict=True))
        return Conditioning(token, *self._project(memory, mask, keep, unconditional), rows)

    def _rows(
        self,
        batch: int,
        bars: Tensor | None,
        sections: tuple[Tensor, Tensor] | None,
        layout: Tensor | None,
        keep: Tensor | None,
        unconditional: bool,
    ) -> Tensor | None:
        """What is added to the rows; arguments as for `condition`."""
        if self.row_encoder is None:
            return None
        always = self.row_encoder.always(self.rows).expand(batch, -1, -1)
        told = torch.zeros_like(always)
        if self.has_length and bars is not None:
            told = told + self.row_encoder.length(bars, self.rows)
        if self.has_sections and sections is not None:
            told = told + self.row_encoder.sections(*sections, self.rows)
        if self.has_layout and layout is not None:
            told = told + self.row_encoder.layout(layout)
        if keep is not None:
            told = told * keep[:, None, None]
        return torch.cat([always + told, always]) if unconditional else always + told

    def _project(self, memory: Tensor, mask: Tensor, keep: Tensor | None, unconditional: bool) -> tuple[Tensor, Tensor]:
        """Memory [batch, items, memory_dim] and its mask, as the blocks take them."""
        memory = self.ldm.cross_attention_proj(memory)
        kept = mask.any(dim=1, keepdim=True) if keep is None else mask.any(dim=1, keepdim=True) & keep[:, None]
        # Nothing behind the projection has a bias: attention to zeros contributes nothing, as attention to nothing
        # should.
        memory = memory * kept[..., None]
        mask = mask | ~kept
        if unconditional:
            memory, mask = torch.cat([memory, torch.zeros_like(memory)]), torch.cat([mask, torch.ones_like(mask)])
        # The original adds 0 or 1 to the logits: padding is seen with a weight of 1/e.
        return memory, mask.to(memory.dtype) if self.published else mask

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the noise.

        Args:
            x: [batch, rows, latent] noisy latents in units of their standard deviation.
            t: [batch] steps of the schedule, integers, or [1] if all rows are at one of them.
            conditioning: From `condition`.

        Returns:
            [batch, rows, latent] float32.
        """
        dit, length = self.ldm, x.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            x = dit.proj_in(x + _channels(dit.preprocess_conv, x))
            if conditioning.rows is not None:
                x = x + conditioning.rows[:, :length]
            token = conditioning.token + dit.timestep_proj(self.time_features(t))[:, None]
            x = torch.cat([token, x], dim=1)
        rotary = self.rotary_cos[: length + 1], self.rotary_sin[: length + 1]
        # No memory is one of no items, which `_CrossAttention` skips.
        memory = x.new_zeros(len(x), 0, 1) if conditioning.memory is None else conditioning.memory
        for block in dit.transformer_blocks:
            x = block(
                x, encoder_hidden_states=memory, encoder_attention_mask=conditioning.mask, rotary_embedding=rotary
            )
        with torch.autocast(x.device.type, enabled=False):
            x = dit.proj_out(x[:, 1:].float())
            return x + _channels(dit.postprocess_conv, x)


def _channels(convolution: nn.Conv1d, x: Tensor) -> Tensor:
    """Apply a convolution to [batch, rows, channels]."""
    return convolution(x.transpose(1, 2)).transpose(1, 2)


class _CrossAttention:
    """Processor of diffusers' attention that skips what would attend to nothing.

    Args:
        stock: The processor that does the work.
    """

    def __init__(self, stock: Any):
        self.stock = stock

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        if encoder_hidden_states.shape[1] == 0:
            return hidden_states.new_zeros(())
        return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask)
