"""Corpora against what the original data sets made of the same files: splits, lengths, notes as tokens, audio."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import pytest
import soundfile
import torch
import yaml
from torch import Tensor

from midisynth.datasets.audio_pairs import corpus_shares
from midisynth.datasets.corpus import Record, Split
from midisynth.datasets.guitarset import GuitarSet
from midisynth.datasets.maestro import Maestro
from midisynth.datasets.musicnet import TEST, VALIDATION, MusicNet
from midisynth.datasets.slakh import CERBERUS, DRUMS, Slakh, choose
from midisynth.datasets.urmp import Urmp
from midisynth.models.spectrogram_diffusion.tokens import (
    STEPS_PER_SEC,
    Vocabulary,
    decode_segment,
    note_events,
    segment_tokens,
)
from midisynth.music.midi import read_midi
from midisynth.music.notes import is_drum
from midisynth.music.pedal import extend_by_pedal


class Trees:
    """The directory trees that the fixture describes, made when they are needed."""

    def __init__(self, fixture: dict[str, Any], folder: Path):
        self._files = fixture["_files"]
        self._slakh = fixture["slakh"]["tracks"]
        self._folder = folder

    def root(self, name: str, exact: bool = False) -> Path:
        """Folder of what the fixture lists below `name`.

        Args:
            name: A corpus, or a folder in it; folders of one corpus do not see each other.
            exact: Of two files with one path take the later one, whose audio needs no resampling.
        """
        root = self._folder / f"{name.replace('/', '-')}-{exact}"
        entries = [entry for entry in self._files["entries"] if entry[1].startswith(f"{name}/")]
        for entry in entries if exact else reversed(entries):
            path = root / entry[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            if entry[0] == "audio":
                _write_audio(path, *entry[2:])
            else:
                _write_midi(path, entry[2])
        return root / name.partition("/")[0]

    def maestro(self, exact: bool = False) -> Path:
        root = self.root("maestro", exact)
        stems = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.midi"))
        keys = [str(number) for number in range(len(stems))]
        table = {
            "canonical_composer": dict.fromkeys(keys, "composer"),
            "canonical_title": {key: f"title {key}" for key in keys},
            "split": {key: self._files["maestro_split"][key] for key in keys},
            "midi_filename": {key: f"{stem}.midi" for key, stem in zip(keys, stems, strict=True)},
            "audio_filename": {key: f"{stem}.wav" for key, stem in zip(keys, stems, strict=True)},
        }
        (root / "maestro-v3.0.0.json").write_text(json.dumps(table))
        return root

    def guitarset(self) -> Path:
        root = self.root("guitarset")
        (root / "annotation").mkdir(exist_ok=True)
        for audio in root.glob("audio_mono-mic/*_mic.wav"):
            title = audio.stem.removesuffix("_mic")
            strings = [
                {
                    "namespace": "note_midi",
                    "data": [
                        {"time": 0.1 + 0.05 * s, "duration": 0.5, "value": 52.4 + 5 * s, "confidence": None},
                        {"time": 1.0, "duration": 0.8, "value": 57.6 + 4 * s, "confidence": None},
                    ],
                }
                for s in range(2)
            ]
            jams = {"annotations": [*strings, {"namespace": "beat_position", "data": []}], "file_metadata": {}}
            (root / "annotation" / f"{title}.jams").write_text(json.dumps({**jams, "title": title}))
        return root

    def slakh(self, split: Split) -> Path:
        root = self.root(f"slakh/{split}")
        for track, stems in self._slakh.items():
            rows = {name: {"program_num": program, "is_drum": drum} for name, (program, drum) in stems.items()}
            metadata = {"UUID": track, "stems": rows}
            (root / split / track / "metadata.yaml").write_text(yaml.safe_dump(metadata))
        return root


def _write_audio(path: Path, rate: int, seconds: float, k: int, channels: int) -> None:
    n = np.arange(round(seconds * rate))
    audio = [0.5 * np.sin(2 * np.pi * (200 + 40 * k) * n / rate), 0.25 * np.sin(2 * np.pi * 977 * n / rate)]
    soundfile.write(path, np.stack(audio[:channels], axis=1), rate, subtype="PCM_16")


def _write_midi(path: Path, instruments: Sequence[Any]) -> None:
    midi = pretty_midi.PrettyMIDI(resolution=500, initial_tempo=120)
    for program, drum, notes in instruments:
        instrument = pretty_midi.Instrument(program, is_drum=bool(drum))
        instrument.notes = [pretty_midi.Note(80, pitch, start, end) for start, end, pitch in notes]
        midi.instruments.append(instrument)
    midi.write(str(path))


class Items:
    """The stretches of some records, one after the other, as the original counted them."""

    def __init__(self, records: Sequence[Record], config: dict[str, Any]):
        self._records = records
        self._length, self._rate = config["segment_length"], config["sample_rate"]
        self._steps = round(self._length / self._rate * STEPS_PER_SEC)
        # Shifts from 0 up to and including `codec_steps`.
        self._vocabulary = Vocabulary(config["codec_steps"] + 1)

    @cached_property
    def tokens(self) -> list[list[list[int]]]:
        return [self._tokenize(record) for record in self._records]

    def _tokenize(self, record: Record) -> list[list[int]]:
        events = note_events(extend_by_pedal(record.performance(), group="instrument").notes)
        starts = range(0, int(events[-1, 0]) + 1, self._steps)
        return [segment_tokens(events, start, self._steps, self._vocabulary) for start in starts]

    @cached_property
    def audio(self) -> list[Tensor]:
        return [record.waveform(self._rate) for record in self._records]

    def notes(self, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        """Tokens of a stretch as sorted rows of start, end (1/100 s), pitch, program, whether a drum."""
        decoded = decode_segment(tokens, self._steps, self._vocabulary)
        names = ("onset_step", "end_step", "pitch", "program", "drum")
        return sorted(tuple(int(note[name]) for name in names) for note in decoded)

    @property
    def boundaries(self) -> list[int]:
        counts = [
            min(len(audio) // self._length, len(tokens)) for audio, tokens in zip(self.audio, self.tokens, strict=True)
        ]
        return [0, *np.cumsum(counts).tolist()]

    def check(self, expected: dict[str, Any], tolerance: float, borders: bool) -> None:
        """Compare one item with the fixture's.

        Args:
            expected: Of the fixture.
            tolerance: Of samples and statistics.
            borders: Compare the first and the last samples too. The original resampled stretches, at whose borders its
                filter met silence; here files are resampled whole.
        """
        index = expected["index"]
        record = int(np.searchsorted(self.boundaries, index, side="right")) - 1
        position = index - self.boundaries[record]
        assert self.tokens[record][position] == expected["tokens"]
        self._check_audio(record, position, expected["audio"], tolerance, borders)
        if "context" in expected:
            self._check_audio(record, position - 1, expected["context"], tolerance, borders)

    def _check_audio(
        self, record: int, position: int, expected: dict[str, Any], tolerance: float, borders: bool
    ) -> None:
        start = position * self._length
        audio = self.audio[record][start : start + self._length] if position >= 0 else torch.zeros(self._length)
        assert len(audio) == expected["n"]
        samples = audio.double().numpy()
        assert samples.mean() == pytest.approx(expected["mean"], abs=tolerance)
        assert np.sqrt(np.square(samples).mean()) == pytest.approx(expected["rms"], abs=tolerance)
        middle = len(samples) // 2
        count = len(expected["mid16"])
        assert np.allclose(samples[middle : middle + count], expected["mid16"], atol=tolerance, rtol=0)
        if borders:
            assert np.allclose(samples[: len(expected["first16"])], expected["first16"], atol=tolerance, rtol=0)
            assert np.allclose(samples[-len(expected["last8"]) :], expected["last8"], atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def root(parity_root) -> Path:
    root = parity_root("spectrogram_diffusion")
    if not (root / "datasets.manifest.json").is_file():
        pytest.skip(f"no datasets.manifest.json in {root}")
    return root


@pytest.fixture(scope="module")
def manifest(root: Path) -> dict[str, Any]:
    return json.loads((root / "datasets.manifest.json").read_text())


@pytest.fixture(scope="module")
def fixture(root: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    return json.loads((root / manifest["files"][0]).read_text())


@pytest.fixture(scope="module")
def trees(fixture: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Trees:
    return Trees(fixture, tmp_path_factory.mktemp("trees"))


@pytest.fixture(scope="module")
def tolerances(manifest: dict[str, Any]) -> tuple[float, float]:
    """Of sources at the model's rate, and of those that are resampled."""
    exact, resampled = (float(number) for number in re.findall(r"\d+e-\d+", manifest["tolerance"]))
    return exact, resampled


