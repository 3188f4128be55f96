"""Generation: pieces of music -> codes of their samples, block by block, many at a time.

The first sample is silence; each step puts in one sample and draws the next. Whatever a piece needs (notes read by the
encoder, noise, recorded samples) is fetched for one block after the other, so pieces may be of any length, and a caller
can hear the beginning before the end is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from midisynth.audio.crossfade import CrossFade
from midisynth.models.midi2wave.engines import Engine
from midisynth.models.midi2wave.heads import Head
from midisynth.models.midi2wave.network import WaveNetAutoencoder
from midisynth.models.midi2wave.pieces import LongRoll

#: Ticks that are made before the caller gets them, and those that the encoder reads at once.
BLOCK_TICKS, ENCODER_TICKS = 500, 2000
#: Columns of conditioning that a transposed convolution may make at once; each takes 5.6 kB in the published size.
UPSAMPLED_COLUMNS = 4096


@dataclass(frozen=True)
class Piece:
    """What one stream becomes.

    Attributes:
        roll: [rows, ticks], at least as long as the samples, or what makes it as it is read; None without encoder.
        samples: Length of the output.
        noise: [samples, draws] in [0, 1), of which row s draws sample s + 1; or a generator of the CPU.
        teacher: [n] codes that are put in before the stream goes on from its own.
        attributes: [values] of the recording to sound like; None is unknown.
        start: Tick of the roll with which the output begins. The encoder has read what is before.
    """

    roll: Tensor | LongRoll | None
    samples: int
    noise: Tensor | torch.Generator
    teacher: Tensor | None = None
    attributes: Tensor | None = None
    start: int = 0


@torch.inference_mode()
def generate(
    network: WaveNetAutoencoder, engine: Engine, pieces: Sequence[Piece], keep_teacher: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """Make the samples of pieces, all of them at the same time.

    Args:
        network: In evaluation mode.
        engine: Made for its decoder. If it guides, attributes of pieces count against unknown ones.
        pieces: What to make.
        keep_teacher: Output what was put in where that is given, and not what the network makes of its past.

    Yields:
        Position of a piece, and its next codes [samples] on the CPU.

    Raises:
        ValueError: A roll ends before its samples.
    """
    hop = network.decoder.hop
    conditionings = [_Conditioning(network, piece, engine.passes) for piece in pieces]
    for position, piece in enumerate(pieces):
        silence = torch.tensor([engine.head.levels // 2])
        yield position, _with_teacher(silence, piece, 0) if keep_teacher else silence
    active = [position for position, piece in enumerate(pieces) if piece.samples > 1]
    state = engine.start(len(active))
    tick = 0
    while active:
        ends = [-(-(pieces[position].samples - 1) // hop) for position in active]
        if engine.flat:
            # Finished streams cost nothing, but what is recorded for all of them would have to be recorded anew.
            ends = [max(ends)] * len(ends)
        last = min(tick + _block_ticks(network), *ends)
        first_step, last_step = tick * hop, min(last * hop, max(pieces[p].samples for p in active) - 1)
        codes = engine.run(
            state,
            torch.cat([conditionings[position].columns(tick, last) for position in active]),
            1 if network.decoder.upsampling is not None else hop,
            torch.stack([_noise(pieces[position], first_step, last_step, engine.head) for position in active]),
            _teacher([pieces[position] for position in active], first_step, last_step),
        )
        for position, made in zip(active, codes, strict=True):
            piece = pieces[position]
            made = made[: max(0, piece.samples - 1 - first_step)]
            if len(made):
                yield position, _with_teacher(made, piece, first_step + 1) if keep_teacher else made
        tick = last
        going_on = [index for index, end in enumerate(ends) if end > tick]
        if len(going_on) < len(active):
            state = engine.keep(state, going_on)
            active = [active[index] for index in going_on]


@torch.inference_mode()
def generate_in_segments(
    network: WaveNetAutoencoder,
    engine: Engine,
    piece: Piece,
    generator: Callable[[int], torch.Generator],
    decode: Callable[[Tensor], Tensor],
    segment: int,
    warmup: int,
    overlap: int,
    streams: int = 64,
    keep_teacher: bool = False,
) -> Iterator[Tensor]:
    """Make one piece in segments at the same time, which suits engines that make many streams as fast as one.

    A segment begins in silence and does not know the ones before: it hears notes that they began only as far as the
    encoder remembers them. It makes and drops some ticks first, and its end fades into the next.

    Args:
        network: In evaluation mode.
        engine: Made for its decoder.
        piece: What to make; its noise is not used.
        generator: Makes the noise of a segment, by its index.
        decode: Codes -> audio.
        segment: Ticks from the start of a segment to that of the next.
        warmup: Ticks that are made and dropped before a segment, as far as the piece has begun.
        overlap: Ticks of the fade.
        streams: Segments that are made at the same time.
        keep_teacher: As in `generate`.

    Yields:
        The next audio, [samples].
    """
    hop = network.decoder.hop
    ticks = -(-piece.samples // hop)
    starts = range(0, max(1, ticks - overlap), segment)
    warmups = [min(warmup, start) for start in starts]
    parts = [
        _part(piece, start - before, min(piece.samples, (start + segment + overlap) * hop), hop, generator(index))
        for index, (start, before) in enumerate(zip(starts, warmups, strict=True))
    ]
    joined = CrossFade(overlap * hop)
    for first in range(0, len(parts), streams):
        group = parts[first : first + streams]
        made: list[list[Tensor]] = [[] for _ in group]
        for position, codes in generate(network, engine, group, keep_teacher):
            made[position].append(codes)
        for codes, before in zip(made, warmups[first:], strict=False):
            yield joined.push(decode(torch.cat(codes)[before * hop :])[:, None])[:, 0]
    yield joined.finish()[:, 0]


def _part(piece: Piece, first: int, end: int, hop: int, noise: torch.Generator) -> Piece:
    """What lies between a tick and a sample of a piece."""
    teacher = None if piece.teacher is None else piece.teacher[first * hop :]
    return Piece(piece.roll, end - first * hop, noise, teacher, piece.attributes, piece.start + first)


def _block_ticks(network: WaveNetAutoencoder) -> int:
    if network.decoder.upsampling is None:
        return BLOCK_TICKS
    return max(1, UPSAMPLED_COLUMNS // network.decoder.hop)


def _noise(piece: Piece, first: int, last: int, head: Head) -> Tensor:
    """Uniforms [last - first, draws] of steps."""
    if isinstance(piece.noise, torch.Generator):
        # With a model in half precision torch would else draw one of 256 numbers.
        return torch.rand(last - first, head.draws, generator=piece.noise, dtype=torch.float32)
    noise = piece.noise[first:last]
    return F.pad(noise, (0, 0, 0, last - first - len(noise)))


def _teacher(pieces: Sequence[Piece], first: int, last: int) -> Tensor | None:
    """Codes [pieces, last - first] that are put in at steps, -1 where there are none; None if there are none at all."""
    rows = [torch.empty(0, dtype=torch.int64) if p.teacher is None else p.teacher[first:last].cpu() for p in pieces]
    if not any(len(row) for row in rows):
        return None
    return torch.stack([F.pad(row, (0, last - first - len(row)), value=-1) for row in rows])


def _with_teacher(codes: Tensor, piece: Piece, first: int) -> Tensor:
    """Codes [samples] from sample `first` on, with the given ones in their place."""
    if piece.teacher is None:
        return codes
    given = piece.teacher[first : first + len(codes)].cpu()
    return torch.cat([given, codes[len(given) :]])


class _Conditioning:
    """What the layers of the decoder add to their gates, for a piece.

    Args:
        network: The network.
        piece: The piece.
        passes: Of the engine; the second one's attributes are unknown.

    Raises:
        ValueError: The roll ends before the samples.
    """

    def __init__(self, network: WaveNetAutoencoder, piece: Piece, passes: int):
        decoder = network.decoder
        self._network, self._roll, self._start = network, piece.roll, piece.start
        #: Tells device and type.
        self._weight = decoder.dilated.weight
        self._passes, self._attributes = passes, None
        if piece.attributes is not None:
            known = piece.attributes.to(self._weight)
            self._attributes = known[None] if passes == 1 else decoder.global_cond.with_unknown(known)
        #: Ticks before, which a transposed convolution spreads as far as a tick.
        self._before = 0 if decoder.upsampling is None else -(-decoder.upsampling.kernel_size[0] // decoder.hop) - 1
        self._read = range(0)
        self._end = piece.start + -(-(piece.samples - 1) // decoder.hop)
        if network.encoder is not None and self._end > piece.roll.shape[-1]:
            raise ValueError(f"{piece.samples} samples need {self._end} ticks of the roll, not {piece.roll.shape[-1]}")

    def columns(self, first: int, last: int) -> Tensor:
        """[passes, columns, layers, 2R] of ticks of the output: one column each, or one for each sample if upsampled.

        After the end of the piece there are zeros.
        """
        decoder = self._network.decoder
        repeats = decoder.hop if decoder.upsampling is not None else 1
        columns = (last - first) * repeats
        first, last = first + self._start, min(last + self._start, self._end)
        shape = self._passes, columns, len(decoder.dilations), 2 * decoder.residual_channels
        found = torch.zeros(shape, dtype=torch.float32, device=self._weight.device)
        if first >= last:
            return found
        before = min(self._before, first)
        z = None if self._network.encoder is None else self._context(first - before, last)
        added = decoder.layer_conditioning(z, self._attributes)
        if added is not None:
            found[:, : (last - first) * repeats] = added.permute(0, 3, 1, 2)[:, before * repeats :]
        return found

    def _context(self, first: int, last: int) -> Tensor:
        """What the encoder makes of ticks; it reads more at once, and keeps them.

        [1, channels, last - first]: one for all passes, or one for each if the encoder itself is told attributes.
        """
        if first not in self._read or last > self._read.stop:
            self._read = range(first, min(max(last, first + ENCODER_TICKS), self._roll.shape[-1]))
            # A column depends on as many before it.
            history = min(self._network.encoder.receptive_field, first)
            known = self._roll[:, first - history : self._read.stop + self._network.lookahead]
            z = self._network.encode(known[None].to(self._weight), self._attributes)
            self._z = z[..., history : history + len(self._read)]
        return self._z[..., first - self._read.start : last - self._read.start]
