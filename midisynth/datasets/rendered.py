"""Corpus `rendered`: audio made from MIDI files alone, with a sampled piano or any SoundFont.

Training clips are excerpts in random variations, and generated patterns; held-out pieces are played as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from midisynth.datasets.corpus import Corpus, Record, Split, piece_of, split_by_hash
from midisynth.datasets.ensembles import arrange, random_ensemble
from midisynth.datasets.files import cache_folder
from midisynth.datasets.patterns import LOWEST_KEY, from_seconds, random_exercise, random_pattern
from midisynth.datasets.piano_bank import KEYS
from midisynth.datasets.sampled_piano import DEFAULT_LAYERS, RESONANCE_DB, Instrument, SoundFontPiano, open_instrument
from midisynth.errors import DataError, MidiError
from midisynth.music.midi import read_midi
from midisynth.music.notes import Performance, is_drum
from midisynth.music.pedal import SUSTAIN, extend_by_pedal

MIDI_SUFFIXES = (".mid", ".midi")

#: Leaves room for many instruments at once.
ENSEMBLE_GAIN = 0.4
#: Audio after the last note of an ensemble (seconds).
ENSEMBLE_TAIL_SEC = 1.0


@dataclass(frozen=True)
class Variation:
    """Ranges from which the variation of a clip is drawn, and the source of its choices.

    Attributes:
        clip_seconds: Length of a clip (seconds).
        transpose: Most semitones up or down.
        tempo: Natural logarithm of the most that a clip is sped up or slowed down.
        velocity_scale: Least and most that velocities are multiplied by.
        velocity_shift: Most that is added to or taken from velocities.
        pedal_removed: Probability that the pedal is left out.
        pedal_added: Probability that a random pedal takes the place of the one in the file.
        exercises: Probability that a generated clip is an exercise.
        arranged: Probability that the voices of an excerpt get other programs.
    """

    clip_seconds: float
    transpose: int
    tempo: float
    velocity_scale: tuple[float, float]
    velocity_shift: int
    pedal_removed: float
    pedal_added: float
    exercises: float = 0.0
    arranged: float = 0.0


@dataclass(frozen=True)
class Sound:
    """What plays a clip; see `open_instrument`.

    Attributes:
        path: SoundFont, or folder of samples.
        layers: Velocity layers.
        release: Whether keys are heard going up.
        resonance_db: Level of the string resonance (dB); None for none.
        channels: 1 or 2.
        velocity_tracking: How much softer soft notes are than they were recorded (0 to 1).
        ensemble: Whether the SoundFont plays all programs and drums.
    """

    path: str = ""
    layers: tuple[int, ...] = DEFAULT_LAYERS
    release: bool = True
    resonance_db: float | None = RESONANCE_DB
    channels: int = 1
    velocity_tracking: float = 0.0
    ensemble: bool = False


@dataclass(frozen=True)
class RenderedRecord(Record):
    """A clip that is made when it is asked for, always in the same way.

    Attributes:
        instrument: The sound.
        variation: How training clips differ from the file; None for a whole file, unchanged.
        seed: Seed and number of the clip.
    """

    instrument: Sound = field(default_factory=Sound)
    variation: Variation | None = None
    seed: tuple[int, int] = field(default=(0, 0))

    def performance(self) -> Performance:
        """Notes and pedal of the clip.

        Raises:
            MidiError: The file cannot be read.
        """
        ensemble = self.instrument.ensemble
        if self.variation is None:
            return without_lead(_playable(self.midi, ensemble))
        generator = np.random.default_rng(self.seed)
        if self.midi is None and ensemble:
            return random_ensemble(generator, self.variation.clip_seconds)
        if self.midi is None:
            # A generator of its own: clips that are no exercises do not change with their share.
            exercise = np.random.default_rng([*self.seed, 2]).random() < self.variation.exercises
            return (random_exercise if exercise else random_pattern)(generator, self.variation.clip_seconds)
        varied = vary(_playable(self.midi, ensemble), self.variation, generator)
        return arrange(varied, generator) if generator.random() < self.variation.arranged else varied

    def waveform(self, sample_rate: int) -> Tensor:
        """Play the clip, [samples] float32, or [2, samples] with two channels.

        Args:
            sample_rate: Of the audio (Hz).
        """
        performance = self.performance()
        audio = _instrument(self.instrument, sample_rate).render(performance)
        if not self.instrument.ensemble:
            return audio
        # Some programs take long to fall silent, and clips would be mostly that.
        return audio[..., : round((performance.end_sec + ENSEMBLE_TAIL_SEC) * sample_rate)]


class Rendered(Corpus):
    """Pairs of notes and audio from MIDI files alone.

    Drums and pitches beyond a piano's keys are left out, and everything else is played by the one instrument, unless it
    is an ensemble.

    Args:
        root: Folder of MIDI files, searched with its sub-folders.
        sound: Folder of the samples of the Salamander Grand Piano, or a SoundFont (.sf2, .sf3).
        layers: Velocity layers of the sampled piano, 1 (softest) to 16.
        release: Whether keys of the sampled piano are heard going up; needs the samples piano-release.
        resonance_db: Level of the string resonance of the sampled piano under the pedal (dB); null for none.
        velocity_tracking: How much softer the sampled piano plays soft notes than they were recorded: 0 not at all,
            0.73 as Salamander's own definition does.
        channels: 1 for mono, 2 for stereo.
        ensemble: Let a General MIDI SoundFont play every program and the drums. Patterns are then pieces for random
            programs and drums, and a pedal is part of the lengths of notes.
        arranged: Share of an ensemble's excerpts in which random programs take the place of those of the file.
        clips: Number of training clips.
        clip_seconds: Length of a training clip (seconds).
        patterns: Share of the training clips that are generated patterns.
        exercises: Share of the patterns that are exercises: long decays, silence, strokes into sounding strings,
            repetitions, and all velocities of a key.
        transpose: Most semitones up or down.
        tempo: Natural logarithm of the most that a clip is sped up or slowed down.
        velocity_scale: Least and most that velocities are multiplied by.
        velocity_shift: Most that is added to or taken from velocities.
        pedal_removed: Probability that a clip is played without pedal.
        pedal_added: Probability that a clip gets a random pedal.
        test_pieces: Names (with wildcards) of files whose pieces are held out for testing.
        validation_pieces: Names (with wildcards) of files whose pieces are held out for validation.
        piece_pattern: Regular expression; the text of its first group in a file's name is the piece, so that several
            performances of a piece stay together. A file whose name does not match is its own piece.
        performances: Most files of a held-out piece that are used.
        seed: Of all random choices.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    # Raised with whatever changes the sound of a clip, so also with the instruments and the patterns.
    version: ClassVar[int] = 2

    def __init__(
        self,
        root: str,
        sound: str,
        layers: Sequence[int] = DEFAULT_LAYERS,
        release: bool = True,
        resonance_db: float | None = RESONANCE_DB,
        velocity_tracking: float = 0.0,
        channels: Literal[1, 2] = 1,
        ensemble: bool = False,
        arranged: float = 0.5,
        clips: int = 360,
        clip_seconds: float = 30.0,
        patterns: float = 0.35,
        exercises: float = 0.0,
        transpose: int = 8,
        tempo: float = 0.3,
        velocity_scale: tuple[float, float] = (0.6, 1.4),
        velocity_shift: int = 10,
        pedal_removed: float = 0.1,
        pedal_added: float = 0.1,
        test_pieces: Sequence[str] = (),
        validation_pieces: Sequence[str] = (),
        piece_pattern: str | None = None,
        performances: int = 2,
        seed: int = 0,
        weight: float = 1.0,
    ):
        super().__init__(root, weight)
        path = str(Path(sound).expanduser().resolve())
        self.instrument = Sound(path, tuple(layers), release, resonance_db, channels, velocity_tracking, ensemble)
        if not Path(path).exists():
            raise DataError(f"rendered: sound: no such file or folder: {sound}")
        if ensemble and not Path(path).is_file():
            raise DataError(f"rendered: an ensemble is played by a SoundFont (.sf2, .sf3); sound is the folder {sound}")
        self.clips = clips
        self.patterns = patterns
        self.variation = Variation(
            clip_seconds,
            transpose,
            tempo,
            tuple(velocity_scale),
            velocity_shift,
            pedal_removed,
            0.0 if ensemble else pedal_added,
            exercises,
            arranged if ensemble else 0.0,
        )
        self.held_out: dict[Split, Sequence[str]] = {"test": test_pieces, "validation": validation_pieces}
        self.piece_pattern = piece_pattern
        self.performances = performances
        self.seed = seed

    def records(self) -> list[Record]:
        """Training clips, and held-out files as a whole. Files that cannot be read or have no notes are left out."""
        by_split: dict[Split, dict[str, list[Path]]] = {"train": {}, "validation": {}, "test": {}}
        for piece, files in self._pieces.items():
            by_split[self._split(piece, files)][piece] = files
        records: list[Record] = []
        for split in ("validation", "test"):
            for piece, files in by_split[split].items():
                records += [self._record(self._id(file), piece, split, file) for file in files[: self.performances]]
        records += self._training_clips(by_split["train"])
        return sorted(records, key=lambda record: record.id)

    def _record(self, id: str, piece: str, split: Split, midi: Path | None) -> RenderedRecord:
        return RenderedRecord("rendered", id=id, piece=piece, split=split, midi=midi, instrument=self.instrument)

    def _training_clips(self, pieces: dict[str, list[Path]]) -> list[RenderedRecord]:
        """Draw files for the clips: long pieces more often, but not in proportion to their length."""
        if not pieces and self.patterns < 1:
            raise DataError(f"rendered: no MIDI file with notes is left for training in {self.root}")
        names = list(pieces)
        lengths = [max(_playable(file, self.instrument.ensemble).end_sec for file in pieces[name]) for name in names]
        chances = np.sqrt(lengths) / np.sqrt(lengths).sum()
        records = []
        for index in range(self.clips):
            generator = np.random.default_rng([self.seed, index, 1])
            midi, piece = None, f"pattern-{index}"
            if generator.random() >= self.patterns:
                piece = names[generator.choice(len(names), p=chances)]
                midi = pieces[piece][generator.integers(len(pieces[piece]))]
            record = self._record(f"clip-{index:05d}", piece, "train", midi)
            records.append(replace(record, variation=self.variation, seed=(self.seed, index)))
        return records

    @cached_property
    def _pieces(self) -> dict[str, list[Path]]:
        """Files with notes that can be played, by piece."""
        files = sorted(path for path in self.root.rglob("*") if path.suffix.lower() in MIDI_SUFFIXES)
        if not files:
            raise DataError(f"rendered: no MIDI file in {self.root}")
        pieces: dict[str, list[Path]] = {}
        for file in files:
            if _has_notes(file, self.instrument.ensemble):
                pieces.setdefault(piece_of(file.stem, self.piece_pattern), []).append(file)
        return pieces

    def _split(self, piece: str, files: Sequence[Path]) -> Split:
        for split, names in self.held_out.items():
            if any(fnmatch(file.name, name) or fnmatch(file.stem, name) for file in files for name in names):
                return split
        return "train" if any(self.held_out.values()) else split_by_hash(piece)

    def _id(self, file: Path) -> str:
        return "_".join(file.relative_to(self.root).with_suffix("").parts)


