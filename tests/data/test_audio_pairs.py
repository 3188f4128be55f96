"""Stretches of audio and notes: aligned, spread evenly, the same for the same number."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from midisynth.datasets.audio_pairs import ConsecutiveStretches, Part, RandomStretches, audio_pairs, corpus_shares
from midisynth.datasets.cache import Prepared, prepare, prepared
from midisynth.datasets.corpus import Record
from midisynth.datasets.folder import Folder
from midisynth.datasets.patterns import single_notes
from midisynth.errors import DataError
from midisynth.music.notes import Performance

ROOT = Path(__file__).resolve().parents[2]
RATE = 8000
SEGMENT = 4000
HOP = 100


class Codec:
    """Notes as they are, on the clock of the stretch."""

    sample_rate = RATE
    segment_samples = SEGMENT

    def encode_segment(self, performance: Performance, start_sec: float) -> dict:
        return {"onsets": performance.notes["onset_sec"] - start_sec, "start_sec": start_sec}


class Clicks(Record):
    """A click at every note, half a second apart; `metadata["seconds"]` long."""

    def performance(self) -> Performance:
        count = int(2 * self.metadata["seconds"])
        return single_notes(np.full(count, 60), np.full(count, 64), 0.5, 0.1)

    def waveform(self, sample_rate: int) -> torch.Tensor:
        audio = torch.zeros(round(self.metadata["seconds"] * sample_rate))
        audio[:: sample_rate // 2] = self.metadata["level"]
        return audio


def clicks(folder: Path, name: str, lengths: list[float], level: float = 0.5) -> list[Prepared]:
    records = [
        Clicks(name, f"{name}{i}", f"{name}{i}", "train", metadata={"seconds": seconds, "level": level})
        for i, seconds in enumerate(lengths)
    ]
    prepare(records, folder / name, RATE)
    return prepared(records, folder / name)


def test_notes_and_audio_are_aligned(tmp_path: Path):
    dataset = RandomStretches([Part("a", 1, clicks(tmp_path, "a", [10.0, 4.0]))], Codec(), HOP, 0)
    for number in range(100):
        example = dataset[number]
        start = round(example["start_sec"] * RATE)
        assert start % HOP == 0
        heard = torch.nonzero(example["audio"]).flatten() / RATE
        inside = example["onsets"][(example["onsets"] >= 0) & (example["onsets"] < SEGMENT / RATE - 1e-9)]
        assert np.allclose(heard, inside, atol=1 / RATE)
        assert example["audio"].shape == (SEGMENT,)
        assert example["audio"].max() == pytest.approx(0.5, abs=1e-4)


def test_every_place_is_as_likely(tmp_path: Path):
    parts = [Part("a", 1, clicks(tmp_path, "a", [1.5, 9.0, 0.2]))]
    dataset = RandomStretches(parts, Codec(), HOP, 0)
    starts = np.array([dataset[number]["start_sec"] for number in range(4000)])
    # 0 to 1 s of the first, 0 to 8.5 s of the second record, 0 of the third: 81, 681 and 1 places.
    assert (starts > 1.0).mean() == pytest.approx(600 / 763, abs=0.03)
    histogram, _ = np.histogram(starts[starts > 1.0], bins=10, range=(1.0, 8.5))
    assert histogram.min() > 0.75 * histogram.mean()
    assert starts.max() == 8.5


def test_weights_share_the_corpora(tmp_path: Path):
    parts = [
        Part("a", 3, clicks(tmp_path, "a", [1.0], level=0.25)),
        Part("b", 1, clicks(tmp_path, "b", [40.0] * 3, level=0.75)),
    ]
    dataset = RandomStretches(parts, Codec(), HOP, 0)
    levels = np.array([float(dataset[number]["audio"].max()) for number in range(600)])
    assert (levels < 0.5).mean() == pytest.approx(0.75, abs=0.05)
    assert len(dataset) == 121 * RATE // SEGMENT
    with pytest.raises(DataError, match="c: has no records for training"):
        RandomStretches([*parts, Part("c", 1, [])], Codec(), HOP, 0)


def test_sizes_share_the_corpora(tmp_path: Path):
    parts = [
        Part("a", 1, clicks(tmp_path, "a", [2.0], level=0.25)),
        Part("b", 2, clicks(tmp_path, "b", [40.0, 24.0], level=0.75)),
    ]
    # 4 and 128 stretches: 32 times as many, which is 2 to the power of 5.
    for temperature, ratio in ((0.0, 2.0), (0.4, 2 * 2**2), (1.0, 2 * 32)):
        assert corpus_shares([1, 2], [4, 128], temperature) == pytest.approx([1 / (1 + ratio), ratio / (1 + ratio)])
        dataset = audio_pairs(parts, Codec(), "train", align=HOP, temperature=temperature)
        levels = np.array([float(dataset[number]["audio"].max()) for number in range(500)])
        assert (levels < 0.5).mean() == pytest.approx(1 / (1 + ratio), abs=0.05)


def test_a_number_is_an_example(tmp_path: Path):
    parts = [Part("a", 1, clicks(tmp_path, "a", [10.0, 4.0]))]
    one, same, other = (RandomStretches(parts, Codec(), HOP, seed) for seed in (0, 0, 1))
    numbers = [0, 5, len(one) + 5, 10**6]
    assert [one[n]["start_sec"] for n in numbers] == [same[n]["start_sec"] for n in reversed(numbers)][::-1]
    assert [one[n]["start_sec"] for n in numbers] != [other[n]["start_sec"] for n in numbers]
    assert one[5]["start_sec"] != one[len(one) + 5]["start_sec"]
    size = len(pickle.dumps(one))
    copy = pickle.loads(pickle.dumps(one))
    assert torch.equal(copy[7]["audio"], one[7]["audio"])
    assert size < 10_000  # mapped audio does not travel to workers


def test_consecutive_stretches_cover_a_record(tmp_path: Path):
    parts = [Part("a", 1, clicks(tmp_path, "a", [1.3, 0.2])), Part("b", 1, clicks(tmp_path, "b", [1.0]))]
    dataset = ConsecutiveStretches(parts, Codec())
    assert [dataset[i]["start_sec"] for i in range(len(dataset))] == [0, 0.5, 0, 0, 0.5]
    assert dataset[2]["audio"][1600:].abs().max() == 0
    with pytest.raises(IndexError):
        dataset[5]
    assert len(ConsecutiveStretches([], Codec())) == 0


def test_splits_choose_the_kind(tmp_path: Path):
    parts = [Part("a", 1, clicks(tmp_path, "a", [2.0]))]
    assert isinstance(audio_pairs(parts, Codec(), "train"), RandomStretches)
    assert isinstance(audio_pairs(parts, Codec(), "validation"), ConsecutiveStretches)
    assert isinstance(audio_pairs(parts, Codec(), "test"), ConsecutiveStretches)


def test_pedal_is_applied_before_the_codec_sees_the_notes(tmp_path: Path):
    records = [r for r in Folder(str(ROOT / "examples" / "data")).records() if r.split == "train"]
    prepare(records, tmp_path, RATE)

    class Durations(Codec):
        def encode_segment(self, performance: Performance, start_sec: float) -> dict:
            return {"seconds": performance.notes["duration_sec"].sum()}

    parts = [Part("folder", 1, prepared(records, tmp_path))]
    sounding = audio_pairs(parts, Durations(), "test")[0]["seconds"]
    as_played = audio_pairs(parts, Durations(), "test", apply_pedal=lambda p: p)[0]["seconds"]
    assert sounding > 1.1 * as_played


class Sides(Clicks):
    """Clicks on the left, and half as loud on the right."""

    def waveform(self, sample_rate: int) -> torch.Tensor:
        left = super().waveform(sample_rate)
        return torch.stack([left, left / 2])


def test_channels_are_those_that_are_asked_for(tmp_path: Path):
    record = Sides("sides", "one", "one", "train", metadata={"seconds": 4.0, "level": 0.5})
    prepare([record], tmp_path / "sides", RATE)
    stereo, mono = prepared([record], tmp_path / "sides"), clicks(tmp_path, "mono", [4.0])
    assert stereo[0].audio().shape == (4 * RATE, 2)
    for split in ("train", "test"):
        parts = [Part("sides", 1, stereo), Part("mono", 1, mono)]
        both = audio_pairs(parts, Codec(), split, align=HOP, channels=2, context=HOP)
        one = audio_pairs(parts, Codec(), split, align=HOP, context=HOP)
        ratios = set()
        for number in range(12):
            example = both[number]
            assert example["audio"].shape == (2, SEGMENT)
            assert example["context_audio"].shape == (2, HOP)
            assert torch.allclose(example["audio"].mean(dim=0), one[number]["audio"], atol=1e-4)
            left, right = example["audio"].abs().amax(dim=1).tolist()
            ratios.add(round(right / left, 2))
        assert ratios == {0.5, 1.0}
