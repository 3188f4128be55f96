"""From a corpus to batches: recordings as codes and notes, cut anew in every epoch, and stretches of a test."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from midisynth.audio.io import load_audio
from midisynth.datasets.audio_pairs import Part
from midisynth.datasets.cache import Prepared
from midisynth.datasets.folder import Folder
from midisynth.errors import DataError, UsageError
from midisynth.main import main
from midisynth.models.midi_valle import MidiValle, MidiValleData
from midisynth.models.midi_valle.codecs import UNTRAINED, load_neural_codec
from midisynth.models.midi_valle.examples import (
    EverySegment,
    RandomSegments,
    Stretches,
    collate,
    collate_segments,
)
from midisynth.models.midi_valle.pieces import Cutter, encode_blocks
from midisynth.music.midi import read_midi

ROOT = Path(__file__).resolve().parents[3]
CLIPS = ROOT / "examples" / "data"
MODEL = {"neural_codec": UNTRAINED, "codebooks": 3, "bins": 64, "dim": 16, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def model() -> MidiValle:
    return MidiValle(**MODEL)


@pytest.fixture(scope="module")
def data(model: MidiValle) -> MidiValleData:
    """The three clips, prepared."""
    module = MidiValleData({"folder": str(CLIPS)}, max_duration=30.0, min_sec=3.0, max_sec=4.0, test_sec=2.0)
    module.connect(model)
    module.prepare(workers=1, progress=False)
    module.setup("fit")
    module.setup("test")
    return module


@pytest.fixture
def part(data: MidiValleData) -> Part:
    (found,) = data.parts("train")
    return found


def test_a_recording_becomes_codes_and_notes(part: Part, model: MidiValle):
    (prepared,) = part.prepared
    arrays = prepared.arrays()
    audio = load_audio(prepared.record.audio, 32000).mean(dim=0)
    assert arrays["frames"] == len(arrays["codes"]) <= -(-len(audio) // 640)
    assert arrays["codes"].shape[1] == 4
    assert arrays["codes"].max() < 64
    assert len(np.unique(arrays["codes"])) > 4
    np.testing.assert_array_equal(arrays["notes"]["pitch"], read_midi(prepared.record.midi).notes["pitch"])


def test_blocks_are_seamless(monkeypatch: pytest.MonkeyPatch):
    """What is encoded in blocks is nearly what is encoded at once; without context more differs."""
    codec = load_neural_codec(UNTRAINED)
    audio = 0.1 * torch.randn(640 * 110 - 13)
    with torch.no_grad():
        whole = codec.encode(audio[None])[0]
    monkeypatch.setattr("midisynth.models.midi_valle.pieces.BLOCK_SEC", 0.5)
    blocks = encode_blocks(codec, audio)
    assert blocks.shape == whole.shape
    assert (blocks == whole).float().mean() > 0.99
    monkeypatch.setattr("midisynth.models.midi_valle.pieces.CONTEXT_SEC", 0.0)
    assert (encode_blocks(codec, audio) != whole).sum() > (blocks != whole).sum()


def segments(part: Part, cutter: Cutter, **options) -> RandomSegments:
    return RandomSegments([part], cutter, **{"min_sec": 3.0, "max_sec": 4.0, "cuts": "random", "seed": 0, **options})


def test_every_epoch_cuts_all_of_a_recording_at_other_places(part: Part, model: MidiValle):
    dataset = segments(part, model.cutter())
    total = int(part.prepared[0].arrays()["frames"])
    plans = [dataset._plan(epoch) for epoch in (0, 1)]
    for plan in plans:
        assert plan[0].first == 0
        assert plan[-1].last == total
        assert all(one.last == two.first for one, two in pairwise(plan))
        assert all(3.0 <= (one.last - one.first) / 50 <= 4.0 for one in plan[:-1])
        assert 1.0 <= (plan[-1].last - plan[-1].first) / 50 <= 4.0
    assert [one.first for one in plans[0]] != [one.first for one in plans[1]]
    assert [one.first for one in segments(part, model.cutter())._plan(1)] == [one.first for one in plans[1]]
    np.testing.assert_allclose(dataset.durations(0).sum(), total / 50)
    # Short segments are not too short where they are wanted.
    short = segments(part, model.cutter(), min_sec=1.0, max_sec=2.0)
    np.testing.assert_allclose(short.durations(0).sum(), total / 50)
    assert short.durations(0).max() <= 2.0
    # The first cut of the original comes after 16.9 s; the clips are shorter.
    assert len(segments(part, model.cutter(), cuts="published").durations(0)) == 1


def test_a_weight_is_a_number_of_passes(part: Part, model: MidiValle):
    counts = []
    for weight in (1.0, 3.0, 1.5):
        dataset = segments(Part(part.name, weight, part.prepared), model.cutter())
        total = sum(dataset.durations(epoch).sum() for epoch in range(40))
        counts.append(total / (40 * float(part.prepared[0].arrays()["frames"]) / 50))
    assert counts[:2] == pytest.approx([1.0, 3.0])
    assert 1.25 < counts[2] < 1.75
    with pytest.raises(DataError, match="folder: has no records for training"):
        segments(Part("folder", 1.0, []), model.cutter())


def test_an_example_is_what_is_played_and_heard_in_it(part: Part, model: MidiValle):
    cutter = model.cutter()
    dataset = segments(part, cutter)
    (prepared,) = part.prepared
    arrays = prepared.arrays()
    stretch = dataset._plan(0)[1]
    (example,) = dataset[[(0, 1)]]
    np.testing.assert_array_equal(example["codes"], arrays["codes"][stretch.first : stretch.last, :3])
    assert example["codes"].dtype == torch.int64
    played = cutter.note_rows.decode(example["rows"].numpy()).notes
    onset = arrays["notes"]["onset_sec"] - stretch.first / 50
    struck = (onset >= 0) & (onset < (stretch.last - stretch.first) / 50)
    np.testing.assert_allclose(np.sort(played["onset_sec"]), np.sort(onset[struck]), atol=0.004)
    again = Cutter(cutter.note_rows, "strike", cutter.frames_per_sec, 3).example(prepared, stretch.first, stretch.last)
    ends = onset + arrays["notes"]["duration_sec"]
    assert len(again["rows"]) - len(example["rows"]) == ((onset < 0) & (ends > 0)).sum() > 0


def test_batches_are_padded_and_prompts_come_from_neighbours(part: Part, model: MidiValle):
    dataset = segments(part, model.cutter(), needs_neighbours=True)
    plan = dataset._plan(0)
    for index, one in enumerate(plan):
        near = [(plan[other].first, plan[other].last) for other in (index - 1, index + 1) if 0 <= other < len(plan)]
        assert one.neighbour in near
    examples = dataset[[(0, number) for number in range(len(plan))]]
    batch = collate(examples)
    for index, example in enumerate(examples):
        rows, frames = batch["row_lengths"][index], batch["code_lengths"][index]
        torch.testing.assert_close(batch["rows"][index, :rows], example["rows"])
        assert not batch["rows"][index, rows:].any()
        torch.testing.assert_close(batch["codes"][index, :frames], example["codes"])
        assert batch["frames"][index] == frames
        start = int(example["place"] * (len(example["neighbour"]) - 149))
        torch.testing.assert_close(batch["prompts"][index], example["neighbour"][start : start + 150])
    assert batch["prompts"].shape[1] == 150
    assert "prompts" not in collate_segments([{"rows": e["rows"], "codes": e["codes"]} for e in examples])


def test_validation_is_always_the_same(data: MidiValleData):
    one, two = data.dataset("validation"), data.dataset("validation")
    assert isinstance(one, EverySegment)
    assert len(one) == len(two) >= 2
    for index in range(len(one)):
        torch.testing.assert_close(one[index]["codes"], two[index]["codes"])


def test_stretches_of_a_test_follow_their_prompts(data: MidiValleData):
    dataset = data.dataset("test")
    assert isinstance(dataset, Stretches)
    prepared: Prepared = data.parts("test")[0].prepared[0]
    codes, audio = prepared.arrays()["codes"], load_audio(prepared.record.audio, 32000).mean(dim=0)
    notes = prepared.arrays()["notes"]
    assert len(dataset) == (len(codes) - 150) // 100
    example = dataset[1]
    np.testing.assert_array_equal(example["prompt"], codes[100:250, :3])
    np.testing.assert_array_equal(example["codes"], codes[250:350, :3])
    torch.testing.assert_close(example["audio"], audio[250 * 640 : 350 * 640])
    inside = (notes["onset_sec"] >= 5.0) & (notes["onset_sec"] < 7.0)
    np.testing.assert_allclose(
        np.sort(example["truth"]["onset_sec"]), np.sort(notes["onset_sec"][inside]) - 5.0, atol=1e-3
    )
    # Rows of both, with the first and the last row.
    struck = (notes["onset_sec"] >= 2.0) & (notes["onset_sec"] < 7.0)
    assert len(example["rows"]) == struck.sum() + 2
    assert example["prompt_notes"] == ((notes["onset_sec"] >= 2.0) & (notes["onset_sec"] < 5.0)).sum()
    assert collate([example, example]) == [example, example]
    torch.testing.assert_close(example["other"], dataset[(1 + len(dataset) // 2) % len(dataset)]["rows"])
    assert "other" not in Stretches(data.parts("test"), data._model.cutter(), (len(codes) - 150) / 50, 32000)[0]
    with pytest.raises(DataError, match=r"no recording for testing has the 15 s that a prompt and data\.test_sec are"):
        Stretches(data.parts("test"), data._model.cutter(), 12.0, 32000)


def test_wrong_lengths_and_corpora_are_errors_in_a_line(
    model: MidiValle, capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    with pytest.raises(UsageError, match="expected 0 < min_sec <= max_sec"):
        MidiValleData({"folder": str(CLIPS)}, min_sec=5, max_sec=4)
    for name in ("max_duration", "buckets", "test_sec"):
        with pytest.raises(UsageError, match=f"{name} is 0, expected at least 1"):
            MidiValleData({"folder": str(CLIPS)}, **{name: 0})
    with pytest.raises(UsageError, match=r"max_sec: segments of up to 33 s are too long: rows reach 32 s"):
        MidiValleData({"folder": str(CLIPS)}, max_sec=33).connect(model)
    words = ["prepare", "--config=midi_valle/tiny", "--data=atepp", f"--data.root={tmp_path}"]
    assert main(words) != 0
    assert "corpora.atepp: has no audio, which MidiValleData needs" in capfd.readouterr().err
    assert main(["fit", "--config=midi_valle/tiny", "--model.prefix_mode=3"]) != 0
    assert "model.prefix_mode: expected one of 0, 1, 2, 4, got '3'" in capfd.readouterr().err
    assert Folder(str(CLIPS)).content >= MidiValleData.content
