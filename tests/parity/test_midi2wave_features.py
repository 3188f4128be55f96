"""Piano rolls, resampling and training segments of midi2wave (fixtures 02, 03, 04)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from midi2wave_files import Fixture

from midisynth.audio.companding import Companding
from midisynth.audio.io import load_audio
from midisynth.models.midi2wave.codec import RollCodec, silence_before_onset
from midisynth.music.midi import read_midi
from midisynth.music.notes import Performance


@pytest.fixture(scope="module")
def root(parity_root) -> Path:
    return parity_root("midi2wave")


@pytest.fixture(scope="module")
def excerpt(root) -> Performance:
    if not (root / "excerpt.mid").is_file():
        pytest.skip(f"excerpt.mid is not in {root}: its licence does not let it ship")
    return read_midi(root / "excerpt.mid", overlap="all")


@pytest.mark.parametrize(("name", "kind"), [("onset", "onset"), ("sustain", "sustained")])
def test_rolls(root, excerpt, name, kind):
    fixture = Fixture(root, "02_midi_features")
    stored = {key: fixture[f"{name}.{key}"].numpy() for key in ("row", "col", "val", "shape")}
    wanted = np.zeros(stored["shape"], np.float32)
    wanted[stored["row"], stored["col"]] = stored["val"]
    codec = RollCodec(kind, "row", compat="seed")
    published = codec.encode(excerpt)
    assert published.shape == wanted.shape
    np.testing.assert_array_equal(published != 0, wanted != 0)
    np.testing.assert_allclose(published, wanted, atol=1e-6)
    # Ours differs only where the original adds up several events, or has none of a note within a tick.
    events = codec.events(excerpt)
    events["value"] = 1
    counts = codec.roll(events, 0, codec.ticks(excerpt))
    ours = RollCodec(kind, "row").encode(excerpt)
    assert ours.max() <= 1
    assert (counts[ours != published] != 1).all()


def test_resampling(root, tmp_path):
    fixture = Fixture(root, "03_resample")
    soundfile.write(tmp_path / "a.wav", fixture["input_int16"].numpy(), fixture.manifest["sr"], subtype="PCM_16")
    mono = load_audio(tmp_path / "a.wav").mean(0)
    torch.testing.assert_close(mono, fixture["mono"], atol=1e-6, rtol=0)
    ours, best = load_audio(tmp_path / "a.wav", 16000).mean(0), fixture["out_kaiser_best"]
    assert len(ours) == len(best) == -(-len(mono) * 16000 // fixture.manifest["sr"])

    def band_limited(audio: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft(audio.double())
        spectrum[torch.fft.rfftfreq(len(audio), 1 / 16000) > 7000] = 0
        return torch.fft.irfft(spectrum, n=len(audio))[200:-200]

    error = band_limited(ours) - band_limited(best)
    assert 10 * torch.log10(band_limited(best).square().sum() / error.square().sum()) >= 40
    assert torch.equal(Companding(256).encode(fixture["out_kaiser_fast"]), fixture["codes_kaiser_fast"])


def test_segments(root, excerpt):
    fixture = Fixture(root, "04_segments")
    full, ticks = fixture["audio_codes_full"].numpy(), fixture.manifest["midi_frames"]
    hop = fixture.manifest["audio_samples"] // ticks
    codec = RollCodec(compat="seed")
    events = codec.events(excerpt)
    for index, start in enumerate(fixture.manifest["start_ticks"]):
        roll = codec.roll(events, start, ticks)
        wanted = np.zeros_like(roll)
        row, tick = fixture[f"seg{index}.midi_nz"].numpy().T
        wanted[row, tick] = fixture[f"seg{index}.midi_val"].numpy()
        np.testing.assert_array_equal(roll, wanted)
        codes = silence_before_onset(roll, full[start * hop :][: ticks * hop], hop, Companding(256).silence)
        assert codes.dtype == np.uint8
        np.testing.assert_array_equal(codes, fixture[f"seg{index}.audio"].numpy())
