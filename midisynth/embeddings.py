"""Networks of Fréchet and reconstruction distances, by the names and files that users give."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from midisynth.audio.neural_codec import NeuralCodec
from midisynth.checkpoints import load_model
from midisynth.errors import CheckpointError
from midisynth.metrics.embeddings import AudioEmbedding, CodecEmbedding, CrepeEmbedding, OnnxEmbedding
from midisynth.metrics.vggish import Vggish
from midisynth.tensor_files import file_sha256, read_tensors


def load_embedding(name: str, reference: str) -> AudioEmbedding:
    """Build an embedding network.

    Args:
        name: What its numbers are called; "crepe", "codec", "vggish" and "vggish_relu" choose a network as well.
        reference: The capacity of crepe, a checkpoint of a neural codec, or a file: the path of one, or
            `hf://owner/name/FILE` on the Hub.

    Raises:
        MidisynthError: It cannot be loaded.
    """
    if name == "crepe":
        return CrepeEmbedding(reference)
    if name == "codec":
        codec = load_model(reference)
        if not isinstance(codec, NeuralCodec):
            raise CheckpointError(f"embeddings.codec: {reference} is a {type(codec).__name__}, not a neural codec")
        return CodecEmbedding(codec, name, f"{type(codec).__name__} {reference}")
    path = _download(reference) if reference.startswith("hf://") else Path(reference).expanduser()
    if path.suffix == ".onnx":
        return OnnxEmbedding(path, name)
    if name in ("vggish", "vggish_relu"):
        with torch.device("meta"):
            network = Vggish(final_relu=name == "vggish_relu")
        tensors = read_tensors(path, legacy=True)
        network.load(tensors, f"{path.name}, SHA-256 {file_sha256(path)[:12]}")
        return network
    raise CheckpointError(f"embeddings.{name}: {reference}: expected an .onnx file; only vggish takes other weights")


def _download(reference: str) -> Path:
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)/([\w./-]+)(?:@([\w.-]+))?", reference)
    if match is None:
        raise CheckpointError(f"{reference}: expected hf://owner/name/FILE or hf://owner/name/FILE@revision")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(match[1], match[2], revision=match[3]))
    # It raises errors of its own, of its HTTP client and of the system, without a common base.
    except Exception as error:
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{reference}: cannot be downloaded: {type(error).__name__}: {cause}") from error
