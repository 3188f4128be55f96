"""What has to hold of the options of `MidiValle`, told before anything is built of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from midisynth.errors import UsageError
from midisynth.generation import SamplingRules
from midisynth.models.midi_valle.prompts import SHORTEST_PROMPT_SEC

#: Least values.
LEAST = {
    "prompt_sec": SHORTEST_PROMPT_SEC,
    "min_segment_sec": 1.0,
    "overlap_sec": 0.0,
    "ring_sec": 0.0,
    "segments_per_batch": 1,
}


def sampling_rules(options: Mapping[str, Any]) -> SamplingRules:
    """How the first code of a frame is drawn."""
    return SamplingRules(options["temperature"], options["top_k"], options["top_p"])


def check_options(options: Mapping[str, Any], rows_sec: float) -> None:
    """Refuse options that do not fit together.

    Args:
        options: Of `MidiValle`.
        rows_sec: How far note rows reach (seconds).

    Raises:
        UsageError: One of them is out of its range.
    """
    sampling_rules(options)
    if (options["prompt_audio"] is None) != (options["prompt_midi"] is None):
        missing = "prompt_midi" if options["prompt_midi"] is None else "prompt_audio"
        raise UsageError(f"{missing} is missing: a prompt is a recording and the notes that are played in it")
    if options["codebooks"] == 1 and options["train_stage"] == "nar":
        raise UsageError("train_stage nar needs more than one of codebooks")
    if options["note_positions"] == "onset" and options["prefix_mode"] in (2, 4):
        raise UsageError(f"note_positions onset needs prefix_mode 0 or 1 (it is {options['prefix_mode']})")
    if options["compat"] is not None and options["pedal"]:
        raise UsageError(f"compat {options['compat']} knows keys alone: leave pedal out")
    _check_sizes(options)
    _check_lengths(options, rows_sec)


def _check_sizes(options: Mapping[str, Any]) -> None:
    for scale, of in ((1.0, ""), (options["nar_scale"], " times nar_scale")):
        dim, heads, layers = (int(options[name] * scale) for name in ("dim", "heads", "layers"))
        if min(dim, heads, layers) < 1 or dim % heads or dim % 2:
            raise UsageError(
                f"dim, heads and layers{of} are {dim}, {heads} and {layers}: expected an even dim that heads divide, "
                "and at least one layer"
            )


def _check_lengths(options: Mapping[str, Any], rows_sec: float) -> None:
    for name, least in LEAST.items():
        if not options[name] >= least:
            raise UsageError(f"{name} is {options[name]:g}, expected at least {least:g}")
    shortest, longest = options["min_segment_sec"], options["max_segment_sec"]
    if not 2 * options["overlap_sec"] <= shortest <= longest:
        raise UsageError("expected 2 * overlap_sec <= min_segment_sec <= max_segment_sec")
    seconds = longest + options["overlap_sec"] + options["ring_sec"] + options["prompt_sec"]
    if seconds > rows_sec:
        raise UsageError(
            f"max_segment_sec is {longest:g}: with its prompt a segment can be {seconds:g} s long, and rows of notes "
            f"reach {rows_sec:g} s"
        )
