"""Tests: how well audio is predicted from its past, what the notes do for that, and audio that is rendered freely."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from midisynth.diffusion.sampling import content_generators
from midisynth.evaluation import ENCODED, PREDICTION, Renditions
from midisynth.models.midi2wave.generation import Piece, generate

if TYPE_CHECKING:
    from midisynth.models.midi2wave.model import Midi2Wave

#: Row of a test: the recording, each sample drawn anew by the network that knows the ones before.
TEACHER_FORCED = "teacher-forced"


def evaluate_batch(model: Midi2Wave, batch: Mapping[str, Any]) -> Renditions:
    """A step of testing: likelihoods of the recordings, and what the model plays in their place.

    Args:
        model: That is tested.
        batch: Of `HeldOutSegments`.

    Returns:
        Of what comes after the history of each item. Its measures, in bits per sample: "bits", the negative log
        likelihood; "other_bits", with the notes of another item; "sensitivity", how much less the first is, which is
        zero for a model that does not listen to the notes.
    """
    history = int(batch["history"][0])
    audio = batch["audio"]
    codes = model.companding.encode(audio)
    logits = model.logits(codes, batch["roll"], batch["attributes"])[..., history:]
    measures = {"bits": model.head.nll(logits, codes[:, history:]).mean(dim=1) / math.log(2)}
    if "other" in batch:
        measures["other_bits"] = model.nll(batch, batch["other"]) / math.log(2)
        measures["sensitivity"] = measures["other_bits"] - measures["bits"]
    generators = content_generators(audio)
    forced = torch.cat([model.sample(row[None], g) for row, g in zip(logits, generators, strict=True)])
    free = continue_freely(model, batch["roll"], codes, history, batch["attributes"], generators)
    rows = {PREDICTION: free, TEACHER_FORCED: forced, ENCODED: codes[:, history:]}
    return Renditions(
        rows={name: model.companding.decode(row) for name, row in rows.items()},
        reference=audio[:, history:],
        sample_rate=model.codec.sample_rate,
        notes=batch.get("truth"),
        measures=measures,
        names=batch.get("name"),
    )


def continue_freely(
    model: Midi2Wave,
    roll: Tensor,
    codes: Tensor,
    history: int,
    attributes: Tensor,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """What the model plays after the beginnings of recordings.

    Args:
        model: In evaluation mode.
        roll: [batch, rows, ticks].
        codes: Of the recordings, [batch, samples].
        history: How much of them is given (samples).
        attributes: [batch, values].
        generators: One for each item.

    Returns:
        Codes of the rest, [batch, samples - history].
    """
    samples = codes.shape[1]
    pieces = [
        Piece(roll[item], samples, generator, codes[item, :history], attributes[item])
        for item, generator in enumerate(generators)
    ]
    made: list[list[Tensor]] = [[] for _ in pieces]
    for position, block in generate(model.network, model.make_engine(), pieces):
        made[position].append(block)
    return torch.stack([torch.cat(blocks)[history:] for blocks in made]).to(codes.device)
