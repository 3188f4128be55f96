"""The one door to onnxruntime: networks of others, as files that hold the whole network and no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from midisynth.errors import CheckpointError


def open_session(source: str | Path | bytes, what: str) -> Any:
    """Open an ONNX model as an `onnxruntime.InferenceSession`.

    Args:
        source: Path of the file, or its content.
        what: The kind of network, for errors.

    Raises:
        CheckpointError: onnxruntime is not installed, or the file is missing or no ONNX model.
    """
    embedded = isinstance(source, bytes)
    name = f"<embedded ONNX {what}>" if embedded else str(source)
    if not embedded and not Path(source).is_file():
        raise CheckpointError(f"{name}: no such {what} file")
    try:
        import onnxruntime
    except ImportError as error:
        raise CheckpointError(
            f"{name}: an ONNX {what} needs onnxruntime; install it with: pip install onnxruntime"
        ) from error
    try:
        return onnxruntime.InferenceSession(
            source if embedded else str(source), providers=onnxruntime.get_available_providers()
        )
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise CheckpointError(f"{name}: not an ONNX model that onnxruntime can load") from error
