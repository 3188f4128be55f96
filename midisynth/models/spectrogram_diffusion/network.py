"""The denoiser: note tokens and note tables in, estimate for a noisy mel spectrogram out.

Choices, against "Multi-instrument Music Synthesis with Spectrogram Diffusion" (Hawthorne et al. 2022, section 3):

- LayerNorm and biases as in the PyTorch re-implementation whose weights `checkpoint.py` reads;
- keys and values of the cross-attention are projected once per segment, not once per step;
- rows without condition skip cross-attention, which equals attending to zeros because nothing there has a bias;
- two more sources of conditioning, off by default: a note roll, and a prior made of note spectra. They tell every
  frame what it should contain, which tokens alone teach only after weeks of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.nn.attention import KeyValue
from midisynth.nn.conditioning import TimeEmbedding
from midisynth.nn.note_rolls import NoteRollEncoder, TemplatePrior
from midisynth.nn.positions import shuffled_sinusoids
from midisynth.nn.transformer import Encoder, FiLMDecoder


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser knows of the notes; serves all diffusion times of one batch of segments.

    Attributes:
        memory: Projected token memory of each decoder layer for the first rows of the batch; None without tokens.
        memory_mask: [memory rows, 1, 1, tokens] bool; None if every position counts.
        roll: [batch, frames, dim] note-roll features; None without a note roll.
        prior: [batch, frames, mels] scaled template prior; None without one.
    """

    memory: Sequence[KeyValue] | None
    memory_mask: Tensor | None
    roll: Tensor | None
    prior: Tensor | None


class Denoiser(nn.Module):
    """Token encoder and FiLM decoder over mel frames.

    Args:
        mels: Mel bins.
        frames: Longest segment (frames).
        hop_sec: Distance of frames (seconds).
        dim: Width.
        hidden_dim: Width inside the feed-forwards.
        heads: Attention heads.
        head_dim: Width of one head.
        layers: Layers of the encoder, and of the decoder.
        dropout: Probability, everywhere.
        vocab_size: Number of token ids; None for a denoiser without tokens.
        max_tokens: Longest token sequence.
        note_roll: Condition on a note roll.
        prior_range: Log-mel values that the template prior maps to -1 and 1; None for no prior.
    """

    def __init__(
        self,
        mels: int,
        frames: int,
        hop_sec: float,
        dim: int,
        hidden_dim: int,
        heads: int,
        head_dim: int,
        layers: int,
        dropout: float,
        vocab_size: int | None,
        max_tokens: int,
        note_roll: bool,
        prior_range: tuple[float, float] | None,
    ):
        super().__init__()
        self.time = TimeEmbedding(dim)
        self.frame_in = nn.Linear(mels, dim)
        self.register_buffer("frame_positions", shuffled_sinusoids(frames, dim))
        self.decoder = FiLMDecoder(
            layers, dim, heads, head_dim, hidden_dim, 4 * dim, dropout, cross_attention=vocab_size is not None
        )
        self.frame_out = nn.Linear(dim, mels)
        transformers: list[nn.Module] = [self.decoder]
        self.tokens = vocab_size is not None
        if vocab_size is not None:
            self.embedding = nn.Embedding(vocab_size, dim)
            self.register_buffer("token_positions", shuffled_sinusoids(max_tokens, dim))
            self.encoder = Encoder(layers, dim, heads, head_dim, hidden_dim, dropout)
            transformers.append(self.encoder)
        self.roll = NoteRollEncoder(dim, hop_sec) if note_roll else None
        if self.roll is not None:
            self.roll_out = nn.Linear(dim, mels)
        self.prior = TemplatePrior(mels, hop_sec) if prior_range is not None else None
        if prior_range is not None:
            self.prior_range = prior_range
            self.prior_in = nn.Linear(mels, dim)
        for transformer in transformers:
            for parameter in transformer.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)

    def encode_tokens(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Token ids [batch, tokens] and their mask, as in `Attention.forward` -> memory [batch, tokens, dim]."""
        return self.encoder(self.embedding(tokens) + self.token_positions[: tokens.shape[1]], mask)

    def condition(
        self,
        frames: int,
        tokens: Tensor | None = None,
        token_mask: Tensor | None = None,
        notes: Tensor | None = None,
        keep: Tensor | None = None,
        unconditional: bool = False,
    ) -> Conditioning:
        """Work out everything that does not depend on the diffusion time.

        Args:
            frames: Number of frames of the segments.
            tokens: [batch, tokens] ids; needed if the denoiser has tokens.
            token_mask: [batch, tokens] bool, True for real tokens; None if all are.
            notes: [batch, notes, 4] note tables; needed for a note roll or a prior.
            keep: [batch] bool, False for rows whose condition is dropped; None keeps all. Dropped rows are computed
                nevertheless, so that every parameter has a gradient on every process.
            unconditional: Append as many rows without condition, for guidance.
        """
        memory = mask = roll = prior = None
        if self.tokens:
            mask = None if token_mask is None else token_mask[:, None, None]
            encoded = self.encode_tokens(tokens, mask)
            memory = self.decoder.project(encoded if keep is None else encoded * keep[:, None, None])
        if self.roll is not None or self.prior is not None:
            if keep is not None:
                notes = torch.cat([notes[..., :3], notes[..., 3:] * keep[:, None, None]], dim=-1)
            if unconditional:
                silent = torch.cat([notes[..., :3], torch.zeros_like(notes[..., 3:])], dim=-1)
                notes = torch.cat([notes, silent])
            roll = None if self.roll is None else self.roll(notes, frames)
            prior = None if self.prior is None else self._scaled_prior(notes, frames)
        return Conditioning(memory, mask, roll, prior)

    def _scaled_prior(self, notes: Tensor, frames: int) -> Tensor:
        low, high = self.prior_range
        return 2 * (self.prior(notes, frames) - low) / (high - low) - 1

    def decode_frames(self, z: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Decoder states after the final norm, [batch, frames, dim]; arguments as in `forward`."""
        x = self.frame_in(z) + self.frame_positions[: z.shape[1]]
        if conditioning.roll is not None:
            x = x + conditioning.roll
        if conditioning.prior is not None:
            x = x + self.prior_in(conditioning.prior)
        return self.decoder(x, self.time(t), conditioning.memory, conditioning.memory_mask)

    def forward(self, z: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Estimate what the objective asks for.

        Args:
            z: [batch, frames, mels] noisy scaled spectrogram.
            t: [batch], or [1] if all rows are at one time.
            conditioning: From `condition`. Rows of `z` beyond its memory are unconditional.

        Returns:
            [batch, frames, mels].
        """
        output = self.frame_out(self.decode_frames(z, t, conditioning))
        if conditioning.roll is not None:
            output = output + self.roll_out(F.gelu(conditioning.roll))
        if conditioning.prior is not None:
            output = output + conditioning.prior
        return output
