"""The transcriber hears what was played."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from midisynth.audio.io import load_audio
from midisynth.errors import MidisynthError
from midisynth.metrics.functional import note_score
from midisynth.metrics.transcription import Transcriber
from midisynth.music.midi import read_midi

PIANO = Path(__file__).parent.parent / "audio" / "data"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sampled_piano():
    pytest.importorskip("transkun", reason="transkun (extra `eval`) is not installed")
    audio, played = load_audio(PIANO / "piano.flac", 16000)[0], read_midi(PIANO / "piano.midi").notes
    seconds = 6
    heard = Transcriber()(audio[: seconds * 16000], 16000)
    assert (heard["onset_sec"][1:] >= heard["onset_sec"][:-1]).all()
    score = note_score(played[played["onset_sec"] < seconds - 0.1], heard[heard["onset_sec"] < seconds - 0.1])
    assert score.f1 > 0.9
    assert score.velocity_correlation > 0.5


def test_without_transkun(monkeypatch):
    monkeypatch.setitem(sys.modules, "transkun", None)
    with pytest.raises(MidisynthError, match="pip install transkun"):
        Transcriber()