def of(records: Sequence[Record], split: Split) -> list[Record]:
    return [record for record in records if record.split == split]


def test_musicnet(fixture, manifest, trees: Trees, tolerances):
    expected = fixture["musicnet"]
    records = MusicNet(str(trees.root("musicnet")), splits="published").records()
    assert {str(number) for number in VALIDATION} == set(expected["val_ids"])
    assert {str(number) for number in TEST} == set(expected["test_ids"])
    for ours, theirs in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert len(of(records, ours)) == expected[theirs]["num_tracks"]
    train = {record.audio.name: record for record in of(records, "train")}
    assert set(train) == set(expected["train_order"])
    items = Items([train[name] for name in expected["train_order"]], manifest["config"])
    check_items(items, expected["train_context_true"], tolerances[1], borders=False)


def check_items(items: Items, expected: dict[str, Any], tolerance: float, borders: bool) -> None:
    assert items.boundaries == expected["boundaries"]
    assert items.boundaries[-1] == expected["length"]
    for item in expected["items"]:
        items.check(item, tolerance, borders)


def test_maestro(fixture, manifest, trees: Trees, tolerances):
    records = Maestro(str(trees.maestro())).records()
    for ours, theirs in (("train", "train_no_context"), ("validation", "val"), ("test", "test")):
        items = Items(of(records, ours), manifest["config"])
        check_items(items, fixture["maestro"][theirs], tolerances[1], borders=False)


