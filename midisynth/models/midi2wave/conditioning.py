"""What is true of a whole recording (year, composer, piano) and shifts the gates of every layer.

A one-hot of each attribute beside the conditioning of every tick, as in MAESTRO (Hawthorne et al. 2019, section 5),
is the same as a bias of every layer looked up once. Tables start at zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midisynth.errors import UsageError

#: The value of attributes of which nothing is known.
UNKNOWN = "unknown"
#: Attributes of a recording that the decoder may be told.
ATTRIBUTES = ("year", "composer", "piano")


class Vocabulary:
    """The values that attributes can have, and rows of weights that stand for them.

    A row has a weight for every value of every attribute, those of one attribute together; the first of each means
    unknown. One-hot rows choose; others mix.

    Args:
        values: Name of each attribute to the values that it knows.
    """

    def __init__(self, values: Mapping[str, Sequence[str]]):
        self.values = {name: tuple(str(value) for value in known) for name, known in values.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Values of each attribute with the unknown one: the `attributes` of a `WaveNet`."""
        return {name: len(known) + 1 for name, known in self.values.items()}

    def row(self, chosen: Mapping[str, str | Mapping[str, float]], strict: bool = False) -> Tensor:
        """Weights of what is known of a recording, [values].

        Args:
            chosen: Attribute to its value, or to weights of several values: {"2004": 0.5, "2018": 0.5} is between
                two years, {"2018": 2, "unknown": -1} is more like the one than recordings of that year are.
            strict: Whether values that the vocabulary lacks are an error; else they are unknown.

        Raises:
            UsageError: An attribute that does not exist, or, if `strict`, a value.
        """
        if foreign := set(chosen) - set(self.values):
            raise UsageError(f"there is no attribute {min(foreign)!r}; there are: {', '.join(self.values) or 'none'}")
        parts = []
        for name, known in self.values.items():
            weights = torch.zeros(len(known) + 1)
            given = chosen.get(name, UNKNOWN)
            for value, weight in (given if isinstance(given, Mapping) else {given: 1.0}).items():
                if strict and str(value) not in (UNKNOWN, *known):
                    raise UsageError(f"{name} {value!r} is not known; known are: {', '.join(known)}")
                weights[known.index(str(value)) + 1 if str(value) in known else 0] += weight
            parts.append(weights)
        return torch.cat([torch.empty(0), *parts])

    def drop(self, rows: Tensor, probability: float) -> Tensor:
        """Make each attribute of rows [batch, values] unknown with a probability, for training."""
        parts = []
        for part in rows.split(list(self.sizes.values()), dim=1):
            dropped = torch.rand(len(part), 1, device=part.device) < probability
            unknown = F.one_hot(torch.zeros_like(part[:, 0], dtype=torch.long), part.shape[1])
            parts.append(torch.where(dropped, unknown.to(part.dtype), part))
        return torch.cat(parts, dim=1)


class GlobalConditioning(nn.ModuleDict):
    """Rows of weights, see `Vocabulary` -> what the layers' gates add.

    Args:
        sizes: Name of each attribute to the number of its values, the unknown one included.
        channels: Gates of all layers.
    """

    def __init__(self, sizes: Mapping[str, int], channels: int):
        super().__init__({name: nn.Embedding(size, channels) for name, size in sizes.items()})
        for table in self.values():
            nn.init.zeros_(table.weight)

    def with_unknown(self, row: Tensor) -> Tensor:
        """A row [values], and one of which every attribute is unknown: [2, values]."""
        unknown = [F.one_hot(torch.tensor(0), table.num_embeddings) for table in self.values()]
        return torch.stack([row, torch.cat(unknown).to(row)])

    def forward(self, rows: Tensor | None) -> Tensor:
        """[batch, values], or None for unknown -> [batch or 1, channels]."""
        tables = list(self.values())
        if rows is None:
            return torch.stack([table.weight[:1] for table in tables]).sum(0)
        parts = rows.split([table.num_embeddings for table in tables], dim=1)
        return torch.stack([part @ table.weight for part, table in zip(parts, tables, strict=True)]).sum(0)
