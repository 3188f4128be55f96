"""Files to audio: whole, or in segments at the same time; and pictures of their rolls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from midisynth.models.midi2wave.engines import Engine
from midisynth.models.midi2wave.generation import Piece, generate, generate_in_segments
from midisynth.models.midi2wave.pieces import LongRoll, PieceCodec
from midisynth.module import Noise, Rendering
from midisynth.music.rolls import KEYS, LOWEST_KEY
from midisynth.pictures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from midisynth.models.midi2wave.model import Midi2Wave

#: Height of the picture of a roll (inches).
ROLL_HEIGHT = 4.0
#: Most columns of such a picture.
ROLL_COLUMNS = 2000
#: Fade from one segment to the next (seconds).
FADE_SEC = 0.05


def render(model: Midi2Wave, batch: Sequence[Mapping[str, Any]], noise: Noise) -> Iterator[tuple[int, Rendering]]:
    """Make audio of files.

    Args:
        model: In evaluation mode.
        batch: What `PieceCodec.encode` returned for each file.
        noise: The only source of randomness.

    Yields:
        Position of a file in the batch, and the next chunk of its audio, [1, samples].
    """
    options = model.hparams
    pieces = [_piece(model, example, noise.generator(position)) for position, example in enumerate(batch)]
    if model.plot:
        for position, piece in enumerate(pieces):
            yield position, Rendering(figure=draw_roll(piece, model.codec))
    engine = model.make_engine(options.attribute_guidance)
    if options.segment_sec is None:
        codes = generate(model.network, engine, pieces, options.keep_prompt)
        chunks = ((position, model.companding.decode(block)) for position, block in codes)
    else:
        chunks = _in_segments(model, engine, pieces, noise)
    for position, audio in chunks:
        if len(audio):
            yield position, Rendering(audio=audio[None], sample_rate=model.codec.sample_rate)


def _in_segments(
    model: Midi2Wave, engine: Engine, pieces: Sequence[Piece], noise: Noise
) -> Iterator[tuple[int, Tensor]]:
    """The segments of one piece at the same time, one piece after the other."""
    options, rate = model.hparams, model.codec.ticks_per_sec
    for position, piece in enumerate(pieces):
        audio = generate_in_segments(
            model.network,
            engine,
            piece,
            partial(noise.generator, position),
            model.companding.decode,
            segment=max(round(options.segment_sec * rate), 1),
            warmup=round(options.warmup_sec * rate),
            overlap=round(FADE_SEC * rate),
            keep_teacher=options.keep_prompt,
        )
        for block in audio:
            yield position, block


def _piece(model: Midi2Wave, example: Mapping[str, Any], generator: torch.Generator) -> Piece:
    codec, network = model.codec, model.network
    history = min(example["first"], network.encoder.receptive_field if network.encoder is not None else 0)
    first, ticks = example["first"] - history, history + example["ticks"] + network.lookahead
    attributes = model.chosen_attributes()
    prompt = example["prompt"]
    if model.hparams.prompt_sec is not None:
        prompt = prompt[: round(model.hparams.prompt_sec * codec.sample_rate)]
    return Piece(
        roll=LongRoll(codec, example["performance"], first, ticks),
        samples=example["ticks"] * codec.hop,
        noise=generator,
        teacher=model.companding.encode(torch.from_numpy(prompt)),
        attributes=None if attributes is None else attributes[0],
        start=history,
    )


def draw_roll(piece: Piece, codec: PieceCodec) -> Figure:
    """What the encoder reads of the notes that are rendered: the loudest of the ticks of every column.

    Args:
        piece: What is rendered.
        codec: Of the model.

    Raises:
        MidisynthError: matplotlib is not installed.
    """
    figure, (axis,) = new_figure(1, ROLL_HEIGHT)
    ticks = -(-piece.samples // codec.hop)
    keys = piece.roll[:KEYS, piece.start : piece.start + ticks]
    pooled = max(ticks // ROLL_COLUMNS, 1)
    shown = F.max_pool1d(keys, pooled, ceil_mode=True)
    seconds = shown.shape[1] * pooled / codec.ticks_per_sec
    extent = (0, seconds, LOWEST_KEY - 0.5, LOWEST_KEY + KEYS - 0.5)
    image = axis.imshow(
        shown.numpy(),
        origin="lower",
        aspect="auto",
        extent=extent,
        cmap="magma",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    figure.colorbar(image, ax=axis, fraction=0.03, label="velocity / 127")
    axis.set_xlabel("seconds")
    axis.set_ylabel("MIDI key")
    return figure
