"""The denoiser: note tokens, note tables and context in, estimate for a noisy mel spectrogram out.

Choices, against "Multi-instrument Music Synthesis with Spectrogram Diffusion" (Hawthorne et al. 2022, section 3):

- LayerNorm and biases as in the PyTorch re-implementation, or T5's layers as in the official models (`t5`): the weights
  of both are read by `checkpoint.py`;
- the context encoder's input and positions are its own, as in the official models, except for `shared_input`;
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

from midisynth.nn.attention import Attention
from midisynth.nn.cache import KeyValue, KeyValueCache
from midisynth.nn.conditioning import TimeEmbedding
from midisynth.nn.note_rolls import NoteRollEncoder, TemplatePrior
from midisynth.nn.positions import shuffled_sinusoids, sinusoids
from midisynth.nn.transformer import Decoder, Encoder


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser knows of the notes; serves all diffusion times of one batch of segments.

    Attributes:
        memory: Projected memory of each decoder layer for the first rows of the batch: tokens, then context; None
            without both.
        memory_mask: [memory rows, 1, 1, length] bool; None if every position counts.
        roll: [batch, frames, dim] note-roll features; None without a note roll.
        prior: [batch, frames, mels] scaled template prior; None without one.
    """

    memory: Sequence[KeyValue] | None
    memory_mask: Tensor | None
    roll: Tensor | None
    prior: Tensor | None


