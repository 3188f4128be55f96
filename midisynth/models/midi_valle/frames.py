"""The first codebook, frame by frame: keys and values are kept, and shapes stay what they are to the end.

Nothing in the loop waits for the device, so that on CUDA a frame is one replay of a captured graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from midisynth.generation import SamplingRules, sample
from midisynth.models.midi_valle.decoders import Autoregressive
from midisynth.nn.cache import KeyValueCache

#: Steps that run before a graph is captured, so that libraries have chosen their kernels.
WARM_UP_STEPS = 2


class FrameLimits(NamedTuple):
    """How long a segment may become, without its prompt.

    Attributes:
        shortest: The end is not drawn before (frames).
        longest: What is written ends here at last (frames).
    """

    shortest: int
    longest: int

    @classmethod
    def exactly(cls, frames: int) -> FrameLimits:
        """A segment of known duration (frames)."""
        return cls(frames, frames)

    @classmethod
    def published(cls, note_rows: int, prepend_bos: bool = False) -> FrameLimits:
        """The original's limit, which cuts off music of less than about three notes a second.

        Args:
            note_rows: Rows of prompt and segment, with the first and the last.
            prepend_bos: Of the network: its start counts as a frame.
        """
        return cls(0, 16 * note_rows + 1 - prepend_bos)


class Padded(NamedTuple):
    """Sequences of different lengths as one tensor.

    Attributes:
        values: [batch, longest, ...].
        lengths: [batch] int64.
        mask: [batch, longest] bool, False for padding.
    """

    values: Tensor
    lengths: Tensor
    mask: Tensor

    @classmethod
    def of(cls, sequences: Sequence[Tensor], device: torch.device) -> Padded:
        """Put sequences [length, ...] side by side."""
        values = pad_sequence([sequence.to(device) for sequence in sequences], batch_first=True)
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
        return cls(values, lengths, torch.arange(values.shape[1], device=device) < lengths[:, None])


class FrameDecoder:
    """Keys and values of a batch of segments, and the next frame of each.

    The caches have a slot for each note row, each frame of the longest prompt and each frame that may follow. Segments
    with fewer notes or a shorter prompt leave slots empty, which nothing attends to; the position of a frame is
    counted from the start of its own prompt, whatever its slot.

    Args:
        ar: In evaluation mode.
        notes: [batch, rows, note_dim] embedded notes of prompt and segment, padded.
        text_mask: [batch, rows] bool, False for padding.
        prompts: First codebooks of the prompts, [batch, frames].
        frames: Most frames that follow.

    Attributes:
        logits: [batch, bins + 1] of the first frame after the prompt.
        slot: [1] int64, where the next frame goes in the caches.
    """

    def __init__(self, ar: Autoregressive, notes: Tensor, text_mask: Tensor, prompts: Padded, frames: int):
        self._ar = ar
        batch, device = len(notes), notes.device
        text = ar.embed_text(notes, text_mask)
        codes, mask, self._position = prompts.values, prompts.mask, prompts.lengths[:, None]
        if ar.start is not None:
            codes = torch.cat([codes.new_full((batch, 1), ar.start), codes], dim=1)
            mask = torch.cat([mask.new_ones(batch, 1), mask], dim=1)
            self._position = self._position + 1
        self._memory = ar.decoder.project(text) if ar.cross_attention else None
        self._memory_mask = text_mask[:, None, None] if ar.cross_attention else None
        filled = mask if ar.cross_attention else torch.cat([text_mask, mask], dim=1)
        prefix = filled.shape[1]
        # A multiple of 8 suits the fused kernels of attention.
        self._capacity = -(-(prefix + frames) // 8) * 8
        self._caches = [KeyValueCache(self._capacity) for _ in ar.decoder.layers]
        audio = ar.place_audio(ar.audio_embedding(codes))
        hidden = ar.attend(text, audio, text_mask, mask, causal=True, caches=self._caches, memory=self._memory)
        last = hidden.take_along_dim(self._position[..., None] - 1, dim=1)
        self.logits = ar.predict_layer(last[:, 0])
        self.slot = torch.full((1,), prefix, device=device)
        rest = filled.new_ones(batch, self._capacity - prefix)
        self._attended = torch.cat([filled, rest], dim=1)[:, None, None]
        self._padded = not bool(filled.all())
        self._first_slot = prefix
        self._static = False

    def make_static(self) -> None:
        """From now on attend to all slots and mask those to come, so that every step has the same shapes."""
        self._caches = [cache.at(self.slot) for cache in self._caches]
        self._static = True

    def restart(self) -> None:
        """Go back to the first frame after the prompt; of a decoder that is static."""
        self.slot.fill_(self._first_slot)

    def _mask(self) -> Tensor | None:
        if self._static:
            return self._attended & (torch.arange(self._capacity, device=self.slot.device) <= self.slot)
        return self._attended[..., : self._caches[0].length + 1] if self._padded else None

    def step(self, codes: Tensor) -> Tensor:
        """Take the next frame of each segment, [batch] int64, and return the logits [batch, bins + 1] after it."""
        ar = self._ar
        audio = ar.place_audio(ar.audio_embedding(codes[:, None]), self._position + (self.slot - self._first_slot))
        hidden = ar.decoder(
            audio, self._mask(), memory=self._memory, memory_mask=self._memory_mask, caches=self._caches
        )
        self.slot += 1
        return ar.predict_layer(hidden[:, 0])


class FrameLoop:
    """Chooses frames and keeps account of the segments, on the device alone.

    Args:
        decoder: Behind its prompts.
        end: The code that ends a segment.
        limits: For each segment.
        rules: How frames are sampled.
        uniforms: [batch, longest] in [0, 1); None if the rules are greedy.

    Attributes:
        codes: [batch, longest] int64; what comes after the end of a segment means nothing.
        lengths: [batch] int64 frames of each segment so far.
        going: [batch] bool, which segments have not ended.
    """

    def __init__(
        self,
        decoder: FrameDecoder,
        end: int,
        limits: Sequence[FrameLimits],
        rules: SamplingRules,
        uniforms: Tensor | None,
    ):
        device = decoder.logits.device
        self._decoder, self._end, self._rules, self._uniforms = decoder, end, rules, uniforms
        self._shortest, self._longest = torch.tensor(limits, device=device).unbind(dim=1)
        self._is_end = torch.arange(decoder.logits.shape[-1], device=device) == end
        self._index = torch.zeros(1, dtype=torch.int64, device=device)
        self.codes = torch.zeros(len(limits), max(limit.longest for limit in limits), dtype=torch.int64, device=device)
        self.lengths = torch.zeros_like(self._shortest)
        self.going = torch.ones_like(self._shortest, dtype=torch.bool)
        self._last = torch.zeros_like(self._shortest)
        self._choose(decoder.logits)

    def _choose(self, logits: Tensor) -> None:
        """Draw a frame from [batch, bins + 1] logits; a segment ends when the end is drawn, or the likeliest."""
        early = (self._index < self._shortest)[:, None]
        logits = logits.masked_fill(early & self._is_end, -torch.inf)
        uniforms = None if self._uniforms is None else self._uniforms.index_select(1, self._index)[:, 0]
        drawn = sample(logits, uniforms, self._rules)
        ended = (drawn == self._end) | (logits.argmax(dim=-1) == self._end) | (self._index >= self._longest)
        self.going &= ~ended
        self.lengths += self.going
        self.codes.index_copy_(1, self._index, drawn[:, None])
        self._last.copy_(drawn)
        self._index += 1

    def advance(self) -> None:
        """One frame further."""
        self._choose(self._decoder.step(self._last))

    def captured(self) -> Callable[[], None]:
        """`advance` as the replay of a CUDA graph; at the first frame alone."""
        self._decoder.make_static()
        with torch.cuda.device(self.codes.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_STEPS):
                    self.advance()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Threads that load data may use the device meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.advance()
        # What the steps before the capture wrote into caches is hidden by the mask until it is written again.
        self._decoder.restart()
        self._index.zero_()
        self.lengths.zero_()
        self.going.fill_(True)
        self._choose(self._decoder.logits)
        return graph.replay
