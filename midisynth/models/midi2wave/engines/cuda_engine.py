"""The steps of `torch_engine` as a CUDA graph: the GPU is told once for many steps what to do.

A step has some hundred kernels of a microsecond or two each; to launch them one by one would take several times as
long. They hardly take longer for a hundred streams than for one, so whoever has many should give them all at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from midisynth.models.midi2wave.engines.torch_engine import TorchEngine, TorchState

#: Steps that one graph has, at least and up to whole columns of conditioning.
STEPS = 64


@dataclass
class _Graph:
    """Some steps of the streams of one state, and what goes in and out.

    Attributes:
        graph: What is replayed.
        added: [columns, layers, streams * passes, 3R].
        noise: [steps, streams, draws].
        teacher: [steps, streams]; -1 where there is none.
        codes: [steps, streams].
    """

    graph: torch.cuda.CUDAGraph
    added: Tensor
    noise: Tensor
    teacher: Tensor
    codes: Tensor


class CudaEngine(TorchEngine):
    """Steps as a graph; what does not fill one is launched step by step. Arguments as those of `TorchEngine`."""

    name, flat = "CUDA graph", True

    def _steps(
        self, state: TorchState, added: Tensor, hop: int, noise: Tensor, teacher: Tensor | None, codes: Tensor
    ) -> None:
        columns = max(1, STEPS // hop)
        length = columns * hop
        whole = len(codes) - len(codes) % length
        for first in range(0, whole, length):
            part = slice(first, first + length)
            graph = self._graph(state, columns, hop, noise.shape[2])
            graph.added.copy_(added[first // hop : first // hop + columns])
            graph.noise.copy_(noise[part])
            if teacher is None:
                graph.teacher.fill_(-1)
            else:
                graph.teacher.copy_(teacher[part])
            graph.graph.replay()
            codes[part] = graph.codes
        rest = None if teacher is None else teacher[whole:]
        super()._steps(state, added[whole // hop :], hop, noise[whole:], rest, codes[whole:])

    def _graph(self, state: TorchState, columns: int, hop: int, draws: int) -> _Graph:
        """The graph of a state, captured when it is first needed."""
        key = columns, hop, draws
        if key not in state.graphs:
            state.graphs[key] = self._capture(state, columns, hop, draws)
        return state.graphs[key]

    def _capture(self, state: TorchState, columns: int, hop: int, draws: int) -> _Graph:
        streams, steps = len(state.current), columns * hop
        graph = _Graph(
            torch.cuda.CUDAGraph(),
            self._bias[:, None].repeat(columns, 1, streams * self.passes, 1),
            torch.zeros(steps, streams, draws, dtype=torch.float32, device=self.device),
            torch.full((steps, streams), -1, device=self.device),
            torch.empty(steps, streams, dtype=torch.int64, device=self.device),
        )
        inputs = graph.added, hop, graph.noise, graph.teacher
        # Libraries set themselves up on their first call, which a graph must not record. Steps change a copy here.
        with torch.cuda.device(self.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                super()._steps(self.start(streams), *inputs, torch.empty_like(graph.codes[:3]))
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(graph.graph):
                super()._steps(state, *inputs, graph.codes)
        return graph
