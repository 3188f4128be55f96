"""`PhraseVae`: what one instrument plays in one bar, as a vector and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from midisynth import weights
from midisynth.checkpoints import load_model, packed, unpacked
from midisynth.errors import CheckpointError, UsageError
from midisynth.metrics.phrases import grid_score
from midisynth.models.phrase_ldm.checkpoint import FILES, is_autoencoder, read_autoencoder
from midisynth.models.phrase_ldm.codec import MAX_BARS, SLOTS, Decoded, PhraseCodec, Song
from midisynth.models.phrase_ldm.decoding import Grammar, Shortcuts, decode
from midisynth.models.phrase_ldm.grid import Compat
from midisynth.models.phrase_ldm.network import PhraseAutoencoder, Reconstruction
from midisynth.models.phrase_ldm.remiz import Bar
from midisynth.models.phrase_ldm.rows import BAR_ID, IGNORED, INST_ID, MAX_TOKENS, SEP_ID, collate, row
from midisynth.models.phrase_ldm.texts import parse
from midisynth.models.phrase_ldm.units import Unit, as_slots, is_unit, units_of_bars
from midisynth.models.phrase_ldm.vae_evaluation import POSITIONS, PhraseScore, score_phrases, summarize
from midisynth.models.phrase_ldm.vocabulary import BOS, EOS, PAD, to_ids, to_text
from midisynth.module import MidiModule, Noise, Published, Rendering
from midisynth.summaries import Measurements, Summary

#: How phrases are learned, one after the other: bars with spans left out; through a few rows; through one vector.
Stage = Literal["infilling", "queries", "variational"]
#: Phrases of one token, which more than half of the slots of a song hold.
SPECIAL_IDS = (INST_ID, BAR_ID, SEP_ID)
#: Phrases that go through the network together when songs are encoded or decoded, on a CPU and on anything faster. What
#: the decoder of the published model keeps of one takes up to 1.2 MB.
ROWS_AT_ONCE = 256, 4096


class PhraseVae(MidiModule):
    """Phrase -> vector -> phrase, a variational T5. `predict` gives back what it keeps of a song.

    The defaults are the published sizes.

    Args:
        stage: What is trained: "infilling": the T5 alone, on bars with spans left out; "queries": phrases through the
            rows of a few query tokens; "variational": phrases through one Gaussian vector.
        unit: What one vector holds, or for stage "infilling" one example: a "phrase", a whole "bar", or a "position",
            the notes that an instrument begins together; null: what `stage` says. Composers take phrases.
        init_from: Checkpoint of an earlier stage whose T5 training starts with; null starts with a random one.
        dim: Width.
        hidden_dim: Width inside the feed-forwards.
        layers: Layers of the encoder, and of the decoder.
        heads: Attention heads.
        head_dim: Width of one head.
        dropout: Probability.
        queries: Query tokens, whose rows are the bottleneck; not used by stage "infilling".
        latent: Size of the vector; used by stage "variational" alone.
        kl_weight: Weight of the divergence from the standard normal (per dimension).
        max_tokens: Longest phrase or other unit, with query tokens, start and end; 256 for bars of three tracks.
        slots: Phrases in a bar, its end among them.
        max_bars: Longest song; null for any.
        drums: Give drums a slot; else they are left out.
        velocity: Learn velocities.
        normalize_key: Move songs to C major or A minor.
        crowded: A bar of more tracks than there are slots keeps the busiest ("reduce"), or its song is refused
            ("reject").
        decoded_rows: Examples of each validation batch that are decoded and compared note by note, `val/note_f1`.
        compat: "published" reads and writes music as the original program does.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds a learning-rate schedule from the optimizer; it advances once a step.
    """

    writes: ClassVar[str] = ".mid"
    published_files: ClassVar[tuple[str, ...]] = FILES
    codec: PhraseCodec

    def __init__(
        self,
        stage: Stage = "variational",
        unit: Unit | None = None,
        init_from: str | None = None,
        dim: int = 512,
        hidden_dim: int = 1024,
        layers: int = 3,
        heads: int = 6,
        head_dim: int = 64,
        dropout: float = 0.1,
        queries: int = 4,
        latent: int = 64,
        kl_weight: float = 0.01,
        max_tokens: int = MAX_TOKENS,
        slots: int = SLOTS,
        max_bars: int | None = MAX_BARS,
        drums: bool = False,
        velocity: bool = False,
        normalize_key: bool = True,
        crowded: Literal["reduce", "reject"] = "reduce",
        decoded_rows: int = 8,
        compat: Compat = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(optimizer, lr_scheduler)
        self.queries = 0 if stage == "infilling" else queries
        self.unit: Unit = unit or ("bar" if stage == "infilling" else "phrase")
        self.codec = PhraseCodec(slots, max_bars, drums, velocity, normalize_key, crowded, compat)
        self.network = PhraseAutoencoder(
            dim=dim,
            hidden_dim=hidden_dim,
            layers=layers,
            heads=heads,
            head_dim=head_dim,
            dropout=dropout,
            queries=self.queries,
            latent=latent if stage == "variational" else None,
        )

    # Training

    def initialise(self) -> None:
        """Take the T5 of `init_from`.

        Raises:
            CheckpointError: It is no phrase autoencoder, or one of another size.
        """
        reference = self.hparams.init_from
        if reference is None:
            return
        model = load_model(reference)
        if not isinstance(model, PhraseVae):
            raise CheckpointError(f"init_from: {reference} is of {type(model).__name__}, not of PhraseVae")
        for name in ("dim", "hidden_dim", "layers", "heads", "head_dim"):
            if model.hparams[name] != self.hparams[name]:
                raise CheckpointError(
                    f"init_from: {reference} has {name} {model.hparams[name]}, this model {self.hparams[name]}"
                )
        self.network.t5.load_state_dict(model.network.t5.state_dict())

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        size = len(batch["tokens"])
        output = self._predict(batch, None)
        losses = output.losses(batch["labels"], self.hparams.kl_weight)
        self.log("train/loss", losses["loss"], prog_bar=True, batch_size=size)
        for name in losses.keys() & {"reconstruction", "kl"}:
            self.log(f"train/{name}", losses[name], batch_size=size)
        return losses["loss"]

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        size = len(batch["tokens"])
        # The same noise every time: losses of two steps can be compared.
        output = self._predict(batch, torch.Generator().manual_seed(batch_idx))
        losses = output.losses(batch["labels"], self.hparams.kl_weight)
        self.log("val/loss", losses["loss"], prog_bar=True, batch_size=size, sync_dist=True)
        for name in losses.keys() & {"reconstruction", "kl"}:
            self.log(f"val/{name}", losses[name], batch_size=size, sync_dist=True)
        wanted = batch["labels"] != IGNORED
        right = (output.logits.argmax(dim=-1) == batch["labels"])[wanted]
        self.log("val/token_accuracy", right.float().mean(), prog_bar=True, batch_size=size, sync_dist=True)
        if self.queries:
            count = min(self.hparams.decoded_rows, size)
            scores = self.note_scores({name: values[:count] for name, values in batch.items()})
            self.log("val/note_f1", scores.mean(), prog_bar=True, batch_size=count, sync_dist=True)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Measurements:
        return Measurements(score_phrases(self, batch))

    def test_summary(self, items: Sequence[PhraseScore], pictures: int) -> Summary:
        return summarize(items, self.unit)

    def _predict(self, batch: Mapping[str, Tensor], generator: torch.Generator | None) -> Reconstruction:
        """One pass over a batch with noise from a generator on the CPU, or None for the global one."""
        epsilon = None
        if self.network.latent is not None:
            shape = len(batch["tokens"]), self.network.latent
            if generator is None:
                epsilon = torch.randn(shape, device=self.device)
            else:
                epsilon = torch.randn(shape, generator=generator).to(self.device)
        return self.network(batch["tokens"], batch["mask"], batch["labels"], epsilon)

    @torch.no_grad()
    def note_scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """F1 of the notes of decoded phrases: onset, pitch and duration have to agree.

        Args:
            batch: As for training.

        Returns:
            [batch] float32, on the CPU.
        """
        latents = self.network.encode(batch["tokens"], batch["mask"])
        found = decode(self.network, latents, self.hparams.max_tokens, grammar=self.grammar)
        wanted = [ids[ids != IGNORED] for ids in batch["labels"]]
        pairs = ((notes_of(a), notes_of(b)) for a, b in zip(wanted, found, strict=True))
        return torch.tensor([grid_score(*pair, POSITIONS).opd for pair in pairs])

    # Phrases and vectors

    @property
    def grammar(self) -> Grammar | None:
        """What phrases may say, on the device of the model; None for published models, which say anything."""
        return None if self.hparams.compat else _grammar(self.hparams.velocity, self.unit, self.device)

    @torch.no_grad()
    def encode(self, phrases: Sequence[str | Sequence[int]]) -> Tensor:
        """Vectors of phrases, or of what else the model's `unit` is.

        Args:
            phrases: Texts such as "i-0 o-0 p-60 d-12", or their ids. A bar is all of its phrases and "b-1".

        Returns:
            Means [phrases, latent] float32, or before stage "variational" rows [phrases, queries, dim].

        Raises:
            UsageError: The model is of stage "infilling", which has no vectors, or a text is no such unit.
        """
        if not self.queries:
            raise UsageError("stage infilling has no bottleneck: phrases become vectors from stage queries on")
        options = self.hparams
        ids = [tuple(to_ids(phrase) if isinstance(phrase, str) else phrase) for phrase in phrases]
        # Many phrases of a song come again, and more than half are empty slots and bar lines.
        places = {phrase: place for place, phrase in enumerate(dict.fromkeys(ids))}
        if wrong := next((phrase for phrase in places if not is_unit(phrase, self.unit)), None):
            raise UsageError(f"this autoencoder takes single {self.unit}s, which '{to_text(wrong)}' is not")
        rows = [row(phrase, self.queries, options.max_tokens, options.compat) for phrase in places]
        # Rows of similar length share a batch, which then has little padding.
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        shape = (options.latent,) if self.network.latent is not None else (self.queries, options.dim)
        result = torch.empty(len(rows), *shape, device=self.device)
        for start in range(0, len(rows), ROWS_AT_ONCE[0]):
            chosen = order[start : start + ROWS_AT_ONCE[0]]
            batch = collate([rows[index] for index in chosen], [[]] * len(chosen))
            tokens, mask = batch["tokens"].to(self.device), batch["mask"].to(self.device)
            result[chosen] = self.network.encode(tokens, mask).float()
        return result[[places[phrase] for phrase in ids]]

    @torch.no_grad()
    def decode(self, latents: Tensor, shortcuts: Shortcuts | None = None) -> list[str]:
        """Texts of vectors, always ones that can be read as music.

        Args:
            latents: As `encode` returns them.
            shortcuts: Phrases that need no decoder.
        """
        found = decode(
            self.network,
            latents.to(self.device),
            self.hparams.max_tokens,
            shortcuts,
            self.grammar,
            ROWS_AT_ONCE[self.device.type != "cpu"],
        )
        return [to_text(ids, without=(BOS, EOS, PAD)) for ids in found.tolist()]

    @torch.no_grad()
    def shortcuts(self) -> Shortcuts:
        """The phrases of one token, within a third of the way to the nearest of the others."""
        # Only bars of phrases have slots that can be empty.
        ids = [number for number in SPECIAL_IDS if self.unit == "phrase" or number != INST_ID]
        latents = self.encode([[number] for number in ids])
        distances = torch.pdist(latents.float())
        return Shortcuts(latents, torch.tensor(ids), float(distances.min()) / 3)

    # Songs

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Songs stay apart."""
        return list(examples)

    def reconstruct(self, song: Song) -> Decoded:
        """What the vectors keep of a song."""
        if self.unit == "phrase":
            return self.codec.decode_texts(self.decode(self.encode(song.slots)))
        slots = [np.array(to_ids(text)) for text in song.slots]
        bars = units_of_bars(slots, song.slots_per_bar, self.unit, self.hparams.compat)
        texts = iter(self.decode(self.encode([ids.tolist() for bar in bars for ids in bar])))
        decoded = (list(islice(texts, len(bar))) for bar in bars)
        return self.codec.decode_texts([text for bar in decoded for text in as_slots(bar)], slots=2)

    def render(self, batch: Sequence[Mapping[str, Any]], noise: Noise) -> Iterator[tuple[int, Rendering]]:
        """Every song from its vectors, in the key it came in; the report tells how many notes are as they were.

        Yields:
            Position of a song in the batch, and what is left of it.
        """
        for position, example in enumerate(batch):
            song = example["song"]
            decoded = self.reconstruct(song)
            # Bars after an end that was decoded too early are lost.
            pairs = zip_longest(song.bars, decoded.bars[: len(song.bars)], fillvalue=Bar())
            scores = [grid_score(bar_notes(a), bar_notes(b), POSITIONS).opd for a, b in pairs]
            report = {"bars": len(song.bars), "note_f1": round(sum(scores) / len(scores), 4)}
            report |= {"dropped": dict(decoded.dropped), "repaired": dict(decoded.repaired)}
            yield position, Rendering(performance=decoded.performance, report=report)

    @classmethod
    def is_published(cls, path: Path) -> bool:
        """Whether a folder is a repository of a published autoencoder."""
        return is_autoencoder(path)

    @classmethod
    def read_published(cls, path: Path) -> Published:
        """Read a published autoencoder of any stage, see `checkpoint.py`."""
        published = read_autoencoder(path)
        options = dict(published.options)
        options.pop("vocab_size")
        queries, latent = options.pop("queries"), options.pop("latent")
        options["stage"] = "variational" if latent else "queries" if queries else "infilling"
        options |= {"queries": queries} if queries else {}
        options |= {"latent": latent} if latent else {}
        state = {f"network.{name}": tensor for name, tensor in published.state.items()}
        return Published({**options, "compat": "published"}, state)


