"""Performance features, curves and their comparison against the published program's."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from midisynth.metrics.expression import (
    beat_periods,
    clip_tempo,
    correlation,
    deviation,
    published_kl_divergence,
    tempo_curve,
    velocity_curve,
)
from midisynth.metrics.performance_features import FEATURES, PlayedNotes, performance_features


@pytest.fixture
def codec(parity_root):
    """Arrays, strings and the tolerance of features."""
    root = parity_root("dexter")
    tolerance = json.loads((root / "codec.manifest.json").read_text())["tolerance"]
    strings = json.loads((root / "codec_strings.json").read_text())
    (features,) = re.findall(r"features abs (\S+)", tolerance)
    return load_file(root / "codec.safetensors"), strings, float(features)


@pytest.fixture
def pipeline(parity_root):
    """Arrays, values, the tolerances of everything and of recomputed divergences, and the seed of drawn points."""
    root = parity_root("dexter")
    manifest = json.loads((root / "pipeline.manifest.json").read_text())
    text = manifest["tolerance"]
    (seed,) = re.findall(r"numpy seed (\d+)", manifest["what"]["met.*"])
    everything, divergence = (float(number) for number in re.findall(r"abs (\d\S*?)(?:\s|;|$)", text)[:2])
    return (
        load_file(root / "pipeline.safetensors"),
        json.loads((root / "pipeline.json").read_text()),
        everything,
        divergence,
        int(seed),
    )


def pieces(arrays) -> list[str]:
    return sorted({name.partition(".")[0] for name in arrays if ".feat." in name})


def played_notes(arrays, strings, piece: str) -> PlayedNotes:
    def column(name: str) -> np.ndarray:
        empty = np.zeros_like(arrays[f"{piece}.feat_mscore.onset"])
        return arrays.get(f"{piece}.feat_mscore.{name}", empty)

    markings = strings[f"{piece}.feat_mscore.constant_dyn"]
    return PlayedNotes(
        onset_beat=column("onset"),
        duration_beat=column("duration"),
        pitch=column("pitch"),
        voice=column("voice"),
        onset_sec=column("p_onset"),
        duration_sec=column("p_duration"),
        velocity=column("velocity"),
        beat_period=column("beat_period"),
        marking=np.array(["" if marking == "N/A" else marking for marking in markings]),
        crescendo=column("loudness_direction_feature.loudness_incr"),
        diminuendo=column("loudness_direction_feature.loudness_decr"),
        pedal_sec=arrays[f"{piece}.ctrl.time"],
        pedal_value=arrays[f"{piece}.ctrl.value"],
    )


@pytest.mark.parametrize("feature", FEATURES)
def test_features(codec, feature: str):
    arrays, strings, tolerance = codec
    kind, _, name = feature.partition(".")
    assert pieces(arrays)
    for piece in pieces(arrays):
        found = performance_features(played_notes(arrays, strings, piece), published=True)[feature]
        wanted = arrays[f"{piece}.feat.{kind}_feature.{name}"]
        np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=0, err_msg=piece)


def test_no_feature_is_missing(codec):
    arrays, _, _ = codec
    published = {name.split(".feat.")[1].replace("_feature", "") for name in arrays if ".feat." in name}
    # Its integral goes over an infinite interval and does not converge.
    assert published - {"pedal.average_pedal"} == set(FEATURES)


def test_the_tempo_behind_the_features(codec):
    arrays, strings, tolerance = codec
    for piece in pieces(arrays):
        notes = played_notes(arrays, strings, piece)
        found = beat_periods(notes.onset_beat, notes.onset_sec, notes.duration_beat, notes.duration_sec)
        np.testing.assert_allclose(found, notes.beat_period, atol=tolerance, rtol=0, err_msg=piece)


def test_comparison_with_one_performance(pipeline):
    arrays, values, tolerance, divergence, seed = pipeline
    values, wanted = values["met.pred_label"], ~arrays["met.mask"]
    first, second = arrays["met.f1"][wanted], arrays["met.f2"][wanted]
    known = np.isfinite(first) & np.isfinite(second)
    points = arrays["met.pred_label.points"]
    assert deviation(first, second) == pytest.approx(values["Deviation"], abs=tolerance)
    assert correlation(first, second) == pytest.approx(values["Correlation"], abs=tolerance)
    drawn = published_kl_divergence(first[known], second[known], seed=seed)
    given = published_kl_divergence(first[known], second[known], points)
    assert given == pytest.approx(values["KL divergence"], abs=divergence)
    assert drawn == pytest.approx(values["KL divergence"], abs=divergence)


def test_comparison_with_all_performances(pipeline):
    arrays, values, tolerance, divergence, _ = pipeline
    together = values["met.gt"]
    wanted = ~arrays["met.mask"] & np.isfinite(arrays["met.f1"]) & np.isfinite(arrays["met.f2"])
    found = published_kl_divergence(arrays["met.f1"][wanted], arrays["met.f4"], arrays["met.gt.points"])
    assert found == pytest.approx(together["KL divergence"], abs=divergence)
    spread = values["met.gt_std"]
    first, mean, std = (arrays[f"met.gt_std.f{number}"] for number in (1, 2, 3))
    assert deviation(first, mean, std) == pytest.approx(spread["Deviation"], abs=tolerance)
    assert correlation(first, mean) == pytest.approx(spread["Correlation"], abs=tolerance)
    found = published_kl_divergence(first, arrays["met.f4"], arrays["met.gt_std.points"])
    assert found == pytest.approx(spread["KL divergence"], abs=divergence)


def test_curves(codec, pipeline):
    notes, _, _ = codec
    arrays, values, tolerance, *_ = pipeline
    onset, parameters = notes["synth.m_score.onset"], notes["synth.p_codec"]
    beats, tempo = tempo_curve(onset, parameters[:, 0])
    _, velocity = velocity_curve(onset, parameters[:, 1])
    np.testing.assert_allclose(beats, arrays["curve.onset_beats"], atol=tolerance, rtol=0)
    np.testing.assert_allclose(tempo, arrays["curve.tempo"], atol=tolerance, rtol=0)
    np.testing.assert_allclose(velocity, arrays["curve.velocity"], atol=tolerance, rtol=0)
    assert (clip_tempo(tempo) == tempo).all()
    loss = np.abs(tempo - arrays["curve.label_tempo"]).mean() + np.abs(velocity - arrays["curve.label_vel"]).mean()
    assert loss == pytest.approx(values["curve.tempo_vel_loss"], abs=1e-5)
