"""Embedding networks small enough to be written on the spot, as ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FRAME_SAMPLES = 320


def write_embedding(
    path: Path,
    dim: int = 4,
    input_shape: Sequence[Any] = ("batch", "samples"),
    outputs: Sequence[str] = ("embedding",),
    per_clip: bool = False,
    sample_rate: str | None = None,
) -> np.ndarray:
    """Write a network that cuts audio into frames of 320 samples and multiplies them with a random matrix.

    Args:
        path: File to write.
        dim: Size of an embedding.
        input_shape: Names or sizes of the axes of its input.
        outputs: Names of its outputs, all of them the same.
        per_clip: One vector for each row of the batch, the mean over its frames.
        sample_rate: Metadata entry, if any.

    Returns:
        The matrix, [320, dim] float32.
    """
    matrix = np.random.default_rng(0).normal(size=(FRAME_SAMPLES, dim)).astype(np.float32)
    batched = len(input_shape) == 2
    frames = [0, -1, FRAME_SAMPLES] if batched else [-1, FRAME_SAMPLES]
    constants = [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(np.array(frames), "frames")]
    nodes = [
        helper.make_node("Reshape", ["audio", "frames"], ["framed"]),
        helper.make_node("MatMul", ["framed", "matrix"], ["rows"]),
    ]
    last = "rows"
    if per_clip:
        constants.append(numpy_helper.from_array(np.array([1]), "axis"))
        nodes.append(helper.make_node("ReduceMean", ["rows", "axis"], ["mean"], keepdims=0))
        last = "mean"
    nodes += [helper.make_node("Identity", [last], [name]) for name in outputs]
    shape = ["batch", dim] if per_clip else ["batch", "frames", dim] if batched else ["frames", dim]
    graph = helper.make_graph(
        nodes,
        "embedding",
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, list(input_shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if sample_rate is not None:
        helper.set_model_props(model, {"sample_rate": sample_rate})
    onnx.save(model, path)
    return matrix
