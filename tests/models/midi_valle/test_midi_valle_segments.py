"""Segments cover a performance and lose nothing; joined, they are as long as it and have no clicks."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midisynth.models.midi_valle.codec import NoteRows, in_seconds
from midisynth.models.midi_valle.joining import join
from midisynth.models.midi_valle.segments import (
    GUARD_SEC,
    MAX_SEC,
    MIN_SEC,
    RING_SEC,
    SHORTEST_SEC,
    cut,
    musical_points,
    random_points,
)
from midisynth.music.notes import CONTROL_DTYPE, NOTE_DTYPE, Performance

EXAMPLES = Path(__file__).parents[3] / "examples"


def performance_of(notes, controls=()) -> Performance:
    """Onset (seconds), duration and pitch of every note."""
    table = np.zeros(len(notes), NOTE_DTYPE)
    for row, (onset, duration, pitch) in zip(table, notes, strict=True):
        row["onset_sec"], row["duration_sec"], row["pitch"], row["velocity"] = onset, duration, pitch, 64
    return in_seconds(Performance(notes=table, controls=np.array(list(controls), CONTROL_DTYPE)))


any_notes = st.lists(
    st.tuples(st.floats(0, 90), st.floats(0.01, 40), st.integers(21, 108)), min_size=1, max_size=40
).map(performance_of)


@given(any_notes, st.sampled_from([0.0, 0.5]))
@settings(max_examples=25, deadline=None)
def test_nothing_is_lost(performance, overlap):
    """Whatever is played, however sparse: every note begins in one segment, and sounds to its end in the next ones."""
    segments = cut(performance, overlap_sec=overlap)
    boundaries = [segment.end_sec for segment in segments]
    assert segments[0].start_sec == 0
    assert boundaries[-1] == pytest.approx(performance.end_sec + RING_SEC)
    assert all(s.seconds <= MAX_SEC + overlap + RING_SEC + 1e-9 for s in segments)
    assert all(s.seconds >= MIN_SEC - 1e-9 for s in segments[:-1])
    assert len(segments) == 1 or segments[-1].seconds >= SHORTEST_SEC
    for before, after in pairwise(segments):
        assert after.start_sec == pytest.approx(before.end_sec - overlap)
    struck, sounding = [], 0.0
    for segment in segments:
        notes = segment.performance.notes
        ends = notes["onset_sec"] + notes["duration_sec"]
        assert (notes["onset_sec"] >= 0).all() and (ends <= segment.seconds + 1e-9).all()
        assert (notes["onset_sec"][segment.held] == 0).all()
        first = segment.start_sec + (overlap if segment.start_sec else 0)
        own = segment.struck.notes
        onsets = own["onset_sec"] + segment.start_sec
        struck += np.round(onsets[onsets >= first - 1e-9], 6).tolist()
        inside = np.minimum(ends + segment.start_sec, segment.end_sec) - np.maximum(
            notes["onset_sec"] + segment.start_sec, first
        )
        sounding += float(np.maximum(inside, 0).sum())
    assert sorted(struck) == pytest.approx(sorted(performance.notes["onset_sec"]), abs=1e-6)
    assert sounding == pytest.approx(float(performance.notes["duration_sec"].sum()), abs=1e-4)


def test_boundaries_are_where_the_music_pauses():
    """Chords without end, but for a breath at 17.2 s; and silence that is longer than a segment."""
    chords = [(0.4 * n, 0.9, pitch) for n in range(42) for pitch in (48, 60)]
    later = [(18.0 + 0.4 * n, 0.9, pitch) for n in range(20) for pitch in (48, 60)]
    performance = performance_of([*chords, *later, (100.0, 1.0, 60)])
    points = musical_points(performance)
    assert points[1] == pytest.approx(18.0 - GUARD_SEC)
    notes = performance.notes
    for point in points[1:]:
        assert not ((notes["onset_sec"] < point) & (notes["onset_sec"] + notes["duration_sec"] > point)).any()
    silent = [segment for segment in cut(performance) if len(segment.performance.notes) == 0]
    assert silent, "a long rest is segments of its own"


def test_the_pedal_breaks_ties():
    """Of two pauses between keys the one that the pedal does not fill."""
    notes = [(n * 1.0, 0.5, 60) for n in range(30)]
    pedal = [(time, 0, 64, value, 0, 0) for time, value in ((14.0, 127), (17.9, 0), (18.5, 127), (29.0, 0))]
    assert musical_points(performance_of(notes))[1] != pytest.approx(18.0 - GUARD_SEC)
    assert musical_points(performance_of(notes, pedal))[1] == pytest.approx(18.0 - GUARD_SEC)


def test_a_segment_begins_with_the_pedals_as_they_stand():
    pedal = [(time, 0, number, value, 0, 0) for time, number, value in ((1.0, 64, 127), (2.0, 67, 90), (30.0, 64, 0))]
    performance = performance_of([(n * 1.0, 0.9, 60) for n in range(40)], pedal)
    second = cut(performance)[1]
    assert second.performance.controls[["time_sec", "number", "value"]].tolist()[:2] == [(0.0, 64, 127), (0.0, 67, 90)]
    assert second.performance.controls["time_sec"][2] == pytest.approx(30.0 - second.start_sec)


@pytest.mark.parametrize("seconds", [0.4, 19.9, 20.1, 22.9, 23.1, 40.2])
def test_short_pieces_and_tails(seconds):
    performance = performance_of([(0.0, seconds, 60), (seconds - 0.1, 0.1, 62)])
    for points in (musical_points(performance), random_points(seconds, np.random.default_rng(0))):
        lengths = np.diff([*points, seconds])
        assert (lengths <= MAX_SEC).all() and (lengths[:-1] >= MIN_SEC).all()
        assert len(points) == 1 or lengths[-1] >= SHORTEST_SEC


@pytest.mark.parametrize(("shortest", "longest"), [(2.0, 2.5), (1.0, 2.0), (2.0, 2.0), (3.5, 5.5)])
def test_close_limits_are_kept(shortest, longest):
    """Where there is no room for a long rest, boundaries still go forwards."""
    performance = performance_of([(0.31 * number, 0.2, 60) for number in range(50)])
    for points in (
        musical_points(performance, shortest, longest),
        random_points(performance.end_sec, np.random.default_rng(0), shortest, longest),
    ):
        lengths = np.diff([*points, performance.end_sec])
        assert (lengths <= longest + 1e-9).all() and (lengths[:-1] >= shortest - 1e-9).all()
        assert lengths[-1] >= longest - shortest - 1e-9


def test_random_points_differ():
    random = np.random.default_rng(0)
    assert random_points(200.0, random)[1:] != random_points(200.0, random)[1:]


# Joining


@pytest.fixture(scope="module")
def segments():
    codec = NoteRows()
    return cut(codec.read(EXAMPLES / "mozart_k331.mid"), 2.0, 6.0, overlap_sec=0.3)


@pytest.mark.parametrize("rate", [16000, 22050])
def test_every_sample_is_in_its_place(segments, rate):
    """A sine that each segment has by its own clock goes on through every joint: no drift, no click, no gap."""
    assert len(segments) > 5

    def wave(samples):
        return (0.5 * torch.sin(2 * torch.pi * 220 * samples.double() / rate)).float()

    def tone(segment, seconds):
        start = round(segment.start_sec * rate)
        return wave(start + torch.arange(round(seconds * rate)))

    # Models round up to frames; what is too much is cut off.
    audio = [tone(segment, segment.seconds + 0.02) for segment in segments]
    joined = torch.cat(list(join(iter(audio), segments, rate, 0.3)))
    assert len(joined) == round(segments[-1].end_sec * rate)
    inner = slice(rate // 100, -rate // 100)
    torch.testing.assert_close(joined[inner], wave(torch.arange(len(joined)))[inner], rtol=0, atol=1e-6)
    assert joined[:1].abs() < 1e-2 and joined[-1:].abs() < 1e-2


def test_joints_of_unlike_sounds_do_not_click(segments):
    """Constants of either sign: the steepest slope is that of the fade."""
    rate = 16000
    audio = [torch.full((round(s.seconds * rate) + 99,), (-1.0) ** number) for number, s in enumerate(segments)]
    joined = torch.cat(list(join(iter(audio), segments, rate, 0.3)))
    inner = joined[rate // 100 : -rate // 100]
    assert inner.diff().abs().max() < 2 / (0.1 * rate)


def test_segments_that_are_too_short_are_followed_by_silence(segments):
    rate = 16000
    audio = [torch.full((round(s.seconds * rate) - 2000,), 0.5) for s in segments]
    joined = torch.cat(list(join(iter(audio), segments, rate, 0.3)))
    assert len(joined) == round(segments[-1].end_sec * rate)
    assert joined.diff().abs().max() < 0.5 / 50


def test_one_segment_is_itself():
    performance = performance_of([(0.0, 0.05, 60)])
    segments = cut(performance, overlap_sec=2.0, ring_sec=0.5)
    joined = torch.cat(list(join([torch.ones(8800)], segments, 16000, 2.0)))
    assert len(joined) == 8800
    assert (joined[100:-100] == 1).all()