@lru_cache(maxsize=4)
def _grammar(velocity: bool, unit: Unit, device: torch.device) -> Grammar:
    return Grammar(velocity, unit, device)


def load_vae(reference: str, *, content: bytes | None = None) -> PhraseVae:
    """The autoencoder that a model of songs names, in evaluation mode.

    Args:
        reference: A checkpoint, as `midisynth.checkpoints.load_model` takes it.
        content: What `read_vae` returned, for a checkpoint that carries its autoencoder; files are then not read.

    Raises:
        CheckpointError: It cannot be loaded, or makes no vectors of phrases.
    """
    model = load_model(reference) if content is None else unpacked(content, f"vae {reference}")
    if not isinstance(model, PhraseVae) or model.network.latent is None:
        what = f"of stage {model.hparams.stage}" if isinstance(model, PhraseVae) else f"a {type(model).__name__}"
        raise CheckpointError(f"vae: {reference} is {what}, not a PhraseVae of stage variational")
    if model.unit != "phrase":
        raise CheckpointError(f"vae: {reference} is an autoencoder of {model.unit}s, not of phrases")
    return model


def read_vae(reference: str) -> bytes | None:
    """What a checkpoint has to carry of the autoencoder: None for one that comes with the package."""
    return None if weights.find(reference) is not None else packed(reference)


def bar_notes(bar: Any) -> dict[int, Any]:
    """Notes of a bar by program, as `grid_score` takes them: onset, pitch, duration."""
    return {
        track.program: [(note.onset, note.pitch, note.duration) for note in track.notes]
        for track in bar.tracks
        if track.notes
    }


def notes_of(ids: Tensor) -> dict[int, Any]:
    """Notes of a phrase or bar [tokens] of ids by program, as `grid_score` takes them."""
    bars = parse(to_text(ids.tolist(), without=(BOS, EOS, PAD))).bars
    return bar_notes(bars[0]) if bars else {}
