"""`Midi2Wave`: training, and rendering of pieces of any length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from midisynth.audio.companding import Companding
from midisynth.errors import DataError, UsageError
from midisynth.evaluation import Renditions
from midisynth.generation import SamplingRules
from midisynth.models.midi2wave.aggressive import AggressiveTraining
from midisynth.models.midi2wave.bottleneck import ArgmaxBottleneck, diversity
from midisynth.models.midi2wave.checkpoint import read_published
from midisynth.models.midi2wave.conditioning import ATTRIBUTES, GlobalConditioning, Vocabulary
from midisynth.models.midi2wave.engines import Engine, choose
from midisynth.models.midi2wave.evaluation import evaluate_batch
from midisynth.models.midi2wave.heads import Categorical, Head, LogisticMixture
from midisynth.models.midi2wave.network import Direct, WaveNet, WaveNetAutoencoder
from midisynth.models.midi2wave.options import ENCODER, build_regime, check, of_network
from midisynth.models.midi2wave.pieces import PedalKind, PieceCodec, RollKind
from midisynth.models.midi2wave.rendering import render
from midisynth.models.midi2wave.scheduled import ScheduledSampling
from midisynth.module import MidiModule, Noise, Published, Rendering

#: Larger tables of codes are not made without being asked for.
MOST_EMBEDDED = 1024


class Midi2Wave(MidiModule):
    """MIDI -> audio, sample by sample: a WaveNet that is conditioned on what another one makes of the piano roll.

    The defaults are the sizes of the published configuration, with corrected behaviour and the roll of the paper.

    Args:
        sample_rate: Of the audio (Hz).
        ticks_per_sec: Of the piano roll (Hz); a divisor of the rate.
        levels: Codes of a sample.
        law: How codes stand for amplitudes: "mu" for few levels, "linear" for 16 bit.
        past: How the decoder reads the samples before: "embedded" looks codes up in a table, "scalar" takes amplitudes,
            from which it learns faster at first; "auto" embeds up to 1024 levels.
        head: What the decoder says of the next code: "categorical", a probability of each, or "mixture", a mixture of
            logistics, which does for 16 bit, too.
        components: Logistics of the mixture.
        log_scale: What bounds the scales of logistics: "sigmoid" as published, or "clamp" as PixelCNN++.
        roll: What the encoder reads of the notes: "onset", "sustained", or "both", one above the other.
        pedal: "none" leaves the sustain pedal out; "row" shows where it moves, "hold" its value; "extend" lets notes
            sound until key and pedal are up.
        decoder: Options of the decoder, see `network.WaveNet`; those that are not named are as published.
        encoder: Options of the encoder, likewise.
        conditioned: Whether the decoder knows the notes; without, it makes audio from nothing.
        context_stack: Whether there is an encoder; without, the decoder is conditioned on the roll itself.
        bottleneck: "argmax" makes one of as many codes as the encoder has channels of each tick, "gumbel" draws it
            while it trains; null passes the channels on as they are.
        bottleneck_temperature: Of the Gumbel softmax.
        diversity_weight: How much it counts that all codes are used equally.
        lookahead_ticks: The encoder sees the roll so many ticks early.
        attributes: What the decoder is told of a recording: names out of year, composer and piano, each with the list
            of values, or with null for all of those that the corpora have in training.
        unknown_probability: Probability that training does not tell an attribute.
        history_noise: Standard deviation of noise on the past that training shows (codes), against drifting off.
        scheduled_sampling: Options of `scheduled.ScheduledSampling`; null trains on true pasts alone.
        aggressive: Options of `aggressive.AggressiveTraining`; null trains encoder and decoder together.
        year: Year of recording to sound like, or weights of several, such as {"2009": 0.5, "2011": 0.5}; null is
            unknown.
        composer: Likewise, the composer as the corpus spells it.
        piano: Likewise, the piano.
        attribute_guidance: How much what is chosen of these three counts against unknown: 1 is as it is; above
            exaggerates, with a second pass of the decoder for every sample. Of categorical heads alone, whose outputs
            are log probabilities of codes: those of a mixture, added up, are not those of any mixture.
        temperature: Below 1 rendering keeps to what is probable; 0 takes the most probable.
        top_p: Rendering draws from the most probable codes that have this probability together.
        tail_sec: What is rendered after the end of the last note (seconds).
        prompt: Recording that rendering goes on from: an audio file, or a folder with a file of the same name for every
            input; null starts from silence. It begins when the MIDI file does.
        prompt_sec: How much of it is used (seconds); null uses all of it.
        keep_prompt: Put the recording itself in the output where it is used, not what the network makes of its past.
        start_sec: Where rendering starts in a piece (seconds).
        length_sec: Its greatest length (seconds); null renders to the end.
        segment_sec: Length of the segments that are rendered at the same time (seconds), which is faster on a GPU, but
            is not free of seams; null renders a piece from its start to its end.
        warmup_sec: What each segment renders and drops before it is heard (seconds).
        engine: Of rendering: "torch", "numba", "cuda"; "auto" takes the fastest that there is.
        compat: "seed" reproduces the original's training: the loss of mixtures, dropout, rolls that add up, noise for
            codes.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds a learning-rate schedule from the optimizer; it advances once a step.
    """

    codec: PieceCodec
    draws = True

    def __init__(
        self,
        sample_rate: int = 16000,
        ticks_per_sec: int = 250,
        levels: int = 256,
        law: Literal["mu", "linear"] = "mu",
        past: Literal["auto", "embedded", "scalar"] = "auto",
        head: Literal["categorical", "mixture"] = "categorical",
        components: int = 10,
        log_scale: Literal["sigmoid", "clamp"] = "sigmoid",
        roll: RollKind = "onset",
        pedal: PedalKind = "none",
        decoder: dict[str, Any] | None = None,
        encoder: dict[str, Any] | None = None,
        conditioned: bool = True,
        context_stack: bool = True,
        bottleneck: Literal["argmax", "gumbel"] | None = None,
        bottleneck_temperature: float = 1.0,
        diversity_weight: float = 0.01,
        lookahead_ticks: int = 0,
        attributes: dict[str, Any] | None = None,
        unknown_probability: float = 0.1,
        history_noise: float = 0.0,
        scheduled_sampling: dict[str, Any] | None = None,
        aggressive: dict[str, Any] | None = None,
        year: str | int | dict[str, float] | None = None,
        composer: str | dict[str, float] | None = None,
        piano: str | dict[str, float] | None = None,
        attribute_guidance: float = 1.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        tail_sec: float = 1.0,
        prompt: str | None = None,
        prompt_sec: float | None = 2.0,
        keep_prompt: bool = False,
        start_sec: float = 0.0,
        length_sec: float | None = None,
        segment_sec: float | None = None,
        warmup_sec: float = 1.0,
        engine: Literal["auto", "torch", "numba", "cuda"] = "auto",
        compat: Literal["seed"] | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(optimizer, lr_scheduler)
        check(self.hparams)
        self.codec = PieceCodec(
            roll, pedal, sample_rate, ticks_per_sec, compat, tail_sec, prompt, start_sec, length_sec
        )
        self.companding = Companding(levels, law)
        self.head: Head = (
            Categorical(levels)
            if head == "categorical"
            else LogisticMixture(components, levels, scale=log_scale, compat=compat)
        )
        # Refuses what is out of range, in the words of every model that samples.
        SamplingRules(temperature, top_p=top_p)
        self.vocabulary = Vocabulary(self._known_attributes())
        self.network = self._build_network()
        self.scheduled = build_regime("scheduled_sampling", ScheduledSampling, scheduled_sampling)
        self.aggressive = build_regime("aggressive", AggressiveTraining, aggressive)
        # Losses of batches since the last step, and whether there was one: gradients of several may be added up.
        self._losses: list[Tensor] = []
        self._stepped = False

    def _known_attributes(self) -> dict[str, Sequence[str]]:
        attributes = self.hparams.attributes or {}
        if unknown := attributes.keys() - set(ATTRIBUTES):
            raise UsageError(f"attributes: {min(unknown)} is none of {', '.join(ATTRIBUTES)}")
        return {name: [str(value) for value in values or ()] for name, values in attributes.items()}

    def _build_network(self) -> WaveNetAutoencoder:
        options = self.hparams
        encoder: WaveNet | Direct | None = None
        if options.conditioned and not options.context_stack:
            encoder = Direct(self.codec.rows)
        elif options.conditioned:
            given = of_network("encoder", options.encoder)
            encoder = WaveNet(
                **{**ENCODER, **given}, inputs=self.codec.rows, kind="rows", conditioning=0, compat=options.compat
            )
        given = of_network("decoder", options.decoder)
        if "outputs" in given:
            raise UsageError(f"decoder.outputs follows from the head, which takes {self.head.outputs}: leave it out")
        past = options.past
        if past == "auto":
            # A table of all 16-bit codes would be larger than the rest of the network.
            past = "embedded" if options.levels <= MOST_EMBEDDED else "scalar"
        decoder = WaveNet(
            **given,
            inputs=options.levels,
            kind=past,
            outputs=self.head.outputs,
            conditioning=encoder.outputs if encoder is not None else 0,
            hop=self.codec.hop,
            attributes=self.vocabulary.sizes,
            compat=options.compat,
        )
        if decoder.outputs != self.head.outputs:
            raise UsageError(f"decoder.residual must be {self.head.outputs}, which the head takes: there are no skips")
        bottleneck = None
        if options.bottleneck is not None:
            bottleneck = ArgmaxBottleneck(options.bottleneck, options.bottleneck_temperature, options.compat)
        return WaveNetAutoencoder(decoder, encoder, bottleneck, options.lookahead_ticks)

    @property
    def receptive_ticks(self) -> int:
        """Ticks that reach a tick of audio, through both networks."""
        encoder = self.network.encoder
        heard = -(-self.network.decoder.receptive_field // self.codec.hop)
        return heard + (0 if encoder is None else encoder.receptive_field)

    # What is known of a recording

    @property
    def unlearned_attributes(self) -> list[str]:
        """Names of the attributes whose values the corpora shall tell."""
        return [name for name, values in (self.hparams.attributes or {}).items() if values is None]

    def learn_attributes(self, recordings: Sequence[Mapping[str, str]]) -> None:
        """Take the values of attributes from the recordings of a training, and make room for them in the network.

        Args:
            recordings: Names of attributes to their values, of each.

        Raises:
            UsageError: None of them has one of the attributes.
        """
        known = self._known_attributes()
        for name in self.unlearned_attributes:
            known[name] = sorted({recording[name] for recording in recordings if name in recording})
            if not known[name]:
                raise UsageError(f"attributes.{name}: no recording of the corpora has one; leave it out")
        # In the checkpoint, which is then read without the corpora.
        self.hparams.attributes = known
        self.vocabulary = Vocabulary(known)
        decoder = self.network.decoder
        decoder.global_cond = GlobalConditioning(
            self.vocabulary.sizes, 2 * decoder.residual_channels * len(decoder.dilations)
        ).to(self.device)

    def chosen_attributes(self) -> Tensor | None:
        """What rendering is told of the recording it shall sound like, [1, values]; None for nothing.

        Raises:
            UsageError: The model does not know an attribute or a value.
        """
        chosen = {name: self.hparams[name] for name in ATTRIBUTES if self.hparams[name] is not None}
        if not chosen:
            return None
        texts = {name: value if isinstance(value, Mapping) else str(value) for name, value in chosen.items()}
        return self.vocabulary.row(texts, strict=True)[None].to(self.device)

    # Training

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        for name in ("scheduled", "aggressive"):
            if (regime := getattr(self, name)) is not None:
                checkpoint[name] = regime.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        for name in ("scheduled", "aggressive"):
            if (regime := getattr(self, name)) is not None and name in checkpoint:
                regime.load_state_dict(checkpoint[name])

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        codes = self.companding.encode(batch["audio"])
        attributes = batch["attributes"]
        if self.vocabulary.values:
            attributes = self.vocabulary.drop(attributes, self.hparams.unknown_probability)
        result = self.network(batch["roll"], self._past(codes, batch["roll"], attributes), attributes)
        loss = self.head.loss(result.logits, codes)
        size = len(codes)
        if result.usage is not None:
            self.log("train/perplexity", result.perplexity, batch_size=size)
            loss = loss + self.hparams.diversity_weight * diversity(result.usage)
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        return loss

    def _past(self, codes: Tensor, roll: Tensor, attributes: Tensor) -> Tensor:
        """The past that the network is shown of true codes [batch, samples]."""
        if self.hparams.history_noise:
            noise = self.hparams.history_noise * torch.randn(codes.shape, device=codes.device)
            codes = (codes + noise.round().long()).clamp(0, self.hparams.levels - 1)
        if self.scheduled is None or not self.scheduled.kept:
            return codes
        self.network.eval()
        with torch.no_grad():
            z = self.network.encode(roll, attributes)
            past = self.scheduled(codes, lambda shown: self.sample(self.network.decode(shown, z, attributes)))
        self.network.train()
        return past

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a code for every column of [batch, outputs, samples]: [batch, samples]; generator of the CPU."""
        columns = logits.transpose(1, 2).flatten(0, 1)
        device = None if generator is not None else logits.device
        shape = len(columns), self.head.draws
        uniforms = torch.rand(shape, generator=generator, dtype=torch.float32, device=device).to(logits.device)
        return self.head.sample(columns, uniforms).view(len(logits), -1)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._stepped = True
        if self.aggressive is None or self.aggressive.half == "both":
            return
        resting = self.network.decoder if self.aggressive.half == "encoder" else self.network.encoder
        # An optimizer leaves alone what has no gradient, its running means included.
        for parameter in resting.parameters():
            parameter.grad = None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        regimes = [regime for regime in (self.scheduled, self.aggressive) if regime is not None]
        if not regimes:
            return
        # Lightning divides the loss by the number of batches of a step.
        self._losses.append(outputs["loss"].detach() * self.trainer.accumulate_grad_batches)
        if self._stepped:
            mean = torch.stack(self._losses).mean()
            self._losses, self._stepped = [], False
            # Every process has to come to the same decisions.
            loss = float(self.trainer.strategy.reduce(mean, reduce_op="mean"))
            for regime in regimes:
                regime.update(loss)

    # Evaluation

    def logits(self, codes: Tensor, roll: Tensor, attributes: Tensor | None = None) -> Tensor:
        """What the decoder says of every code that it is shown, from those before: [batch, outputs, samples].

        Args:
            codes: [batch, samples].
            roll: [batch, rows, ticks].
            attributes: [batch, values]; None is unknown.
        """
        return self.network.decode(codes, self.network.encode(roll, attributes), attributes)

    def nll(self, batch: Mapping[str, Tensor], roll: Tensor) -> Tensor:
        """Negative log likelihood (nats per sample) of each item [batch] after its history, given a roll."""
        codes = self.companding.encode(batch["audio"])
        logits = self.logits(codes, roll, batch["attributes"])
        history = int(batch["history"][0])
        return self.head.nll(logits[..., history:], codes[:, history:]).mean(dim=1)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        nll, size = self.nll(batch, batch["roll"]), len(batch["audio"])
        self.log("val/loss", nll.mean(), prog_bar=True, batch_size=size, sync_dist=True)
        self.log("val/bits", nll.mean() / math.log(2), batch_size=size, sync_dist=True)
        if "other" in batch:
            gain = (self.nll(batch, batch["other"]) - nll).mean() / math.log(2)
            self.log("val/sensitivity", gain, prog_bar=True, batch_size=size, sync_dist=True)

    def on_validation_end(self) -> None:
        if self.aggressive is None or self.trainer.sanity_checking:
            return
        measured = self.trainer.callback_metrics.get("val/sensitivity")
        if measured is not None:
            self.aggressive.take_information(float(measured))
        elif self.aggressive.waits_for_information:
            raise DataError(
                "aggressive: there is one segment for validation, and criterion information compares the notes of two: "
                "choose another criterion, or more data for validation"
            )

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> Renditions:
        return evaluate_batch(self, batch)

    @classmethod
    def read_published(cls, path: Path) -> Published:
        """Read a checkpoint of the original, see `checkpoint.read_published`."""
        return read_published(path)

    # Rendering

    def make_engine(self, guidance: float = 1.0) -> Engine:
        """What makes samples one by one, of the present weights; guidance as in `Engine`."""
        options = self.hparams
        drawing = options.temperature, options.top_p, options.engine, guidance
        return choose(self.network.decoder, self.head, *drawing)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Files stay apart."""
        return list(examples)

    def duration_sec(self, example: Mapping[str, Any]) -> float:
        """Length of the output of one file (seconds)."""
        return example["ticks"] / self.codec.ticks_per_sec

    def render(self, batch: Sequence[Mapping[str, Any]], noise: Noise) -> Iterator[tuple[int, Rendering]]:
        """Make audio from rolls, see `rendering.render`."""
        return render(self, batch, noise)
