"""The codec and the data preparation of DExter (2024) against their arrays."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from midisynth.models.dexter import published_codec
from midisynth.models.dexter.expression import ExpressionCodec
from midisynth.models.dexter.features import score_features
from midisynth.models.dexter.midlevel import HeardFeatures
from midisynth.models.dexter.published_data import (
    TransferPairs,
    channel_statistics,
    mixes,
    segments,
    swapped_pairs,
)
from midisynth.music.alignment import AlignedPerformance
from midisynth.music.notes import CONTROL_DTYPE, NOTE_DTYPE, Performance
from midisynth.music.score_notes import SCORE_NOTE_DTYPE, Score

CHANNELS = ("beat_period", "velocity", "timing", "articulation", "pedal")


class Fixture:
    """Arrays and strings of one manifest, and the tolerances that it states."""

    def __init__(self, root: Path, name: str, strings: str):
        self.tolerance = json.loads((root / f"{name}.manifest.json").read_text())["tolerance"]
        self.arrays = load_file(root / f"{name}.safetensors")
        self.strings: dict[str, Any] = json.loads((root / strings).read_text())

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def stated(self, what: str) -> float:
        """The number behind some words of the tolerance."""
        return float(re.search(re.escape(what) + r"\D*?(\d+(?:\.\d+)?e-\d+)", self.tolerance).group(1))

    @property
    def tags(self) -> list[str]:
        return sorted(name.removesuffix(".p_codec") for name in self.arrays if name.endswith(".p_codec"))

    def score(self, tag: str, ids: list[str]) -> Score:
        """The score with the notes of some ids, in their order."""
        names = self.strings[f"{tag}.score_ids"]
        notes = np.zeros(len(names), SCORE_NOTE_DTYPE)
        notes["id"] = names
        for field in ("onset_div", "duration_div", "onset_beat", "duration_beat", "pitch", "voice"):
            notes[field] = self[f"{tag}.score.{field}"]
        for field in ("onset_quarter", "duration_quarter"):
            notes[field] = self[f"{tag}.score.{field}"]
        notes["grace"] = notes["duration_div"] == 0
        return Score(notes[[names.index(name) for name in ids]], int(self[f"{tag}.score.divs_pq"][0]))

    def aligned(self, tag: str, ids: list[str]) -> AlignedPerformance:
        score = self.score(tag, ids)
        played = np.zeros(len(self[f"{tag}.perf.pitch"]), NOTE_DTYPE)
        played["onset_sec"] = self[f"{tag}.perf.note_on"]
        played["duration_sec"] = self[f"{tag}.perf.note_off"] - played["onset_sec"]
        played["pitch"], played["velocity"] = self[f"{tag}.perf.pitch"], self[f"{tag}.perf.velocity"]
        controls = np.zeros(len(self[f"{tag}.ctrl.time"]), CONTROL_DTYPE)
        controls["time_sec"] = self[f"{tag}.ctrl.time"]
        controls["number"], controls["value"] = self[f"{tag}.ctrl.number"], self[f"{tag}.ctrl.value"]
        controls = controls[np.argsort(controls["time_sec"], kind="stable")]
        rows = {name: row for row, name in enumerate(score.notes["id"].tolist())}
        notes = {name: row for row, name in enumerate(self.strings[f"{tag}.perf_ids"])}
        pairs: dict[int, int] = {}
        for entry in self.strings[f"{tag}.alignment"]:
            if entry["label"] == "match" and entry["score_id"] in rows:
                pairs.setdefault(rows[entry["score_id"]], notes[entry["performance_id"]])
        return AlignedPerformance(
            score, Performance(notes=played, controls=controls), np.array(sorted(pairs.items()), np.int64)
        )


@pytest.fixture(scope="module")
def codec_arrays(parity_root) -> Fixture:
    return Fixture(parity_root("dexter"), "codec", "codec_strings.json")


@pytest.fixture(scope="module")
def pipeline(parity_root) -> Fixture:
    return Fixture(parity_root("dexter"), "pipeline", "pipeline.json")


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert actual.shape == expected.shape
    difference = np.abs(actual - expected).max()
    assert difference <= tolerance, f"differs by {difference:.2e}, allowed are {tolerance:.0e}"


# Codec


@pytest.mark.parametrize("rows", ["p_codec", "p_codec_matched_only"])
def test_performances_are_encoded_the_same(codec_arrays, rows):
    for tag in codec_arrays.tags:
        ids = codec_arrays.strings[f"{tag}.snote_ids{'_matched_only' if rows != 'p_codec' else ''}"]
        expression = ExpressionCodec("2024").encode(codec_arrays.aligned(tag, ids))
        expected = codec_arrays[f"{tag}.{rows}"]
        for index, name in enumerate(CHANNELS):
            tolerance = codec_arrays.stated("articulation" if name == "articulation" else "p_codec abs")
            assert_close(expression.values[:, index], expected[:, index], tolerance)
        if rows == "p_codec":
            assert np.array_equal(~expression.matched, codec_arrays[f"{tag}.pad_mask"])


def test_the_pedal_prolongs_notes_the_same(codec_arrays):
    for tag in codec_arrays.tags:
        performance = codec_arrays.aligned(tag, codec_arrays.strings[f"{tag}.snote_ids"]).performance
        ends = published_codec.sounding_ends(performance.notes, performance.controls)
        assert_close(ends, codec_arrays[f"{tag}.perf.sound_off_fork"], 1e-9)


@pytest.mark.parametrize("kind", ["decode_all", "decode_padmask"])
def test_performances_are_decoded_the_same(codec_arrays, kind):
    for tag in codec_arrays.tags:
        played = ~codec_arrays[f"{tag}.pad_mask"] | (kind == "decode_all")
        ids = np.array(codec_arrays.strings[f"{tag}.snote_ids"])[played].tolist()
        score = codec_arrays.score(tag, ids)
        performance = ExpressionCodec("2024").decode(score, codec_arrays[f"{tag}.p_codec"][played], exact=True)
        notes = performance.notes[[ids.index(name) for name in codec_arrays.strings[f"{tag}.{kind}.ids"]]]
        tolerance = codec_arrays.stated("decode onset/offset abs")
        assert_close(notes["onset_sec"], codec_arrays[f"{tag}.{kind}.onset"], tolerance)
        assert_close(notes["onset_sec"] + notes["duration_sec"], codec_arrays[f"{tag}.{kind}.offset"], tolerance)
        for name in ("velocity", "pitch"):
            assert np.array_equal(notes[name], codec_arrays[f"{tag}.{kind}.{name}"])
        times, values = codec_arrays[f"{tag}.{kind}.pedal_time"], codec_arrays[f"{tag}.{kind}.pedal_value"]
        order = np.argsort(times, kind="stable")
        assert_close(performance.controls["time_sec"], times[order], tolerance)
        assert sorted(
            zip(performance.controls["tick"].tolist(), performance.controls["value"].tolist(), strict=True)
        ) == (sorted(zip(np.rint(times * 960).astype(int).tolist(), values.tolist(), strict=True)))


def test_scores_are_encoded_the_same(codec_arrays):
    for tag in codec_arrays.tags:
        for order in ("snote_ids", "s_codec_ids_original_order"):
            score = codec_arrays.score(tag, codec_arrays.strings[f"{tag}.{order}"])
            expected = codec_arrays[f"{tag}.s_codec_{'aligned' if order == 'snote_ids' else 'original'}"]
            assert np.array_equal(score_features(score, "published"), expected.astype(np.float32))


def test_matched_tables_are_those_of_the_codec(codec_arrays):
    """What the original feeds to its codec: pitches, velocities, and -1 for what was not played."""
    for tag in codec_arrays.tags:
        aligned = codec_arrays.aligned(tag, codec_arrays.strings[f"{tag}.snote_ids"])
        notes, played = aligned.score.notes, aligned.performance.notes[aligned.pairs[:, 1]]
        table = published_codec.matched_table(aligned)
        assert_close(table.s_onset, codec_arrays[f"{tag}.m_score.onset"], 0)
        assert_close(table.s_duration, codec_arrays[f"{tag}.m_score.duration"], 0)
        assert_close(table.p_onset, codec_arrays[f"{tag}.m_score.p_onset"], 1e-6)
        assert_close(table.p_duration, codec_arrays[f"{tag}.m_score.p_duration"], 1e-6)
        assert np.array_equal(table.velocity, codec_arrays[f"{tag}.m_score.velocity"])
        assert np.array_equal(notes["pitch"], codec_arrays[f"{tag}.m_score.pitch"])
        assert np.array_equal(played["pitch"], notes["pitch"][aligned.pairs[:, 0]])


def test_notes_form_the_same_groups(codec_arrays):
    for tag in codec_arrays.tags:
        ids = codec_arrays.strings[f"{tag}.snote_ids_matched_only"]
        table = published_codec.matched_table(codec_arrays.aligned(tag, ids))
        expected = codec_arrays.strings[f"{tag}.unique_onset_idxs"]
        groups = [np.flatnonzero(table.group == group).tolist() for group in range(table.group.max() + 1)]
        assert groups == [sorted(group) for group in expected]


def test_other_scales_of_tempo_are_the_same(codec_arrays):
    """The forms of the beat period that the original can store instead of seconds follow from ours, group by group."""
    tolerance = codec_arrays.stated("alternative normalisations")
    for tag in codec_arrays.tags:
        aligned = codec_arrays.aligned(tag, codec_arrays.strings[f"{tag}.snote_ids_matched_only"])
        notes = ExpressionCodec("2024").encode(aligned).values[:, 0].astype(np.float64)
        groups = notes[np.unique(published_codec.matched_table(aligned).group, return_index=True)[1]]
        mean, std = groups.mean(), groups.std()
        expected = {
            "beat_period_log": {"beat_period_log": np.log2(notes)},
            "beat_period_ratio": {"beat_period_ratio": notes / mean, "beat_period_mean": mean},
            "beat_period_ratio_log": {"beat_period_ratio_log": np.log2(notes / mean), "beat_period_mean": mean},
            "beat_period_standardized": {
                "beat_period_standardized": (notes - mean) / std,
                "beat_period_mean": mean,
                "beat_period_std": std,
            },
        }
        for name, columns in expected.items():
            for column, values in columns.items():
                assert_close(np.broadcast_to(values, notes.shape), codec_arrays[f"{tag}.{name}.{column}"], tolerance)


# Data preparation


def test_recordings_describe_the_same_notes(pipeline, codec_arrays):
    heard = HeardFeatures(pipeline["cep.frame_start_time"], pipeline["cep.features"])
    onsets = codec_arrays["synth.m_score.p_onset"]
    assert np.array_equal(heard.at(onsets, "2024"), pipeline["c_codec"])
    assert np.array_equal(heard.at(onsets)[onsets >= heard.starts[0]], pipeline["c_codec"][onsets >= heard.starts[0]])


def test_the_same_performances_are_mixed(pipeline):
    performances = list(pipeline["mix.perf_in"])
    counts = [len(mixes(performances[: number + 1])) for number in range(len(performances))]
    assert np.diff([0, *counts]).tolist() == pipeline.strings["mixup_counts_per_performance"]
    last = pipeline.strings["mixup_counts_per_performance"][-1]
    assert_close(np.stack(mixes(performances)[-last:]), pipeline["mix.p_last"], 1e-6)


def test_pieces_are_cut_into_the_same_windows(pipeline, codec_arrays):
    length = pipeline.strings["seg.N"]
    performances = list(pipeline["mix.perf_in"])
    pieces = [performances[-1], *pipeline["mix.p_last"]]
    expected = pipeline["seg.p_codec"]
    assert_close(np.concatenate([segments(piece, length) for piece in pieces]), expected, 1e-6)
    score = segments(codec_arrays["synth.s_codec_original"], length)
    assert np.array_equal(np.concatenate([score] * len(pieces)), pipeline["seg.s_codec"])
    for heard in np.split(pipeline["seg.c_codec"], len(pieces)):
        rows = heard.reshape(-1, heard.shape[-1])[: len(pipeline["c_codec"])]
        assert_close(segments(rows, length), heard, 0)
    names = ["piece" if number == 0 else "piece_mixup" for number in range(len(pieces)) for _ in score]
    assert names == pipeline.strings["seg.piece_name"]
    counter = [f"X_piece_seg{segment}.npy" for _ in pieces for segment in range(len(score))]
    assert counter == pipeline.strings["seg.snote_id_path"]


def test_scales_are_the_same(pipeline):
    train = pipeline["seg.p_codec"]
    mean, std = (np.array(pipeline.strings[name]) for name in ("norm_mean", "norm_std"))
    test = pipeline["norm.test"] * std + mean
    found = channel_statistics(np.concatenate([train, test]))
    assert_close(found[0], mean, 1e-6)
    assert_close(found[1], std, 1e-6)
    assert_close((train - mean) / std, pipeline["norm.train"], 1e-6)
    assert_close(pipeline["norm.train"] * std + mean, pipeline["norm.inverse"], 1e-6)
    assert len(train) == pipeline.strings["hdf5_counts"]["train"]
    assert len(test) == pipeline.strings["hdf5_counts"]["test"]
    notes = len(pipeline["c_codec"])
    pieces = len(train) * train.shape[1] // len(segments(np.zeros(notes), train.shape[1])) // train.shape[1]
    mask = np.concatenate([segments(np.ones(notes, bool), train.shape[1])] * pieces)
    unpadded = channel_statistics(train, mask)
    assert_close(unpadded[0], np.array(pipeline.strings["norm_mean_train_unpadded"]), 1e-6)
    assert_close(unpadded[1], np.array(pipeline.strings["norm_std_train_unpadded"]), 1e-6)


def test_the_same_windows_are_paired(pipeline):
    windows = pipeline.strings["pair.input"]
    pieces = [(name.split("-")[0], name.split("-")[2]) for name in windows]
    pairs = TransferPairs(pieces)
    found = sorted([windows[source], windows[target]] for source, target in pairs)
    assert found == pipeline.strings["pair.pairs_sorted"]
    assert [windows[index] for index in pairs.unpaired] == pipeline.strings["pair.unpaired"]
    expected = next(value for name, value in pipeline.strings.items() if name.startswith("pair_swap"))
    assert swapped_pairs(len(expected)).tolist() == expected
