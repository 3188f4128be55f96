"""Corpus `pop909`: piano arrangements of pop songs in three tracks, on the beats that people annotated.

Z. Wang et al., "POP909: A Pop-song Dataset for Music Arrangement Generation", ISMIR 2020. Structure labels and the
melody on sixteenths: S. Dai et al., "Automatic Analysis and Influence of Hierarchical Structure on Melody, Rhythm and
Harmony in Popular Music", MuMe + CSMC 2021.

The metre that the MIDI files state is wrong in most of them; here bars come from the annotations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from midisynth.datasets.corpus import Corpus, Record, split_by_hash
from midisynth.errors import DataError, UsageError
from midisynth.music.clock import TempoMap
from midisynth.music.midi import read_midi
from midisynth.music.notes import NOTE_DTYPE, TIME_SIGNATURE_DTYPE, Performance

#: General MIDI program of each track, which the files do not tell apart: those that models of these songs know.
PROGRAMS = {"MELODY": 13, "BRIDGE": 25, "PIANO": 0}
TICKS_PER_QUARTER = 480
BEATS_PER_BAR = 4
#: Of a beat, in Dai's melodies.
_MELODY_GRID = 4
#: Lowest share of Dai's melody that must be found at one distance from the beats.
MIN_MATCH = 0.9
#: Pitches below are taken for the bass, and its notes count up to so many beats when bars are sought.
_BASS_BELOW, _BASS_BEATS = 52, 4.0


@dataclass(frozen=True)
class Pop909Record(Record):
    """A song; its notes are put on the grid of its beats.

    Attributes:
        beats: Annotated beats.
        chords: Annotated chords; they tell where bars begin if there is no melody.
        melody: Melody on sixteenths from the first labelled bar on, or None.
        grid: Positions in a beat.
    """

    beats: Path = Path()
    chords: Path = Path()
    melody: Path | None = None
    grid: int = 4

    @property
    def files(self) -> tuple[Path, ...]:
        """MIDI and annotations."""
        return (*super().files, self.beats, self.chords, *([] if self.melody is None else [self.melody]))

    def performance(self) -> Performance:
        """Notes on the grid in bars of 4/4 at one tempo.

        With structure labels the song begins with their first bar and is over after their last; without, it begins with
        the bar of its first note.

        Raises:
            DataError: A file is damaged, or the song cannot be put into bars: the text tells why.
            MidiError: The MIDI file cannot be read.
        """
        song = read_midi(self.midi)
        beats, downbeats = read_beats(self.beats)
        _check_quadruple(downbeats)
        notes = tracks_of(song, self.midi)
        onset = in_beats(beats, notes["onset_sec"])
        end = in_beats(beats, notes["onset_sec"] + notes["duration_sec"])
        # Rounding comes first: half a position goes to the even one, counted from the first beat.
        start = np.rint(onset * self.grid).astype(np.int64)
        length = np.maximum(np.rint(end * self.grid).astype(np.int64) - start, 1)
        bar = BEATS_PER_BAR * self.grid
        if self.melody is None:
            phase = bar_phase(notes, onset, end, read_chord_changes(self.chords, beats))
            start -= phase * self.grid
            start -= start.min() // bar * bar
        else:
            start -= self.first_labelled_beat(notes, onset) * self.grid
        inside = start >= 0
        if self.melody is not None:
            inside &= start < bar * sum(length for _, length in sections_of(self.metadata["sections"]))
        tempo = 60.0 / float(np.median(np.diff(beats)))
        return on_grid(notes[inside], start[inside], length[inside], self.grid, tempo)

    def first_labelled_beat(self, notes: np.ndarray, onset: np.ndarray) -> int:
        """The beat with which the first bar of the labels begins.

        Raises:
            DataError: Labels and notes do not go together.
        """
        is_melody = notes["program"] == PROGRAMS["MELODY"]
        sixteenths = np.rint(onset[is_melody] * _MELODY_GRID).astype(np.int64)
        shift, match = melody_shift(sixteenths, notes["pitch"][is_melody], *read_melody(self.melody))
        if match < MIN_MATCH:
            raise DataError(
                f"{match:.0%} of its melody is where the labels' melody is, less than {MIN_MATCH:.0%}: they do not fit"
            )
        if shift % _MELODY_GRID:
            raise DataError(f"its labels begin {shift} sixteenths after its first beat, which is between two beats")
        return shift // _MELODY_GRID


class Pop909(Corpus):
    """POP909 as it is published: `POP909/001/001.mid` with `beat_midi.txt` and `chord_midi.txt`.

    With the structure labels of Dai et al., whose folders are called alike, songs get sections, and bars that people
    checked; songs whose labels do not fit the notes are left out when data is prepared, with the reason. Without, bars
    begin where most chords change and most bass notes are held, which agrees with the labels in 76 of 83 songs.

    Args:
        root: Folder of `POP909`, or that folder.
        structure: Folder of the structure labels (`hierarchical-structure-analysis`, or its `POP909`).
        grid: Positions in a beat to which notes are moved: 4 are sixteenths, as the published models learned; 12 keep
            triplets.
        validation: Share of the songs for validation.
        test: Share of the songs for testing.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    version: ClassVar[int] = 1
    content: ClassVar[frozenset[str]] = frozenset({"midi"})

    def __init__(
        self,
        root: str,
        structure: str | None = None,
        grid: int = 4,
        validation: float = 0.1,
        test: float = 0.1,
        weight: float = 1.0,
    ):
        super().__init__(root, weight)
        if grid not in (4, 8, 12):
            raise UsageError(f"pop909.grid: {grid} is none of 4, 8, 12")
        self.songs = _songs_folder(self.root)
        self.labels = None if structure is None else _songs_folder(Path(structure).expanduser())
        self.grid = grid
        self.validation = validation
        self.test = test

    def records(self) -> list[Record]:
        """One record for each song; with structure labels, for each that has them.

        Raises:
            DataError: There are no songs, or one lacks its annotations.
        """
        folders = sorted(path for path in self.songs.iterdir() if (path / f"{path.name}.mid").is_file())
        if self.labels is not None:
            folders = [path for path in folders if (self.labels / path.name / "human_label1.txt").is_file()]
        if not folders:
            labelled = "" if self.labels is None else f" with {self.labels / '001' / 'human_label1.txt'}"
            raise DataError(f"pop909: no songs such as {self.songs / '001' / '001.mid'}{labelled}")
        return [self._record(folder) for folder in folders]

    def _record(self, folder: Path) -> Pop909Record:
        song = folder.name
        files = {"beats": folder / "beat_midi.txt", "chords": folder / "chord_midi.txt"}
        metadata = {}
        if self.labels is not None:
            files["melody"] = self.labels / song / "melody.txt"
            plan = _read(self.labels / song / "human_label1.txt").strip()
            metadata["sections"] = " ".join(f"{kind}{bars}" for kind, bars in sections_of(plan))
        for path in files.values():
            if not path.is_file():
                raise DataError(f"pop909: {path} is missing: complete the download, or remove folder {song}")
        return Pop909Record(
            "pop909",
            id=song,
            piece=song,
            split=split_by_hash(song, self.validation, self.test),
            midi=folder / f"{song}.mid",
            metadata=metadata,
            grid=self.grid,
            **files,
        )


