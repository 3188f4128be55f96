"""Corpus `folder`: audio files with MIDI files of the same name, or MIDI files alone, anywhere below a folder."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from midisynth.datasets.corpus import Corpus, Record, Split, piece_of, split_by_hash
from midisynth.errors import DataError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff")
MIDI_SUFFIXES = (".mid", ".midi")

_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


class Folder(Corpus):
    """Your own recordings: `a/take1.wav` with `a/take1.mid`.

    Folders `train`, `validation` and `test` directly below the root decide the split of what is in them. Other files
    are split by a hash of their piece, which is the name of the file unless `piece_pattern` says otherwise. MIDI files
    without audio are left out, unless `audio` says that none is needed.

    Args:
        root: Searched with its sub-folders.
        piece_pattern: Regular expression; the text of its first group in a file's name is the piece, so that several
            recordings of a piece stay in one split.
        audio: Read pairs of audio and MIDI; else every MIDI file is a record, for models that read no audio.
        validation: Share of the pieces for validation.
        test: Share of the pieces for testing.
        weight: Share of this corpus when several are mixed, relative to the others.
    """

    version: ClassVar[int] = 1

    def __init__(
        self,
        root: str,
        piece_pattern: str | None = None,
        audio: bool = True,
        validation: float = 0.1,
        test: float = 0.1,
        weight: float = 1.0,
    ):
        super().__init__(root, weight)
        self.piece_pattern = piece_pattern
        self.audio = audio
        self.validation = validation
        self.test = test

    def records(self) -> list[Record]:
        """One record for each audio file, or for each MIDI file.

        Raises:
            DataError: There are none, or one has no MIDI file, or several files of a name stand side by side.
        """
        files = sorted(path for path in self.root.rglob("*") if path.is_file() and not path.name.startswith("."))
        midi = self._by_name(files, MIDI_SUFFIXES)
        if not self.audio:
            if not midi:
                raise DataError(f"folder: no MIDI file ({', '.join(MIDI_SUFFIXES)}) in {self.root}")
            return sorted((self._record(name, None, path) for name, path in midi.items()), key=lambda r: r.id)
        audio = self._by_name(files, AUDIO_SUFFIXES)
        if not audio:
            raise DataError(
                f"folder: no audio file ({', '.join(AUDIO_SUFFIXES)}) in {self.root}; models that need none take the "
                "MIDI files with audio: false"
            )
        for name, path in audio.items():
            if name not in midi:
                raise DataError(f"folder: {path} has no MIDI file of the same name ({name.name}.mid) beside it")
        return sorted((self._record(name, path, midi[name]) for name, path in audio.items()), key=lambda r: r.id)

    def _by_name(self, files: list[Path], suffixes: tuple[str, ...]) -> dict[Path, Path]:
        """Files of a kind by their path without suffix."""
        found: dict[Path, Path] = {}
        for path in files:
            if path.suffix.lower() in suffixes:
                other = found.setdefault(path.with_suffix(""), path)
                if other != path:
                    raise DataError(f"folder: {other} and {path.name} have one name: which is meant? Remove one")
        return found

    def _record(self, name: Path, audio: Path | None, midi: Path) -> Record:
        parts = name.relative_to(self.root).parts
        piece = piece_of(name.name, self.piece_pattern)
        split = _SPLIT_FOLDERS.get(parts[0].lower()) if len(parts) > 1 else None
        split = split or split_by_hash(piece, self.validation, self.test)
        return Record("folder", id="_".join(parts), piece=piece, split=split, midi=midi, audio=audio)
