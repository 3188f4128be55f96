"""Neural codecs by name: what `load_codec` takes, files of audiocraft, and one that nobody has trained."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from midisynth.checkpoints import packed, save_weights
from midisynth.models.midi_valle.neural_codec_model import PianoCodec, load_codec, read_codec

#: What an option that names a codec says for a small one with random weights: noise for trying out whatever needs one.
UNTRAINED = "untrained"
#: Suffixes of the checkpoints that audiocraft exports.
AUDIOCRAFT = (".bin", ".th")


def load_neural_codec(reference: str, *, content: bytes | None = None) -> PianoCodec:
    """As `load_codec`, for all references."""
    return load_codec(reference, content=_made(reference) if content is None else content)


def read_neural_codec(reference: str) -> bytes | None:
    """As `read_codec`, for all references."""
    return _made(reference) or read_codec(reference)


def _made(reference: str) -> bytes | None:
    """A codec that has no checkpoint of this package, as `midisynth.checkpoints.packed` makes bytes of one."""
    if reference == UNTRAINED:
        return _untrained()
    path = Path(reference).expanduser()
    return _packed(PianoCodec.load_published(path)) if path.suffix in AUDIOCRAFT and path.is_file() else None


@cache
def _untrained() -> bytes:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        codec = PianoCodec(filters=2, dim=8, codebooks=4, bins=64, lstm_layers=1)
        for layer in codec.network.network.quantizer.layers:
            # A new one has codes of zeros, with which everything sounds alike.
            layer.codebook.embed.normal_(std=0.1)
    return _packed(codec)


def _packed(codec: PianoCodec) -> bytes:
    with TemporaryDirectory() as folder:
        save_weights(codec, folder, half=False)
        return packed(folder)