def test_maestro_without_resampling(fixture, manifest, trees: Trees, tolerances):
    records = of(Maestro(str(trees.maestro(exact=True))).records(), "train")
    expected = fixture["maestro_16k_exact"]
    items = Items(records, manifest["config"])
    assert items.boundaries == expected["boundaries"]
    first = [item for item in expected["items"] if item["index"] < items.boundaries[1]]
    assert first
    for item in first:
        items.check(item, tolerances[0], borders=True)


def test_urmp(fixture, trees: Trees):
    expected = fixture["urmp"]
    root = trees.root("urmp")
    programs = expected["program_map"]
    records = Urmp(str(root), notes="score", saxophone=programs["sax"], splits="published").records()
    for ours, theirs in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert sorted(record.id[:2] for record in of(records, ours)) == expected[theirs]["tracks"]
    assert Urmp(str(root), notes="score", saxophone=programs["sax"]).programs == programs
    notes = records[0].performance().notes
    tracks = range(len(expected["cleaned_programs"]))
    assert [np.unique(notes["program"][notes["track"] == t]).tolist() for t in tracks] == expected["cleaned_programs"]


def test_guitarset(fixture, trees: Trees):
    expected = fixture["guitarset"]
    rows = expected["note_sequence"]
    (program,) = {row["program"] for row in rows}
    records = GuitarSet(str(trees.guitarset()), program=program, splits="published").records()
    for ours, theirs in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert sorted(record.audio.name for record in of(records, ours)) == sorted(expected[theirs]["files"])
    for record in records:
        notes = record.performance().notes
        assert len(notes) == len(rows)
        for note, row in zip(notes[np.lexsort([notes["onset_sec"], notes["track"]])], rows, strict=True):
            names = ("pitch", "program", "velocity", "track")
            assert [note[name] for name in names] == [row[n] for n in ("pitch", "program", "velocity", "instrument")]
            assert note["onset_sec"] == row["start"]
            assert note["onset_sec"] + note["duration_sec"] == pytest.approx(row["end"], abs=1e-12)


