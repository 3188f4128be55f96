"""Curves, comparisons and features of performances, on music small enough to be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midisynth.metrics.expression import (
    MAX_DEVIATION,
    beat_periods,
    correlation,
    density,
    density_grid,
    deviation,
    kl_divergence,
    onset_groups,
    published_kl_divergence,
    tempo_curve,
    velocity_curve,
)
from midisynth.metrics.performance_features import (
    FEATURES,
    PlayedNotes,
    performance_features,
    rising_ramps,
    successors,
)


class TestCurves:
    def test_onsets_that_differ_by_rounding_are_one(self):
        beats, group = onset_groups(np.array([2 / 3, 0.0, 1 / 3 + 1 / 3 + 1e-12, 1.0]))
        assert beats == pytest.approx([0, 2 / 3, 1])
        assert group.tolist() == [1, 0, 1, 2]

    def test_tempo_and_velocity(self):
        onset = np.array([0.0, 0.0, 1.0, 2.0])
        beats, tempo = tempo_curve(onset, np.array([0.4, 0.6, 1.0, np.nan]))
        assert beats.tolist() == [0, 1, 2]
        assert tempo[:2].tolist() == [120, 60] and math.isnan(tempo[2])
        assert velocity_curve(onset, np.array([60, 70, 80, 90]))[1].tolist() == [65, 80, 90]

    def test_beat_periods(self):
        """Chords begin at the mean of their onsets, the last onset is measured to the end of the last note."""
        onset, duration = np.array([0, 0, 1, 1.5, 2, 2, 3]), np.array([1, 2, 0.5, 0.5, 1, 2, 1])
        performed = np.array([1.0, 1.02, 1.55, 1.8, 2.06, 2.1, 2.7])
        lengths = np.array([0.45, 1.1, 0.2, 0.3, 0.5, 1.0, 0.9])
        found = beat_periods(onset, performed, duration, lengths)
        assert found == pytest.approx([0.54, 0.54, 0.5, 0.56, 0.62, 0.62, 0.9])

    def test_an_onset_before_its_predecessor_lies_between_its_neighbours(self):
        found = beat_periods(np.arange(4.0), np.array([0.0, 1.0, 0.5, 3.0]), np.ones(4), np.ones(4))
        assert found == pytest.approx([1, 1, 1, 1])

    def test_what_nobody_played_has_no_tempo(self):
        found = beat_periods(np.arange(3.0), np.array([0.0, np.nan, 1.0]), np.ones(3), np.full(3, 0.5))
        assert found[[0, 2]].tolist() == [0.5, 0.5] and math.isnan(found[1])


class TestComparison:
    def test_deviation(self):
        assert deviation(np.array([110.0, 90.0, 132.0]), np.array([100.0, 100.0, 120.0])) == pytest.approx(0.1 / 3)
        assert deviation(np.array([1.0, 3.0]), np.array([0.0, 1.0]), np.array([1.0, 4.0])) == pytest.approx(0.75)
        assert deviation(np.array([1.0, 2.0]), np.array([0.0, 1.0])) == 1.0, "division by zero is left out"
        assert deviation(np.array([100.0]), np.array([0.1])) == MAX_DEVIATION
        assert math.isnan(deviation(np.array([np.nan]), np.array([1.0])))

    def test_correlation(self):
        values = np.array([1.0, 2.0, 4.0, np.nan])
        assert correlation(values, values) == 1
        assert correlation(-3 * values + 5, values) == -1
        assert correlation(np.full(4, 7.0), values) == 0, "a constant follows nothing"
        assert math.isnan(correlation(values, np.full(4, 7.0))), "there is nothing to follow"
        assert math.isnan(correlation(values[:1], values[:1]))

    def test_divergence_of_normal_distributions(self):
        generator = np.random.default_rng(0)
        first, second = generator.normal(0, 1, 10000), generator.normal(1, 2, 10000)
        exact = math.log(2) + (1 + 1) / 8 - 0.5
        assert kl_divergence(first, second) == pytest.approx(exact, rel=0.05)
        # Not because of the sample: the published form counts p twice, and both densities over 300 points alone.
        assert published_kl_divergence(first, second) < 0.2 * exact

    def test_the_published_divergence_gives_minus_one_where_it_fails(self):
        assert published_kl_divergence(np.ones(5), np.arange(5.0)) == -1
        assert math.isnan(kl_divergence(np.ones(5), np.arange(5.0)))

    @given(
        st.lists(st.floats(-100, 100), min_size=3, max_size=30),
        st.lists(st.floats(-100, 100), min_size=3, max_size=30),
        st.randoms(),
    )
    def test_divergence_is_no_less_than_zero_and_heeds_no_order(self, first, second, random):
        found = kl_divergence(np.array(first), np.array(second))
        random.shuffle(first)
        assert math.isnan(found) or 0 <= found <= math.log(1000 * 512)
        assert kl_divergence(np.array(first), np.array(second)) == pytest.approx(found, nan_ok=True, rel=1e-6, abs=1e-9)
        own = kl_divergence(np.array(second), np.array(second[::-1]))
        assert math.isnan(own) or own == pytest.approx(0, abs=1e-9)

    def test_a_density_is_everywhere_and_sums_to_one(self):
        values = np.append(np.random.default_rng(0).normal(size=200), np.nan)
        points = density_grid([values, np.array([50.0, 60.0])])
        found = density(values, points)
        assert found.sum() == pytest.approx(1) and found.min() > 0
        assert points[found.argmax()] == pytest.approx(0, abs=0.5)


def melody() -> PlayedNotes:
    """Five quarter notes in two voices, the first four over a bass of a whole note; a crescendo, and a pedal."""
    return PlayedNotes(
        onset_beat=np.array([0.0, 0.0, 1.0, 2.0, 3.0]),
        duration_beat=np.array([4.0, 1.0, 1.0, 1.0, 1.0]),
        pitch=np.array([40, 60, 62, 64, 65]),
        voice=np.array([2, 1, 1, 1, 1]),
        onset_sec=np.array([0.02, 0.0, 0.5, 1.0, 1.5]),
        duration_sec=np.array([2.0, 0.6, 0.4, 0.5, 0.5]),
        velocity=np.array([40, 60, 70, 80, 60]),
        beat_period=np.array([0.5, 0.5, 0.5, 0.4, 0.6]),
        marking=np.array(["", "p", "", "f", "p"]),
        crescendo=np.array([0.0, 0.0, 0.5, 1.0, 0.0]),
        diminuendo=np.zeros(5),
        pedal_sec=np.array([0.2, 0.9, 1.1]),
        pedal_value=np.array([100, 0, 80]),
    )


class TestFeatures:
    def test_asynchrony(self):
        found = performance_features(melody())
        assert found["asynchrony.delta"][:2] == pytest.approx([0.02, 0.02])
        assert np.isnan(found["asynchrony.delta"][2:]).all(), "single notes have no spread"
        # The bass is lower, later and softer.
        assert found["asynchrony.pitch_cor"][0] == pytest.approx(1)
        assert found["asynchrony.vel_cor"][0] == pytest.approx(1)
        assert found["asynchrony.pitch_vel_cor"][0] == pytest.approx(1)
        assert found["asynchrony.voice_std"][0] == pytest.approx(0.01)

    def test_articulation(self):
        found = performance_features(melody())
        assert found["articulation.kot"][1:4] == pytest.approx([0.1, -0.1, 0.0])
        assert found["articulation.kor"][1:4] == pytest.approx([0.2, -0.2, 0.0])
        assert np.isnan(found["articulation.kor"][[0, 4]]).all(), "nothing follows"

    def test_successors(self):
        notes = melody()
        assert successors(notes).tolist() == [-1, 2, 3, 4, -1]
        # A rest, and a chord of which the nearest note is taken.
        shorter = replace(notes, duration_beat=np.array([4, 0.5, 1, 1, 1]))
        assert successors(shorter).tolist() == [-1, -1, 3, 4, -1]
        chord = replace(notes, onset_beat=np.array([0.0, 0.0, 1.0, 1.0, 2.0]))
        assert successors(chord).tolist() == [-1, 2, 4, 4, -1]

    def test_articulation_looks_at_every_voice_unless_published(self):
        notes = replace(melody(), voice=np.array([1, 2, 2, 2, 2]))
        assert np.isfinite(performance_features(notes)["articulation.kor"]).sum() == 3
        assert (performance_features(notes, published=True)["articulation.kor"] == -1).all()

    def test_dynamics(self):
        found = performance_features(melody())
        assert found["dynamics.agreement"][3:].tolist() == [1, 1]
        # At p: 50 (with the bass) and 60; f stands once.
        assert found["dynamics.consistency_std"][[0, 4]] == pytest.approx([5, 5])
        assert math.isnan(found["dynamics.consistency_std"][3])
        assert found["dynamics.ramp_cor"][2:4] == pytest.approx([1, 1])
        quicker = [2, 2, 2.5, 1 / 0.6]
        wanted = np.corrcoef(quicker, [50, 70, 80, 60])[0, 1]
        assert found["dynamics.tempo_cor"] == pytest.approx(np.full(5, wanted))

    def test_the_wrong_way(self):
        notes = replace(melody(), velocity=np.array([90, 90, 80, 70, 75]))
        found = performance_features(notes)
        assert found["dynamics.agreement"][3:].tolist() == [-1, -1]
        assert found["dynamics.ramp_cor"][2] == pytest.approx(-1)

    def test_ramps_that_follow_each_other(self):
        assert rising_ramps(np.array([0, 0.5, 1, 0.2, 0.8, 0])) == [(1, 3, 3), (3, 5, 5)]
        assert rising_ramps(np.zeros(3)) == []

    def test_pedal(self):
        found = performance_features(melody())
        assert found["pedal.onset_value"].tolist() == [0, 0, 100, 0, 80]
        assert found["pedal.to_prev_release"][3:] == pytest.approx([0.1, 0.6])
        assert found["pedal.to_next_release"][1] == pytest.approx(0.3)
        assert found["pedal.pedal_coverage"][0] == pytest.approx((0.7 + 0.92) / 2.02)

    def test_features_of_a_single_note(self):
        notes = melody()
        single = PlayedNotes(**{name: getattr(notes, name)[:1] for name in PlayedNotes.__dataclass_fields__})
        found = performance_features(single)
        assert set(found) == set(FEATURES) and all(len(column) == 1 for column in found.values())
        assert np.isfinite(list(performance_features(single, published=True).values())).all()
