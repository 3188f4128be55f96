"""Corpus `slakh`: 2,100 songs for several instruments, each stem rendered alone with a professional instrument.

E. Manilow, G. Wichern, P. Seetharaman, J. Le Roux, "Cutting Music Source Separation Some Slakh: A Dataset to Study the
Impact of Training Data Quality and Quantity", WASPAA 2019. The mixes trained on are those of J. Gardner et al., "MT3:
Multi-Task Multitrack Music Transcription", ICLR 2022, and of E. Manilow, P. Seetharaman, B. Pardo, "Simultaneous
Separation and Transcription of Mixtures with Multiple Polyphonic and Percussive Instruments", ICASSP 2020 (Cerberus).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import yaml

from midisynth.datasets.corpus import SPLITS, Corpus, Record, Split, split_by_hash
from midisynth.datasets.labels import PITCHED_CHANNELS
from midisynth.datasets.stems import subsets
from midisynth.errors import DataError
from midisynth.music.clock import ticks_from_seconds
from midisynth.music.midi import read_midi
from midisynth.music.notes import DRUM_CHANNEL, Performance, is_drum
from midisynth.music.pedal import extend_by_pedal

#: What `metadata.yaml` calls the program of drums.
DRUMS = 128

# Eight times as fast, which counts with 2,100 files.
_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader

#: The four instruments of Cerberus and their programs.
CERBERUS = {
    "piano": range(8),
    "guitar": range(24, 32),
    "bass": range(32, 40),
    "drums": range(DRUMS, DRUMS + 1),
}


@dataclass(frozen=True)
class SlakhRecord(Record):
    """A song, or a mix of some of its stems.

    Attributes:
        stem_midi: MIDI file of each stem that sounds; none where only the file of the whole song is there.
        programs: Program of each stem that sounds, `DRUMS` for drums; empty for everything in the song's file.
    """

    stem_midi: tuple[Path, ...] = ()
    programs: tuple[int, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        return (*super().files, *self.stem_midi)

    def performance(self) -> Performance:
        """Notes of the stems that sound, the pedal applied; each stem on a track of its own.

        Raises:
            MidiError: A file cannot be read.
        """
        if self.stem_midi:
            return joined(self.stem_midi, self.programs)
        song = read_midi(self.midi)
        return choose(song, self.programs) if self.programs else song


class Slakh(Corpus):
    """Slakh2100 (any version: `slakh2100_flac_redux`, the original, re-split ones) and BabySlakh.

    `train/Track00001` has `metadata.yaml`, `mix.flac`, `stems/S00.flac` and so on, `MIDI/S00.mid` and so on, and
    `all_src.mid`; audio may be WAV. The folders `train`, `validation` and `test` decide the split; BabySlakh has none,
    and is split by a hash of the song. Songs with the MIDI file of an earlier one are left out, as in the version
    "redux"; so is its folder `omitted`.

    A song for testing is its mix, and a mix of piano, guitar, bass and drums where it has all four. Songs for training
    and validation are never heard whole but in random mixes of some programs, and in all 15 mixes of those four. A
    stem without audio sounds in no mix, and its notes are in none.

    Args:
        root: Folder of the splits, or of the tracks.
        submixes: Most random mixes of a song for training or validation.
        smallest: Fewest programs in a random mix, counting drums as one.
        cerberus: Add the mixes of piano, guitar, bass and drums.
        seed: Of the random mixes.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    version: ClassVar[int] = 1

    def __init__(
        self,
        root: str,
        submixes: int = 10,
        smallest: int = 4,
        cerberus: bool = True,
        seed: int = 0,
        weight: float = 1.0,
    ):
        super().__init__(root, weight)
        self.submixes = submixes
        self.smallest = smallest
        self.cerberus = cerberus
        self.seed = seed

    def records(self) -> list[Record]:
        """The mixes of all songs.

        Raises:
            DataError: There are no songs, or one lacks a file.
        """
        tracks = [*self.root.glob("Track*"), *(p for split in SPLITS for p in (self.root / split).glob("Track*"))]
        if not tracks:
            raise DataError(f"slakh: no train, validation, test or Track00001 in {self.root}")
        records: list[Record] = []
        seen: set[str] = set()
        # The first track of a song is the one that "redux" keeps.
        for folder in sorted(tracks, key=lambda path: path.name):
            song = Song.open(folder)
            if song.piece not in seen:
                seen.add(song.piece)
                records += self._heard_whole(song) if song.split == "test" else self._mixes(song)
        return sorted(records, key=lambda record: record.id)

    def _heard_whole(self, song: Song) -> Iterator[SlakhRecord]:
        mix = _audio(song.folder, "mix")
        if mix is None:
            raise DataError(f"slakh: {song.folder} has no mix.flac or mix.wav")
        whole = song.mix("mix", set(song.programs.values()))
        # Without the MIDI files of stems, that of the song is all there is.
        yield replace(whole, audio=mix, stems=(), programs=whole.programs if whole.stem_midi else ())
        if self.cerberus and song.has_cerberus:
            yield song.mix("cerberus", {program for programs in CERBERUS.values() for program in programs})

    def _mixes(self, song: Song) -> Iterator[SlakhRecord]:
        programs = sorted(set(song.programs.values()))
        drawn = subsets(programs, self.smallest, len(programs), self.submixes, f"{self.seed}:{song.folder.name}")
        for number, chosen in enumerate(drawn):
            yield song.mix(f"mix{number:02d}", set(chosen))
        if self.cerberus and song.has_cerberus:
            for chosen in subsets(list(CERBERUS), 1, len(CERBERUS), 2 ** len(CERBERUS), ""):
                yield song.mix("-".join(chosen), {program for name in chosen for program in CERBERUS[name]})


