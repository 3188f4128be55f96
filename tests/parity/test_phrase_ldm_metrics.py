"""F1 of notes, distances, structure and memorisation, against the original's evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from phrase_ldm_files import Folder

from midisynth.metrics.phrases import GridScore, grid_score, memorisation, word_error_rates
from midisynth.metrics.structure import (
    bar_vectors,
    bright_ratio,
    latent_distance,
    mean_distance,
    recurrence_by_lag,
    section_recurrence,
    self_similarity,
    song_bars,
)
from midisynth.models.phrase_ldm.texts import parse


@pytest.fixture(scope="module")
def folder(parity_root) -> Folder:
    return Folder(parity_root("phrase_ldm") / "metrics")


@pytest.fixture(scope="module")
def values(folder) -> dict[str, Any]:
    return folder.manifest["values"]


@pytest.fixture(scope="module")
def close(folder):
    relative = folder.manifest["tolerance"]["default_rel"]
    return lambda value: pytest.approx(value, rel=relative, abs=1e-6)


def notes_of(text: str) -> dict[int, np.ndarray]:
    """Notes of the first bar, by instrument."""
    bar = parse(text, compat="published").bars[0]
    return {track.program: np.array([(n.onset, n.pitch, n.duration) for n in track.notes]) for track in bar.tracks}


def test_notes(values, close):
    scores = [
        grid_score(notes_of(target), notes_of(written), published=True) for written, target in values["f1"]["pairs"]
    ]
    for score, expected in zip(scores, values["f1"]["each"], strict=True):
        assert score == GridScore(*(close(expected[f"f1_{kind}"]) for kind in ("op", "opd", "iopd")))
    for kind in ("op", "opd", "iopd"):
        assert np.mean([getattr(score, kind) for score in scores]) == close(values["f1"]["all"][f"f1_{kind}"])


def test_distance(folder, values, close):
    first, second = [folder["set_a"]], [folder["set_b"]]
    assert latent_distance(first, second) == close(values["fid_correct"])
    assert latent_distance(first, second, published=True) == close(values["fid_original"])
    assert latent_distance(first, second, n=2, published=True) == close(values["fid_ngram2_original"])
    assert latent_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_structure(folder, values, close):
    similarity = self_similarity(bar_vectors(folder["song"]))
    torch.testing.assert_close(similarity, folder["ssm"], atol=1e-5, rtol=0)
    assert section_recurrence(similarity, 0.5, 4) == close(values["srs_thr0.5_min4"])
    assert section_recurrence(similarity, 0.6, 2) == close(values["srs_thr0.6_min2"])
    assert recurrence_by_lag(similarity, 0.5) == close(values["srs_simple_thr0.5"])
    assert bright_ratio(similarity, 0.5) == close(values["bright_ratio_0.5"])


def test_diversity(folder, values, close):
    """The stored value is that of the song before its end repeats its beginning, of single phrases."""
    similarity = folder["ssm"]
    bars = next((lag for lag in range(1, len(similarity)) if (similarity.diagonal(lag) > 0.9).all()), len(similarity))
    assert mean_distance(folder["song"][: 4 * bars]) == close(values["diversity"])


def test_end_of_song(folder, values):
    bars = song_bars(folder["trunc_in"])
    assert bars == values["truncate_bars"]
    assert torch.equal(folder["trunc_in"][: 4 * bars], folder["trunc_out"])


def test_memorisation(values, close):
    stored = values["memorization"]
    names = list(stored["refs"])
    melody, training = stored["generated_melody"].split(), [stored["refs"][name].split() for name in names]
    rates = word_error_rates(melody, training)
    assert dict(zip(names, rates, strict=True)) == {name: close(rate) for name, rate in stored["wers"].items()}
    found = memorisation(melody, training)
    assert (found.rate, found.ratio) == (close(stored["mem_rate"]), close(stored["top2_ratio"]))
    assert found.memorised != bool(stored["new_sample_flag"])
