"""Prompts as users bring them: every rate and shape of audio, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from midisynth.audio.io import load_audio
from midisynth.errors import AudioError, MidiError
from midisynth.models.midi_valle.codec import NoteRows
from midisynth.models.midi_valle.prompts import AGREEMENT_DB, default_prompt, load_prompt, note_evidence
from midisynth.models.midi_valle.segments import segment
from midisynth.music.midi import read_midi, write_midi
from midisynth.testing_inputs import performance_of

DATA = Path(__file__).parents[3] / "examples" / "data"


class Samples:
    """A codec whose codes are the means of the frames, so that a test hears what was encoded."""

    sample_rate, hop, codebooks, bins = 16000, 320, 1, 65536

    def encode(self, audio):
        frames = audio.unfold(1, self.hop, self.hop)
        return (frames.abs().mean(dim=2, keepdim=True) * 32768).long()


@pytest.fixture(scope="module")
def default():
    return load_prompt(*default_prompt(), Samples(), NoteRows())


@pytest.fixture
def midi(tmp_path):
    """Writes the notes of the default prompt, changed, and returns the file."""

    def write(change):
        performance = NoteRows().read(default_prompt()[1])
        write_midi(change(performance), tmp_path / "changed.mid")
        return tmp_path / "changed.mid"

    return write


@pytest.fixture
def audio(tmp_path):
    """Writes the audio of the default prompt, [samples, channels] changed, and returns the file."""

    def write(change, rate=32000):
        samples = load_audio(default_prompt()[0], rate).T.numpy()
        soundfile.write(tmp_path / "changed.wav", change(samples), rate)
        return tmp_path / "changed.wav"

    return write


def test_the_default_prompt(default):
    assert default.codes.shape == (150, 1)
    assert (default.seconds, default.follows_sec) == (3.0, 3.0)
    assert len(default.performance.notes) == 22
    assert default.warnings == ()
    assert "CC BY" in default_prompt()[0].with_name("ATTRIBUTION.md").read_text()


@pytest.mark.parametrize("rate", [44100, 16000, 22050])
def test_any_rate_and_channels(default, audio, rate):
    stereo = audio(lambda samples: np.concatenate([samples * 1.5, samples * 0.5], axis=1), rate)
    found = load_prompt(stereo, default_prompt()[1], Samples(), NoteRows())
    assert (found.codes - default.codes).abs().max() <= 0.01 * default.codes.max()


def test_what_follows_begins_where_the_audio_ends(default, audio):
    """Whole frames of audio, not the last note of the MIDI; the original takes that one."""
    music = NoteRows().read(default_prompt()[1])
    short = audio(lambda samples: samples[: round(2.47 * 32000)])
    found = load_prompt(short, default_prompt()[1], Samples(), NoteRows())
    assert found.seconds == pytest.approx(2.46) and len(found.codes) == 123
    both = found.followed_by(music)
    ends = found.performance.notes["onset_sec"] + found.performance.notes["duration_sec"]
    assert ends.max() <= found.seconds + 1e-9
    count = len(found.performance.notes)
    assert both.notes["onset_sec"][count] - music.notes["onset_sec"][0] == pytest.approx(found.seconds, abs=1e-9)
    rows = NoteRows().encode(both)
    assert len(rows) == count + len(music.notes) + 2
    published = load_prompt(short, default_prompt()[1], Samples(), NoteRows(compat="published"))
    raw = read_midi(default_prompt()[1], overlap="fifo")
    assert published.follows_sec == pytest.approx(max(raw.end_sec, *raw.controls["time_sec"].tolist(), 0))
    assert len(published.performance.notes) == len(raw.notes)


def test_the_pedal_of_a_prompt_holds_no_note_behind_it():
    """The default prompt ends with its pedal down."""
    codec = NoteRows(pedal=True)
    prompt = load_prompt(*default_prompt(), Samples(), codec)
    pedal = prompt.performance.controls
    assert pedal["value"][pedal["number"] == 64][-1] == 127
    rows = codec.encode(prompt.followed_by(performance_of([(0.5 * n, 0.25, 50 + n, 70, 0) for n in range(8)])))
    durations = codec.decode(rows).notes["duration_sec"]
    np.testing.assert_allclose(durations[-8:], 0.25, atol=0.003)
    # That of its own notes is what it was.
    np.testing.assert_allclose(np.sort(durations[:-8]), np.sort(prompt.performance.notes["duration_sec"]), atol=0.003)


def test_lengths_that_differ_are_said(audio, midi):
    long = midi(lambda performance: segment(performance, 0.0, 1.5).performance)
    found = load_prompt(default_prompt()[0], long, Samples(), NoteRows())
    assert any("has no notes in the last 1.5 s of the prompt" in text for text in found.warnings)
    short = audio(lambda samples: samples[: 32000 * 3 // 2])
    found = load_prompt(short, default_prompt()[1], Samples(), NoteRows())
    assert any("only the first 1.5 s are used" in text for text in found.warnings)
    # Who asks for less need not be told.
    assert not load_prompt(*default_prompt(), Samples(), NoteRows(), max_sec=1.5).warnings


def refused(audio_path, midi_path, error, match, **options):
    with pytest.raises(error, match=match) as caught:
        load_prompt(audio_path, midi_path, Samples(), NoteRows(), **options)
    assert "\n" not in str(caught.value)


def test_refused_audio(audio, tmp_path):
    notes = default_prompt()[1]
    refused(audio(lambda samples: samples[:16000]), notes, AudioError, r"too short for a prompt: 0\.50 s, at least 1 s")
    refused(audio(lambda samples: samples * 1e-4), notes, AudioError, r"is silent in its first 3\.0 s")
    refused(tmp_path / "none.wav", notes, AudioError, "no such file")


def test_refused_notes(midi):
    sound = default_prompt()[0]

    def later(performance):
        notes = performance.notes.copy()
        notes["onset_sec"] += 10
        notes["onset_tick"] += 10 * 2 * performance.ticks_per_quarter
        return performance.with_notes(notes)

    refused(sound, midi(lambda p: p.with_notes(p.notes[:0])), MidiError, "has no notes of a piano")
    refused(sound, midi(later), MidiError, r"no notes in the 3\.0 s of the prompt: its first one begins at 10\.")


def test_notes_of_other_music_are_refused(midi):
    def moved(performance):
        notes = performance.notes.copy()
        notes["onset_sec"] += 0.4
        notes["onset_tick"] += round(0.4 * 2 * performance.ticks_per_quarter)
        return performance.with_notes(notes)

    def transposed(performance):
        notes = performance.notes.copy()
        notes["pitch"] += 1
        return performance.with_notes(notes)

    sound = default_prompt()[0]
    refused(sound, midi(moved), MidiError, r"not those that are heard in salamander\.flac: .* 0\.(35|40) s earlier")
    refused(sound, midi(transposed), MidiError, r"same seconds; model\.prompt_check: warn takes them all the same")
    found = load_prompt(sound, midi(transposed), Samples(), NoteRows(), check="warn")
    assert found.seconds == 3.0
    assert any("its notes are not those that are heard in salamander.flac" in text for text in found.warnings)


def test_evidence_tells_pieces_apart():
    """Three clips against the notes of all three, in stretches of 3 s."""
    clips = sorted(DATA.glob("*/*.flac"))
    assert len(clips) == 3
    right, wrong = [], []
    for path in clips:
        audio = load_audio(path, 16000)[0]
        for start in (0, 3, 6):
            evidence = note_evidence(audio[start * 16000 : (start + 3) * 16000], 16000)
            for other in clips:
                notes = NoteRows().read(other.with_suffix(".midi"))
                same = other.name == path.name  # two of them are one clip in two splits
                (right if same else wrong).append(evidence(segment(notes, start, start + 3).struck.notes))
    assert min(right) > AGREEMENT_DB
    assert np.median(wrong) < AGREEMENT_DB / 2
    silence = note_evidence(torch.zeros(48000), 16000)
    assert abs(silence(notes.notes)) < AGREEMENT_DB
