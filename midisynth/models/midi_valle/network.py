"""The network of MIDI-VALLE: tables of notes, two language models that share them, and their losses.

After "MIDI-VALLE: Improving Expressive Piano Performance Synthesis Through Neural Codec Language Modelling" (ISMIR
2025). Names of parameters are the published ones with dots for the first underscore (`ar_decoder` is `ar.decoder`
here), see `checkpoint.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from midisynth.models.midi_valle.codec import PER_BAR, SPECIALS
from midisynth.models.midi_valle.decoders import Autoregressive, NonAutoregressive
from midisynth.models.midi_valle.losses import Losses, NarDraw, PrefixMode, summed_cross_entropy, top10_share

#: Sizes of the published tables of note rows: pitch, velocity, duration, interval between onsets, position, bar.
VOCABULARIES = (92, 68, 1156, 772, 388, 20)
NOTE_DIMS = (32, 32, 256, 128, 64, 32)

TrainStage = Literal[0, 1, 2]


class ValleNetwork(nn.Module):
    """Tables of notes, and the two language models that share them.

    Args:
        dim: Width of the autoregressive decoder.
        heads: Attention heads.
        layers: Layers of each decoder.
        codebooks: Codebooks of the neural codec.
        bins: Codes of each codebook.
        vocabularies: Sizes of the tables of note rows.
        note_dims: Widths of these tables.
        architecture: "vall_e": notes and frames are one sequence; "vall_f": frames attend to notes.
        norm_first: Normalise what goes into a block, and not what comes out of it.
        prenet: Put small networks between embeddings and positions.
        prefix_mode: What the non-autoregressive decoder hears of the timbre: 0 nothing, 1 the first frames, 2 frames
            from anywhere in the segment, 4 frames of a neighbouring segment.
        share_embedding: Let heads share tables, see `NonAutoregressive`.
        nar_scale: Width, heads and layers of the non-autoregressive decoder in proportion to those of the other.
        prepend_bos: See `Autoregressive`.
        dropout: Probability.
        note_frames: Frames in a position of note rows: notes stand at the frames at which they begin. None: they are
            counted, as published.
        count_padding: Repeat the original in training: padding counts in the autoregressive loss, and prenets see it.

    Attributes:
        notes: The tables of note rows.
        ar: The autoregressive decoder.
        nar: The other one; None if there is one codebook.
    """

    def __init__(
        self,
        dim: int = 1024,
        heads: int = 16,
        layers: int = 12,
        codebooks: int = 4,
        bins: int = 2048,
        vocabularies: Sequence[int] = VOCABULARIES,
        note_dims: Sequence[int] = NOTE_DIMS,
        architecture: Literal["vall_e", "vall_f"] = "vall_e",
        norm_first: bool = True,
        prenet: bool = False,
        prefix_mode: PrefixMode = 1,
        share_embedding: bool = True,
        nar_scale: float = 1.0,
        prepend_bos: bool = False,
        dropout: float = 0.1,
        note_frames: float | None = None,
        count_padding: bool = False,
    ):
        super().__init__()
        self.note_frames = note_frames
        self.codebooks = codebooks
        self.prefix_mode = prefix_mode
        self.count_padding = count_padding
        self.notes = nn.ModuleList(
            nn.Embedding(size, width) for size, width in zip(vocabularies, note_dims, strict=True)
        )
        shared = {"cross_attention": architecture == "vall_f", "norm_first": norm_first, "prenet": prenet}
        self.ar = Autoregressive(sum(note_dims), dim, heads, layers, dropout, bins, prepend_bos, **shared)
        self.nar = None
        if codebooks > 1:
            sizes = (int(size * nar_scale) for size in (dim, heads, layers))
            self.nar = NonAutoregressive(sum(note_dims), *sizes, dropout, bins, codebooks, share_embedding, **shared)

    def embed_notes(self, rows: Tensor) -> Tensor:
        """Note rows [batch, rows, features] int64 -> [batch, rows, note_dim], or one more: the frame of the onset."""
        embedded = torch.cat([table(rows[..., feature]) for feature, table in enumerate(self.notes)], dim=-1)
        if self.note_frames is None:
            return embedded
        # The first and the last row, and padding, are no notes: they stand at the start.
        onset = ((rows[..., -1] - SPECIALS) * PER_BAR + rows[..., -2] - SPECIALS).clamp(min=0)
        # In a type that has room for positions, whatever that of the tables is.
        return torch.cat([embedded, (onset * self.note_frames)[..., None]], dim=-1)

    def stage_parameters(self, train_stage: TrainStage) -> list[nn.Parameter]:
        """What a training stage trains.

        The tables of notes belong to the first stage: the original left them random in both single stages.

        Args:
            train_stage: 0: both decoders; 1: the autoregressive one; 2: the other, whose tables must stay as they are.
        """
        chosen = {0: (self.notes, self.ar, self.nar), 1: (self.notes, self.ar), 2: (self.nar,)}[train_stage]
        parameters = [parameter for module in chosen if module is not None for parameter in module.parameters()]
        return [parameter for parameter in parameters if parameter.requires_grad]

    def forward(
        self,
        rows: Tensor,
        row_lengths: Tensor,
        codes: Tensor,
        code_lengths: Tensor,
        draw: NarDraw | None = None,
        train_stage: TrainStage = 0,
    ) -> Losses:
        """Losses of a batch.

        Args:
            rows: [batch, rows, features] int64 note rows, padded.
            row_lengths: [batch] int64.
            codes: [batch, frames, codebooks] int64, padded with anything.
            code_lengths: [batch] int64 (frames).
            draw: Stage and prefix, see `losses.draw_nar`; needed unless the autoregressive decoder is trained alone.
            train_stage: 0: both decoders; 1: the autoregressive one; 2: the other.
        """
        text_mask, mask = _lengths_mask(row_lengths, rows), _lengths_mask(code_lengths, codes)
        prenet_mask = None if self.count_padding else text_mask
        notes = self.embed_notes(rows)
        codes = codes.masked_fill(~mask[..., None], 0)
        frames = code_lengths.sum().to(notes.device)
        ar = nar = ar_top10 = nar_top10 = None
        if train_stage in (0, 1):
            step = self.ar.targets(codes[..., 0], mask)
            logits = self.ar(self.ar.embed_text(notes, prenet_mask), text_mask, step.inputs, step.mask)
            counted = step.targets if self.count_padding else step.targets.masked_fill(~step.mask, -100)
            ar = summed_cross_entropy(logits, counted, ignored=-100)
            ar_top10 = top10_share(logits, step.targets, ignored=self.ar.end)
        if train_stage in (0, 2) and self.nar is not None:
            text = self.nar.embed_text(notes, prenet_mask)
            logits, targets = self.nar(text, text_mask, codes, mask, draw)
            # A prefix from elsewhere takes no frame away from the loss.
            predicted = frames - draw.prefix_frames * len(codes)
            nar = summed_cross_entropy(logits, targets, self.nar.ignored) * (frames / predicted)
            nar_top10 = top10_share(logits, targets, self.nar.ignored)
        trained = [loss for loss in (ar, nar) if loss is not None]
        return Losses(sum(trained) / len(trained), frames, ar, nar, ar_top10, nar_top10)


def _lengths_mask(lengths: Tensor, padded: Tensor) -> Tensor:
    """[batch] lengths -> [batch, length of `padded`] bool, False for padding."""
    return torch.arange(padded.shape[1], device=padded.device) < lengths.to(padded.device)[:, None]
