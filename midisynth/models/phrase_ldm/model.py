"""`PhraseLdm`: whole songs from noise, or from other songs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from midisynth.diffusion.objectives import Objective
from midisynth.diffusion.sampling import Solver, content_generators
from midisynth.errors import CheckpointError, UsageError
from midisynth.models.phrase_ldm.checkpoint import FILES, is_autoencoder, is_denoiser, read_denoiser
from midisynth.models.phrase_ldm.codec import PUBLISHED_PLAYBACK, PhraseCodec
from midisynth.models.phrase_ldm.composing import Mode, compose
from midisynth.models.phrase_ldm.conditions import SectionIds
from midisynth.models.phrase_ldm.evaluation import Examiner, known_songs
from midisynth.models.phrase_ldm.grid import Compat
from midisynth.models.phrase_ldm.instruments import Instruments
from midisynth.models.phrase_ldm.layouts import LayoutIds
from midisynth.models.phrase_ldm.ldm import Conditioning, PhraseDenoiser
from midisynth.models.phrase_ldm.rows import SEP_ID
from midisynth.models.phrase_ldm.sampling import PUBLISHED_QUANTILE, PUBLISHED_SCALE, LatentDiffusion
from midisynth.models.phrase_ldm.song_scores import SongScores, summarize
from midisynth.models.phrase_ldm.vae import PhraseVae, load_vae, read_vae
from midisynth.module import MidiModule, Noise, Published, Rendering
from midisynth.music.keys import parse_key
from midisynth.summaries import Measurements, Summary

#: What a song can be asked for.
Condition = Literal["length", "sections", "layout"]
#: Owner of the published repositories, and name of the autoencoder, which is looked for beside published denoisers.
PUBLISHED_OWNER, PUBLISHED_VAE = "LongshenOu", "phrase-vae"


class PhraseLdm(MidiModule):
    """Composes songs: diffusion of the vectors of all phrases of a song at once.

    The defaults are the published sizes with corrected behaviour.

    Args:
        vae: Autoencoder of phrases: the name of one that ships, a checkpoint, or `hf://owner/name`.
        latent: Size of its vectors.
        slots: Phrases in a bar, its end among them, as the autoencoder has them.
        max_bars: Longest song.
        layers: Transformer blocks.
        heads: Attention heads.
        head_dim: Width of one head; the network is `heads * head_dim` wide.
        memory_heads: Heads of keys and values of the cross-attention.
        time_dim: Number of time features.
        token_dim: Width of what is known of a song as a whole.
        memory_dim: Width of what is known of its sections.
        cross_dim: Width of the same for the cross-attention; null: the same.
        conditions: What a song can be asked for: "length" in bars, a plan of "sections", a "layout" of instruments.
        length_bucket: Bars that are told as one.
        section_types: Letters of sections in the order of their ids; null takes all in alphabetical order.
        section_lengths: Lengths of sections in the order of their ids; null takes 1 to 32.
        programs: Programs of layouts in the order of their ids; null takes those of POP909: 13, 0, 25.
        dropout: Probability in the encoders of sections and layouts.
        cfg_dropout: Probability of training a song without condition.
        layout_dropout: Probability of training a song without its layout, but with the other conditions.
        objective: What the network predicts: the noise, the latents, or the velocity between them.
        diffusion_steps: Steps of the noise schedule.
        mode: "compose": new songs; from MIDI files as input: "continue": songs that begin with them; "infill": parts of
            them anew, see `redo` and `keep`; "vary": songs like them; "interpolate": songs between them and `other`.
        bars: Length of the songs; null lets the model choose.
        sections: Plan of the songs, such as "i4 A8 B8 A8 o4"; null lets the model choose.
        layout: Programs of every bar from the highest to the lowest, such as "0*4 13+0*8 -": four bars of 0, eight of
            13 and 0, one of silence; null lets the model choose.
        redo: Bars to compose anew in mode infill, such as "5-8,17"; null is all of them.
        keep: Programs whose phrases stay in these bars, such as those of a melody.
        other: MIDI file to interpolate with.
        share: Of `other`, from 0 to 1.
        strength: Share of the noise schedule that modes vary and interpolate go back by, from 0, not at all, to 1.
        key: Key to end in, such as "D" or "F# minor"; null: C major or A minor for new songs, else that of the input.
        tempo: Quarter notes a minute; null: 90 for new songs, else that of the input.
        arranged: Play new songs as the authors do, the melody by a synthesiser; songs that were so played are
            understood when they are continued or varied.
        instruments: Program of the input -> program that the model takes it for, such as {40: 13} for a melody that a
            violin plays; the result has those of the input.
        solver: "ddpm", "ddim" or "dpm_solver" (DPM-Solver++).
        sample_steps: Calls of the network.
        guidance: Weight of classifier-free guidance; 1 is none, and halves the cost.
        repeats: How often each step is made where a part is given (RePaint); more than 1 needs solver ddpm or ddim.
        compat: "published" reproduces the published program: its network, its sampler, its readings of music.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds a learning-rate schedule from the optimizer; it advances once a step.
    """

    writes: ClassVar[str] = ".mid"
    needs_input: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    # Songs are short work side by side: phrases of all of them are decoded together.
    items_at_once: ClassVar[int] = 8
    published_files: ClassVar[tuple[str, ...]] = FILES

    scale: Tensor
    clip: Tensor
    measured: Tensor

    def __init__(
        self,
        vae: str = "phrase_vae_pop",
        latent: int = 64,
        slots: int = 4,
        max_bars: int = 128,
        layers: int = 6,
        heads: int = 16,
        head_dim: int = 32,
        memory_heads: int = 8,
        time_dim: int = 128,
        token_dim: int = 128,
        memory_dim: int = 256,
        cross_dim: int | None = None,
        conditions: list[Condition] | None = None,
        length_bucket: int = 10,
        section_types: list[str] | None = None,
        section_lengths: list[int] | None = None,
        programs: list[int] | None = None,
        dropout: float = 0.1,
        cfg_dropout: float = 0.1,
        layout_dropout: float = 0.5,
        objective: Objective = "epsilon",
        diffusion_steps: int = 1000,
        mode: Mode = "compose",
        bars: int | None = None,
        sections: str | None = None,
        layout: str | None = None,
        redo: str | None = None,
        keep: list[int] | None = None,
        other: str | None = None,
        share: float = 0.5,
        strength: float = 0.5,
        key: str | None = None,
        tempo: float | None = None,
        arranged: bool = True,
        instruments: dict[int, int] | None = None,
        solver: Solver = "dpm_solver",
        sample_steps: int = 30,
        guidance: float = 1.0,
        repeats: int = 1,
        compat: Compat = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(optimizer, lr_scheduler)
        self._check_options()
        self.declare_part("vae", load_vae, read_vae)
        self.conditions: frozenset[str] = frozenset(conditions or ())
        defaults = SectionIds()
        self.section_ids = SectionIds(
            tuple(section_types or defaults.types), tuple(section_lengths or defaults.lengths)
        )
        self.layout_ids = LayoutIds() if programs is None else LayoutIds(tuple(programs))
        self.network = self.new_network()
        self.register_buffer("scale", torch.tensor(PUBLISHED_SCALE if compat else 1.0))
        # The published value is of the autoencoder's scale, but used in that of the denoiser.
        self.register_buffer("clip", torch.tensor(PUBLISHED_QUANTILE if compat else 4.0))
        # Statistics that came with weights are those that the weights were trained with.
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))

    def _check_options(self) -> None:
        options = self.hparams
        for name in ("share", "strength"):
            if not 0 <= options[name] <= 1:
                raise UsageError(f"{name} is {options[name]}: it goes from 0 to 1")
        if options.mode != "infill" and (options.redo or options.keep):
            raise UsageError("redo and keep say what to compose anew in a song: set mode to infill")
        if (options.mode == "interpolate") != (options.other is not None):
            raise UsageError("mode interpolate and other, the second song, belong together")
        if options.bars is not None and not 1 <= options.bars <= options.max_bars:
            raise UsageError(f"bars is {options.bars}: the model takes 1 to {options.max_bars}")
        if options.repeats > 1 and options.solver == "dpm_solver":
            raise UsageError("repeats needs solver ddpm or ddim")
        if options.sections is not None and "sections" not in (options.conditions or ()):
            raise UsageError("sections: this model was not trained with plans of sections; ask for bars alone")
        if options.layout is not None and "layout" not in (options.conditions or ()):
            raise UsageError("layout: this model was not trained with layouts of instruments; leave it out")
        Instruments.of_input(options.instruments or {})
        if options.key is not None:
            parse_key(options.key)
        if options.tempo is not None and not options.tempo > 0:
            raise UsageError(f"tempo is {options.tempo}: it has to be more than 0")
        lengths = options.section_lengths
        if lengths and not options.compat and list(lengths) != list(range(1, len(lengths) + 1)):
            # Rows count the bars to the ends of their section.
            raise UsageError("section_lengths: only published models number lengths in an order of their own")
        if options.compat and {"sections", "layout"} <= set(options.conditions or ()):
            raise UsageError("conditions: published models know sections or a layout, not both")

    def new_network(self) -> PhraseDenoiser:
        """An untrained denoiser of this model's sizes."""
        options = self.hparams
        known = len(self.section_ids.types), len(self.section_ids.lengths)
        return PhraseDenoiser(
            options.latent,
            options.max_bars * options.slots,
            options.layers,
            options.heads,
            options.head_dim,
            options.memory_heads,
            options.time_dim,
            options.token_dim,
            options.memory_dim,
            options.cross_dim,
            length="length" in self.conditions,
            length_bucket=options.length_bucket,
            sections=known if "sections" in self.conditions else None,
            programs=len(self.layout_ids.programs) if "layout" in self.conditions else None,
            slots=None if options.compat else options.slots,
            dropout=options.dropout,
            published=options.compat is not None,
        )

    # Autoencoder

    @property
    def vae(self) -> PhraseVae:
        """The autoencoder, on the device of the model.

        Raises:
            CheckpointError: It cannot be loaded, or is not of this model's sizes.
        """
        vae: PhraseVae = self.part("vae")
        for name in ("latent", "slots"):
            if vae.hparams[name] != self.hparams[name]:
                raise CheckpointError(
                    f"vae: {self.hparams.vae} has {name} {vae.hparams[name]}, this model {self.hparams[name]}"
                )
        return vae.to(self.device)

    @cached_property
    def codec(self) -> PhraseCodec:  # type: ignore[override]
        """That of the autoencoder, for songs that fit into this model, played by what `instruments` says."""
        codec, options = self.song_codec(), self.hparams
        if options.instruments:
            codec.instruments = Instruments.of_input(options.instruments)
        elif options.arranged:
            codec.instruments = Instruments(PUBLISHED_PLAYBACK.programs, PUBLISHED_PLAYBACK.transpose, optional=True)
        return codec

    def song_codec(self) -> PhraseCodec:
        """A codec like the autoencoder's, for songs up to the length of this model's."""
        options = self.part("vae").codec.key
        options.pop("version")
        return PhraseCodec(**{**options, "max_bars": self.hparams.max_bars})

    @torch.no_grad()
    def end_latent(self) -> Tensor:
        """Latent of the end of a song, [latent]."""
        return self.vae.encode([[SEP_ID]])[0]

    def padding(self) -> Tensor:
        """Latent of the rows after a song, [latent]: that of its end, which in compat is not scaled with the others."""
        return self.end_latent() * (self.scale if self.hparams.compat else 1)

    def set_statistics(self, scale: float, quantile: float) -> None:
        """Take the scale of the latents from training data.

        Args:
            scale: Their standard deviation.
            quantile: What nearly all components stay below; in compat the published constants stay.
        """
        if self.hparams.compat is None:
            self.scale.fill_(scale)
            self.clip.fill_(quantile / scale)
        self.measured.fill_(True)

    # Training

    @property
    def diffusion(self) -> LatentDiffusion:
        """Between latents and noise."""
        return LatentDiffusion(self.hparams.diffusion_steps, float(self.clip), self.hparams.objective)

    def condition(
        self,
        batch: Mapping[str, Tensor],
        keep: Tensor | None = None,
        guided: bool = False,
        network: PhraseDenoiser | None = None,
    ) -> Conditioning:
        """What the denoiser is told.

        Args:
            batch: "bars" [batch], "types" and "lengths" [batch, sections]; 0 where they are not known. "layout"
                [batch, rows], see `LayoutIds`.
            keep: [batch] bool, False where nothing is told.
            guided: Append as many rows without condition.
            network: The denoiser; None: the model's.
        """
        sections = (batch["types"], batch["lengths"]) if "sections" in self.conditions else None
        bars = batch["bars"] if "length" in self.conditions else None
        layout = batch["layout"] if "layout" in self.conditions else None
        network = network or self.network
        return network.condition(len(batch["bars"]), bars, sections, layout, keep, guided)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        x0 = batch["latents"] / self.scale
        size = len(x0)
        # Every step is as likely as any other, but a batch covers the range evenly: the gradient is less noisy.
        share = (torch.rand(1, device=self.device) + torch.arange(size, device=self.device) / size) % 1
        t = (share * self.hparams.diffusion_steps).long()
        keep = None
        if not self.hparams.compat:
            keep = torch.rand(size, device=self.device) >= self.hparams.cfg_dropout
            if "layout" in self.conditions:
                dropped = torch.rand(size, device=self.device) < self.hparams.layout_dropout
                unknown = batch["layout"].masked_fill(dropped[:, None], self.layout_ids.unknown)
                batch = {**batch, "layout": unknown}
        loss = self._loss(batch, x0, t, torch.randn_like(x0), keep)
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        x0 = batch["latents"] / self.scale
        size = len(x0)
        # The same noise and noise level for a song every time: losses of two steps can be compared.
        generators = content_generators(batch["rows"])
        epsilon = torch.stack([torch.randn(x0.shape[1:], generator=g) for g in generators]).to(self.device)
        steps = self.hparams.diffusion_steps
        t = torch.cat([torch.randint(steps, (1,), generator=g) for g in generators]).to(self.device)
        loss = self._loss(batch, x0, t, epsilon)
        self.log("val/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)

    def on_test_start(self) -> None:
        data = self.trainer.datamodule
        songs = (known_songs(data.parts(split)) for split in ("train", "test"))
        self._examiner = Examiner(self, *songs, untrained=data.untrained)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Measurements:
        return Measurements(self._examiner.measure(batch))

    def test_summary(self, items: Sequence[SongScores], pictures: int) -> Summary:
        return summarize(items, pictures)

    def _loss(
        self, batch: Mapping[str, Tensor], x0: Tensor, t: Tensor, epsilon: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        diffusion = LatentDiffusion(self.hparams.diffusion_steps, objective=self.hparams.objective)
        return diffusion.loss(self.network, x0, self.condition(batch, keep), t, epsilon)

    # Composing

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Songs stay apart."""
        return list(examples)

    def render(self, batch: Sequence[Mapping[str, Any]], noise: Noise) -> Iterator[tuple[int, Rendering]]:
        """Compose songs, see `composing.py`.

        Args:
            batch: What `codec.encode` returned for each input; for new songs nothing that matters.
            noise: The only source of randomness.

        Yields:
            Position of a song in the batch, and the song.
        """
        yield from enumerate(compose(self, [example.get("song") for example in batch], noise))

    @classmethod
    def is_published(cls, path: Path) -> bool:
        """Whether a folder is a repository of a published denoiser."""
        return is_denoiser(path)

    @classmethod
    def read_published(cls, path: Path) -> Published:
        """Read a published denoiser, see `checkpoint.py`. Its autoencoder is `phrase-vae` beside it, or on the Hub."""
        published = read_denoiser(path)
        options = dict(published.options)
        options.pop("published")
        conditions = ["length"] * options.pop("length") + ["sections"] * (options.pop("sections") is not None)
        scale, clip = options.pop("scale"), options.pop("clip")
        options |= {"conditions": conditions, "slots": 4, "compat": "published"}
        options |= {"max_bars": options.pop("rows") // 4, "diffusion_steps": options.pop("steps")}
        options |= {"solver": "ddpm", "sample_steps": options["diffusion_steps"]}
        vae = (path if path.is_dir() else path.parent).parent / PUBLISHED_VAE
        options["vae"] = str(vae) if is_autoencoder(vae) else f"hf://{PUBLISHED_OWNER}/{PUBLISHED_VAE}"
        state = {f"network.{name}": tensor for name, tensor in published.state.items()}
        state |= {"scale": torch.tensor(scale), "clip": torch.tensor(clip), "measured": torch.tensor(True)}
        return Published(options, state)
