"""REMI-z: bars from music and music from bars, on real files, on POP909 and on whatever hypothesis thinks of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midisynth.datasets.pop909 import Pop909
from midisynth.errors import DataError, MidisynthError
from midisynth.models.phrase_ldm.grid import DRUMS, MAX_DURATION, folded
from midisynth.models.phrase_ldm.remiz import (
    Bar,
    Note,
    Track,
    bars_from_performance,
    performance_from_bars,
    sort_notes,
    sort_tracks,
)
from midisynth.models.phrase_ldm.texts import bar_text, parse
from midisynth.models.phrase_ldm.vocabulary import TIME_SIGNATURES, to_ids, to_text
from midisynth.music.midi import read_midi, write_midi
from midisynth.music.notes import Performance

ZOO = Path(__file__).resolve().parents[2] / "music" / "data" / "midi_zoo"
FILES = sorted(ZOO.glob("*.mid"))


def notes_of(bars: list[Bar], velocity: bool = True) -> Counter[tuple[int, ...]]:
    """Notes by position from the start: program, onset, pitch, duration, and perhaps velocity."""
    starts = np.concatenate([[0], np.cumsum([bar.length for bar in bars])]).astype(int).tolist()
    return Counter(
        (track.program, start + note.onset, note.pitch, note.duration, note.velocity if velocity else 0)
        for start, bar in zip(starts, bars, strict=False)
        for track in bar.tracks
        for note in track.notes
    )


def through_a_file(bars: list[Bar], path: Path, **options) -> list[Bar]:
    write_midi(performance_from_bars(bars, **options), path)
    return bars_from_performance(read_midi(path))


def through_ids(bars: list[Bar]) -> list[Bar]:
    texts = (bar_text(bar, time_signature=True, tempo=True, drums=True, velocity=True) for bar in bars)
    return parse(to_text([number for text in texts for number in to_ids(text)])).bars


@st.composite
def songs(draw) -> list[Bar]:
    """Bars in any metre whose tracks have one note at a time on each key."""
    programs = draw(st.lists(st.integers(0, DRUMS), min_size=1, max_size=4, unique=True))
    bars = [
        Bar([], draw(st.sampled_from(TIME_SIGNATURES)), draw(st.integers(1600, 60000)) / 100)
        for _ in range(draw(st.integers(1, 4)))
    ]
    starts = np.concatenate([[0], np.cumsum([bar.length for bar in bars])]).astype(int).tolist()
    for program in programs:
        tracks = [Track(program, []) for _ in bars]
        for pitch in draw(st.lists(st.integers(0, 127), max_size=4, unique=True)):
            time = draw(st.integers(0, 40))
            while time < starts[-1]:
                index = int(np.searchsorted(starts, time, side="right")) - 1
                duration = draw(st.integers(1, MAX_DURATION))
                onset = time - starts[index]
                tracks[index].notes.append(Note(onset, pitch, duration, draw(st.integers(1, 127))))
                time += duration + draw(st.integers(0, 100))
        for bar, track in zip(bars, tracks, strict=True):
            if track.notes:
                bar.tracks.append(Track(program, sort_notes(track.notes)))
    for bar in bars:
        bar.tracks = sort_tracks(sorted(bar.tracks, key=lambda track: track.program))
    while bars and not bars[-1].tracks:
        bars.pop()
    return bars


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bars=songs())
def test_bars_survive_a_midi_file(bars: list[Bar], tmp_path: Path):
    assert through_a_file(bars, tmp_path / "song.mid") == bars


@settings(max_examples=30, deadline=None)
@given(bars=songs())
def test_bars_survive_tokens(bars: list[Bar]):
    parsed = through_ids(bars)
    assert notes_of(parsed, velocity=False) == notes_of(bars, velocity=False)
    assert [bar.time_signature for bar in parsed] == [bar.time_signature for bar in bars]
    velocities = [(a, b) for a, b in zip(_velocities(parsed), _velocities(bars), strict=True)]
    assert all(abs(a - b) <= 2 for a, b in velocities)
    # A token is a twelfth of an octave; it says no more.
    slow = [(a.tempo, b.tempo) for a, b in zip(parsed, bars, strict=True) if b.tempo <= 256]
    assert all(abs(np.log2(a / b)) <= 1 / 24 + 1e-3 for a, b in slow)


def _velocities(bars: list[Bar]) -> list[int]:
    return [note.velocity for bar in bars for track in bar.tracks for note in track.notes]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_real_files_come_back_the_same(path: Path, tmp_path: Path):
    try:
        performance = read_midi(path, pattern=0 if path.stem.endswith("Format2") or "type-2" in path.stem else None)
        bars = bars_from_performance(performance)
    except MidisynthError as error:
        assert "no song is as long" in str(error)
        return
    assert notes_of(through_a_file(bars, tmp_path / "song.mid")) == notes_of(bars)
    again = through_ids(bars)
    assert notes_of(again, velocity=False) == notes_of(bars, velocity=False)
    # What is lost is what sounds on one key of one instrument at once.
    assert sum(notes_of(bars).values()) <= len(performance.notes)


def overlaps(performance: Performance) -> int:
    """Notes that begin while their key is held on their channel."""
    notes = performance.notes
    order = np.lexsort((notes["onset_tick"], notes["pitch"], notes["channel"], notes["track"]))
    notes = notes[order]
    same = (np.diff(notes["pitch"]) == 0) & (np.diff(notes["channel"]) == 0) & (np.diff(notes["track"]) == 0)
    return int((same & (np.diff(notes["onset_tick"]) < notes["duration_tick"][:-1])).sum())


def quartet() -> list[Bar]:
    bar = Bar(
        [
            Track(73, [Note(0, 79, 12, 90), Note(12, 81, 24, 80)]),
            Track(0, [Note(0, 60, 40, 70), Note(6, 60, 3, 60), Note(6, 60, 9, 50)]),
            Track(DRUMS, [Note(0, 36, 3, 100), Note(24, 38, 3, 100)]),
        ],
        (3, 4),
        97.3,
    )
    return [bar, Bar([], (4, 4), 97.3), bar]


def test_generated_music_opens_everywhere(tmp_path: Path):
    """Other libraries read the notes, programs and names that were written, and none hangs or overlaps."""
    import partitura
    import pretty_midi
    import symusic

    performance = performance_from_bars(quartet())
    assert overlaps(performance) == 0
    path = tmp_path / "quartet.mid"
    write_midi(performance, path)
    again = read_midi(path)
    assert not again.warnings, "a note hangs"
    assert again.track_names == ["", "Flute", "Acoustic Grand Piano", "Drums"]
    count = len(performance.notes)
    assert count == 12

    midi = pretty_midi.PrettyMIDI(str(path))
    assert [(i.program, i.is_drum, i.name) for i in midi.instruments] == [
        (73, False, "Flute"),
        (0, False, "Acoustic Grand Piano"),
        (0, True, "Drums"),
    ]
    assert sum(len(instrument.notes) for instrument in midi.instruments) == count
    assert [(s.numerator, s.denominator) for s in midi.time_signature_changes] == [(3, 4), (4, 4), (3, 4)]
    score = symusic.Score(str(path))
    assert sorted((t.program, t.is_drum, t.name, len(t.notes)) for t in score.tracks) == [
        (0, False, "Acoustic Grand Piano", 4),
        (0, True, "Drums", 4),
        (73, False, "Flute", 4),
    ]
    parts = partitura.load_performance_midi(str(path), merge_tracks=True)
    assert len(parts.performedparts[0].notes) == count


def test_overlapping_notes_of_a_key():
    bars = quartet()
    piano = [note for note in performance_from_bars(bars).notes.tolist() if note[7] == 0 and note[6] != 9]
    # The first ends where the second begins, of the two that begin together the longer one stays.
    assert [(n[2] // 40, n[3] // 40, n[5]) for n in piano[:2]] == [(0, 6, 70), (6, 9, 50)]
    assert overlaps(performance_from_bars(bars, compat="published")) > 0


def test_playing_otherwise():
    performance = performance_from_bars(
        quartet(), programs={73: 87}, transpose={73: 12, 0: 100}, velocities={0: 30}, tempo=60.0
    )
    assert performance.track_names[1] == "Lead 8 (bass + lead)"
    notes = performance.notes
    assert set(notes["program"][notes["track"] == 1].tolist()) == {87}
    assert set(notes["pitch"][notes["track"] == 1].tolist()) == {91, 93}
    assert set(notes["pitch"][notes["track"] == 2].tolist()) == {124}  # 160 is three octaves too high
    assert set(notes["velocity"][notes["track"] == 2].tolist()) == {30}
    assert performance.tempos["usec_per_quarter"].tolist() == [1_000_000]


def test_instruments_of_one_program():
    performance = performance_from_bars(
        [Bar([Track(0, [Note(0, 72, 12, 80)], "Right"), Track(0, [Note(0, 48, 12, 80)], "Left")])]
    )
    merged = bars_from_performance(performance)
    assert [len(track.notes) for track in merged[0].tracks] == [2]
    apart = bars_from_performance(performance, multi_instance=True)
    assert [(track.name, len(track.notes)) for track in apart[0].tracks] == [("Right", 1), ("Left", 1)]


def test_more_instruments_than_channels(tmp_path: Path):
    bars = [Bar([Track(program, [Note(0, 100 - program, 6, 80)]) for program in range(40)])]
    assert through_a_file(bars, tmp_path / "orchestra.mid") == bars


def test_metres(tmp_path: Path):
    """A change inside a bar counts from the next; a bar is labelled with what gives its length."""
    bars = [Bar([Track(0, [Note(0, 60, 12, 80)])]) for _ in range(3)]
    performance = performance_from_bars(bars)
    signatures = np.zeros(1, performance.time_signatures.dtype)
    signatures["tick"], signatures["numerator"], signatures["denominator"] = 480, 3, 4
    performance.time_signatures = signatures
    assert [bar.time_signature for bar in bars_from_performance(performance)] == [(4, 4), (3, 4), (3, 4)]
    assert [b.time_signature for b in bars_from_performance(performance, compat="published")] == [(3, 4)] * 3
    signatures["tick"], signatures["numerator"], signatures["denominator"] = 0, 17, 4  # a prime above two times four
    assert {bar.time_signature for bar in bars_from_performance(performance)} == {(1, 4)}


def test_a_bar_has_its_mean_tempo():
    performance = performance_from_bars([Bar([Track(0, [Note(0, 60, 12, 80)])], tempo=60.0)])
    tempos = np.repeat(performance.tempos, 2)
    tempos["tick"], tempos["usec_per_quarter"] = [0, 960], [1_000_000, 500_000]
    performance.tempos = tempos
    (bar,) = bars_from_performance(performance)
    assert bar.tempo == 80.0  # two seconds and one for four quarters
    (last,) = bars_from_performance(performance, compat="published")
    assert last.tempo == 60.0  # the grid ends with the last onset


def test_absurd_lengths_are_refused():
    performance = performance_from_bars([Bar([Track(0, [Note(0, 60, 12, 80)])])])
    performance.notes["onset_tick"] = 10**12
    with pytest.raises(DataError, match="no song is as long"):
        bars_from_performance(performance)


def test_no_notes():
    assert bars_from_performance(Performance()) == []
    assert len(performance_from_bars([]).notes) == 0


def test_pitches_come_back_by_octaves():
    assert folded(np.array([-13, -1, 0, 127, 128, 140])).tolist() == [11, 11, 0, 127, 116, 116]


@pytest.mark.slow
def test_every_song_of_pop909_is_written_without_loss(data_root: Path, tmp_path: Path, capsys):
    """Note error rate from the corpus through tokens, ids and a MIDI file and back: missing and extra notes."""
    errors = notes = songs = 0
    for grid in (4, 12):
        for record in Pop909(str(data_root / "pop909"), grid=grid).records():
            try:
                performance = record.performance()
            except DataError as error:
                # Only its metre keeps a song out, and it is tried as its file has it.
                assert "only songs in 4/4" in str(error)
                performance = read_midi(record.midi)
            ticks, table = performance.ticks_per_quarter, performance.notes
            onset = np.rint(table["onset_tick"] * 12 / ticks).astype(int)
            end = np.rint((table["onset_tick"] + table["duration_tick"]) * 12 / ticks).astype(int)
            duration = np.clip(end - onset, 1, MAX_DURATION)
            columns = (table["track"], table["program"], onset, table["pitch"], duration)
            heard = Counter(zip(*(column.tolist() for column in columns), strict=True))
            back: Counter[tuple[int, ...]] = Counter()
            # Files name one program for all tracks; each track is an instrument of its own.
            for track in np.unique(table["track"]).tolist():
                alone = performance.with_notes(table[table["track"] == track])
                again = through_ids(bars_from_performance(alone))
                for program, start, pitch, length, _ in notes_of(through_a_file(again, tmp_path / "song.mid")):
                    back[track, program, start, pitch, length] += 1
            errors += ((heard - back) + (back - heard)).total()
            notes += heard.total()
            songs += 1
    with capsys.disabled():
        print(f"\n{songs} songs on two grids, {notes:,} notes, note error rate {errors / notes:.4%}")
    assert songs == 2 * len(list((data_root / "pop909" / "POP909").glob("*/*.mid")))
    assert errors == 0
