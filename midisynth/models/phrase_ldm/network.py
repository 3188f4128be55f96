"""The phrase autoencoder: transformers' T5 with a bottleneck of a few rows, or of one vector, between its halves.

"PhraseVAE and PhraseLDM" (Ou and Wang 2025, arXiv 2512.11348, section 3). Three stages share the T5:

1. span infilling: the decoder sees the whole encoder output;
2. multi-query compression: the first tokens of the input are queries, and the decoder sees their rows alone;
3. variational: those rows become one Gaussian vector, and the decoder sees rows made from it.

Names in the state dict are the published ones, with the shared embedding stored once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.models.phrase_ldm.rows import BOS_ID

#: The only copy of the embedding in a state dict, and where else the network uses it.
EMBEDDING = "decoder.embed_tokens.weight"
TIED = ("shared.weight", "encoder.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Reconstruction:
    """What one pass over a batch of phrases gives.

    Attributes:
        logits: [batch, tokens, vocabulary].
        mean: [batch, latent], or None without a Gaussian.
        log_variance: [batch, latent], or None without a Gaussian.
    """

    logits: Tensor
    mean: Tensor | None
    log_variance: Tensor | None

    def losses(self, labels: Tensor, kl_weight: float, l2_weight: float = 0.0) -> dict[str, Tensor]:
        """Terms of the loss, and their sum as "loss".

        Args:
            labels: [batch, tokens] ids, `rows.IGNORED` after the end of a phrase.
            kl_weight: Of the divergence from the standard normal, a mean over the batch and the dimensions (nats).
            l2_weight: Of the mean square of the means.

        Returns:
            "reconstruction", the mean cross-entropy of a token (nats); "kl" and "l2" with a Gaussian; "loss".
        """
        terms = {"reconstruction": F.cross_entropy(self.logits.float().flatten(0, 1), labels.flatten())}
        terms["loss"] = terms["reconstruction"]
        if self.mean is not None and self.log_variance is not None:
            mean, log_variance = self.mean.float(), self.log_variance.float()
            terms["kl"] = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()
            terms["l2"] = mean.square().mean()
            terms["loss"] = terms["reconstruction"] + kl_weight * terms["kl"] + l2_weight * terms["l2"]
        return terms


class PhraseAutoencoder(nn.Module):
    """T5 that puts a phrase through a bottleneck. The defaults are the published VAE, 14,289,920 parameters.

    Args:
        vocab_size: Number of token ids.
        dim: Width.
        hidden_dim: Width inside the feed-forwards.
        layers: Layers of the encoder, and of the decoder.
        heads: Attention heads.
        head_dim: Width of one head; `heads * head_dim` need not be `dim`.
        dropout: Probability, everywhere in the T5.
        queries: How many tokens at the start of the input make up the bottleneck; 0: there is none (stage 1).
        latent: Size of the Gaussian vector; None: the rows of the queries themselves are the bottleneck (stage 2).
    """

    def __init__(
        self,
        vocab_size: int = 1000,
        dim: int = 512,
        hidden_dim: int = 1024,
        layers: int = 3,
        heads: int = 6,
        head_dim: int = 64,
        dropout: float = 0.1,
        queries: int = 4,
        latent: int | None = 64,
    ):
        super().__init__()
        # transformers imports torchaudio, which may only be there because this door opens it.
        import midisynth.audio.backend  # noqa: F401, I001

        # Importing transformers takes seconds; only who builds the network pays for it.
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(
            vocab_size=vocab_size,
            d_model=dim,
            d_ff=hidden_dim,
            d_kv=head_dim,
            num_layers=layers,
            num_heads=heads,
            dropout_rate=dropout,
            decoder_start_token_id=BOS_ID,
        )
        self.t5 = T5ForConditionalGeneration(config)
        self.dim, self.queries, self.latent = dim, queries, latent
        if latent is not None:
            self.layer_norm = nn.LayerNorm(queries * dim)
            self.proj = nn.Linear(queries * dim, 2 * latent)
            self.post_proj = nn.Linear(latent, queries * dim)
        self.t5.register_state_dict_post_hook(_drop_tied)
        self.t5.register_load_state_dict_pre_hook(_add_tied)

    def encode_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encoder states.

        Args:
            ids: [batch, tokens], with the queries at the start.
            mask: [batch, tokens] bool, False for padding.

        Returns:
            [batch, tokens, dim].
        """
        return self.t5.encoder(input_ids=ids, attention_mask=mask).last_hidden_state

    def gaussian(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder states [batch, tokens, dim] -> mean and log-variance, [batch, latent] each."""
        bottleneck = self.layer_norm(states[:, : self.queries].flatten(1))
        mean, log_variance = self.proj(bottleneck).chunk(2, dim=-1)
        return mean, log_variance

    def memory(self, latents: Tensor) -> Tensor:
        """What the decoder sees of latents [batch, latent]: [batch, queries, dim]."""
        return self.post_proj(latents).unflatten(-1, (self.queries, self.dim))

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor, epsilon: Tensor | None = None) -> Reconstruction:
        """Predict every token of a phrase from those before it and the bottleneck.

        Args:
            ids: [batch, tokens], with the queries at the start.
            mask: [batch, tokens] bool, False for padding.
            labels: [batch, labels] ids, `rows.IGNORED` after the end.
            epsilon: [batch, latent] standard normal noise; None takes the mean.
        """
        states = self.encode_tokens(ids, mask)
        mean = log_variance = memory_mask = None
        if self.latent is not None:
            mean, log_variance = self.gaussian(states)
            latents = mean if epsilon is None else mean + torch.exp(log_variance / 2) * epsilon
            memory = self.memory(latents)
        elif self.queries:
            memory = states[:, : self.queries]
        else:
            memory, memory_mask = states, mask
        # Given labels, it would compute a loss of its own.
        shifted = self.t5.prepare_decoder_input_ids_from_labels(labels)
        output = self.t5(encoder_outputs=(memory,), attention_mask=memory_mask, decoder_input_ids=shifted)
        return Reconstruction(output.logits, mean, log_variance)

    @torch.no_grad()
    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The bottleneck of a phrase.

        Args:
            ids: [batch, tokens], with the queries at the start.
            mask: [batch, tokens] bool, False for padding.

        Returns:
            Means [batch, latent], or without a Gaussian the rows of the queries [batch, queries, dim].
        """
        states = self.encode_tokens(ids, mask)
        return states[:, : self.queries] if self.latent is None else self.gaussian(states)[0]


def _drop_tied(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    for name in TIED:
        state.pop(prefix + name, None)


def _add_tied(module: nn.Module, state: Mapping[str, Tensor], prefix: str, *others: Any) -> None:
    if prefix + EMBEDDING in state:
        for name in TIED:
            state[prefix + name] = state[prefix + EMBEDDING]
