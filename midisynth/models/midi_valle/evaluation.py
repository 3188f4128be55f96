"""Stretches of a test as audio: generated after a prompt, through the codec alone, and as they were recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from midisynth.diffusion.sampling import content_generators
from midisynth.evaluation import ENCODED, PREDICTION, Renditions
from midisynth.models.midi_valle.rendering import sound_of

if TYPE_CHECKING:
    from midisynth.models.midi_valle.model import MidiValle


def evaluate_batch(model: MidiValle, batch: Sequence[Mapping[str, Any]]) -> Renditions:
    """Generate a batch of a test.

    Args:
        model: That is tested.
        batch: Examples of `data.Stretches`, all of one length.

    Returns:
        With the measures of `listening`.
    """
    prompts = [example["prompt"].to(model.device) for example in batch]
    codes = model.generate(
        [example["rows"] for example in batch],
        prompts,
        [len(example["codes"]) for example in batch],
        [content_generators(example["audio"][None])[0] for example in batch],
        prompt_notes=[example["prompt_notes"] for example in batch],
    )
    made = {
        PREDICTION: codes,
        # No language model can be better than the true codes.
        ENCODED: [example["codes"].to(model.device) for example in batch],
    }
    rows = {
        name: torch.stack([sound_of(model, prompt, one) for prompt, one in zip(prompts, found, strict=True)])
        for name, found in made.items()
    }
    return Renditions(
        rows=rows,
        reference=torch.stack([example["audio"] for example in batch]),
        sample_rate=model.neural_codec.sample_rate,
        notes=[example["truth"] for example in batch],
        names=[example["name"] for example in batch],
        measures=listening(model, batch),
    )


def listening(model: MidiValle, batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """How much the notes tell the first language model.

    Args:
        model: That is tested.
        batch: As in `evaluate_batch`.

    Returns:
        "nats", the negative log likelihood of the first code of a frame after all of those before it, [batch]; where
        there are other notes "other_nats", the same with these, and "sensitivity", how much less the first is.
    """
    measures = {"nats": torch.stack([_nll(model, example, example["rows"]) for example in batch])}
    if all("other" in example for example in batch):
        measures["other_nats"] = torch.stack([_nll(model, example, example["other"]) for example in batch])
        measures["sensitivity"] = measures["other_nats"] - measures["nats"]
    return measures


def _nll(model: MidiValle, example: Mapping[str, Any], rows: Tensor) -> Tensor:
    codes = torch.cat([example["prompt"], example["codes"]]).to(model.device)[None]
    lengths = torch.tensor([len(rows)]), torch.tensor([codes.shape[1]])
    losses = model.network(rows.to(model.device)[None], lengths[0], codes, lengths[1], train_stage=1)
    return losses.ar / losses.frames