def heard(record: Record) -> list[str]:
    """What sounds: the file of the whole song, or the names of stems."""
    return [record.audio.name] if record.audio else sorted(path.stem for path in record.stems)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_slakh_mixes(split: Split, fixture, manifest, trees: Trees):
    expected = fixture["slakh"]
    rows = expected["test" if split == "test" else "train"]
    records = Slakh(str(trees.slakh(split))).records()
    items = Items(records, manifest["config"])
    made = [
        (record.id.partition("-")[0], heard(record), items.notes(tokens[0]))
        for record, tokens in zip(records, items.tokens, strict=True)
    ]
    wanted = []
    for row in rows:
        notes = items.notes(row["tokens_first_chunk"])
        stems = expected["tracks"][row["track"]]
        audio = [row["audio"]] if isinstance(row["audio"], str) else sorted(row["audio"])
        # The original let drums in wherever program 0 was, whether or not they sound (`drum_leak_bug`).
        if isinstance(row["audio"], list) and not any(stems[name][1] for name in audio):
            notes = [note for note in notes if not note[-1]]
        wanted.append((row["track"], audio, notes))
    assert sorted(made) == sorted(wanted)
    assert len(records) == (len(rows) if split == "test" else expected["train_entries"])


def test_slakh_sums_stems(fixture, manifest, trees: Trees, tolerances):
    expected = fixture["slakh"]
    records = Slakh(str(trees.slakh("train"))).records()
    by_mix = {(record.id.partition("-")[0], *heard(record)): record for record in records}
    # Several mixes of a song may have the same stems: items are looked up by what sounds in them.
    rows = expected["train"]
    order = [by_mix[(row["track"], *sorted(row["audio"]))] for row in rows]
    check_items(Items(order, manifest["config"]), expected["stem_sum_item"], tolerances[0], borders=True)


def test_slakh_keeps_drums_out(fixture, trees: Trees):
    leak = fixture["slakh"]["drum_leak_bug"]
    (song,) = (trees.slakh("train") / "train").glob("Track00001/all_src.mid")
    programs = [*leak["requested_programs"], *([DRUMS] if leak["include_drums"] else [])]
    notes = choose(read_midi(song), programs).notes
    rows = [
        {"program": int(note["program"]), "is_drum": bool(drum), "pitch": int(note["pitch"])}
        for note, drum in zip(notes, is_drum(notes), strict=True)
    ]
    assert rows == leak["correct_result"]
    assert rows != leak["original_result"]


def test_cerberus_combinations(fixture):
    combinations = {frozenset(names) for names in fixture["slakh"]["cerberus_combinations"]}
    assert {name for names in combinations for name in names} == set(CERBERUS)
    assert len(combinations) == 2 ** len(CERBERUS) - 1


def test_mixing_rates(fixture):
    expected = fixture["sampling"]
    shares = corpus_shares([1.0] * len(expected["sizes"]), expected["sizes"], expected["temperature"])
    assert shares == pytest.approx(expected["dataset_probability"], rel=1e-12)
    weights = np.asarray(expected["per_dataset_weight"])
    assert shares == pytest.approx(weights / weights.sum(), rel=1e-12)
    assert shares / expected["sizes"] == pytest.approx(
        np.asarray(expected["per_sample_weight"]) / weights.sum(), rel=1e-12
    )
