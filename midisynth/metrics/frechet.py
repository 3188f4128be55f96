"""Fréchet distance between sets of embeddings (Heusel et al. 2017), for audio FAD (Kilgour et al. 2019).

Both sets are described by the Gaussian with their mean and covariance; the distance is that of the two Gaussians. It
grows with the difference of what is played as much as with that of the sound, and is biased upwards by about 1/n:
compare renderings of the same pieces, and only numbers with the same embedding and a similar n.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

#: "sample" divides by n - 1 (fadtk, torchmetrics), "population" by n (the evaluation of the PyTorch seed).
Covariance = Literal["sample", "population"]

#: What `FrechetAudioDistance` keeps sums of groups for (bytes); beyond that it has no interval.
GROUP_BYTES = 1 << 26

#: Fewer groups say too little about the spread.
MIN_GROUPS = 8


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of some embeddings.

    Attributes:
        mean: [dim] float64.
        covariance: [dim, dim] float64.
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, embeddings: Tensor, covariance: Covariance = "sample") -> Gaussian:
        """Fit to [frames, dim]."""
        rows = embeddings.double()
        # Around the first row: sums of squares of numbers far from 0 would lose the digits that differ.
        origin = rows[0]
        rows = rows - origin
        return cls.of_sums(len(rows), rows.sum(dim=0), rows.T @ rows, origin, covariance)

    @classmethod
    def of_sums(
        cls, frames: Tensor | float, total: Tensor, products: Tensor, origin: Tensor, covariance: Covariance
    ) -> Gaussian:
        """From sums over frames of x = embedding - `origin`: number, x [dim], and outer products of x [dim, dim]."""
        mean = total / frames
        degrees = frames - 1 if covariance == "sample" else frames
        return cls(mean + origin, (products - frames * torch.outer(mean, mean)) / degrees)


def frechet_distance(first: Gaussian, second: Gaussian) -> Tensor:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), a float64 scalar.

    C1 C2 has the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2). Those are real whatever the rank, so there is no
    small number to add to the diagonals when a matrix square root fails, as other implementations have.
    """
    values, vectors = torch.linalg.eigh(first.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp(min=0)
    traces = first.covariance.trace() + second.covariance.trace()
    return (first.mean - second.mean).square().sum() + traces - 2 * product.sqrt().sum()


def frechet_per_file(files: Mapping[str, Gaussian], reference: Gaussian) -> dict[str, float]:
    """Distance of every file's frames from a common reference, from the nearest to the farthest.

    A file has few frames: the numbers rank files, and do not compare with the distance of the whole set.

    Args:
        files: Name -> Gaussian of its frames.
        reference: Of all references together.
    """
    distances = {name: float(frechet_distance(gaussian, reference)) for name, gaussian in files.items()}
    return dict(sorted(distances.items(), key=lambda item: item[1]))


class FileGaussians:
    """Gaussians of the frames of single files, of which stretches arrive in any order and on any process.

    It holds dim^2 numbers for every file.

    Args:
        covariance: Convention.
    """

    def __init__(self, covariance: Covariance = "sample"):
        self._covariance: Covariance = covariance
        self._sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def update(self, files: Sequence[str], embeddings: Tensor) -> None:
        """Count frames.

        Args:
            files: [batch] names of the files that the items are from.
            embeddings: [batch, frames, dim].
        """
        for name, rows in zip(files, embeddings.cpu().double(), strict=True):
            self._add(name, len(rows), rows.sum(dim=0), rows.T @ rows)

    def merge(self, other: FileGaussians) -> None:
        """Count what was counted elsewhere."""
        for name, sums in other._sums.items():
            self._add(name, *sums)

    def _add(self, name: str, frames: int, total: Tensor, products: Tensor) -> None:
        if name in self._sums:
            known = self._sums[name]
            frames, total, products = known[0] + frames, known[1] + total, known[2] + products
        self._sums[name] = frames, total, products

    def compute(self) -> dict[str, Gaussian]:
        """Of every file with two frames or more, by name."""
        return {name: self._gaussian(*sums) for name, sums in self._sums.items() if sums[0] > 1}

    @property
    def frames(self) -> int:
        """Of all files."""
        return sum(frames for frames, _, _ in self._sums.values())

    def together(self) -> Gaussian:
        """Of the frames of all files."""
        _, totals, products = zip(*self._sums.values(), strict=True)
        return self._gaussian(self.frames, sum(totals), sum(products))

    def _gaussian(self, frames: int, total: Tensor, products: Tensor) -> Gaussian:
        return Gaussian.of_sums(frames, total, products, torch.zeros_like(total), self._covariance)


@dataclass(frozen=True)
class Extrapolation:
    """A line through distances over 1/n.

    Attributes:
        infinity: Its intercept: the distance that infinitely many frames would have (Chong and Forsyth 2020).
        slope: Of the line.
        r2: Share of the variance that it explains.
        points: (n, distance) that it goes through.
    """

    infinity: float
    slope: float
    r2: float
    points: list[tuple[int, float]]

    @classmethod
    def through(cls, points: Sequence[tuple[int, float]]) -> Extrapolation:
        """Fit by least squares."""
        frames, scores = np.array(points, dtype=float).T
        slope, infinity = np.polyfit(1 / frames, scores, 1)
        residual = np.square(scores - infinity - slope / frames).sum()
        spread = np.square(scores - scores.mean()).sum()
        return cls(float(infinity), float(slope), float(1 - residual / spread) if spread else 1.0, list(points))


def frechet_infinity(
    embeddings: Tensor,
    reference: Tensor,
    *,
    steps: int = 25,
    min_frames: int = 500,
    random: np.random.RandomState | None = None,
    covariance: Covariance = "sample",
) -> Extrapolation:
    """FAD-infinity as fadtk defines it (Gui et al. 2024): frames drawn with replacement, the reference always whole.

    Args:
        embeddings: [frames, dim].
        reference: [frames, dim].
        steps: Numbers of frames, evenly spaced.
        min_frames: The smallest of them; the largest is that of `embeddings`.
        random: Draws the frames; None: seeded with 0.
        covariance: Convention.
    """
    random = random or np.random.RandomState(0)
    wanted = Gaussian.of(reference, covariance)
    points = []
    for frames in np.linspace(min_frames, len(embeddings), steps).astype(int).tolist():
        drawn = torch.from_numpy(random.choice(len(embeddings), size=frames, replace=True))
        points.append((frames, float(frechet_distance(wanted, Gaussian.of(embeddings[drawn], covariance)))))
    return Extrapolation.through(points)


class FrechetAudioDistance(Metric):
    """Distance between the embeddings of renderings and of recordings of the same pieces.

    It holds sums in float64, so any number of processes may share the clips and get the very same number. The sums
    are kept apart for groups of clips. From those come, with rendering and recording of a clip always together,
    "fad_inf", the intercept over 1/n of the distance of random subsets of groups, and the 95 % interval of a bootstrap
    over groups. The interval is the basic one (2 fad - quantile), because resampling repeats clips, which biases the
    distance upwards once more; it lies around what infinitely many frames would give rather than around "fad".

    Args:
        dim: Size of an embedding.
        covariance: Convention.
        min_frames: With fewer frames on either side there is no distance; None: twice `dim`, below which the
            covariance is mostly noise.
    """

    full_state_update = False
    higher_is_better = False
    names = ("fad", "fad_inf", "fad_low", "fad_high", "frames")
    counts: Tensor
    totals: Tensor
    products: Tensor
    resamples = 100
    subsets = 24

    def __init__(self, dim: int, covariance: Covariance = "sample", min_frames: int | None = None):
        super().__init__()
        self.dim = dim
        self.covariance: Covariance = covariance
        self.min_frames = 2 * dim if min_frames is None else min_frames
        self.groups = max(min(32, GROUP_BYTES // (16 * dim * dim)), 1)
        # Side 0 are the renderings, side 1 the recordings.
        for name, shape in {"counts": (), "totals": (dim,), "products": (dim, dim)}.items():
            zeros = torch.zeros(2, self.groups, *shape, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, embeddings: Tensor, real: bool, clips: Sequence[int] | None = None) -> None:
        """Count frames.

        Args:
            embeddings: [batch, frames, dim].
            real: Whether they are of recordings, or of renderings.
            clips: [batch] numbers that identify the clips and are the same for both sides: they decide the groups.
        """
        for position, rows in enumerate(embeddings.to(self.totals)):
            group = clips[position] % self.groups if clips is not None else 0
            self.counts[int(real), group] += len(rows)
            self.totals[int(real), group] += rows.sum(dim=0)
            self.products[int(real), group] += rows.T @ rows

    def compute(self) -> dict[str, Tensor]:
        """Value by name, float64; NaN where there are too few frames, or clips for what needs several."""
        frames = self.counts.sum(dim=1).min()
        values = dict.fromkeys(self.names, torch.full((), torch.nan, dtype=torch.float64))
        values["frames"] = frames
        if frames < max(self.min_frames, 2):
            warnings.warn(
                f"{int(frames)} frames are too few for a Fréchet distance of {self.dim} dimensions, which needs "
                f"{self.min_frames}: test on more data",
                stacklevel=2,
            )
            return values
        used = torch.nonzero((self.counts > 0).all(dim=0)).flatten().cpu()
        values["fad"] = self._distance(torch.arange(self.groups))
        if len(used) >= MIN_GROUPS:
            random = np.random.default_rng(0)
            values["fad_inf"] = self._infinity(used, random)
            values["fad_low"], values["fad_high"] = self._interval(values["fad"], used, random)
        return values

    def _distance(self, groups: Tensor) -> Tensor:
        """Distance of the groups of these numbers, each as often as it is named."""
        # On the CPU: small symmetric eigenvalue problems are faster there, and not every device has float64.
        times = groups.bincount(minlength=self.groups).double()
        counts, totals, products = (
            torch.einsum("g,sg...->s...", times, state.cpu()) for state in (self.counts, self.totals, self.products)
        )
        origin = torch.zeros(self.dim, dtype=torch.float64)
        sides = [Gaussian.of_sums(counts[s], totals[s], products[s], origin, self.covariance) for s in (0, 1)]
        return frechet_distance(*sides)

    def _infinity(self, used: Tensor, random: np.random.Generator) -> Tensor:
        smallest = -(-len(used) // 3)
        points = []
        for size in np.linspace(smallest, len(used), self.subsets).round().astype(int):
            groups = used[random.choice(len(used), size, replace=False)]
            frames = int(self.counts[:, groups].sum(dim=1).min())
            if frames >= self.min_frames:
                points.append((frames, float(self._distance(groups))))
        enough = len(points) >= self.subsets // 2
        return torch.tensor(Extrapolation.through(points).infinity if enough else torch.nan, dtype=torch.float64)

    def _interval(self, distance: Tensor, used: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        drawn = [used[random.integers(len(used), size=len(used))] for _ in range(self.resamples)]
        distances = torch.stack([self._distance(groups) for groups in drawn])
        low, high = torch.quantile(distances, torch.tensor([0.025, 0.975], dtype=torch.float64))
        return 2 * distance - high, 2 * distance - low
