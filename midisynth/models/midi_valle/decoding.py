"""What the language models write: segments of one or many pieces as one batch.

The first codebook is decoded frame by frame, see `frames.py`. The other codebooks then take one pass each.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from midisynth.errors import RenderError
from midisynth.generation import SamplingRules
from midisynth.models.midi_valle.decoders import Autoregressive
from midisynth.models.midi_valle.frames import WARM_UP_STEPS, FrameDecoder, FrameLimits, FrameLoop, Padded
from midisynth.models.midi_valle.layers import PackedAttention
from midisynth.models.midi_valle.network import ValleNetwork

#: Whether all segments have ended is looked up once in so many frames, because the device is waited for.
CHECK_EVERY = 25


@torch.no_grad()
def generate(
    network: ValleNetwork,
    rows: Sequence[Tensor],
    prompts: Sequence[Tensor],
    limits: Sequence[FrameLimits],
    rules: SamplingRules,
    uniforms: Sequence[Tensor] | None = None,
    prompt_notes: Sequence[int] | None = None,
) -> list[Tensor]:
    """Generate the codes of segments, all at once.

    Args:
        network: In evaluation mode.
        rows: [note rows, features] int64 of each segment, prompt and segment in one sequence.
        prompts: [frames, codebooks] int64 codes of each prompt.
        limits: Of the frames that are generated, for each segment.
        rules: How the first codebook is sampled.
        uniforms: At least `longest` numbers in [0, 1) for each segment; None if the rules are greedy.
        prompt_notes: Notes of each prompt; needed in prefix modes 2 and 4.

    Returns:
        [frames, codebooks] int64 for each segment, without the prompt.

    Raises:
        RenderError: A segment has notes that the network has no place for, or ended before its first frame.
    """
    _check_rows(network, rows)
    first = decode_first(network, rows, [prompt[:, 0] for prompt in prompts], limits, rules, uniforms)
    if any(len(codes) == 0 for codes in first):
        raise RenderError("the network ended a segment before its first frame; train it longer, or use another prompt")
    return refine(network, rows, prompts, first, prompt_notes)


@torch.no_grad()
def decode_first(
    network: ValleNetwork,
    rows: Sequence[Tensor],
    prompts: Sequence[Tensor],
    limits: Sequence[FrameLimits],
    rules: SamplingRules,
    uniforms: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Generate the first codebook: arguments as for `generate`, prompts [frames] -> [frames] for each segment."""
    device = network.ar.predict_layer.weight.device
    kind = device.type
    text = Padded.of(rows, device)
    drawn = None
    if uniforms is not None:
        drawn = Padded.of([u[: limit.longest] for u, limit in zip(uniforms, limits, strict=True)], device).values
    frames = max(limit.longest for limit in limits)
    # Weights are cast once, not for every frame, so that autocast has nothing left to keep.
    autocast = torch.is_autocast_enabled(kind)
    with torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=autocast, cache_enabled=False):
        ar = _with_cast_matrices(network.ar, torch.get_autocast_dtype(kind)) if autocast else network.ar
        notes = network.embed_notes(text.values)
        decoder = FrameDecoder(ar, notes, text.mask, Padded.of(prompts, device), frames)
        loop = FrameLoop(decoder, ar.end, limits, rules, drawn)
        advance = loop.captured() if kind == "cuda" and frames > WARM_UP_STEPS + 1 else loop.advance
        may_end_early = any(limit.shortest < limit.longest for limit in limits)
        for index in range(1, frames):
            if may_end_early and index % CHECK_EVERY == 0 and not loop.going.any():
                break
            advance()
    return [codes[:length] for codes, length in zip(loop.codes, loop.lengths.tolist(), strict=True)]