@dataclass(frozen=True)
class Song:
    """A track of Slakh.

    Attributes:
        folder: Its files.
        piece: Digest of the MIDI file that it was rendered from.
        split: Of the track.
        programs: Program of each stem with audio, by its name.
        audio: Audio file of each of these stems.
    """

    folder: Path
    piece: str
    split: Split
    programs: Mapping[str, int]
    audio: Mapping[str, Path]

    @classmethod
    def open(cls, folder: Path) -> Song:
        """The song in a folder.

        Raises:
            DataError: Its metadata or all of its stems are missing.
        """
        path = folder / "metadata.yaml"
        try:
            metadata = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
            piece, stems = metadata["UUID"], metadata["stems"]
            programs = {name: DRUMS if s["is_drum"] else int(s["program_num"]) for name, s in stems.items()}
        except OSError as error:
            raise DataError(f"slakh: {path} is missing: a track has metadata.yaml, mix.flac, stems and MIDI") from error
        except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"slakh: {path} is damaged ({type(error).__name__}: {error}); fetch it again") from error
        audio = {name: path for name in programs if (path := _audio(folder / "stems", name)) is not None}
        if not audio:
            raise DataError(f"slakh: {folder / 'stems'} has none of the stems {', '.join(programs)}")
        parent = folder.parent.name
        split: Split = parent if parent in SPLITS else split_by_hash(piece)
        return cls(folder, piece, split, {name: programs[name] for name in audio}, audio)

    @property
    def has_cerberus(self) -> bool:
        """Whether all four instruments of Cerberus play."""
        return all(any(p in members for p in self.programs.values()) for members in CERBERUS.values())

    def mix(self, name: str, programs: AbstractSet[int]) -> SlakhRecord:
        """The stems with one of these programs."""
        stems = [stem for stem, program in self.programs.items() if program in programs]
        midi = tuple(self.folder / "MIDI" / f"{stem}.mid" for stem in stems)
        single = all(path.is_file() for path in midi)
        song = self.folder / "all_src.mid"
        if not single and not song.is_file():
            raise DataError(f"slakh: {song} is missing, and so is a file in {self.folder / 'MIDI'}")
        return SlakhRecord(
            "slakh",
            id=f"{self.folder.name}-{name}",
            piece=self.piece,
            split=self.split,
            midi=None if single else song,
            stems=tuple(self.audio[stem] for stem in stems),
            stem_midi=midi if single else (),
            programs=tuple(self.programs[stem] for stem in stems),
        )


def _audio(folder: Path, name: str) -> Path | None:
    return next((path for suffix in (".flac", ".wav") if (path := folder / f"{name}{suffix}").is_file()), None)


def choose(song: Performance, programs: Collection[int]) -> Performance:
    """The notes of some programs; drums, whatever program their channel has, belong to `DRUMS`."""
    program = np.where(is_drum(song.notes), DRUMS, song.notes["program"])
    return song.with_notes(song.notes[np.isin(program, list(programs))])


def joined(paths: Sequence[Path], programs: Sequence[int]) -> Performance:
    """The MIDI files of stems as one performance.

    Args:
        paths: One file a stem.
        programs: Program of each stem, `DRUMS` for drums.

    Raises:
        MidiError: A file cannot be read.
    """
    parts = []
    for number, (path, program) in enumerate(zip(paths, programs, strict=True)):
        notes = _sounding(path).notes.copy()
        drums = program == DRUMS
        notes["track"] = number
        notes["program"] = 0 if drums else program
        notes["channel"] = DRUM_CHANNEL if drums else PITCHED_CHANNELS[number % len(PITCHED_CHANNELS)]
        parts.append(notes)
    song = ticks_from_seconds(replace(_sounding(paths[0]), notes=np.concatenate(parts), track_names=[""] * len(paths)))
    order = np.lexsort([song.notes[name] for name in ("pitch", "channel", "track", "onset_tick")])
    return song.with_notes(song.notes[order])


# The mixes of a song come one after the other.
@lru_cache(maxsize=32)
def _sounding(path: Path) -> Performance:
    """Notes as they sound, without controllers: every stem has its own pedal, and stems may share a channel."""
    played = extend_by_pedal(read_midi(path))
    return Performance(notes=played.notes, tempos=played.tempos, ticks_per_quarter=played.ticks_per_quarter)
