"""Rolls of a worked example and of awkward files; silence before onsets; companding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from midisynth.audio.companding import Companding
from midisynth.errors import UsageError
from midisynth.models.midi2wave.codec import RollCodec, silence_before_onset
from midisynth.music.notes import CONTROL_DTYPE, NOTE_DTYPE, Performance


def performance(notes, pedal=()) -> Performance:
    """Notes (onset, end, pitch, velocity, channel, track) and pedal moves (time, value)."""
    table, controls = np.zeros(len(notes), NOTE_DTYPE), np.zeros(len(pedal), CONTROL_DTYPE)
    for row, (onset, end, pitch, velocity, channel, track) in zip(table, notes, strict=True):
        row["onset_sec"], row["duration_sec"] = onset, end - onset
        row["pitch"], row["velocity"], row["channel"], row["track"] = pitch, velocity, channel, track
    for row, (time, value) in zip(controls, pedal, strict=True):
        row["time_sec"], row["value"], row["number"] = time, value, 64
    return Performance(notes=table, controls=controls)


#: C4 with velocity 64, 0.100 to 0.512 s; the pedal goes down at 0.250 s and up with the end of the file, 0.600 s.
EXAMPLE = performance([(0.1, 0.512, 60, 64, 0, 0)], [(0.25, 100), (0.6, 0)])


@pytest.mark.parametrize(
    ("kind", "pedal", "notes", "pedalled"),
    [
        ("onset", "none", (25, 26), None),
        ("sustained", "none", (25, 128), None),
        ("onset", "row", (25, 26), (62, 63)),
        ("sustained", "hold", (25, 128), (62, 150)),
        ("sustained", "extend", (25, 150), None),
    ],
)
def test_example(kind, pedal, notes, pedalled):
    codec = RollCodec(kind, pedal)
    wanted = np.zeros((codec.rows, 151), np.float32)
    wanted[39, slice(*notes)] = 64 / 127
    if pedalled:
        wanted[88, slice(*pedalled)] = 100 / 127
    roll = codec.encode(EXAMPLE)
    np.testing.assert_allclose(roll, wanted)
    stretch = codec.roll(codec.events(EXAMPLE), 40, 90)
    np.testing.assert_array_equal(stretch, roll[:, 40:130])
    np.testing.assert_array_equal(codec.roll(codec.events(EXAMPLE), 140, 30)[:, :11], roll[:, 140:])


def test_awkward_files(caplog):
    piece = performance(
        [
            (0.0, 0.1, 60, 127, 0, 0),
            (0.0, 0.2, 60, 64, 1, 1),  # another hand on the same key
            (0.1, 0.101, 21, 64, 0, 0),  # within a tick
            (0.1, 0.2, 109, 64, 0, 0),  # beyond the keys; row 88 is the pedal's
            (0.1, 0.2, 20, 64, 0, 0),
            (0.1, 0.2, 40, 64, 9, 0),  # a drum
        ],
        [(0.05, 30), (0.0501, 90)],
    )
    roll = RollCodec("sustained", "row").encode(piece)
    assert "2 notes beyond the 88 keys" in caplog.text
    assert np.unique(np.nonzero(roll)[0]).tolist() == [0, 39, 88]
    assert np.isclose(roll[39, :25], 1).all() and np.isclose(roll[39, 25:50], 64 / 127).all()
    assert roll[0].nonzero()[0].tolist() == [25] and np.isclose(roll[88].max(), 90 / 127)
    published = RollCodec("sustained", "row", compat="seed").encode(piece)
    assert not published[0].any() and np.isclose(published[39, 0], 191 / 127)
    assert np.isclose(published[88].max(), 120 / 127)
    with pytest.raises(UsageError, match="roll onset"):
        RollCodec("onset", "extend")


def test_silence_before_onset():
    """The worked segment: 100 ticks from tick 10, the onset at its tick 15."""
    roll = RollCodec().roll(RollCodec().events(EXAMPLE), 10, 100)
    codes = np.arange(6400).astype(np.uint8)
    cut = silence_before_onset(roll, codes, 64, 128)
    assert (cut[:960] == 128).all() and (cut[960:] == codes[960:]).all()
    assert (silence_before_onset(np.zeros((88, 100)), codes, 64, 128) == 128).all()


@pytest.mark.parametrize(("levels", "law"), [(256, "mu"), (256, "linear"), (65536, "linear")])
def test_companding(levels, law):
    companding = Companding(levels, law)
    codes = torch.arange(levels)
    assert torch.equal(companding.encode(companding.decode(codes)), codes)
    ends = companding.encode(torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.5]))
    assert ends.tolist() == [0, 0, companding.silence, levels - 1, levels - 1]
    assert companding.decode(codes.to(torch.int32)).dtype == torch.float32