@torch.no_grad()
def refine(
    network: ValleNetwork,
    rows: Sequence[Tensor],
    prompts: Sequence[Tensor],
    first: Sequence[Tensor],
    prompt_notes: Sequence[int] | None = None,
) -> list[Tensor]:
    """Add the other codebooks to codes of the first.

    Args:
        network: In evaluation mode.
        rows: As for `generate`.
        prompts: [frames, codebooks] int64 codes of each prompt.
        first: [frames] int64 codes of the first codebook, behind each prompt.
        prompt_notes: As for `generate`.

    Returns:
        [frames, codebooks] int64 for each segment.
    """
    nar = network.nar
    if nar is None:
        return [codes[:, None] for codes in first]
    if network.prefix_mode in (2, 4):
        # The prefix of these modes comes from elsewhere: its notes are not among those that were trained with it.
        rows = [torch.cat([row[:1], row[count + 1 :]]) for row, count in zip(rows, prompt_notes, strict=True)]
    device = nar.text_embedding.weight.device
    notes, prompt, known = (Padded.of(sequences, device) for sequences in (rows, prompts, first))
    text = nar.embed_text(network.embed_notes(notes.values), notes.mask)
    memory = nar.decoder.project(text) if nar.cross_attention else None
    mask = torch.cat([prompt.mask, known.mask], dim=1)
    frames = torch.arange(known.values.shape[1], device=device)
    before = torch.arange(prompt.values.shape[1], device=device).expand(len(prompts), -1)
    positions = torch.cat([before, prompt.lengths[:, None] + frames], dim=1)
    embedded = nar.embed(known.values[..., None], 1)
    codes = [known.values]
    for stage in range(1, network.codebooks):
        prefix = nar.embed(prompt.values, stage if network.prefix_mode == 0 else network.codebooks)
        audio = nar.place_audio(torch.cat([prefix, embedded], dim=1), positions)
        condition = nar.stage_embeddings[stage - 1].weight
        hidden = nar.attend(
            text, audio, notes.mask, mask, condition=condition, memory=memory, keep=known.values.shape[1]
        )
        codes.append(nar.predict(hidden, stage).argmax(dim=-1))
        embedded = embedded + nar.audio_embeddings[stage](codes[-1])
    stacked = torch.stack(codes, dim=-1)
    return [one[:length] for one, length in zip(stacked, known.lengths.tolist(), strict=True)]


def continued(
    network: ValleNetwork, rows: Sequence[Tensor], codes: Sequence[Tensor], prefix: int = 150
) -> list[Tensor]:
    """Predict the later codebooks of known recordings from their first one, to judge that step alone.

    Args:
        network: In evaluation mode.
        rows: [note rows, features] int64 of each recording.
        codes: [frames, codebooks] int64 of each recording.
        prefix: Frames at the start of which all codebooks are given; at most half of the recording.

    Returns:
        [frames, codebooks] int64 for each, behind its prefix.
    """
    given = [min(len(one) // 2, prefix) for one in codes]
    prompts = [one[:frames] for one, frames in zip(codes, given, strict=True)]
    first = [one[frames:, 0] for one, frames in zip(codes, given, strict=True)]
    return refine(network, rows, prompts, first, [0] * len(rows))


def _with_cast_matrices(ar: Autoregressive, dtype: torch.dtype) -> Autoregressive:
    """A copy whose matrices are in the precision to which autocast would cast them at every frame."""
    ar = copy.deepcopy(ar)
    for module in ar.modules():
        if isinstance(module, nn.Linear | PackedAttention):
            module.to(dtype)
    return ar


def _check_rows(network: ValleNetwork, rows: Sequence[Tensor]) -> None:
    sizes = torch.tensor([table.num_embeddings for table in network.notes])
    most = torch.stack([row.amax(dim=0) for row in rows]).amax(dim=0).cpu()
    if (most >= sizes).any():
        raise RenderError(
            f"note rows reach {most.tolist()}, the network has tables of {sizes.tolist()}: prompt and segment are too "
            "long together, or belong to other note rows"
        )