class Denoiser(nn.Module):
    """Encoders of tokens and of context, and a FiLM decoder over mel frames.

    Args:
        mels: Mel bins.
        frames: Longest segment (frames).
        hop_sec: Distance of frames (seconds).
        dim: Width.
        hidden_dim: Width inside the feed-forwards.
        heads: Attention heads.
        head_dim: Width of one head.
        layers: Layers of each encoder, and of the decoder.
        dropout: Probability, everywhere.
        vocab_size: Number of token ids; None for a denoiser without tokens.
        max_tokens: Longest token sequence.
        note_roll: Condition on a note roll.
        prior_range: Log-mel values that the template prior maps to -1 and 1; None for no prior.
        context: Condition on the spectrogram before the segment.
        shared_input: Context enters through the projection and the positions of the segment.
        t5: Layers of T5, see `midisynth.nn.transformer`.
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
        context: bool = False,
        shared_input: bool = False,
        t5: bool = False,
    ):
        super().__init__()
        sizes = layers, dim, heads, head_dim, hidden_dim
        self.time = TimeEmbedding(dim, interleaved=not t5, bias=not t5)
        self.frame_in = nn.Linear(mels, dim, bias=not t5)
        self.register_buffer("frame_positions", shuffled_sinusoids(frames, dim))
        self.decoder = Decoder(*sizes, 4 * dim, dropout, cross_attention=vocab_size is not None or context, t5=t5)
        self.frame_out = nn.Linear(dim, mels, bias=not t5)
        transformers: list[nn.Module] = [self.decoder]
        self.tokens = vocab_size is not None
        if vocab_size is not None:
            self.embedding = nn.Embedding(vocab_size, dim)
            self.register_buffer("token_positions", shuffled_sinusoids(max_tokens, dim))
            self.encoder = Encoder(*sizes, dropout, t5)
            transformers.append(self.encoder)
        self.context = context
        self.shared_input = shared_input
        if context:
            self.context_encoder = Encoder(*sizes, dropout, t5)
            transformers.append(self.context_encoder)
            if not shared_input:
                self.context_in = nn.Linear(mels, dim, bias=not t5)
                self.register_buffer("context_positions", shuffled_sinusoids(frames, dim))
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
            if t5:
                # What others divide by at every call, T5 divides by once.
                for module in transformer.modules():
                    if isinstance(module, Attention):
                        with torch.no_grad():
                            module.query.weight /= head_dim**0.5

    def encode_tokens(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Token ids [batch, tokens] and their mask, as in `Attention.forward` -> memory [batch, tokens, dim]."""
        return self.encoder(self.embedding(tokens) + self.token_positions[: tokens.shape[1]], mask)

    def encode_context(self, context: Tensor, mask: Tensor | None) -> Tensor:
        """Scaled spectrogram [batch, frames, mels] and its mask, as for tokens -> memory [batch, frames, dim]."""
        project, positions = (
            (self.frame_in, self.frame_positions) if self.shared_input else (self.context_in, self.context_positions)
        )
        return self.context_encoder(project(context) + positions[: context.shape[1]], mask)

    def _memory(
        self, tokens: Tensor | None, token_mask: Tensor | None, context: Tensor | None, context_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Encoded tokens and context, joined in time [batch, length, dim], and their mask [batch, length]."""
        encoded, masks = [], []
        if self.tokens:
            encoded.append(self.encode_tokens(tokens, None if token_mask is None else token_mask[:, None, None]))
            masks.append(token_mask)
        if self.context:
            seen = context_mask
            if seen is not None:
                # Where nothing is known, attention would have no key: what it then sees is masked in the decoder.
                seen = (seen | ~seen.any(dim=1, keepdim=True))[:, None, None]
            encoded.append(self.encode_context(context, seen))
            masks.append(context_mask)
        memory = torch.cat(encoded, dim=1)
        if all(mask is None for mask in masks):
            return memory, None
        ones = [torch.ones(part.shape[:2], dtype=torch.bool, device=part.device) for part in encoded]
        mask = torch.cat([one if own is None else own for own, one in zip(masks, ones, strict=True)], dim=1)
        # Attention to zeros contributes nothing, as attention to nothing should.
        known = mask.any(dim=1, keepdim=True)
        return memory * known[..., None], mask | ~known

    def condition(
        self,
        frames: int,
        tokens: Tensor | None = None,
        token_mask: Tensor | None = None,
        notes: Tensor | None = None,
        keep: Tensor | None = None,
        unconditional: bool = False,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
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
            context: [batch, frames, mels] scaled spectrogram before the segment, aligned to its end; needed if the
                denoiser has context.
            context_mask: [batch, frames] bool, False where nothing is known; None if all is.
        """
        memory = mask = roll = prior = None
        if self.tokens or self.context:
            encoded, mask = self._memory(tokens, token_mask, context, context_mask)
            mask = None if mask is None else mask[:, None, None]
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


class AutoregressiveNetwork(nn.Module):
    """Token encoder, and a causal decoder that says of every mel frame what the next one is.

    The autoregressive decoder of the same paper (section 3.1), in the form of the PyTorch re-implementation: plain
    sinusoids as positions, no modulation.

    Args:
        mels: Mel bins.
        frames: Longest segment (frames).
        dim: Width.
        hidden_dim: Width inside the feed-forwards.
        heads: Attention heads.
        head_dim: Width of one head.
        layers: Layers of the encoder, and of the decoder.
        dropout: Probability, everywhere.
        vocab_size: Number of token ids.
        max_tokens: Longest token sequence.
    """

    def __init__(
        self,
        mels: int,
        frames: int,
        dim: int,
        hidden_dim: int,
        heads: int,
        head_dim: int,
        layers: int,
        dropout: float,
        vocab_size: int,
        max_tokens: int,
    ):
        super().__init__()
        sizes = layers, dim, heads, head_dim, hidden_dim
        self.embedding = nn.Embedding(vocab_size, dim)
        self.register_buffer("token_positions", sinusoids(max_tokens, dim))
        self.encoder = Encoder(*sizes, dropout)
        self.frame_in = nn.Linear(mels, dim)
        self.register_buffer("frame_positions", sinusoids(frames, dim))
        self.decoder = Decoder(*sizes, None, dropout)
        self.frame_out = nn.Linear(dim, mels)
        for parameter in [*self.encoder.parameters(), *self.decoder.parameters()]:
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def encode_tokens(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Token ids [batch, tokens] and their mask, as in `Attention.forward` -> memory [batch, tokens, dim]."""
        return self.encoder(self.embedding(tokens) + self.token_positions[: tokens.shape[1]], mask)

    def forward(
        self,
        past: Tensor,
        memory: Sequence[KeyValue],
        memory_mask: Tensor | None = None,
        caches: Sequence[KeyValueCache] | None = None,
        causal: bool = True,
    ) -> Tensor:
        """What follows each frame.

        Args:
            past: [batch, frames, mels] scaled frames, of which the first is zero at the start of a segment.
            memory: Projected token memory of each decoder layer.
            memory_mask: [batch, 1, 1, tokens] bool; None if every position counts.
            caches: Of the frames before `past`, to which `past` is added.
            causal: Frames see themselves and those before alone.

        Returns:
            [batch, frames, mels].
        """
        first = 0 if caches is None else caches[0].length
        x = self.frame_in(past) + self.frame_positions[first : first + past.shape[1]]
        return self.frame_out(self.decoder(x, memory=memory, memory_mask=memory_mask, causal=causal, caches=caches))

    def generate(
        self,
        memory: Sequence[KeyValue],
        memory_mask: Tensor | None,
        frames: int,
        dither: Tensor | None = None,
        causal: bool = True,
    ) -> Tensor:
        """Decode frame by frame.

        Args:
            memory: Projected token memory of each decoder layer.
            memory_mask: [batch, 1, 1, tokens] bool; None if every position counts.
            frames: Number of frames.
            dither: [batch, frames, mels] noise that is added to the frames; None adds none.
            causal: False lets earlier frames attend to later ones, as the re-implementation does although it was
                trained otherwise. What is known of a frame then changes with every further one, so that nothing can
                be cached.

        Returns:
            [batch, frames, mels] in [-1, 1].
        """
        start = self.frame_out.bias.new_zeros(len(memory[0].key), 1, self.frame_out.out_features)
        caches = self.decoder.caches(frames) if causal else None
        decoded = [start]
        for index in range(frames):
            past = decoded[-1] if causal else torch.cat(decoded, dim=1)
            following = self(past, memory, memory_mask, caches, causal)[:, -1:].to(start.dtype)
            if dither is not None:
                following = following + dither[:, index : index + 1]
            decoded.append(following.clamp(-1, 1))
        return torch.cat(decoded[1:], dim=1)