def vary(performance: Performance, variation: Variation, generator: np.random.Generator) -> Performance:
    """An excerpt of a performance, transposed, at another tempo, loudness and with another pedal.

    Notes that started before the excerpt are left out; the pedal is as it was.

    Args:
        performance: With at least one note.
        variation: Ranges.
        generator: Source of all choices.
    """
    stretch = float(np.exp(generator.uniform(-variation.tempo, variation.tempo)))
    length = variation.clip_seconds / stretch  # on the clock of the file
    # Around a note that is drawn, so that no excerpt is empty however long the rests are.
    anchor = float(generator.choice(performance.notes["onset_sec"]))
    first, last = float(performance.notes["onset_sec"].min()), max(performance.end_sec - length, 0.0)
    start = max(min(anchor - generator.uniform(0, 0.9) * length, last), first - 0.1 * generator.random(), 0.0)
    notes = performance.notes
    notes = notes[(notes["onset_sec"] >= start) & (notes["onset_sec"] < start + length)].copy()
    notes["onset_sec"] = (notes["onset_sec"] - start) * stretch
    notes["duration_sec"] = np.minimum(notes["duration_sec"] * stretch, variation.clip_seconds - notes["onset_sec"])
    shift = generator.integers(-variation.transpose, variation.transpose + 1)
    pitch = notes["pitch"] + shift
    movable = (pitch >= LOWEST_KEY) & (pitch < LOWEST_KEY + KEYS) & ~is_drum(notes)
    notes["pitch"] = np.where(movable, pitch, notes["pitch"])
    scale = generator.uniform(*variation.velocity_scale)
    offset = generator.uniform(-variation.velocity_shift, variation.velocity_shift)
    notes["velocity"] = np.clip(np.rint(notes["velocity"] * scale + offset), 1, 127)
    return from_seconds(notes, _varied_pedal(performance, start, length, stretch, variation, generator))


