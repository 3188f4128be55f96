"""`MidiValle`: training, and rendering of whole performances in the sound of a prompt."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from midisynth.checkpoints import load_model
from midisynth.diffusion.sampling import content_generators
from midisynth.errors import CheckpointError, UsageError
from midisynth.evaluation import Renditions
from midisynth.generation import SamplingRules
from midisynth.metrics.embeddings import AudioEmbedding, CodecEmbedding
from midisynth.models.midi_valle.checkpoint import read_language_models
from midisynth.models.midi_valle.codec import PER_SECOND, Compat, NoteRows
from midisynth.models.midi_valle.codecs import load_neural_codec, read_neural_codec
from midisynth.models.midi_valle.evaluation import evaluate_batch
from midisynth.models.midi_valle.losses import Losses, NarDraw, PrefixMode, draw_nar
from midisynth.models.midi_valle.network import NOTE_DIMS, VOCABULARIES, ValleNetwork
from midisynth.models.midi_valle.neural_codec_model import PianoCodec
from midisynth.models.midi_valle.options import check_options, sampling_rules
from midisynth.models.midi_valle.pieces import Cutter, Held, told
from midisynth.models.midi_valle.prompts import (
    PROMPT_SEC,
    Check,
    Prompt,
    default_prompt,
    load_prompt,
)
from midisynth.models.midi_valle.rendering import Cutting, PieceCodec, generate_codes, render_pieces
from midisynth.models.midi_valle.segments import Segment
from midisynth.module import MidiModule, Noise, Published, Rendering
from midisynth.music.notes import Performance

#: What is trained: both language models, the autoregressive one, or the other one.
logger = logging.getLogger(__name__)

Stage = Literal["joint", "ar", "nar"]
STAGES: tuple[Stage, ...] = ("joint", "ar", "nar")

#: Of the published codec, and the scale of positions; a codec of another rate learns another slope.
FRAMES_PER_SEC = 50

#: The published language models, and the neural codec that they were trained with, which is looked for beside them.
PUBLISHED_FILE, PUBLISHED_CODEC = "best-valid-loss.pt", "compression_32khz_new.bin"


class MidiValle(MidiModule):
    """Performance MIDI -> audio that sounds like a prompt: a few seconds of any recording with its notes.

    One language model writes the first code of every frame of a neural codec, another one the other codes. The defaults
    are the published sizes.

    Args:
        neural_codec: Audio to codes and back: a checkpoint of `midi_valle_codec`, a file that audiocraft has exported
            (.bin or .th), or `hf://owner/name`; "untrained" is a small one with random weights, for trying things out.
        codebooks: Codes of a frame that are modelled; the codec can have more.
        bins: Values that a code can have, as the codec has them.
        prompt_audio: Recording to sound like; null: the prompt that ships.
        prompt_midi: Notes of the same seconds.
        prompt_sec: What is heard of the prompt (seconds).
        prompt_check: What happens if the notes of the prompt are not heard in its recording: "stop" refuses it, "warn"
            says so and goes on.
        temperature: Divides the logits of the first code; 0 always takes the likeliest one.
        top_k: Draw from this many of the likeliest codes; 0: from all.
        top_p: Draw from the fewest likeliest codes that have this probability together; 1: from all.
        min_segment_sec: Performances are cut where the music leaves room, not before so many seconds.
        max_segment_sec: Longest distance of cuts (seconds).
        overlap_sec: Segments overlap by this much, and are faded in it (seconds).
        ring_sec: Sound after the last note (seconds).
        segments_per_batch: Segments that are generated together.
        context: What a segment continues: "prompt": always the prompt; "previous": the end of the segment before, for
            which it has to wait.
        pedal: Let notes last as long as the sustain pedal holds them; the published model knows keys alone.
        held: What becomes of notes that began before a segment: "drop" leaves them out, "strike" lets them begin again.
        train_stage: What is trained: "joint": everything; "ar": the language model of the first code and the tables of
            notes; "nar": that of the other codes.
        init_from: Checkpoint of an earlier stage that training starts from; null starts with random weights.
        dim: Width.
        heads: Attention heads.
        layers: Layers of each language model.
        nar_scale: Width of the second language model, relative to the first.
        architecture: "vall_e": notes and frames are one sequence; "vall_f": frames attend to notes.
        norm_first: Normalise before each sub-layer, not after it.
        prenet: Put small networks before positions.
        prefix_mode: What the second language model hears of the sound in training: 0: nothing; 1: the start of the
            segment; 2: frames from anywhere in it; 4: frames of the segment before or after it.
        share_embedding: Heads of the second language model are the tables of the codes that follow.
        prepend_bos: Predict the first frame as well.
        note_positions: "count": notes are counted, as published; "onset": each has the position of the frame in which
            it begins, so that less is left to learn.
        dropout: Probability.
        compat: "published" reads notes and counts losses as the original does: padding is learned as well, and stages
            "ar" and "nar" leave the tables of notes as they are.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds a learning-rate schedule from the optimizer; it advances once a step.

    Raises:
        UsageError: Options do not fit together.
    """

    published_files: ClassVar[tuple[str, ...]] = (PUBLISHED_FILE, PUBLISHED_CODEC)
    codec: PieceCodec

    def __init__(
        self,
        neural_codec: str = "hf://facebook/encodec_32khz",
        codebooks: int = 4,
        bins: int = 2048,
        prompt_audio: str | None = None,
        prompt_midi: str | None = None,
        prompt_sec: float = PROMPT_SEC,
        prompt_check: Check = "stop",
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_segment_sec: float = 10.0,
        max_segment_sec: float = 14.0,
        overlap_sec: float = 0.5,
        ring_sec: float = 1.0,
        segments_per_batch: int = 16,
        context: Literal["prompt", "previous"] = "prompt",
        pedal: bool = False,
        held: Held = "drop",
        train_stage: Stage = "joint",
        init_from: str | None = None,
        dim: int = 1024,
        heads: int = 16,
        layers: int = 12,
        nar_scale: float = 1.0,
        architecture: Literal["vall_e", "vall_f"] = "vall_e",
        norm_first: bool = True,
        prenet: bool = False,
        prefix_mode: PrefixMode = 1,
        share_embedding: bool = True,
        prepend_bos: bool = False,
        note_positions: Literal["count", "onset"] = "count",
        dropout: float = 0.1,
        compat: Compat = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(optimizer, lr_scheduler)
        self.declare_part("neural_codec", load_neural_codec, read_neural_codec)
        note_rows = NoteRows(pedal, compat=compat)
        self.codec = PieceCodec(note_rows, Cutting(min_segment_sec, max_segment_sec, overlap_sec, ring_sec))
        check_options(self.hparams, note_rows.max_sec)
        self.network = ValleNetwork(
            dim=dim,
            heads=heads,
            layers=layers,
            codebooks=codebooks,
            bins=bins,
            vocabularies=VOCABULARIES,
            note_dims=NOTE_DIMS,
            architecture=architecture,
            norm_first=norm_first,
            prenet=prenet,
            prefix_mode=prefix_mode,
            share_embedding=share_embedding,
            nar_scale=nar_scale,
            prepend_bos=prepend_bos,
            dropout=dropout,
            note_frames=FRAMES_PER_SEC / PER_SECOND if note_positions == "onset" else None,
            count_padding=compat is not None,
        )
        self._freeze()
        self._prompt: tuple[tuple[Any, ...], Prompt] | None = None

    # Neural codec

    @property
    def neural_codec(self) -> PianoCodec:
        """The codec, on the device of the model.

        Raises:
            CheckpointError: It cannot be loaded, or does not fit the network.
        """
        codec: PianoCodec = self.part("neural_codec")
        options = self.hparams
        if codec.bins != options.bins or codec.codebooks < options.codebooks:
            raise CheckpointError(
                f"neural_codec: {options.neural_codec} has {codec.codebooks} codebooks of {codec.bins} bins, the model "
                f"{options.codebooks} of {options.bins}"
            )
        return codec.to(self.device)

    @property
    def frames_per_sec(self) -> float:
        """Of the codes."""
        codec = self.neural_codec
        return codec.sample_rate / codec.hop

    def cutter(self) -> Cutter:
        """Cuts recordings for training."""
        return Cutter(self.codec.note_rows, self.hparams.held, self.frames_per_sec, self.hparams.codebooks)

    # Training

    @property
    def needs_neighbours(self) -> bool:
        """Whether training batches have prompts out of neighbouring segments."""
        return self.hparams.prefix_mode == 4

    @cached_property
    def _stage(self) -> Literal[0, 1, 2]:
        return STAGES.index(self.hparams.train_stage)  # type: ignore[return-value]

    def _freeze(self) -> None:
        """Leave alone what the stage does not train."""
        options = self.hparams
        trained = {id(parameter) for parameter in self.network.stage_parameters(self._stage)}
        tables = {id(parameter) for parameter in self.network.notes.parameters()}
        if options.compat is not None and options.train_stage != "joint":
            trained -= tables
        elif options.train_stage == "nar" and options.init_from is None:
            # Nobody else has learned them.
            trained |= tables
        for parameter in self.network.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in trained)

    def build_optimizer(self, build: OptimizerCallable) -> torch.optim.Optimizer:
        return build([parameter for parameter in self.parameters() if parameter.requires_grad])

    def initialise(self) -> None:
        """Take the weights of `init_from`.

        Raises:
            CheckpointError: It is no checkpoint of this model, or one of another size.
        """
        reference = self.hparams.init_from
        if reference is None:
            return
        model = load_model(reference)
        if not isinstance(model, MidiValle):
            raise CheckpointError(f"init_from: {reference} is of {type(model).__name__}, not of MidiValle")
        found, own = model.network.state_dict(), self.network.state_dict()
        if {name: tensor.shape for name, tensor in found.items()} != {name: t.shape for name, t in own.items()}:
            raise CheckpointError(f"init_from: {reference} is of another size: give the options it was trained with")
        self.network.load_state_dict(found)

    def _losses(self, batch: Mapping[str, Any], generator: torch.Generator) -> Losses:
        draw: NarDraw | None = None
        if self.network.nar is not None and self.hparams.train_stage != "ar":
            draw = draw_nar(
                self.hparams.prefix_mode,
                self.hparams.codebooks,
                batch["frames"],
                generator,
                batch.get("prompts"),
                round(PROMPT_SEC * self.frames_per_sec),
            )
        return self.network(
            batch["rows"], batch["row_lengths"], batch["codes"], batch["code_lengths"], draw, self._stage
        )

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        # Of the global random numbers, which belong to the step.
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        losses = self._losses(batch, generator)
        loss = losses.total / losses.frames
        self._log("train", losses, sum(batch["frames"]))
        return loss + self._untouched()

    def _untouched(self) -> Tensor | float:
        """Zero, with a gradient of zeros to all that belongs to single codes.

        A batch trains one of the codes. Processes that train together have to agree which parameters have a gradient.
        """
        nar = self.network.nar
        if nar is None or self.hparams.train_stage == "ar":
            return 0.0
        modules = (nar.audio_embeddings, nar.stage_embeddings, nar.predict_layers)
        return sum(parameter.flatten()[0] * 0 for module in modules for parameter in module.parameters())

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        # The same draws for a batch every time: losses of two steps can be compared.
        (generator,) = content_generators(batch["codes"].flatten()[None])
        self._log("val", self._losses(batch, generator), sum(batch["frames"]))

    def _log(self, prefix: str, losses: Losses, frames: int) -> None:
        """Log means over frames (nats)."""
        options: dict[str, Any] = {"batch_size": frames, "sync_dist": prefix == "val"}
        self.log(f"{prefix}/loss", losses.total / losses.frames, prog_bar=True, **options)
        for name in ("ar", "nar"):
            if (value := getattr(losses, name)) is not None:
                self.log(f"{prefix}/{name}_loss", value / losses.frames, **options)
                self.log(f"{prefix}/{name}_top10", getattr(losses, f"{name}_top10"), **options)

    def test_step(self, batch: Sequence[Mapping[str, Any]], batch_idx: int) -> Renditions:
        return evaluate_batch(self, batch)

    def test_embeddings(self) -> list[AudioEmbedding]:
        return [CodecEmbedding(self.neural_codec, "codec", f"neural codec {self.hparams.neural_codec}")]

    # Rendering

    def sampling_rules(self) -> SamplingRules:
        """How the first code of a frame is drawn."""
        return sampling_rules(self.hparams)

    def _check_precision(self) -> None:
        if self.dtype.itemsize < 4:
            raise UsageError(
                f"trainer.precision: the neural codec needs more than {self.dtype}: with bf16-mixed the language "
                "models alone are in half precision"
            )

    def on_test_start(self) -> None:
        self._check_precision()

    def on_predict_start(self) -> None:
        self._check_precision()
        # What is wrong with the prompt is wrong for every input.
        self.prompt()

    def prompt(self) -> Prompt:
        """What the model is to sound like.

        Raises:
            MidisynthError: It cannot be used.
        """
        options = self.hparams
        names = ("prompt_audio", "prompt_midi", "prompt_sec", "prompt_check", "neural_codec")
        key = tuple(options[name] for name in names)
        if self._prompt is None or self._prompt[0] != key:
            audio, midi = default_prompt()
            if options.prompt_audio is not None:
                audio, midi = Path(options.prompt_audio).expanduser(), Path(options.prompt_midi).expanduser()
            rows, seconds, check = self.codec.note_rows, options.prompt_sec, options.prompt_check
            with torch.autocast(self.device.type, enabled=False):
                found = load_prompt(audio, midi, self.neural_codec, rows, seconds, check, self.device)
            for warning in found.warnings:
                logger.warning("%s", warning)
            self._prompt = key, replace(found, codes=found.codes[:, : options.codebooks])
        return self._prompt[1]

    def played(self, segment: Segment) -> Performance:
        """What of a segment the network is told."""
        return told(segment, self.hparams.held)

    def prompted_rows(self, prompt: Prompt, segment: Segment) -> Tensor:
        """Note rows of a prompt and of a segment behind it, [note rows, columns]."""
        return torch.from_numpy(self.codec.note_rows.encode(prompt.followed_by(self.played(segment))))

    def generate(
        self,
        rows: Sequence[Tensor],
        prompts: Sequence[Tensor],
        frames: Sequence[int],
        generators: Sequence[torch.Generator],
        prompt_notes: Sequence[int],
    ) -> list[Tensor]:
        """Generate the codes of segments, all at once.

        Args:
            rows: [note rows, columns] of each segment and its prompt.
            prompts: [frames, codebooks] codes of each prompt.
            frames: How long each becomes.
            generators: The randomness of each, on the CPU.
            prompt_notes: Notes of each prompt.

        Returns:
            [frames, codebooks] of each, without its prompt.
        """
        return generate_codes(self, rows, prompts, frames, generators, prompt_notes)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Performances stay apart."""
        return list(examples)

    def duration_sec(self, example: Mapping[str, Any]) -> float:
        """Length of the audio of one performance (seconds)."""
        return example["performance"].end_sec + self.hparams.ring_sec

    def render(self, batch: Sequence[Mapping[str, Any]], noise: Noise) -> Iterator[tuple[int, Rendering]]:
        """Play performances in the sound of the prompt, see `rendering.py`.

        Args:
            batch: What `codec.encode` returned for each.
            noise: The only source of randomness.

        Yields:
            Position of a performance, and the next chunk of its audio, [1, samples].
        """
        yield from render_pieces(self, batch, noise)

    @classmethod
    def is_published(cls, path: Path) -> bool:
        """Whether a folder holds the published checkpoint and its neural codec."""
        return path.is_dir() and all((path / name).is_file() for name in cls.published_files)

    @classmethod
    def read_published(cls, path: Path) -> Published:
        """Read published language models, see `checkpoint.py`; their neural codec lies beside them."""
        path = path / PUBLISHED_FILE if path.is_dir() else path
        published = read_language_models(path)
        options = dict(published.options)
        for name, expected in (("vocabularies", VOCABULARIES), ("note_dims", NOTE_DIMS)):
            if tuple(found := options.pop(name)) != expected:
                raise CheckpointError(f"{path}: has {name} {list(found)}, not the published {list(expected)}")
        # What it has learned does not depend on how files were read.
        options.pop("count_padding")
        options["neural_codec"] = str(path.with_name(PUBLISHED_CODEC))
        return Published(options, {f"network.{name}": tensor for name, tensor in published.state.items()})