def _songs_folder(root: Path) -> Path:
    folder = root / "POP909" if (root / "POP909").is_dir() else root
    if not folder.is_dir():
        raise DataError(f"pop909: no such folder: {root}")
    return folder


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def read_beats(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Annotated beats of a song.

    Returns:
        Times (seconds), [beats] float64, and which are downbeats of quadruple metre, [beats] bool.

    Raises:
        DataError: The file is not what it should be.
    """
    rows = [line.split() for line in _read(path).splitlines() if line.strip()]
    try:
        table = np.array(rows, np.float64)
    except ValueError as error:
        raise DataError(f"{path}: is no table of numbers ({error})") from error
    if table.ndim != 2 or table.shape[1] != 3 or len(table) < 2 or (np.diff(table[:, 0]) <= 0).any():
        raise DataError(f"{path}: is no table of beats in three columns, with times in ascending order")
    return table[:, 0], table[:, 2] > 0


def read_chord_changes(path: Path, beats: np.ndarray) -> np.ndarray:
    """Beats on which another chord begins, [changes] int64."""
    rows = [line.split() for line in _read(path).splitlines() if line.strip()]
    changes = [
        row[0]
        for previous, row in zip([["", "", ""], *rows], rows, strict=False)
        if len(row) == 3 and row[2] not in ("N", previous[2])
    ]
    try:
        return np.rint(in_beats(beats, np.array(changes, np.float64))).astype(np.int64)
    except ValueError as error:
        raise DataError(f"{path}: is no table of chords ({error})") from error


def read_melody(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Dai's melody of a song.

    Returns:
        Onsets (sixteenths from the first labelled bar) and MIDI key numbers, [notes] int64 each.

    Raises:
        DataError: The file is not what it should be.
    """
    rows = [line.split() for line in _read(path).splitlines() if line.strip()]
    try:
        pitch, length = np.array(rows, np.int64).reshape(-1, 2).T
    except ValueError as error:
        raise DataError(f"{path}: is no table of pitches and lengths ({error})") from error
    onset = np.cumsum(length) - length
    return onset[pitch > 0], pitch[pitch > 0]


def sections_of(plan: str) -> list[tuple[str, int]]:
    """Letters and bars of structure labels such as `i8A8B4`, with or without blanks.

    Raises:
        DataError: They are something else.
    """
    if re.fullmatch(r"(?:\s*[A-Za-z]\d+)+\s*", plan) is None:
        raise DataError(f"'{plan[:40]}' are no structure labels such as i8A8B4")
    return [(kind, int(bars)) for kind, bars in re.findall(r"([A-Za-z])(\d+)", plan)]


def in_beats(beats: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Times in beats from the first annotated one, float64, same shape; the outer beats go on as they are long."""
    place = np.interp(seconds, beats, np.arange(len(beats)))
    before, after = seconds < beats[0], seconds > beats[-1]
    place[before] = (seconds[before] - beats[0]) / (beats[1] - beats[0])
    place[after] = len(beats) - 1 + (seconds[after] - beats[-1]) / (beats[-1] - beats[-2])
    return place


def melody_shift(
    onset: np.ndarray, pitch: np.ndarray, sought_onset: np.ndarray, sought_pitch: np.ndarray
) -> tuple[int, float]:
    """How much later the notes of a melody are than those of the same melody elsewhere.

    Args:
        onset: [notes] int64.
        pitch: [notes].
        sought_onset: [sought] int64.
        sought_pitch: [sought].

    Returns:
        The shift with most matches of onset and pitch, of equals the least, and their share of the sought notes.
    """
    notes = np.unique(np.stack([onset, pitch], axis=1), axis=0)
    shifts = [
        (notes[notes[:, 1] == key, 0][:, None] - sought_onset[sought_pitch == key]).reshape(-1)
        for key in np.unique(sought_pitch)
    ]
    found, counts = np.unique(np.concatenate([np.empty(0, np.int64), *shifts]), return_counts=True)
    if len(found) == 0:
        return 0, 0.0
    best = np.lexsort((np.abs(found), -counts))[0]
    return int(found[best]), float(counts[best] / len(sought_pitch))


def bar_phase(notes: np.ndarray, onset: np.ndarray, end: np.ndarray, changes: np.ndarray) -> int:
    """Which of the first four beats begins a bar.

    Each of the four gets the share of the changes of chord, and of the beats that bass notes are held, that fall on it.

    Args:
        notes: [notes] of `NOTE_DTYPE`.
        onset: In beats, [notes].
        end: Likewise.
        changes: Beats on which a chord begins, [changes].
    """
    beat = np.rint(onset).astype(np.int64)
    is_bass = (notes["program"] == PROGRAMS["PIANO"]) & (notes["pitch"] < _BASS_BELOW) & (np.abs(onset - beat) < 0.125)
    held = np.minimum(end - onset, _BASS_BEATS)[is_bass]
    votes = np.zeros(BEATS_PER_BAR)
    for beats, weight in ((changes, np.ones(len(changes))), (beat[is_bass], held)):
        counts = np.bincount(beats % BEATS_PER_BAR, weight, BEATS_PER_BAR)
        votes += counts / max(counts.sum(), 1e-9)
    return int(np.argmax(votes))


def _check_quadruple(downbeats: np.ndarray) -> None:
    """Refuse a song whose bars have three beats.

    Raises:
        DataError: It is one.
    """
    distances = np.diff(np.flatnonzero(downbeats))
    triple, quadruple = (int(((distances % beats == 0) & (distances > 0)).sum()) for beats in (3, BEATS_PER_BAR))
    if triple > quadruple:
        raise DataError(f"{triple} of its {len(distances)} bars have three beats: only songs in 4/4 are read")


def tracks_of(song: Performance, path: Path) -> np.ndarray:
    """Notes of the three tracks with their programs, [notes] of `NOTE_DTYPE`; drums there are none."""
    tracks = [number for number, name in enumerate(song.track_names) if name in PROGRAMS]
    notes = song.notes[np.isin(song.notes["track"], tracks)]
    if len(notes) == 0:
        raise DataError(f"{path}: has no notes in tracks called {', '.join(PROGRAMS)}")
    notes = notes.copy()
    notes["program"] = [PROGRAMS[song.track_names[track]] for track in notes["track"]]
    return notes


def on_grid(notes: np.ndarray, start: np.ndarray, length: np.ndarray, grid: int, tempo: float) -> Performance:
    """Notes on a grid as music in 4/4 at one tempo.

    Of notes of a track with one onset and pitch the last counts.

    Args:
        notes: Where pitch, velocity and program come from, [notes] of `NOTE_DTYPE`.
        start: Positions, [notes].
        length: Positions, [notes].
        grid: Positions in a beat.
        tempo: Beats a minute; it is rounded to two decimals.
    """
    programs = list(PROGRAMS.values())
    track = np.array([programs.index(program) for program in notes["program"]], np.int64)
    end_sec = notes["onset_sec"] + notes["duration_sec"]
    order = np.lexsort((notes["velocity"], notes["pitch"], end_sec, notes["onset_sec"]))
    last = {(track[i], start[i], notes["pitch"][i]): i for i in order.tolist()}
    kept = np.array(sorted(last.values()), np.int64)
    ticks = TICKS_PER_QUARTER // grid
    clock = TempoMap([0], [round(60e6 / round(tempo, 2))], TICKS_PER_QUARTER)
    result = np.zeros(len(kept), NOTE_DTYPE)
    for name in ("pitch", "velocity", "program"):
        result[name] = notes[name][kept]
    result["track"] = result["channel"] = track[kept]
    result["onset_tick"], result["duration_tick"] = start[kept] * ticks, length[kept] * ticks
    result["onset_sec"] = clock.seconds(result["onset_tick"])
    result["duration_sec"] = clock.seconds(result["onset_tick"] + result["duration_tick"]) - result["onset_sec"]
    signature = np.zeros(1, TIME_SIGNATURE_DTYPE)
    signature["numerator"], signature["denominator"] = BEATS_PER_BAR, 4
    return Performance(
        notes=result[np.lexsort((result["pitch"], result["channel"], result["track"], result["onset_tick"]))],
        tempos=clock.table(),
        time_signatures=signature,
        ticks_per_quarter=TICKS_PER_QUARTER,
        track_names=list(PROGRAMS),
    )
