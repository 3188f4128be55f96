"""The two language models of MIDI-VALLE: first codebook frame by frame, then the other codebooks, all frames at once.

After VALL-E (Wang et al. 2023, "Neural Codec Language Models are Zero-Shot Text to Speech Synthesizers", section 4.2);
what is text there are notes here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.models.midi_valle.layers import Position, Stack, TextPrenet, audio_prenet
from midisynth.models.midi_valle.losses import ArTargets, NarDraw, ar_targets
from midisynth.nn.cache import Cache, KeyValue


class CodeDecoder(nn.Module):
    """What both language models have: embedded notes as text, frames of codes, and a transformer over both.

    In VALL-E notes and frames are one sequence, each counted from position 0. In VALL-F frames attend to the embedded
    notes by cross-attention.

    Args:
        note_dim: Width of the embedded notes.
        dim: Width.
        heads: Attention heads.
        layers: Number of layers.
        dropout: Probability.
        text_dropout: Probability, of the notes with their positions.
        cross_attention: VALL-F.
        norm_first: See `layers.Layer`.
        adaptive: See `layers.Layer`.
        prenet: Put small networks between embeddings and positions.
        trained_positions: Train the scales of positions.
    """

    def __init__(
        self,
        note_dim: int,
        dim: int,
        heads: int,
        layers: int,
        dropout: float,
        text_dropout: float,
        cross_attention: bool,
        norm_first: bool,
        adaptive: bool,
        prenet: bool,
        trained_positions: bool,
    ):
        super().__init__()
        self.cross_attention = cross_attention
        self.text_embedding = nn.Linear(note_dim, dim)
        self.text_prenet = TextPrenet(dim) if prenet else None
        self.audio_prenet = audio_prenet(dim) if prenet else None
        self.text_position = Position(dim, text_dropout, trained_positions)
        self.audio_position = Position(dim, dropout, trained_positions)
        self.decoder = Stack(layers, dim, heads, dropout, norm_first, adaptive, cross_attention)

    def embed_text(self, notes: Tensor, mask: Tensor | None) -> Tensor:
        """Notes [batch, rows, ...] from `ValleNetwork.embed_notes` -> [batch, rows, dim]; `mask` is for the prenet."""
        width = self.text_embedding.in_features
        text = self.text_embedding(notes[..., :width].to(self.text_embedding.weight.dtype))
        if self.text_prenet is not None:
            text = self.text_prenet(text, mask)
        placed = notes.shape[-1] > width
        return self.text_position(
            text, notes[..., width] if placed else torch.arange(text.shape[1], device=text.device)
        )

    def place_audio(self, audio: Tensor, positions: Tensor | None = None) -> Tensor:
        """Frames [batch, frames, dim] -> the same, at positions [frames] or [batch, frames]; None: from 0."""
        if positions is None:
            positions = torch.arange(audio.shape[1], device=audio.device)
        return self.audio_position(audio if self.audio_prenet is None else self.audio_prenet(audio), positions)

    def attend(
        self,
        text: Tensor,
        audio: Tensor,
        text_mask: Tensor,
        audio_mask: Tensor,
        causal: bool = False,
        condition: Tensor | None = None,
        caches: Sequence[Cache] | None = None,
        memory: Sequence[KeyValue] | None = None,
        keep: int | None = None,
    ) -> Tensor:
        """Run the transformer over notes and frames.

        Args:
            text: [batch, rows, dim].
            audio: [batch, frames, dim].
            text_mask: [batch, rows] bool, False for padding.
            audio_mask: [batch, frames] bool, False for padding.
            causal: Frames see themselves and those before alone, and notes see no frame.
            condition: [1, dim] stage embedding of adaptive norms.
            caches: Empty ones, that are filled with all positions.
            memory: Projected `text` in VALL-F; None: it is projected here.
            keep: Frames at the end that are returned; None: all.

        Returns:
            [batch, frames or keep, dim].
        """
        frames = audio.shape[1]
        if self.cross_attention:
            mask = audio_mask[:, None, None]
            if causal:
                mask = mask & torch.ones(frames, frames, dtype=torch.bool, device=audio.device).tril()
            memory = self.decoder.project(text) if memory is None else memory
            return self.decoder(audio, mask, condition, memory, text_mask[:, None, None], caches, keep)
        rows = text.shape[1]
        mask = torch.cat([text_mask, audio_mask], dim=1)[:, None, None]
        if causal:
            seen = torch.ones(rows + frames, rows + frames, dtype=torch.bool, device=audio.device).tril()
            seen[:rows, :rows] = True
            mask = mask & seen
        hidden = self.decoder(torch.cat([text, audio], dim=1), mask, condition, caches=caches, keep=keep)
        return hidden[:, -frames:] if keep is None else hidden


class Autoregressive(CodeDecoder):
    """Predicts the first codebook of a frame from the notes and the frames before.

    Args:
        note_dim: Width of the embedded notes.
        dim: Width.
        heads: Attention heads.
        layers: Number of layers.
        dropout: Probability.
        bins: Codes of a codebook.
        prepend_bos: Put a start before the first frame, so that it is predicted as well.
        options: Others of `CodeDecoder`.
    """

    def __init__(
        self,
        note_dim: int,
        dim: int,
        heads: int,
        layers: int,
        dropout: float,
        bins: int,
        prepend_bos: bool,
        **options: bool,
    ):
        super().__init__(
            note_dim, dim, heads, layers, dropout, dropout, adaptive=False, trained_positions=True, **options
        )
        self.end = bins
        self.start = bins + 1 if prepend_bos else None
        self.audio_embedding = nn.Embedding(bins + 1 + prepend_bos, dim)
        self.predict_layer = nn.Linear(dim, bins + 1, bias=False)

    def targets(self, first: Tensor, mask: Tensor) -> ArTargets:
        """Inputs and targets of first codebooks [batch, frames], see `losses.ar_targets`."""
        return ar_targets(first, mask, self.end, self.start)

    def forward(self, text: Tensor, text_mask: Tensor, inputs: Tensor, mask: Tensor) -> Tensor:
        """Logits of what follows each input.

        Args:
            text: [batch, rows, dim] from `embed_text`.
            text_mask: [batch, rows] bool, False for padding.
            inputs: [batch, steps] int64.
            mask: [batch, steps] bool, False for padding.

        Returns:
            [batch, steps, bins + 1], of which the last is the end.
        """
        audio = self.place_audio(self.audio_embedding(inputs))
        return self.predict_layer(self.attend(text, audio, text_mask, mask, causal=True))


class NonAutoregressive(CodeDecoder):
    """Predicts one codebook of all frames from the notes, the codebooks before it, and all codebooks of a prefix.

    Args:
        note_dim: Width of the embedded notes.
        dim: Width.
        heads: Attention heads.
        layers: Number of layers.
        dropout: Probability.
        bins: Codes of a codebook.
        codebooks: Number of codebooks; at least 2.
        share_embedding: Predict a codebook by the table that embeds it for the stages after; the last has no such
            table to share, although it embeds prefixes.
        options: Others of `CodeDecoder`.
    """

    def __init__(
        self,
        note_dim: int,
        dim: int,
        heads: int,
        layers: int,
        dropout: float,
        bins: int,
        codebooks: int,
        share_embedding: bool,
        **options: bool,
    ):
        super().__init__(note_dim, dim, heads, layers, dropout, 0.0, adaptive=True, trained_positions=False, **options)
        self.ignored = bins
        # The end has a place in the table of the first codebook, although no frame that counts is one.
        self.audio_embeddings = nn.ModuleList(nn.Embedding(bins + (book == 0), dim) for book in range(codebooks))
        self.stage_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(codebooks - 1))
        # As published: the head of stage k shares the table k + 1.
        shared = codebooks - 2 if share_embedding else 0
        self.predict_layers = nn.ModuleDict(
            {str(head): nn.Linear(dim, bins, bias=False) for head in range(shared, codebooks - 1)}
        )

    def embed(self, codes: Tensor, codebooks: int) -> Tensor:
        """Sum of the embeddings of the first `codebooks` of codes [batch, frames, ...] -> [batch, frames, dim]."""
        return sum(self.audio_embeddings[book](codes[..., book]) for book in range(codebooks))

    def predict(self, hidden: Tensor, stage: int) -> Tensor:
        """States [batch, frames, dim] -> logits [batch, frames, bins] of codebook `stage`."""
        head = str(stage - 1)
        if head in self.predict_layers:
            return self.predict_layers[head](hidden)
        return F.linear(hidden, self.audio_embeddings[stage + 1].weight)

    def forward(
        self, text: Tensor, text_mask: Tensor, codes: Tensor, mask: Tensor, draw: NarDraw
    ) -> tuple[Tensor, Tensor]:
        """Logits and targets of a training step.

        Args:
            text: [batch, rows, dim] from `embed_text`.
            text_mask: [batch, rows] bool, False for padding.
            codes: [batch, frames, codebooks] int64.
            mask: [batch, frames] bool, False for padding.
            draw: Stage and prefix.

        Returns:
            [batch, predicted frames, bins], and [batch, predicted frames] int64 with `ignored` for those that do not
            count.
        """
        codebooks = len(self.audio_embeddings)
        targets = codes[..., draw.stage].masked_fill(~mask, self.ignored)
        audio = self.embed(codes, draw.stage)
        prefix = draw.prompts
        if draw.starts is not None:
            picked = draw.starts[:, None].to(codes.device) + torch.arange(draw.prefix_frames, device=codes.device)
            prefix = codes.take_along_dim(picked[..., None], dim=1)
            targets = targets.scatter(1, picked, self.ignored)
        if prefix is not None:
            audio = torch.cat([self.embed(prefix, codebooks), audio], dim=1)
            mask = F.pad(mask, (prefix.shape[1], 0), value=True)
        elif draw.prefix_frames:
            prefix = codes[:, : draw.prefix_frames]
            audio = torch.cat([self.embed(prefix, codebooks), audio[:, draw.prefix_frames :]], dim=1)
            targets = targets[:, draw.prefix_frames :]
        condition = self.stage_embeddings[draw.stage - 1].weight
        hidden = self.attend(text, self.place_audio(audio), text_mask, mask, condition=condition)
        return self.predict(hidden[:, -targets.shape[1] :], draw.stage), targets
