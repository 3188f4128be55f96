"""Published splits, and how to keep what is held out apart where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from midisynth.datasets.corpus import Record, split_by_hash

#: "published": as the authors of a data set or its users did. "separate": no piece is in two splits.
Splits = Literal["separate", "published"]

R = TypeVar("R", bound=Record)


def without_held_out(records: Sequence[R]) -> list[R]:
    """Leave out training records of a piece that is held out in another recording."""
    held_out = {record.piece for record in records if record.split != "train"}
    return [record for record in records if record.split != "train" or record.piece not in held_out]


def with_validation(records: Sequence[R], share: float = 0.1) -> list[R]:
    """Take a share of the training pieces for validation, by their hash."""
    return [
        replace(record, split=split_by_hash(record.piece, validation=share, test=0))
        if record.split == "train"
        else record
        for record in records
    ]


def validated_on_test(records: Sequence[R]) -> list[R]:
    """Use what is for testing for validation too."""
    tested = [record for record in records if record.split == "test"]
    return [*records, *(replace(record, id=f"{record.id}-validation", split="validation") for record in tested)]
