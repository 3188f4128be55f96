"""Engines: ways to carry out the loop over samples, and the choice of the fastest.

`base` has their interface; `torch_engine` is always there, `numba_engine` is the fastest on a CPU and `cuda_engine` on
a GPU. `kernels` is what numba compiles.
"""

from __future__ import annotations

import functools
from typing import Literal

from midisynth.errors import UsageError
from midisynth.models.midi2wave.engines.base import Engine, Packed, tell
from midisynth.models.midi2wave.engines.cuda_engine import CudaEngine
from midisynth.models.midi2wave.engines.numba_engine import NumbaEngine, is_installed
from midisynth.models.midi2wave.engines.torch_engine import TorchEngine
from midisynth.models.midi2wave.heads import Head
from midisynth.models.midi2wave.network import WaveNet

__all__ = ["CudaEngine", "Engine", "NumbaEngine", "Packed", "TorchEngine", "choose"]

#: By name.
ENGINES = {"torch": TorchEngine, "numba": NumbaEngine, "cuda": CudaEngine}


def choose(
    decoder: WaveNet,
    head: Head,
    temperature: float = 1.0,
    top_p: float = 1.0,
    name: Literal["auto", "torch", "numba", "cuda"] = "auto",
    guidance: float = 1.0,
) -> Engine:
    """The engine of that name, or the fastest that is installed and works where the decoder is.

    Args:
        decoder: Its weights are copied.
        head: How codes are drawn.
        temperature: See `Head.sample`.
        top_p: See `Head.sample`.
        name: Of the engine.
        guidance: See `Engine`; other than 1 it wants a categorical head.

    Raises:
        UsageError: That engine is not installed, or does not work there.
    """
    packed = Packed.of(decoder)
    device = packed.table.device.type
    if name == "auto":
        name = "cuda" if device == "cuda" else "numba" if device == "cpu" and is_installed() else "torch"
    if name == "numba" and not is_installed():
        raise UsageError("engine numba needs numba; install it with: pip install numba")
    if name == "cuda" and device != "cuda":
        raise UsageError(f"engine cuda needs a CUDA device, the model is on {device}; see --trainer.accelerator")
    _tell(name, device)
    return ENGINES[name](packed, head, temperature, top_p, guidance)


@functools.cache
def _tell(name: str, device: str) -> None:
    """Say what makes the samples, once for each process: engines differ in how long the user waits, and how."""
    slow = name == "torch" and device == "cpu" and not is_installed()
    hint = "; pip install numba makes it some eight times faster" if slow else ""
    tell(f"the {name} engine makes the samples, on {device}{hint}")