def _varied_pedal(
    performance: Performance,
    start: float,
    length: float,
    stretch: float,
    variation: Variation,
    generator: np.random.Generator,
) -> list[tuple[float, int]]:
    """Times (seconds of the excerpt) and values of the pedal."""
    choice = generator.random()
    if choice < variation.pedal_removed:
        return []
    if choice < variation.pedal_removed + variation.pedal_added:
        times = generator.uniform(0.4, 4.0, int(variation.clip_seconds / 0.4)).cumsum()
        times = times[times < variation.clip_seconds - 0.5]
        return [(time + delay, value) for time in times.tolist() for delay, value in ((0.0, 0), (0.1, 127))]
    pedal = performance.controls[performance.controls["number"] == SUSTAIN]
    before = pedal[pedal["time_sec"] < start]
    within = pedal[(pedal["time_sec"] >= start) & (pedal["time_sec"] < start + length)]
    held = [(0.0, int(before["value"][-1]))] if len(before) else []
    return held + [((float(row["time_sec"]) - start) * stretch, int(row["value"])) for row in within]


def without_lead(performance: Performance) -> Performance:
    """The same performance from just before its first note on, on the clock of seconds."""
    start = max(float(performance.notes["onset_sec"].min()) - 0.1, 0.0)
    notes = performance.notes.copy()
    notes["onset_sec"] -= start
    pedal = performance.controls[performance.controls["number"] == SUSTAIN]
    return from_seconds(notes, [(max(float(row["time_sec"]) - start, 0.0), int(row["value"])) for row in pedal])


@lru_cache(maxsize=256)
def _playable(path: Path, ensemble: bool) -> Performance:
    performance = read_midi(path)
    if ensemble:
        # Channels have pedals of their own, which clips do not.
        return Performance(notes=extend_by_pedal(performance).notes)
    pitch = performance.notes["pitch"]
    playable = ~is_drum(performance.notes) & (pitch >= LOWEST_KEY) & (pitch < LOWEST_KEY + KEYS)
    notes = performance.notes[playable]
    notes["channel"] = notes["program"] = 0
    return performance.with_notes(notes)


def _has_notes(path: Path, ensemble: bool) -> bool:
    try:
        return len(_playable(path, ensemble).notes) > 0
    except MidiError:
        return False


@lru_cache(maxsize=2)
def _instrument(sound: Sound, sample_rate: int) -> Instrument:
    if sound.ensemble:
        return SoundFontPiano(sound.path, sample_rate, ENSEMBLE_GAIN, sound.channels)
    return open_instrument(
        sound.path,
        sample_rate,
        sound.layers,
        cache_folder() / "instruments",
        release=sound.release,
        resonance_db=sound.resonance_db,
        velocity_tracking=sound.velocity_tracking,
        channels=sound.channels,
    )
