"""Options of `Midi2Wave` that are mappings, and what contradicts itself among the others."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from midisynth.errors import UsageError
from midisynth.models.midi2wave.conditioning import ATTRIBUTES
from midisynth.models.midi2wave.network import WaveNet
from midisynth.models.midi2wave.rendering import FADE_SEC

#: The encoder as published, where it differs from a decoder.
ENCODER = {
    "outputs": 512,
    "layers": 12,
    "max_dilation": 64,
    "residual": 256,
    "skip": 512,
    "hidden": 512,
    "dilated_bias": False,
    "residual_conv": False,
    "residual_bias": False,
}

#: Options of both networks that follow from others.
DERIVED = {"inputs", "kind", "conditioning", "hop", "attributes", "compat"}


def check(options: Any) -> None:
    """Refuse what contradicts itself or is out of range.

    Args:
        options: Hyper-parameters of the model.

    Raises:
        UsageError: They do.
    """
    for name in ("lookahead_ticks", "tail_sec", "prompt_sec", "start_sec", "warmup_sec"):
        if options[name] is not None and options[name] < 0:
            raise UsageError(f"{name} is {options[name]:g}: it must be at least 0")
    for name, least in (("length_sec", 0.0), ("segment_sec", FADE_SEC)):
        if options[name] is not None and options[name] <= least:
            raise UsageError(f"{name} is {options[name]:g}: it must be more than {least:g}")
    _check_guidance(options)
    for name in ("bottleneck", "aggressive"):
        if options[name] is not None and not (options.conditioned and options.context_stack):
            raise UsageError(f"{name} needs an encoder: leave it out, or conditioned and context_stack as they are")


def _check_guidance(options: Any) -> None:
    guidance = options.attribute_guidance
    if not 0 <= guidance < math.inf:
        raise UsageError(f"attribute_guidance is {guidance:g}: it must be a number of at least 0")
    if guidance == 1:
        return
    if all(options[name] is None for name in ATTRIBUTES):
        raise UsageError(
            f"attribute_guidance is {guidance:g}, and nothing is chosen: give {', '.join(ATTRIBUTES)} or some of them"
        )
    if options.head != "categorical":
        # Guidance adds up log probabilities. Outputs of a mixture are none, and a sum of the logarithms of two mixtures
        # is not that of a third.
        raise UsageError(f"attribute_guidance is {guidance:g}: it needs head categorical, and head is {options.head}")


def of_network(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of a network, checked.

    Args:
        name: "encoder" or "decoder".
        given: What the user says of it.

    Raises:
        UsageError: An option does not exist.
    """
    known = set(inspect.signature(WaveNet).parameters) - DERIVED
    for option in given or {}:
        if option not in known:
            raise UsageError(f"{name}.{option}: no such option; there are: {', '.join(sorted(known))}")
    return dict(given or {})


def build_regime(name: str, build: Callable[..., Any], options: Mapping[str, Any] | None) -> Any:
    """A training regime, or None without options.

    Args:
        name: Of the option of the model.
        build: Its class.
        options: What the user says of it.

    Raises:
        UsageError: An option does not exist.
    """
    if options is None:
        return None
    known = inspect.signature(build).parameters
    for option in options:
        if option not in known:
            raise UsageError(f"{name}.{option}: no such option; there are: {', '.join(known)}")
    return build(**options)
