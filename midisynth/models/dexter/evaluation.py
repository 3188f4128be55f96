"""Test pieces: each score is played by the model and goes out with every human performance of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from midisynth.datasets.audio_pairs import Part
from midisynth.datasets.corpus import Record
from midisynth.interpretations import Interpretations, InterpretedPiece, every_note
from midisynth.models.dexter.codec import DExterCodec
from midisynth.models.dexter.rendering import perform
from midisynth.module import Item, Noise

if TYPE_CHECKING:
    from midisynth.models.dexter.model import DExter

#: Performances that the model gives of each piece; its scores are their means.
RENDERINGS = 3


class WholePieces(Dataset[Mapping[str, Any]]):
    """Pieces with all their human performances.

    Performances with other repeats, or of another edition, play other notes: they are a piece of their own.

    Args:
        parts: Prepared corpora.
        codec: Of the model.
    """

    def __init__(self, parts: Sequence[Part], codec: DExterCodec):
        self._codec = codec
        groups: dict[tuple[str, bytes], list[Record]] = {}
        for part in parts:
            for prepared in part.prepared:
                record = prepared.record
                key = record.piece, prepared.arrays()["score_hash"].tobytes()
                groups.setdefault(key, []).append(record)
        self._records = list(groups.values())
        self._names = file_names([piece for piece, _ in groups])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """ "name" of the piece, "humans", and "piece", what the model plays from."""
        humans = [record.aligned() for record in self._records[index]]
        return {
            "name": self._names[index],
            "humans": humans,
            "piece": self._codec.encode_score(humans[0].score),
        }


def file_names(pieces: Sequence[str]) -> list[str]:
    """Names of pieces as names of files, all different: a second version gets "-2"."""
    names: list[str] = []
    for piece in pieces:
        plain = re.sub(r"[^\w.-]+", "_", piece).strip("_")
        count = sum(name == plain or re.fullmatch(re.escape(plain) + r"-\d+", name) is not None for name in names)
        names.append(f"{plain}-{count + 1}" if count else plain)
    return names


def play_pieces(
    model: DExter, batch: Sequence[Mapping[str, Any]], seed: int = 0, renderings: int = RENDERINGS
) -> Interpretations:
    """Play the pieces of a test.

    Args:
        model: In evaluation mode.
        batch: Items of `WholePieces`.
        seed: Of the noise, which depends on the piece and on nothing else.
        renderings: Performances of each piece.
    """
    return Interpretations([_play(model, example, seed, renderings) for example in batch])


def _play(model: DExter, example: Mapping[str, Any], seed: int, renderings: int) -> InterpretedPiece:
    name, humans = example["name"], example["humans"]
    noise = Noise([Item(None, Path(), f"{name}:{copy}") for copy in range(renderings)], seed)
    made = [
        perform(model, example["piece"], lambda draw, shape, at=copy: noise.normal(at, draw, shape))
        for copy in range(renderings)
    ]
    score = humans[0].score
    return InterpretedPiece(name, humans, [every_note(score, one.performance) for one in made])
