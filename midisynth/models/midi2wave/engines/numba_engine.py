"""The loop over samples, compiled by numba: the fastest on a CPU. The extra `fast` installs it."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from midisynth.models.midi2wave.engines import kernels
from midisynth.models.midi2wave.engines.base import Packed, count_passes, rows_of, tell
from midisynth.models.midi2wave.heads import LOGISTIC_EDGE, Head, LogisticMixture

logger = logging.getLogger(__name__)

#: Products and sums may become one instruction. Nothing is reordered: results do not depend on the number of streams.
FAST_MATH = {"contract"}


def is_installed() -> bool:
    """Whether numba is there."""
    return importlib.util.find_spec("numba") is not None


@functools.cache
def _compiled() -> Any:
    """`kernels.run`, compiled at the first call; the machine code is kept on disk for later processes."""
    from numba import njit
    from numba.extending import register_jitable

    for function in (
        *(kernels.buffers, kernels.tanh, kernels.gate, kernels.add_product, kernels.layers, kernels.head),
        *(kernels.guide, kernels.softmax, kernels.inverse_cdf, kernels.draw),
    ):
        register_jitable(fastmath=FAST_MATH, error_model="numpy")(function)
    compile_run = functools.partial(njit, nogil=True, fastmath=FAST_MATH, error_model="numpy")
    try:
        return compile_run(cache=True)(kernels.run)
    except RuntimeError:
        logger.warning("numba finds no folder that it may write to, so every process compiles: set NUMBA_CACHE_DIR")
        return compile_run()(kernels.run)


@dataclass
class NumbaState:
    """Streams between two calls.

    Attributes:
        queues: [streams * passes, sum of dilations, R] past inputs of the layers.
        current: [streams] codes that go in next.
        step: Since the start.
    """

    queues: np.ndarray
    current: np.ndarray
    step: int


class NumbaEngine:
    """Compiled steps; streams are shared out to as many threads as torch may use.

    Args:
        packed: Weights.
        head: How codes are drawn.
        temperature: See `Head.sample`.
        top_p: See `Head.sample`.
        guidance: See `Engine`.
    """

    name, flat = "numba", False

    def __init__(self, packed: Packed, head: Head, temperature: float = 1.0, top_p: float = 1.0, guidance: float = 1.0):
        self.head, self.passes = head, count_passes(guidance)
        self._weights = _weights(packed)
        mixture = head if isinstance(head, LogisticMixture) else None
        self._drawing = kernels.Drawing(
            levels=head.levels,
            mixture=mixture is not None,
            clamped=mixture is not None and mixture.scale == "clamp",
            min_log_scale=float(mixture.min_log_scale) if mixture is not None else 0.0,
            edge=LOGISTIC_EDGE,
            temperature=float(temperature),
            top_p=float(top_p),
            guidance=np.float32(guidance),
        )
        self._rows = sum(packed.dilations)
        self._channels = packed.table.shape[1]
        self._compile()

    def _compile(self) -> None:
        """Carry out one step, so that the wait is here, and told."""
        from numba.core import event

        class Teller(event.Listener):
            """Hears of what is compiled, and not of what is found on disk."""

            def on_start(self, _: event.Event) -> None:
                _tell_of_compilation()

            def on_end(self, _: event.Event) -> None:
                pass

        added = torch.zeros(self.passes, 1, *self._weights.bias.shape, dtype=torch.float32)
        noise = torch.zeros(1, 1, 2, dtype=torch.float32)
        with event.install_listener("numba:compile", Teller()):
            self.run(self.start(1), added, 1, noise)

    def start(self, streams: int) -> NumbaState:
        """See `Engine.start`."""
        queues = np.zeros((streams * self.passes, self._rows, self._channels), np.float32)
        return NumbaState(queues, np.full(streams, self._drawing.levels // 2), 0)

    def keep(self, state: NumbaState, streams: list[int]) -> NumbaState:
        """See `Engine.keep`."""
        return NumbaState(state.queues[rows_of(streams, self.passes)], state.current[streams], state.step)

    def run(
        self, state: NumbaState, conditioning: Tensor, hop: int, noise: Tensor, teacher: Tensor | None = None
    ) -> Tensor:
        """See `Engine.run`."""
        streams, steps, _ = noise.shape
        forced = np.full((streams, steps), -1) if teacher is None else _array(teacher, np.int64)
        added, uniforms = _array(conditioning, np.float32), _array(noise, np.float32)
        codes = np.empty((streams, steps), np.int64)
        run = _compiled()

        def share(part: slice) -> None:
            rows = slice(part.start * self.passes, part.stop * self.passes)
            run(
                self._weights,
                self._drawing,
                state.queues[rows],
                state.current[part],
                state.step,
                added[rows],
                hop,
                uniforms[part],
                forced[part],
                codes[part],
            )

        _in_threads(share, streams)
        state.step += steps
        return torch.from_numpy(codes)


@functools.cache
def _tell_of_compilation() -> None:
    tell("numba compiles the loop over samples, which takes some seconds")


def _in_threads(share: Callable[[slice], None], streams: int) -> None:
    """Call `share` with consecutive ranges of streams, one in each thread."""
    threads = min(torch.get_num_threads(), streams)
    if threads == 1:
        share(slice(0, streams))
        return
    bounds = [streams * thread // threads for thread in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, map(slice, bounds[:-1], bounds[1:])))


def _array(tensor: Tensor, kind: type) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), kind)


def _weights(packed: Packed) -> kernels.Weights:
    nothing = torch.zeros(0, 0, dtype=torch.float32)

    def rows(matrix: Tensor | None) -> np.ndarray:
        return _array((nothing if matrix is None else matrix).mT, np.float32)

    return kernels.Weights(
        table=_array(packed.table, np.float32),
        taps=rows(packed.taps),
        bias=_array(packed.bias, np.float32),
        residual=rows(packed.residual),
        residual_bias=_array(packed.residual_bias, np.float32),
        skip=rows(packed.skip),
        skip_bias=_array(nothing[0:0].flatten() if packed.skip_bias is None else packed.skip_bias, np.float32),
        hidden=rows(packed.hidden),
        output=rows(packed.output),
        gain=np.float32(packed.gain),
        dilations=np.array(packed.dilations),
        offsets=packed.offsets.numpy(),
    )
