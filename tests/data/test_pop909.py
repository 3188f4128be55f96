"""Corpus `pop909`: a song of known content in its layout, and the true songs where they may be read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pretty_midi
import pytest

from midisynth.datasets.pop909 import PROGRAMS, Pop909, bar_phase, in_beats, melody_shift, sections_of
from midisynth.errors import DataError, UsageError

SECONDS_PER_BEAT = 0.6
LATE = 0.25  # first beat (seconds)
PICKUP = 2  # beats before the first bar
#: Beat in the song, beats, pitch.
MELODY = [(1.5, 0.5, 67)] + [(PICKUP + beat, 0.75, 60 + 2 * (beat % 5)) for beat in range(1, 15)]
BRIDGE = [(PICKUP + 8.25, 1 / 3, 76), (PICKUP + 8.6, 1 / 3, 77)]
PIANO = [(PICKUP + 4 * bar, 4, 36 + 5 * (bar % 2)) for bar in range(5)] + [(PICKUP + beat, 1, 60) for beat in range(20)]
BARS = 4  # as labelled; the fifth bar is beyond


def write_song(folder: Path, drift: float = 0.0) -> None:
    """A song whose file states a wrong metre and tempo; its beats may get slower, `drift` of a beat with each."""
    folder.mkdir(parents=True)
    beats = LATE + SECONDS_PER_BEAT * (np.arange(24) + drift * np.arange(24) ** 2 / 2)

    def seconds(beat: float) -> float:
        return float(np.interp(beat, np.arange(24), beats))

    midi = pretty_midi.PrettyMIDI(initial_tempo=90, resolution=480)
    midi.time_signature_changes = [pretty_midi.TimeSignature(1, 4, 0)]
    for name, notes in (("MELODY", MELODY), ("BRIDGE", BRIDGE), ("PIANO", PIANO)):
        track = pretty_midi.Instrument(0, name=name)
        track.notes = [pretty_midi.Note(80, p, seconds(start), seconds(start + length)) for start, length, p in notes]
        midi.instruments.append(track)
    midi.write(str(folder / f"{folder.name}.mid"))
    down = (np.arange(24) - PICKUP) % 4 == 0
    (folder / "beat_midi.txt").write_text("".join(f"{t} 0.0 {float(d)}\n" for t, d in zip(beats, down, strict=True)))
    chords = [(seconds(PICKUP + 4 * bar), "CF"[bar % 2]) for bar in range(5)]
    (folder / "chord_midi.txt").write_text("0.0\t0.5\tN\n" + "".join(f"{t}\t{t + 1}\t{c}:maj\n" for t, c in chords))


def write_labels(folder: Path, early: float = 0.0) -> None:
    """Labels that leave the pickup out; the melody begins `early` sixteenths too early."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"0 {4 - round(early)}"]
    lines += [f"{pitch} 3\n0 1" for start, _, pitch in MELODY if start > PICKUP]
    (folder / "melody.txt").write_text("\n".join(lines) + "\n")
    (folder / "human_label1.txt").write_text(f"i1A{BARS - 1}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_song(tmp_path / "data" / "POP909" / "001")
    write_labels(tmp_path / "labels" / "POP909" / "001")
    return tmp_path


def rows(performance, track: int, ticks: int = 120) -> list[tuple[int, int, int]]:
    """Onset and length in sixteenths, pitch."""
    notes = performance.notes[performance.notes["track"] == track]
    assert not (notes["onset_tick"] % ticks).any()
    return list(
        zip(
            (notes["onset_tick"] // ticks).tolist(),
            (notes["duration_tick"] // ticks).tolist(),
            notes["pitch"].tolist(),
            strict=True,
        )
    )


@pytest.mark.parametrize("drift", [0.0, 0.01])
def test_a_song_with_labels(tmp_path: Path, drift: float):
    write_song(tmp_path / "001", drift)
    write_labels(tmp_path / "labels" / "001")
    (record,) = Pop909(str(tmp_path), structure=str(tmp_path / "labels")).records()
    assert (record.id, record.piece, record.metadata) == ("001", "001", {"sections": "i1 A3"})
    assert len(record.files) == 4
    performance = record.performance()
    assert performance.track_names == list(PROGRAMS)
    assert set(zip(performance.notes["track"].tolist(), performance.notes["program"].tolist(), strict=True)) == {
        (0, 13),
        (1, 25),
        (2, 0),
    }
    # The pickup comes before the first labelled bar, the fifth bar after the last.
    assert rows(performance, 0) == [(4 * round(s - PICKUP), 3, p) for s, _, p in MELODY[1:]]
    assert rows(performance, 1) == [(33, 1, 76), (34, 2, 77)]
    assert len(rows(performance, 2)) == 4 + 16
    assert [tuple(row)[2:] for row in performance.time_signatures.tolist()] == [(4, 4)]
    slow = SECONDS_PER_BEAT * (1 + drift * 11.5)
    assert 60e6 / performance.tempos["usec_per_quarter"][0] == pytest.approx(60 / slow, abs=0.01)
    seconds = performance.notes["onset_tick"] / 480 * performance.tempos["usec_per_quarter"][0] / 1e6
    np.testing.assert_allclose(performance.notes["onset_sec"], seconds, atol=1e-9)


def test_a_song_without_labels(root: Path):
    (record,) = Pop909(str(root / "data")).records()
    assert record.metadata == {}
    performance = record.performance()
    # It begins with the bar of its pickup, and ends with its last note.
    assert rows(performance, 0)[0] == (14, 2, 67)
    assert max(onset for onset, _, _ in rows(performance, 2)) == 4 * 23
    (record,) = Pop909(str(root / "data" / "POP909"), grid=12).records()
    assert rows(record.performance(), 1, ticks=40)[0] == (147, 4, 76)


def test_labels_that_do_not_fit(root: Path):
    labels = root / "labels" / "POP909" / "001"
    write_labels(labels, early=1)
    (record,) = Pop909(str(root / "data"), structure=str(root / "labels")).records()
    with pytest.raises(DataError, match="9 sixteenths after its first beat, which is between two beats"):
        record.performance()
    (labels / "melody.txt").write_text("60 4\n" * 20)
    with pytest.raises(DataError, match=r"\d+% of its melody is where the labels' melody is, less than 90%"):
        record.performance()


def test_triple_metre_is_refused(root: Path):
    path = root / "data" / "POP909" / "001" / "beat_midi.txt"
    times = [line.split()[0] for line in path.read_text().splitlines()]
    path.write_text("".join(f"{time} 0.0 {float(i % 3 == 0)}\n" for i, time in enumerate(times)))
    (record,) = Pop909(str(root / "data")).records()
    with pytest.raises(DataError, match="7 of its 7 bars have three beats: only songs in 4/4"):
        record.performance()


def test_what_is_wrong_is_named(root: Path):
    data = root / "data"
    with pytest.raises(UsageError, match=r"pop909\.grid: 5 is none of 4, 8, 12"):
        Pop909(str(data), grid=5)
    with pytest.raises(DataError, match=r"no such folder: .*absent"):
        Pop909(str(data), structure=str(root / "absent"))
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"no songs such as .*001.mid with .*human_label1.txt"):
        Pop909(str(data), structure=str(root / "empty")).records()
    with pytest.raises(DataError, match=r"no songs such as .*001.mid$"):
        Pop909(str(root / "empty")).records()
    with pytest.raises(DataError, match="no structure labels such as i8A8B4"):
        sections_of("i8 A")
    song = data / "POP909" / "001"
    for text in ("", "1 2\n", "a b c\n", "1 0 0\n0 0 0\n"):
        (song / "beat_midi.txt").write_text(text)
        with pytest.raises(DataError, match=r"beat_midi.txt: is no table"):
            Pop909(str(data)).records()[0].performance()
    (song / "chord_midi.txt").unlink()
    with pytest.raises(DataError, match=r"chord_midi\.txt is missing: complete the download, or remove folder 001"):
        Pop909(str(data)).records()


def test_helpers():
    beats = np.array([1.0, 2.0, 4.0])
    assert in_beats(beats, np.array([0.5, 1.5, 3.0, 5.0])).tolist() == [-0.5, 0.5, 1.5, 2.5]
    onset, pitch = np.array([3, 5, 9, 9]), np.array([60, 62, 64, 60])
    assert melody_shift(onset, pitch, np.array([0, 2, 6, 7]), np.array([60, 62, 64, 61])) == (3, 0.75)
    assert melody_shift(onset, pitch, np.array([0]), np.array([90])) == (0, 0.0)
    nothing = np.empty(0, np.int64)
    assert bar_phase(np.zeros(0, [("program", int), ("pitch", int)]), nothing, nothing, np.array([3, 7, 8, 11])) == 3


def test_true_songs(data_root: Path):
    """All songs but those in three-four time are read, in one split each."""
    corpus = Pop909(str(data_root / "pop909"))
    records = corpus.records()
    shares = Counter(record.split for record in records)
    assert shares["train"] > 0.6 * len(records)
    assert min(shares.values()) > 0.05 * len(records)
    assert [r.split for r in records] == [r.split for r in Pop909(str(data_root / "pop909" / "POP909")).records()]
    for record in records[:12]:
        performance = record.performance() if record.id != "034" else None
        if performance is not None:
            assert set(performance.notes["program"].tolist()) == {0, 13, 25}
            assert performance.notes["onset_tick"].min() < 4 * 480
