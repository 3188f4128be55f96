"""Stretches of a test as audio: generated after a prompt, through the codec alone, and as they were recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

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
    )
