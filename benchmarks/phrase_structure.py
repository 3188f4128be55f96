"""How well measures of structure tell songs of POP909 from the same bars in another order, and from other bars.

    python benchmarks/phrase_structure.py --pop909 POP909-Dataset --structure hierarchical-structure-analysis

Songs are those for validation and testing, random bars and what bars have in common come from those for training; the
space is that of an autoencoder of phrases. "Separated" is the probability that a song has a higher score than random
bars, ties counting half.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from midisynth.metrics.structure import (
    ALIKE,
    PUBLISHED_ALIKE,
    bar_vectors,
    centred_bars,
    section_recurrence,
    section_similarity,
    self_similarity,
    slot_means,
)
from midisynth.models.phrase_ldm import PhraseLdm, PhraseLdmData
from midisynth.models.phrase_ldm.evaluation import known_songs
from midisynth.models.phrase_ldm.sections import spans
from midisynth.models.phrase_ldm.song_scores import KnownSong


def songs(options: argparse.Namespace) -> tuple[list[KnownSong], list[KnownSong]]:
    """Songs for training, and all others."""
    model = PhraseLdm(vae=options.vae)
    corpus = {"root": options.pop909, "structure": options.structure}
    data = PhraseLdmData({"pop909": corpus}, cache_dir=options.cache)
    data.connect(model)
    data.prepare(workers=1, progress=False)
    for stage in ("fit", "test"):
        data.setup(stage)
    training, *others = (known_songs(data.parts(split)) for split in ("train", "validation", "test"))
    return training, [song for part in others for song in part]


def separated(high: Sequence[float], low: Sequence[float]) -> float:
    """Share of pairs of which the first is higher."""
    first, second = np.array(high)[:, None], np.array(low)[None]
    return float(np.mean((first > second) + 0.5 * (first == second)))


def main() -> None:
    """Print a table, and how alike bars are that have nothing to do with each other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pop909", required=True, help="folder of POP909")
    parser.add_argument("--structure", required=True, help="folder of the structure labels")
    parser.add_argument("--vae", default="phrase_vae_pop", help="autoencoder")
    parser.add_argument("--cache", help="folder of prepared data")
    options = parser.parse_args()
    training, held_out = songs(options)
    slots = 4
    means = slot_means([song.latents for song in training], slots)
    bars = torch.cat([song.latents.unflatten(0, (-1, slots)) for song in training])
    generator = torch.Generator().manual_seed(0)

    def shuffled(song: KnownSong) -> Tensor:
        return song.latents.unflatten(0, (-1, slots))[torch.randperm(len(song.bars), generator=generator)].flatten(0, 1)

    def drawn(song: KnownSong) -> Tensor:
        return bars[torch.randint(len(bars), (len(song.bars),), generator=generator)].flatten(0, 1)

    def published(latents: Tensor) -> Tensor:
        return self_similarity(bar_vectors(latents, slots))

    def centred(latents: Tensor) -> Tensor:
        return self_similarity(centred_bars(latents, means))

    def contrast(similarity: Callable[[Tensor], Tensor]) -> Callable[[KnownSong, Tensor], float]:
        def score(song: KnownSong, latents: Tensor) -> float:
            same, other = section_similarity(similarity(latents), spans(song.sections))
            return same - other

        return score

    measures: dict[str, Callable[[KnownSong, Tensor], float]] = {
        "SRS, mean vectors": lambda song, latents: section_recurrence(published(latents), PUBLISHED_ALIKE),
        "SRS, centred bars": lambda song, latents: section_recurrence(centred(latents), ALIKE),
        "contrast, mean vectors": contrast(published),
        "contrast, centred bars": contrast(centred),
    }
    texts = {"songs": [song.latents for song in held_out]}
    texts |= {"shuffled": [shuffled(song) for song in held_out], "random bars": [drawn(song) for song in held_out]}
    print(f"{len(training)} songs for training, {len(held_out)} others")
    print("| | songs | shuffled | random bars | separated |\n| --- | --- | --- | --- | --- |")
    for name, measure in measures.items():
        found = {
            row: [
                score for song, one in zip(held_out, latents, strict=True) if not np.isnan(score := measure(song, one))
            ]
            for row, latents in texts.items()
        }
        cells = " | ".join(f"{np.mean(values):.3f}" for values in found.values())
        print(f"| {name} | {cells} | {separated(found['songs'], found['random bars']):.3f} |")
    for name, similarity, threshold in (("mean vectors", published, PUBLISHED_ALIKE), ("centred bars", centred, ALIKE)):
        chosen = bars[torch.randint(len(bars), (1000,), generator=generator)].flatten(0, 1)
        pairs = similarity(chosen)[tuple(torch.triu_indices(1000, 1000, 1))]
        share = float((pairs >= threshold).float().mean())
        print(f"{name}: median {pairs.median():.2f}, {share:.1%} from {threshold} on")


if __name__ == "__main__":
    main()
