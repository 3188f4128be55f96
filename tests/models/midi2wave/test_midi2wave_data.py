"""Segments for training and for evaluation, cut from recordings of the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from midisynth.audio.io import load_audio
from midisynth.errors import DataError, UsageError
from midisynth.models.midi2wave import Midi2Wave, Midi2WaveData
from midisynth.music.midi import read_midi
from midisynth.music.notes import struck_notes
from midisynth.training.sampler import EndlessDataset

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "data"
TRAINED = EXAMPLES / "train" / "Chopin_op38_p02_004000ms.midi"
SMALL = {"layers": 2, "max_dilation": 2, "residual": 4, "skip": 4, "hidden": 4}
RATE, HOP = 4000, 32


def model(**options) -> Midi2Wave:
    chosen = {"sample_rate": RATE, "ticks_per_sec": 125, "decoder": SMALL, "encoder": {**SMALL, "outputs": 4}}
    return Midi2Wave(**{**chosen, **options})


def data(folder: Path, connected: Midi2Wave, **options) -> Midi2WaveData:
    made = Midi2WaveData({"maestro": str(EXAMPLES)}, cache_dir=str(folder), **options)
    made.connect(connected)
    made.prepare(workers=1, progress=False)
    for stage in ("fit", "test"):
        made.setup(stage)
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


def test_training_segments_start_from_silence_and_depend_on_their_number_alone(cache: Path):
    chosen = model(roll="sustained")
    made = data(cache, chosen, segment_sec=0.4)
    segments, again = made.dataset("train"), made.dataset("train")
    assert isinstance(segments, EndlessDataset)
    performance = chosen.codec.sounding(read_midi(TRAINED))
    recording = load_audio(TRAINED.with_suffix(".flac"), RATE).mean(dim=0)
    quiet = 0
    for number in (0, 1, len(segments), 10**6, *range(20, 32)):
        example, same = segments[number], again[number]
        assert torch.equal(example["audio"], same["audio"]) and torch.equal(example["roll"], same["roll"])
        roll, audio = example["roll"], example["audio"]
        assert roll.shape == (88, 50) and audio.shape == (50 * HOP,)
        (sounding,) = np.nonzero(roll.any(dim=0).numpy())
        first = int(sounding[0])
        assert not audio[: first * HOP].any()
        quiet += first > 0
        # The rest is a stretch of the recording, and the roll that of the same place.
        rest = audio[first * HOP :]
        windows = recording[first * HOP :].unfold(0, len(rest), HOP)
        (places,) = torch.nonzero((windows - rest).abs().amax(dim=1) < 1e-3, as_tuple=True)
        assert any(torch.equal(roll, chosen.codec.roll(performance, start, 50)) for start in places.tolist())
    assert quiet, "no segment of these begins before a note: the test shows nothing"
    assert not torch.equal(segments[0]["audio"], segments[1]["audio"])


def test_segments_end_with_the_shorter_of_audio_and_midi(cache: Path):
    """The clip lasts 10 s; from its MIDI the second half of the notes is taken away."""
    chosen = model()
    segments = data(cache, chosen, segment_sec=1.0).dataset("train")
    whole = segments._performance(0)
    half = whole.with_notes(whole.notes[whole.notes["onset_sec"] < 5])
    half.notes["duration_sec"] = np.minimum(half.notes["duration_sec"], 5.5 - half.notes["onset_sec"])
    segments._performances[0] = half
    starts = []
    place = segments._place

    def watched(generator: np.random.Generator) -> tuple[int, int]:
        starts.append(place(generator)[1] // HOP)
        return 0, starts[-1] * HOP

    segments._place = watched
    taken = [(segments[number], starts[-1])[1] for number in range(30)]
    assert max(starts) + 125 > chosen.codec.ticks(half)
    assert max(taken) + 125 <= chosen.codec.ticks(half)


def test_music_without_notes_is_an_error(cache: Path):
    segments = data(cache, model(), segment_sec=0.1).dataset("train")
    segments._performances[0] = segments._performance(0).with_notes(segments._performance(0).notes[:0])
    with pytest.raises(DataError, match="have no notes"):
        segments[0]


def test_held_out_segments_have_their_past_and_the_notes_of_others(cache: Path):
    chosen = model(roll="both", pedal="hold")
    segments = data(cache, chosen, test_sec=2.0, primed_sec=0.5).dataset("test")
    assert len(segments) == 5
    file = next((EXAMPLES / "test").glob("*.midi"))
    performance = chosen.codec.sounding(read_midi(file))
    recording = load_audio(file.with_suffix(".flac"), RATE).mean(dim=0)
    history = int(0.5 * RATE) // HOP
    for index in range(5):
        example, first = segments[index], index * 250
        before = recording[max(first - history, 0) * HOP : (first + 250) * HOP]
        audio = torch.nn.functional.pad(before, ((history + 250) * HOP - len(before), 0))
        torch.testing.assert_close(example["audio"], audio, rtol=0, atol=1e-4)
        assert int(example["history"]) == history * HOP
        assert torch.equal(example["roll"], chosen.codec.roll(performance, first - history, history + 250))
        assert torch.equal(example["other"], segments[(index + 2) % 5]["roll"])
        np.testing.assert_array_equal(example["truth"], struck_notes(performance.notes, 2.0 * index, 2.0))
    assert chosen.codec.rows == 177
    assert segments[1]["roll"][88].any(), "the pedal is nowhere in the roll"


def test_attributes_come_from_the_corpora(cache: Path):
    chosen = model(attributes={"year": None, "piano": None, "composer": ["Bach"]})
    made = data(cache, chosen, segment_sec=0.4)
    assert chosen.hparams.attributes == {"year": ["1999"], "piano": ["maestro"], "composer": ["Bach"]}
    # Unknown and one value of each; the composer of the recording is none of those that were named.
    assert made.dataset("train")[0]["attributes"].tolist() == [0, 1, 0, 1, 1, 0]
    assert chosen.network.decoder.global_cond(None).shape == (1, 2 * 2 * 4)
    with pytest.raises(UsageError, match="hall is none of"):
        model(attributes={"hall": None})
